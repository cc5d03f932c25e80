# SPDX-License-Identifier: Apache-2.0
"""DicomSegReader: segmentations of other programs, on the image that they belong to, or one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
from dicom_samples import ORIENTATIONS, affine_of, new_slice, phantom, save, series_slices
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged
from pydicom.sr.codedict import codes
from pydicom.uid import RLELossless, generate_uid

from monai_labelfx.data.dicom_seg_reader import DicomSegReader, is_dicom_seg
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader
from monai_labelfx.transforms.place_on_grid import PlaceOnGridd


def sources(orientation: str = "axial", shape=(15, 11, 8)):
    slices = series_slices(phantom(shape), orientation=orientation)
    for one in slices:
        one.PatientName = "Doe^Jane"
    return slices


def described(number: int, name: str):
    return highdicom.seg.SegmentDescription(number, name, codes.SCT.Tissue, codes.SCT.Organ, "MANUAL")


def foreign(slices, values: np.ndarray, *, kind="BINARY", names=("liver", "tumour", "vessel"), **options):
    """A SEG as other programs write it: with highdicom, empty frames left out; values (x, y, z) or (x, y, z, C)."""
    pixels = np.moveaxis(values, (0, 1, 2), (2, 1, 0))
    return highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[described(number, name) for number, name in enumerate(names, 1)],
        series_instance_uid=generate_uid(),
        series_number=9,
        sop_instance_uid=generate_uid(),
        instance_number=1,
        manufacturer="Other",
        manufacturer_model_name="Other",
        software_versions="1",
        device_serial_number="1",
        **options,
    )


def blobs(shape=(15, 11, 8), planes=(2, 3, 5)) -> np.ndarray:
    """Label values 0 to 3 of no symmetry in some planes, nothing in the others."""
    values = np.zeros(shape, dtype=np.uint8)
    for plane in planes:
        values[..., plane] = np.random.default_rng(plane).integers(0, 4, shape[:2])
    return values


def read(path, **options):
    reader = DicomSegReader(**options)
    return reader.get_data(reader.read(path))


def saved(folder: Path, segmentation) -> Path:
    return save(folder, [segmentation]) / "0000.dcm"


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("planes", [(2, 3, 5), (1, 4, 6), (4,), (0, 1, 2, 3, 4, 5, 6, 7)])
def test_segmentations_with_omitted_frames_find_their_place(tmp_path, kind, orientation, planes):
    slices, values = sources(orientation), blobs(planes=planes)
    save(tmp_path / "series", slices)
    path = saved(tmp_path / "seg", foreign(slices, values, kind=kind))
    array, meta = read(path)
    assert array.dtype == np.uint16 and array.shape[:2] == (15, 11)
    load = Compose(
        [
            LoadImaged("image", reader=DicomSeriesReader()),
            LoadImaged("label", reader=DicomSegReader()),
            EnsureChannelFirstd(["image", "label"]),
            PlaceOnGridd("label", "image"),
        ]
    )
    out = load({"image": tmp_path / "series", "label": path})
    assert np.array_equal(out["label"].numpy()[0], values)
    assert np.array_equal(out["label"].affine, out["image"].affine)
    if len(planes) == 8:
        assert np.allclose(meta["affine"], affine_of(orientation), atol=1e-8)


def test_meta_is_that_of_the_contract_and_collates(tmp_path):
    slices = sources()
    segmentation = foreign(slices, blobs())
    path = saved(tmp_path / "seg", segmentation)
    array, meta = read(path)
    assert {key: value for key, value in meta.items() if key.startswith("dicom_")} == {
        "dicom_modality": "SEG",
        "dicom_sop_class_uid": "1.2.840.10008.5.1.4.1.1.66.4",
        "dicom_study_instance_uid": slices[0].StudyInstanceUID,
        "dicom_series_instance_uid": segmentation.SeriesInstanceUID,
        "dicom_frame_of_reference_uid": slices[0].FrameOfReferenceUID,
        "dicom_source": json.dumps({"files": [str(path)], "frames": [2, 1, 0], "grid": "resampled"}),
        "dicom_values": "labels",
        "dicom_pixel_padding": "",
    }
    assert array.shape == tuple(meta["spatial_shape"]) == (15, 11, 4)
    load = Compose([LoadImaged("label", reader=DicomSegReader()), EnsureChannelFirstd("label")])
    batch = next(iter(DataLoader(Dataset([{"label": path}] * 2, load), batch_size=2)))["label"]
    assert batch.shape == (2, 1, 15, 11, 4) and batch.dtype.is_floating_point
    whole = saved(tmp_path / "whole", foreign(slices, blobs(), omit_empty_frames=False, kind="LABELMAP"))
    assert json.loads(read(whole)[1]["dicom_source"])["grid"] == "source"


def test_one_plane_is_a_picture(tmp_path):
    slices = sources(shape=(15, 11, 1))
    values = blobs((15, 11, 1), (0,))
    array, meta = read(saved(tmp_path / "seg", foreign(slices, values)))
    assert array.shape == (15, 11) and np.array_equal(array, values[..., 0])
    known = [0, 1, 3]  # highdicom writes a distance of slices of 1 mm where there is one slice
    assert np.allclose(meta["affine"][:, known], affine_of("axial")[:, known], atol=1e-9)


@pytest.mark.parametrize("kind", ["BINARY", "LABELMAP"])
def test_segments_are_chosen_renamed_and_merged(tmp_path, kind):
    values = blobs()
    path = saved(tmp_path / "seg", foreign(sources(), values, kind=kind))
    inner = values[..., 2:6]
    for segments, table in (
        ({"tumour": 1}, [0, 0, 1, 0]),
        ({2: 9, "1": 4}, [0, 4, 9, 0]),
        ({"liver": 1, "vessel": 1, "tumour": 65535}, [0, 1, 65535, 1]),
    ):
        assert np.array_equal(read(path, segments=segments)[0], np.array(table)[inner])


def test_segments_that_are_not_there(tmp_path):
    path = saved(tmp_path / "seg", foreign(sources(), blobs()))
    with pytest.raises(ValueError, match=r"0000.dcm' has no segment 'spleen'; it has 3, numbered 1 to 3") as caught:
        read(path, segments={"liver": 1, "spleen": 2})
    assert "tumour" not in str(caught.value)
    array, _ = read(path, segments={"liver": 1, "spleen": 2}, allow_missing=True)
    assert set(np.unique(array)) == {0, 1}
    with pytest.raises(ValueError, match="no segment 'spleen'"):
        read(path, segments={"spleen": 2, 7: 1}, allow_missing=True)


def test_overlapping_segments(tmp_path):
    masks = np.zeros((15, 11, 8, 2), dtype=np.uint8)
    masks[2:9, 2:9, 2:6, 0] = 1
    masks[4:7, 4:12, 3:5, 1] = 1
    path = saved(tmp_path / "seg", foreign(sources(), masks, names=("liver", "tumour")))
    with pytest.raises(ValueError, match="overlapping segments.*DicomSegReader"):
        read(path)
    inner = masks[:, :, 2:6]
    assert np.array_equal(read(path, segments={"liver": 1})[0], inner[..., 0])
    over = np.where(inner[..., 1] > 0, 2, inner[..., 0])
    assert np.array_equal(read(path, segments={"liver": 1, "tumour": 2})[0], over)
    under = np.where(inner[..., 0] > 0, 1, 2 * inner[..., 1])
    assert np.array_equal(read(path, segments={"tumour": 2, "liver": 1})[0], under)


def test_fractional_counts_from_half_of_the_maximum(tmp_path):
    fractions = np.zeros((15, 11, 8, 1), dtype=np.float32)
    fractions[3, 4, 2:4, 0] = 0.49, 0.51
    fractions[3, 5, 2:4, 0] = 1.0
    segmentation = foreign(sources(), fractions, kind="FRACTIONAL", names=("liver",), max_fractional_value=100)
    array, _ = read(saved(tmp_path / "seg", segmentation))
    assert np.array_equal(array, (fractions[..., 2:4, 0] > 0.5).astype(int)) and array.sum() == 3


def test_compressed_frames(tmp_path):
    values = blobs()
    segmentation = foreign(sources(), values, kind="LABELMAP", transfer_syntax_uid=RLELossless)
    assert np.array_equal(read(saved(tmp_path / "seg", segmentation))[0], values[..., 2:6])


def test_xray_segmentation_without_a_place(tmp_path):
    picture = new_slice(phantom((9, 13)).astype(np.int16), sop_class="1.2.840.10008.5.1.4.1.1.1", modality="CR")
    del picture.FrameOfReferenceUID
    picture.PatientName, picture.PixelSpacing = "Doe^Jane", [0.2, 0.3]
    values = blobs((13, 9, 1), (0,))
    array, meta = read(saved(tmp_path / "seg", foreign([picture], values)))
    assert np.array_equal(array, values[..., 0]) and np.allclose(np.diag(meta["affine"]), [-0.3, -0.2, 1, 1])
    assert meta["dicom_frame_of_reference_uid"] == ""


def test_background_of_a_label_map_may_have_any_number(tmp_path):
    values = blobs()
    segmentation = foreign(sources(), values, kind="LABELMAP")
    table = np.array([3, 1, 2, 0], dtype=np.uint8)
    segmentation.PixelData = table[np.frombuffer(segmentation.PixelData, np.uint8, 3 * 15 * 11)].tobytes() + b"\0"
    segmentation.PixelPaddingValue = 3
    numbers = {segment.SegmentNumber: segment for segment in segmentation.SegmentSequence}
    numbers[0].SegmentNumber, numbers[3].SegmentNumber = 3, 0
    path = saved(tmp_path / "seg", segmentation)
    with pytest.raises(ValueError, match="segment 0 that is no background"):
        read(path)
    array, _ = read(path, segments={"liver": 1, "tumour": 2, "vessel": 3})
    assert np.array_equal(array, values[..., 2:6])


def test_a_folder_with_one_segmentation(tmp_path):
    path = saved(tmp_path / "seg", foreign(sources(), blobs()))
    (tmp_path / "seg" / "notes.txt").write_text("no DICOM")
    assert np.array_equal(read(path.parent)[0], read(path)[0])
    pydicom.dcmread(path).save_as(path.with_name("other.dcm"))
    with pytest.raises(ValueError, match="holds 2 segmentations, expected one"):
        read(path.parent)
    with pytest.raises(ValueError, match="expected one segmentation, got 2 files"):
        read([path, path])


def test_is_dicom_seg(tmp_path):
    slices = sources()
    for kind in ("BINARY", "LABELMAP"):
        path = saved(tmp_path / kind, foreign(slices, blobs(), kind=kind))
        assert is_dicom_seg(path) and is_dicom_seg(str(path)) and is_dicom_seg(path.parent)
        assert DicomSegReader().verify_suffix([path])
    series = save(tmp_path / "series", slices)
    assert not is_dicom_seg(series) and not is_dicom_seg(series / "0000.dcm")
    (series / "seg.dcm").write_bytes(path.read_bytes())
    assert not is_dicom_seg(series) and is_dicom_seg(series / "seg.dcm")
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "cut.dcm").write_bytes(path.read_bytes()[:140])
    assert not is_dicom_seg(tmp_path / "empty") and not is_dicom_seg(tmp_path / "empty" / "cut.dcm")
    assert not is_dicom_seg(tmp_path / "absent.dcm") and not DicomSegReader().verify_suffix(tmp_path / "absent.dcm")


def _without_frames(segmentation):
    segmentation.PerFrameFunctionalGroupsSequence = []


def _other_number(segmentation):
    segmentation.PerFrameFunctionalGroupsSequence[0].SegmentIdentificationSequence[0].ReferencedSegmentNumber = 2


def _position(value):
    def spoil(segmentation):
        segmentation.PerFrameFunctionalGroupsSequence[0].PlanePositionSequence[0].ImagePositionPatient = value

    return spoil


FAULTS = {
    "no segments": (lambda s: s.pop("SegmentSequence"), "describes no segment"),
    "empty segments": (lambda s: setattr(s, "SegmentSequence", []), "describes no segment"),
    "a number twice": (lambda s: setattr(s.SegmentSequence[0], "SegmentNumber", 2), "describes segment 2 twice"),
    "no pixels": (lambda s: s.pop("PixelData"), "no pixels of one sample"),
    "pixels cut off": (lambda s: setattr(s, "PixelData", s.PixelData[:40]), "is cut off: its 9 frames need .* bytes"),
    "no rows": (lambda s: setattr(s, "Rows", 0), "says 0 frames, rows or columns"),
    "no frames": (lambda s: setattr(s, "NumberOfFrames", 0), "says 0 frames"),
    "more frames": (lambda s: setattr(s, "NumberOfFrames", 10**6), "is cut off"),
    "no groups": (_without_frames, "does not say of which segment its frame 1 is|does not say where"),
    "frame twice": (_other_number, "several frames of segment 2 in one place"),
    "far away": (_position([-10, -20, 1e12]), "no regular grid of a possible size"),
    "beside": (_position([-10, -10, -17.5]), "beside a regular grid"),
    "between": (_position([-10, -20, -18.3]), "no regular grid"),
    "two numbers": (_position([-10, -20]), "has 2 numbers in ImagePositionPatient, expected 3"),
    "slide": (lambda s: setattr(s, "TotalPixelMatrixColumns", 15), "tiled slide"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_malformed_files_give_one_sentence(tmp_path, fault):
    segmentation = foreign(sources(), blobs())
    spoil, message = FAULTS[fault]
    spoil(segmentation)
    path = tmp_path / "bad.dcm"
    pydicom.Dataset.save_as(segmentation, path, enforce_file_format=True)
    with pytest.raises(ValueError, match=message) as caught:
        read(path)
    assert "bad.dcm" in str(caught.value) and "\n" not in str(caught.value)


def test_label_map_with_a_value_that_nothing_describes(tmp_path):
    segmentation = foreign(sources(), blobs(), kind="LABELMAP")
    segmentation.PixelData = segmentation.PixelData[:-4] + b"\x07" * 4
    with pytest.raises(ValueError, match="holds the value 7, which no segment describes"):
        read(saved(tmp_path / "seg", segmentation))


@pytest.mark.parametrize("length", [0, 100, 140, 400, 3000, -500])
def test_truncated_files_give_one_sentence(tmp_path, length):
    path = saved(tmp_path / "seg", foreign(sources(), blobs()))
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ValueError, match=r"0000\.dcm") as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_other_files_are_refused(tmp_path):
    series = save(tmp_path / "series", sources())
    with pytest.raises(ValueError, match="0000.dcm' is no DICOM segmentation"):
        read(series / "0000.dcm")
    with pytest.raises(FileNotFoundError, match="absent.dcm"):
        read(tmp_path / "absent.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match=r"text\.dcm.*cannot be read as DICOM segmentation"):
        LoadImage(DicomSegReader())(tmp_path / "text.dcm")


@pytest.mark.parametrize(
    ("segments", "message"),
    [
        ({}, "segments names no segment"),
        ({"liver": -1}, "'liver' has the value -1, expected a whole number from 0 to 65535"),
        ({"liver": 1.5}, "has the value 1.5"),
        ({"liver": "1"}, "has the value '1'"),
        ({"liver": 65536}, "has the value 65536"),
    ],
)
def test_bad_arguments(segments, message):
    with pytest.raises(ValueError, match=message):
        DicomSegReader(segments=segments)
