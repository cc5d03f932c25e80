# SPDX-License-Identifier: Apache-2.0
"""The output_transform for metrics on masks: probabilities above a threshold, and class indices as channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, SupportsFloat

import torch
from monai.utils import convert_to_dst_type

from monai_labelfx.engines.metric_handlers import from_instances


def from_probabilities(
    pred_key: str,
    label_key: str,
    threshold: SupportsFloat = 0.5,
    *,
    classes: int = 1,
    has_label_key: str | None = None,
) -> Callable[[Any], tuple[list[Any], list[Any]]]:
    """An ``output_transform`` that makes (binary predictions, binary references), a channel per class of objects.

    It reads what :py:func:`from_instances` reads, and drops the items without reference as that does. Both sides are
    float masks (C, \\*spatial) of 0 and 1, what MONAI's ``DiceMetric`` (include_background=True, its default: there is
    no background channel) and :py:class:`PhysicalSurfaceDistanceHandler` take. Metadata stay, so that distances know
    the voxel size.

    Args:
        pred_key: key of the probabilities (C, \\*spatial).
        label_key: key of the class indices (1, \\*spatial), where the number v is the channel v - 1.
        threshold: a voxel belongs to the object where its probability is above it: a number, or a
            :py:class:`BoxThreshold`, read anew for each batch. Default 0.5.
        classes: number of class channels C.
        has_label_key: key of the flag that tells whether the item has a reference. Default ``None``, all have.

    Returns:
        A callable for the ``output_transform`` of :py:class:`PairedMetricHandler` and the handlers made of it.

    Raises:
        ValueError: in the call, when an item's probabilities or label have another number of channels, or the label
            more classes.

    Example:
        >>> item = {"pred": torch.tensor([[0.9, 0.2, 0.6], [0.1, 0.7, 0.2]]), "label": torch.tensor([[1, 0, 2]])}
        >>> (prediction,), (reference,) = from_probabilities("pred", "label", classes=2)([item])
        >>> prediction.tolist(), reference.tolist()
        ([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], [[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    """
    pick = from_instances(pred_key, label_key, has_label_key)

    def pairs(output: Any) -> tuple[list[Any], list[Any]]:
        predictions, references = pick(output)
        above = float(threshold)
        return (
            [_above(torch.as_tensor(one), above, classes, pred_key) for one in predictions],
            [_channels(torch.as_tensor(one), classes, label_key) for one in references],
        )

    return pairs


def _above(probabilities: torch.Tensor, threshold: float, classes: int, key: str) -> torch.Tensor:
    if len(probabilities) != classes:
        raise ValueError(f"{key!r} must have one channel per class, {classes}, got shape {tuple(probabilities.shape)}.")
    return (probabilities.float() > threshold).float()


def _channels(label: torch.Tensor, classes: int, key: str) -> torch.Tensor:
    if len(label) != 1 or (label.numel() and int(label.max()) > classes):
        raise ValueError(
            f"{key!r} must hold class indices (1, *spatial) from 0 to classes={classes}, got shape "
            f"{tuple(label.shape)} and numbers up to {int(label.max()) if label.numel() else 0}."
        )
    plain = label.as_subclass(torch.Tensor)
    masks = torch.cat([plain == value for value in range(1, classes + 1)])
    return convert_to_dst_type(masks, label, dtype=torch.float32)[0]
