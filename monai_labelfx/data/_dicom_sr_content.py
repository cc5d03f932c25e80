# SPDX-License-Identifier: Apache-2.0
"""The content tree of a report of detections: TID 1500 with a measurement group for each, and what they are called."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_labelfx._version import __version__
from monai_labelfx.data._dicom_segments import PROGRAM

if TYPE_CHECKING:
    from highdicom.sr import ContainerContentItem, ContentItem, ContentSequence
    from pydicom.dataset import Dataset

SCHEME = "99LABELFX"  # of codes that are the names of classes
NAMED = re.compile(r"label (-?\d+)(?:: (.*))?", re.DOTALL)  # the algorithm parameter that says the class of a detection
_SOURCE = ("260753009", "SCT", "Source")
_QUALITATIVE = ("C0034375", "UMLS", "Qualitative Evaluations")
_PROCEDURES = {  # modality -> procedure of CID 100
    "CT": ("25045-6", "LN", "CT unspecified body region"),
    "MR": ("25056-3", "LN", "MRI unspecified body region"),
    "PT": ("44136-0", "LN", "PET unspecified body region"),
    "NM": ("49118-3", "LN", "NM unspecified body region"),
    **dict.fromkeys(("CR", "DX", "RG"), ("43468-8", "LN", "XR unspecified body region")),
}
_ANY_PROCEDURE = ("363679005", "SCT", "Imaging procedure")
_LONGEST, _LONGEST_CODE = 64, 16  # characters that DICOM allows


@dataclass(frozen=True, slots=True)
class Class:
    """What the detections of a label are called in a report."""

    label: int
    name: str | None  # as given
    code: tuple[str, str, str]  # value, scheme, meaning

    @property
    def parameter(self) -> str:
        """The text that :py:data:`NAMED` reads."""
        return f"label {self.label}" if self.name is None else f"label {self.label}: {self.name}"


def classes_of(labels: Iterable[int], names: Mapping[Any, Any] | None, codes: Mapping[Any, Any] | None) -> list[Class]:
    """The class of each detection; the keywords ``names`` and ``codes`` of the writer, checked.

    A class without a code has its name as one, of a scheme of our own: the name, or a digest of one that is too long.

    Raises:
        ValueError: one sentence about the first entry that cannot be used.
    """
    named, coded = _by_label("names", names), _by_label("codes", codes)
    for label, name in named.items():
        if not _is_text(name, _LONGEST):
            raise ValueError(
                f"names[{label}] is {name!r}, expected a text of 1 to {_LONGEST} characters without backslash"
            )
    for label, code in coded.items():
        usable = isinstance(code, Sequence) and not isinstance(code, str) and len(code) == 3
        if not usable or not all(
            _is_text(part, most) for part, most in zip(code, (_LONGEST, _LONGEST_CODE, _LONGEST), strict=True)
        ):
            raise ValueError(
                f"codes[{label}] is {code!r}, expected [code, scheme, meaning] of at most {_LONGEST}, {_LONGEST_CODE} "
                f"and {_LONGEST} characters without backslash"
            )
    return [
        Class(label, named.get(label), tuple(coded.get(label) or _own_code(named.get(label, f"label {label}"))))
        for label in labels
    ]


def _by_label(argument: str, entries: Mapping[Any, Any] | None) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for key, value in (entries or {}).items():
        if isinstance(key, bool) or not re.fullmatch(r"-?\d+", str(key)):
            raise ValueError(f"{argument} must map labels (whole numbers) to their values, got the label {key!r}")
        if int(key) in found:
            raise ValueError(f"{argument} has the label {int(key)} twice")
        found[int(key)] = value
    return found


def _is_text(value: Any, most: int) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= most and value.isprintable() and "\\" not in value


def _own_code(name: str) -> tuple[str, str, str]:
    short = name if len(name) <= _LONGEST_CODE else hashlib.sha256(name.encode()).hexdigest()[:_LONGEST_CODE]
    return short, SCHEME, name


def group_of(kind: Class, score: float, number: int, region: Any, algorithm: tuple[str, str]) -> ContentSequence:
    """The measurement group of detection ``number``, from 1; ``region`` as of ``_dicom_sr_regions``."""
    from highdicom import UID
    from highdicom.sr import (
        AlgorithmIdentification,
        CodedConcept,
        ImageRegion,
        Measurement,
        PlanarROIMeasurementsAndQualitativeEvaluations,
        TrackingIdentifier,
        VolumetricROIMeasurementsAndQualitativeEvaluations,
    )
    from pydicom.sr.codedict import codes

    name, version = algorithm
    common: dict[str, Any] = {
        "tracking_identifier": TrackingIdentifier(UID(), f"{kind.code[2]} {number}"),
        "finding_type": CodedConcept(*kind.code),
        "algorithm_id": AlgorithmIdentification(
            name, version, parameters=[kind.parameter], family=codes.DCM.ArtificialIntelligence
        ),
        "geometric_purpose": codes.cid219.BoundedBy,
        "measurements": [Measurement(codes.DCM.CertaintyOfFinding, 100 * float(score), codes.UCUM.Percent)],
    }
    if isinstance(region, ImageRegion):
        return PlanarROIMeasurementsAndQualitativeEvaluations(referenced_region=region, **common)
    return VolumetricROIMeasurementsAndQualitativeEvaluations(referenced_volume_surface=region, **common)


def content_of(
    groups: Sequence[ContentSequence], images: Sequence[Dataset], modality: str, algorithm: tuple[str, str]
) -> ContainerContentItem:
    """The root of the report: the device that observed, the images that it looked at, and the groups.

    Without groups it says which algorithm succeeded without findings, and nothing about the patient. (The class
    ``MeasurementReport`` of highdicom, which reads both, builds none without groups.)
    """
    from highdicom import UID
    from highdicom.sr import (
        CodeContentItem,
        CodedConcept,
        ContainerContentItem,
        ContentSequence,
        DeviceObserverIdentifyingAttributes,
        LanguageOfContentItemAndDescendants,
        ObservationContext,
        ObserverContext,
        TextContentItem,
    )
    from pydicom.sr.codedict import codes
    from pydicom.uid import generate_uid

    device = DeviceObserverIdentifyingAttributes(
        uid=UID(generate_uid(entropy_srcs=[PROGRAM, __version__])),  # one device, and another one when it changes
        name=PROGRAM,
        manufacturer_name=PROGRAM,
        model_name=f"{PROGRAM} {__version__}",
    )
    root = ContainerContentItem(codes.cid7021.ImagingMeasurementReport, template_id="1500")
    root.ContentSequence = ContentSequence()
    root.ContentSequence.extend(
        LanguageOfContentItemAndDescendants(CodedConcept("en-US", "RFC5646", "English (United States)"))
    )
    root.ContentSequence.extend(ObservationContext(ObserverContext(codes.DCM.Device, device)))
    procedure = CodedConcept(*_PROCEDURES.get(modality, _ANY_PROCEDURE))
    root.ContentSequence.append(CodeContentItem(codes.DCM.ProcedureReported, procedure, "HAS CONCEPT MOD"))
    root.ContentSequence.append(_library(images))
    if groups:
        found = _container(codes.DCM.ImagingMeasurements, [item for group in groups for item in group])
    else:
        summary = CodeContentItem(
            codes.DCM.CADProcessingAndFindingsSummary, codes.cid6047.AllAlgorithmsSucceededWithoutFindings, "CONTAINS"
        )
        parts = zip((codes.DCM.AlgorithmName, codes.DCM.AlgorithmVersion), algorithm, strict=True)
        texts = [TextContentItem(name, text, "CONTAINS") for name, text in parts]
        found = _container(CodedConcept(*_QUALITATIVE), [summary, *texts])
    root.ContentSequence.append(found)
    return root


def _library(images: Sequence[Dataset]) -> ContainerContentItem:
    """All images that were looked at (TID 1600)."""
    from highdicom.sr import CodedConcept, ImageContentItem
    from pydicom.sr.codedict import codes

    name = CodedConcept(*_SOURCE)
    items = [
        ImageContentItem(name, image.SOPClassUID, image.SOPInstanceUID, relationship_type="CONTAINS")
        for image in images
    ]
    return _container(codes.DCM.ImageLibrary, [_container(codes.DCM.ImageLibraryGroup, items)])


def _container(name: Any, items: Sequence[ContentItem]) -> ContainerContentItem:
    from highdicom.sr import ContainerContentItem, ContentSequence

    result = ContainerContentItem(name, relationship_type="CONTAINS")
    result.ContentSequence = ContentSequence(items)
    return result
