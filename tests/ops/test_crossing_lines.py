# SPDX-License-Identifier: Apache-2.0
"""Crossing lines against plain loops, against the geometry of the line itself, and against connected objects."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np
import pytest
import torch
from connected_objects import objects, tight_box
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch.utils.data import default_collate

from monai_labelfx.ops.crossing_lines import ANGLES, box_crossing_lines, box_crossing_planes, box_voxels

ALL_ANGLES = (-85, -70, -60, -45, -40, -33.3, -20, -10, -1, 0, 3, 10, 20, 26.565, 40, 45, 50, 60, 75, 89)


def nearest(value: float, middle: int) -> int:
    """Column of a place, of two equally near ones that nearer to the middle of the line."""
    away = max(0, math.ceil(abs(value - middle) - 0.5 - 1e-9))
    return middle + (away if value > middle else -away)


def naive_lines(box, shape, angles, spacing=(1, 1), diagonal_steps=False) -> Counter:
    """(edge pair, angle, flat indices in order) of each line of one box, walked voxel by voxel."""
    found: Counter = Counter()
    for along in (0, 1):
        across = 1 - along
        rows = box[2 + along] - box[along]
        for angle in angles:
            tilt = math.tan(math.radians(angle)) * spacing[along] / spacing[across]
            half = (rows - 1) / 2 * tilt
            for middle in range(box[across], box[2 + across]):
                if abs(half) > min(middle - box[across], box[2 + across] - 1 - middle) + 0.5 + 1e-9:
                    continue  # runs out of the box sideways
                column, voxels = nearest(middle - half, middle), []
                for row in range(rows):
                    leaves = nearest(middle + min(row + 0.5 - (rows - 1) / 2, (rows - 1) / 2) * tilt, middle)
                    voxels.append((row + box[along], column))
                    while column != leaves:
                        column += 1 if leaves > column else -1
                        voxels.append((row + box[along], column))
                if diagonal_steps:
                    voxels = [
                        (row + box[along], nearest(middle + (row - (rows - 1) / 2) * tilt, middle))
                        for row in range(rows)
                    ]
                places = [(v[along], v[1 - along]) for v in voxels]
                if all(0 <= x < shape[0] and 0 <= y < shape[1] for x, y in places):
                    found[along, float(np.float32(angle)), tuple(x * shape[1] + y for x, y in places)] += 1
    return found


def listed(lines, box: int = 0) -> Counter:
    """The same from the padded bags of one box."""
    rows = zip(lines.bags.tolist(), lines.box.tolist(), lines.edge_pair.tolist(), lines.angle.tolist(), strict=True)
    return Counter((pair, angle, tuple(i for i in bag if i >= 0)) for bag, owner, pair, angle in rows if owner == box)


def hits(mask: torch.Tensor, bags: torch.Tensor) -> torch.Tensor:
    """Which bags hold an object voxel."""
    return (mask.flatten()[bags.clamp(min=0)].bool() & (bags >= 0)).any(1)


sides = st.integers(1, 13)
spacings = st.tuples(*[st.sampled_from([0.3, 0.5, 1, 1.7, 5])] * 2)
tilts = st.lists(st.floats(-89.9, 89.9) | st.sampled_from(ALL_ANGLES), min_size=1, max_size=4)


@settings(max_examples=300, deadline=None)
@given(st.tuples(st.integers(-6, 12), st.integers(-6, 12), sides, sides), st.tuples(sides, sides), tilts, spacings)
@example((1, 1, 8, 8), (10, 10), [45, -45], (1, 1))
@example((0, 0, 7, 7), (7, 7), [45, -45], (1, 1))
@example((0, 0, 3, 9), (3, 9), [60, 70], (1, 1))
@example((-2, 1, 6, 5), (6, 6), [0, 30], (1, 1))
@example((1, -2, 6, 7), (6, 6), [0, 30], (1, 2))
def test_equals_plain_loops(place, shape, angles, spacing):
    box = [place[0], place[1], place[0] + place[2], place[1] + place[3]]
    lines = box_crossing_lines(torch.tensor([box]), shape, angles, spacing=spacing)
    assert listed(lines) == naive_lines(box, shape, angles, spacing)
    assert torch.equal(lines.size, (lines.bags >= 0).sum(1)) and bool((lines.size.diff() >= 0).all())
    assert lines.bags.shape[1] == (int(lines.size[-1]) if len(lines.size) else 0)


@settings(max_examples=150, deadline=None)
@given(sides, sides, st.floats(-89, 89) | st.sampled_from(ALL_ANGLES), spacings)
def test_bags_are_the_voxels_a_line_runs_through(height, width, angle, spacing):
    """And all lines of the closed box whose offset is a whole number are there, joined by their faces."""
    size = (height, width)
    lines = box_crossing_lines(torch.tensor([[0, 0, height, width]]), size, [angle], spacing=spacing)
    for along in (0, 1):
        rows, columns = size[along], size[1 - along]
        tilt = math.tan(math.radians(angle)) * spacing[along] / spacing[1 - along]
        bags = [bag[bag >= 0] for bag in lines.bags[lines.edge_pair == along]]
        half = abs(tilt) * (rows - 1) / 2
        offsets = [c for c in range(columns) if half <= min(c, columns - 1 - c) + 0.5 + 1e-9]
        assert len(bags) == len(offsets) and abs(len(bags) - max(0.0, columns - 2 * half)) <= 1 + 1e-6
        for bag, offset in zip(bags, offsets, strict=True):
            place = torch.stack((bag // width, bag % width), 1)
            assert (place.diff(dim=0).abs().sum(1) == 1).all()
            assert place[0, along] == 0 and place[-1, along] == rows - 1
            inside = {tuple(p) for p in place.tolist()}
            for row in range(rows):
                times = [max(row - 0.5, 0) - (rows - 1) / 2, min(row + 0.5, rows - 1) - (rows - 1) / 2]
                low, high = sorted(offset + t * tilt for t in times)
                for column in range(columns):
                    voxel = (row, column) if along == 0 else (column, row)
                    if low < column + 0.5 - 1e-6 and high > column - 0.5 + 1e-6:
                        assert voxel in inside
                    elif low > column + 0.5 + 1e-6 or high < column - 0.5 - 1e-6:
                        assert voxel not in inside


@pytest.mark.parametrize("box", [(2, 3, 9, 8), (0, 0, 12, 11), (4, 4, 5, 5), (3, 0, 4, 11), (0, 6, 12, 7)])
def test_angle_0_is_rows_and_columns(box):
    image = torch.randn(12, 11)
    lines = box_crossing_lines(torch.tensor([box]), image.shape, [0])
    crop = image[box[0] : box[2], box[1] : box[3]]
    for along, expected in ((0, crop.t()), (1, crop)):
        bags = lines.bags[lines.edge_pair == along][:, : expected.shape[1]]
        assert torch.equal(image.flatten()[bags], expected)
    assert len(lines.bags) == sum(crop.shape)


@pytest.mark.parametrize("spacing", [None, (1, 3), (2.5, 0.8)])
def test_no_bag_of_a_tight_box_is_empty(spacing):
    bags = 0
    for seed in range(6):
        shape = tuple(np.random.default_rng(seed).integers(5, 40, 2))
        for mask in objects(seed, shape, 40):
            lines = box_crossing_lines(tight_box(mask), shape, ALL_ANGLES, spacing=spacing)
            assert hits(torch.as_tensor(mask), lines.bags).all()
            bags += len(lines.bags)
    assert bags > 40_000


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(-1, 1), st.integers(-1, 1)), max_size=60), tilts, spacings)
def test_no_bag_round_a_drawn_curve_is_empty(steps, angles, spacing):
    places = np.cumsum([(0, 0), *steps], axis=0)
    places -= places.min(0)
    mask = np.zeros(places.max(0) + 1, bool)
    mask[tuple(places.T)] = True
    lines = box_crossing_lines(tight_box(mask), mask.shape, [0, *angles], spacing=spacing)
    assert hits(torch.as_tensor(mask), lines.bags).all() and len(lines.bags) >= sum(mask.shape)


def test_lines_with_diagonal_steps_and_two_objects_in_a_box_do_leak():
    """So the tests above can fail."""
    empty = 0
    for mask in objects(0, (24, 20), 20):
        for _, _, bag in naive_lines(tight_box(mask)[0].tolist(), mask.shape, ALL_ANGLES, diagonal_steps=True):
            empty += not mask.ravel()[list(bag)].any()
    assert empty > 0
    two = torch.zeros(9, 9)
    two[0, 0] = two[8, 8] = 1
    assert not hits(two, box_crossing_lines(torch.tensor([[0, 0, 9, 9]]), (9, 9)).bags).all()


@pytest.mark.parametrize("spacing", [None, (1, 1, 3), (2.5, 0.8, 1)])
def test_no_plane_misses_a_connected_object_and_lines_on_the_reduced_map_are_the_planes(spacing):
    shape, planes = (11, 13, 9), 0
    for mask in objects(1, shape, 12):
        box, mask = tight_box(mask), torch.as_tensor(mask)
        voxels = box_voxels(box, shape)
        for axis in range(3):
            lines, crop_lines = (
                box_crossing_lines(box, shape, ALL_ANGLES, spacing=spacing, reduced_axis=axis, in_box_crops=crops)
                for crops in (False, True)
            )
            direct = box_crossing_planes(box, shape, ALL_ANGLES, spacing=spacing, reduced_axis=axis)
            assert hits(mask, direct.bags).all()
            assert hits(mask.amax(axis), lines.bags).all()
            assert hits(mask.flatten()[voxels].amax(1 + axis), crop_lines.bags).all()
            planes += len(direct.bags)
    assert planes > 3_000


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(*[st.integers(-2, 6)] * 3, *[st.integers(1, 7)] * 3), max_size=3),
    st.sampled_from([0, 1, 2]),
    tilts,
    st.tuples(*[st.sampled_from([0.5, 1, 2.5])] * 3),
)
@example([(0, 0, 0, 6, 7, 5)], 1, [0, 30], (1, 1, 2.5))
@example([(-1, 2, 1, 5, 3, 3), (1, 1, 1, 1, 1, 1), (2, 2, -1, 4, 4, 6)], 2, [0, 30], (1, 1, 2.5))
def test_planes_are_the_lines_of_the_projection(places, axis, angles, spacing):
    shape = (6, 7, 5)
    boxes = torch.tensor([[*p[:3], *(a + b for a, b in zip(p[:3], p[3:], strict=True))] for p in places])
    boxes = boxes.reshape(-1, 6)
    direct = box_crossing_planes(boxes, shape, angles, spacing=spacing, reduced_axis=axis)
    left = [a for a in range(3) if a != axis]
    for number, box in enumerate(boxes.tolist()):
        expected: Counter = Counter()
        if box[axis] >= 0 and box[3 + axis] <= shape[axis]:
            flat = [box[left[0]], box[left[1]], box[3 + left[0]], box[3 + left[1]]]
            sizes = (shape[left[0]], shape[left[1]])
            for pair, angle, line in naive_lines(flat, sizes, angles, [spacing[a] for a in left]).elements():
                plane = set()
                for index in line:
                    for depth in range(box[axis], box[3 + axis]):
                        voxel = list(divmod(index, sizes[1]))
                        voxel.insert(axis, depth)
                        plane.add((voxel[0] * shape[1] + voxel[1]) * shape[2] + voxel[2])
                expected[left[pair], angle, tuple(sorted(plane))] += 1
        found = Counter((p, a, tuple(sorted(v))) for p, a, v in listed(direct, number).elements())
        assert found == expected

    values = torch.randn(6 * 7 * 5, dtype=torch.float64)
    voxels = box_voxels(boxes, shape)
    crops = values[voxels.clamp(min=0)] * (voxels >= 0)
    lines = box_crossing_lines(boxes, shape, angles, spacing=spacing, reduced_axis=axis, in_box_crops=True)
    sums = (crops.sum(1 + axis).flatten()[lines.bags.clamp(min=0)] * (lines.bags >= 0)).sum(1)
    torch.testing.assert_close(sums, (values[direct.bags.clamp(min=0)] * (direct.bags >= 0)).sum(1))
    assert torch.equal(direct.size, (direct.bags >= 0).sum(1))
    assert all(torch.equal(a, b) for a, b in zip(lines[1:4], direct[1:4], strict=True))


def test_distinct_planes_are_each_there_once_and_none_is_lost():
    """The count of the cube is that of three projections less one slab per voxel of each side."""
    cube = torch.tensor([[0, 0, 0, 80, 80, 80]])
    lines = [box_crossing_lines(cube, (80, 80, 80), reduced_axis=k, distinct=True) for k in range(3)]
    assert sum(len(part.bags) for part in lines) == 6 * (80 + 2 * 52 + 2 * 14) - 240 == 1032

    for sides in ((7, 5, 6), (1, 1, 1), (1, 4, 3), (2, 1, 9)):
        for angles in (ANGLES, (10, -20, 30), (5, 0, 0)):
            bags = {}
            for distinct in (False, True):
                options = {"angles": angles, "distinct": distinct}
                box = torch.tensor([[0, 0, 0, *sides]])
                planes = [box_crossing_planes(box, sides, reduced_axis=k, **options).bags for k in range(3)]
                bags[distinct] = Counter(frozenset(bag[bag >= 0].tolist()) for part in planes for bag in part)
            assert set(bags[True]) == set(bags[False])
            assert bags[True].total() + (0 in angles or 1 in sides) <= bags[False].total()
            if 1 not in sides and 0 in angles:
                slabs = [frozenset(np.arange(np.prod(sides)).reshape(sides).take(0, axis).ravel()) for axis in range(3)]
                assert [bags[True][slab] for slab in slabs] == [1, 1, 1]


@pytest.mark.parametrize(("box", "all_lines", "different"), [((3, 3, 4, 4), 10, 2), ((3, 3, 4, 9), 31, 7)])
def test_distinct_lines_of_small_boxes(box, all_lines, different):
    every, distinct = (listed(box_crossing_lines(torch.tensor([box]), (12, 12), distinct=d)) for d in (False, True))
    assert (every.total(), distinct.total()) == (all_lines, different)
    assert distinct == listed(box_crossing_lines(torch.tensor([box]), (12, 12), [0]))


@pytest.mark.parametrize("box", [(1, 2, 8, 12), (0, 0, 9, 5), (3, 4, 4, 11), (2, 2, 9, 9)])
@pytest.mark.parametrize("spacing", [(1, 1), (1, 2.2)])
def test_flips_and_transposition_carry_lines_to_lines(box, spacing):
    shape, angles = (10, 13), (-50, -45, -20, 0, 7, 45)
    grid = torch.arange(130).reshape(shape)
    before = box_crossing_lines(torch.tensor([box]), shape, angles, spacing=spacing)
    bags = Counter((p, a, frozenset(bag)) for p, a, bag in listed(before).elements())
    flipped = (shape[0] - box[2], box[1], shape[0] - box[0], box[3])
    for after, moved, pairs, sign in (
        ((flipped, shape, spacing), grid.flip(0), (0, 1), -1),
        (((box[1], box[0], box[3], box[2]), shape[::-1], spacing[::-1]), grid.t(), (1, 0), 1),
    ):
        lines = box_crossing_lines(torch.tensor(after[:1]), after[1], [sign * a for a in angles], spacing=after[2])
        old = moved.flatten().tolist()
        carried = Counter(
            (pairs[p], sign * a, frozenset(old[i] for i in bag)) for p, a, bag in listed(lines).elements()
        )
        assert carried == bags


def test_boxes_do_not_influence_each_other():
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(-3, 20, (25, 2), generator=generator)
    boxes = torch.cat((low, low + torch.randint(1, 15, (25, 2), generator=generator)), 1)
    together = box_crossing_lines(boxes, (24, 26), (-60, 0, 30))
    for number in range(25):
        assert listed(together, number) == listed(
            box_crossing_lines(boxes[number : number + 1], (24, 26), (-60, 0, 30))
        )


def test_boxes_of_a_batch_in_one_call():
    values, boxes = torch.randn(3, 2, 9, 10), torch.tensor([[0, 0, 5, 6], [2, 3, 9, 9], [1, 1, 2, 2], [-1, 0, 3, 4]])
    channel = torch.tensor([5, 0, 3, 3], dtype=torch.int32)
    one, all_images = (box_crossing_lines(boxes, (9, 10), image_index=index) for index in (None, channel))
    for box in range(4):
        mine = one.box == box
        here = values.flatten(0, 1)[channel[box]].flatten()[one.bags[mine].clamp(min=0)]
        there = values.flatten()[all_images.bags[mine].clamp(min=0)]
        assert torch.equal(here[one.bags[mine] >= 0], there[all_images.bags[mine] >= 0])
    assert torch.equal(one.bags < 0, all_images.bags < 0)
    voxels = box_voxels(boxes, (9, 10), image_index=channel)
    assert torch.equal(values.flatten()[voxels[1, :7, :6]], values[0, 0, 2:9, 3:9])
    assert torch.equal(voxels < 0, box_voxels(boxes, (9, 10)) < 0)
    with pytest.raises(ValueError, match="image_index must hold a whole number of at least 0 for each of 4 boxes"):
        box_crossing_lines(boxes, (9, 10), image_index=channel[:3])


def test_a_cut_box_keeps_the_complete_lines_of_the_whole_box():
    """What the crop leaves of a line is no bag, and what it leaves of a box is no box."""
    whole = box_crossing_lines(torch.tensor([[5, 5, 15, 20]]), (30, 30), (0, 30))
    cut = box_crossing_lines(torch.tensor([[5, -3, 15, 12]]), (30, 12), (0, 30))
    expected = set()
    for pair, angle, bag in listed(whole):
        places = [(i // 30, i % 30 - 8) for i in bag]
        if all(0 <= y < 12 for _, y in places):
            expected.add((pair, angle, tuple(x * 12 + y for x, y in places)))
    assert set(listed(cut)) == expected and set(cut.edge_pair.tolist()) == {0} and len(expected) > 12
    for box in ([-3, -3, 40, 40], [30, 30, 35, 35], [-9, 2, -1, 6], [-1, -1, 1, 1]):
        assert len(box_crossing_lines(torch.tensor([box]), (30, 12)).bags) == 0
    cube = torch.tensor([[0, 0, -1, 4, 4, 3]])  # cut along the last axis: no plane that holds it, none that crosses it
    assert [len(box_crossing_lines(cube, (4, 4, 4), [0], reduced_axis=k).bags) for k in range(3)] == [3, 3, 0]


@pytest.mark.parametrize(
    "corners", [[1.0, 2.0, 6.0, 5.0], [1.9, 2.3, 5.1, 4.2], [1.0004, 1.9996, 5.9996, 5.0004], [1.5, 2, 6, 4.01]]
)
def test_fractional_corners_are_rounded_outwards(corners):
    whole, exact = box_crossing_lines(torch.tensor([[1, 2, 6, 5]]), (9, 9)), torch.tensor([corners])
    for boxes in (exact, exact.double()):
        assert all(map(torch.equal, box_crossing_lines(boxes, (9, 9)), whole))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int64, torch.float16, torch.bfloat16], ids=str)
def test_dtypes_of_boxes_and_angles(dtype):
    boxes = torch.tensor([[1, 2, 6, 5]])
    expected = box_crossing_lines(boxes, (9, 9), [-20, 0, 20])
    lines = box_crossing_lines(boxes.to(dtype), torch.Size((9, 9)), torch.arange(-20, 21, 20))
    assert all(map(torch.equal, lines, expected))
    assert [part.dtype for part in lines] == [torch.int64, torch.int64, torch.int64, torch.float32, torch.int64]


def test_no_boxes():
    for boxes in (torch.zeros(0, 6), torch.zeros(0, 6, dtype=torch.int64)):
        for crops in (False, True):
            lines = box_crossing_lines(boxes, (4, 4, 4), reduced_axis=0, in_box_crops=crops)
            assert [part.shape for part in lines] == [(0, 0), (0,), (0,), (0,), (0,)]
        assert box_crossing_planes(boxes, (4, 4, 4), reduced_axis=2).bags.shape == (0, 0)
        assert box_voxels(boxes, (4, 4, 4)).shape == (0, 0, 0, 0)


def test_box_voxels_are_the_crops():
    image = torch.randn(5, 6, 7)
    boxes = torch.tensor([[0, 1, 2, 5, 3, 4], [2, 2, 2, 3, 6, 7], [-2, 4, 5, 2, 9, 9]])
    voxels = box_voxels(boxes, image.shape)
    assert voxels.shape == (3, 5, 4, 5)
    for box, index in zip(boxes.clamp(min=0).tolist(), voxels, strict=True):
        crop = image[box[0] : box[3], box[1] : box[4], box[2] : box[5]]
        assert torch.equal(image.flatten()[index[tuple(map(slice, crop.shape))]], crop)
        assert (index >= 0).sum() == crop.numel()


def test_bags_of_equal_boxes_collate():
    items = [box_crossing_lines(torch.tensor([[x, 1, x + 9, 8]]), (20, 20)) for x in (0, 5, 11)]
    batch = default_collate(items)
    assert type(batch) is type(items[0]) and batch.bags.shape == (3, *items[0].bags.shape)
    assert torch.equal(torch.where(batch.bags[0] < 0, -1, batch.bags[0] + 100), batch.bags[1])


BOX, CUBE = torch.tensor([[1, 1, 4, 5]]), torch.tensor([[1, 1, 1, 4, 4, 4]])


@pytest.mark.parametrize(
    ("boxes", "shape", "options", "message"),
    [
        (torch.tensor([[1, 1, 4, 5], [4, 1, 1, 5]]), (9, 9), {}, r"box 1 must be finite, with every high corner above"),
        (torch.tensor([[1, 1, 1, 5]]), (9, 9), {}, r"box 0 must .* got \[1.0, 1.0, 1.0, 5.0\]"),
        (torch.tensor([[1, 1, math.nan, 5]]), (9, 9), {}, "box 0 must be finite"),
        (torch.tensor([[1, 1, math.inf, 5]]), (9, 9), {}, "box 0 must be finite"),
        (BOX[0], (9, 9), {}, r"boxes must have the shape \(N, 4\) for 2 axes, got \(4,\)"),
        (BOX, (9, 9, 9), {"reduced_axis": 0}, r"boxes must have the shape \(N, 6\)"),
        (BOX, (9, 0), {}, r"spatial_shape must have one number of at least 1 per axis, got \(9, 0\)"),
        (BOX, (), {}, "spatial_shape must have one number"),
        (BOX, (9, 9), {"angles": [0, 90]}, r"angles must be .* above -90 and below 90 degrees, got \[0, 90\]"),
        (BOX, (9, 9), {"angles": [-120]}, "angles must be"),
        (BOX, (9, 9), {"angles": [math.nan]}, "angles must be"),
        (BOX, (9, 9), {"angles": []}, "angles must be one or more numbers"),
        (BOX, (9, 9), {"angles": torch.tensor(20)}, "angles must be"),
        (BOX, (9, 9), {"spacing": (1, 0)}, "spacing must be above 0"),
        (BOX, (9, 9), {"spacing": (1, 1, 1)}, "spacing must be one number"),
        (BOX, (9, 9), {"reduced_axis": 0}, "reduced_axis must be None for 2 axes, 0, 1 or 2 for 3, got 0 for 2"),
        (BOX, (9, 9), {"reduced_axis": 5}, "got 5 for 2"),
        (CUBE, (9, 9, 9), {}, "got None for 3"),
        (CUBE, (9, 9, 9), {"reduced_axis": 3}, "got 3 for 3"),
        (torch.ones(1, 2), (9,), {}, "got None for 1"),
    ],
)
def test_bad_values(boxes, shape, options, message):
    with pytest.raises(ValueError, match=message):
        box_crossing_lines(boxes, shape, **options)


@pytest.mark.parametrize("boxes", [BOX.bool(), BOX.tolist(), BOX.numpy(), BOX.to(torch.complex64)])
def test_bad_types(boxes):
    with pytest.raises(TypeError, match="boxes must be a tensor of real numbers, got"):
        box_crossing_lines(boxes, (9, 9))
