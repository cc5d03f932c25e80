# SPDX-License-Identifier: Apache-2.0
"""FillMissingLabeld: labelled and unlabelled items in one batch."""

from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.transforms import Compose, Flipd, RandFlipd
from testers import AFFINE, containers, picture

from monai_labelfx.transforms import FillMissingLabeld


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("container", ["numpy", "tensor", "metatensor"])
@pytest.mark.parametrize("channels", [1, 3])
def test_missing_label(spatial_dims, container, channels):
    image = containers(picture(spatial_dims, channels=channels))[container]
    item = {"image": image}
    out = FillMissingLabeld("label")(item)
    assert set(item) == {"image"} and type(out["label"]) is type(image)
    assert tuple(out["label"].shape) == (1, *image.shape[1:]) and not out["label"].any()
    assert str(out["label"].dtype).endswith("int64")
    assert out["has_label"].dtype == torch.bool and out["has_label"].shape == () and not out["has_label"]
    if container == "metatensor":
        assert torch.equal(out["label"].affine, image.affine)


@pytest.mark.parametrize("container", ["numpy", "tensor", "metatensor"])
@pytest.mark.parametrize("label_container", ["numpy", "tensor", "metatensor"])
def test_present_label(container, label_container):
    image = containers(picture(2))[container]
    label = containers(np.full((1, 16, 17), 3, "float32"))[label_container]
    out = FillMissingLabeld("label")({"image": image, "label": label})
    assert type(out["label"]) is type(image) and (np.asarray(out["label"]) == 3).all() and out["has_label"]
    assert str(out["label"].dtype).endswith("int64") and str(label.dtype).endswith("float32")


def test_a_label_keeps_its_own_meta():
    label = MetaTensor(torch.ones(1, 4, 4), meta={"filename_or_obj": "label.tif"}, affine=AFFINE)
    image = MetaTensor(torch.ones(1, 4, 4), meta={"filename_or_obj": "image.tif"})
    out = FillMissingLabeld("label")({"image": image, "label": label})["label"]
    assert out.meta["filename_or_obj"] == "label.tif" and torch.equal(out.affine, label.affine)


def test_what_the_item_says_stays():
    image = torch.rand(1, 4, 4)
    empty = FillMissingLabeld("label")({"image": image, "has_label": True})
    assert empty["has_label"] and not empty["label"].any()
    hidden = FillMissingLabeld("label")(
        {"image": image, "label": torch.ones(1, 4, 4), "has_label": torch.tensor(False)}
    )
    assert not hidden["has_label"] and hidden["label"].all()
    none = FillMissingLabeld("label")({"image": image, "label": None})
    assert not none["has_label"] and none["label"].shape == (1, 4, 4)


def test_mixed_batches_collate():
    items = [
        {"image": MetaTensor(torch.rand(1, 4, 5), meta={"filename_or_obj": f"{number}.png"}, affine=AFFINE)}
        for number in range(4)
    ]
    items[1]["label"] = MetaTensor(torch.ones(1, 4, 5), meta={"filename_or_obj": "l.png", "only_here": 1})
    items[3]["label"] = torch.ones(1, 4, 5)
    transform = Compose([FillMissingLabeld("label"), Flipd(["image", "label"], 0), RandFlipd(["image", "label"], 1.0)])
    for workers in (0, 2):
        batch = next(iter(DataLoader(Dataset(items, transform), batch_size=4, num_workers=workers)))
        assert batch["label"].shape == (4, 1, 4, 5) and batch["label"].dtype == torch.int64
        assert isinstance(batch["label"], MetaTensor)
        assert batch["has_label"].tolist() == [False, True, False, True]
        assert batch["label"].sum(dim=(1, 2, 3)).tolist() == [0, 20, 0, 20]


def test_several_keys_cache_and_pickle():
    transform = pickle.loads(pickle.dumps(FillMissingLabeld(["label", "mask"], reference_key="picture")))
    data = CacheDataset([{"picture": picture(3)}], transform, progress=False)
    assert {"label", "mask", "has_label", "has_mask"} < set(data[0])


def test_bad_reference():
    with pytest.raises(KeyError, match="has no 'image'; keys"):
        FillMissingLabeld("label")({"label": torch.ones(1, 2, 2)})
    with pytest.raises(ValueError, match=r"image must be \(C, \*spatial\), got shape \(5,\)"):
        FillMissingLabeld("label")({"image": torch.ones(5)})
