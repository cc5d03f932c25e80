# SPDX-License-Identifier: Apache-2.0
"""Towers of convolutions over a pyramid."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._towers import RetinaNetHead, Tower


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("norm", ["none", "group"])
def test_a_tower_begins_small(spatial_dims, norm):
    tower = Tower(spatial_dims, 12, 3, norm, {"first": 5, "second": 2})
    maps = torch.randn(1, 12, *[6] * spatial_dims)
    assert tower.first(tower.conv(maps)).shape[1] == 5 and tower.second(tower.conv(maps)).shape[1] == 2
    weights = torch.cat([block[0].weight.flatten() for block in tower.conv])
    assert weights.std().item() == pytest.approx(0.01, rel=0.1) and tower.first.bias.abs().sum() == 0
    assert len(tower.conv) == 3 and len(tower.conv[0]) == (3 if norm == "group" else 2)


def test_classes_come_before_box_numbers_and_levels_one_after_the_other():
    head = RetinaNetHead(2, 4, 3, 2, depth=1, norm="none", prior=0.01)
    small, large = torch.randn(1, 4, 2, 3), torch.randn(1, 4, 4, 6)
    raw = head([large, small])
    assert raw.shape == (1, 3 + 4, 2 * (24 + 6))
    assert torch.equal(raw[:, :, 48:], head([small])) and torch.equal(raw[:, :, :48], head([large]))
    head.regression_head.bbox_reg.bias.data.fill_(7.0)
    moved = head([small])
    assert torch.equal(moved[:, :3], raw[:, :3, 48:]) and torch.allclose(moved[:, 3:], raw[:, 3:, 48:] + 7)


def test_an_unknown_norm():
    with pytest.raises(ValueError, match="head_norm must be one of 'none', 'group', got 'batch'"):
        Tower(2, 4, 1, "batch", {})
