# SPDX-License-Identifier: Apache-2.0
"""AutoReader: the right reader for each kind of file, one sentence for what cannot be read."""

from __future__ import annotations

import csv
import gzip
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
from dicom_samples import affine_of, phantom, save, series_slices
from malformed.dicom import SEGMENTS, encoded, segmentation
from monai.transforms import LoadImage, LoadImaged
from PIL import Image
from pydicom.data import get_testdata_file

from monai_labelfx.data import AutoReader

ARRAY = np.arange(12, dtype=np.uint8).reshape(3, 4)  # x, y


@pytest.fixture
def folder(tmp_path):
    """The same asymmetric picture in each format, plus a DICOM file with and without suffix and in a folder."""
    Image.fromarray(ARRAY.T).save(tmp_path / "a.png")
    Image.fromarray(ARRAY.T).save(tmp_path / "a.bmp")
    tifffile.imwrite(tmp_path / "a.TIF", ARRAY.T)
    np.save(tmp_path / "a.npy", ARRAY)
    for name in ("a.nii", "a.nii.gz"):
        nib.save(nib.Nifti1Image(ARRAY, np.diag([2.0, 3.0, 1.0, 1.0])), tmp_path / name)
    (tmp_path / "series").mkdir()
    for name in ("a.dcm", "nosuffix", "series/1"):
        shutil.copy(get_testdata_file("CT_small.dcm"), tmp_path / name)
    return tmp_path


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.TIF", "a.npy", "a.nii", "a.nii.gz"])
def test_every_format_gives_the_same_array(folder, name):
    image = LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(folder / name)
    assert np.array_equal(image.numpy()[0], ARRAY)


@pytest.mark.parametrize("name", ["a.dcm", "nosuffix", "series"])
def test_dicom_file_and_folder(folder, name):
    image = LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(folder / name)
    assert image.shape == (1, 128, 128) and float(image.pixdim[0]) == pytest.approx(0.661468)


def test_dictionary_loader_and_channels_from_several_files(folder):
    load = LoadImaged(["image", "label"], reader="monai_labelfx.data.AutoReader", allow_missing_keys=True)
    assert load({"image": str(folder / "a.png")})["image"].shape == (3, 4)
    pair = LoadImage(reader=AutoReader(), ensure_channel_first=True)([folder / "a.nii", folder / "a.nii.gz"])
    assert pair.shape == (2, 3, 4)


def test_one_reader_in_many_threads(folder):
    reader = AutoReader()
    names = [folder / name for name in ("a.nii", "a.nii.gz", "a.png", "a.dcm")] * 8
    with ThreadPoolExecutor(8) as pool:
        arrays = list(pool.map(lambda name: reader.get_data(reader.read(name))[0], names))
    for name, array in zip(names, arrays, strict=True):
        assert array.shape == ((128, 128) if name.suffix == ".dcm" else (3, 4))


def test_unknown_kinds_are_named(folder):
    (folder / "a.txt").write_text("no image")
    (folder / "empty").mkdir()
    load = LoadImage(reader="monai_labelfx.data.AutoReader")
    with pytest.raises(ValueError, match=r"a\.txt' is of no known kind, expected DICOM or one of \.tif"):
        load(folder / "a.txt")
    with pytest.raises(ValueError, match="empty' holds no DICOM file"):
        load(folder / "empty")
    with pytest.raises(ValueError, match="must be of one kind"):
        load([folder / "a.png", folder / "a.nii"])
    for name in ("absent.png", "absent", "absent.nii.gz"):
        with pytest.raises(FileNotFoundError, match=f"{name}' does not exist"):
            load(folder / name)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.TIF", "a.npy", "a.nii", "a.nii.gz", "a.dcm"])
