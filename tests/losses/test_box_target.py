# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.losses._box_target import axis_aligned, read_box_target

SHAPES = {2: (8, 9), 3: (8, 9, 7)}


def boxes_of(spatial_dims: int, number: int, seed: int = 0) -> torch.Tensor:
    low = torch.rand(number, spatial_dims, generator=torch.Generator().manual_seed(seed)) * 5
    return torch.cat((low, low + 2), 1)


def listed(spatial_dims: int = 2) -> dict:
    """Four images: two boxes, none, one box, not looked at."""
    boxes = [boxes_of(spatial_dims, 2), torch.zeros(0, 2 * spatial_dims), boxes_of(spatial_dims, 1, 1), None]
    sides = [torch.arange(4 * spatial_dims).view(2, -1) % 3 == 0, boxes[1].bool(), None, None]
    return {"boxes": boxes, "labels": [torch.tensor([0, 2]), [], torch.tensor([1]), None], "tight_sides": sides}


def padded(target: dict, length: int = 3) -> dict:
    """The same in the form of a collated batch, padding full of rubbish."""
    out = {}
    for name, rubbish in (("boxes", math.nan), ("bags", math.inf), ("labels", -1), ("tight_sides", False)):
        if name not in target:
            continue
        rows = []
        like = torch.as_tensor(target[name][0])
        for entry, boxes in zip(target[name], target["boxes"], strict=True):
            number = 0 if boxes is None else len(boxes)
            fill = torch.full((length, *like.shape[1:]), rubbish, dtype=like.dtype)
            if number:
                fill[:number] = True if entry is None else torch.as_tensor(entry)
            rows.append(fill)
        out[name] = torch.stack(rows)
    out["has_boxes"] = torch.tensor([boxes is not None for boxes in target["boxes"]])
    return out


def read(target, spatial_dims=2, channels=3, batch=4, **options):
    return read_box_target(target, batch, channels, SHAPES[spatial_dims], **options)


def assert_equal(first, second):
    for name, left, right in zip(first._fields, first, second, strict=True):
        assert type(left) is type(right), name
        if left is not None:
            assert left.dtype == right.dtype and torch.equal(left, right), name


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_lists_and_padded_tensors_say_the_same(spatial_dims):
    target = listed(spatial_dims)
    found = read(target, spatial_dims)
    assert torch.equal(found.boxes, torch.cat([target["boxes"][0], target["boxes"][2]]))
    assert found.boxes.dtype == torch.float32 and found.frames is None
    assert found.image.tolist() == [0, 0, 2] and found.label.tolist() == [0, 2, 1]
    assert found.tight_sides[:2].equal(target["tight_sides"][0]) and found.tight_sides[2].all()
    assert found.looked.tolist() == [True, True, True, False]
    assert_equal(read(padded(target), spatial_dims), found)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_frames_take_the_place_of_boxes(spatial_dims):
    target = listed(spatial_dims)
    frames = torch.randn(3, spatial_dims + 1, spatial_dims, generator=torch.Generator().manual_seed(0))
    target["bags"] = [frames[:2], frames[:0], frames[2:], None]
    found = read(target, spatial_dims)
    assert found.boxes is None and found.frames.equal(frames)
    assert found.image.tolist() == [0, 0, 2] and found.looked.tolist() == [True, True, True, False]
    assert_equal(read(padded(target), spatial_dims), found)
    del target["boxes"]
    assert_equal(read(target, spatial_dims), found)


def test_images_nobody_looked_at_lose_their_boxes_unread():
    target = {**listed(), "has_boxes": [False, True, True, True]}
    target["boxes"][0][:] = math.nan
    target["labels"][0][:] = 99
    found = read(target)
    assert found.looked.tolist() == [False, True, True, False]
    assert found.image.tolist() == [2] and found.boxes.equal(target["boxes"][2]) and found.tight_sides.shape == (1, 4)


def test_nothing_at_all():
    for target in ({}, {"boxes": None, "labels": None}, {"has_boxes": [False] * 4, "masks": 1}):
        found = read(target)
        assert found.boxes.shape == (0, 4) and found.image.numel() == found.label.numel() == 0
        assert not found.looked.any() and found.tight_sides is None
    found = read({"boxes": [[]] * 4, "labels": [[]] * 4}, 3)
    assert found.boxes.shape == (0, 6) and found.looked.all()
    found = read({"boxes": torch.zeros(4, 0, 4), "labels": torch.zeros(4, 0)})
    assert found.boxes.shape == (0, 4) and found.looked.all()


def test_numbers_of_any_type_and_container_come_out_plain():
    target = {"boxes": [np.array([[0, 0, 2, 2]])], "labels": [[1.0]], "has_boxes": torch.tensor([[1]])}
    expected = read(target, batch=1)
    assert expected.boxes.dtype == torch.float32 and expected.label.dtype == torch.int64
    target = {"boxes": [MetaTensor(torch.tensor([[0.0, 0, 2, 2]], requires_grad=True))], "labels": [torch.tensor([1])]}
    found = read(target, batch=1)
    assert_equal(found, expected)
    assert all(type(part) is torch.Tensor and not part.requires_grad for part in found if part is not None)
    assert read({"boxes": [[[0, 0, 2, 2]]], "labels": [[1]]}, batch=1).boxes.equal(expected.boxes)
    double = read({"boxes": torch.tensor([[[0, 0, 2, 2]]]).double(), "labels": torch.tensor([[1]])}, batch=1)
    assert double.boxes.dtype == torch.float64


