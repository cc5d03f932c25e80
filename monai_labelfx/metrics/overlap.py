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
            "prediction and reference must have one shape, "
            f"got {tuple(prediction.shape)} and {tuple(reference.shape)}."
        )
    labelled = (prediction != 0) | (reference != 0)
    _, rows = prediction[labelled].unique(return_inverse=True)
    labels, columns = reference[labelled].unique(return_inverse=True)
    width = max(labels.numel(), 1)
    keys, counts = (rows * width + columns).unique(return_counts=True)
    keys, counts = keys.cpu().numpy(), counts.cpu().numpy()
