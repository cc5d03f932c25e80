# SPDX-License-Identifier: Apache-2.0
"""What the detection metrics share: they take batches, keep rows of numbers, gather them and weigh images."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from monai.metrics.metric import Metric

from monai_labelfx.metrics._detection_inputs import identity, read_objects, voxel_volume
from monai_labelfx.metrics._detection_tables import DetectionTables, gather, image_tables, join


class DetectionMetric(Metric):
    """A metric over lists of predictions and targets that becomes a dictionary of floats.

    Args:
        overlaps: ways to compare objects, see ``image_tables``; each has tables of its own.
        least: least overlap of a pair that may match.
        cap: best detections to keep of an image (and class), ``None`` for all.
        class_agnostic: all objects are one class.
    """

    def __init__(self, overlaps: Sequence[str], least: float, cap: int | None, class_agnostic: bool) -> None:
        self.overlaps = tuple(overlaps)
        self.class_agnostic = class_agnostic
        self._least = least
        self._cap = cap
        self.reset()

    def reset(self) -> None:
        """Forget all images."""
        self._parts: dict[str, list[DetectionTables]] = {overlap: [] for overlap in self.overlaps}
        self._identities: dict[int, Any] = {}
        self._dims = 0
        self._spaced: bool | None = None
        self._gathered: dict[str, DetectionTables] | None = None

    def update(self, y_pred: Sequence[Mapping[str, Any]], y: Sequence[Mapping[str, Any]]) -> None:
        """Add the images of a batch: all of them, or none when one is refused.

        Args:
            y_pred: per image ``boxes`` (N, 2 \\* D), ``labels`` (N,), ``scores`` (N,)[, ``masks`` (N, \\*spatial)].
            y: per image ``boxes``, ``labels``[, ``masks``, ``iscrowd``, ``ignore``, ``area``, ``spacing``,
                ``image_id``].

        Raises:
            TypeError: when the lists, their items, labels or masks have another type.
            ValueError: when the lists differ in length, an item lacks a key or holds a wrong shape or number, the
                number of axes changes, some images have a spacing and others none, or an ``image_id`` comes twice.
        """
        if not all(isinstance(items, Sequence) for items in (y_pred, y)):
            found = f"{type(y_pred).__name__} and {type(y).__name__}"
            raise TypeError(f"y_pred and y must be lists with one dictionary per image, got {found}.")
        if len(y_pred) != len(y):
            raise ValueError(f"y must hold one target for each of the {len(y_pred)} predictions, got {len(y)}.")
        kept = (self._identities.copy(), self._dims, self._spaced)
        parts: dict[str, list[DetectionTables]] = {overlap: [] for overlap in self.overlaps}
        try:
            for index, (prediction, target) in enumerate(zip(y_pred, y, strict=True)):
                for overlap, part in self._read(prediction, target, index).items():
                    parts[overlap].append(part)
        except (TypeError, ValueError):
            self._identities, self._dims, self._spaced = kept
            raise
        for overlap in self.overlaps:
            self._parts[overlap] += parts[overlap]
        self._gathered = None

    def __call__(self, y_pred: Sequence[Mapping[str, Any]], y: Sequence[Mapping[str, Any]]) -> None:
        """See :py:meth:`update`."""
        self.update(y_pred, y)

    def __len__(self) -> int:
        """Number of images of all processes; all must ask."""
        return len(self.tables()[self.overlaps[0]].images)

    def _read(self, prediction: Any, target: Any, index: int) -> dict[str, DetectionTables]:
        boxes, masks = self.overlaps != ("mask",), "mask" in self.overlaps
        name = f"target {index} of the batch"
        found = read_objects(prediction, f"prediction {index} of the batch", scored=True, boxes=boxes, masks=masks)
        true = read_objects(target, name, scored=False, boxes=boxes, masks=masks)
        for objects in (found, true):
            if self._dims and objects.dims not in (0, self._dims):
                raise ValueError(
                    f"prediction and target {index} of the batch must have {self._dims} spatial axes as the objects "
                    f"before, got {objects.dims}."
                )
            self._dims = self._dims or objects.dims
        if found.masks and true.masks and found.masks.shape and true.masks.shape:
            if found.masks.shape != true.masks.shape:
                raise ValueError(
                    f"masks of prediction and target {index} of the batch must have one spatial shape, got "
                    f"{found.masks.shape} and {true.masks.shape}."
                )
        voxel = voxel_volume(target, self._dims, name)
        if self._spaced not in (None, voxel is not None):
            raise ValueError(f"either all targets must have a 'spacing' or none, but {name} differs from those before.")
        self._spaced = voxel is not None
        key = identity(target)
        if key in self._identities:
            raise _duplicate(self._identities[key])
        if key >= 0:
            self._identities[key] = target["image_id"]
        options: dict[str, Any] = {"cap": self._cap, "class_agnostic": self.class_agnostic}
        options |= {"least": self._least, "voxel": voxel, "identity": key}
        return {overlap: image_tables(found, true, overlap=overlap, **options) for overlap in self.overlaps}

    def tables(self) -> dict[str, DetectionTables]:
        """The tables of the images of all processes; all must ask, those without images too.

        Raises:
            ValueError: when two processes saw one ``image_id``, or differ in axes or in having a spacing.
        """
        if self._gathered is None:
            gathered = {}
            for overlap, parts in self._parts.items():
                self._parts[overlap] = [join(parts)]
                gathered[overlap] = gather(self._parts[overlap][0])
            images = gathered[self.overlaps[0]].images
            keys, times = np.unique(images[images[:, 3] >= 0, 3], return_counts=True)
            if (times > 1).any():
                raise _duplicate(self._identities.get(int(keys[times > 1][0]), "of another process"))
            if len(np.unique(images[images[:, 4] > 0, 4])) > 1 or len(np.unique(images[:, 5])) > 1:
                raise ValueError("the processes must see images of one number of axes, all with a 'spacing' or none.")
            self._gathered = gathered
        return self._gathered

    def aggregate(self) -> dict[str, float]:
        """The results by name, over all images since ``reset()``, of all processes.

        Raises:
            ValueError: when no image was added, or two processes saw one ``image_id``.
        """
        number = len(self)
        if not number:
            raise ValueError(f"{type(self).__name__} has no image to aggregate: none was added since reset().")
        return {name: float(values[0]) for name, values in self.weighted(np.ones((1, number))).items()}

    @abstractmethod
    def weighted(self, weights: np.ndarray, names: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """Results (B,) as if image i had come ``weights[b, i]`` times, without matching anew.

        Args:
            weights: (B, I) numbers of at least 0, the images in the order of :py:meth:`tables`.
            names: results to compute, ``None`` for all.
        """


def _duplicate(image: Any) -> ValueError:
    return ValueError(
        f"image_id {image!r} came twice since reset(): give every image once, also across processes "
        "(a sampler that repeats images to fill the last batches must not)."
    )


def check_names(names: Collection[str] | None, known: Collection[str]) -> None:
    """Raise ValueError when a name is none of the results."""
    for name in names or ():
        if name not in known:
            raise ValueError(f"{name!r} is no result of this metric; it has {', '.join(sorted(known))}.")


def mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Mean (B,) over the classes and thresholds of (B, ...) that are not NaN, NaN where none is."""
    flat = values.reshape(len(values), -1)
    defined = ~np.isnan(flat)
    total = np.where(defined, flat, 0.0).sum(1)
    return np.divide(total, defined.sum(1), out=np.full(len(flat), np.nan), where=defined.any(1))