def test_result_is_on_the_device_asked_for():
    for target in (listed(), padded(listed()), {}):
        found = read(target, device="meta")
        assert all(part.device.type == "meta" for part in found if part is not None)


FRAME = [[0.0, 0.0], [2.0, 0.0], [0.0, 2.0]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"labels": None}, "boxes but no labels"),
        ({"labels": [[0, 3], [], [1], None]}, "0 to 2 .*got 3 for box 1 of image 0"),
        ({"labels": [[0, 1], [], [-1], None]}, "only the padded form.*got -1 for box 0 of image 2"),
        ({"labels": [[0, 1.5], [], [1], None]}, "got 1.5 for box 1 of image 0"),
        ({"labels": [[0], [], [1], None]}, r"\[2, 0, 1, 0\] boxes, got \[1, 0, 1, 0\]"),
        ({"labels": [[0, 1], [], [1]]}, "labels must have one entry for each of 4 images, got 3"),
        ({"boxes": [torch.ones(2, 6), None, None, None]}, r"boxes of image 0 must be \(N, 4\), got \(2, 6\)"),
        ({"boxes": torch.ones(4, 2, 6)}, r"padded \(4, N, 4\), got \(4, 2, 6\)"),
        ({"boxes": torch.ones(3, 2, 4)}, r"padded \(4, N, 4\), got \(3, 2, 4\)"),
        ({"boxes": [[[0, 0, 2, 2], [3, 3, 4, 3]], [], [[0, 0, 1, 1]], None]}, "3.* for box 1 of image 0"),
        ({"boxes": [[[0, 0, 2, 2], [3, 3, 4, 4]], [], [[0, math.nan, 1, 1]], None]}, "nan.* for box 0 of image 2"),
        ({"boxes": [[[0, 0, 2, 2], [3, 3, math.inf, 4]], [], [[0, 0, 1, 1]], None]}, "inf.* for box 1 of image 0"),
        ({"bags": [[FRAME, FRAME[:1] * 3], [], [FRAME], None]}, "span a box.* box 1 of image 0"),
        ({"bags": [[FRAME, [[0, 0], [1, 2], [2, 4]]], [], [FRAME], None]}, "span a box.* box 1 of image 0"),
        ({"bags": [[FRAME, FRAME], [], [[[math.nan, 0], [1, 0], [0, 1]]], None]}, "nan.* box 0 of image 2"),
        ({"bags": [[FRAME[:2]], [], [], None]}, r"bags of image 0 must be \(N, 3, 2\)"),
        ({"tight_sides": [[[1] * 4], [], None, None]}, r"tight_sides .*\[1, 0, 1, 0\]"),
        ({"tight_sides": torch.ones(4, 3, 2)}, r"tight_sides .*\(4, N, 4\)"),
        ({"has_boxes": [True]}, r"has_boxes .*4 images"),
        ({"boxes": None, "has_boxes": [True] * 4}, "neither boxes nor bags"),
    ],
)
def test_unusable_targets_are_told_in_one_sentence(change, message):
    with pytest.raises(ValueError, match=message):
        read({**listed(), **change})


def test_wrong_types():
    with pytest.raises(TypeError, match="must be a mapping.*Tensor"):
        read(torch.zeros(4, 3, 8, 9))
    with pytest.raises(TypeError, match="boxes must hold"):
        read({**listed(), "boxes": [["a"], [], [], []]})
    with pytest.raises(TypeError, match="complex"):
        read({**listed(), "boxes": torch.zeros(4, 3, 4, dtype=torch.complex64)})


def test_padding_labels_may_come_from_a_rubbish_row_only_in_the_padded_form():
    target = padded(listed())
    target["labels"][0, 1] = -2
    with pytest.raises(ValueError, match="-1 for padding.*got -2 for box 1 of image 0"):
        read(target)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_frames_along_the_axes_are_boxes(spatial_dims):
    target = listed(spatial_dims)
    found = read(target, spatial_dims)
    boxes, sides = axis_aligned(found)
    assert boxes is found.boxes and sides is found.tight_sides
    low, high = found.boxes.chunk(2, 1)
    frames = torch.cat((low[:, None], torch.diag_embed(high - low)), 1)
    frames[:, 1:] += 1e-5
    target["bags"] = [frames[:2], frames[:0], frames[2:], None]
    boxes, sides = axis_aligned(read(target, spatial_dims))
    assert torch.allclose(boxes, found.boxes, atol=1e-4) and sides.equal(found.tight_sides)


def test_quarter_turns_and_flips_take_the_sides_along():
    # the original axis 0 runs down axis 1 now, and axis 1 up axis 0
    frame = torch.tensor([[[2.0, 9.0], [0.0, -3.0], [4.0, 0.0]]])
    sides = torch.tensor([[[True, False, False, False]]])  # only the low side of axis 0 is tight
    found = read({"bags": frame[None], "labels": torch.tensor([[0]]), "tight_sides": sides}, batch=1)
    boxes, sides = axis_aligned(found)
    assert boxes.tolist() == [[2.0, 6.0, 6.0, 9.0]]
    assert sides.tolist() == [[False, False, False, True]]


@pytest.mark.parametrize("edges", [[[2.0, 0.1], [-0.1, 2.0]], [[2.0, 0.0], [1.0, 2.0]], [[2.0, 1.9], [2.0, -1.9]]])
def test_oblique_frames_are_told(edges):
    frames = torch.tensor([FRAME, [[1.0, 1.0], *edges]])
    found = read({"bags": [[], frames, [], []], "labels": [[], [0, 0], [], []]})
    with pytest.raises(ValueError, match="along the axes here.*box 1 of image 1"):
        axis_aligned(found)
