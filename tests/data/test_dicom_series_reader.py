# SPDX-License-Identifier: Apache-2.0
"""DicomSeriesReader: right, or refused with the reason; never silently something else."""

from __future__ import annotations

import json
import math
import os
import pickle
import shutil
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_samples import (
    CASES,
    ORIENTATIONS,
    SPACING,
    affine_of,
    colour,
    enhanced,
    new_slice,
    phantom,
    save,
    series_slices,
    write_series,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import CacheDataset, DataLoader, PydicomReader, decollate_batch
from monai.transforms import Compose, EnsureChannelFirstd, LoadImage, LoadImaged
from pydicom import dcmread

from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader

READER = "monai_labelfx.data.DicomSeriesReader"
EXTRA = {
    *("dicom_modality", "dicom_sop_class_uid", "dicom_study_instance_uid", "dicom_series_instance_uid"),
    *("dicom_frame_of_reference_uid", "dicom_source", "dicom_values", "dicom_pixel_padding"),
}

pytestmark = pytest.mark.filterwarnings("ignore:.*unlikely to represent the intended person name.*")


def load(path, **options):
    reader = DicomSeriesReader(**options)
    return reader.get_data(reader.read(path))


def refused(path, **options) -> str:
    with pytest.raises(ImageFileError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def source(meta) -> dict:
    return json.loads(meta["dicom_source"])


# The ten cases: what must come out, or what the refusal must say.
RIGHT = {name: name.removeprefix("regular, ") if name.startswith("regular") else "axial" for name in CASES}
RIGHT["RGB ultrasound"] = "colour"
REFUSED = {
    "one slice missing": r"a gap of 5 mm instead of 2\.5 mm between slices 3 and 4 .* 1 slice seems to be missing",
    "triple gap": r"a gap of 7\.5 mm instead of 2\.5 mm between slices 3 and 4 .* 2 slices seem to be missing",
    "two series in one folder": r"holds 2 DICOM series .*16 x 12 x (8|5), CT, [\d.]+; .*16 x 12 x (8|5),",
    "localizer of another size in the folder": r"holds 2 DICOM series .*24 x 20 x 1, CT, .*series='UID'",
}


@pytest.mark.parametrize("name", CASES)
@pytest.mark.filterwarnings("error", "ignore:.*unlikely to represent.*")
def test_every_case_is_right_or_refused_with_the_reason(name, tmp_path):
    path = CASES[name](tmp_path)
    if name in REFUSED:
        with pytest.raises(ValueError, match=REFUSED[name]):
            load(path)
        return
    array, meta = load(path)
    if RIGHT[name] == "colour":
        assert array.dtype == np.uint8 and np.array_equal(array, dcmread(path).pixel_array.transpose(1, 0, 2))
        assert meta["original_channel_dim"] == -1 and meta["spatial_shape"].tolist() == [20, 16]
        assert np.array_equal(meta["affine"], np.diag([-1.0, -1.0, 1.0, 1.0]))
        return
    assert array.dtype == np.float32 and np.array_equal(array, phantom())
    assert np.allclose(meta["affine"], affine_of(RIGHT[name]), atol=1e-8)
    assert math.isnan(meta["original_channel_dim"]) and meta["spatial_shape"].tolist() == [16, 12, 8]


@pytest.mark.parametrize("name", ["two series in one folder", "localizer of another size in the folder"])
def test_one_of_several_series_is_read_by_its_uid(name, tmp_path):
    folder = CASES[name](tmp_path)
    arrays = [load(folder, series=uid)[0] for uid in {dcmread(file).SeriesInstanceUID for file in folder.iterdir()}]
    assert len(arrays) == 2 and any(np.array_equal(array, phantom()) for array in arrays)


@pytest.mark.parametrize(("name", "absent"), [("one slice missing", [3]), ("triple gap", [3, 4])])
def test_gaps_can_be_filled_or_kept(name, absent, tmp_path):
    folder, there = CASES[name](tmp_path), np.setdiff1d(np.arange(8), absent)
    with pytest.warns(UserWarning, match=rf"a gap of .*{len(absent)} of 8 by interpolation") as caught:
        array, meta = load(folder, on_irregular="resample")
    assert len(caught) == 1 and array.shape == (16, 12, 8)
    assert np.array_equal(array[..., there], phantom()[..., there]), "slices on the grid are bit-exact"
    assert np.allclose(meta["affine"], affine_of("axial"))
    assert source(meta)["grid"] == "resampled" and len(source(meta)["files"]) == 8 - len(absent)
    with pytest.warns(UserWarning, match="a gap of .* kept as they are") as caught:
        array, meta = load(folder, on_irregular="warn")
    assert len(caught) == 1 and np.array_equal(array, phantom()[..., there])
    assert np.isclose(meta["affine"][2, 2], SPACING[2] * 7 / (len(there) - 1))
    assert source(meta)["grid"] == "source" and len(source(meta)["files"]) == 8 - len(absent)


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_equals_pydicom_reader_on_regular_series(tmp_path, orientation):
    slices = series_slices(phantom(), orientation=orientation, slope=1.5, intercept=-1000.25)
    folder = save(tmp_path, slices)
    array, meta = load(folder)
    reader = PydicomReader()
    expected, expected_meta = reader.get_data(reader.read(str(folder)))
    assert np.array_equal(array, expected.astype(np.float32)) and array.shape == expected.shape
    assert np.allclose(meta["affine"], expected_meta["affine"], atol=1e-9, rtol=0)
    assert tuple(meta["spatial_shape"]) == tuple(expected_meta["spatial_shape"]) and meta["space"] == "RAS"
    assert meta["affine"].dtype == np.float64 and np.array_equal(meta["affine"], meta["original_affine"])


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_multi_frame_equals_single_frames(tmp_path, orientation):
    image = enhanced(phantom(), orientation=orientation)
    array, meta = load(save(tmp_path, [image]) / "0000.dcm")
    assert np.array_equal(array, phantom()) and np.allclose(meta["affine"], affine_of(orientation), atol=1e-8)
    groups = image.PerFrameFunctionalGroupsSequence
    places = [group.PlanePositionSequence[0].ImagePositionPatient for group in groups]
    frames = np.argsort(np.array(places, dtype=float) @ ORIENTATIONS[orientation][2]).tolist()
    assert source(meta) == {"files": [str(tmp_path / "0000.dcm")], "frames": frames, "grid": "source"}


@settings(max_examples=15, deadline=None)
@given(st.permutations(range(8)), st.permutations(range(8)), st.sampled_from(list(ORIENTATIONS)))
def test_names_and_instance_numbers_never_matter(tmp_path_factory, names, numbers, orientation):
    slices = series_slices(phantom(), orientation=orientation)
    for number, image in zip(numbers, slices, strict=True):
        image.InstanceNumber = number
    folder = tmp_path_factory.mktemp("series")
    for name, image in zip(names, slices, strict=True):
        image.save_as(folder / f"{name:04d}.dcm")
    array, meta = load(folder)
    assert np.array_equal(array, phantom()) and np.allclose(meta["affine"], affine_of(orientation), atol=1e-8)
    assert [Path(file).stem for file in source(meta)["files"]] == [f"{name:04d}" for name in names]


def test_one_slice_is_two_dimensional(tmp_path):
    slices = series_slices(phantom(), orientation="oblique")
    for path in (save(tmp_path, slices[:1]), tmp_path / "0000.dcm"):
        array, meta = load(path)
        assert np.array_equal(array, phantom()[..., 0]) and meta["spatial_shape"].tolist() == [16, 12]
        assert np.allclose(meta["affine"], affine_of("oblique"), atol=1e-8) and math.isnan(meta["original_channel_dim"])
        assert source(meta) == {"files": [str(tmp_path / "0000.dcm")], "frames": None, "grid": "source"}


def test_a_projection(tmp_path):
    stored = np.arange(20, dtype=np.uint16).reshape(4, 5)
    image = new_slice(stored, sop_class="1.2.840.10008.5.1.4.1.1.1.1", modality="DX")
    image.PhotometricInterpretation, image.ImagerPixelSpacing = "MONOCHROME1", [2, 3]
    image.BitsStored, image.HighBit = 8, 7
    path = save(tmp_path, [image]) / "0000.dcm"
    array, meta = load(path)
    assert array.shape == (5, 4) and np.array_equal(array, 255 - stored.T) and meta["dicom_values"] == "display"
    assert np.array_equal(meta["affine"], np.diag([-3.0, -2, 1, 1]))
    array, meta = load(path, display=False)
    assert np.array_equal(array, stored.T) and meta["dicom_values"] == "rescaled"
    save(tmp_path, [image], prefix="second")
    assert "2 images have no ImagePositionPatient" in refused(tmp_path)


def test_a_film_is_refused(tmp_path):
    film = new_slice(np.zeros((4, 5), np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.12.1", modality="XA")
    film.NumberOfFrames, film.PixelData = 3, bytes(120)
    assert "its 3 frames have no ImagePositionPatient" in refused(save(tmp_path, [film]))


def test_folders_are_channels(tmp_path):
    arrays = [phantom(seed=seed) for seed in (0, 1)]
    first, second = (series_slices(array, orientation="oblique") for array in arrays)
    for image in second:
        image.FrameOfReferenceUID = first[0].FrameOfReferenceUID
    folders = [save(tmp_path / "a", first), save(tmp_path / "b", second)]
    array, meta = load(folders)
    assert np.array_equal(array, np.stack(arrays, axis=-1)) and meta["original_channel_dim"] == -1
    assert np.allclose(meta["affine"], affine_of("oblique"), atol=1e-8)
    assert meta["spatial_shape"].tolist() == [16, 12, 8]
    assert meta["dicom_series_instance_uid"] == first[0].SeriesInstanceUID
    image = LoadImage(reader=READER, ensure_channel_first=True)(folders)
    assert image.shape == (2, 16, 12, 8) and np.array_equal(image.numpy(), np.stack(arrays))


@pytest.mark.parametrize(
    "options", [{"spacing": (0.7, 0.9, 2.51)}, {"orientation": "tilted"}, {"array": phantom((16, 12, 7))}]
)
@pytest.mark.filterwarnings("ignore:.*different frames of reference")
def test_channels_must_agree(tmp_path, options):
    folders = [write_series(tmp_path / "a", phantom()), write_series(tmp_path / "b", **{"array": phantom(), **options})]
    text = refused(folders)
    assert "channels of one image must agree" in text and str(folders[0]) in text and str(folders[1]) in text


def test_channels_of_unrelated_places_are_said(tmp_path):
    folders = [write_series(tmp_path / name, phantom()) for name in "ab"]
    with pytest.warns(UserWarning, match="different frames of reference"):
        load(folders)
    assert "got both" in refused([folders[0], folders[1] / "0000.dcm"])


def test_the_asked_series(tmp_path):
    folder = CASES["two series in one folder"](tmp_path)
    for file in folder.glob("b*"):
        image = dcmread(file)
        image.SeriesDescription = "thorax\n5 mm"
        image.save_as(file)
    text = refused(folder, series="1.2.3")
    assert "holds no series '1.2.3', expected one of: '" in text
    assert "'', 16 x 12 x 8, CT, 1." in text and "'thorax5 mm', 16 x 12 x 5, CT, 1." in text
    assert all(dcmread(file).SeriesInstanceUID in text for file in folder.iterdir())
    assert load(folder, series=dcmread(next(folder.glob("b*"))).SeriesInstanceUID)[0].shape == (16, 12, 5)
    assert "holds no series '1.2.3'" in refused(folder / "a0000.dcm", series="1.2.3")
    assert "holds 2 DICOM series" in refused(sorted(folder.iterdir())), "a list of files too"


def test_other_objects_beside_the_series(tmp_path):
    folder = write_series(tmp_path, phantom())
    report = new_slice(np.zeros((4, 5), np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.88.11", modality="SR")
    del report.Rows, report.Columns, report.PixelData
    seg = new_slice(np.zeros((4, 5), np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.66.4", modality="SEG")
    (tmp_path / "notes.txt").write_text("no picture")
    for name, other in (("report", report), ("seg", seg)):
        save(folder, [other], prefix=name)
    assert np.array_equal(load(folder)[0], phantom())
    assert "is no image but 'Basic Text SR Storage'" in refused(folder / "report0000.dcm")
    assert "is no image but 'Segmentation Storage'" in refused(folder / "seg0000.dcm")


def test_slices_twice(tmp_path):
    slices = series_slices(phantom())
    folder = save(tmp_path, [*slices, slices[2], slices[5]])
    assert "2 of 10 slices lie where another one does (the first at -25 mm)" in refused(folder)
    with pytest.warns(UserWarning, match="0 of 8 by interpolation") as caught:
        array, meta = load(folder, on_irregular="resample")
    assert len(caught) == 1
    assert np.array_equal(array, phantom()) and np.allclose(meta["affine"], affine_of("axial"))
    assert source(meta)["grid"] == "source" and len(source(meta)["files"]) == 8, "nothing was interpolated"
    with pytest.warns(UserWarning, match="kept as they are"):
        array, meta = load(folder, on_irregular="warn")
    assert array.shape == (16, 12, 10) and len(source(meta)["files"]) == 10
    assert np.isclose(meta["affine"][2, 2], SPACING[2] * 7 / 9)
    (folder / Path(source(meta)["files"][5]).name).unlink()  # slice 4: now there is a gap as well
    with pytest.warns(UserWarning, match="2 of 9 slices lie .*; a gap of 5 mm .* 1 of 8 by interpolation"):
        array, meta = load(folder, on_irregular="resample")
    assert array.shape == (16, 12, 8) and len(source(meta)["files"]) == 7 and source(meta)["grid"] == "resampled"


def test_a_colour_series_has_its_channels_last(tmp_path):
    slices, stills = series_slices(phantom((20, 16, 3))), [colour() for _ in range(3)]
    for image, still in zip(slices, stills, strict=True):
        for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SeriesInstanceUID"):
            setattr(still, keyword, image[keyword].value)
        still.FrameOfReferenceUID = slices[0].FrameOfReferenceUID
    array, meta = load(save(tmp_path, stills))
    assert array.shape == (20, 16, 3, 3) and array.dtype == np.uint8 and meta["original_channel_dim"] == -1
    assert np.array_equal(array[:, :, 1], stills[1].pixel_array.transpose(1, 0, 2))
    assert meta["spatial_shape"].tolist() == [20, 16, 3] and np.allclose(meta["affine"], affine_of("axial"))
    assert LoadImage(reader=READER, ensure_channel_first=True)(tmp_path).shape == (3, 20, 16, 3)


def test_nothing_there(tmp_path):
    assert "empty list" in refused([])
    assert "holds no DICOM image" in refused(tmp_path)
    with pytest.raises(FileNotFoundError, match="absent"):
        load(tmp_path / "absent")


def test_a_series_without_preamble_or_suffix(tmp_path):
    files = []
    for number, image in enumerate(series_slices(phantom())):
        del image.file_meta
        files.append(tmp_path / f"slice{number}")
        image.save_as(files[-1], implicit_vr=True, little_endian=True, enforce_file_format=False)
    assert np.array_equal(load(files)[0], phantom())


def test_meta_are_strings_and_numpy(tmp_path):
    slices = series_slices(phantom())
    names = [tmp_path / f"{number}.dcm" for number in range(8)]
    for name, image in zip(names, slices, strict=True):
        image.save_as(name)
    _, meta = load(tmp_path)
    usual = {"affine", "original_affine", "spatial_shape", "original_channel_dim", "space"}
    assert set(meta) == usual | EXTRA and all(type(meta[key]) is str for key in EXTRA)
    assert meta["dicom_modality"] == "CT" and meta["dicom_values"] == "rescaled" and meta["dicom_pixel_padding"] == ""
    assert meta["dicom_sop_class_uid"] == slices[0].SOPClassUID
    assert meta["dicom_study_instance_uid"] == slices[0].StudyInstanceUID
    assert meta["dicom_series_instance_uid"] == slices[0].SeriesInstanceUID
    assert meta["dicom_frame_of_reference_uid"] == slices[0].FrameOfReferenceUID
    assert source(meta) == {"files": [str(name) for name in names], "frames": None, "grid": "source"}


def test_files_are_absolute(tmp_path, monkeypatch):
    write_series(tmp_path / "a", phantom())
    monkeypatch.chdir(tmp_path)
    assert all(os.path.isabs(file) for file in source(load("a")[1])["files"])


def test_collate_and_decollate(tmp_path):
    items = [{"image": str(write_series(tmp_path / name, phantom(seed=n)))} for n, name in enumerate("ab")]
    items[1]["image"] = sorted(str(file) for file in Path(items[1]["image"]).iterdir())
    transform = Compose([LoadImaged("image", reader=READER), EnsureChannelFirstd("image")])
    transform = pickle.loads(pickle.dumps(transform))
    data = CacheDataset(items, transform, num_workers=2, progress=False)
    (batch,) = DataLoader(data, batch_size=2, num_workers=0)
    assert batch["image"].shape == (2, 1, 16, 12, 8) and batch["image"].dtype == torch.float32
    for number, item in enumerate(decollate_batch(batch)):
        assert np.array_equal(item["image"].numpy()[0], phantom(seed=number))
        assert np.allclose(item["image"].affine, affine_of("axial"))
        meta = item["image"].meta
        assert all(isinstance(meta[key], str) for key in EXTRA) and len(source(meta)["files"]) == 8


@pytest.mark.slow
def test_a_worker_that_is_spawned(tmp_path):
    item = {"image": str(write_series(tmp_path, phantom()))}
    data = CacheDataset([item], LoadImaged("image", reader=READER), cache_num=0, progress=False)
    (batch,) = DataLoader(data, num_workers=1, multiprocessing_context="spawn")
    assert np.array_equal(batch["image"][0].numpy(), phantom())


def test_many_threads_share_one_reader(tmp_path):
    items = [{"image": str(write_series(tmp_path / str(n), phantom(seed=n)))} for n in range(6)]
    data = CacheDataset(items, LoadImaged("image", reader=DicomSeriesReader()), num_workers=6, progress=False)
    for number in range(6):
        assert np.array_equal(data[number]["image"].numpy(), phantom(seed=number))


def test_load_image_does_not_fall_back_to_another_reader(tmp_path):
    with pytest.raises(ValueError, match="a gap of 5 mm"):
        LoadImage(reader=READER)(CASES["one slice missing"](tmp_path))


PLANTED = ("Mustermann", "MRN4711", "19620824")


@pytest.mark.parametrize("on_irregular", ["error", "warn", "resample"])
@pytest.mark.parametrize("name", [*CASES, "truncated", "twice", "bad tag"])
def test_nothing_about_the_patient_gets_out(tmp_path, name, on_irregular):
    if name in CASES:
        path = CASES[name](tmp_path)
    else:
        slices = series_slices(phantom())
        path = save(tmp_path, [*slices, slices[2]])
    for file in tmp_path.iterdir():
        image = dcmread(file)
        image.PatientName, image.PatientID, image.PatientBirthDate = PLANTED
        image.StudyDescription = image.InstitutionName = image.ImageComments = "Mustermann"
        if name == "bad tag":
            image.add_new("RescaleSlope", "LO", "Mustermann")
        image.save_as(file)
    if name == "truncated":
        (tmp_path / "0000.dcm").write_bytes((tmp_path / "0000.dcm").read_bytes()[:-50])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            told = str(load(path, on_irregular=on_irregular)[1])
        except ValueError as error:
            told = f"{error}"
    told += "".join(str(warning.message) for warning in caught)
    assert told and not any(planted in told for planted in PLANTED)


@pytest.mark.parametrize("value", ["average", "", None, "Error"])
def test_bad_policy(value):
    with pytest.raises(ValueError, match="on_irregular must be 'error', 'warn' or 'resample'"):
        DicomSeriesReader(on_irregular=value)


def test_suffixes(tmp_path):
    reader = DicomSeriesReader()
    folder = write_series(tmp_path, phantom())
    shutil.copy(folder / "0000.dcm", folder / "no_suffix")
    (folder / "a.png").touch()
    assert reader.verify_suffix("a.DCM") and reader.verify_suffix(["a.dcm", "b.ima"]) and reader.verify_suffix(folder)
    assert reader.verify_suffix(folder / "no_suffix")
    assert not reader.verify_suffix(folder / "a.png") and not reader.verify_suffix(["a.dcm", "b.nii"])


@pytest.mark.sample_data
@pytest.mark.parametrize("kernel", ["kernel_B_smooth", "kernel_L_sharp"])
def test_real_ct_equals_pydicom_reader(sample_data, kernel):
    folder = sample_data / "ct" / "lungdx_A0001" / kernel
    array, meta = load(folder)
    reader = PydicomReader()
    expected, expected_meta = reader.get_data(reader.read(str(folder)))
    flip = np.diag([1.0, 1.0, -1.0, 1.0])
    flip[2, 3] = 19
    flip = expected_meta["affine"] @ flip
    assert array.shape == (512, 512, 20) and np.array_equal(array, expected[..., ::-1])
    assert np.allclose(meta["affine"], flip, atol=1e-6) and meta["affine"][2, 2] == 5
    assert meta["dicom_modality"] == "CT" and array.min() >= -1024
