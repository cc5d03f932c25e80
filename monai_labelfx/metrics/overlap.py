# SPDX-License-Identifier: Apache-2.0
"""Which objects of two label maps overlap, and by how many voxels: a sparse contingency table."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from monai_labelfx.ops.instances import integer_labels


class LabelOverlap(NamedTuple):
    """Sizes of the objects of two label maps and of the overlaps that are not empty; voxel counts, int64 on the CPU.

    Objects are numbered from 0 in ascending order of their labels.
    """

    predicted_sizes: np.ndarray
    """(P,) voxels of each predicted object."""
    true_sizes: np.ndarray
    """(T,) voxels of each reference object."""
    predicted: np.ndarray
    """(K,) predicted object of each overlap."""
    true: np.ndarray
    """(K,) reference object of each overlap."""
    shared: np.ndarray
    """(K,) voxels of each overlap."""

    @property
    def iou(self) -> np.ndarray:
        """(K,) intersection over union of each overlap, in (0, 1]."""
        union = self.predicted_sizes[self.predicted] + self.true_sizes[self.true] - self.shared
        return self.shared / union


def label_overlap(prediction: torch.Tensor, reference: torch.Tensor) -> LabelOverlap:
    """Count the overlaps of two label maps of one shape, on their device.

    Time and memory follow the number of labelled voxels and of overlaps, not the largest label: labels may be huge or
    have gaps.

    Args:
        prediction: label map of any shape; 0 background.
        reference: label map of the same shape; 0 background.

    Raises:
        TypeError: when an argument is no tensor of real numbers.
        ValueError: when the shapes differ, or labels are negative or fractional.

    Example:
        >>> label_overlap(torch.tensor([0, 5, 5, 5]), torch.tensor([3, 3, 9, 9])).shared
        array([1, 2])
    """
    prediction, reference = integer_labels(prediction, "prediction"), integer_labels(reference, "reference")
    if prediction.shape != reference.shape:
        raise ValueError(
            f"prediction and reference must have one shape, got {tuple(prediction.shape)} and {tuple(reference.shape)}."
        )
    labelled = (prediction != 0) | (reference != 0)
    predicted_labels, predicted = prediction[labelled].unique(return_inverse=True)
    true_labels, true = reference[labelled].unique(return_inverse=True)
    pairs, counts = (predicted * true_labels.numel() + true).unique(return_counts=True)
    predicted, true = pairs // max(true_labels.numel(), 1), pairs % max(true_labels.numel(), 1)
    counts = counts.cpu().numpy()
    predicted_sizes, predicted = _sizes(predicted_labels, predicted, counts)
    true_sizes, true = _sizes(true_labels, true, counts)
    both = (predicted >= 0) & (true >= 0)
    return LabelOverlap(predicted_sizes, true_sizes, predicted[both], true[both], counts[both])


def _sizes(labels: torch.Tensor, index: torch.Tensor, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Voxels per object without the background, and the pairs' object numbers, -1 for the background."""
    numbers = torch.cumsum(labels != 0, 0) - 1
    numbers[labels == 0] = -1
    owner = numbers[index].cpu().numpy()
    sizes = np.zeros(int((labels != 0).sum()), np.int64)
    np.add.at(sizes, owner[owner >= 0], counts[owner >= 0])
    return sizes, owner
