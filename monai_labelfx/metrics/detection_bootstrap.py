# SPDX-License-Identifier: Apache-2.0
"""Confidence intervals of detection metrics by resampling images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from monai_labelfx.metrics._detection_metric import DetectionMetric

_CHUNK = 2_000_000  # numbers of one array: some tens of MB in all


class BootstrapInterval(NamedTuple):
    """Mean of the replicates, and the interval's ends.

    Example:
        >>> interval = BootstrapInterval(mean=0.5, low=0.4, high=0.7)
        >>> interval.low <= interval.mean <= interval.high
        True
    """

    mean: float
    low: float
    high: float


def detection_bootstrap(
    metric: DetectionMetric,
    names: str | Sequence[str],
    *,
    replicates: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> dict[str, BootstrapInterval]:
    """Percentile bootstrap (Efron 1979) over images.

    Each replicate draws I of the I images with replacement and computes the metric of them, an image that was drawn
    twice counting as two. What matched what is taken from the metric, nothing is matched anew. The interval goes from
    the ``(1 - confidence) / 2`` to the ``(1 + confidence) / 2`` quantile of the replicates.

    In distributed runs all processes must call it; they all get the intervals over all images.

    Args:
        metric: a :py:class:`~monai_labelfx.metrics.coco_detection.CocoDetectionMetric` or
            :py:class:`~monai_labelfx.metrics.froc_detection.FrocDetectionMetric` that has seen images.
        names: one or more of its results, for instance ``"box_AP50"``.
        replicates: number of replicates. Default 1000.
        confidence: between 0 and 1. Default 0.95.
        seed: of the draws. One seed gives the same images to all metrics that saw the same images in one order.

    Returns:
        Name -> (mean, low, high). A replicate in which a class has no object leaves the class out; one without any
        object is left out itself. NaN where nothing is left.

    Raises:
        ValueError: when an argument is out of its range, a name is no result, or the metric has no image.

    Notes:
        Images are the units: give one image per patient, or the intervals come out too narrow. When all images have
        an ``image_id``, their order is without effect.

    Example:
        >>> import torch
        >>> from monai_labelfx.metrics.coco_detection import CocoDetectionMetric
        >>> metric, label = CocoDetectionMetric(), torch.tensor([0])
        >>> for shift in (0, 0, 0, 50):  # of four images the last one is missed
        ...     target = {"boxes": torch.tensor([[0.0, 0, 9, 9]]), "labels": label}
        ...     metric([{"boxes": target["boxes"] + shift, "labels": label, "scores": label + 0.5}], [target])
        >>> interval = detection_bootstrap(metric, "box_AR_1", replicates=200)["box_AR_1"]
        >>> interval.low <= 0.75 <= interval.high and abs(interval.mean - 0.75) < 0.05
        True
    """
    if replicates < 1:
        raise ValueError(f"replicates must be above 0, got {replicates}.")
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must lie between 0 and 1, got {confidence}.")
    names = [names] if isinstance(names, str) else list(names)
    number = len(metric)
    if not number:
        raise ValueError(f"{type(metric).__name__} has no image to resample: none was added since reset().")
    tables = next(iter(metric.tables().values()))
    keys = tables.images[:, 3]
    order = np.argsort(keys) if (keys >= 0).all() else np.arange(number)
    generator = np.random.default_rng(seed)
    step = max(1, _CHUNK // max(number, len(tables.found)))
    parts = []
    for begin in range(0, replicates, step):
        drawn = generator.integers(number, size=(min(step, replicates - begin), number))
        rows = np.arange(len(drawn))[:, None] * number + order[drawn]
        weights = np.bincount(rows.ravel(), minlength=len(drawn) * number).reshape(drawn.shape)
        parts.append(metric.weighted(weights.astype(np.float64), names))
    return {name: _interval(np.concatenate([part[name] for part in parts]), confidence) for name in names}


def _interval(values: np.ndarray, confidence: float) -> BootstrapInterval:
    values = values[~np.isnan(values)]
    if not len(values):
        return BootstrapInterval(np.nan, np.nan, np.nan)
    low, high = np.quantile(values, [(1 - confidence) / 2, (1 + confidence) / 2])
    return BootstrapInterval(float(values.mean()), float(low), float(high))
