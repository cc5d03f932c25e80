# SPDX-License-Identifier: Apache-2.0
"""Precision-recall and FROC curves of matched detections, for one or many weightings of the images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from monai_labelfx.metrics._detection_matching import DetectionMatches

RECALL_LEVELS = np.linspace(0.0, 1.0, 101)


class DetectionCurves:
    """Numbers from curves over the score, each for B weightings of the I images: ``weights`` (B, I).

    An image of weight w counts as w images would. Detections of equal score make one step of a curve, since no score
    threshold can part them; so the order of the images is without effect. Classes without a counted object are NaN.
    """

    def __init__(self, matches: DetectionMatches, number_of_thresholds: int) -> None:
        self.matches = matches
        self.thresholds = range(number_of_thresholds)
        self._bits = np.arange(number_of_thresholds, dtype=np.uint64)
        self._flags: dict[int, tuple[np.ndarray, np.ndarray]] = {}

    def average_precision(
        self, weights: np.ndarray, area: int, cap: int | None, thresholds: Sequence[int]
    ) -> np.ndarray:
        """Mean interpolated precision at 101 recalls (B, K, T) with the ``cap`` best detections of image and class."""
        positives = self.positives(weights, area)
        result = np.zeros((*positives.shape, len(thresholds)))
        for k, rows, part in self._classes(weights, cap):
            for i, t in enumerate(thresholds):
                hits, counted = self._curve(area, t, rows, part)
                result[:, k, i] = _interpolated(hits, counted, positives[:, k])
        result[positives == 0] = np.nan
        return result

    def recall(self, weights: np.ndarray, area: int, cap: int | None, thresholds: Sequence[int]) -> np.ndarray:
        """Share of the counted objects that are found (B, K, T) with the ``cap`` best detections of image and class."""
        positives = self.positives(weights, area)
        result = np.zeros((*positives.shape, len(thresholds)))
        for k, rows, part in self._classes(weights, cap):
            result[:, k] = part @ self._unpacked(area)[0][np.asarray(thresholds)][:, rows].T.astype(np.float64)
        return np.divide(result, positives[..., None], out=np.full_like(result, np.nan), where=positives[..., None] > 0)

    def sensitivity(
        self, weights: np.ndarray, rates: Sequence[float], *, interpolate: bool, cap: int | None = None
    ) -> np.ndarray:
        """Sensitivity (B, K, R) at mean numbers of false positives per image, at the first threshold and area range."""
        positives = self.positives(weights, 0)
        result = np.zeros((*positives.shape, len(rates)))
        images = weights.sum(1)
        for k, rows, part in self._classes(weights, cap):
            hits, counted = self._curve(0, 0, rows, part, every=True)
            for b in np.flatnonzero((positives[:, k] > 0) & (images > 0)):
                false = np.append(0.0, (counted[b] - hits[b]) / images[b])
                found = np.append(0.0, hits[b] / positives[b, k])
                at = np.searchsorted(false, rates, side="right") - 1  # of a vertical piece its upper end
                result[b, k] = found[at]
                if interpolate:
                    after = np.minimum(at + 1, len(false) - 1)
                    gap = false[after] - false[at]
                    share = np.divide(rates - false[at], gap, out=np.zeros_like(gap), where=gap > 0)
                    result[b, k] += share * (found[after] - found[at])
        result[positives == 0] = np.nan
        return result

    def positives(self, weights: np.ndarray, area: int) -> np.ndarray:
        """Number of counted objects (B, K)."""
        m = self.matches
        table = np.zeros((weights.shape[1], len(m.classes)))
        counted = m.true_counted[area]
        np.add.at(table, (m.true_image[counted], m.true_class[counted]), 1)
        return weights @ table

    def _classes(self, weights: np.ndarray, cap: int | None) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
        """Class by class the detections (n,) and the weights of their images (B, n)."""
        m = self.matches
        for k in range(len(m.classes)):
            rows = np.arange(m.bounds[k], m.bounds[k + 1])
            if cap is not None:
                rows = rows[m.rank[rows] < cap]
            if len(rows):
                yield k, rows, weights[:, m.image[rows]]

    def _unpacked(self, area: int) -> tuple[np.ndarray, np.ndarray]:
        if area not in self._flags:
            words = (self.matches.hits[area], self.matches.counts[area])
            hits, counts = ((word >> self._bits[:, None] & np.uint64(1)).astype(bool) for word in words)
            self._flags[area] = hits, counts
        return self._flags[area]

    def _curve(
        self, area: int, threshold: int, rows: np.ndarray, weights: np.ndarray, every: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Hits and counted detections (B, h) down to the scores at which there is a hit (``every``: at all scores).

        Between such scores precision only falls, so no interpolated precision lies there.
        """
        hits, counts = (flags[threshold, rows] for flags in self._unpacked(area))
        scores = self.matches.score[rows]
        steps = np.append(np.flatnonzero(np.diff(scores)), len(scores) - 1)  # the last detection of each score
        if not every:
            steps = steps[np.unique(np.searchsorted(steps, np.flatnonzero(hits)))]
        return np.cumsum(weights * hits, axis=1)[:, steps], np.cumsum(weights * counts, axis=1)[:, steps]


def _interpolated(hits: np.ndarray, counted: np.ndarray, positives: np.ndarray) -> np.ndarray:
    """Mean over the recall levels of the best precision at that recall or above, (B,)."""
    if not hits.shape[1]:
        return np.zeros(len(hits))
    precision = np.divide(hits, counted, out=np.zeros_like(hits), where=counted > 0)
    best = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    best = np.append(best, np.zeros((len(best), 1)), axis=1)  # recalls that are never reached
    recall = np.divide(hits, positives[:, None], out=np.zeros_like(hits), where=positives[:, None] > 0)
    return np.stack([b[r.searchsorted(RECALL_LEVELS)] for b, r in zip(best, recall, strict=True)]).mean(1)
