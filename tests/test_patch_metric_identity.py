# SPDX-License-Identifier: Apache-2.0
"""The whole CT denoising bundle with a network that changes nothing: files come back bit for bit, padding included."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dicom_derived_samples import by_position
from dicom_samples import save, series_slices
from malformed.nifti import stored
from patch_metric_bundle import CYCLES, Denoiser, predict, read_json
from pydicom.data import get_testdata_file

from monai_labelfx.data import ct_phantom

REAL = {"CT_small.dcm": 4, "J2K_pixelrep_mismatch.dcm": 6}
"""Real slices -> level; the second has padding of -2000 HU and is compressed without loss."""


@pytest.fixture
def checkpoint(tmp_path) -> Path:
    """A network as training with ``residual`` finds it: its last convolution is zero."""
    path = tmp_path / "identity.pt"
    torch.save(Denoiser(residual=True).network.state_dict(), path)
    return path


@pytest.fixture
def restless(tmp_path) -> Path:
    """A network that changes all that it sees."""
    path = tmp_path / "restless.pt"
    torch.save(Denoiser(residual=True).shake().network.state_dict(), path)
    return path


def whole_numbers(depth: int | None = None) -> np.ndarray:
    """A noisy phantom in whole HU, in a ring of padding."""
    image = ct_phantom(64, depth=depth, seed=3)[0]
    image = np.rint(image + np.random.default_rng(0).normal(0, 40, image.shape))
    image[:6] = -2000
    image[:, 60:] = -3024
    return image.astype(np.float32)


def as_dicom(source: Path, folder: Path, checkpoint: Path, **values) -> list[pydicom.Dataset]:
    predict(source, folder, checkpoint, "--preset", "dicom", residual=True, **values)
    (made,) = folder.glob("*_denoised*")
    return by_position(made) if made.is_dir() else [pydicom.dcmread(made)]


def as_nifti(source: Path, folder: Path, checkpoint: Path, **values) -> nibabel.Nifti1Image:
    predict(source, folder, checkpoint, residual=True, **values)
    (made,) = folder.glob("*_denoised.nii*")
    return nibabel.load(made)


def numbers(image: nibabel.Nifti1Image) -> np.ndarray:
    return np.asarray(image.dataobj.get_unscaled())


def check_audit(folder: Path) -> None:
    """What the audit says of an image that did not change."""
    summary = read_json(folder / "hu_audit.json")["summary"]
    assert summary["hu_failures"] == 0
    assert all(value == 0 for name, value in summary.items() if "shift" in name)


@pytest.mark.parametrize("name", REAL)
def test_real_slices_come_back_bit_for_bit(name, checkpoint, tmp_path):
    source = Path(get_testdata_file(name, download=False))
    old = pydicom.dcmread(source)
    pixels = old.pixel_array
    assert bool(pixels.min() == -2000) is ("J2K" in name)
    (new,) = as_dicom(source, tmp_path / "dicom", checkpoint, level=REAL[name])
    assert new.pixel_array.dtype == pixels.dtype and np.array_equal(new.pixel_array, pixels)
    assert new.PixelData == pixels.astype("<i2").tobytes()
    for keyword in ("BitsStored", "BitsAllocated", "PixelRepresentation", "RescaleSlope", "RescaleIntercept"):
        assert new[keyword] == old[keyword], keyword
    assert new.SOPInstanceUID != old.SOPInstanceUID and new.SeriesInstanceUID != old.SeriesInstanceUID
    assert new.ImageType[0] == "DERIVED"
    check_audit(tmp_path / "dicom")

    written = as_nifti(source, tmp_path / "nifti", checkpoint, level=REAL[name])
    assert written.get_data_dtype() == np.int16 and np.array_equal(numbers(written).squeeze(), pixels.T)
    hu = pixels.T * float(old.RescaleSlope) + float(old.RescaleIntercept)
    assert np.array_equal(written.get_fdata().squeeze(), hu)


SERIES = {
    "a slope for each slice": ([1.0, 0.5, 2.059, 1.0], None, [512, 512]),
    "named padding": ([1.0] * 4, 65535, [512, 512]),
    "tiles": ([0.5] * 4, 65535, [24, 40]),
}
"""Slopes, PixelPaddingValue and tiles."""


@pytest.mark.parametrize("kind", SERIES)
def test_dicom_series_come_back_bit_for_bit(kind, checkpoint, tmp_path):
    slopes, padding, tile_size = SERIES[kind]
    slices = series_slices(whole_numbers(4), intercept=-4096.0)
    for number, (image, slope) in enumerate(zip(slices, slopes, strict=True)):
        pixels = np.rint((whole_numbers(4)[..., number].T + 4096) / slope).astype(np.uint16)
        if padding is not None:
            pixels[:9] = padding  # brighter than anything, and padding nevertheless
            image.add_new("PixelPaddingValue", "US", padding)
        image.RescaleSlope, image.PixelData = slope, pixels.tobytes()
    source = save(tmp_path / "source", slices)
    new = as_dicom(source, tmp_path / "dicom", checkpoint, tile_size=tile_size)
    for before, after in zip(by_position(source), new, strict=True):
        assert after.PixelData == before.PixelData and after.RescaleSlope == before.RescaleSlope
        assert after.get("PixelPaddingValue") == padding


STORED = {
    "int16": ("int16", 1.0, 0.0),
    "int16 with slope": ("int16", 0.5, -8192.0),
    "uint16 with intercept": ("uint16", 1.0, -4096.0),
    "int32": ("int32", 1.0, 0.0),
    "float32": ("float32", 1.0, 0.0),
    "float64": ("float64", 1.0, 0.0),
}


@pytest.mark.parametrize("depth", [None, 3])
@pytest.mark.parametrize("kind", STORED)
def test_nifti_comes_back_bit_for_bit(kind, depth, checkpoint, tmp_path):
    dtype, slope, intercept = STORED[kind]

    def edit(header):
        header["scl_slope"], header["scl_inter"] = slope, intercept

    array = (whole_numbers(depth) - intercept) / slope
    if dtype.startswith("float"):  # in single precision, LoadImage's
        array = (array + np.random.default_rng(1).random(array.shape)).astype(np.float32)
    array = array.astype(dtype)
    source = tmp_path / "source.nii"
    source.write_bytes(stored(edit, array))
    written = as_nifti(source, tmp_path / "out", checkpoint, output_ext=".nii")
    assert written.get_data_dtype() == dtype and numbers(written).tobytes() == array.tobytes()
    assert (written.dataobj.slope, written.dataobj.inter) == (slope, intercept)
    assert np.allclose(written.affine, nibabel.load(source).affine, atol=1e-5)
    check_audit(tmp_path / "out")


def test_strength_0_of_any_network_changes_no_bit_and_1_does(restless, tmp_path):
    source = Path(get_testdata_file("CT_small.dcm", download=False))
    pixels = pydicom.dcmread(source).pixel_array.astype(int)
    found = {
        strength: as_dicom(source, tmp_path / str(strength), restless, level=4, strength=strength)[0].pixel_array
        for strength in (0.0, 0.5, 1.0)
    }
    assert np.array_equal(found[0.0], pixels)
    change = found[1.0].astype(int) - pixels
    assert np.abs(change).mean() > 5
    assert np.abs(found[0.5] - pixels - change / 2).max() <= 1, "half of it, rounded twice"


def test_padding_stays_whatever_the_network_does(restless, tmp_path):
    source = Path(get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False))
    pixels = pydicom.dcmread(source).pixel_array
    (new,) = as_dicom(source, tmp_path / "out", restless, level=6)
    padding = pixels < -1500
    assert 0.1 < padding.mean() < 0.9
    assert np.array_equal(new.pixel_array[padding], pixels[padding])
    assert (new.pixel_array != pixels)[~padding].mean() > 0.5


@pytest.mark.parametrize("name", ["invertible", *CYCLES])
def test_rivals_that_start_at_the_identity_change_nothing(name, tmp_path):
    own = {"network_def#residual": True} if "cyclegan" in name else {}
    denoiser = Denoiser(name, **own)
    image = torch.from_numpy(whole_numbers())[None]
    if name == "gan_circle":
        torch.nn.init.zeros_(denoiser.network.last.weight)
    assert torch.equal(denoiser(image), image)


@pytest.mark.sample_data
def test_a_real_series_comes_back_bit_for_bit(checkpoint, sample_data, tmp_path):
    source = sample_data / "ct" / "lungdx_A0001" / "kernel_B_smooth"
    new = as_dicom(source, tmp_path / "out", checkpoint, level=6)
    for before, after in zip(by_position(source), new, strict=True):
        assert after.PixelData == before.PixelData and after.SOPInstanceUID != before.SOPInstanceUID
