# SPDX-License-Identifier: Apache-2.0
"""The head of R-CNN: the class of a proposal, and its box for each class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import relu


class BoxHead(nn.Module):
    """Two fully connected layers on pooled features, then class logits and box numbers (Lin et al. 2017, section 4.2).

    Parameters have the names of torchvision. Class 0 of the outputs is the background, class c of a data set is c + 1.

    Args:
        channels: of the pooled features.
        bins: their size along each axis.
        hidden: channels of the fully connected layers.
        classes: without the background.
    """

    def __init__(self, channels: int, bins: Sequence[int], hidden: int, classes: int) -> None:
        super().__init__()
        self.numbers = 2 * len(bins)
        # published weights have these axes in the order of a picture's rows and columns
        self.flattened_inputs = {"fc6.weight": (channels, *bins)}
        self.fc6 = nn.Linear(channels * math.prod(bins), hidden)
        self.fc7 = nn.Linear(hidden, hidden)
        self.cls_score = nn.Linear(hidden, classes + 1)
        self.bbox_pred = nn.Linear(hidden, (classes + 1) * self.numbers)
        for layer, deviation in ((self.cls_score, 0.01), (self.bbox_pred, 0.001)):
            nn.init.normal_(layer.weight, std=deviation)
            nn.init.zeros_(layer.bias)

    def forward(self, pooled: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(R, C, \\*bins) -> class logits (R, classes + 1) and box numbers (R, classes + 1, 2 \\* D), in its dtype."""
        # what the detector pools is float32, also where the network is of half precision
        hidden = relu(self.fc6(pooled.flatten(1).to(self.fc6.weight.dtype)))
        hidden = relu(self.fc7(hidden))
        deltas = self.bbox_pred(hidden).unflatten(1, (-1, self.numbers))
        return self.cls_score(hidden).to(pooled.dtype), deltas.to(pooled.dtype)
