# SPDX-License-Identifier: Apache-2.0
"""Curves by hand, and weights of images against copies of them."""

from __future__ import annotations

import numpy as np
import pytest

from monai_labelfx.metrics._detection_matching import DetectionMatches
from monai_labelfx.metrics._precision_recall import DetectionCurves


def curves(scores, hits, counts, images, objects, classes=1) -> DetectionCurves:
    """One class and threshold, or several classes with the same rows."""
    n = len(scores)
    hits_word, counts_word = (np.tile(np.array([flags], np.uint64), (1, classes)) for flags in (hits, counts))
    matches = DetectionMatches(
        np.arange(classes),
        np.arange(classes + 1) * n,
        np.tile(images, classes),
        np.tile(np.asarray(scores, float), classes),
        np.tile(np.arange(n), classes),
        hits_word,
        counts_word,
        np.tile(objects, classes),
        np.repeat(np.arange(classes), len(objects)),
        np.ones((1, classes * len(objects)), bool),
    )
    return DetectionCurves(matches, 1)


ONE = np.ones((1, 2))


def test_average_precision_by_hand():
    # precision 1, 1/2, 2/3 at recalls 1/4, 1/4, 1/2; an uncounted detection between them changes nothing
    made = curves([0.9, 0.8, 0.7, 0.6], [1, 0, 0, 1], [1, 1, 0, 1], [0, 0, 1, 1], [0, 0, 1, 1])
    assert made.average_precision(ONE, 0, None, [0])[0, 0, 0] == pytest.approx((26 * 1 + 25 * 2 / 3) / 101)
    assert made.recall(ONE, 0, None, [0])[0, 0, 0] == 0.5 and made.recall(ONE, 0, 1, [0])[0, 0, 0] == 0.25
    assert made.average_precision(ONE, 0, 1, [0])[0, 0, 0] == pytest.approx(26 / 101)
    assert made.positives(ONE, 0).tolist() == [[4]]


def test_equal_scores_are_one_step():
    for hits in ([1, 0, 0], [0, 1, 0], [0, 0, 1]):
        made = curves([0.5, 0.5, 0.5], hits, [1, 1, 1], [0, 0, 1], [0])
        assert made.average_precision(ONE, 0, None, [0])[0, 0, 0] == pytest.approx(1 / 3)
        assert made.sensitivity(ONE, [0.99, 1.0], interpolate=False)[0, 0].tolist() == [0, 1]


def test_sensitivity_by_hand():
    # false positives per image 0, 1/2, 1/2, 1 and sensitivities 1/4, 1/4, 1/2, 1/2
    made = curves([0.9, 0.8, 0.7, 0.6], [1, 0, 1, 0], [1, 1, 1, 1], [0, 0, 1, 1], [0, 0, 1, 1])
    rates = [0.1, 0.25, 0.5, 0.75, 1, 8]
    assert made.sensitivity(ONE, rates, interpolate=False)[0, 0].tolist() == [0.25, 0.25, 0.5, 0.5, 0.5, 0.5]
    lines = made.sensitivity(ONE, rates, interpolate=True)[0, 0]
    assert lines == pytest.approx([0.25, 0.25, 0.5, 0.5, 0.5, 0.5]), "the curve goes up in steps"
    slope = curves([0.9, 0.9], [0, 1], [1, 1], [0, 0], [0])  # one score for a hit and a false positive
    assert slope.sensitivity(ONE, [0.25, 0.5], interpolate=True)[0, 0] == pytest.approx([0.5, 1])
    assert slope.sensitivity(ONE, [0.25, 0.5], interpolate=False)[0, 0] == pytest.approx([0, 1])


def test_nothing_found_and_nothing_to_find():
    missed = curves([], [], [], np.zeros(0, int), [0])
    for values in (
        missed.average_precision(ONE, 0, None, [0]),
        missed.recall(ONE, 0, None, [0]),
        missed.sensitivity(ONE, [1.0], interpolate=True),
    ):
        assert values.tolist() == [[[0.0]]]
    idle = curves([0.5], [0], [1], [0], [0])
    weights = np.array([[0.0, 3.0], [1.0, 0.0]])  # the first leaves the only object out
    assert np.isnan(idle.average_precision(weights, 0, None, [0])[:, 0, 0]).tolist() == [True, False]
    assert np.isnan(idle.recall(weights, 0, None, [0])[:, 0, 0]).tolist() == [True, False]
    assert np.isnan(idle.sensitivity(weights, [1.0], interpolate=True)[:, 0, 0]).tolist() == [True, False]


@pytest.mark.parametrize("ties", [False, True])
def test_an_image_of_weight_two_is_two_images(ties):
    rng = np.random.default_rng(0)
    images = 7
    scores = np.sort(rng.integers(0, 6 if ties else 10**6, 60))[::-1]
    hits = rng.random(60) < 0.4
    counts = hits | (rng.random(60) < 0.8)
    image, objects = rng.integers(0, images, 60), np.repeat(np.arange(images), 6)
    made = curves(scores, hits, counts, image, objects, classes=2)
    weights = rng.integers(0, 4, (5, images)).astype(float)
    many = [
        made.average_precision(weights, 0, None, [0]),
        made.recall(weights, 0, 40, [0]),
        made.sensitivity(weights, [0.5, 1, 2], interpolate=True),
        made.sensitivity(weights, [0.5, 1, 2], interpolate=False),
    ]
    for b, weight in enumerate(weights.astype(int)):
        # Copy c of image i becomes image i + 7 c, for all copies that its weight asks for.
        copies = np.repeat(np.arange(60), weight[image])
        numbers = np.concatenate([i + images * np.arange(weight[i]) for i in image]).astype(int)
        things = np.concatenate([i + images * np.arange(weight[i]) for i in objects]).astype(int)
        alone = curves(scores[copies], hits[copies], counts[copies], numbers, things, classes=2)
        alone.matches.rank[:] = np.tile(copies, 2)
        one = (np.arange(3 * images) // images < np.tile(weight, 3))[None].astype(float)
        expected = [
            alone.average_precision(one, 0, None, [0]),
            alone.recall(one, 0, 40, [0]),
            alone.sensitivity(one, [0.5, 1, 2], interpolate=True),
            alone.sensitivity(one, [0.5, 1, 2], interpolate=False),
        ]
        for got, value in zip(many, expected, strict=True):
            assert got[b] == pytest.approx(value[0], abs=1e-12) and 0 < value.mean() < 1
