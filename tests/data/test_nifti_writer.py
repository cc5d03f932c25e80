# SPDX-License-Identifier: Apache-2.0
"""NiftiWriter: what is written lies where it was read, in every orientation."""

from __future__ import annotations

import gzip

import nibabel
import numpy as np
import pytest
import torch
from dicom_samples import ORIENTATIONS, affine_of
from monai.data import MetaTensor, NibabelWriter
from monai.transforms import Flip, LoadImage, SaveImage, SpatialCrop

from monai_labelfx.data import NiftiWriter

SHAPES = {2: (5, 6), 3: (5, 6, 7)}


def save(folder, image, **keywords):
    writer = SaveImage(folder, "", ".nii.gz", writer="monai_labelfx.data.NiftiWriter", print_log=False, **keywords)
    writer(image, filename=f"{folder}/a")
    return nibabel.load(folder / "a.nii.gz")


def read(folder, orientation: str, shape: tuple[int, ...]) -> MetaTensor:
    values = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    nibabel.save(nibabel.Nifti1Image(values, affine_of(orientation)), folder / "source.nii")
    return LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(folder / "source.nii")


@pytest.mark.parametrize("resample", [True, False])
@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_round_trip(orientation, spatial_dims, resample, tmp_path):
    image = read(tmp_path, orientation, SHAPES[spatial_dims])
    file = save(tmp_path, image, resample=resample)
    assert np.array_equal(file.get_fdata(dtype=np.float32), image[0].numpy())
    assert np.allclose(file.affine, affine_of(orientation), atol=1e-5)
    assert int(file.header["sform_code"]) == 1
    if orientation == "tilted":
        assert int(file.header["qform_code"]) == 0  # a qform has no shear, and a wrong one would mislead
    else:
        assert np.allclose(file.get_qform(), file.affine, atol=1e-4)
    again = LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(tmp_path / "a.nii.gz")
    assert torch.equal(again.as_tensor(), image.as_tensor())
    assert torch.allclose(again.affine, image.affine, atol=1e-4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_moved_images_come_back(spatial_dims, tmp_path):
    image = read(tmp_path, "axial", SHAPES[spatial_dims])
    file = save(tmp_path, Flip(1)(image), resample=True)
    assert np.array_equal(file.get_fdata(dtype=np.float32), image[0].numpy())
    cropped = SpatialCrop(roi_start=(1, 1, 1), roi_end=(4, 4, 4))(image)
    file = save(tmp_path, cropped, resample=False)
    assert file.shape == (3,) * spatial_dims
    expected = affine_of("axial") @ [1, 1, float(spatial_dims == 3), 1]
    assert np.allclose(file.affine[:3, 3], expected[:3], atol=1e-5)


def test_channels_are_the_fourth_axis_and_are_not_mixed(tmp_path):
    image = read(tmp_path, "axial", SHAPES[3])
    pair = MetaTensor(torch.cat([image, -image]), meta=image.meta)
    file = save(tmp_path, Flip(0)(pair), resample=True)
    assert np.array_equal(np.moveaxis(file.get_fdata(dtype=np.float32), -1, 0), pair.numpy())
    plane = read(tmp_path, "axial", SHAPES[2])
    assert save(tmp_path, torch.cat([plane, plane])).shape == (5, 6, 1, 2)
    assert save(tmp_path, image[:, :, :, :1]).shape == (5, 6, 1)


def test_the_file_equals_that_of_monai_on_a_plain_volume(tmp_path):
    image = read(tmp_path, "oblique", SHAPES[3])
    ours = save(tmp_path, image)
    peer = NibabelWriter(output_dtype=np.float32)
    peer.set_data_array(image)
    peer.set_metadata(image.meta)
    peer.write(tmp_path / "peer.nii.gz")
    theirs = nibabel.load(tmp_path / "peer.nii.gz")
    assert np.array_equal(ours.get_fdata(), theirs.get_fdata()) and np.allclose(ours.affine, theirs.affine, atol=1e-6)
    for field in ("dim", "pixdim", "datatype", "qform_code", "sform_code", "descrip", "aux_file", "intent_name"):
        assert (
            np.allclose(ours.header[field], theirs.header[field])
            if field == "pixdim"
            else (np.array_equal(ours.header[field], theirs.header[field]))
        ), field


@pytest.mark.parametrize(
    ("values", "asked", "written"),
    [
        (torch.tensor([[[0.0, 2.4], [1.6, 3.0]]]), np.int16, np.int16),
        (torch.tensor([[[0, 70000], [1, 3]]]), np.int32, np.int32),
        (torch.tensor([[[0, 300], [1, 3]]], dtype=torch.int16), None, np.int16),
        (torch.tensor([[[True, False], [True, True]]]), None, np.uint8),
        (torch.rand(1, 2, 2, dtype=torch.float64), None, np.float32),
    ],
)
def test_dtypes(values, asked, written, tmp_path):
    file = save(tmp_path, values, output_dtype=asked)
    assert file.get_data_dtype() == written
    rounded = torch.round(values.double()) if np.dtype(written).kind in "iu" else values.float()
    assert np.array_equal(file.get_fdata(), rounded[0].numpy())
    header = gzip.decompress((tmp_path / "a.nii.gz").read_bytes())[:348]
    assert header[148:252].strip(b"\0") == b""  # descrip and aux_file


def test_what_cannot_be_written_leaves_nothing(tmp_path):
    writer = NiftiWriter(output_dtype=np.uint8)
    for array, sentence in (
        (torch.full((1, 4, 4), 300.0), "values 300.0 to 300.0 as uint8"),
        (torch.full((1, 4, 4), torch.nan), "as uint8"),
    ):
        writer.set_data_array(array)
        with pytest.raises(ValueError, match=sentence):
            writer.write(tmp_path / "a.nii.gz", verbose=False)
    with pytest.raises(ValueError, match="got the file name 'a.png'"):
        writer.write(tmp_path / "a.png", verbose=False)
    with pytest.raises(ValueError, match="2 or 3 spatial axes"):
        writer.set_data_array(torch.zeros(1, 2))
    with pytest.raises(ValueError, match="scale must be None"):
        NiftiWriter(scale=255)
    assert not list(tmp_path.iterdir())


def test_the_type_of_the_source(tmp_path):
    """What tests/test_ct_identity.py leaves: moved images, and what cannot be written."""
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.int16)
    values = np.random.default_rng(0).integers(-1000, 1000, SHAPES[3]).astype(np.int16)
    source = nibabel.Nifti1Image(values, affine_of("oblique"), header)
    source.header.set_slope_inter(0.5, -100)
    nibabel.save(source, tmp_path / "source.nii")
    image = LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(tmp_path / "source.nii")
    file = save(tmp_path, Flip(1)(image) + 0.2, output_dtype="source", resample=True)
    assert np.array_equal(file.dataobj.get_unscaled(), values) and file.get_data_dtype() == np.int16
    assert (file.dataobj.slope, file.dataobj.inter) == (0.5, -100)
    writer = NiftiWriter(output_dtype="source")
    for array, meta, sentence in (
        (torch.cat([image, image]), image.meta, "one channel with output_dtype 'source', got an array of shape .2, 5"),
        (image * torch.nan, image.meta, "holds 210 values that are NaN or infinite"),
        (image, {}, "does not know how its source stored its numbers"),
    ):
        writer.set_data_array(array)
        writer.set_metadata(meta, resample=False)
        with pytest.raises(ValueError, match=sentence):
            writer.write(tmp_path / "new.nii", verbose=False)
    assert not (tmp_path / "new.nii").exists()


def test_the_type_of_a_source_that_was_cached_and_collated(tmp_path):
    from monai.data import decollate_batch, list_data_collate

    from monai_labelfx.transforms import SanitizeMeta

    nibabel.save(nibabel.Nifti1Image(np.arange(24, dtype=np.uint16).reshape(2, 3, 4), np.eye(4)), tmp_path / "s.nii")
    image = LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(tmp_path / "s.nii")
    (again,) = decollate_batch(list_data_collate([{"image": SanitizeMeta()(image)}]))
    file = save(tmp_path, again["image"], output_dtype="source")
    assert file.get_data_dtype() == np.uint16 and np.array_equal(file.get_fdata(), image[0].numpy())
