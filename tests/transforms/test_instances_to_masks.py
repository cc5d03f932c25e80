# SPDX-License-Identifier: Apache-2.0
"""Masks, boxes and classes of what is left of the objects: against a loop, through pipelines, and what is refused."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from monai.data import CacheDataset, DataLoader, Dataset, MetaTensor
from monai.data.utils import no_collation
from monai.transforms import (
    Compose,
    Flip,
    Invertd,
    RandAffined,
    RandAxisFlipd,
    Resized,
    Rotate90d,
    Spacingd,
    SpatialCropd,
)

from monai_labelfx.engines import DetectionPrepareBatch
from monai_labelfx.transforms.attach_boxes import AttachBoxesd
from monai_labelfx.transforms.attach_instances import AttachInstancesd
from monai_labelfx.transforms.instances_to_masks import InstancesToMasks, InstancesToMasksd
from monai_labelfx.transforms.rand_crop_by_box import RandCropByBoxd

KEYS = ("image", "label")
AFFINE = torch.diag(torch.tensor([-2.0, 3.0, -1.5, 1.0], dtype=torch.float64))


def item_of(ndim: int, seed: int = 0, number: int = 6) -> dict:
    """Balls that may overlap, in two channels with gaps in the numbers; the image is the class of the last one + 1."""
    rng = np.random.default_rng(seed)
    shape = (24, 20, 16)[:ndim]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"))
    label, image = np.zeros((2, *shape), np.int32), np.zeros((1, *shape), np.float32)
    classes: list[list[int]] = [[], []]
    for index in range(number):
        channel = int(index >= number // 2)
        centre = [rng.integers(4, size - 4) for size in shape]
        inside = ((grid - np.reshape(centre, (-1, *[1] * ndim))) ** 2).sum(0) <= rng.integers(4, 14)
        inside &= label[channel] == 0
        if inside.any():
            label[channel][inside] = 3 * index + 2
            classes[channel].append(int(rng.integers(0, 4)))
    for channel in range(2):
        image[0][label[channel] > 0] = 1 + channel
    names = [{"filename_or_obj": f"folder/{name}.nii.gz"} for name in KEYS]
    return {
        "image": MetaTensor(torch.from_numpy(image), affine=AFFINE, meta=names[0]),
        "label": MetaTensor(torch.from_numpy(label).float(), affine=AFFINE, meta=names[1]),
        "box_label": classes[0] + classes[1],
    }


def naive(label: np.ndarray, min_size: int = 1) -> tuple[np.ndarray, np.ndarray, list[int]]:
    """One object and one voxel after the other."""
    masks, boxes, numbers = [], [], []
    for number in sorted(set(label.ravel().tolist()) - {0}):
        mask = (label == number).any(0)
        if mask.sum() >= min_size:
            places = np.argwhere(mask)
            masks.append(mask)
            boxes.append([*places.min(0), *(places.max(0) + 1)])
            numbers.append(number)
    shape = label.shape[1:]
    number = len(numbers)
    return np.array(masks).reshape(number, *shape), np.array(boxes, np.float32).reshape(number, 2 * len(shape)), numbers


MAPS = st.sampled_from([(7,), (4, 5), (3, 4, 2), (0, 3)]).flatmap(
    lambda shape: st.lists(arrays(np.int64, shape, elements=st.sampled_from([0, 0, 1, 2, 3])), min_size=1, max_size=3)
)


@settings(max_examples=60, deadline=None)
@given(channels=MAPS, factor=st.sampled_from([1, 7, 10**9]), min_size=st.integers(1, 3))
def test_against_a_loop(channels, factor, min_size):
    label = np.stack([np.where(c, (c + 10 * k) * factor, 0) for k, c in enumerate(channels)][::-1])
    before = label.copy()
    wanted = naive(label, min_size)
    for given_label in (label, torch.from_numpy(label.copy()), MetaTensor(torch.from_numpy(label.copy()))):
        masks, boxes, numbers = InstancesToMasks(min_size=min_size)(given_label)
        assert masks.dtype == torch.bool and boxes.dtype == torch.float32 and numbers.dtype == torch.int64
        assert np.array_equal(masks, wanted[0]) and np.array_equal(boxes, wanted[1]) and numbers.tolist() == wanted[2]
        assert masks.shape == wanted[0].shape and boxes.shape == wanted[1].shape
        assert all(isinstance(one, MetaTensor) is isinstance(given_label, MetaTensor) for one in (masks, boxes))
    assert np.array_equal(label, before)


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_same_objects_as_attach_boxes(ndim):
    for seed in range(4):
        item = item_of(ndim, seed)
        boxes = AttachBoxesd(mask_key="label", mask_kind="instances")(item)
        masks = Compose([AttachInstancesd(), InstancesToMasksd()])(item)
        assert len(masks["box"]) > 3 and masks["mask"].shape == (len(masks["box"]), *item["image"].shape[1:])
        for key in ("box", "box_label"):
            assert torch.equal(torch.as_tensor(masks[key]), torch.as_tensor(boxes[key])), key
            assert masks[key].dtype == boxes[key].dtype and type(masks[key]) is type(boxes[key])
        assert torch.equal(masks["box"].affine, boxes["box"].affine)
        assert masks["box"].meta["spatial_shape"] == boxes["box"].meta["spatial_shape"]
        del item["box_label"]
        both = [AttachBoxesd(mask_key="label")(item), Compose([AttachInstancesd(), InstancesToMasksd()])(item)]
        assert both[0]["box_label"].tolist() == both[1]["box_label"].tolist()


@pytest.mark.parametrize("kind", ["classes", "masks"])
def test_the_same_components_as_attach_boxes(kind):
    item = item_of(3)
    item["label"] = item["label"][:1] if kind == "classes" else item["label"]
    boxes = AttachBoxesd(mask_key="label", mask_kind=kind, min_size=9)(item)
    attach = AttachInstancesd(kind=kind, min_size=9)
    masks = Compose([attach, InstancesToMasksd()])(item)
    assert boxes["box"].tolist() == masks["box"].tolist() and len(boxes["box"]) > 1
    assert boxes["box_label"].tolist() == masks["box_label"].tolist()


@pytest.mark.parametrize("ndim", [2, 3])
def test_meta_grid_and_item(ndim):
    item = AttachInstancesd()(item_of(ndim))
    before = copy.deepcopy(item)
    flipped = item | {"label": Flip(0)(item["label"]), "image": Flip(0)(item["image"])}
    for entry in (item, flipped):
        out = InstancesToMasksd()(entry)
        assert sorted(out) == ["box", "box_label", "image", "mask"] and out["image"] is entry["image"]
        assert torch.equal(out["mask"].affine, entry["image"].affine)
        assert torch.equal(out["box"].affine, entry["image"].affine) and out["box"].meta["spatial_shape"]
        assert out["mask"].meta["filename_or_obj"].endswith("label.nii.gz")
        assert "instance_volumes" not in out["mask"].meta and "instance_volumes" in entry["label"].meta
    assert item.keys() == before.keys() and torch.equal(item["label"], before["label"])
    named = InstancesToMasksd("l", mask_key="m", box_key="b", label_key="c")(
        {"l": item["label"], "c": item["box_label"]}
    )
    assert sorted(named) == ["b", "c", "m"]


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_way_back(ndim):
    item = AttachInstancesd()(item_of(ndim))
    chain = Compose([Rotate90d(KEYS), RandAxisFlipd(KEYS, prob=1.0)]).set_random_state(0)
    out = InstancesToMasksd()(chain(item))
    back = Invertd("mask", chain, orig_keys="image")(out)["mask"]
    assert torch.equal(back > 0.5, InstancesToMasksd()(item)["mask"])


@pytest.mark.parametrize("kind", [list, np.asarray, torch.as_tensor])
def test_classes_stay_in_their_container(kind):
    label = np.zeros((1, 6, 6), np.uint8)
    label[0, 1:3, 1:3], label[0, 4, 4] = 1, 3
    out = InstancesToMasksd(min_size=2)({"label": label, "box_label": kind([5, 6, 7])})
    assert list(out["box_label"]) == [5] and type(out["box_label"]) is type(kind([5, 6, 7]))
    assert type(out["mask"]) is torch.Tensor and type(out["box"]) is torch.Tensor


@pytest.mark.parametrize("ndim", [2, 3])
def test_how_much_of_an_object_is_left(ndim):
    label = torch.zeros(1, *(16, 12, 10)[:ndim])
    label[0, 0:8, 2:6], label[0, 9:14, 2:6] = 1, 2
    item = AttachInstancesd()(
        {"image": MetaTensor(torch.zeros_like(label), affine=AFFINE), "label": label, "box_label": [3, 4]}
    )
    crop = SpatialCropd(KEYS, roi_start=(6,) + (0,) * (ndim - 1), roi_end=(16, 12, 10)[:ndim])  # 1 / 4 of the first
    coarser = Spacingd(KEYS, (4.0, 6.0, 3.0)[:ndim], mode=("bilinear", "nearest"))
    finer = Resized(
        KEYS, [3 * n for n in (16, 12, 10)[:ndim]], mode=("trilinear" if ndim == 3 else "bilinear", "nearest")
    )
    for share, wanted in ((0.0, [3, 4]), (0.2, [3, 4]), (0.3, [4]), (0.95, [4])):
        for chain in ([crop], [finer, SpatialCropd(KEYS, roi_start=(18,) + (0,) * (ndim - 1), roi_end=(99,) * ndim)]):
            assert Compose([*chain, InstancesToMasksd(min_visible=share)])(item)["box_label"].tolist() == wanted
        whole = Compose([coarser, InstancesToMasksd(min_visible=share)])(item)
        assert whole["box_label"].tolist() == [3, 4] or share > 0.9, "resampling is no loss"
    few = Compose([crop, InstancesToMasksd(min_size=2 * 4 * (10 if ndim == 3 else 1) + 1)])(item)
    assert few["box_label"].tolist() == [4]
    exact = Compose([Rotate90d(KEYS), InstancesToMasksd(min_visible=1)])(item)
    assert exact["box_label"].tolist() == [3, 4]


@pytest.mark.parametrize("ndim", [2, 3])
def test_nothing_is_left(ndim):
    item = AttachInstancesd()(item_of(ndim, number=0))
    gone = item_of(ndim) | {"box_label": [1] * len(item_of(ndim)["box_label"])}
    gone = SpatialCropd(KEYS, roi_start=(0,) * ndim, roi_end=(1,) * ndim)(AttachInstancesd()(gone))
    for entry in (item, gone):
        for label in (entry["label"], entry["label"].as_tensor(), entry["label"].numpy()):
            out = InstancesToMasksd()(entry | {"label": label})
            assert out["mask"].shape == (0, *entry["image"].shape[1:]) and out["mask"].dtype == torch.bool
            assert out["box"].shape == (0, 2 * ndim) and out["box"].dtype == torch.float32
            assert out["box_label"].shape == (0,) and out["box_label"].dtype == torch.int64
        (target,) = DetectionPrepareBatch(mask_key="mask")([InstancesToMasksd(min_visible=0.5)(entry)])[1]
        assert target["masks"].shape == (0, *entry["image"].shape[1:]) and target["boxes"].shape == (0, 2 * ndim)


def random_chain(ndim: int, lazy: bool = False) -> Compose:
    overrides = {
        key: {"mode": mode, "padding_mode": "zeros"} for key, mode in zip(KEYS, ("bilinear", "nearest"), strict=True)
    }
    return Compose(
        [
            AttachInstancesd(),
            RandAxisFlipd(KEYS, prob=0.5),
            RandAffined(
                KEYS,
                prob=1.0,
                rotate_range=0.6 if ndim == 2 else (0.6, 0.2, 0.3),
                scale_range=[0.2] * ndim,
                translate_range=[3.0] * ndim,
                mode=("bilinear", "nearest"),
                padding_mode="zeros",
            ),
            RandCropByBoxd(KEYS, instance_key="label", roi_size=(14, 12, 11)[:ndim], object_probability=1.0),
            InstancesToMasksd(min_visible=0.1, drop_label=False),
        ],
        lazy=lazy,
        overrides=overrides if lazy else None,
    )


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_random_pipelines_keep_image_and_masks_together(ndim, lazy):
    for seed in range(4):
        item = item_of(ndim, seed)
        out = random_chain(ndim, lazy=lazy).set_random_state(seed)(item)
        masks, boxes = out["mask"].as_tensor(), out["box"].as_tensor()
        assert len(masks) == len(boxes) == len(out["box_label"]) > 0
        assert masks.shape[1:] == out["image"].shape[1:] and torch.equal(out["mask"].affine, out["image"].affine)
        wanted = naive(out["label"].numpy())
        assert np.array_equal(masks, wanted[0]) and np.array_equal(boxes, wanted[1]), "tight behind rotations too"
        assert wanted[2] == list(range(1, len(masks) + 1)) and len(out["label"].meta["instance_volumes"]) == len(masks)
        inside, image = masks.any(0), out["image"].as_tensor()[0]
        core = torch.nn.functional.max_pool3d(
            (~inside).float().reshape(1, 1, *([1] * (3 - ndim)), *inside.shape), 3, 1, 1
        )
        core = core.reshape(inside.shape) == 0  # off the border, which bilinear interpolation makes soft
        assert (image[core] > 0.5).all() and (image[~inside].mean() if (~inside).any() else 0) < 0.3
        (target,) = DetectionPrepareBatch(mask_key="mask")([out])[1]
        assert torch.equal(target["masks"], masks) and torch.equal(target["boxes"], boxes)
        again = InstancesToMasksd()(out)
        assert torch.equal(again["mask"].as_tensor(), masks) and torch.equal(again["box_label"], out["box_label"])


@pytest.mark.parametrize("ndim", [2, 3])
def test_the_seed_decides_in_workers_and_behind_a_cache(ndim):
    items = [item_of(ndim, seed) for seed in range(3)]
    first, second = (random_chain(ndim).set_random_state(5)(items[0]) for _ in range(2))
    assert torch.equal(first["mask"], second["mask"]) and torch.equal(first["box"], second["box"])
    cached = CacheDataset(items, random_chain(ndim).set_random_state(1), progress=False, copy_cache=False)
    before = copy.deepcopy(cached._cache[0])
    draws = [cached[0]["image"].affine for _ in range(3)]
    assert not torch.equal(draws[0], draws[1]) and torch.equal(cached._cache[0]["label"], before["label"])
    assert cached._cache[0]["label"].meta["instance_volumes"] == before["label"].meta["instance_volumes"]
    runs = []
    for _ in range(2):
        dataset = Dataset(items, pickle.loads(pickle.dumps(random_chain(ndim).set_random_state(2))))
        torch.manual_seed(0)
        loader = DataLoader(dataset, batch_size=3, num_workers=1, collate_fn=no_collation)
        runs.append(next(iter(loader)))
    assert all(torch.equal(one["mask"], two["mask"]) for one, two in zip(*runs, strict=True))
    targets = DetectionPrepareBatch(mask_key="mask")(runs[0])[1]
    assert all(len(target["masks"]) == len(target["boxes"]) for target in targets)


def test_bad_input():
    def refused(match: str, label, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            InstancesToMasks(**keywords)(label)
        assert "\n" not in str(caught.value)

    item = AttachInstancesd()(item_of(2))
    label = item["label"]
    named = "the label map 'folder/label.nii.gz'"
    refused(rf"{named} .to be moved with the mode 'nearest'. must hold whole numbers, got torch.float32", label * 0.5)
    refused("must hold 0 .background. and positive labels, got -", -label)
    refused(r"the label map must have the shape \(C, \*spatial\), got \(3,\)", torch.ones(3))
    refused(r"\(C, \*spatial\), got \(0, 4, 4\)", np.zeros((0, 4, 4)))
    refused("must have each number in one channel, got 1 in two of them: AttachInstancesd numbers", label > 0)
    refused("has 1 pending operations: call InstancesToMasks in a Compose", Flip(0, lazy=True)(label))
    refused(
        "must have the volumes of its objects in meta.'instance_volumes'., got none", label.as_tensor(), min_visible=0.1
    )
    refused(r"got 6 for number 16", label.where(label != 2, torch.tensor(16)))
    refused("min_visible must be a share of the object of 0 to 1, got 2", label, min_visible=2)
    refused("min_size must be a number of voxels, 1 or above, got 0", label, min_size=0)
    with pytest.raises(ValueError, match="keys must be one key"):
        InstancesToMasksd(("a", "b"))
    with pytest.raises(KeyError, match="InstancesToMasksd: the item has no 'box_label'"):
        InstancesToMasksd()({"label": label})
    with pytest.raises(ValueError, match="must have objects 1 to 2, one for each entry of 'box_label', got number 6"):
        InstancesToMasksd()({"label": label, "box_label": [0, 1]})
    with pytest.raises(KeyError, match="label"):
        InstancesToMasksd()({"box_label": [0, 1]})
    assert InstancesToMasksd(allow_missing_keys=True)({"image": 1}) == {"image": 1}
