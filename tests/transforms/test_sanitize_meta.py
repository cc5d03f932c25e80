# SPDX-License-Identifier: Apache-2.0
"""SanitizeMeta: a persistent cache that is read back, with a working inverse, for each kind of file."""

from __future__ import annotations

import enum
import io
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import tifffile
import torch
from monai.data import MetaTensor, PersistentDataset
from monai.transforms import (
    Compose,
    EnsureChannelFirstd,
    Flipd,
    Invertd,
    Lambdad,
    LoadImaged,
    RandGaussianNoised,
    Rotate90d,
    Spacingd,
    SpatialPadd,
)
from monai.utils import MetaKeys, SpaceKeys, TraceKeys
from PIL import Image
from pydicom.data import get_testdata_file
from testers import check_transform, picture

from monai_labelfx.data import allow_safe_globals
from monai_labelfx.transforms import SanitizeMeta, SanitizeMetad


def write(folder: Path, kind: str) -> str:
    array = np.random.default_rng(0).integers(0, 200, (12, 10, 8), dtype=np.uint8)
    path = folder / f"image.{kind}"
    if kind in ("nii", "nii.gz"):
        affine = np.array([[0, -0.7, 0, 3], [0.9, 0, 0, -2], [0, 0, 2.5, 1], [0, 0, 0, 1.0]])
        nib.save(nib.Nifti1Image(array, affine), path)
    elif kind == "png":
        Image.fromarray(array[..., 0].T).save(path)
    elif kind == "tif":
        tifffile.imwrite(path, array.T, imagej=True, metadata={"axes": "ZYX", "spacing": 2.0, "unit": "mm"})
    else:
        shutil.copy(get_testdata_file("CT_small.dcm"), path)
    return str(path)


def pipeline(calls: list, sanitize: bool, extra: list) -> Compose:
    steps = [
        LoadImaged("image", reader="monai_labelfx.data.AutoReader"),
        EnsureChannelFirstd("image"),
        Lambdad("image", lambda image: (calls.append(1), image)[1]),
        Flipd("image", 0),
        Rotate90d("image"),
        *extra,
        SpatialPadd("image", 20),
    ]
    random = [RandGaussianNoised("image", prob=0.0)]
    return Compose(steps + ([SanitizeMetad("image")] if sanitize else []) + random)


@pytest.mark.parametrize("kind", ["nii", "nii.gz", "png", "tif", "dcm"])
def test_three_accesses_are_one_computation_and_the_inverse_works(tmp_path, kind):
    allow_safe_globals()
    path, calls = write(tmp_path, kind), []
    extra = [] if kind == "png" else [Spacingd("image", 1.5, mode="nearest")]
    if kind in ("nii", "nii.gz", "tif"):
        extra = [Spacingd("image", (1.5, 1.1, 2.2), mode="nearest")]
    transform = pipeline(calls, True, extra)
    data = PersistentDataset([{"image": path}], transform, tmp_path / "cache", track_meta=True)
    results = [data[0]["image"] for _ in range(3)]
    assert len(calls) == 1
    original = EnsureChannelFirstd("image")(
        LoadImaged("image", reader="monai_labelfx.data.AutoReader")({"image": path})
    )
    for result in results[1:]:
        assert isinstance(result, MetaTensor) and torch.equal(result.as_tensor(), results[0].as_tensor())
        assert torch.equal(result.affine, results[0].affine)
        inverted = Invertd("image", transform, orig_keys="image", nearest_interp=True)({"image": result})["image"]
        assert inverted.shape == original["image"].shape
        assert torch.allclose(inverted.affine, original["image"].affine, atol=1e-6)
        if not extra:
            assert torch.equal(inverted.as_tensor(), original["image"].as_tensor())


def test_without_it_the_cache_never_hits(tmp_path):
    allow_safe_globals()
    calls: list = []
    data = PersistentDataset(
        [{"image": write(tmp_path, "nii")}], pipeline(calls, False, []), tmp_path / "cache", track_meta=True
    )
    with pytest.warns(UserWarning, match="Corrupt cache file"):
        for _ in range(3):
            data[0]
    assert len(calls) == 3


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_contract(spatial_dims):
    check_transform(SanitizeMeta, SanitizeMetad, {}, picture(spatial_dims))


def test_every_kind_of_value_becomes_plain_and_loads_safely():
    class Own(enum.Enum):
        A = 3

    class Words(list):
        pass

    meta = {
        "array": np.arange(3, dtype=">i2"),
        "zero_axes": np.array(4.0),
        "bytes": np.array(b"text"),
        "texts": np.array(["a", "b"]),
        "long": np.array([1.5], dtype=np.longdouble),
        "scalar": np.float32(2.5),
        "flag": np.bool_(True),
        MetaKeys.SPACE: SpaceKeys.RAS,
        TraceKeys.NONE: [Own.A, (np.int64(1), None)],
        "nested": {"words": Words(["x", 1]), "path": Path("a/b")},
        "dtype": torch.float32,
        "object": object,
    }
    image = MetaTensor(torch.zeros(1, 2, 2), meta=dict(meta))
    result = SanitizeMeta()(image)
    buffer = io.BytesIO()
    torch.save(result, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=True).meta
    assert loaded["array"].tolist() == [0, 1, 2] and loaded["zero_axes"] == 4.0 and loaded["bytes"] == "text"
    assert loaded["texts"] == ["a", "b"] and loaded["long"].tolist() == [1.5] and loaded["scalar"] == 2.5
    assert loaded["flag"] is True and loaded["space"] == "RAS" and loaded["none"] == [3, (1, None)]
    assert loaded["nested"] == {"words": ["x", 1], "path": str(Path("a/b"))} and loaded["dtype"] is torch.float32
    assert "object" in loaded["object"]
    assert isinstance(image.meta["array"], np.ndarray) and image.meta[MetaKeys.SPACE] is SpaceKeys.RAS


def test_data_is_not_copied():
    image = MetaTensor(torch.zeros(1, 2, 2))
    assert SanitizeMeta()(image).data_ptr() == image.data_ptr()
