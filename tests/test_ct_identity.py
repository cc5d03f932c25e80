# SPDX-License-Identifier: Apache-2.0
"""An image that nothing changed comes back bit for bit: DICOM and NIfTI, every slope, intercept, sign and depth."""

from __future__ import annotations

import gzip
import os
from itertools import product
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dicom_derived_samples import as_stored, by_position, series
from dicom_samples import save, series_slices
from malformed.nifti import stored
from monai.transforms import LoadImaged, SaveImaged
from pydicom.data import get_testdata_file

SLOPES, INTERCEPTS = (1.0, 0.5, 2.059), (0.0, -1024.0, -8192.0)
FULL = {"int16": 16, "uint16": 16, "uint8": 8}  # types that a float32 holds with any slope
CHANGED = {"SOPInstanceUID", "SeriesInstanceUID"}


def through(source: Path | str, folder: Path, *, writer: str, suffix: str, change=lambda image: image, **options):
    """What a bundle does with an image: load as float32, a network (here ``change``), save; the path that was made."""
    load = LoadImaged("image", reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)
    item = load({"image": str(source)})
    assert item["image"].dtype == torch.float32
    item["image"] = change(item["image"])
    saved = SaveImaged(
        "image",
        output_dir=folder,
        output_postfix="made",
        output_ext=suffix,
        separate_folder=False,
        writer=f"monai_labelfx.data.{writer}",
        print_log=False,
        savepath_in_metadict=True,
        **options,
    )(item)
    return Path(saved["image"].meta["saved_to"])


def as_dicom(source: Path | str, folder: Path, **options) -> list[pydicom.Dataset]:
    path = through(source, folder, writer="DicomDerivedSeriesWriter", suffix=".dcm", **options)
    return [pydicom.dcmread(path)] if path.is_file() else by_position(path.with_suffix(""))


def as_nifti(source: Path | str, folder: Path, suffix: str = ".nii", **options) -> nibabel.Nifti1Image:
    path = through(source, folder, writer="NiftiWriter", suffix=suffix, output_dtype="source", **options)
    return nibabel.load(path)


