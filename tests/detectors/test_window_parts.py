# SPDX-License-Identifier: Apache-2.0
"""Which detections a window has cut, and what becomes of them."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors import _window_parts
from monai_labelfx.detectors._window_parts import Parts, join_parts, windows_around, without_covered


def parts(rows: list[tuple], size: tuple[int, ...]) -> Parts:
    """Rows (box, label, score, low corner of the window)."""
    boxes, labels, scores, low = zip(*rows, strict=True)
    low = torch.tensor(low, dtype=torch.float32)
    boxes = torch.tensor(boxes, dtype=torch.float32)
    return Parts(boxes, torch.tensor(labels), torch.tensor(scores), low, low + torch.tensor(size))


def test_cut_where_the_image_goes_on():
    rows = [((0, 5, 10, 9), 0, 0.5, (0, 0)), ((5, 0.5, 15, 9), 0, 0.5, (5, 0)), ((11, 2, 20, 8), 0, 0.5, (10, 0))]
    some = parts(rows, (10, 10))
    cut = some.cut((20, 10), torch.tensor([1.0, 1.0]))
    assert cut.tolist() == [
        [False, False, True, False],  # ends with the first window; the image begins there, and ends at axis 1
        [True, False, True, False],
        [True, False, False, False],  # one voxel from the low side: within the margin
    ]
    assert some.cut((20, 10), torch.tensor([0.5, 1.0]))[2].tolist() == [False] * 4


@pytest.mark.parametrize("axes", [2, 3])
def test_covered_by_a_whole_box_of_its_class_and_about_its_score(axes):
    low, whole = (0,) * axes, (0,) * axes + (10,) * axes
    half, less = (0,) * axes + (20,) + (10,) * (axes - 1), (0,) * axes + (21,) + (10,) * (axes - 1)
    rows = [
        (whole, 1, 0.4, low),
        (half, 1, 0.8, low),  # covered by half, twice the score
        (less, 1, 0.8, low),
        (half, 0, 0.8, low),
        (half, 1, 0.81, low),
    ]
    cut = torch.tensor([False, True, True, True, True])
    assert without_covered(parts(rows, (50,) * axes), cut).tolist() == [0, 2, 3, 4]
    # what is whole is never dropped, and what is cut covers nothing
    assert without_covered(parts(rows, (50,) * axes), torch.zeros(5, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]
    assert without_covered(parts(rows, (50,) * axes), torch.ones(5, dtype=torch.bool)).tolist() == [0, 1, 2, 3, 4]


def long_object(scores=(0.9, 0.6, 0.8), labels=(0, 0, 0), across=((2, 6), (2, 6), (2, 6))):
    boxes = [(3, a, 10, b) for a, b in across[:1]] + [(5, a, 15, b) for a, b in across[1:2]]
    boxes += [(10, a, 17, b) for a, b in across[2:]]
    rows = list(zip(boxes, labels, scores, [(0, 0), (5, 0), (10, 0)], strict=True))
    some = parts(rows, (10, 10))
    return some, some.cut((20, 10), torch.tensor([1.0, 1.0]))


def test_parts_of_one_object_become_one_box():
    some, cut = long_object()
    boxes, labels, scores, group = join_parts(some, cut)
    assert boxes.tolist() == [[3, 2, 17, 6]] and labels.tolist() == [0] and group.tolist() == [0, 0, 0]
    assert scores.tolist() == [some.scores.max().item()]


@pytest.mark.parametrize(
    ("change", "groups"),
    [
        ({"labels": (0, 1, 0)}, [0, 1, 0]),  # windows that touch: the first and the last still meet
        ({"scores": (0.9, 0.44, 0.3)}, [0, 1, 1]),
        ({"across": ((2, 6), (4, 8), (4.5, 8.5))}, [0, 1, 1]),  # an IoU of a third across, then of 7 / 9
    ],
)
def test_parts_need_class_score_and_section(change, groups):
    some, cut = long_object(**change)
    assert join_parts(some, cut)[3].tolist() == groups


def test_only_sides_that_face_each_other_join():
    some, cut = long_object()
    cut[1] = False  # whole: touches the others, but they do not go on in it
    assert join_parts(some, cut)[3].tolist() == [0, 1, 0]
    cut[:] = False
    boxes, _, scores, group = join_parts(some, cut)
    assert group.tolist() == [0, 1, 2] and torch.equal(boxes, some.boxes) and torch.equal(scores, some.scores)
    # two boxes of one window are two objects
    same = Parts(*(value[[0, 0]] for value in some))
    assert join_parts(same, torch.ones(2, 4, dtype=torch.bool))[3].tolist() == [0, 1]


def test_none_at_all():
    empty = Parts(torch.zeros(0, 6), torch.zeros(0).long(), torch.zeros(0), torch.zeros(0, 3), torch.zeros(0, 3))
    cut = empty.cut((9, 9, 9), torch.ones(3))
    assert len(without_covered(empty, cut.any(1))) == 0
    assert [tuple(value.shape) for value in join_parts(empty, cut)] == [(0, 6), (0,), (0,), (0,)]


def test_in_pieces_the_same(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    low = torch.randint(0, 4, (60, 2), generator=generator) * 5.0
    begin = low + 6 * torch.rand(60, 2, generator=generator)
    end = torch.minimum(begin + 4 + 4 * torch.rand(60, 2, generator=generator), low + 10)
    labels, scores = torch.randint(0, 2, (60,), generator=generator), torch.rand(60, generator=generator) + 0.5
    some = Parts(torch.cat([begin, end], 1), labels, scores, low, low + 10)
    cut = some.cut((25, 25), torch.ones(2))

    def everything():
        kept = without_covered(some, cut.any(1))
        return [kept, *join_parts(some.take(kept), cut[kept])]

    expected = everything()
    assert len(expected[1]) < len(expected[0]) < 60, "some are covered, and some are joined"
    monkeypatch.setattr(_window_parts, "_PAIRS", 70)
    assert all(torch.equal(a, b) for a, b in zip(everything(), expected, strict=True))


def test_windows_that_hold_a_box_whole():
    lows = [(a, b) for a in (0, 4, 8) for b in (0, 6)]
    boxes = torch.tensor(
        [[5, 6, 6, 7], [0, 0, 3, 3], [0, 0, 9, 9], [0, 0, 16, 16], [5.5, 7.5, 6, 8.5], [9, 7.5, 10, 9]]
    )
    counts = windows_around(boxes, lows, (8, 10), (16, 16), torch.tensor([1.0, 1.0]))
    naive = []
    for a, b, c, d in boxes.tolist():
        fits = 0
        for x, y in lows:
            first = (a - x > 1 or x == 0) and (x + 8 - c > 1 or x + 8 == 16)
            fits += first and (b - y > 1 or y == 0) and (y + 10 - d > 1 or y + 10 == 16)
        naive.append(max(1, fits))
    assert counts.tolist() == naive == [1, 1, 1, 1, 4, 1]
