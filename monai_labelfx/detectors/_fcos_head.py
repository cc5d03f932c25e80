# SPDX-License-Identifier: Apache-2.0
"""The head of FCOS: two towers that run over every level, and a scale for the distances of each level."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from monai_labelfx.detectors._network import flatten_places
from monai_labelfx.detectors._towers import Tower


class FCOSHead(nn.Module):
    """Class logits, the logit of the centreness and raw distances as one (B, classes + 1 + 2 \\* spatial_dims, places).

    Parameters have the names of torchvision.

    Args:
        spatial_dims: of the maps.
        channels: of the maps.
        classes: that the network tells apart.
        levels: number of learned scales of distances; ``None`` for no scales.
        depth, norm: of the towers.
        prior: class score at the start.
        centerness_on: ``"regression"`` or ``"classification"``, the tower that finds the centreness.
        first_distance: raw distance at the start.
    """

    classification_head: Any  # towers have outputs of any name
    regression_head: Any

    def __init__(
        self,
        spatial_dims: int,
        channels: int,
        classes: int,
        levels: int | None,
        *,
        depth: int,
        norm: Any,
        prior: float,
        centerness_on: str,
        first_distance: float,
    ) -> None:
        super().__init__()
        self.classes = classes
        self.centerness_on = centerness_on
        outputs: dict[str, dict[str, int]] = {
            "classification": {"cls_logits": classes},
            "regression": {"bbox_reg": 2 * spatial_dims},
        }
        outputs[centerness_on]["bbox_ctrness"] = 1
        self.classification_head = _flat(Tower(spatial_dims, channels, depth, norm, outputs["classification"]))
        self.regression_head = _flat(Tower(spatial_dims, channels, depth, norm, outputs["regression"]))
        self.scales = None if levels is None else nn.Parameter(torch.ones(levels))
        nn.init.constant_(self.classification_head.cls_logits.bias, -math.log((1 - prior) / prior))
        nn.init.constant_(self.regression_head.bbox_reg.bias, first_distance)

    def forward(self, maps: Sequence[torch.Tensor]) -> torch.Tensor:
        return self.with_features(maps)[0]

    def with_features(self, maps: Sequence[torch.Tensor]) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """What the head says of all places, and the maps of the tower of distances, (B, channels, \\*spatial) each."""
        levels, towers = [], []
        for level, features in enumerate(maps):
            classified = self.classification_head.conv(features)
            located = self.regression_head.conv(features)
            if self.centerness_on == "regression":
                centerness = self.regression_head.bbox_ctrness(located)
            else:
                centerness = self.classification_head.bbox_ctrness(classified)
            distances = self.regression_head.bbox_reg(located)
            if self.scales is not None:
                distances = distances * self.scales[level]
            every = torch.cat([self.classification_head.cls_logits(classified), centerness, distances], dim=1)
            levels.append(flatten_places(every, every.shape[1]))
            towers.append(located)
        return torch.cat(levels, dim=2), towers


def _flat(tower: Any) -> Any:
    """The tower with its layers in one row, as torchvision names those of this head."""
    tower.conv = nn.Sequential(*(layer for block in tower.conv for layer in block))
    return tower
