# SPDX-License-Identifier: Apache-2.0
"""The planes of a SEG and the stand-ins for its sources, as the writer hands them to highdicom."""

from __future__ import annotations

import json

import numpy as np
import pydicom
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of, enhanced, new_slice, phantom, save, series_slices
from monai.data import MetaTensor
from monai.transforms import Compose, Flip, LoadImage, Orientation, SpatialCrop

from monai_labelfx.data._dicom_seg_planes import planes_of, references
from monai_labelfx.data._dicom_source import headers, source_of
from monai_labelfx.data.dicom_seg_reader import DicomSegReader
from monai_labelfx.data.dicom_seg_writer import DicomSegWriter
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader

XRAYS = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1", "XA": "1.2.840.10008.5.1.4.1.1.12.1"}


def read_image(path, **options) -> MetaTensor:
    return LoadImage(DicomSeriesReader(**options), ensure_channel_first=True)(path)


def labels_on(image: MetaTensor) -> MetaTensor:
    values = np.random.default_rng(0).integers(0, 4, image.shape)
    values[..., 1] *= image.ndim == 3  # an empty slice
    return MetaTensor(torch.as_tensor(values)).copy_meta_from(image)


def write(label, path, *, resample=False, **options) -> pydicom.Dataset:
    writer = DicomSegWriter(**options)
    writer.set_data_array(label, channel_dim=0)
    writer.set_metadata(label.meta, resample=resample)
    writer.write(path, verbose=False)
    return pydicom.dcmread(path)


def read(path) -> MetaTensor:
    return LoadImage(DicomSegReader())(path)


def prepared(folder, images, *, frames=None, grid="source", affine=None):
    save(folder, images, shuffled=False)
    files = [str(folder / f"{index:04d}.dcm") for index in range(len(images))]
    meta = {
        "dicom_source": json.dumps({"files": files, "frames": frames, "grid": grid}),
        "original_affine": affine_of("axial") if affine is None else affine,
    }
    source = source_of(meta)
    return headers(source), source, meta


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_planes_are_those_of_the_headers_to_the_last_digit(tmp_path, orientation):
    slices = series_slices(phantom(), orientation=orientation)
    files, source, meta = prepared(tmp_path, slices, affine=affine_of(orientation))
    planes = planes_of(files, source, meta, 8)
    assert planes.positions == [[float(v) for v in one.ImagePositionPatient] for one in slices]
    assert planes.orientation == [float(v) for v in slices[0].ImageOrientationPatient]
    assert planes.spacing == [0.9, 0.7] and planes.on_source and planes.arguments() == {}
    tilt = np.cos(0.2) if orientation == "tilted" else 1.0
    assert planes.step == pytest.approx(2.5 * tilt, rel=1e-9)


def test_stand_ins_refer_to_the_source_and_hold_nothing_private(tmp_path):
    slices = series_slices(phantom())
    for one in slices:
        one.PatientName = one.PatientID = one.StudyID = one.PatientComments = "Secret"
    files, source, meta = prepared(tmp_path, slices)
    found = references(files, source, planes_of(files, source, meta, 8))
    assert [one.SOPInstanceUID for one in found] == [one.SOPInstanceUID for one in slices]
    assert all("Secret" not in str(one) for one in found)
    assert [one.ImagePositionPatient for one in found] == [one.ImagePositionPatient for one in slices]


def test_orientations_that_differ_in_the_last_digit_become_one(tmp_path):
    slices = series_slices(phantom())
    slices[3].ImageOrientationPatient = [1, 0, 1e-6, 0, 1, 0]
    files, source, meta = prepared(tmp_path, slices)
    found = references(files, source, planes_of(files, source, meta, 8))
    assert len({tuple(one.ImageOrientationPatient) for one in found}) == 1


def test_one_stand_in_for_a_multi_frame_file_in_the_order_of_the_array(tmp_path):
    frames = [5, 4, 3, 2, 1, 0, 6, 7]
    image = enhanced(phantom())
    files, source, meta = prepared(tmp_path, [image], frames=frames)
    planes = planes_of(files, source, meta, 8)
    stored = [f.PlanePositionSequence[0].ImagePositionPatient for f in image.PerFrameFunctionalGroupsSequence]
    assert planes.positions == [[float(v) for v in stored[frame]] for frame in frames]
    (found,) = references(files, source, planes)
    handed = [f.PlanePositionSequence[0].ImagePositionPatient for f in found.PerFrameFunctionalGroupsSequence]
    assert found.NumberOfFrames == 8 and handed == planes.positions


def test_a_grid_of_its_own(tmp_path):
    affine = affine_of("tilted", (0.7, 0.9, 1.25))
    files, source, meta = prepared(
        tmp_path, series_slices(phantom(), orientation="tilted"), grid="resampled", affine=affine
    )
    planes = planes_of(files, source, meta, 15)
    expected = [(np.diag([-1, -1, 1, 1]) @ affine @ [0, 0, index, 1])[:3] for index in range(15)]
    assert np.allclose(planes.positions, expected) and not planes.on_source
    given = planes.arguments()
    assert len(given["plane_positions"]) == 15 and len(references(files, source, planes)) == 8
    assert float(given["pixel_measures"][0].SpacingBetweenSlices) == pytest.approx(1.25 * np.cos(0.2))


