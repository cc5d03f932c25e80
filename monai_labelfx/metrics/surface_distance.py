# SPDX-License-Identifier: Apache-2.0
"""Average symmetric surface distance in the unit of the voxel size, with a defined value for empty masks."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from monai.data import MetaTensor
from monai.metrics import compute_average_surface_distance

from monai_labelfx.metrics.per_image import PerImageMetric


class PhysicalSurfaceDistance(PerImageMetric):
    """Mean distance between the surfaces of prediction and reference, both ways, class by class, over whole images.

    With the surface voxels S and R of prediction and reference (of an object, those with a neighbour outside it), it
    is ``(sum_s d(s, R) + sum_r d(r, S)) / (|S| + |R|)``, computed by MONAI's ``compute_average_surface_distance``.
    Distances are those between voxel centres in the unit of the reference's affine (its ``pixdim``), mm in medical
    formats; in voxels where the reference is a plain array.

    ``metric(y_pred, y)`` takes masks of 0 and 1, batches (B, C, \\*spatial) or lists of (C, \\*spatial), and returns
    (B, C), in which NaN stands for what is not defined; ``get_buffer()`` gives the same for all images.
    ``aggregate()`` is the mean over the defined ones, ``aggregate("mean_batch")`` one mean per class, and
    :py:meth:`not_computed` tells how many are missing in it.

    Args:
        classes: number of class channels C.

    Raises:
        ValueError: when ``classes`` is below 1; in the call, when masks do not fit together, have another number of
            channels, or hold other numbers than 0 and 1; in ``aggregate()``, when no image was added.

    Notes:
        Without an object in both, the distance is 0. With an object in one of them only, there is no distance: it is
        left out of the mean, whose number then flatters a method that finds nothing. Read it beside the Dice score,
        and beside :py:meth:`not_computed`.

    Example:
        >>> metric = PhysicalSurfaceDistance()
        >>> affine = torch.diag(torch.tensor([1.0, 2.0, 1.0]))  # voxels of 1 mm x 2 mm
        >>> reference = MetaTensor(torch.tensor([[[0, 1, 0, 0, 0, 0]]]), affine=affine)
        >>> metric([torch.tensor([[[0, 0, 0, 1, 0, 0]]])], [reference])
        tensor([[4.]], dtype=torch.float64)
    """

    def __init__(self, classes: int = 1) -> None:
        if classes < 1:
            raise ValueError(f"classes must be the number of class channels, 1 or above, got {classes}.")
        super().__init__(columns=2 * classes)
        self.classes = classes
        self._spacing: list[float] | None = None

    def not_computed(self) -> torch.Tensor:
        """How many images have no distance because one mask was empty, for each class (C,) int64, of all processes."""
        return self.get_buffer().isnan().sum(dim=0)

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """The mean over images (and, with ``"mean"``, classes) whose distance is defined; NaN if none is.

        Args:
            reduction: ``"mean"`` for one number, ``"mean_batch"`` for one per class, (C,).

        Raises:
            ValueError: when no image was added, or ``reduction`` is unknown.
        """
        super().aggregate(reduction)  # checks
        scores = self.get_buffer()
        return scores.nanmean(dim=0) if reduction == "mean_batch" else scores.nanmean()

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        rows = [torch.zeros(0, self.columns, dtype=torch.float64)]
        if y is None or len(y_pred) != len(y):
            return super()._compute_list(y_pred, y)  # raises
        for prediction, reference in zip(y_pred, y, strict=True):
            self._spacing = _spacing(reference)
            rows.append(super()._compute_list([prediction], [reference]))
        return torch.cat(rows)

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> Sequence[float]:
        for name, masks in (("y_pred", prediction), ("y", reference)):
            if len(masks) != self.classes or ((masks != 0) & (masks != 1)).any():
                raise ValueError(
                    f"{name} must hold masks of 0 and 1 for classes={self.classes}, got shape {tuple(masks.shape)} "
                    f"and values from {float(masks.min()):g} to {float(masks.max()):g}."
                )
        row: list[float] = []
        for pair in zip(prediction, reference, strict=True):
            objects = [bool(mask.any()) for mask in pair]
            distance = self._distance(*pair) if all(objects) else 0.0
            row += [distance, float(objects[0] == objects[1])]
        return row

    def _distance(self, prediction: torch.Tensor, reference: torch.Tensor) -> float:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # MONAI's, about an argument that it gives itself
            distance = compute_average_surface_distance(
                prediction[None, None].float(),
                reference[None, None].float(),
                include_background=True,
                symmetric=True,
                spacing=self._spacing,
            )
        return float(distance)

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        distances, defined = rows.reshape(len(rows), self.classes, 2).unbind(dim=2)
        return torch.where(defined > 0, distances, torch.nan)


def _spacing(reference: Any) -> list[float] | None:
    """Voxel size per spatial axis of an image (C, \\*spatial), if it has one."""
    if not isinstance(reference, MetaTensor):
        return None
    return [float(size) for size in reference.pixdim][: reference.ndim - 1]
