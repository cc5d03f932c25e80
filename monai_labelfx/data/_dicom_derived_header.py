# SPDX-License-Identifier: Apache-2.0
"""The header of a derived DICOM image: what it inherits from its source, and what says that it is not its source."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from monai_labelfx._version import __version__

if TYPE_CHECKING:
    from pydicom.dataset import Dataset
    from pydicom.tag import BaseTag

PACKAGE = "monai-labelfx"
_DERIVATIONS = {"Denoised": ("113087", "DCM", "Smoothing")}  # CID 7203 has nothing nearer
_SOURCE_IMAGE = ("121322", "DCM", "Source image for image processing operation")
_PROCESSING = ("109102", "DCM", "Processing Equipment")
_DROPPED = (  # pictures, statistics, signatures and approvals of the old pixels; how the old file was packed
    *("IconImageSequence", "HistogramSequence", "PixelDataProviderURL"),
    *(f"{end}ImagePixelValue{where}" for end in ("Smallest", "Largest") for where in ("", "InPlane")),
    *("SmallestPixelValueInSeries", "LargestPixelValueInSeries", "DataSetTrailingPadding"),
    *("DigitalSignaturesSequence", "MACParametersSequence", "InstanceCreatorUID"),
    *("SOPInstanceStatus", "SOPAuthorizationDateTime", "SOPAuthorizationComment"),
    *("AuthorizationEquipmentCertificationNumber", "ConversionSourceAttributesSequence"),
    *("ExtendedOffsetTable", "ExtendedOffsetTableLengths"),
    *("ConcatenationUID", "SOPInstanceUIDOfConcatenationSource", "InConcatenationNumber"),
    *("InConcatenationTotalNumber", "ConcatenationFrameOffsetNumber"),
)
_DISPLAY_DROPPED = (  # applied to the pixels already
    *("ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "WindowCenterWidthExplanation"),
    *("WindowCenter", "WindowWidth", "PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("FrameVOILUTSequence", "PixelValueTransformationSequence"),
)
_LOSSY = {
    "1.2.840.10008.1.2.4.50": "ISO_10918_1",
    "1.2.840.10008.1.2.4.51": "ISO_10918_1",
    "1.2.840.10008.1.2.4.81": "ISO_14495_1",
}


@dataclass(frozen=True)
class Derivation:
    """What all images of one derived series share; ``series_number`` None: from the source."""

    description: str
    series_uid: str
    series_number: int | None
    series_description: str | None
    now: datetime


def derive(dataset: Dataset, derivation: Derivation, *, uncovered: int = 0) -> None:
    """Turn the header of a source image into that of the image derived from it, in place; pixels are left alone.

    ``uncovered`` is how many voxels keep the values of the source, for DerivationDescription.
    """
    from pydicom.dataset import FileMetaDataset
    from pydicom.sequence import Sequence as DicomSequence
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    reference, source_series = _reference(dataset), str(dataset.get("SeriesInstanceUID") or "")
    old_syntax = str(getattr(dataset, "file_meta", {}).get("TransferSyntaxUID", ""))
    _drop(dataset)
    if dataset.original_encoding[1] is False:
        _swap_bytes(dataset)
    if old_syntax in _LOSSY:
        dataset.LossyImageCompression = "01"
        if not dataset.get("LossyImageCompressionMethod"):
            dataset.LossyImageCompressionMethod = _LOSSY[old_syntax]

    dataset.SOPInstanceUID, dataset.SeriesInstanceUID = generate_uid(), derivation.series_uid
    _number_and_describe(dataset, derivation)
    now = derivation.now.astimezone(_zone(dataset))
    for prefix in ("InstanceCreation", "Content", "Series"):
        setattr(dataset, f"{prefix}Date", now.strftime("%Y%m%d"))
        setattr(dataset, f"{prefix}Time", now.strftime("%H%M%S"))

    multi_frame = "PerFrameFunctionalGroupsSequence" in dataset
    old_type = [str(value) for value in _values(dataset.get("ImageType"))]
    # C.8.16.1.2: an Enhanced image has no value 2 but PRIMARY
    dataset.ImageType = ["DERIVED", "PRIMARY" if multi_frame else "SECONDARY", *old_type[2:]]
    step = f"{PACKAGE} {__version__}: {derivation.description}"
    if uncovered:
        step += f" ({uncovered} pixels outside the processed region hold the source's values)"
    before = str(dataset.get("DerivationDescription") or "")
    dataset.DerivationDescription = f"{step}; before: {before}"[:1024] if before else step
    code = _code(*_DERIVATIONS.get(derivation.description, ("DERIVED", "99LABELFX", derivation.description)))
    dataset.DerivationCodeSequence = DicomSequence([*(dataset.get("DerivationCodeSequence") or []), code])
    dataset.SourceImageSequence = DicomSequence([reference])
    dataset.ContributingEquipmentSequence = DicomSequence(
        [*(dataset.get("ContributingEquipmentSequence") or []), _equipment(derivation.description, now)]
    )
    if multi_frame:
        _derive_frames(dataset, reference, step, code)
        _refer_to_series(dataset, reference, source_series)

    dataset.preamble = bytes(128)  # some hold another file format's header
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID


def as_displayed(dataset: Dataset, low: int, high: int) -> None:
    """Make the header of a projection X-ray that of pixels between ``low`` and ``high`` to be shown as they are."""
    if dataset.PhotometricInterpretation == "MONOCHROME1" and dataset.get("PixelIntensityRelationshipSign"):
        dataset.PixelIntensityRelationshipSign = -dataset.PixelIntensityRelationshipSign
    for part in (dataset, *_functional_groups(dataset)):
        for keyword in _DISPLAY_DROPPED:
            if keyword in part:
                del part[keyword]
    dataset.PhotometricInterpretation, dataset.PresentationLUTShape = "MONOCHROME2", "IDENTITY"
    if "RescaleSlope" in dataset:  # DX images must have them
        dataset.RescaleSlope, dataset.RescaleIntercept, dataset.RescaleType = 1, 0, "US"
    dataset.WindowCenter, dataset.WindowWidth = (low + high + 1) / 2, high - low + 1
    dataset.PixelRepresentation = int(low < 0)
    dataset.BitsStored = (high - low).bit_length()
    dataset.BitsAllocated = 8 if dataset.BitsStored <= 8 else 16 if dataset.BitsStored <= 16 else 32


def is_derived_here(path: str) -> bool:
    """Whether a file is a DICOM image that this package derived."""
    from pydicom import dcmread
    from pydicom.errors import InvalidDicomError

    try:
        header = dcmread(path, stop_before_pixels=True, specific_tags=["DerivationDescription"])
    except (OSError, InvalidDicomError):
        return False
    return str(header.get("DerivationDescription") or "").startswith(f"{PACKAGE} ")


def _values(value: Any) -> Sequence[Any]:
    return [] if value is None else [value] if isinstance(value, str) else value


def _code(value: str, scheme: str, meaning: str) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.CodeValue, item.CodingSchemeDesignator, item.CodeMeaning = value, scheme, meaning[:64]
    return item


def _reference(dataset: Dataset) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.ReferencedSOPClassUID, item.ReferencedSOPInstanceUID = dataset.SOPClassUID, dataset.SOPInstanceUID
    item.SpatialLocationsPreserved = "YES"
    item.PurposeOfReferenceCodeSequence = [_code(*_SOURCE_IMAGE)]
    return item


def _equipment(description: str, now: datetime) -> Dataset:
    from pydicom.dataset import Dataset

    item = Dataset()
    item.Manufacturer = item.ManufacturerModelName = PACKAGE
    item.SoftwareVersions = __version__
    item.ContributionDateTime = now.strftime("%Y%m%d%H%M%S%z")
    item.ContributionDescription = description
    item.PurposeOfReferenceCodeSequence = [_code(*_PROCESSING)]
    return item


def _drop(dataset: Dataset) -> None:
    """Remove, at every depth, private elements and what belongs to the old pixels.

    Elements are not decoded on the way, so that what stays is written as the bytes it was: a name in a broken
    character set survives.
    """
    from pydicom.tag import Tag

    dropped = {Tag(keyword) for keyword in _DROPPED}
    for tag in list(dataset.keys()):
        graphics = tag.group & 0xFF01 in (0x5000, 0x6000)  # curves and overlays, some in unused bits of the pixels
        if tag.is_private or graphics or tag in dropped:
            del dataset[tag]
        elif _is_sequence(dataset, tag):
            for item in dataset[tag].value or []:
                _drop(item)


def _swap_bytes(dataset: Dataset) -> None:
    """Tables of numbers (lookup tables, ...) to little endian, which pydicom keeps as they were read."""
    for element in dataset.iterall():
        size = {"OW": 2, "OF": 4, "OL": 4, "OD": 8, "OV": 8}.get(element.VR)
        if size and element.keyword != "PixelData" and element.value:
            element.value = np.frombuffer(element.value, f">u{size}").astype(f"<u{size}").tobytes()


def _is_sequence(dataset: Dataset, tag: BaseTag) -> bool:
    from pydicom.datadict import dictionary_has_tag, dictionary_VR

    representation = dataset.get_item(tag).VR
    if representation in (None, "UN"):  # implicit, or implicit once
        representation = dictionary_VR(tag) if dictionary_has_tag(tag) else "UN"
    return representation == "SQ"


def _number_and_describe(dataset: Dataset, derivation: Derivation) -> None:
    number = derivation.series_number
    if number is None:
        source = str(dataset.get("SeriesNumber") or 0)
        number = int(source) * 100 + 1 if source.isdecimal() else 1
    dataset.SeriesNumber = number if number < 2**31 else 1
    text = derivation.series_description
    if text is None:
        source = " ".join(str(value) for value in _values(dataset.get("SeriesDescription"))).strip()
        text = f"{source[: 63 - len(derivation.description)]} {derivation.description}".strip()
    dataset.SeriesDescription = text


def _zone(dataset: Dataset) -> Any:
    """The time zone that the dates of a dataset are in; None (local time) where it does not say."""
    try:
        return datetime.strptime(str(dataset.get("TimezoneOffsetFromUTC") or ""), "%z").tzinfo
    except ValueError:
        return None


def _functional_groups(dataset: Dataset) -> Iterator[Dataset]:
    for keyword in ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"):
        yield from dataset.get(keyword) or []


def _derive_frames(dataset: Dataset, reference: Dataset, step: str, code: Dataset) -> None:
    """Say of each frame that it is derived, and from which frame."""
    from copy import deepcopy

    from pydicom.dataset import Dataset

    for group in _functional_groups(dataset):
        if "DerivationImageSequence" in group:
            del group.DerivationImageSequence
        for element in group:
            if element.keyword.endswith("FrameTypeSequence"):
                for item in element.value:
                    item.FrameType = ["DERIVED", *_values(item.get("FrameType"))[1:]]
    for number, group in enumerate(dataset.PerFrameFunctionalGroupsSequence, start=1):
        source = deepcopy(reference)
        source.ReferencedFrameNumber = number
        item = Dataset()
        item.DerivationDescription, item.DerivationCodeSequence, item.SourceImageSequence = step, [code], [source]
        group.DerivationImageSequence = [item]


def _refer_to_series(dataset: Dataset, reference: Dataset, series: str) -> None:
    """Multi-frame images list all the images that they refer to (Common Instance Reference)."""
    from pydicom.dataset import Dataset

    image, item = Dataset(), Dataset()
    image.ReferencedSOPClassUID = reference.ReferencedSOPClassUID
    image.ReferencedSOPInstanceUID = reference.ReferencedSOPInstanceUID
    item.SeriesInstanceUID, item.ReferencedInstanceSequence = series, [image]
    dataset.ReferencedSeriesSequence = [*(dataset.get("ReferencedSeriesSequence") or []), item]
