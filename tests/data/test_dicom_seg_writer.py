# SPDX-License-Identifier: Apache-2.0
"""DicomSegWriter: what other programs read from its files is the array, its place, its names and its source."""

from __future__ import annotations

import logging
import os
import warnings
from functools import partial
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of, phantom, save, series_slices, write_series
from monai.data import MetaTensor
from monai.transforms import LoadImage, SaveImage

from monai_labelfx.data.dicom_seg_reader import DicomSegReader
from monai_labelfx.data.dicom_seg_writer import DicomSegWriter
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader

LPS = np.diag([-1.0, -1.0, 1.0, 1.0])
NAMES = {"0": "background", "1": "liver", "3": "tumour"}


def read_image(path, **options) -> MetaTensor:
    return LoadImage(DicomSeriesReader(**options), ensure_channel_first=True)(path)


def labels_on(image: MetaTensor, highest: int = 3) -> MetaTensor:
    """Label values of no symmetry as a network's output has them (float); slices 1 and 5 are empty."""
    values = np.random.default_rng(0).integers(0, highest + 1, image.shape).astype(np.float32)
    if values.shape[-1] == 8:
        values[..., [1, 5]] = 0
    return MetaTensor(torch.as_tensor(values)).copy_meta_from(image)


def write(label, path: Path, *, resample: bool = False, meta=None, **options) -> pydicom.Dataset:
    writer = DicomSegWriter(**options)
    writer.set_data_array(label, channel_dim=0)
    writer.set_metadata(label.meta if meta is None else meta, resample=resample)
    writer.write(path, verbose=False)
    return pydicom.dcmread(path)


def read(path, **options) -> MetaTensor:
    return LoadImage(DicomSegReader(**options), dtype=None)(path)


@pytest.fixture
def image(tmp_path) -> MetaTensor:
    return read_image(write_series(tmp_path / "series", phantom()))