def test_a_picture_without_a_place(tmp_path):
    picture = new_slice(phantom((9, 13)).astype(np.int16), sop_class="1.2.840.10008.5.1.4.1.1.1", modality="CR")
    files, source, meta = prepared(tmp_path, [picture], affine=np.diag([-0.3, -0.2, 1.0, 1.0]))
    planes = planes_of(files, source, meta, 1)
    assert planes.positions is None and planes.spacing == pytest.approx([0.2, 0.3])
    (found,) = references(files, source, planes)
    assert "FrameOfReferenceUID" not in found and "ImagePositionPatient" not in found
    meta["original_affine"] = np.diag([-1.0, -1.0, 1.0, 1.0])
    assert planes_of(files, source, meta, 1).spacing is None


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
def test_multi_frame_source_with_frames_in_any_order(tmp_path, kind):
    source = enhanced(phantom(), orientation="sagittal")
    frames = source.PerFrameFunctionalGroupsSequence
    source.PerFrameFunctionalGroupsSequence = [frames[index] for index in (4, 2, 7, 1, 0, 6, 3, 5)]
    path = save(tmp_path / "series", [source]) / "0000.dcm"
    label = labels_on(read_image(path))
    segmentation = write(label, tmp_path / "seg.dcm", kind=kind)
    loaded = read(tmp_path / "seg.dcm")
    assert np.array_equal(loaded.numpy(), label.numpy()[0])
    assert np.allclose(loaded.affine, label.affine, atol=1e-12)
    (reference,) = segmentation.ReferencedSeriesSequence[0].ReferencedInstanceSequence
    assert reference.ReferencedSOPInstanceUID == source.SOPInstanceUID
    for frame in segmentation.PerFrameFunctionalGroupsSequence:
        number = frame.DerivationImageSequence[0].SourceImageSequence[0].ReferencedFrameNumber
        (original,) = source.PerFrameFunctionalGroupsSequence[number - 1].PlanePositionSequence
        assert original.ImagePositionPatient == frame.PlanePositionSequence[0].ImagePositionPatient


@pytest.mark.parametrize("kind", ["binary", "labelmap"])
@pytest.mark.parametrize("modality", XRAYS)
@pytest.mark.parametrize("spacing", [None, "PixelSpacing", "ImagerPixelSpacing"])
def test_xray_without_a_place_in_the_patient(tmp_path, kind, modality, spacing):
    picture = new_slice(phantom((9, 13)).astype(np.int16), sop_class=XRAYS[modality], modality=modality)
    if modality == "DX":
        del picture.FrameOfReferenceUID
    if spacing:
        setattr(picture, spacing, [0.2, 0.3])
    label = labels_on(read_image(save(tmp_path / "series", [picture]) / "0000.dcm"))
    segmentation = write(label, tmp_path / "seg.dcm", kind=kind)
    loaded = read(tmp_path / "seg.dcm")
    assert np.array_equal(loaded.numpy(), label.numpy()[0]) and loaded.shape == (13, 9)
    assert np.allclose(loaded.affine, label.affine, atol=1e-12)
    assert np.allclose(np.abs(np.diag(loaded.affine))[:2], (0.3, 0.2) if spacing else 1)
    assert ("PixelMeasuresSequence" in segmentation.SharedFunctionalGroupsSequence[0]) == bool(spacing)
    reference = segmentation.PerFrameFunctionalGroupsSequence[0].DerivationImageSequence[0].SourceImageSequence[0]
    assert reference.ReferencedSOPInstanceUID == picture.SOPInstanceUID


@pytest.mark.parametrize("orientation", ["axial", "tilted"])
def test_resampled_series_gets_planes_of_its_own(tmp_path, orientation):
    slices = series_slices(phantom(), orientation=orientation)
    del slices[3]
    series = save(tmp_path / "series", slices)
    with pytest.warns(UserWarning, match="irregular"):
        image = read_image(series, on_irregular="resample")
    assert image.shape == (1, 16, 12, 8)
    label = labels_on(image)
    segmentation = write(label, tmp_path / "seg.dcm")
    loaded = read(tmp_path / "seg.dcm")
    assert np.array_equal(loaded.numpy(), label.numpy()[0])
    assert np.allclose(loaded.affine, image.affine, atol=1e-8)
    uids = {item.ReferencedSOPInstanceUID for item in segmentation.SourceImageSequence}
    assert uids == {one.SOPInstanceUID for one in slices}

    moved = Flip(0)(label)
    with pytest.raises(ValueError, match="moved or cropped"):
        write(moved, tmp_path / "other.dcm")
    write(moved, tmp_path / "other.dcm", resample=True)
    assert np.array_equal(read(tmp_path / "other.dcm").numpy(), label.numpy()[0])


def test_a_label_read_from_a_seg_can_be_written_again(tmp_path):
    image = read_image(save(tmp_path / "series", series_slices(phantom())))
    label = labels_on(image)
    first = write(label, tmp_path / "seg.dcm", kind="labelmap")
    own = LoadImage(DicomSegReader(), ensure_channel_first=True)(tmp_path / "seg.dcm")
    again = write(own, tmp_path / "again.dcm")
    assert np.array_equal(read(tmp_path / "again.dcm").numpy(), label.numpy()[0])
    assert again.ReferencedSeriesSequence[0].SeriesInstanceUID == first.SeriesInstanceUID


def test_moved_labels_go_back_to_the_source(tmp_path):
    image = read_image(save(tmp_path / "series", series_slices(phantom())))
    label = labels_on(image)
    moved = Compose([Orientation("PIL", labels=None), Flip(1), SpatialCrop(roi_start=(0, 0, 2), roi_end=(20, 20, 20))])(
        label
    )
    assert moved.shape != label.shape
    with pytest.raises(ValueError, match="resample=True"):
        write(moved, tmp_path / "seg.dcm")
    write(moved, tmp_path / "seg.dcm", resample=True)
    loaded = read(tmp_path / "seg.dcm").numpy()
    kept = (loaded != 0) | (label.numpy()[0] == 0)
    assert np.array_equal(loaded[kept], label.numpy()[0][kept]) and 0 < (~kept).sum() < kept.sum()