def check_derived(old: list[pydicom.Dataset], new: list[pydicom.Dataset]) -> None:
    assert len(old) == len(new) > 0
    for before, after in zip(old, new, strict=True):
        assert after.PixelData == before.PixelData
        for keyword in ("BitsAllocated", "BitsStored", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"):
            assert after[keyword] == before[keyword], keyword
        assert after.get("PixelPaddingValue") == before.get("PixelPaddingValue")
        assert after.ImagePositionPatient == before.ImagePositionPatient
        assert after.ImageType[0] == "DERIVED"
        assert after.SOPInstanceUID == after.file_meta.MediaStorageSOPInstanceUID
        (reference,) = after.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == before.SOPInstanceUID
    assert {image.SOPInstanceUID for image in old}.isdisjoint(image.SOPInstanceUID for image in new)
    (made,) = {image.SeriesInstanceUID for image in new}
    assert made not in {image.SeriesInstanceUID for image in old}
    assert len({image.SOPInstanceUID for image in new}) == len(new)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("bits", [12, 16])
@pytest.mark.parametrize(("slope", "intercept"), list(product(SLOPES, INTERCEPTS)))
def test_dicom_of_every_slope_intercept_depth_and_sign(tmp_path, slope, intercept, bits, signed):
    change = as_stored(bits=bits, signed=signed, slope=lambda index: slope, intercept=intercept)
    source = series(tmp_path / "source", change)
    old = by_position(source)
    ends = {(int(image.pixel_array.min()), int(image.pixel_array.max())) for image in old}
    assert ends == {(-(1 << bits - 1), (1 << bits - 1) - 1) if signed else (0, (1 << bits) - 1)}  # the full range
    check_derived(old, as_dicom(source, tmp_path / "out"))
    written = as_nifti(source, tmp_path / "out")
    values = np.stack([image.pixel_array.T * slope + intercept for image in old], axis=-1)
    if slope == 2.059:  # a NIfTI header has no room for it
        assert written.get_data_dtype() == np.float32
        assert np.array_equal(written.get_fdata(dtype=np.float32), values.astype(np.float32))
    else:
        assert written.get_data_dtype() == (np.int16 if signed else np.uint16)
        numbers = np.asarray(written.dataobj.get_unscaled())
        assert np.array_equal(numbers, np.stack([image.pixel_array.T for image in old], axis=-1))
        assert np.array_equal(written.get_fdata(), values)


@pytest.mark.parametrize("signed", [False, True])
def test_dicom_whose_slices_have_their_own_rescaling(tmp_path, signed):
    def change(image, index):
        slope, intercept = SLOPES[index % 3], INTERCEPTS[index // 2 % 3]
        as_stored(bits=12, signed=signed, slope=lambda _: slope, intercept=intercept)(image, index)

    source = series(tmp_path / "source", change)
    old = by_position(source)
    assert len({(image.RescaleSlope, image.RescaleIntercept) for image in old}) > 4
    check_derived(old, as_dicom(source, tmp_path / "out"))
    written = as_nifti(source, tmp_path / "out")
    values = [image.pixel_array.T * float(image.RescaleSlope) + float(image.RescaleIntercept) for image in old]
    assert np.array_equal(written.get_fdata(dtype=np.float32), np.stack(values, axis=-1).astype(np.float32))


PADDINGS = {  # stored values of the padding, signed, bits, the header's text of it
    "lowest of 16 bits": (-32768, True, 16, -32768),
    "-2000": (-2000, True, 16, -2000),
    "-2000 that the header writes as unsigned": (-2000, True, 16, 63536),
    "0 of 12 bits": (0, False, 12, 0),
    "greatest of 12 bits": (4095, False, 12, 4095),
    "63536": (63536, False, 16, 63536),
    "outside 12 unsigned bits": (63536, False, 12, 63536),
    "outside 12 signed bits": (-32768, True, 12, -32768),
}


@pytest.mark.parametrize("kind", PADDINGS)
def test_dicom_with_padding(tmp_path, kind):
    value, signed, bits, header = PADDINGS[kind]

    def change(image, index):
        as_stored(bits=bits, signed=signed)(image, index)
        dtype = "<i2" if signed else "<u2"
        pixels = np.frombuffer(image.PixelData, dtype).reshape(image.Rows, image.Columns).copy()
        pixels[:4, 3:] = value
        image.PixelData = pixels.tobytes()
        image.add_new("PixelPaddingValue", "SS" if header < 0 else "US", header)

    source = series(tmp_path / "source", change)
    check_derived(by_position(source), as_dicom(source, tmp_path / "out"))
    numbers = np.asarray(as_nifti(source, tmp_path / "out").dataobj.get_unscaled())
    assert (numbers[3:, :4] == value).all()


@pytest.mark.parametrize("name", ["CT_small.dcm", "J2K_pixelrep_mismatch.dcm"])
def test_real_slices(tmp_path, name):
    path = get_testdata_file(name, download=False)
    original = pydicom.dcmread(path)
    pixels = original.pixel_array
    (made,) = as_dicom(path, tmp_path)
    assert np.array_equal(made.pixel_array, pixels) and made.pixel_array.dtype == pixels.dtype
    assert made.PixelData == pixels.astype("<i2").tobytes() and made.BitsStored == original.BitsStored
    if not original.file_meta.TransferSyntaxUID.is_compressed:
        assert made.PixelData == original.PixelData
    assert made.file_meta.TransferSyntaxUID == pydicom.uid.ExplicitVRLittleEndian
    assert made.ImageType[0] == "DERIVED"
    assert not {made[word].value for word in CHANGED} & {original[word].value for word in CHANGED}
    written = as_nifti(path, tmp_path)
    assert np.array_equal(np.asarray(written.dataobj.get_unscaled()).squeeze(), pixels.T)
    rescaled = pixels.T * float(original.RescaleSlope) + float(original.RescaleIntercept)
    assert np.array_equal(written.get_fdata().squeeze(), rescaled)


def _nifti(folder: Path, array: np.ndarray, slope: float, intercept: float, suffix: str) -> tuple[Path, bytes]:
    def edit(header):
        header["scl_slope"], header["scl_inter"] = slope, intercept

    content = stored(edit, array)
    path = folder / f"source{suffix}"
    path.write_bytes(gzip.compress(content) if suffix.endswith("gz") else content)
    return path, content[352:]


def _voxels(image: nibabel.Nifti1Image) -> bytes:
    return np.asarray(image.dataobj.get_unscaled()).tobytes(order="F")


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", [*FULL, "int32"])
@pytest.mark.parametrize(("slope", "intercept"), list(product(SLOPES, INTERCEPTS)))
def test_nifti_of_whole_numbers(tmp_path, slope, intercept, dtype, suffix):
    limits = np.iinfo(dtype) if dtype in FULL else np.iinfo(np.int16)  # in float32, LoadImage's type
    low, high = (limits.min, limits.max) if dtype in FULL else (-(2**20), 2**20)
    array = np.random.default_rng(0).integers(low, high + 1, (4, 5, 6)).astype(dtype)
    array[0, 0, :2] = low, high
    path, voxels = _nifti(tmp_path, array, slope, intercept, suffix)
    made = as_nifti(path, tmp_path / "out", suffix)
    assert _voxels(made) == voxels and made.get_data_dtype() == dtype
    assert (made.dataobj.slope, made.dataobj.inter) == (np.float32(slope), np.float32(intercept))
    assert np.array_equal(made.get_fdata(), nibabel.load(path).get_fdata())
    assert np.allclose(made.affine, nibabel.load(path).affine, atol=1e-5)


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_nifti_of_floating_numbers(tmp_path, dtype, suffix):
    array = np.random.default_rng(0).normal(-300, 400, (4, 5, 6)).astype(np.float32).astype(dtype)
    path, voxels = _nifti(tmp_path, array, 1.0, 0.0, suffix)
    made = as_nifti(path, tmp_path / "out", suffix)
    assert _voxels(made) == voxels and made.get_data_dtype() == dtype
    path, _ = _nifti(tmp_path, array, 2.059, -8192.0, suffix)  # the slope is in the values, which stay
    made, old = as_nifti(path, tmp_path / "out", suffix), nibabel.load(path)
    assert np.array_equal(made.get_fdata(dtype=np.float32), old.get_fdata().astype(np.float32))
    assert made.get_data_dtype() == dtype and (made.dataobj.slope, made.dataobj.inter) == (1, 0)


def test_a_change_of_one_voxel_changes_one_voxel(tmp_path):
    """Otherwise the writers could copy their source, and all of the above would pass."""

    def change(image):
        image[0, 1, 2, 0] += 7.4
        return image

    source = series(tmp_path / "source")
    old, new = by_position(source), as_dicom(source, tmp_path / "out", change=change)
    differences = [after.pixel_array.astype(int) - before.pixel_array for before, after in zip(old, new, strict=True)]
    assert differences[0][2, 1] == 7 and sum(np.count_nonzero(one) for one in differences) == 1
    numbers = np.asarray(as_nifti(source, tmp_path / "out", change=change).dataobj.get_unscaled()).astype(int)
    difference = numbers - np.stack([image.pixel_array.T for image in old], axis=-1)
    assert difference[1, 2, 0] == 7 and np.count_nonzero(difference) == 1


def test_values_beyond_the_type_are_clipped_and_not_wrapped(tmp_path):
    def change(image):
        image[0, 0, 0], image[0, 1, 1] = 1e6, -1e6
        return image

    source = save(tmp_path / "source", series_slices(np.zeros((4, 5, 3), np.float32)))
    written = as_nifti(source, tmp_path / "out", change=change)
    numbers = np.asarray(written.dataobj.get_unscaled())
    assert numbers.dtype == np.uint16 and (numbers[0, 0] == 65535).all() and (numbers[1, 1] == 0).all()


@pytest.mark.sample_data
@pytest.mark.parametrize("kernel", ["kernel_B_smooth", "kernel_L_sharp"])
def test_real_series(tmp_path, kernel):
    source = Path(os.environ["LABELFX_DATA"], "ct/lungdx_A0001", kernel)
    check_derived(by_position(source), as_dicom(source, tmp_path))
    numbers = np.asarray(as_nifti(source, tmp_path).dataobj.get_unscaled())
    assert np.array_equal(numbers, np.stack([image.pixel_array.T for image in by_position(source)], axis=-1))


@pytest.mark.sample_data
def test_real_nifti(tmp_path):
    source = Path(os.environ["LABELFX_DATA"], "ct/totalsegmentator_ct/example_ct_sm.nii.gz")
    made, old = as_nifti(source, tmp_path, ".nii.gz"), nibabel.load(source)
    assert _voxels(made) == np.asarray(old.dataobj.get_unscaled()).astype(made.get_data_dtype()).tobytes(order="F")
    assert made.get_data_dtype() == old.get_data_dtype().newbyteorder("=")
