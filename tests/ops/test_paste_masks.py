# SPDX-License-Identifier: Apache-2.0
"""Tests of masks put back on images, against the formula by loops."""

from __future__ import annotations

import importlib
import itertools
import math

import pytest
import torch

from monai_labelfx.ops.paste_masks import crop_masks, paste_masks

module = importlib.import_module("monai_labelfx.ops.paste_masks")  # its name is also that of the function


def naive(bins: torch.Tensor, box: list[float], size: tuple[int, ...]) -> torch.Tensor:
    """One mask, voxel by voxel, corner by corner of the linear interpolation."""
    ndim = len(size)
    result = torch.zeros(size, dtype=torch.float64)
    for voxel in itertools.product(*map(range, size)):
        places = []
        for axis, k in enumerate(voxel):
            low, high, count = box[axis], box[ndim + axis], bins.shape[axis]
            if low <= k + 0.5 < high:
                t = (k + 0.5 - low) / (high - low) * count - 0.5
                places.append(min(max(t, 0.0), count - 1.0))
        if len(places) < ndim:
            continue
        for corner in itertools.product((0, 1), repeat=ndim):
            weight, index = 1.0, []
            for t, up, count in zip(places, corner, bins.shape, strict=True):
                weight *= t - math.floor(t) if up else 1 - (t - math.floor(t))
                index.append(min(math.floor(t) + up, count - 1))
            result[voxel] += weight * bins[tuple(index)].item()
    return result


def examples(ndim: int, count: int = 9) -> tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]:
    """Bins, boxes that partly leave the image, and its size."""
    draw = torch.Generator().manual_seed(ndim)
    size, bins = (7, 9, 5)[:ndim], (3, 4, 2)[:ndim]
    low = torch.rand(count, ndim, generator=draw, dtype=torch.float64) * 8 - 2
    extent = torch.rand(count, ndim, generator=draw, dtype=torch.float64) * 6 + 0.1
    values = torch.rand(count, *bins, generator=draw, dtype=torch.float64)
    return values, torch.cat([low, low + extent], dim=1), size


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_naive(ndim, monkeypatch):
    values, boxes, size = examples(ndim)
    expected = torch.stack([naive(v, b, size) for v, b in zip(values, boxes.tolist(), strict=True)])
    assert (expected > 0).any() and not (expected > 0).flatten(1).all(1).any()
    for most, few in ((1 << 24, 1 << 16), (1 << 24, 0), (1, 0)):  # all at once, some, each alone
        monkeypatch.setattr(module, "_MOST_NUMBERS", most)
        monkeypatch.setattr(module, "_FEW_NUMBERS", few)
        found = paste_masks(values, boxes, size, threshold=None)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        assert torch.equal(paste_masks(values, boxes, size, threshold=0.4), found > 0.4)


@pytest.mark.parametrize("ndim", [1, 2, 3])
def test_crops_are_blocks_of_the_masks(ndim):
    values, boxes, size = examples(ndim)
    full = paste_masks(values, boxes, size, threshold=0.4)
    crops = crop_masks(values, boxes, size, threshold=0.4)
    assert len(crops) == len(values) and full.any()
    for mask, crop, box in zip(full, crops, boxes.tolist(), strict=True):
        low = [min(max(math.floor(x), 0), n) for x, n in zip(box[:ndim], size, strict=True)]
        high = [min(max(math.ceil(x), 0), n) for x, n in zip(box[ndim:], size, strict=True)]
        window = tuple(slice(a, max(a, b)) for a, b in zip(low, high, strict=True))
        assert crop.dtype == torch.bool and torch.equal(crop, mask[window])
        rest = mask.clone()
        rest[window] = False
        assert not rest.any()
        assert crop.untyped_storage().nbytes() == crop.numel()


def test_bins_as_large_as_voxels_are_copied():
    values = torch.rand(1, 4, 3, 2)
    found = paste_masks(values, torch.tensor([[1.0, 0, 2, 5, 3, 4]]), (6, 3, 5), threshold=None)
    torch.testing.assert_close(found[0, 1:5, 0:3, 2:4], values[0])
    assert found.dtype == torch.float32 and found.count_nonzero() == values.count_nonzero()


