# SPDX-License-Identifier: Apache-2.0
"""COCO's average precision and recall of detections, for boxes and masks of any number of axes."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np

from monai_labelfx.metrics._detection_matching import MAX_THRESHOLDS, match_detections
from monai_labelfx.metrics._detection_metric import DetectionMetric, check_names, mean_of_defined
from monai_labelfx.metrics._detection_tables import DetectionTables
from monai_labelfx.metrics._precision_recall import DetectionCurves

COCO_IOUS = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""0.5, 0.55, ..., 0.95 as COCO's code makes them: one of them is not the nearest float."""


class _Result(NamedTuple):
    kind: str
    what: str  # AP or AR
    area: int  # index of the area range, 0 for all areas
    cap: int
    thresholds: tuple[int, ...]
    k: int | None = None  # index of the class, None for the mean over classes


class CocoDetectionMetric(DetectionMetric):
    """AP, AR and their breakdown by area as in COCO (Lin et al. 2014), in 2-D, 3-D or any other number of axes.

    Within an image and class, detections take true objects in the order of falling score: each the free one of largest
    intersection over union (IoU), if that is at least the threshold. Over all images, with the detections ranked by
    score, ``precision = TP / (TP + FP)`` and ``recall = TP / objects`` give

    - ``AP = mean over r in (0, 0.01, ..., 1) of max precision at recall >= r``, with the ``ap_max_detections`` best
      detections of each image and class,
    - ``AR_n`` = the recall with the n best detections of each image and class.

    Both are averaged over the classes that have an object, mAP and AR over ``iou_thresholds`` too. An image without
    objects adds false positives.

    ``metric(y_pred, y)`` takes a list with one dictionary per image each: predictions with ``boxes`` (N, 2 \\* D) low
    corner then high corner, ``labels`` (N,) and ``scores`` (N,); targets with ``boxes`` and ``labels``. For masks both
    have ``masks``: booleans or integers (N, \\*spatial), or a list of N crops, the first voxel of each at the floor of
    its box's low corner. Rows with label -1 are padding. Targets may also have

    - ``spacing`` (D,): size of a voxel; areas are then physical, mm^D in medical formats,
    - ``iscrowd`` (N,): regions that any number of detections may take, at an overlap of intersection over detection;
      these detections and the regions count neither way,
    - ``ignore`` (N,): objects that count neither way, nor does the detection that takes one,
    - ``area`` (N,): area of each object in its final unit. Default: that of the box or mask,
    - ``image_id``: an image that comes twice is then refused.

    ``aggregate()`` returns floats by name, for ``"box"`` (or ``"mask"``): ``box_mAP``, ``box_AP50``, ``box_AP75``,
    ``box_AR_1``, ``box_AR_10``, ``box_AR_100``, ``box_AR_300``, and by area ``box_mAP_small``, ``box_AR_300_small``
    and so on; with ``per_class`` also ``box_mAP_class_<class>``, ``box_AP50_class_<class>``, ...,
    ``box_AR_300_class_<class>``. Class-agnostic ones begin with ``box_agnostic_``. What is not defined, for lack of
    objects, is NaN.

    Args:
        kinds: compare ``"box"``, ``"mask"`` or both. Default boxes.
        iou_thresholds: over which mAP and AR are averaged. Default 0.5, 0.55, ..., 0.95 (COCO).
        ap_thresholds: thresholds of single APs, for instance ``(0.1, 0.5)`` in 3-D. Default 0.5 and 0.75 (COCO).
        max_detections: numbers n of AR_n. Default 1, 10, 100 (COCO) and 300.
        ap_max_detections: detections of an image and class that count for AP. Default 100 (COCO).
        area_ranges: name -> (least, most), both included, in pixels or voxels, or in physical units when the targets
            have a spacing. Default ``None``, COCO's: small to 32^D, medium to 96^D, large above. ``{}`` for none.
        class_agnostic: evaluate all objects as one class (COCO's ``useCats=0``); the caps then hold for an image.
        per_class: also return the results of each class.
        class_names: names of the classes 0, 1, ... in the results. Default their numbers.

    Raises:
        ValueError: when an argument is out of its range; for other errors see ``update()`` and ``aggregate()``.

    Notes:
        In 2-D the numbers are those of pycocotools to 1e-9, except that pycocotools ranks equal scores by the order of
        the images. Here detections of equal score are one step of the curve, as no score threshold can part them, and
        the order of the images is without effect. Within an image equal scores keep the order of the rows. Scores
        saturated by half precision are equal in number: keep float32. The recall levels are COCO's floats: a recall of
        7 / 10 misses the level 0.7, which is a rounding above it.

        The class-agnostic form counts a second box of another class on one object as a false positive. A detector
        trained with one class is another thing.

        Detectors that keep fewer than n boxes have no more at AR_n than at what they keep.

    Example:
        >>> import torch
        >>> boxes = torch.tensor([[0.0, 0, 0, 4, 4, 4], [5, 5, 5, 9, 9, 9]])
        >>> target = {"boxes": boxes, "labels": torch.tensor([0, 1])}
        >>> metric = CocoDetectionMetric(max_detections=(1,), area_ranges={})
        >>> metric([{**target, "scores": torch.tensor([0.9, 0.8])}], [target])
        >>> metric([{"boxes": boxes[:1], "labels": torch.tensor([0]), "scores": torch.tensor([0.95])}],
        ...        [{"boxes": boxes[:0], "labels": torch.tensor([])}])
        >>> metric.aggregate()
        {'box_mAP': 0.75, 'box_AP50': 0.75, 'box_AP75': 0.75, 'box_AR_1': 1.0}
    """

    def __init__(
        self,
        kinds: Sequence[Literal["box", "mask"]] = ("box",),
        *,
        iou_thresholds: Sequence[float] = COCO_IOUS,
        ap_thresholds: Sequence[float] = (0.5, 0.75),
        max_detections: Sequence[int] = (1, 10, 100, 300),
        ap_max_detections: int = 100,
        area_ranges: Mapping[str, tuple[float, float]] | None = None,
        class_agnostic: bool = False,
        per_class: bool = False,
        class_names: Sequence[str] | None = None,
    ) -> None:
        overlaps = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        if not overlaps or not set(overlaps) <= {"box", "mask"} or len(set(overlaps)) < len(overlaps):
            raise ValueError(f"kinds must be 'box', 'mask' or both, got {overlaps}.")
        self.iou_thresholds, self.ap_thresholds = tuple(iou_thresholds), tuple(ap_thresholds)
        self._thresholds = tuple(dict.fromkeys((*self.iou_thresholds, *self.ap_thresholds)))
        if not self.iou_thresholds or not all(0 < t <= 1 for t in self._thresholds):
            raise ValueError(f"IoU thresholds must be numbers above 0, up to 1, got {self._thresholds}.")
        if len(self._thresholds) > MAX_THRESHOLDS:
            raise ValueError(f"there may be {MAX_THRESHOLDS} IoU thresholds in all, got {len(self._thresholds)}.")
        self.max_detections = tuple(sorted(set(max_detections)))
        self.ap_max_detections = ap_max_detections
        caps = (*self.max_detections, ap_max_detections)
        if not self.max_detections or not all(isinstance(n, int) and n > 0 for n in caps):
            raise ValueError(f"max_detections and ap_max_detections must be integers above 0, got {caps}.")
        for name, (least, most) in (area_ranges or {}).items():
            if not least <= most:
                raise ValueError(f"area range {name!r} must be (least, most), got {(least, most)}.")
        self.area_ranges = None if area_ranges is None else dict(area_ranges)
        self.per_class = per_class
        self.class_names = None if class_names is None else tuple(class_names)
        self._curves: dict[str, DetectionCurves] = {}
        least = min(min(self._thresholds), 1 - 1e-10)
        super().__init__(overlaps, least=least, cap=max(caps), class_agnostic=class_agnostic)

    def _ranges(self, tables: DetectionTables) -> dict[str, tuple[float, float]]:
        if self.area_ranges is not None:
            return self.area_ranges
        # Without any object the number of axes is not known, and all results are NaN.
        small, medium = (float(side ** (tables.images[:, 4].max(initial=0))) for side in (32, 96))
        return {"small": (0.0, small), "medium": (small, medium), "large": (medium, math.inf)}

    def _curves_of(self, kind: str) -> DetectionCurves:
        tables = self.tables()[kind]
        if kind not in self._curves:
            areas = [(-math.inf, math.inf), *self._ranges(tables).values()]
            matches = match_detections(tables, self._thresholds, areas, class_agnostic=self.class_agnostic)
            self._curves[kind] = DetectionCurves(matches, len(self._thresholds))
        return self._curves[kind]

    def tables(self) -> dict[str, DetectionTables]:
        """See the base class."""
        if self._gathered is None:
            self._curves = {}
        return super().tables()

    def _results(self, kind: str) -> dict[str, _Result]:
        start = f"{kind}_agnostic_" if self.class_agnostic else f"{kind}_"
        index = {t: i for i, t in enumerate(self._thresholds)}
        many = tuple(index[t] for t in self.iou_thresholds)
        cap, last = self.ap_max_detections, self.max_detections[-1]
        base = {"mAP": _Result(kind, "AP", 0, cap, many)}
        base |= {f"AP{_percent(t)}": _Result(kind, "AP", 0, cap, (index[t],)) for t in self.ap_thresholds}
        recalls = {f"AR_{n}": _Result(kind, "AR", 0, n, many) for n in self.max_detections}
        found = {f"{start}{name}": result for name, result in (base | recalls).items()}
        for area, name in enumerate(self._ranges(self.tables()[kind]), 1):
            found[f"{start}mAP_{name}"] = _Result(kind, "AP", area, cap, many)
            found[f"{start}AR_{last}_{name}"] = _Result(kind, "AR", area, last, many)
        if self.per_class and not self.class_agnostic:
            base[f"AR_{last}"] = recalls[f"AR_{last}"]
            for k, label in enumerate(self._curves_of(kind).matches.classes.tolist()):
                named = self.class_names is not None and label < len(self.class_names)
                title = self.class_names[label] if named else label  # type: ignore[index]
                found |= {f"{start}{name}_class_{title}": result._replace(k=k) for name, result in base.items()}
        return found

    def weighted(self, weights: np.ndarray, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """See the base class."""
        results = {name: result for kind in self.overlaps for name, result in self._results(kind).items()}
        check_names(names, results)
        wanted = {name: result for name, result in results.items() if names is None or name in names}
        thresholds: dict[tuple, dict[int, int]] = {}  # threshold -> column, together for what shares a computation
        for result in wanted.values():
            columns = thresholds.setdefault(result[:4], {})
            for t in result.thresholds:
                columns.setdefault(t, len(columns))
        computed = {}
        for key, columns in thresholds.items():
            kind, what, area, cap = key
            curves = self._curves_of(kind)
            compute = curves.average_precision if what == "AP" else curves.recall
            computed[key] = compute(weights, area, cap, list(columns))
        found = {}
        for name, result in wanted.items():
            columns = thresholds[result[:4]]
            values = computed[result[:4]][..., [columns[t] for t in result.thresholds]]
            found[name] = mean_of_defined(values if result.k is None else values[:, result.k])
        return found


def _percent(threshold: float) -> str:
    text = f"{round(100 * threshold, 6):g}"
    return f"0{text}" if threshold < 0.1 and "." not in text else text
