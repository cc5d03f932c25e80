# SPDX-License-Identifier: Apache-2.0
"""Whether a segmentation agrees with patch labels: a criterion for choosing a model that needs no mask."""

from __future__ import annotations

import math
from typing import Any, Literal

import torch

from monai_labelfx.metrics._rows import RowMetric, check_reduction
from monai_labelfx.metrics.surface_distance import _spacing
from monai_labelfx.ops.instances import integer_labels
from monai_labelfx.ops.patch_grid import patch_sums


class PatchConsistency(RowMetric):
    """Balanced accuracy of a segmentation on patches of which one knows what they hold. Larger is better, 1 is full.

    Of each patch and class, with the share s of the patch's voxels and the volume v that the segmentation gives to the
    class:

    - the label "present" is met when s > ``present`` or v > ``present_volume``;
    - the label "absent" is met when s <= ``absent`` and v <= ``absent_volume``;
    - an unknown label counts nowhere.

    These are the rules by which :py:class:`~monai_labelfx.transforms.GridPatchLabels` makes labels of masks; with the
    same thresholds as there, the right segmentation scores 1. The score of a class is the mean of the share of present
    labels that are met and the share of absent labels that are met; that of the segmentation is the mean over the
    classes. A segmentation without the class, and one that is nothing else, meet one kind of label each and score 0.5.
    A class that has one kind of label only is left out: there the score could be had for nothing.

    ``metric(y_pred, y)`` takes class maps, a batch (B, 1, \\*spatial) or a list of (1, \\*spatial), and a list with a
    pair for each: ``patches`` (N, 2 \\* D), start and size along each axis in voxels of the class map, and
    ``patch_labels`` (N, K), 1 present, 0 absent, -1 unknown. It returns the score of each image and class (B, K), NaN
    where it has none; ``get_buffer()`` gives the same for all images. ``aggregate()`` gives one number over the labels
    of all images together, ``aggregate("mean_batch")`` one per class (K,).

    Args:
        classes: K, number of classes with the background.
        present: share of the patch above which a class counts as present. Default 0.05, as in the code of OEEM (Li et
            al., MICCAI 2022).
        absent: share of the patch up to which it counts as absent. Default ``None``: as ``present``.
        present_volume: volume above which it counts as present whatever its share. Default ``None``, only the share.
        absent_volume: volume up to which it may count as absent. Default ``None``: as ``present_volume``.
        unit: of the volumes: ``"voxels"`` (default), or ``"mm"``, mm to the power of the number of axes by the affine
            of the class map.

    Raises:
        ValueError: when an argument is out of its range, class maps, patches and labels do not fit together, a patch
            lies outside the image, or there is no affine for volumes in mm; in ``aggregate()``, when no class has
            present and absent labels.

    Notes:
        It sees no boundaries: a segmentation may be ragged and meet every label. Of a patch that reaches out of the
        image the voxels inside count.

    Example:
        >>> metric = PatchConsistency(classes=2)
        >>> patches, labels = torch.tensor([[0, 4], [4, 4]]), torch.tensor([[1, 0], [0, 1]])
        >>> metric([torch.tensor([[0, 0, 0, 0, 0, 0, 1, 1]])], [(patches, labels)])  # background in the second patch
        tensor([[0.5000, 1.0000]], dtype=torch.float64)
        >>> metric.aggregate().item()
        0.75
    """

    def __init__(
        self,
        classes: int,
        *,
        present: float = 0.05,
        absent: float | None = None,
        present_volume: float | None = None,
        absent_volume: float | None = None,
        unit: Literal["voxels", "mm"] = "voxels",
    ) -> None:
        if classes < 2:
            raise ValueError(f"classes must count the background and at least one class more, got {classes}.")
        if unit not in ("voxels", "mm"):
            raise ValueError(f"unit must be 'voxels' or 'mm', got {unit!r}.")
        absent = present if absent is None else absent
        absent_volume = present_volume if absent_volume is None else absent_volume
        if not 0 <= absent <= present <= 1:
            raise ValueError(f"shares must keep 0 <= absent <= present <= 1, got {absent} and {present}.")
        volumes = [volume for volume in (absent_volume, present_volume) if volume is not None]
        if volumes != sorted(volumes) or not all(volume >= 0 for volume in volumes):
            raise ValueError(
                f"volumes must keep 0 <= absent_volume <= present_volume, got {absent_volume} and {present_volume}."
            )
        super().__init__(columns=4 * classes)
        self.classes = classes
        self.present, self.absent = present, absent
        self.present_volume, self.absent_volume = present_volume, absent_volume
        self.unit = unit

    def defined(self) -> bool:
        """Whether ``aggregate()`` has a number to give; asks all processes."""
        return bool((~self._of_classes().isnan()).any())

    def aggregate(self, reduction: str = "mean") -> torch.Tensor:
        """The score over the patches of all images since ``reset()``, of all processes.

        Args:
            reduction: ``"mean"`` for one number, ``"mean_batch"`` for one per class, (K,).

        Raises:
            ValueError: when no class has present and absent labels, or ``reduction`` is unknown.
        """
        check_reduction(reduction)
        scores = self._of_classes()
        if scores.isnan().all():
            raise ValueError(
                "PatchConsistency needs a class with present and absent patch labels, but there is none in "
                f"{len(self)} images since reset()."
            )
        return scores if reduction == "mean_batch" else scores.nanmean()

    def _of_classes(self) -> torch.Tensor:
        return self._score(self._gathered().sum(dim=0, keepdim=True))[0]

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        if y is None or len(y_pred) != len(y):
            found = None if y is None else len(y)
            raise ValueError(f"y must hold (patches, patch_labels) for each of the {len(y_pred)} images, got {found}.")
        rows = [torch.zeros(0, self.columns, dtype=torch.float64)]
        for prediction, (patches, labels) in zip(y_pred, y, strict=True):
            rows.append(self._row(prediction, *(torch.as_tensor(part).detach() for part in (patches, labels))))
        return torch.cat(rows)

    def _row(self, prediction: Any, patches: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """(1, 4 K): the present labels met and known of each class, and the absent ones."""
        plain = torch.as_tensor(prediction).detach().as_subclass(torch.Tensor)
        if plain.ndim < 2 or plain.shape[0] != 1:
            raise ValueError(f"a class map must have the shape (1, *spatial), got {tuple(plain.shape)}.")
        numbers = integer_labels(plain[0], "y_pred")
        if numbers.numel() and int(numbers.max()) >= self.classes:
            raise ValueError(f"y_pred must hold classes from 0 to {self.classes - 1}, got {int(numbers.max())}.")
        labels = labels.as_subclass(torch.Tensor).to(numbers.device)
        if tuple(labels.shape) != (len(patches), self.classes):
            raise ValueError(
                f"patch_labels must have the shape {(len(patches), self.classes)}, a label for each patch and class, "
                f"got {tuple(labels.shape)}."
            )
        if not ((labels == 1) | (labels == 0) | (labels == -1)).all():
            raise ValueError(
                "patch_labels must be 1 present, 0 absent or -1 unknown, got values from "
                f"{float(labels.min()):g} to {float(labels.max()):g}."
            )
        # class by class: the table of sums of a volume is large
        voxels = torch.cat([patch_sums((numbers == one)[None], patches) for one in range(self.classes)], dim=1)
        total = voxels.sum(dim=1, keepdim=True)
        if not total.all():
            first = int((total[:, 0] == 0).nonzero()[0])
            raise ValueError(
                f"patch {first} lies outside the image: {patches[first].tolist()} in voxels of {tuple(numbers.shape)}."
            )
        columns = []
        for label, met in zip((1, 0), self._found(voxels, total, self._voxel(prediction)), strict=True):
            columns += [((labels == label) & met).sum(dim=0), (labels == label).sum(dim=0)]
        return torch.cat(columns).to("cpu", torch.float64)[None]

    def _found(self, voxels: torch.Tensor, total: torch.Tensor, voxel: float) -> tuple[torch.Tensor, torch.Tensor]:
        """Where a class counts as present, and where as absent (N, K)."""
        share, volume = voxels.double() / total, voxels.double() * voxel
        present, absent = share > self.present, share <= self.absent
        if self.present_volume is not None:
            present |= volume > self.present_volume
        if self.absent_volume is not None:
            absent &= volume <= self.absent_volume
        return present, absent

    def _voxel(self, prediction: Any) -> float:
        """Volume of a voxel in the unit of the volumes."""
        if self.unit == "voxels":
            return 1.0
        sizes = _spacing(prediction)
        if sizes is None:
            raise ValueError(f"volumes in mm need class maps with an affine, got a {type(prediction).__name__}.")
        return math.prod(sizes)

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        present, presents, absent, absents = rows.reshape(len(rows), 4, self.classes).unbind(dim=1)
        return (present / presents + absent / absents) / 2  # 0 / 0 is NaN: the class has one kind of label only
