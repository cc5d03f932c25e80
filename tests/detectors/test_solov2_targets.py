# SPDX-License-Identifier: Apache-2.0
"""Targets of SOLOv2: centres of mass, coarse masks and the owners of cells, beside naive loops."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch

from monai_labelfx.detectors._solov2_targets import cell_owners, mass_centres
from monai_labelfx.ops.box_affine import masks_to_boxes

SHAPES = {2: (64, 48), 3: (32, 24, 40)}
GRIDS = {2: [(16, 12), (9, 7), (4, 3)], 3: [(8, 6, 10), (5, 4, 6), (2, 2, 3)]}
RANGES = [(1.0, 14.0), (7.0, 28.0), (14.0, math.inf)]


def some_masks(shape: tuple[int, ...], number: int, seed: int) -> torch.Tensor:
    """Ellipsoids, some cut at the border of the image, and a few of a single voxel."""
    random = torch.Generator().manual_seed(seed)
    axes = torch.meshgrid(*[torch.arange(n) + 0.5 for n in shape], indexing="ij")
    masks = []
    for index in range(number):
        middle = torch.rand(len(shape), generator=random) * torch.tensor(shape)
        radius = 1 + torch.rand(len(shape), generator=random) * min(shape) / 2
        if index % 5 == 4:
            mask = torch.zeros(shape, dtype=torch.bool)
            mask[tuple(middle.long().tolist())] = True
        else:
            terms = [((x - m) / r) ** 2 for x, m, r in zip(axes, middle, radius, strict=True)]
            mask = torch.stack(terms).sum(0) <= 1
        masks.append(mask)
    return torch.stack(masks)


def naive_owners(masks, boxes, grids, extent, ranges, share) -> list[int]:
    """From the definition, one cell and one object at a time."""
    axes, found = len(extent), []
    for grid, (low, high) in zip(grids, ranges, strict=True):
        for place in product(*map(range, grid)):
            best = (math.inf, -1)
            for number, (mask, box) in enumerate(zip(masks, boxes.tolist(), strict=True)):
                voxels = mask.nonzero().double() + 0.5
                size = math.prod(box[axes + a] - box[a] for a in range(axes)) ** (1 / axes)
                if not len(voxels) or not low <= size <= high:
                    continue
                inside = True
                for a in range(axes):
                    cell = extent[a] / grid[a]
                    middle, reach = voxels[:, a].mean().item(), share / 2 * (box[axes + a] - box[a])
                    touched = (place[a] + 1) * cell > middle - reach and place[a] * cell < middle + reach
                    own = math.floor(middle / cell)
                    inside &= touched and abs(place[a] - own) <= 1
                if inside and (len(voxels), number) < best:
                    best = (len(voxels), number)
            found.append(best[1])
    return found


def owners_of(masks, boxes, dims, **options):
    settings = {"grids": GRIDS[dims], "extent": SHAPES[dims], "ranges": RANGES, "center_share": 0.2, **options}
    return cell_owners(*mass_centres(masks), boxes, **settings)


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def dims(request):
    return request.param


@pytest.mark.parametrize("share", [0.2, 0.9])
def test_owners(dims, share):
    masks = some_masks(SHAPES[dims], 12, seed=dims)
    boxes = masks_to_boxes(masks)
    found = owners_of(masks, boxes, dims, center_share=share)
    wanted = naive_owners(masks, boxes, GRIDS[dims], SHAPES[dims], RANGES, share)
    assert found.dtype == torch.int64 and found.tolist() == wanted
    assert len(set(wanted)) > 6
    counts = [len(part.unique()) for part in found.split([math.prod(grid) for grid in GRIDS[dims]])]
    assert all(count > 1 for count in counts), "every level has objects"


def test_an_object_has_the_cell_of_its_centre_on_each_of_its_levels(dims):
    for seed in range(20):
        mask = some_masks(SHAPES[dims], 1, seed=seed)
        box = masks_to_boxes(mask)
        found = owners_of(mask, box, dims).split([math.prod(grid) for grid in GRIDS[dims]])
        size = ((box[0, dims:] - box[0, :dims]).prod() ** (1 / dims)).item()
        for part, grid, (low, high) in zip(found, GRIDS[dims], RANGES, strict=True):
            cells = torch.tensor(grid) / torch.tensor(SHAPES[dims])
            place = (mass_centres(mask)[0][0] * cells).floor().long().tolist()
            assert (part.view(grid)[tuple(place)] == 0) == (low <= size <= high)
            assert (part >= 0).sum() <= 3**dims


def test_a_cell_that_two_claim_is_that_of_the_smaller_one(dims):
    """Equal centres: label and mask follow the smaller one everywhere, whatever the order."""
    shape = SHAPES[dims]
    masks = torch.zeros(2, *shape, dtype=torch.bool)
    masks[(0, *[slice(2, 22)] * dims)] = True
    masks[(1, *[slice(8, 16)] * dims)] = True
    boxes = masks_to_boxes(masks)
    large, small = (owners_of(masks[[k]], boxes[[k]], dims) == 0 for k in (0, 1))
    assert (large & small).any() and (large & ~small).any()
    wanted = torch.where(small, 1, torch.where(large, 0, -1))
    assert torch.equal(owners_of(masks, boxes, dims), wanted)
    turned = owners_of(masks.flip(0), boxes.flip(0), dims)
    assert torch.equal(turned, torch.where(wanted >= 0, 1 - wanted, -1))


def test_equal_objects_the_first_wins(dims):
    mask = some_masks(SHAPES[dims], 1, seed=1)
    masks = mask.expand(3, *SHAPES[dims])
    assert set(owners_of(masks, masks_to_boxes(masks), dims).tolist()) == {-1, 0}


def test_a_reflection_of_the_image_reflects_the_cells(dims):
    masks = some_masks(SHAPES[dims], 9, seed=7)
    masks = torch.cat([masks, torch.zeros(1, *SHAPES[dims], dtype=torch.bool)])
    masks[(9, *[slice(4, 12)] * dims)] = True  # its centre is on the border of cells
    axes = list(range(1, dims + 1))
    mirrored = masks.flip(axes)
    pairs = [
        owners_of(one, masks_to_boxes(one), dims).split([math.prod(grid) for grid in GRIDS[dims]])
        for one in (masks, mirrored)
    ]
    assert all(torch.equal(one, two.flip(0)) for one, two in zip(*pairs, strict=True))


def test_sizes_beyond_the_ranges_are_on_the_outer_levels(dims):
    ranges = [(20.0, 30.0), (25.0, 40.0), (35.0, 50.0)]
    counts = [math.prod(grid) for grid in GRIDS[dims]]
    for length, level in ((3, 0), (min(SHAPES[dims]), 0 if dims == 3 else 2)):
        mask = torch.zeros(1, *SHAPES[dims], dtype=torch.bool)
        mask[(0, *[slice(0, length)] * dims)] = True
        box = masks_to_boxes(mask)
        found = owners_of(mask, box * (1 if length == 3 or dims == 3 else 2), dims, ranges=ranges).split(counts)
        assert [bool((part >= 0).any()) for part in found] == [index == level for index in range(3)]


def test_objects_without_voxels_and_images_without_objects(dims):
    masks = some_masks(SHAPES[dims], 2, seed=3)
    boxes = masks_to_boxes(masks)
    masks[0] = False
    found = owners_of(masks, boxes, dims)
    assert set(found.tolist()) == {-1, 1}
    none = owners_of(masks[:0], boxes[:0], dims)
    assert none.tolist() == [-1] * len(found) and none.dtype == torch.int64


def test_a_box_without_extent_has_the_cell_of_the_centre(dims):
    mask = torch.zeros(1, *SHAPES[dims], dtype=torch.bool)
    mask[(0, *[slice(4, 12)] * dims)] = True
    box = torch.tensor([[8.0] * (2 * dims)])
    found = owners_of(mask, box, dims).split([math.prod(grid) for grid in GRIDS[dims]])
    assert (found[0] == 0).sum() == 1 and (found[1] == 0).sum() == 0


def test_centres_of_mass(dims):
    masks = some_masks(SHAPES[dims], 7, seed=5)
    centres, counts = mass_centres(masks)
    assert centres.dtype == torch.float32 and counts.dtype == torch.int64
    for mask, centre, count in zip(masks, centres, counts, strict=True):
        voxels = mask.nonzero().double() + 0.5
        assert count == len(voxels)
        assert centre.tolist() == pytest.approx(voxels.mean(0).tolist(), rel=1e-6)
    assert mass_centres(torch.zeros(1, *SHAPES[dims], dtype=torch.bool))[0].tolist() == [[0.0] * dims]
