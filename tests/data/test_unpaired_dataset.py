# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.data.utils import set_rnd
from monai.transforms import Compose, RandGaussianNoised, RandSpatialCropSamplesd, ScaleIntensityRanged

from monai_labelfx.data.unpaired_dataset import UnpairedDataset


def items(count: int, value: float) -> list[dict]:
    return [
        {
            "image": MetaTensor(torch.full((1, 2, 3), value + n), meta={"filename_or_obj": f"/home/secret/ct{n}.dcm"}),
            "foreground": torch.ones(1, 2, 3, dtype=torch.bool),
            "patient": f"p{n}",
        }
        for n in range(count)
    ]


def test_items_of_both_domains_side_by_side():
    pairs = UnpairedDataset(Dataset(items(2, 0)), Dataset(items(5, 100)))
    item = pairs[1, 4]
    assert item["low"].unique().tolist() == [1.0] and item["high"].unique().tolist() == [104.0]
    assert set(item) == {"low", "high", "low_file", "high_file"} and type(item["low"]) is torch.Tensor
    assert (item["low_file"], item["high_file"]) == ("ct1.dcm", "ct4.dcm") and len(pairs) == 5
    batch = next(iter(DataLoader(pairs, batch_size=2, sampler=[(0, 3), (1, 0)])))
    assert batch["high"][:, 0, 0, 0].tolist() == [103.0, 100.0] and batch["high_file"] == ["ct3.dcm", "ct0.dcm"]


def test_other_keys_and_images_without_names():
    data = [{"ct": torch.zeros(1, 2), "mask": [1, 0]}]
    pairs = UnpairedDataset(Dataset(data), Dataset(data), {"mask": "_foreground", "ct": ""})
    item = pairs[0, 0]
    assert set(item) == {f"{d}{s}" for d in ("low", "high") for s in ("", "_foreground", "_file")}
    assert item["low_foreground"].tolist() == [1, 0] and item["low_file"] == ""


def test_random_transforms_of_both_domains_are_seeded():
    def drawn(seed: int, cached: bool) -> list[torch.Tensor]:
        scale = ScaleIntensityRanged("image", 0, 1, 0, 1)
        make = (lambda *a: CacheDataset(*a, progress=False)) if cached else Dataset
        low, high = (
            make(items(3, 0), Compose([scale, RandGaussianNoised("image", prob=1.0, std=1.0)])) for _ in range(2)
        )
        pairs = UnpairedDataset(low, high)
        set_rnd(pairs, seed)
        return [pairs[n, n][name] for n in range(3) for name in ("low", "high")]

    for cached in (False, True):
        first, again, other = drawn(1, cached), drawn(1, cached), drawn(2, cached)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
        assert not any(torch.equal(a, b) for a, b in zip(first, other, strict=True))
        assert not any(torch.equal(low, high) for low, high in zip(first[::2], first[1::2], strict=True))


def test_bad_input():
    good = Dataset(items(2, 0))
    pairs = UnpairedDataset(good, good)
    with pytest.raises(TypeError, match="the index must be a pair .* got 1: give the loader an UnpairedSampler"):
        pairs[1]
    with pytest.raises(TypeError, match="must be a pair"):
        next(iter(DataLoader(pairs)))
    with pytest.raises(KeyError, match="item 1 of high has no 'ct'; it has \\['foreground', 'image', 'patient'\\]"):
        UnpairedDataset(Dataset([{"ct": torch.ones(1)}] * 2), good, {"ct": ""})[0, 1]
    crops = Dataset(items(1, 0), RandSpatialCropSamplesd("image", (1, 1), num_samples=2, random_size=False))
    with pytest.raises(TypeError, match="item 0 of low is a list, expected one mapping"):
        UnpairedDataset(crops, good)[0, 0]
    with pytest.raises(ValueError, match="high holds no item"):
        UnpairedDataset(good, Dataset([]))
    for keys in ({}, {"image": "_x"}, {"image": "", "foreground": ""}, {"image": "", "foreground": "_file"}):
        with pytest.raises(ValueError, match="keys must give one key the suffix ''"):
            UnpairedDataset(good, good, keys)