@pytest.mark.parametrize("size", [0, 10])
def test_truncated_files_give_one_sentence_with_the_name(folder, name, size):
    path = folder / name
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"^image file .*(cannot be read as|is no DICOM)") as caught:
        LoadImage(reader="monai_labelfx.data.AutoReader")(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_a_header_that_lies_about_the_size_is_refused_before_allocation(folder, name):
    image = nib.load(folder / name)
    header = image.header.copy()
    header["dim"][:4] = [3, 30000, 30000, 30000]
    data = header.binaryblock + b"\0" * 16
    (folder / name).write_bytes(gzip.compress(data) if name.endswith("gz") else data)
    with pytest.raises(ValueError, match=f"{name}.*announces 27000000000000 bytes"):
        AutoReader().get_data(folder / name)


def test_a_later_broken_file_is_the_one_that_is_named(folder):
    (folder / "b.nii").write_bytes((folder / "a.nii").read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"b\.nii' cannot be read as NIfTI"):
        AutoReader().get_data([folder / "a.nii", folder / "b.nii"])


def test_channels_must_agree(folder):
    nib.save(nib.Nifti1Image(ARRAY, np.eye(4)), folder / "b.nii")
    with pytest.raises(ValueError, match=r"b\.nii' has shape .* and affine .*channels of one image must agree"):
        AutoReader().get_data([folder / "a.nii", folder / "b.nii"])
    np.save(folder / "b.npy", ARRAY[1:])
    with pytest.raises(ValueError, match=r"b\.npy' has shape \(2, 4\).*channels of one image must agree"):
        AutoReader().get_data([folder / "a.npy", folder / "b.npy"])
    colours = np.stack([ARRAY.T] * 3, axis=-1)
    Image.fromarray(colours).save(folder / "b.png")
    array, meta = AutoReader().get_data([folder / "b.png", folder / "b.png"])
    assert array.shape == (3, 4, 6) and meta["original_channel_dim"] == -1
    with pytest.raises(ValueError, match="no image file was given"):
        AutoReader().get_data([])


def test_dicom_lists_folders_and_segmentations(tmp_path):
    for number, seed in enumerate((0, 1)):
        save(tmp_path / str(number), series_slices(phantom(seed=seed)))
    one = AutoReader().get_data(sorted((tmp_path / "0").iterdir()))[0]
    assert np.array_equal(one, phantom())
    both, meta = AutoReader().get_data([tmp_path / "0", tmp_path / "1"])
    assert both.shape == (16, 12, 8, 2) and meta["original_channel_dim"] == -1
    assert np.array_equal(both[..., 1], phantom(seed=1))
    (tmp_path / "seg.dcm").write_bytes(encoded(segmentation()))
    (tmp_path / "only").mkdir()
    (tmp_path / "only" / "seg").write_bytes(encoded(segmentation()))
    for name in ("seg.dcm", "only"):
        labels, meta = AutoReader().get_data(tmp_path / name)
        assert np.array_equal(labels, SEGMENTS) and np.allclose(meta["affine"], affine_of("axial"))


def test_options_of_dicom_series_are_handed_on(tmp_path):
    slices = series_slices(phantom())
    save(tmp_path / "gap", slices[:3] + slices[4:])
    with pytest.raises(ValueError, match="gap of 5 mm"):
        AutoReader().get_data(tmp_path / "gap")
    with pytest.warns(UserWarning, match="irregular"):
        array, _ = AutoReader(on_irregular="resample").get_data(tmp_path / "gap")
    assert array.shape == (16, 12, 8) and np.allclose(array[..., 3], phantom()[:, :, [2, 4]].mean(axis=2))
    save(tmp_path / "gap", series_slices(phantom(seed=1)), prefix="other")
    with pytest.raises(ValueError, match="holds 2 DICOM series"):
        AutoReader(on_irregular="resample").get_data(tmp_path / "gap")
    with pytest.warns(UserWarning, match="irregular"):
        chosen = AutoReader(series=slices[0].SeriesInstanceUID, on_irregular="warn").get_data(tmp_path / "gap")[0]
    assert chosen.shape == (16, 12, 7)
    with pytest.raises(ValueError, match="on_irregular must be"):
        AutoReader(on_irregular="mend")


def test_a_truncated_dicom_file_makes_its_folder_a_bad_series_not_an_unknown_folder(tmp_path):
    (tmp_path / "1.dcm").write_bytes(b"cut")
    with pytest.raises(ValueError, match=r"1\.dcm' is no DICOM file, or cut off"):
        AutoReader().get_data(tmp_path)


def test_verify_suffix(folder):
    reader = AutoReader()
    assert reader.verify_suffix(folder / "a.png") and reader.verify_suffix([folder / "nosuffix", folder / "a.dcm"])
    assert not reader.verify_suffix("a.xyz") and not reader.verify_suffix(["a.png", "a.nii"])


@pytest.mark.sample_data
def test_real_nuclei_pictures():
    folder = Path(os.environ["LABELFX_DATA"], "nuclei2d")
    load = LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)
    sizes = set()
    for path in sorted((folder / "images").glob("*.png"))[::8]:
        image, mask = load(path), load(folder / "masks" / path.name)
        sizes.add(image.shape[1:])
        assert image.shape[0] == 4 and mask.shape == (1, *image.shape[1:]) and mask.max() > 0
        with Image.open(path) as picture:
            assert tuple(image.shape[1:]) == picture.size
    assert len(sizes) > 1
    with open(folder / "manifest.csv", encoding="utf-8") as file:
        assert len(list(csv.reader(file))) > 160
