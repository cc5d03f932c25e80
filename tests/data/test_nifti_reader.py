# SPDX-License-Identifier: Apache-2.0
"""read_nifti: the affine that the file declares, the axes, the checksum; the corpus holds the broken files."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from malformed.nifti import AFFINE, ARRAY, stored
from monai.data import NibabelReader

from monai_labelfx.data._nifti_reader import nifti_header, read_nifti


def write(folder: Path, edit=lambda header: None, array=ARRAY, name="a.nii") -> str:
    content = stored(edit, array)
    (folder / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    return str(folder / name)


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize("dtype", ["u1", "i2", "f4", "f8"])
def test_a_good_file_gives_what_monais_reader_gives(tmp_path, name, dtype):
    path = write(tmp_path, array=ARRAY.astype(dtype), name=name)
    reader = NibabelReader()
    expected, expected_meta = reader.get_data(reader.read(path))
    array, meta = read_nifti(path)
    assert np.array_equal(array, expected) and array.dtype == expected.dtype == dtype
    assert set(meta) == {*expected_meta, "nifti_stored"}
    assert meta["nifti_stored"] == f"{np.dtype(dtype).name} 1.0 0.0"
    for key in ("affine", "original_affine", "spatial_shape", "pixdim", "dim"):
        assert np.array_equal(meta[key], expected_meta[key]), key
    assert np.isnan(meta["original_channel_dim"]) and np.isnan(expected_meta["original_channel_dim"])


def test_the_sform_goes_before_the_qform_and_both_before_the_voxel_size(tmp_path):
    moved = AFFINE + np.eye(4, k=3) * 100

    def forms(sform: int, qform: int):
        def edit(header):
            header.set_qform(moved, 1)
            header["sform_code"], header["qform_code"] = sform, qform

        return edit

    assert np.allclose(read_nifti(write(tmp_path, forms(1, 1)))[1]["affine"], AFFINE, atol=1e-5)
    assert np.allclose(read_nifti(write(tmp_path, forms(0, 1)))[1]["affine"], moved, atol=1e-5)
    neither = read_nifti(write(tmp_path, forms(0, 0)))[1]["affine"]
    assert np.allclose(np.abs(np.diag(neither)), [2, 3, 4, 1])


def test_a_rounded_voxel_size_does_not_replace_the_sform(tmp_path):
    """MONAI's reader takes the qform then, although its code says that there is none: another orientation and place."""

    def edit(header):
        header["qform_code"], header["quatern_d"], header["qoffset_x"] = 0, 0, 0
        header["pixdim"][1:4] = [1.999, 2.999, 3.999]

    assert np.allclose(read_nifti(write(tmp_path, edit))[1]["affine"], AFFINE, atol=1e-5)


@pytest.mark.parametrize(
    ("shape", "expected", "channel"),
    [
        ((4, 5), (4, 5), None),
        ((4, 5, 6), (4, 5, 6), None),
        ((4, 5, 6, 1), (4, 5, 6, 1), -1),
        ((4, 5, 6, 3), (4, 5, 6, 3), -1),
        ((4, 5, 1, 3), (4, 5, 1, 3), -1),
        ((4, 5, 6, 1, 3), (4, 5, 6, 3), -1),
        ((4, 5, 6, 3, 1), (4, 5, 6, 3), -1),
        ((4, 5, 6, 1, 1, 2), (4, 5, 6, 2), -1),
    ],
)
def test_axes(tmp_path, shape, expected, channel):
    array = np.arange(np.prod(shape), dtype=np.int16).reshape(shape)
    found, meta = read_nifti(write(tmp_path, array=array))
    assert np.array_equal(found, array.reshape(expected)) and list(meta["spatial_shape"]) == list(expected[:3])
    assert np.isnan(meta["original_channel_dim"]) if channel is None else meta["original_channel_dim"] == channel


@pytest.mark.parametrize("units", [2 + 8, 2 + 16, 2 + 24, 32])
def test_a_fourth_axis_holds_channels_whatever_its_unit(tmp_path, units):
    """ITK writes seconds into every file, so MR of several contrasts looks like a time series."""

    def edit(header):
        header["xyzt_units"] = units

    array = np.zeros((4, 5, 6, 3), np.int16)
    found, meta = read_nifti(write(tmp_path, edit, array))
    assert found.shape == (4, 5, 6, 3) and meta["original_channel_dim"] == -1
    assert read_nifti(write(tmp_path, edit, array[..., :1]))[0].shape == (4, 5, 6, 1)
    assert read_nifti(write(tmp_path, edit))[0].shape == (4, 5, 6)


def test_a_damaged_voxel_of_a_packed_file_is_noticed(tmp_path):
    array = np.random.default_rng(0).integers(0, 2**15, (40, 40, 40)).astype(np.int16)
    path = Path(write(tmp_path, array=array, name="a.nii.gz"))
    content = bytearray(gzip.compress(stored(array=array), compresslevel=0))  # stored as it is: no other check notices
    content[5000] ^= 1
    path.write_bytes(content)
    assert not np.array_equal(np.asarray(nib.load(path).dataobj), array)  # nibabel does not notice
    with pytest.raises(gzip.BadGzipFile, match="CRC"):
        read_nifti(str(path))


@pytest.mark.sample_data
def test_real_volumes_are_read_as_by_monai():
    paths = sorted(Path(os.environ["LABELFX_DATA"]).rglob("*.nii.gz"))
    assert paths
    for path in paths[:4]:
        reader = NibabelReader()
        expected, expected_meta = reader.get_data(reader.read(path))
        array, meta = read_nifti(str(path))
        assert np.array_equal(array, expected) and np.allclose(meta["affine"], expected_meta["affine"])


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
@pytest.mark.parametrize(("slope", "inter"), [(0.5, -1024), (1, 0), (0, 7), (np.nan, 7)])
def test_the_stored_type_is_remembered(tmp_path, slope, inter, name):
    def edit(header):
        header["scl_slope"], header["scl_inter"] = slope, inter

    path = write(tmp_path, edit, name=name)
    scaled = slope if slope > 0 else 1
    array, meta = read_nifti(path)
    assert meta["nifti_stored"] == f"int16 {float(scaled)} {float(inter if slope > 0 else 0)}"
    assert np.array_equal(array, ARRAY * scaled + (inter if slope > 0 else 0))


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_the_header_alone(tmp_path, name):
    path = write(tmp_path, name=name)
    header = nifti_header(path)
    assert header.get_data_shape() == ARRAY.shape and np.allclose(header.get_best_affine(), AFFINE, atol=1e-5)
    (tmp_path / "b.nii").write_bytes(b"no header")
    with pytest.raises(ValueError, match=r"b\.nii' cannot be read as NIfTI: expected a header"):
        nifti_header(str(tmp_path / "b.nii"))
