# SPDX-License-Identifier: Apache-2.0
"""Decoding of class probabilities: what a perfect prediction gives back, and the steps one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import ndimage

from monai_labelfx.ops import border_classes, decode_instances
from monai_labelfx.ops.instances import integer_labels


def one_hot(classes: torch.Tensor) -> torch.Tensor:
    """A perfect prediction (3, *spatial) of classes (1, *spatial)."""
    return torch.nn.functional.one_hot(classes[0], 3).movedim(-1, 0).float()


def balls(seed: int, radius: float, closest: float, shape=(128, 128), tries: int = 3000) -> torch.Tensor:
    """Random balls (1, *shape) with centres at least ``closest`` apart, painted one over the other."""
    rng = np.random.default_rng(seed)
    grid = np.stack(np.meshgrid(*(np.arange(n) for n in shape), indexing="ij"), -1)
    centres = np.full((1, len(shape)), np.inf)
    labels = np.zeros(shape, np.int32)
    for centre in rng.uniform(0, shape, (tries, len(shape))):
        if ((centre - centres) ** 2).sum(1).min() >= closest**2:
            near = tuple(slice(max(int(c - radius), 0), int(c + radius) + 2) for c in centre)
            labels[near][((grid[near] - centre) ** 2).sum(-1) <= radius**2] = len(centres)
            centres = np.concatenate([centres, centre[None]])
    return torch.as_tensor(labels)[None]


def ap(prediction: torch.Tensor, truth: torch.Tensor) -> float:
    """TP / (TP + FP + FN) at IoU above 0.5, written independently of the metric."""
    predicted, true = prediction.numpy().ravel(), truth.numpy().ravel()
    pairs, shared = np.unique(np.stack([predicted, true]), axis=1, return_counts=True)
    sizes, true_sizes = np.bincount(predicted), np.bincount(true)
    iou = shared / (sizes[pairs[0]] + true_sizes[pairs[1]] - shared)
    hits = int(((iou > 0.5) & (pairs > 0).all(0)).sum())
    return hits / (np.count_nonzero(sizes[1:]) + np.count_nonzero(true_sizes[1:]) - hits)


def test_growth_lifts_the_ceiling_of_dense_discs():
    """20 images of dense touching discs of radius 5: a perfect prediction reaches about 0.86, and 0.98 with growth."""
    without, grown = [], []
    for seed in range(20):
        truth = balls(seed, radius=5, closest=6.5)
        probabilities = one_hot(border_classes(truth))
        without.append(ap(decode_instances(probabilities, growth=0), truth))
        grown.append(ap(decode_instances(probabilities), truth))
    assert 0.82 < np.mean(without) < 0.90
    assert np.mean(grown) > 0.97


@pytest.mark.parametrize(("width", "left"), [(1, 0.4), (2, 0.5), (3, 0.6)])
def test_growth_as_wide_as_the_border_recovers_touching_balls(width, left):
    truth = balls(0, radius=6, closest=10.5, shape=(24, 24, 24), tries=40)
    probabilities = one_hot(border_classes(truth, width))
    without, grown = (decode_instances(probabilities, growth=growth) for growth in (0, width))
    wrong = [int(((labels > 0) != (truth > 0)).sum()) for labels in (without, grown)]
    assert wrong[1] < left * wrong[0]
    assert ap(grown, truth) == 1.0


def isolated(shape: tuple[int, ...], gap: int) -> torch.Tensor:
    """Blocks, one with a notch and one hollow, numbered in scan order along the first axis, ``gap`` voxels apart."""
    labels = torch.zeros(1, *shape, dtype=torch.int32)
    for number, start in enumerate(range(2, shape[0] - 7, 7 + gap), start=1):
        block = labels[(0, slice(start, start + 7), *(slice(2, 9) for _ in shape[1:]))]
        block[...] = number
        if number % 2:
            block[(slice(3, 5), slice(3, None), *(slice(None) for _ in shape[2:]))] = 0
        else:
            block[tuple(slice(2, 5) for _ in shape)] = 0
    return labels


@pytest.mark.parametrize("shape", [(60, 12), (60, 12, 12)])
@pytest.mark.parametrize("width", [1, 2])
def test_isolated_objects_decode_to_exactly_themselves(shape, width):
    truth = isolated(shape, gap=4 * width + 1)
    assert int(truth.max()) >= 3
    assert torch.equal(decode_instances(one_hot(border_classes(truth, width)), growth=width), truth)


def test_isolated_balls_decode_to_exactly_themselves():
    truth = balls(1, radius=4, closest=13.5, shape=(80, 80), tries=400)
    decoded = decode_instances(one_hot(border_classes(truth)))
    numbers = {int(n): int(truth[decoded == n].unique()) for n in decoded.unique()}
    assert len(set(numbers.values())) == len(truth.unique()), "one object each"
    assert torch.equal(torch.tensor([numbers[n] for n in range(len(numbers))])[decoded.long()], truth.long())


def test_touching_blocks_come_back_whole():
    truth = torch.zeros(1, 12, 20, dtype=torch.int32)
    truth[0, 3:9, 3:9], truth[0, 3:9, 9:16] = 1, 2
    probabilities = one_hot(border_classes(truth))
    assert torch.equal(decode_instances(probabilities), truth)
    assert int((decode_instances(probabilities, growth=0) > 0).sum()) == int((truth > 0).sum()) - 12


def test_a_voxel_between_two_objects_goes_to_neither():
    probabilities = one_hot(torch.tensor([[[1, 1, 2, 1, 1]]]))
    assert decode_instances(probabilities).tolist() == [[[1, 1, 0, 2, 2]]]


def test_growth_per_axis():
    column = one_hot(torch.tensor([[[1, 1, 2, 2, 1, 1]]]))
    assert decode_instances(column, growth=(0, 1)).tolist() == [[[1, 1, 1, 2, 2, 2]]]
    assert decode_instances(column.mT, growth=(0, 1)).tolist() == decode_instances(column.mT, growth=0).tolist()
    assert decode_instances(column.mT, growth=(1, 0))[0, :, 0].tolist() == [1, 1, 1, 2, 2, 2]


def test_threshold_is_exclusive_and_may_be_any_number_like():
    class Stored:
        value = 0.5

        def __float__(self) -> float:
            return self.value

    probabilities = torch.tensor([[[0.5, 0.3]], [[0.5, 0.7]], [[0.0, 0.0]]])
    assert decode_instances(probabilities).tolist() == [[[0, 1]]]
    stored = Stored()
    assert decode_instances(probabilities, stored).tolist() == [[[0, 1]]]
    stored.value = 0.4
    assert decode_instances(probabilities, stored).tolist() == [[[1, 1]]]
    assert not decode_instances(probabilities, 1.0).any()


def test_min_size_drops_and_renumbers():
    probabilities = one_hot(torch.tensor([[[1, 1, 0, 1, 0, 1, 1, 1]]]))
    assert decode_instances(probabilities, min_size=2).tolist() == [[[1, 1, 0, 0, 0, 2, 2, 2]]]
    assert decode_instances(probabilities, min_size=3).tolist() == [[[0, 0, 0, 0, 0, 1, 1, 1]]]
    assert not decode_instances(probabilities, min_size=4).any()
    assert decode_instances(probabilities, min_size=1).max() == 3


@pytest.mark.parametrize("shape", [(40, 40), (14, 15, 16)])
def test_holes_are_filled_like_scipy_fills_each_object(shape):
    rng = np.random.default_rng(2)
    noise = ndimage.gaussian_filter(rng.normal(size=shape), 1.0)
    classes = torch.as_tensor((np.abs(noise) > 0.3 * noise.std()).astype(np.int64))[None]
    plain = decode_instances(one_hot(classes), growth=0)[0].numpy()
    filled = decode_instances(one_hot(classes), growth=0, fill_holes=True)[0].numpy()
    expected = plain.copy()
    for number in range(1, plain.max() + 1):
        hole = ndimage.binary_fill_holes(plain == number) & (plain != number)
        # A hole that holds another object stays open: only pieces of pure background count.
        pieces, count = ndimage.label(hole & (plain == 0))
        for piece in range(1, count + 1):
            ring = ndimage.binary_dilation(pieces == piece) & (pieces != piece)
            if set(np.unique(plain[ring])) == {number}:
                expected[pieces == piece] = number
    assert (filled != plain).any()
    np.testing.assert_array_equal(filled, expected)


def test_open_bays_and_shared_gaps_are_no_holes():
    classes = torch.tensor([[[1, 1, 1, 0, 1], [1, 0, 1, 0, 1], [1, 1, 1, 0, 1], [1, 0, 1, 0, 1]]])
    filled = decode_instances(one_hot(classes), fill_holes=True)[0]
    assert filled.tolist() == [[1, 1, 1, 0, 2], [1, 1, 1, 0, 2], [1, 1, 1, 0, 2], [1, 0, 1, 0, 2]]


def test_connectivity_joins_diagonals():
    probabilities = one_hot(torch.eye(3, dtype=torch.int64)[None])
    assert decode_instances(probabilities, growth=0).max() == 3
    assert decode_instances(probabilities, growth=0, connectivity=2).max() == 1


@pytest.mark.parametrize("shape", [(7,), (6, 5), (4, 5, 6)])
@pytest.mark.parametrize("options", [{}, {"fill_holes": True, "min_size": 1, "growth": 2}], ids=["plain", "all"])
def test_extremes(shape, options):
    background = one_hot(torch.zeros(1, *shape, dtype=torch.int64))
    assert not decode_instances(background, **options).any()
    assert not decode_instances(one_hot(torch.full((1, *shape), 2)), **options).any(), "border alone is no object"
    assert decode_instances(one_hot(torch.ones(1, *shape, dtype=torch.int64)), **options).eq(1).all()
    single = torch.zeros(1, *shape, dtype=torch.int64)
    single[(0, *(n // 2 for n in shape))] = 1
    assert torch.equal(decode_instances(one_hot(border_classes(single)), **options), single.int())
    assert not decode_instances(torch.full((3, *shape), torch.nan), **options).any(), "NaN is no object"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64], ids=str)
def test_any_float_type_gives_int32(dtype):
    truth = balls(2, radius=4, closest=6, shape=(30, 30), tries=50)
    probabilities = one_hot(border_classes(truth))
    result = decode_instances(probabilities.to(dtype))
    assert result.dtype == torch.int32 and torch.equal(result, decode_instances(probabilities))


def test_a_volume_of_one_slice_is_a_picture():
    probabilities = one_hot(border_classes(balls(3, radius=4, closest=6, shape=(30, 30), tries=80)))
    flat = decode_instances(probabilities, fill_holes=True, min_size=3)
    for growth in (1, (0, 1, 1)):
        deep = decode_instances(probabilities[:, None], fill_holes=False, min_size=3, growth=growth)[:, 0]
        assert torch.equal(deep, decode_instances(probabilities, min_size=3))
    assert flat.max() == deep.max()


def test_noisy_probabilities_never_grow_into_background_or_foreground_of_others():
    noise = torch.randn(3, 40, 40, generator=torch.Generator().manual_seed(0))
    probabilities = torch.nn.functional.avg_pool2d(noise, 3, 1, 1).mul(4).softmax(0)
    before, after = decode_instances(probabilities, growth=0), decode_instances(probabilities, growth=2)
    assert torch.equal(after[before > 0], before[before > 0])
    new = (after > 0) & (before == 0)
    assert new.any() and (probabilities[2] >= probabilities[0])[new[0]].all()


@pytest.mark.parametrize(
    ("probabilities", "keywords", "words"),
    [
        (torch.zeros(4, 5, 5), {}, r"shape \(3, \*spatial\).*got \(4, 5, 5\)"),
        (torch.zeros(3), {}, r"got \(3,\)"),
        (torch.zeros(3, 5, 5), {"threshold": 1.5}, "between 0 and 1, got 1.5"),
        (torch.zeros(3, 5, 5), {"threshold": float("nan")}, "got nan"),
        (torch.zeros(3, 5, 5), {"min_size": -1}, "min_size .* got -1"),
        (torch.zeros(3, 5, 5), {"connectivity": 0}, "connectivity must be between 1 and .* 2, got 0"),
        (torch.zeros(3, 5, 5), {"growth": 0.5}, "whole number of voxels, got 0.5"),
        (torch.zeros(3, 5, 5), {"growth": (1, 1, 1)}, "growth must be one number .* 2 axes"),
    ],
)
def test_errors_say_what_is_wrong(probabilities, keywords, words):
    with pytest.raises(ValueError, match=words):
        decode_instances(probabilities, **keywords)


def test_integer_labels_keeps_labels_apart():
    huge = torch.tensor(np.array([0, 2**63, 2**64 - 1, 5], dtype=np.uint64))
    assert len(integer_labels(huge).unique()) == 4 and integer_labels(huge)[0] == 0
    assert integer_labels(torch.zeros(0)).dtype == torch.int64