def independent(segmentation: pydicom.Dataset) -> dict[tuple[float, ...], np.ndarray]:
    """Position -> label values (rows, columns), from the file by plain pydicom and the definition of the format."""
    size = segmentation.Rows * segmentation.Columns
    if segmentation.SegmentationType == "BINARY":
        bits = np.unpackbits(np.frombuffer(segmentation.PixelData, np.uint8), bitorder="little")
        stored = bits[: size * segmentation.NumberOfFrames]
    else:
        stored = np.frombuffer(segmentation.PixelData, f"u{segmentation.BitsAllocated // 8}")
        stored = stored[: size * segmentation.NumberOfFrames]
    found: dict[tuple[float, ...], np.ndarray] = {}
    shared = segmentation.SharedFunctionalGroupsSequence[0]
    for index, frame in enumerate(segmentation.PerFrameFunctionalGroupsSequence):
        plane = stored[index * size : (index + 1) * size].reshape(segmentation.Rows, segmentation.Columns)
        position = tuple(float(value) for value in frame.PlanePositionSequence[0].ImagePositionPatient)
        number = 1
        if segmentation.SegmentationType == "BINARY":
            group = frame if "SegmentIdentificationSequence" in frame else shared
            number = group.SegmentIdentificationSequence[0].ReferencedSegmentNumber
        found[position] = found.get(position, 0) + plane.astype(int) * number
    return found


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("slices", [1, 8])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_array_and_geometry_come_back(tmp_path, orientation, slices, kind):
    series = write_series(tmp_path / "series", phantom((15, 11, slices)), orientation=orientation)
    image = read_image(series)
    label = labels_on(image)
    writer = partial(DicomSegWriter, segments=NAMES, kind=kind)
    SaveImage(tmp_path, "", ".dcm", writer=writer, print_log=False, resample=True)(label, filename=tmp_path / "seg")

    own = read(tmp_path / "seg.dcm")
    assert np.array_equal(own.numpy(), label.numpy()[0])
    assert np.abs(own.affine.numpy() - image.affine.numpy()).max() < 1e-12

    sources = {tuple(map(float, s.ImagePositionPatient)): s for s in map(pydicom.dcmread, series.iterdir())}
    segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
    planes = independent(segmentation)
    assert planes.keys() == sources.keys()
    affine = LPS @ affine_of(orientation)
    for index in range(slices):
        position = min(planes, key=lambda p: np.abs(p - (affine @ [0, 0, index, 1])[:3]).max())
        expected = label.numpy()[0, :, :, index] if slices > 1 else label.numpy()[0]
        assert np.array_equal(planes[position], expected.T)
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        source = sources[tuple(map(float, frame.PlanePositionSequence[0].ImagePositionPatient))]
        reference = frame.DerivationImageSequence[0].SourceImageSequence[0]
        assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
        assert reference.SpatialLocationsPreserved == "YES"


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("orientation", [name for name in ORIENTATIONS if name != "tilted"])
def test_highdicom_reads_the_same_volume(tmp_path, orientation, kind):
    label = labels_on(read_image(write_series(tmp_path / "series", phantom(), orientation=orientation)))
    write(label, tmp_path / "seg.dcm", kind=kind)
    volume = highdicom.seg.segread(tmp_path / "seg.dcm").get_volume(combine_segments=True)
    to_label = np.linalg.inv(label.affine.numpy()) @ LPS @ volume.affine
    assert np.allclose(to_label, np.rint(to_label), atol=1e-6)
    index = np.indices(volume.spatial_shape).reshape(3, -1)
    x, y, z = np.rint(to_label[:3, :3] @ index + to_label[:3, 3:]).astype(int)
    assert np.array_equal(volume.array.ravel(), label.numpy()[0, x, y, z])


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_names_colours_and_codes(tmp_path, image, kind):
    segments = {
        1: {
            "name": "Leber rechts, größer",
            "colour": [220, 20, 60],
            "category": ["123037004", "SCT", "Anatomical Structure"],
            "type": ["10200004", "SCT", "Liver"],
        },
        "2": "vessel",
    }
    segmentation = write(labels_on(image), tmp_path / "seg.dcm", kind=kind, segments=segments)
    found = {segment.SegmentNumber: segment for segment in segmentation.SegmentSequence}
    assert [found[number].SegmentLabel for number in (1, 2, 3)] == ["Leber rechts, größer", "vessel", "label 3"]
    liver = found[1]
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeMeaning == "Liver"
    assert liver.SegmentedPropertyTypeCodeSequence[0].CodeValue == "10200004"
    assert liver.SegmentedPropertyCategoryCodeSequence[0].CodingSchemeDesignator == "SCT"
    colour = highdicom.color.CIELabColor.from_dicom_value(tuple(liver.RecommendedDisplayCIELabValue))
    assert np.abs(np.subtract(colour.to_rgb(), (220, 20, 60))).max() <= 1
    assert liver.SegmentAlgorithmType == "AUTOMATIC" and liver.SegmentAlgorithmName == "monai_labelfx"
    assert len({tuple(found[number].RecommendedDisplayCIELabValue) for number in (1, 2, 3)}) == 3
    described = highdicom.seg.segread(tmp_path / "seg.dcm").get_segment_description(2)
    assert described.segment_label == "vessel"


def test_patient_study_and_references_are_those_of_the_source(tmp_path):
    slices = series_slices(phantom())
    for one in slices:
        one.PatientName, one.PatientID, one.PatientBirthDate, one.PatientSex = "Doe^Jane", "4711", "19700102", "F"
        one.StudyDate, one.StudyTime, one.StudyID, one.AccessionNumber = "20260102", "101112", "7", "A1"
        one.StudyDescription, one.PatientAge = "Abdomen", "055Y"
        one.OperatorsName = one.InstitutionName = "nobody's business"
    series = save(tmp_path / "series", slices)
    segmentation = write(labels_on(read_image(series)), tmp_path / "seg.dcm", series_description="liver, automatic")
    for keyword in (
        *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "PatientAge", "StudyDate", "StudyTime"),
        *("StudyID", "AccessionNumber", "StudyDescription", "StudyInstanceUID", "FrameOfReferenceUID"),
    ):
        assert segmentation[keyword].value == slices[0][keyword].value, keyword
    (referenced,) = segmentation.ReferencedSeriesSequence
    assert referenced.SeriesInstanceUID == slices[0].SeriesInstanceUID != segmentation.SeriesInstanceUID
    uids = [item.ReferencedSOPInstanceUID for item in referenced.ReferencedInstanceSequence]
    assert uids == [one.SOPInstanceUID for one in slices]
    assert segmentation.SeriesDescription == "liver, automatic" and segmentation.Modality == "SEG"
    assert segmentation.SeriesNumber == 1001 and segmentation.ContentLabel == "SEGMENTATION"
    assert segmentation.ContentCreatorName == "" and "business" not in str(segmentation)
    assert segmentation.Manufacturer == segmentation.ManufacturerModelName == "monai_labelfx"


