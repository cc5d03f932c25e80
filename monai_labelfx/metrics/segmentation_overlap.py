# SPDX-License-Identifier: Apache-2.0
"""IoU and Dice of class maps, pooled over all voxels of all images or per image."""

from __future__ import annotations

from typing import Literal

import torch

from monai_labelfx.metrics.per_image import PerImageMetric
from monai_labelfx.ops.instances import integer_labels

_SCORES = ("iou", "dice", "f1")


class SegmentationOverlap(PerImageMetric):
    """Intersection over union, or Dice, of each class of a segmentation, and their mean over the classes.

    With the voxels P of a class in the prediction and T in the reference::

        iou  = |P and T| / |P or T|
        dice = 2 |P and T| / (|P| + |T|)

    ``"f1"`` is another name of ``"dice"``: the F1 score of the voxels of a class is its Dice, number for number, and
    the mean over classes is the macro F1. None of them is computed from another one: the mean Dice of several classes
    or images is not ``2 m / (1 + m)`` of their mean IoU m.

    In mode ``"pooled"`` the voxels of all images are counted together, as if they were one image: with ``"iou"`` this
    is the mIoU of OEEM (Li et al., MICCAI 2022). In mode ``"per_image"`` each image has its score, and all count alike,
    however large. The two differ (0.676 and 0.609 of one and the same prediction), so state which one it is.

    A class that is in neither prediction nor reference has no score (NaN) and is left out of the mean. A class that is
    in one of them only scores 0: no image gets a score for free by missing what there is.

    ``metric(y_pred, y)`` takes class maps, batches (B, 1, \\*spatial) or lists of (1, \\*spatial), whole numbers from 0
    to ``classes - 1``, and returns the scores of each image and class, (B, C); ``get_buffer()`` gives the same for all
    images, whatever the mode. ``aggregate("mean_batch")`` gives one number per class (C,): pooled, or the mean over the
    images in which it has a score. ``aggregate()`` gives one number: pooled, the mean of these; per image, the mean
    over images of the mean over classes.

    Args:
        classes: K, number of classes with the background.
        score: ``"iou"`` (default, the paper's main number), ``"dice"`` or ``"f1"``.
        mode: ``"pooled"`` (default, the paper) or ``"per_image"``.
        include_background: class 0 counts like the others (default, the paper); else C = K - 1.
        ignore_index: value of voxels that count nowhere, be they so in the reference or in the prediction: a pseudo
            mask is scored where it decides, so read the share of these voxels beside it. Default ``None``, every voxel
            counts.

    Raises:
        ValueError: when an argument is out of its range, or class maps do not fit together or hold other numbers than
            the classes; in ``aggregate()``, when no image was added.

    Notes:
        When no class has a score in any image, ``aggregate()`` is NaN. MONAI's ``MeanIoU`` and ``DiceMetric`` leave out
        a class that is not in the reference even where it is predicted, and are the same as mode ``"per_image"`` else.

    Example:
        >>> metric = SegmentationOverlap(classes=2)
        >>> glands, nothing = torch.tensor([[0, 0, 1, 1]]), torch.tensor([[0, 0]])
        >>> metric([torch.tensor([[0, 1, 1, 1]]), nothing], [glands, nothing])
        tensor([[0.5000, 0.6667],
                [1.0000,    nan]], dtype=torch.float64)
        >>> metric.aggregate("mean_batch")
        tensor([0.7500, 0.6667], dtype=torch.float64)
    """

    def __init__(
        self,
        classes: int,
        score: Literal["iou", "dice", "f1"] = "iou",
        *,
        mode: Literal["pooled", "per_image"] = "pooled",
        include_background: bool = True,
        ignore_index: int | None = None,
    ) -> None:
        if score not in _SCORES:
            raise ValueError(f"score must be one of {_SCORES}, got {score!r}.")
        if classes < 2:
            raise ValueError(f"classes must count the background and at least one class more, got {classes}.")
        if ignore_index is not None and 0 <= ignore_index < classes:
            raise ValueError(f"ignore_index must be none of the classes 0 to {classes - 1}, got {ignore_index}.")
        super().__init__(columns=3 * classes, mode=mode)
        self.classes = classes
        self.score = score
        self.include_background = include_background
        self.ignore_index = ignore_index

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> list[float]:
        if prediction.shape[0] != 1:
            raise ValueError(f"a class map must have the shape (1, *spatial), got {tuple(prediction.shape)}.")
        if self.ignore_index is not None:
            counted = (reference != self.ignore_index) & (prediction != self.ignore_index)
            prediction, reference = prediction[counted], reference[counted]
        predicted, true = self._classes_of(prediction, "y_pred"), self._classes_of(reference, "y")
        pairs = torch.bincount((predicted * self.classes + true).flatten(), minlength=self.classes**2)
        table = pairs.view(self.classes, self.classes)
        return torch.cat([table.diagonal(), table.sum(dim=1), table.sum(dim=0)]).tolist()

    def _classes_of(self, values: torch.Tensor, name: str) -> torch.Tensor:
        numbers = integer_labels(values, name)
        if numbers.numel() and int(numbers.max()) >= self.classes:
            raise ValueError(f"{name} must hold classes from 0 to {self.classes - 1}, got {int(numbers.max())}.")
        return numbers

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        shared, predicted, true = rows.reshape(len(rows), 3, self.classes).unbind(dim=1)
        scores = shared / (predicted + true - shared) if self.score == "iou" else 2 * shared / (predicted + true)
        return scores if self.include_background else scores[:, 1:]  # 0 / 0 is NaN: the class is nowhere

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """The metric over all images since ``reset()``, of all processes.

        Args:
            reduction: ``"mean"`` for one number, ``"mean_batch"`` for one per class, (C,).

        Raises:
            ValueError: when no image was added, or ``reduction`` is unknown.
        """
        super().aggregate(reduction)  # checks
        rows = self._gathered()
        scores = self._score(rows.sum(dim=0, keepdim=True) if self.mode == "pooled" else rows)
        return scores.nanmean(dim=0) if reduction == "mean_batch" else scores.nanmean(dim=1).nanmean()
