# SPDX-License-Identifier: Apache-2.0
"""Border classes against scikit-image, and against a voxel-by-voxel reading of their definition."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from skimage.segmentation import find_boundaries

from monai_labelfx.ops import border_classes

SHAPES = ((9,), (17, 12), (1, 9), (8, 7, 9), (1, 6, 5))
INTEGERS = (torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint16, torch.uint32, torch.uint64)


def label_map(shape, seed: int, objects: int = 5) -> np.ndarray:
    """Random blocks of labels, dense enough that many touch, some only at a corner."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, objects + 1, [-(-n // 2) for n in shape]) * (rng.random([-(-n // 2) for n in shape]) < 0.8)
    fine = np.kron(coarse, np.ones([2] * len(shape), int))[tuple(slice(n) for n in shape)]
    return (fine * (rng.random(shape) < 0.95)).astype(np.int32)


def reference(labels: np.ndarray, connectivity: int = 1) -> np.ndarray:
    return np.where(find_boundaries(labels, connectivity=connectivity, mode="outer"), 2, labels > 0)


def naive(labels: np.ndarray, width: tuple[float, ...], connectivity: int = 1) -> np.ndarray:
    """The definition, one voxel and one neighbour at a time."""
    classes = np.zeros(labels.shape, int)
    boxes = [range(-int(w), int(w) + 1) for w in width]
    for voxel in np.ndindex(labels.shape):
        differs = crowded = False
        for offset in itertools.product(*boxes):
            other = tuple(v + o for v, o in zip(voxel, offset, strict=True))
            if not all(0 <= v < n for v, n in zip(other, labels.shape, strict=True)):
                continue
            unequal = labels[other] != labels[voxel]
            near = sum(abs(o) / w for o, w in zip(offset, width, strict=True) if o) <= connectivity + 1e-9
            differs |= unequal and near
            crowded |= unequal and labels[other] > 0
        if differs and (labels[voxel] == 0 or crowded):
            classes[voxel] = 2
        elif labels[voxel] > 0:
            classes[voxel] = 1
    return classes


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("seed", range(8))
def test_equals_scikit_image_for_each_connectivity(shape, seed):
    labels = label_map(shape, seed)
    for connectivity in range(1, len(shape) + 1):
        result = border_classes(torch.as_tensor(labels)[None], connectivity=connectivity)
        assert result.dtype == torch.int64
        np.testing.assert_array_equal(result[0].numpy(), reference(labels, connectivity))


@pytest.mark.parametrize("dtype", INTEGERS, ids=str)
@pytest.mark.parametrize("shape", SHAPES[1:4])
def test_every_integer_type_and_its_largest_labels(dtype, shape):
    labels = label_map(shape, seed=3)
    largest = np.iinfo(str(dtype).removeprefix("torch.")).max
    numbers = np.array([0, *(largest - k for k in range(5))], dtype=str(dtype).removeprefix("torch."))
    result = border_classes(torch.as_tensor(numbers[labels])[None])
    np.testing.assert_array_equal(result[0].numpy(), reference(labels))


@pytest.mark.parametrize("dtype", [torch.bool, torch.float16, torch.float32, torch.float64], ids=str)
def test_masks_and_whole_floats_are_labels_too(dtype):
    labels = torch.as_tensor(label_map((9, 8), 1, objects=1))
    np.testing.assert_array_equal(border_classes(labels[None].to(dtype))[0], reference(labels.numpy()))


@pytest.mark.parametrize(
    ("shape", "width", "connectivity"),
    [
        ((11,), (2,), 1),
        ((11, 9), (2, 2), 1),
        ((11, 9), (3, 3), 2),
        ((11, 9), (1, 3), 1),
        ((11, 9), (0, 2), 1),
        ((6, 7, 8), (1, 2, 2), 1),
        ((6, 7, 8), (2, 2, 1), 3),
    ],
)
def test_widths_follow_the_definition(shape, width, connectivity):
    for seed in range(3):
        labels = label_map(shape, seed, objects=3)
        result = border_classes(torch.as_tensor(labels)[None], width, connectivity=connectivity)
        np.testing.assert_array_equal(result[0].numpy(), naive(labels, width, connectivity))


def test_the_naive_definition_is_scikit_images_at_width_one():
    for seed in range(4):
        labels = label_map((9, 10), seed)
        np.testing.assert_array_equal(naive(labels, (1, 1)), reference(labels))


