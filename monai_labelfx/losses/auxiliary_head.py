# SPDX-License-Identifier: Apache-2.0
"""A loss on the main and, with less weight, on the auxiliary logits of a network with two heads."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any

import torch


class AuxiliaryHeadLoss(torch.nn.Module):
    r"""Deep supervision by one auxiliary head (Zhao et al. 2017, PSPNet): main loss + weight * auxiliary loss.

    Networks give one tensor, so in training such a network concatenates the logits of its heads along the channels,
    K of the main and then K of the auxiliary head. In evaluation it has K channels: then the loss is that of the main
    head alone.

    Args:
        loss: the loss of one head, a module or function of logits (B, K, \*spatial) and the target. Of a module the
            auxiliary head gets a copy of its own, so that a loss that counts its calls (a warm-up) counts steps.
        classes: K.
        weight: weight of the auxiliary head. Default 0.4, the value of PSPNet and of the OEEM code.

    Raises:
        TypeError: if ``loss`` cannot be called.
        ValueError: for a weight or number of classes out of range; when called, for an input that has neither K nor
            2 K channels.

    Example:
        >>> import torch
        >>> loss = AuxiliaryHeadLoss(torch.nn.CrossEntropyLoss(), classes=2)
        >>> both, labels = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, dtype=torch.long)
        >>> round(float(loss(both, labels) / loss(both[:, :2], labels)), 4)
        1.4
    """

    def __init__(self, loss: Callable[[torch.Tensor, Any], torch.Tensor], classes: int, weight: float = 0.4) -> None:
        super().__init__()
        if not callable(loss):
            raise TypeError(f"loss must be a function or module of logits and target, got {type(loss).__name__}.")
        if isinstance(classes, bool) or not isinstance(classes, int) or classes < 1:
            raise ValueError(f"classes must be a whole number of channels above 0, got {classes!r}.")
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a finite number of 0 or more, got {weight}.")
        self.loss = loss
        self.auxiliary_loss = copy.deepcopy(loss) if isinstance(loss, torch.nn.Module) else loss
        self.classes, self.weight = classes, float(weight)

    def forward(self, input: torch.Tensor, target: Any) -> torch.Tensor:
        r"""The loss of logits (B, K, \*spatial), or (B, 2 K, \*spatial) with those of the auxiliary head."""
        if input.ndim < 2 or input.shape[1] not in (self.classes, 2 * self.classes):
            raise ValueError(
                f"input must have {self.classes} channels, or {2 * self.classes} with the auxiliary head, "
                f"got {tuple(input.shape)}."
            )
        main = self.loss(input[:, : self.classes], target)
        if input.shape[1] == self.classes:
            return main
        return main + self.weight * self.auxiliary_loss(input[:, self.classes :], target)

    def extra_repr(self) -> str:
        """The arguments, for printing."""
        return f"classes={self.classes}, weight={self.weight}"
