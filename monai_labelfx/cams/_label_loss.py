# SPDX-License-Identifier: Apache-2.0
"""Binary cross entropy of labels some of which nobody knows."""

from __future__ import annotations

import torch
from torch.nn.functional import binary_cross_entropy_with_logits


def label_loss(logits: torch.Tensor, labels: torch.Tensor, positive_weight: torch.Tensor | None = None) -> torch.Tensor:
    """Mean binary cross entropy of the known labels.

    Each label is a question of its own (multi-label), so the mean is over all known ones of the batch together. A batch
    without any has the loss 0, which stays attached to the logits with a gradient of 0.

    Args:
        logits: (B, ...) of any floating type; computed in float32 (float64 stays) whatever autocast does.
        labels: of the same shape, 1 present, 0 absent, negative unknown.
        positive_weight: weight of a label that is present, one number or one along the last axis.

    Raises:
        ValueError: if the shapes differ.

    Example:
        >>> logits = torch.tensor([[0.0, 9.0], [0.0, -9.0]])
        >>> round(float(label_loss(logits, torch.tensor([[1, -1], [0, -1]]))), 4)  # log 2
        0.6931
    """
    if logits.shape != labels.shape:
        raise ValueError(
            f"labels must have the shape of the logits, {tuple(logits.shape)}, got {tuple(labels.shape)}; a label is "
            "1 present, 0 absent or -1 unknown."
        )
    with torch.autocast(logits.device.type, enabled=False):
        logits = logits if logits.dtype == torch.float64 else logits.float()
        known = labels >= 0
        weight = None if positive_weight is None else positive_weight.to(logits)
        every = binary_cross_entropy_with_logits(
            logits, labels.clamp(min=0).to(logits), pos_weight=weight, reduction="none"
        )
        return torch.where(known, every, 0).sum() / known.sum().clamp(min=1)
