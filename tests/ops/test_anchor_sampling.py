# SPDX-License-Identifier: Apache-2.0
"""Counts and members of the samples of each image, what a seed decides, and MONAI's sampler beside ours."""

from __future__ import annotations

import math

import pytest
import torch
from monai.apps.detection.utils.hard_negative_sampler import HardNegativeSampler

from monai_labelfx.ops.anchor_sampling import balanced_sample, hard_negative_sample, hard_negatives


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def matches_of(counts: list[tuple[int, int, int]], length: int = 40) -> torch.Tensor:
    """For each image so many positives, negatives and ignored, in random order; the rest is -3."""
    rows = torch.full((len(counts), length), -3)
    for row, (positive, negative, ignored) in zip(rows, counts, strict=True):
        values = [*range(positive), *[-1] * negative, *[-2] * ignored]
        row[torch.randperm(length, generator=seeded())[: len(values)]] = torch.tensor(values)
    return rows


COUNTS = [(20, 15, 5), (5, 30, 5), (0, 40, 0), (30, 3, 0), (0, 0, 40)]


@pytest.mark.parametrize(("number", "fraction"), [(8, 0.5), (10, 0.25), (16, 0.0), (16, 1.0), (0, 0.5), (100, 0.5)])
def test_counts_of_each_image(number, fraction):
    matches = matches_of(COUNTS)
    positive, negative = balanced_sample(matches, number, fraction, generator=seeded())
    assert positive.dtype == negative.dtype == torch.bool
    assert not (positive & (matches < 0)).any() and not (negative & (matches != -1)).any()
    for row, (positives, negatives, _) in enumerate(COUNTS):
        drawn = min(positives, int(number * fraction))
        assert positive[row].sum() == drawn
        assert negative[row].sum() == min(negatives, number - drawn)