REQUIRED = """SpecificCharacterSet SOPClassUID SOPInstanceUID StudyInstanceUID SeriesInstanceUID Modality SeriesNumber
    InstanceNumber ContentDate ContentTime ImageType BitsAllocated BitsStored HighBit PixelRepresentation Rows Columns
    SamplesPerPixel PhotometricInterpretation LossyImageCompression SegmentationType SegmentSequence ContentLabel
    Manufacturer ManufacturerModelName DeviceSerialNumber SoftwareVersions NumberOfFrames FrameOfReferenceUID
    SharedFunctionalGroupsSequence PerFrameFunctionalGroupsSequence DimensionOrganizationSequence
    DimensionIndexSequence ReferencedSeriesSequence PixelData""".split()  # type 1 of the IOD's mandatory modules
REQUIRED_OR_EMPTY = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
    ReferringPhysicianName PositionReferenceIndicator ContentDescription ContentCreatorName""".split()


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_poor_source_headers_give_a_complete_file(tmp_path, kind):
    slices = series_slices(phantom())
    for one in slices:
        for keyword in (
            *("PatientName", "PatientID", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime", "StudyID"),
            *("AccessionNumber", "ReferringPhysicianName", "PositionReferenceIndicator", "Manufacturer"),
            *("SeriesNumber", "InstanceNumber", "FrameOfReferenceUID", "SliceThickness"),
        ):
            delattr(one, keyword)
    label = labels_on(read_image(save(tmp_path / "series", slices)))
    segmentation = write(label, tmp_path / "seg.dcm", kind=kind)
    for keyword in REQUIRED:
        assert keyword in segmentation and not segmentation[keyword].is_empty, keyword
    assert all(keyword in segmentation for keyword in REQUIRED_OR_EMPTY)
    assert np.array_equal(read(tmp_path / "seg.dcm").numpy(), label.numpy()[0])
    again = write(label, tmp_path / "again.dcm", kind=kind)
    assert again.FrameOfReferenceUID == segmentation.FrameOfReferenceUID
    assert again.SOPInstanceUID != segmentation.SOPInstanceUID


def test_nothing_private_is_said_whatever_the_header_holds(tmp_path, caplog, capfd):
    slices = series_slices(phantom((6, 5, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in slices:
            one.PatientName, one.PatientID = "SecretName", "SecretId" * 20
            one.PatientSex, one.PatientBirthDate = "SecretSex", "1.1.SecretBirth"
            one.StudyDate, one.AccessionNumber = "SecretDate", "SecretAccession" * 5
            one.PatientWeight = "70.000000000"
        series = save(tmp_path / "series", slices)
    for path in series.iterdir():
        path.write_bytes(path.read_bytes().replace(b"70.000000000", b"SecretWeight"))
    label = labels_on(read_image(series))
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        segmentation = write(label, tmp_path / "seg.dcm")
    said = caplog.text + "".join(str(one.message) for one in caught) + "".join(capfd.readouterr())
    assert "Secret" not in said
    assert segmentation.PatientName == "SecretName" and segmentation.PatientSex == "SecretSex"
    assert b"SecretWeight" in (tmp_path / "seg.dcm").read_bytes()


@pytest.mark.parametrize(
    ("charset", "name"),
    [("ISO_IR 100", "Müller^Jürgen"), ("ISO_IR 144", "Люкceмбypг"), (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎")],
)
def test_names_in_other_character_sets(tmp_path, charset, name):
    slices = series_slices(phantom((6, 5, 2)))
    for one in slices:
        one.SpecificCharacterSet, one.PatientName = charset, name
    label = labels_on(read_image(save(tmp_path / "series", slices)))
    segmentation = write(label, tmp_path / "seg.dcm", segments={1: "größer 大"})
    assert segmentation.PatientName == name and segmentation.SegmentSequence[0].SegmentLabel == "größer 大"


@pytest.mark.parametrize(("options", "frames"), [({}, 8), ({"kind": "labelmap"}, 8), ({"kind": "binary"}, None)])
def test_hundreds_of_objects_survive_save_image(tmp_path, image, options, frames):
    values = np.zeros(image.shape, dtype=np.int32)
    values[0, :, :, :4] = np.resize(np.repeat(np.arange(301), 2), (16, 12, 4))
    values[0, 0, 0, 6] = 300
    label = MetaTensor(torch.as_tensor(values)).copy_meta_from(image)
    writer = "monai_labelfx.data.dicom_seg_writer.DicomSegWriter"
    save_image = SaveImage(tmp_path, "", ".dcm", writer=partial(DicomSegWriter, **options) if options else writer)
    save_image(label, filename=tmp_path / "seg")
    loaded = read(tmp_path / "seg.dcm")
    assert np.array_equal(loaded.numpy(), values[0]) and int(loaded.max()) == 300
    segmentation = pydicom.dcmread(tmp_path / "seg.dcm")
    assert segmentation.SegmentationType == options.get("kind", "labelmap").upper()
    objects = [s.SegmentLabel for s in segmentation.SegmentSequence if s.SegmentNumber]
    assert len(objects) == 300 and objects[6] == "object 7"
    present = sum(len(set(np.unique(values[0, :, :, z])) - {0}) or 1 for z in range(8))
    assert segmentation.NumberOfFrames == (frames or present)


def test_binary_is_written_until_objects_are_many(tmp_path, image):
    for highest, kind in ((255, "BINARY"), (256, "LABELMAP")):
        values = np.zeros(image.shape, dtype=np.uint16)
        values[0, 0, 0, 0] = highest
        segmentation = write(MetaTensor(values).copy_meta_from(image), tmp_path / "seg.dcm")
        assert segmentation.SegmentationType == kind
        assert int(read(tmp_path / "seg.dcm").max()) == highest


def test_gaps_between_values(tmp_path, image):
    values = np.zeros(image.shape, dtype=np.uint16)
    values[0, 0, 0, 0], values[0, 1, 0, 0] = 2, 5
    label = MetaTensor(values).copy_meta_from(image)
    for kind, numbers in (("binary", [1, 2, 3, 4, 5, 6]), ("labelmap", [0, 2, 5, 6])):
        segmentation = write(label, tmp_path / "seg.dcm", kind=kind, segments={6: "absent"})
        assert [segment.SegmentNumber for segment in segmentation.SegmentSequence] == numbers
        assert np.array_equal(read(tmp_path / "seg.dcm").numpy(), values[0])


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("segments", [None, {}, {"0": "background"}, {1: "liver", 2: "tumour"}])
def test_an_empty_label_map_is_written(tmp_path, image, kind, segments):
    segmentation = write(image * 0, tmp_path / "seg.dcm", kind=kind, segments=segments)
    names = [segment.SegmentLabel for segment in segmentation.SegmentSequence if segment.SegmentNumber]
    assert names == (["liver", "tumour"] if segments and 1 in segments else ["object 1"])
    loaded = read(tmp_path / "seg.dcm")
    assert loaded.shape == image.shape[1:] and not loaded.any() and segmentation.NumberOfFrames == 8
    assert np.allclose(loaded.affine, image.affine, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.bool_, np.uint8, np.float32, np.float16])
def test_channels_are_segments_and_may_overlap(tmp_path, image, dtype):
    values = np.zeros((2, *image.shape[1:]), dtype=dtype)
    values[0, 1:6, 2:7, 2:5] = 1
    values[1, 4:9, 2:7, 2:5] = 1
    if dtype in (np.float32, np.float16):
        values *= 0.8
        values[0, 1, 2, 2] = 0.5
        values[1, 0, 0, 0] = 0.49
    label = MetaTensor(torch.as_tensor(values)).copy_meta_from(image)
    segmentation = write(label, tmp_path / "seg.dcm", segments={1: "whole", 2: "core"})
    assert segmentation.SegmentsOverlap == "YES"
    for number in (1, 2):
        alone = read(tmp_path / "seg.dcm", segments={number: 1})
        assert np.array_equal(alone.numpy(), values[number - 1] >= 0.5)
    with pytest.raises(ValueError, match="no DICOM SEG can be written for the images of .*overlap"):
        write(label, tmp_path / "seg.dcm", kind="labelmap")


def test_images_that_are_not_from_dicom_are_refused(tmp_path, image):
    with pytest.raises(ValueError, match="DicomSeriesReader"):
        write(labels_on(image), tmp_path / "seg.dcm", meta={"affine": np.eye(4)})
    for path in (tmp_path / "series").iterdir():
        path.unlink()
    with pytest.raises(ValueError, match="are gone"):
        write(labels_on(image), tmp_path / "seg.dcm")


def test_a_source_without_identity_is_refused(tmp_path):
    slices = series_slices(phantom())
    for one in slices:
        del one.SOPInstanceUID
    label = labels_on(read_image(save(tmp_path / "series", slices)))
    with pytest.raises(ValueError, match="^DICOM file .* has no SOPInstanceUID, which a SEG needs"):
        write(label, tmp_path / "seg.dcm")
    for one in slices:
        one.SOPInstanceUID, one.SOPClassUID = one.file_meta.MediaStorageSOPInstanceUID, "1.2.3.4.5"
    save(tmp_path / "series", slices)
    with pytest.raises(ValueError, match="^DICOM file .* has the private SOP class 1.2.3.4.5: no SEG can refer to it"):
        write(label, tmp_path / "seg.dcm")


def test_nothing_half_written_stays(tmp_path, image, monkeypatch):
    def fail(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pydicom.Dataset, "save_as", fail)
    with pytest.raises(OSError, match="disk full"):
        write(labels_on(image), tmp_path / "out" / "seg.dcm")
    assert not list((tmp_path / "out").iterdir())


def test_two_files_differ_in_uids_and_times_only(tmp_path, image):
    first, second = (write(labels_on(image), tmp_path / f"{name}.dcm", segments=NAMES) for name in "ab")

    def text(dataset):
        varying = (" UI: ", " DA: ", " TM: ", " DT: ", "(0002,0000)")  # the last: the length of the UIDs of the header
        return [line for line in str(dataset).splitlines() if not any(part in line for part in varying)]

    assert text(first) == text(second) and first.PixelData == second.PixelData


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scale": 255}, "scale must be None, got 255"),
        ({"kind": "fractional"}, "kind must be 'binary', 'labelmap' or None, got 'fractional'"),
        ({"series_description": "x" * 65}, "series_description must have 1 to 64"),
        ({"series_description": "two\nlines"}, "series_description must have 1 to 64"),
        ({"segments": {"liver": 1}}, "'liver' is no label value"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        DicomSegWriter(**options)


@pytest.mark.sample_data
@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_real_chest_ct(tmp_path, kind):
    folder = Path(os.environ["LABELFX_DATA"], "ct", "lungdx_A0001")
    series = next(path for path in sorted(folder.rglob("*")) if path.is_dir() and any(path.glob("*.dcm")))
    image = read_image(series)
    label = MetaTensor((image > 200).to(torch.uint8) + 2 * (image < -900).to(torch.uint8)).copy_meta_from(image)
    segmentation = write(label, tmp_path / "seg.dcm", kind=kind, segments={1: "bone", 2: "air"})
    loaded = read(tmp_path / "seg.dcm")
    assert np.array_equal(loaded.numpy(), label.numpy()[0]) and np.allclose(
        loaded.affine.numpy(), image.affine.numpy(), atol=1e-12
    )
    assert segmentation.PatientID == pydicom.dcmread(next(series.glob("*.dcm"))).PatientID
