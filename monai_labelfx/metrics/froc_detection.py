# SPDX-License-Identifier: Apache-2.0
"""FROC of detections: sensitivity at fixed numbers of false positives per image, and their mean (CPM)."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

from monai_labelfx.metrics._detection_matching import match_detections
from monai_labelfx.metrics._detection_metric import DetectionMetric, check_names, mean_of_defined
from monai_labelfx.metrics._detection_tables import OVERLAPS, DetectionTables
from monai_labelfx.metrics._precision_recall import DetectionCurves

FROC_RATES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""1/8, 1/4, 1/2, 1, 2, 4 and 8 false positives per image, as in LUNA16."""


class FrocDetectionMetric(DetectionMetric):
    """Free-response receiver operating characteristic, for boxes, masks or centres of any number of axes.

    As the score threshold falls, the curve is sensitivity = found objects / all objects over the mean number of false
    positives per image, images without objects included. CPM, the competition performance metric (Niemeijer et al.
    2011), is the mean sensitivity at ``rates``. Both are averaged over the classes that have an object.

    Predictions and targets are those of :py:class:`~monai_labelfx.metrics.coco_detection.CocoDetectionMetric`, with
    ``ignore`` and ``iscrowd``; areas are without effect. ``aggregate()`` returns floats by name: ``<overlap>_CPM`` and
    ``<overlap>_FROC_<rate>``, for instance ``box_FROC_0.125``; class-agnostic ones begin with ``<overlap>_agnostic_``.
    Without any object they are NaN.

    Args:
        overlap: what makes a hit. ``"box"`` (default) or ``"mask"``: an intersection over union of at least
            ``threshold``. ``"center"``: the centre of the detection lies in the ellipsoid inscribed in the object's
            box; for cubes of the nodule's diameter this is LUNA16's rule, in voxels of any spacing.
        threshold: least IoU of a hit, default 0.1, usual in 3-D (nnDetection); not used with ``"center"``.
        rates: false positives per image. Default 1/8 to 8 (LUNA16).
        interpolate: connect the points of the curve by lines. Default ``True``, as LUNA16, MONAI and nnDetection;
            ``False`` takes the last point at or below each rate, which is a sensitivity that a score threshold gives.
        repeats: what a second detection of a found object is: ``"ignore"`` (default, LUNA16) leaves it out,
            ``"false_positive"`` counts it, as COCO does.
        max_detections: best detections of an image (and class) that count. Default ``None``, all.
        class_agnostic: evaluate all objects as one class.

    Raises:
        ValueError: when an argument is out of its range; for other errors see ``update()`` and ``aggregate()``.

    Notes:
        Detections of equal score are one step of the curve: the order of the images is without effect. The curve
        begins at (0, 0), and beyond its last point keeps the last sensitivity. With several classes the false
        positives are those of one class per image.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0, 4, 4], [5, 5, 9, 9], [20, 20, 24, 24]])
        >>> target = {"boxes": boxes[:2], "labels": torch.tensor([0, 0])}
        >>> scores = torch.tensor([0.9, 0.7, 0.8])
        >>> metric = FrocDetectionMetric(rates=(0.5, 1), interpolate=False)
        >>> metric([{"boxes": boxes, "labels": torch.tensor([0, 0, 0]), "scores": scores}], [target])
        >>> metric.aggregate()
        {'box_CPM': 0.75, 'box_FROC_0.5': 0.5, 'box_FROC_1': 1.0}
    """

    def __init__(
        self,
        overlap: Literal["box", "mask", "center"] = "box",
        *,
        threshold: float = 0.1,
        rates: Sequence[float] = FROC_RATES,
        interpolate: bool = True,
        repeats: Literal["ignore", "false_positive"] = "ignore",
        max_detections: int | None = None,
        class_agnostic: bool = False,
    ) -> None:
        if overlap not in OVERLAPS:
            raise ValueError(f"overlap must be one of {OVERLAPS}, got {overlap!r}.")
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must be a number above 0, up to 1, got {threshold}.")
        if not rates or not all(0 < rate < math.inf for rate in rates):
            raise ValueError(f"rates must be numbers of false positives per image above 0, got {rates}.")
        if repeats not in ("ignore", "false_positive"):
            raise ValueError(f"repeats must be 'ignore' or 'false_positive', got {repeats!r}.")
        if max_detections is not None and max_detections < 1:
            raise ValueError(f"max_detections must be above 0, or None for all, got {max_detections}.")
        self.rates = tuple(rates)
        self.interpolate = interpolate
        self.repeats = repeats
        self._curves: DetectionCurves | None = None
        # Pairs of centres are only kept when they hit, with 0 at the border.
        self._threshold = 0.0 if overlap == "center" else threshold
        least = min(self._threshold, 1 - 1e-10)
        super().__init__((overlap,), least=least, cap=max_detections, class_agnostic=class_agnostic)

    def tables(self) -> dict[str, DetectionTables]:
        """See the base class."""
        if self._gathered is None:
            self._curves = None
        return super().tables()

    def weighted(self, weights: np.ndarray, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """See the base class."""
        tables = self.tables()[self.overlaps[0]]
        start = f"{self.overlaps[0]}_agnostic_" if self.class_agnostic else f"{self.overlaps[0]}_"
        known = [f"{start}CPM", *(f"{start}FROC_{rate:g}" for rate in self.rates)]
        check_names(names, known)
        if self._curves is None:
            matches = match_detections(
                tables,
                [self._threshold],
                [(-math.inf, math.inf)],
                class_agnostic=self.class_agnostic,
                forgive_repeats=self.repeats == "ignore",
            )
            self._curves = DetectionCurves(matches, 1)
        values = self._curves.sensitivity(weights, self.rates, interpolate=self.interpolate)
        columns = [values, *(values[..., i] for i in range(len(self.rates)))]
        found = {name: mean_of_defined(column) for name, column in zip(known, columns, strict=True)}
        return {name: value for name, value in found.items() if names is None or name in names}
