# SPDX-License-Identifier: Apache-2.0
"""TiffWriter: what it writes is what TiffReader reads, values, dtype, axes and spacing."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor
from monai.transforms import EnsureChannelFirst, Flip, LoadImage, SaveImage, SaveImaged

from monai_labelfx.data import TiffReader, TiffWriter

SPACING = (0.00025, 0.0003, 0.002)


def write(path, array, affine=None, **keywords):
    writer = TiffWriter(**keywords)
    writer.set_data_array(array)
    writer.set_metadata({} if affine is None else {"affine": affine, "original_affine": affine})
    writer.write(path, verbose=False)


def read(path):
    array, meta = TiffReader().get_data((str(path),))
    return array, meta


def ramp(*shape: int, dtype: str) -> np.ndarray:
    return np.arange(np.prod(shape)).reshape(shape).astype(dtype)


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 5, 4, 3), (2, 5, 4), (2, 5, 4, 3), (3, 5, 4)])
@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "int64", "int16", "bool"])
def test_round_trip(tmp_path, shape, dtype):
    array = ramp(*shape, dtype=dtype)
    if dtype == "int16":
        array -= 7
    write(tmp_path / "a.tif", array, np.diag([*SPACING, 1.0]))
    loaded, meta = read(tmp_path / "a.tif")
    loaded = loaded[None] if np.isnan(meta["original_channel_dim"]) else np.moveaxis(loaded, -1, 0)
    assert np.array_equal(loaded, array.astype(loaded.dtype)) and loaded.shape == array.shape
    expected = {"bool": "uint8", "int64": "uint16"}.get(dtype, dtype)
    assert loaded.dtype == np.dtype(expected)
    axes = len(shape) - 1
    assert np.allclose(np.diag(meta["affine"])[:axes], SPACING[:axes], rtol=1e-6, atol=0)


def test_file_order_and_flavour(tmp_path):
    write(tmp_path / "a.tif", ramp(1, 5, 4, 3, dtype="uint16"), np.diag([*SPACING, 1.0]))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert tif.series[0].axes == "ZYX" and tif.series[0].shape == (3, 4, 5) and tif.is_imagej
        assert tif.imagej_metadata["unit"] == "um" and tif.imagej_metadata["spacing"] == pytest.approx(2.0)
    write(tmp_path / "b.tif", ramp(1, 5, 4, 3, dtype="uint32") + 70_000)
    with tifffile.TiffFile(tmp_path / "b.tif") as tif:
        assert tif.is_ome and tif.series[0].dtype == np.uint32


def test_unknown_spacing_stays_unknown(tmp_path):
    write(tmp_path / "a.tif", ramp(1, 5, 4, dtype="uint8"), np.eye(4))
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        assert "unit" not in tif.imagej_metadata
    assert np.array_equal(read(tmp_path / "a.tif")[1]["affine"], np.eye(4))


@pytest.mark.parametrize(("largest", "expected"), [(65_535, "uint16"), (65_536, "uint32")])
def test_instance_maps_take_32_bits_only_when_needed(tmp_path, largest, expected):
    labels = torch.zeros(1, 5, 4, dtype=torch.int64)
    labels[0, 2, 1] = largest
    write(tmp_path / "a.tif", labels, output_dtype=np.float32)  # what SaveImage passes by default
    loaded, _ = read(tmp_path / "a.tif")
    assert loaded.dtype == np.dtype(expected) and loaded[2, 1] == largest


def test_output_dtype_rounds_and_refuses_what_does_not_fit(tmp_path):
    write(tmp_path / "a.tif", np.full((1, 5, 4), 2.7, "float32"), output_dtype="uint8")
    assert np.array_equal(read(tmp_path / "a.tif")[0], np.full((5, 4), 3, "uint8"))
    write(tmp_path / "b.tif", np.full((1, 5, 4), 2.7), output_dtype="float64")
    assert read(tmp_path / "b.tif")[0].dtype == np.float64
    for bad in (np.full((1, 5, 4), 300.0), np.full((1, 5, 4), np.nan), np.full((1, 5, 4), -1)):
        with pytest.raises(ValueError, match=r"cannot write values .* as uint8"):
            write(tmp_path / "c.tif", bad, output_dtype="uint8")
    with pytest.raises(ValueError, match="as uint32"):
        write(tmp_path / "c.tif", np.full((1, 5, 4), 2**40))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.tif", "b.tif"]


def test_half_written_files_do_not_stay(tmp_path, monkeypatch):
    def fail(path, *args, **keywords):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(tifffile, "imwrite", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "a.tif", ramp(1, 5, 4, dtype="uint8"))
    assert list(tmp_path.iterdir()) == []


def test_refuses_scale_and_more_axes():
    with pytest.raises(ValueError, match="scale must be None, got 255"):
        TiffWriter(scale=255)
    with pytest.raises(ValueError, match="2 or 3 spatial axes"):
        TiffWriter().set_data_array(np.zeros((1, 2, 3, 4, 5)))


@pytest.mark.parametrize("shape", [(1, 5, 4), (1, 5, 4, 3)])
def test_through_save_and_load_image(tmp_path, shape):
    image = MetaTensor(torch.randn(shape), affine=torch.diag(torch.tensor([*SPACING, 1.0], dtype=torch.float64)))
    image.meta["filename_or_obj"] = "somewhere/cell.tif"
    save = SaveImaged("image", writer="monai_labelfx.data.TiffWriter", output_ext=".tif", output_dir=tmp_path)
    save({"image": image})
    again = LoadImage(reader="monai_labelfx.data.TiffReader", ensure_channel_first=True)(
        tmp_path / "cell/cell_trans.tif"
    )
    assert torch.equal(again.as_tensor(), image.as_tensor())
    assert np.allclose(again.pixdim[: len(shape) - 1], SPACING[: len(shape) - 1], rtol=1e-6, atol=0)


@pytest.mark.parametrize("shape", [(1, 5, 4), (2, 5, 4), (1, 5, 4, 3), (2, 5, 4, 3)])
def test_resample_undoes_a_flip_even_when_voxels_are_tiny(tmp_path, shape):
    array = ramp(*shape, dtype="int32")
    write(tmp_path / "a.tif", array, np.diag([*SPACING, 1.0]))
    image = EnsureChannelFirst()(LoadImage(reader=TiffReader())(tmp_path / "a.tif"))
    flipped = Flip(spatial_axis=0)(image)
    assert not torch.equal(flipped.as_tensor(), image.as_tensor())
    SaveImage(tmp_path, "", ".tif", writer=TiffWriter, resample=True, print_log=False)(flipped, filename=tmp_path / "b")
    assert np.array_equal(read(tmp_path / "b.tif")[0], read(tmp_path / "a.tif")[0])


@pytest.mark.sample_data
def test_real_volume_round_trip(tmp_path):
    folder = Path(os.environ["LABELFX_DATA"], "nuclei3d")
    for name in ("ovule_membrane_image.tif", "ovule_membrane_label.tif"):
        array, meta = read(folder / name)
        write(tmp_path / name, array[None], meta["affine"])
        again, again_meta = read(tmp_path / name)
        assert np.array_equal(again, array) and again.dtype == array.dtype
        assert np.allclose(again_meta["affine"], meta["affine"], rtol=1e-6, atol=0)