def test_known_cubes():
    labels = torch.zeros(1, 9, 9, 12, dtype=torch.int64)
    labels[0, 3:6, 3:6, 3:6] = 1
    assert torch.bincount(border_classes(labels).flatten()).tolist()[1:] == [27, 54], "27 voxels and a ring of 54"
    labels[0, 3:6, 3:6, 6:9] = 2
    assert int((border_classes(labels) == 1).sum()) == 36, "27 + 27 voxels keep 36 where two cubes touch"


def test_spacing_gives_thick_slices_fewer_border_voxels_but_one_at_least():
    labels = torch.zeros(1, 11, 11, 11, dtype=torch.int64)
    labels[0, 5, 5, 5] = 1
    border = border_classes(labels, 3.0, spacing=(5.0, 1.5, 1.0))[0] == 2
    assert [int(border[:, 5, 5].sum()), int(border[5, :, 5].sum()), int(border[5, 5].sum())] == [2, 4, 6]
    assert torch.equal(border_classes(labels, 0.3, spacing=(0.1,) * 3), border_classes(labels, 3)), "0.3 / 0.1 is 3"


def test_maps_along_the_first_axis_do_not_meet():
    maps = torch.as_tensor(np.stack([label_map((8, 9), seed) for seed in range(4)]))
    together = border_classes(maps, 2)
    assert torch.equal(together, torch.cat([border_classes(one[None], 2) for one in maps]))


def test_flipping_and_transposing_commute():
    labels = torch.as_tensor(label_map((9, 7), 5))[None]
    classes = border_classes(labels, 2)
    assert torch.equal(border_classes(labels.flip(1), 2), classes.flip(1))
    assert torch.equal(border_classes(labels.mT, 2), classes.mT)


def test_a_volume_of_one_slice_is_a_picture():
    labels = torch.as_tensor(label_map((9, 7), 6))[None]
    assert torch.equal(border_classes(labels[:, None], 2)[:, 0], border_classes(labels, 2))


def test_input_is_not_edited_and_extremes_work():
    labels = torch.as_tensor(label_map((6, 6), 2))[None]
    before = labels.clone()
    border_classes(labels, 2)
    assert torch.equal(labels, before)
    assert not border_classes(torch.zeros(1, 5, 5, dtype=torch.int64)).any(), "no object, no border"
    assert border_classes(torch.full((1, 5, 5), 7)).eq(1).all(), "image faces make no border"
    assert border_classes(torch.full((1, 1, 1), 7), 4).tolist() == [[[1]]]
    assert border_classes(torch.zeros(1, 0, 4, dtype=torch.int64)).shape == (1, 0, 4)


@pytest.mark.parametrize(
    ("labels", "keywords", "error", "words"),
    [
        ([[1]], {}, TypeError, "instances must be a tensor of integer labels, got list"),
        (torch.ones(1, 3, dtype=torch.complex64), {}, TypeError, "complex64"),
        (torch.tensor([[0, -1]]), {}, ValueError, "positive labels, got -1"),
        (torch.tensor([[0, 0.5]]), {}, ValueError, "whole numbers"),
        (torch.tensor([[0, float("nan")]]), {}, ValueError, "whole numbers"),
        (torch.tensor([[0, float("inf")]]), {}, ValueError, "whole numbers"),
        (torch.ones(4, dtype=torch.int64), {}, ValueError, r"shape \(N, \*spatial\), got \(4,\)"),
        (torch.ones(1, 4, 4), {"border_width": 1.5}, ValueError, "whole number of voxels without spacing, got 1.5"),
        (torch.ones(1, 4, 4), {"border_width": -1}, ValueError, "border_width must be one number of 0 or above"),
        (torch.ones(1, 4, 4), {"border_width": (1, 2, 3)}, ValueError, "each of 2 axes"),
        (torch.ones(1, 4, 4), {"connectivity": 3}, ValueError, "connectivity must be between 1 and .* 2, got 3"),
        (torch.ones(1, 4, 4), {"spacing": (1.0, 0.0)}, ValueError, "spacing must be above 0"),
        (torch.ones(1, 4, 4), {"spacing": (1.0,)}, ValueError, "spacing must be one number"),
    ],
)
def test_errors_say_what_is_wrong(labels, keywords, error, words):
    with pytest.raises(error, match=words):
        border_classes(labels, **keywords)
