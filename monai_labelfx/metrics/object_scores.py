# SPDX-License-Identifier: Apache-2.0
"""The object scores of the GlaS challenge: F1, object Dice and object Hausdorff distance."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_bipartite_matching

from monai_labelfx.metrics._object_hausdorff import ObjectVoxels, nearest_distances
from monai_labelfx.metrics.overlap import LabelOverlap, label_overlap
from monai_labelfx.metrics.per_image import PerImageMetric, check_label_map
from monai_labelfx.metrics.surface_distance import _spacing
from monai_labelfx.ops.instances import integer_labels


class ObjectF1(PerImageMetric):
    """F1 score of detected objects, as the GlaS challenge counts them (Sirinukunwattana et al. 2017).

    The reference object of a predicted object is the one that it overlaps most. A predicted object that covers at least
    half of its reference object is a true positive; any other is a false positive; reference objects that no true
    positive found are false negatives::

        F1 = 2 TP / (2 TP + FP + FN) = 2 TP / (predicted objects + reference objects)

    It is neither the F1 score of voxels (:py:class:`~monai_labelfx.metrics.SegmentationOverlap`) nor that of objects
    with an IoU of 0.5 (the recognition quality of MONAI's ``PanopticQualityMetric``): a predicted object may be far
    larger than its reference object, but objects that are merged into one count once.

    ``metric(y_pred, y)`` takes instance label maps, batches (B, 1, \\*spatial) or lists of (1, \\*spatial), any integer
    labels, 0 background, and returns the F1 of each image, (B, 1); ``get_buffer()`` gives the same for all images.
    Objects of a class map: :py:func:`~monai_labelfx.ops.label_objects`.

    Args:
        mode: ``"pooled"`` (default) counts the objects of all images together; ``"per_image"`` averages the F1 of the
            images. Papers do both, so state which one it is.
        strict: count a predicted object that covers more than half, not exactly half. Default ``False``, the words of
            the challenge's paper; programs in use for it are strict.

    Raises:
        ValueError: when an argument is out of its range or label maps do not fit together; in ``aggregate()``, when no
            image was added.

    Notes:
        A reference object is found once: when two predicted objects cover one half of it each, one of them is a false
        positive. A predicted object that overlaps several reference objects equally may find any of them, and as many
        are found as possible; so numbers of labels do not matter. Without objects in prediction and reference the score
        is 1, with objects in one of them only it is 0.

    Example:
        >>> metric = ObjectF1()
        >>> metric([torch.tensor([[1, 1, 1, 0, 2, 2]])], [torch.tensor([[5, 5, 0, 6, 6, 6]])])
        tensor([[1.]], dtype=torch.float64)
        >>> metric([torch.tensor([[1, 1, 1, 1, 1, 1]])], [torch.tensor([[5, 5, 0, 6, 6, 6]])])  # two merged into one
        tensor([[0.6667]], dtype=torch.float64)
    """

    def __init__(self, mode: Literal["pooled", "per_image"] = "pooled", *, strict: bool = False) -> None:
        super().__init__(columns=3, mode=mode)
        self.strict = strict

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> list[float]:
        check_label_map(prediction)
        overlap = label_overlap(prediction, reference)
        covered, size = 2 * overlap.shared, overlap.true_sizes[overlap.true]
        hit = _largest(overlap, overlap.predicted) & (covered > size if self.strict else covered >= size)
        shape = len(overlap.predicted_sizes), len(overlap.true_sizes)
        graph = csr_array((np.ones(int(hit.sum())), (overlap.predicted[hit], overlap.true[hit])), shape=shape)
        hits = int((maximum_bipartite_matching(graph) >= 0).sum()) if graph.nnz else 0
        return [hits, *shape]

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        hits, predicted, true = rows.unbind(dim=1)
        objects = predicted + true
        return torch.where(objects > 0, 2 * hits / objects.clamp(min=1), 1.0)[:, None]


class ObjectDice(PerImageMetric):
    """Object Dice of the GlaS challenge (Sirinukunwattana et al. 2017): each object has a Dice, large ones count more.

    Each object, of the prediction and of the reference, is compared with the object of the other side that it overlaps
    most; with none its Dice is 0. With the predicted objects S_j, the reference objects T_i and their partners::

        object Dice = 1/2 [ sum_i |T_i| Dice(T_i, S(T_i)) / sum_i |T_i| + sum_j |S_j| Dice(T(S_j), S_j) / sum_j |S_j| ]

    Sizes are voxels. Unlike the Dice of all voxels, it falls when objects are merged or split.

    ``metric(y_pred, y)`` takes instance label maps, batches (B, 1, \\*spatial) or lists of (1, \\*spatial), any integer
    labels, 0 background, and returns the object Dice of each image, (B, 1); ``get_buffer()`` gives the same for all
    images. Objects of a class map: :py:func:`~monai_labelfx.ops.label_objects`.

    Args:
        mode: ``"pooled"`` (default) weighs the objects of all images together; ``"per_image"`` averages the scores of
            the images. Papers do both, so state which one it is.

    Raises:
        ValueError: when ``mode`` is unknown or label maps do not fit together; in ``aggregate()``, when no image was
            added.

    Notes:
        Of objects that are overlapped equally the one with the better Dice is the partner, so that numbers of labels do
        not matter. Without objects in prediction and reference the score is 1, with objects in one of them only it
        is 0.

    Example:
        >>> metric = ObjectDice()
        >>> metric([torch.tensor([[1, 1, 0, 0, 0, 0]])], [torch.tensor([[5, 5, 0, 6, 6, 0]])])  # 1/2 [2/4 + 2/2]
        tensor([[0.7500]], dtype=torch.float64)
    """

    def __init__(self, mode: Literal["pooled", "per_image"] = "pooled") -> None:
        super().__init__(columns=4, mode=mode)

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> list[float]:
        check_label_map(prediction)
        overlap = label_overlap(prediction, reference)
        true, predicted = overlap.true_sizes, overlap.predicted_sizes
        dice = 2 * overlap.shared / (true[overlap.true] + predicted[overlap.predicted])
        row: list[float] = []
        for sizes, owner in ((true, overlap.true), (predicted, overlap.predicted)):
            partners, best = _largest(overlap, owner), np.zeros(len(sizes))
            np.maximum.at(best, owner[partners], dice[partners])
            row += [float(sizes @ best), float(sizes.sum())]
        return row

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        return _both_ways(rows, without_objects=1.0)


class ObjectHausdorff(PerImageMetric):
    """Object Hausdorff distance of the GlaS challenge (Sirinukunwattana et al. 2017). Smaller is better.

    As :py:class:`ObjectDice`, with the Hausdorff distance H of two objects in place of the Dice: the largest distance
    of a voxel of either to the nearest voxel of the other. An object that overlaps none has as partner the object of
    the other side with the smallest H::

        object Hausdorff = 1/2 [ sum_i |T_i| H(T_i, S(T_i)) / sum_i |T_i| + sum_j |S_j| H(T(S_j), S_j) / sum_j |S_j| ]

    Distances are those between voxel centres, weights are numbers of voxels.

    ``metric(y_pred, y)`` takes instance label maps, batches (B, 1, \\*spatial) or lists of (1, \\*spatial), any integer
    labels, 0 background, and returns the distance of each image, (B, 1); ``get_buffer()`` gives the same for all
    images. Objects of a class map: :py:func:`~monai_labelfx.ops.label_objects`.

    Args:
        mode: ``"pooled"`` (default) weighs the objects of all images together; ``"per_image"`` averages the distances
            of the images. Papers do both, so state which one it is.
        spacing: voxel size, one number or one per axis. Default ``None``: that of the reference's affine, mm in medical
            formats, where it is a ``MetaTensor``; else 1, and distances are in voxels.

    Raises:
        ValueError: when an argument is out of its range or label maps do not fit together; in ``aggregate()``, when no
            image was added.

    Notes:
        Where the other side has no object in the image, each object counts with the diagonal of the image, the largest
        distance there can be, and the side without objects has no part in the mean: an image in which nothing is found
        has the worst distance that it can have. Without objects on both sides the distance is 0. Of objects that are
        overlapped equally the one with the smaller H is the partner. Distances are computed on the CPU.

    Example:
        >>> metric = ObjectHausdorff()
        >>> prediction, reference = torch.tensor([[1, 1, 1, 0, 0, 0]]), torch.tensor([[5, 5, 0, 0, 6, 6]])
        >>> metric([prediction], [reference])  # 1/2 [(2 * 1 + 2 * 4) / 4 + 1]
        tensor([[1.7500]], dtype=torch.float64)
    """

    def __init__(
        self, mode: Literal["pooled", "per_image"] = "pooled", *, spacing: float | Sequence[float] | None = None
    ) -> None:
        if spacing is not None and not all(0 < size < math.inf for size in np.atleast_1d(spacing)):
            raise ValueError(f"spacing must be one voxel size above 0, or one per axis, got {spacing}.")
        super().__init__(columns=4, mode=mode)
        self.spacing = spacing
        self._sizes: Any = None

    def _compute_list(self, y_pred: Any, y: Any = None, **kwargs: Any) -> torch.Tensor:
        if y is None or len(y_pred) != len(y):
            return super()._compute_list(y_pred, y)  # raises
        rows = [torch.zeros(0, self.columns, dtype=torch.float64)]
        for prediction, reference in zip(y_pred, y, strict=True):
            self._sizes = _spacing(reference) if self.spacing is None else self.spacing
            rows.append(super()._compute_list([prediction], [reference]))
        return torch.cat(rows)

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> list[float]:
        check_label_map(prediction)
        overlap = label_overlap(prediction, reference)
        shape = tuple(prediction.shape[1:])
        spacing = np.ones(len(shape)) if self._sizes is None else np.asarray(self._sizes, np.float64)
        if spacing.ndim and len(spacing) != len(shape):
            raise ValueError(f"spacing must be one number, or one for each of {len(shape)} axes, got {self.spacing}.")
        spacing = np.broadcast_to(spacing, (len(shape),))
        true, predicted = (
            ObjectVoxels(integer_labels(labels[0]).cpu().numpy(), spacing) for labels in (reference, prediction)
        )
        first, second = nearest_distances(
            true,
            predicted,
            _partners(overlap, overlap.true, overlap.predicted, len(true)),
            _partners(overlap, overlap.predicted, overlap.true, len(predicted)),
            without=float(np.linalg.norm((np.array(shape) - 1) * spacing)),
        )
        row: list[float] = []
        for sizes, distances in ((overlap.true_sizes, first), (overlap.predicted_sizes, second)):
            row += [float(sizes @ distances), float(sizes.sum())]
        return row

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        return _both_ways(rows, without_objects=0.0)


def _largest(overlap: LabelOverlap, owner: np.ndarray) -> np.ndarray:
    """Which overlaps are the largest of the object that owns them: one each, more where several are equal."""
    largest = np.zeros(int(owner.max(initial=-1)) + 1, np.int64)
    np.maximum.at(largest, owner, overlap.shared)
    return overlap.shared == largest[owner]


def _partners(overlap: LabelOverlap, owner: np.ndarray, other: np.ndarray, count: int) -> list[list[int]]:
    """For each of ``count`` owners the objects of the other side that it overlaps most: one, or several alike."""
    found: list[list[int]] = [[] for _ in range(count)]
    largest = _largest(overlap, owner)
    for first, second in zip(owner[largest].tolist(), other[largest].tolist(), strict=True):
        found[first].append(second)
    return found


def _both_ways(rows: torch.Tensor, without_objects: float) -> torch.Tensor:
    """Mean (N, 1) of the weighted means of both sides; of one side where the other one has no object."""
    true, trues, predicted, predictions = rows.unbind(dim=1)
    means = torch.stack([true / trues, predicted / predictions], dim=1).nanmean(dim=1, keepdim=True)
    return means.nan_to_num(without_objects)
