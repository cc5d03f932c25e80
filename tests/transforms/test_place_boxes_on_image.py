# SPDX-License-Identifier: Apache-2.0
"""Boxes that follow their image: against moved masks, the world, lazily and back."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import (
    Affined,
    Compose,
    Flipd,
    Invertd,
    Orientationd,
    RandFlipd,
    RandRotate90d,
    RandSpatialCropd,
    Resized,
    Rotate90d,
    Rotated,
    Spacingd,
    SpatialCropd,
    SpatialPadd,
    Zoomd,
)

from monai_labelfx.ops.box_affine import boxes_to_world, masks_to_boxes
from monai_labelfx.transforms.place_boxes_on_image import PlaceBoxesOnImage, PlaceBoxesOnImaged

SHAPE = (24, 20, 16)


def affine_of(seed: int, *, oblique: bool = False) -> torch.Tensor:
    """4 x 4 with negative diagonals and swapped axes; ``oblique``: sheared as well."""
    generator = np.random.default_rng(seed)
    matrix = np.eye(4)
    matrix[:3, :3] = np.eye(3) * generator.uniform(0.5, 3, 3) * generator.choice([-1, 1], 3)
    if oblique:
        matrix[:3, :3] += generator.normal(0, 0.2, (3, 3))
    matrix[:3, 3] = generator.normal(0, 40, 3)
    return torch.as_tensor(matrix)


def item_of(ndim: int, seed: int = 0, number: int = 4, **keywords) -> dict:
    """Whole-numbered boxes, an image and the mask of each box as channels of one label map, all on one affine."""
    generator = np.random.default_rng(seed)
    shape = SHAPE[:ndim]
    low = np.stack([generator.integers(1, size - 8, number) for size in shape], 1)
    boxes = np.concatenate((low, low + generator.integers(2, 7, (number, ndim))), 1)
    masks = torch.zeros(number, *shape)
    for mask, box in zip(masks, boxes, strict=True):
        mask[tuple(slice(*ends) for ends in zip(box[:ndim], box[ndim:], strict=True))] = 1
    affine = affine_of(seed, **keywords)
    if ndim == 2:  # a picture in space: its plane is that of the first two axes of the world
        affine[:2, 2] = affine[2, :2] = 0
    return {
        "image": MetaTensor(masks.sum(0, keepdim=True), affine=affine),
        "mask": MetaTensor(masks, affine=affine),
        "box": MetaTensor(torch.as_tensor(boxes, dtype=torch.float32), affine=affine),
        "box_label": torch.arange(number),
    }


KEYS = ("image", "mask")
EXACT = {
    "flip": [Flipd(KEYS, 0)],
    "flips": [Flipd(KEYS, (0, 1))],
    "turn": [Rotate90d(KEYS, 1, (0, 1))],
    "crop": [SpatialCropd(KEYS, roi_start=(5, 4, 3), roi_end=(18, 20, 14))],
    "pad": [SpatialPadd(KEYS, (40, 31, 29))],
    "zoom": [Zoomd(KEYS, 2.0, mode="nearest", keep_size=False)],
    "resize": [Resized(KEYS, (72, 60, 48), mode="nearest")],
    "chain": [
        Flipd(KEYS, 1),
        Rotate90d(KEYS, 3, (0, 1)),
        SpatialPadd(KEYS, (30, 31, 29)),
        Zoomd(KEYS, 3.0, mode="nearest", keep_size=False),
        Flipd(KEYS, 0),
        SpatialCropd(KEYS, roi_start=(32, 20, 31), roi_end=(64, 52, 61)),
    ],
}


def cut_to(ndim: int, steps: list) -> list:
    """The steps, with sizes of two axes for a picture."""
    if ndim == 3:
        return steps
    smaller = []
    for step in steps:
        if isinstance(step, SpatialCropd):
            start, end = zip(*((part.start, part.stop) for part in step.cropper.slices[:2]), strict=True)
            step = SpatialCropd(KEYS, roi_start=start, roi_end=end)
        elif isinstance(step, SpatialPadd):
            step = SpatialPadd(KEYS, step.padder.spatial_size[:2])
        elif isinstance(step, Resized):
            step = Resized(KEYS, (72, 60), mode="nearest")
        smaller.append(step)
    return smaller


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("name", EXACT)
def test_exact_maps_agree_with_the_boxes_of_moved_masks(ndim, lazy, name):
    steps = cut_to(ndim, EXACT[name])
    for seed in range(3):
        item = item_of(ndim, seed)
        before = {key: value.clone() for key, value in item.items()}
        nearest = {key: {"mode": "nearest", "padding_mode": "zeros"} for key in KEYS} if lazy else None
        out = Compose([*steps, PlaceBoxesOnImaged("box")], lazy=lazy, overrides=nearest)(item)
        wanted = masks_to_boxes(out["mask"].as_subclass(torch.Tensor) > 0.5)
        seen = wanted.any(1)
        torch.testing.assert_close(out["box"].as_subclass(torch.Tensor), wanted[seen], rtol=0, atol=1e-4)
        assert out["box_label"].tolist() == seen.nonzero().ravel().tolist()
        torch.testing.assert_close(out["box"].affine, out["image"].affine.to(torch.float64))
        assert all(torch.equal(item[key], value) for key, value in before.items())


def test_a_pad_behind_a_crop_needs_the_boxes_placed_in_between():
    crop, pad = SpatialCropd(KEYS, roi_start=(9, 8, 6), roi_end=(14, 12, 10)), SpatialPadd(KEYS, (30, 30, 30))
    for seed in range(3):
        out = Compose([crop, PlaceBoxesOnImaged("box"), pad, PlaceBoxesOnImaged("box")])(item_of(3, seed, number=9))
        wanted = masks_to_boxes(out["mask"].as_subclass(torch.Tensor) > 0.5)
        assert not wanted.any(1).all() and torch.equal(out["box"].as_subclass(torch.Tensor), wanted[wanted.any(1)])
        once = Compose([crop, pad, PlaceBoxesOnImaged("box")])(item_of(3, seed, number=9))
        assert len(once["box"]) > len(out["box"])


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_random_transforms_before_a_fixed_one(ndim, lazy):
    for seed in range(6):
        chain = Compose(
            [
                RandFlipd(KEYS, prob=0.5, spatial_axis=0),
                RandRotate90d(KEYS, prob=0.7),
                RandSpatialCropd(KEYS, (14, 14, 12)[:ndim], random_size=False),
                PlaceBoxesOnImaged("box"),
            ],
            lazy=lazy,
        ).set_random_state(seed)
        out = chain(item_of(ndim, seed, number=8))
        wanted = masks_to_boxes(out["mask"].as_subclass(torch.Tensor) > 0.5)
        assert torch.equal(out["box"].as_subclass(torch.Tensor), wanted[out["box_label"]])
        assert out["box_label"].tolist() == wanted.any(1).nonzero().ravel().tolist()


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_any_affine_is_the_hull_of_corners_through_the_world(ndim, lazy):
    """What the affines say, corner by corner in float64, for spacings, oblique affines, rotations and shears."""
    sides = (1.3, 0.7, 2.1)[:ndim]
    chains = [
        [Spacingd("image", sides)],
        [Rotated("image", 0.3 if ndim == 2 else (0.2, -0.1, 0.3), keep_size=False)],
        [
            Affined(
                "image", rotate_params=0.2, scale_params=(1.2, 0.8, 1.1)[:ndim], translate_params=(1.5, -2.25, 3)[:ndim]
            )
        ],
        [Zoomd("image", 0.83), Flipd("image", 0), Rotated("image", 0.1 if ndim == 2 else (0, 0.1, 0))],
    ]
    for seed, chain in itertools.product(range(2), chains):
        item = item_of(ndim, seed, oblique=ndim == 3)
        out = Compose([*chain, PlaceBoxesOnImaged("box", clip=False, label_keys=())], lazy=lazy)(item)
        then, now = np.asarray(item["box"].affine), np.asarray(out["image"].affine)
        if len(now) == 3:  # lazy resampling of a picture
            now = np.block([[now[:2, :2], np.zeros((2, 1)), now[:2, 2:]], [np.zeros((2, 2)), np.eye(2)]])
        for box, found in zip(item["box"].tolist(), out["box"].tolist(), strict=True):
            corners = np.array(list(itertools.product(*zip(box[:ndim], box[ndim:], strict=True)))) - 0.5
            corners = np.concatenate((corners, np.zeros((len(corners), 3 - ndim)), np.ones((len(corners), 1))), 1)
            moved = (corners @ then.T @ np.linalg.inv(now).T)[:, :ndim] + 0.5
            np.testing.assert_allclose(found, [*moved.min(0), *moved.max(0)], atol=1e-4)


def test_the_place_in_the_world_stays():
    for seed in range(4):
        item = item_of(3, seed)
        chain = [Orientationd("image", "SPL"), Spacingd("image", (0.8, 1.1, 2.3)), Flipd("image", 2)]
        out = Compose([*chain, PlaceBoxesOnImaged("box", clip=False)])(item)
        world = [boxes_to_world(one["box"].as_subclass(torch.Tensor), one["box"].affine) for one in (item, out)]
        torch.testing.assert_close(world[1], world[0], rtol=0, atol=1e-4)


@pytest.mark.parametrize("ndim", [2, 3])
@pytest.mark.parametrize("lazy", [False, True])
def test_inverse_and_boxes_of_predictions(ndim, lazy):
    item = item_of(ndim, 1)
    item["box"].meta["spatial_shape"] = SHAPE[:ndim]
    steps = [Flipd("image", 0), Zoomd("image", 1.5, keep_size=False), Rotate90d("image", 1, (0, 1))]
    chain = Compose([*steps, PlaceBoxesOnImaged("box")], lazy=lazy)
    out = chain(item)
    back = chain.transforms[-1].inverse(out)["box"]
    torch.testing.assert_close(back.as_subclass(torch.Tensor), item["box"].as_subclass(torch.Tensor), rtol=0, atol=1e-4)
    torch.testing.assert_close(back.affine, item["box"].affine)
    assert back.meta["spatial_shape"] == list(SHAPE[:ndim]) and not back.applied_operations
    assert len(out["box"].applied_operations) == 1  # the item given to inverse is not edited

    predicted = torch.cat((out["box"].as_subclass(torch.Tensor) + 0.75, torch.tensor([[-9.0] * ndim + [99.0] * ndim])))
    inverted = Invertd("prediction", chain, orig_keys="box", nearest_interp=False)(
        {**out, "prediction": MetaTensor(predicted)}
    )
    found = inverted["prediction"].as_subclass(torch.Tensor)
    assert found[-1].tolist() == [0.0] * ndim + [float(size) for size in SHAPE[:ndim]]
    assert ((found[:-1] - item["box"].as_subclass(torch.Tensor)).abs() - 0.5).abs().max() < 1e-4


@pytest.mark.parametrize("ndim", [2, 3])
def test_pending_operations_count_as_done(ndim):
    """Compose applies them before it comes here; called directly they are still pending."""
    steps = [Flipd("image", 0, lazy=True), Rotate90d("image", 1, (0, 1), lazy=True), Spacingd("image", 0.9, lazy=True)]
    steps.append(SpatialCropd("image", roi_start=(2,) * ndim, roi_end=(15, 16, 14)[:ndim], lazy=True))
    for seed in range(3):
        item = item_of(ndim, seed, number=8)
        out = item
        for step in steps:
            out = step(out)
        assert len(out["image"].pending_operations) == 4 and out["image"].shape == item["image"].shape
        late = PlaceBoxesOnImaged("box")(out)
        done = Compose([*steps, PlaceBoxesOnImaged("box")], lazy=True)(item)
        torch.testing.assert_close(late["box"].as_subclass(torch.Tensor), done["box"].as_subclass(torch.Tensor))
        assert len(late["image"].pending_operations) == 4 and torch.equal(late["box_label"], done["box_label"])
        assert late["box"].meta["spatial_shape"] == tuple(done["image"].shape[1:])
        torch.testing.assert_close(late["box"].affine, late["image"].peek_pending_affine())


def test_what_reaches_out_comes_back_as_it_was():
    item = item_of(2)
    item["box"].meta["spatial_shape"] = (5, 5)
    place = PlaceBoxesOnImage(clip=False)
    crop = SpatialCropd("image", roi_start=(3, 3), roi_end=(20, 16))(item)
    moved, kept = place(item["box"], crop["image"])
    back = place.inverse(moved).as_subclass(torch.Tensor)
    torch.testing.assert_close(back, item["box"].as_subclass(torch.Tensor)[kept])


def test_what_is_dropped():
    image = torch.zeros(1, 10, 10)
    boxes = torch.tensor(
        [[0, 0, 4, 4], [8, 8, 12, 12], [-3, 0, 1, 4], [10, 0, 12, 4], [5, 5, 5, 9], [float("nan")] * 4]
    )
    for share, wanted in ((0.0, [0, 1, 2]), (0.25, [0, 1, 2]), (0.26, [0]), (1.0, [0])):
        for clip in (True, False):
            out, kept = PlaceBoxesOnImage(min_visible=share, clip=clip)(boxes, image)
            assert kept.nonzero().ravel().tolist() == wanted
            assert out.tolist() == (boxes.clamp(0, 10) if clip else boxes)[wanted].tolist()
    empty, kept = PlaceBoxesOnImage()(torch.zeros(0, 4), image)
    assert empty.shape == (0, 4) and kept.shape == (0,)


def test_rows_of_every_container_go_along_and_the_dtype_stays():
    item = {
        "image": torch.zeros(1, 10, 10),
        "box": torch.tensor([[0, 0, 4, 4], [11, 0, 12, 4], [1, 1, 2, 2]], dtype=torch.float64),
        "box_label": [3, 4, 5],
        "score": np.array([0.1, 0.2, 0.3]),
        "masks": MetaTensor(torch.arange(3.0)[:, None, None].expand(3, 10, 10)),
    }
    out = PlaceBoxesOnImaged("box", label_keys=("box_label", "score", "masks"))(item)
    assert out["box_label"] == [3, 5] and out["score"].tolist() == [0.1, 0.3] and out["box"].dtype == torch.float64
    assert out["masks"][:, 0, 0].tolist() == [0, 2] and len(item["box_label"]) == 3
    lacking = {key: item[key] for key in ("image", "box")}
    assert len(PlaceBoxesOnImaged("box", allow_missing_keys=True)(lacking)["box"]) == 2
    assert PlaceBoxesOnImaged("other", allow_missing_keys=True)(item)["box"] is item["box"]


def test_bad_input():
    image = MetaTensor(torch.zeros(1, 10, 10))
    with pytest.raises(ValueError, match="share of the box of 0 to 1, got 2"):
        PlaceBoxesOnImage(min_visible=2)
    with pytest.raises(ValueError, match="keys must be one key"):
        PlaceBoxesOnImaged(("a", "b"))
    with pytest.raises(ValueError, match="the image came with an affine and the boxes without"):
        PlaceBoxesOnImage()(torch.zeros(1, 4), image)
    with pytest.raises(ValueError, match=r"shape \(N, 4\) for an image of 2 spatial axes, got \(1, 6\)"):
        PlaceBoxesOnImage()(torch.zeros(1, 6), image)
    with pytest.raises(KeyError, match="no 'box_label'"):
        PlaceBoxesOnImaged()({"image": image, "box": MetaTensor(torch.zeros(1, 4))})
    with pytest.raises(KeyError, match="no 'image'"):
        PlaceBoxesOnImaged()({"box": MetaTensor(torch.zeros(1, 4)), "box_label": [0]})
    with pytest.raises(ValueError, match="box_label must have one row for each of 1 boxes, got 2"):
        PlaceBoxesOnImaged()({"image": image, "box": MetaTensor(torch.zeros(1, 4)), "box_label": [0, 1]})
    with pytest.raises(ValueError, match="MetaTensor that this transform made"):
        PlaceBoxesOnImage().inverse(torch.zeros(1, 4))