def test_seed_alone_decides():
    matches = matches_of(COUNTS)
    before = torch.get_rng_state()
    first, again, other = (balanced_sample(matches, 8, 0.5, generator=seeded(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0]) and not torch.equal(first[1], other[1])
    assert not torch.equal(balanced_sample(matches, 8, 0.5)[1], balanced_sample(matches, 8, 0.5)[1])


def test_every_anchor_is_as_likely():
    matches = torch.tensor([[0, 1, 2, 3, -1, -1, -1, -1, -1, -2]]).expand(4000, -1)
    positive, negative = balanced_sample(matches, 4, 0.25, generator=seeded())
    assert positive.double().mean(0).tolist() == pytest.approx([0.25] * 4 + [0] * 6, abs=0.03)
    assert negative.double().mean(0).tolist() == pytest.approx([0] * 4 + [0.6] * 5 + [0], abs=0.03)


def test_empty():
    for shape in ((0, 5), (3, 0)):
        matches = torch.zeros(shape, dtype=torch.int64)
        for found in (*balanced_sample(matches, 8, 0.5), *hard_negative_sample(matches.float(), matches, 8, 0.5)):
            assert found.shape == shape
        assert hard_negatives(matches.float(), matches > 0, matches < 0).shape == shape


@pytest.mark.parametrize("ratio", [3.0, 1.5, 0.0])
@pytest.mark.parametrize("least", [0, 4])
def test_hard_negatives_equal_a_plain_loop(ratio, least):
    matches = matches_of(COUNTS)
    losses = torch.randint(0, 6, matches.shape, generator=seeded()).float()  # with many ties
    positive, candidates = matches >= 0, matches == -1
    found = hard_negatives(losses, positive, candidates, ratio=ratio, min_negatives=least)
    for row in range(len(matches)):
        order = sorted(candidates[row].nonzero().flatten().tolist(), key=lambda a, r=row: -losses[r, a].item())
        wanted = max(math.floor(ratio * positive[row].sum().item()), least)
        assert set(found[row].nonzero().flatten().tolist()) == set(order[:wanted])


def test_hard_negatives_of_the_batch():
    losses = torch.tensor([[9.0, 1.0, 2.0, 3.0], [8.0, 7.0, 0.5, 0.0]])
    positive = torch.tensor([[True, False, False, False], [False] * 4])
    assert not hard_negatives(losses, positive, ~positive)[1].any()  # as SSD: an image without boxes teaches nothing
    found = hard_negatives(losses, positive, ~positive, per_image=False)
    assert found.tolist() == [[False, False, False, True], [True, True, False, False]]
    assert hard_negatives(losses, positive, ~positive, min_negatives=1)[1].tolist() == [True, False, False, False]


def test_hard_negatives_do_not_enter_the_graph():
    losses = torch.rand(2, 6, requires_grad=True)
    found = hard_negatives(losses, torch.zeros(2, 6).bool(), torch.ones(2, 6).bool(), min_negatives=2)
    (losses * found).sum().backward()
    assert torch.equal(losses.grad, found.float())


@pytest.mark.parametrize(("number", "fraction", "least", "pool"), [(6, 0.5, 1, 2), (32, 0.3, 1, 10), (4, 1.0, 3, 1.5)])
def test_hard_negative_sample_as_monai(number, fraction, least, pool):
    matches = matches_of(COUNTS)
    scores = torch.rand(matches.shape, generator=seeded())
    how = {"min_negatives": least, "pool_size": pool}
    positive, negative = hard_negative_sample(scores, matches, number, fraction, **how, generator=seeded())
    # MONAI's labels: positive above 0, negative 0, and below 0 what is not drawn.
    labels = torch.where(matches == -1, 0, torch.where(matches >= 0, 1, -1))
    sampler = HardNegativeSampler(number, fraction, min_neg=least, pool_size=pool)
    theirs = sampler.select_samples_img_list(list(labels), list(scores))
    for row in range(len(matches)):
        assert positive[row].sum() == theirs[0][row].sum() and not (positive[row] & (matches[row] < 0)).any()
        assert negative[row].sum() == theirs[1][row].sum() and not (negative[row] & (matches[row] != -1)).any()
        size = int(negative[row].sum() * pool)
        hardest = scores[row].masked_fill(matches[row] != -1, -1).sort(descending=True).indices[:size]
        assert set(negative[row].nonzero().flatten().tolist()) <= set(hardest.tolist())
    assert torch.equal(negative, hard_negative_sample(scores, matches, number, fraction, **how, generator=seeded())[1])


def test_every_one_of_the_pool_is_drawn():
    scores, matches = torch.arange(10.0).expand(3000, -1), torch.full((3000, 10), -1)
    _, negative = hard_negative_sample(scores, matches, 4, 0.5, min_negatives=2, pool_size=2, generator=seeded())
    assert negative.double().mean(0).tolist() == pytest.approx([0] * 6 + [0.5] * 4, abs=0.05)


def test_bad_input():
    matches = matches_of(COUNTS)
    scores = torch.zeros(5, 40)
    with pytest.raises(ValueError, match=r"matches must have the shape \(B, A\), got \(40,\)"):
        balanced_sample(matches[0], 8, 0.5)
    with pytest.raises(ValueError, match="number must be at least 0 and the fraction 0 to 1, got 8 and 1.5"):
        balanced_sample(matches, 8, 1.5)
    with pytest.raises(ValueError, match=r"positive and candidates must have the shape \(5, 40\) of the losses"):
        hard_negatives(scores, scores[:2] > 0, scores > 0)
    with pytest.raises(ValueError, match="ratio and min_negatives must be at least 0, got -1 and 0"):
        hard_negatives(scores, scores > 0, scores > 0, ratio=-1)
    with pytest.raises(ValueError, match=r"scores must have the shape \(5, 40\) of matches, got \(2, 40\)"):
        hard_negative_sample(scores[:2], matches, 8, 0.5)
    with pytest.raises(ValueError, match="pool_size at least 1, got 8, 1, 0 and 10"):
        hard_negative_sample(scores, matches, 8, 0)
