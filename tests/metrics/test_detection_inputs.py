# SPDX-License-Identifier: Apache-2.0
"""What detection metrics accept as objects, and what they say when they do not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.metrics._detection_inputs import identity, read_objects, voxel_volume

GOOD = {
    "boxes": torch.tensor([[0.0, 1, 2, 3], [0, 0, 4, 4.5]]),
    "labels": torch.tensor([1, 0]),
    "scores": torch.tensor([0.25, 0.75]),
    "masks": torch.ones(2, 5, 5, dtype=torch.bool),
}


@pytest.mark.parametrize(
    "convert",
    [
        lambda v: v,
        lambda v: v.numpy(),
        lambda v: v.tolist(),
        MetaTensor,
        lambda v: v.bfloat16() if v.is_floating_point() else v.int(),
        lambda v: v.double().requires_grad_() if v.is_floating_point() else v.byte(),
    ],
)
def test_containers_agree(convert):
    found = read_objects({key: convert(GOOD[key]) for key in ("boxes", "labels", "scores")}, "it", scored=True)
    assert np.array_equal(found.boxes, GOOD["boxes"].double()) and found.boxes.dtype == np.float64
    assert found.labels.tolist() == [1, 0] and found.scores.tolist() == [0.25, 0.75] and found.dims == 2


def test_padding_rows_are_dropped_whatever_they_hold():
    item = {
        "boxes": torch.tensor([[5.0, 5, 0, 0], [0, 0, 4, 4]]),
        "labels": torch.tensor([-1, 3]),
        "area": [7, 8],
        "ignore": [1, 0],
        "masks": torch.eye(2, dtype=torch.uint8)[:, None],
    }
    found = read_objects(item, "it", scored=False, masks=True)
    assert found.labels.tolist() == [3] and found.boxes.tolist() == [[0, 0, 4, 4]] and found.areas.tolist() == [8]
    assert found.ignore.tolist() == [False] and found.masks.low.tolist() == [[0, 1]]


@pytest.mark.parametrize("boxes", [torch.zeros(0, 6), torch.zeros(0), [], torch.zeros(0, 0)])
def test_no_objects(boxes):
    found = read_objects({"boxes": boxes, "labels": [], "scores": []}, "it", scored=True, masks=True)
    assert len(found.labels) == len(found.boxes) == len(found.scores) == 0 and found.masks is None
    assert found.dims == (3 if np.shape(boxes) == (0, 6) else 0)


def test_cropped_masks_lie_at_their_boxes():
    whole = torch.zeros(1, 9, 9, dtype=torch.bool)
    whole[0, 2:5, 3:9] = True
    item = {"boxes": [[2.5, 3.0, 5, 9]], "labels": [0]}
    dense = read_objects({**item, "masks": whole}, "it", scored=False, masks=True).masks
    crops = read_objects({**item, "masks": [whole[0, 2:5, 3:]]}, "it", scored=False, masks=True).masks
    assert all(np.array_equal(a, b) for a, b in zip(dense[:3], crops[:3], strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, r"it has no 'boxes'; its keys are \['boxes', 'labels', 'masks', 'scores'\]"),
        ({"scores": None}, "it has no 'scores'"),
        ({"boxes": torch.zeros(2, 5)}, r"'boxes' of it must have shape \(2, 2 \* spatial_dims\) .*, got \(2, 5\)"),
        ({"boxes": torch.zeros(3, 4)}, r"'boxes' of it must have shape \(2, .*, got \(3, 4\)"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1], [0, 3, 1, 2]])}, r"low corner before high corner, got \[0.0, 3.0, 1"),
        ({"boxes": torch.tensor([[0.0, 0, 1, 1], [0, 3, 1, torch.nan]])}, "must be finite, low corner before"),
        ({"labels": torch.tensor([0, -2])}, "0 or above, or -1 for padding rows, got -2"),
        ({"labels": torch.tensor([[0, 1]])}, r"'labels' of it must have shape \(N,\), got \(1, 2\)"),
        ({"scores": torch.tensor([0.1, torch.inf])}, "'scores' of it must be finite, got inf"),
        ({"scores": torch.tensor([0.1, torch.nan])}, "'scores' of it must be finite, got nan"),
        ({"scores": torch.zeros(2, 1)}, r"'scores' of it must have shape \(2,\) as its labels, got \(2, 1\)"),
        ({"masks": torch.ones(3, 5, 5).bool()}, "'masks' of it must be 2 as its labels, got 3"),
        ({"masks": torch.ones(2, 5, 5, 5).bool()}, r"'masks' of it must have shape \(2, \*spatial\), got \(2, 5, 5, 5"),
        ({"masks": [torch.ones(2).bool()] * 2}, "cropped 'masks' of it need boxes, and as many axes"),
    ],
)
def test_refused(change, message):
    with pytest.raises(ValueError, match=message):
        read_objects({**GOOD, **change}, "it", scored=True, masks=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": torch.tensor([0.0, 1.0])}, "'labels' of it must be integers, got float32"),
        ({"masks": torch.ones(2, 5, 5)}, "'masks' of it must be boolean or integer, got floats"),
    ],
)
def test_refused_types(change, message):
    with pytest.raises(TypeError, match=message):
        read_objects({**GOOD, **change}, "it", scored=True, masks=True)
    with pytest.raises(TypeError, match="it must be a dictionary with 'boxes' and 'labels', got list"):
        read_objects([], "it", scored=True)


def test_true_objects_may_have_roles_and_areas():
    item = {key: GOOD[key] for key in ("boxes", "labels")}
    found = read_objects({**item, "iscrowd": torch.tensor([0, 1]), "area": [1.5, 2]}, "it", scored=False)
    assert found.crowd.tolist() == [False, True] and found.areas.tolist() == [1.5, 2]
    with pytest.raises(ValueError, match="'area' of it must be 0 or above, got nan"):
        read_objects({**item, "area": [1.5, np.nan]}, "it", scored=False)
    with pytest.raises(ValueError, match=r"'iscrowd' of it must have shape \(2,\)"):
        read_objects({**item, "iscrowd": [0]}, "it", scored=False)


def test_spacing():
    assert voxel_volume({}, 2, "it") is None and voxel_volume({"spacing": torch.tensor([0.5, 3])}, 2, "it") == 1.5
    for wrong in ([1, 2, 3], [1, 0], [1, np.nan]):
        with pytest.raises(ValueError, match="'spacing' of it must be 2 positive numbers, got"):
            voxel_volume({"spacing": wrong}, 2, "it")


def test_identities_survive_float64():
    keys = {identity({"image_id": value}) for value in (0, 1, "a", "b", 2**40)}
    assert len(keys) == 5 and all(int(float(key)) == key >= 0 for key in keys)
    assert identity({}) == -1 and identity({"image_id": torch.tensor([7])}) == identity({"image_id": 7})