def test_permuted_flipped_and_thin():
    values, boxes, size = examples(3)
    found = paste_masks(values, boxes, size, threshold=None)
    order = [2, 0, 1]
    turned = paste_masks(
        values.permute(0, *(d + 1 for d in order)),
        boxes[:, [*order, *(d + 3 for d in order)]],
        [size[d] for d in order],
        threshold=None,
    )
    torch.testing.assert_close(turned, found.permute(0, *(d + 1 for d in order)))
    mirrored = boxes.clone()
    mirrored[:, 0], mirrored[:, 3] = size[0] - boxes[:, 3], size[0] - boxes[:, 0]
    torch.testing.assert_close(paste_masks(values.flip(1), mirrored, size, threshold=None).flip(1), found)
    shuffled = torch.randperm(len(boxes))
    torch.testing.assert_close(paste_masks(values[shuffled], boxes[shuffled], size, threshold=None), found[shuffled])
    flat, square, plane = examples(2)
    slab = torch.cat([square[:, :2], torch.zeros(9, 1), square[:, 2:], torch.ones(9, 1)], dim=1).double()
    thick = paste_masks(flat[..., None], slab, (*plane, 1), threshold=None)
    torch.testing.assert_close(thick[..., 0], paste_masks(flat, square, plane, threshold=None))


def test_boxes_that_hold_little():
    nan, inf = math.nan, math.inf
    rows = [[2.6, 0, 3.4, 5], [2.0, 2, 2.0, 2], [4, 4, 1, 1], [nan, 0, 4, 4], [7, 0, 9, 5], [-3, 0, 0, 5]]
    rows += [[-inf, 0, inf, 5], [3, 3, nan, 5]]
    values = torch.ones(len(rows), 2, 2)
    full = paste_masks(values, torch.tensor(rows), (6, 6))
    assert [n for n, mask in enumerate(full) if mask.any()] == [6] and full[6].sum() == 30
    shapes = [tuple(crop.shape) for crop in crop_masks(values, torch.tensor(rows), (6, 6))]
    assert shapes[:3] == [(2, 5), (1, 1), (1, 1)] and shapes[4:7] == [(0, 5), (0, 5), (6, 5)]
    edge = torch.tensor([[1.5, 0.0, 3.5, 1.0]])  # a centre at the low side is inside, one at the high side is not
    assert paste_masks(torch.ones(1, 2, 2), edge, (6, 1))[0, :, 0].tolist() == [False, True, True, False, False, False]


def test_the_threshold_itself_is_outside():
    values, box = torch.tensor([[0.25, 0.5, 0.75]]), torch.tensor([[0.0, 3.0]])
    assert paste_masks(values, box, (3,)).tolist() == [[False, False, True]]
    assert crop_masks(values, box, (3,), threshold=0.25)[0].tolist() == [False, True, True]


@pytest.mark.parametrize("ndim", [2, 3])
def test_no_masks(ndim):
    values, boxes = torch.zeros(0, *[4] * ndim), torch.zeros(0, 2 * ndim)
    assert paste_masks(values, boxes, [5] * ndim).shape == (0, *[5] * ndim)
    assert crop_masks(values, boxes, [5] * ndim) == []


def test_precision():
    values, boxes, size = examples(2)
    half = values.bfloat16().requires_grad_()
    found = paste_masks(half, boxes.float(), size, threshold=None)
    assert found.dtype == torch.float32 and not found.requires_grad
    expected = paste_masks(half.double(), boxes, size, threshold=None)
    torch.testing.assert_close(found, expected.float())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(paste_masks(half, boxes.float(), size, threshold=None), found)


def test_large_and_small_boxes_are_not_computed_together():
    shapes = [(1024, 1024), (2, 1024), (1024, 2), (8, 9), (9, 8), (1024, 1000)]
    parts = module._similar(shapes)
    assert sorted(row for part in parts for row in part) == list(range(6))
    padded = sum(math.prod(map(max, zip(*[shapes[row] for row in part], strict=True))) * len(part) for part in parts)
    assert padded < 1.5 * sum(map(math.prod, shapes)) and len(parts) < 6
    assert max(map(len, module._similar([(1024, 1024)] * 40))) == 16  # 64 MB


def test_bad_input():
    values, boxes = torch.zeros(2, 3, 3), torch.zeros(2, 4)
    with pytest.raises(TypeError, match=r"probabilities must be floating point, got torch.int64\."):
        paste_masks(values.long(), boxes, (4, 4))
    with pytest.raises(TypeError, match=r"boxes must be floating point, got torch.int64\."):
        crop_masks(values, boxes.long(), (4, 4))
    with pytest.raises(ValueError, match=r"probabilities must have the shape \(N, \*bins\) with bins, got \(2, 0, 3\)"):
        paste_masks(values[:, :0], boxes, (4, 4))
    with pytest.raises(ValueError, match=r"boxes must have the shape \(2, 4\) for .* got \(1, 4\)"):
        crop_masks(values, boxes[:1], (4, 4))
    for size in ((4,), (4, 0), (4, 2.5)):
        with pytest.raises(ValueError, match="size must be a positive number of voxels for each of 2 axes"):
            paste_masks(values, boxes, size)
