# SPDX-License-Identifier: Apache-2.0
"""The network of a two-stage detector: what its row of numbers holds."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_labelfx.detectors._network import PyramidNeck
from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors._two_stage_network import ProposalHead, TwoStageNetwork
from monai_labelfx.networks.resnet_backbone import ResNetBackbone

FLAT = {"stem_stride": (2, 2, 1), "pool_stride": (2, 2, 1)}


def network(spatial_dims, *, gate=False, extra_levels=1, pooled_levels=4, **options):
    torch.manual_seed(0)
    trunk = ResNetBackbone(spatial_dims, 1, depth=10, features=4, norm="group", **options)
    neck = PyramidNeck(trunk, spatial_dims, 8, 2, "pool", extra_levels)
    rpn = ProposalHead(spatial_dims, 8, 3, 1)
    return TwoStageNetwork(
        trunk,
        neck,
        rpn,
        {"box_head": nn.Linear(2, 2)},
        strides=neck.strides,
        channels=8,
        anchors=3,
        pooled_levels=pooled_levels,
        gate=gate,
    )


@pytest.mark.parametrize("size", [(64, 48), (33, 70), (32, 40, 36)])
@pytest.mark.parametrize("gate", [False, True])
def test_parts_are_heads_and_maps(size, gate):
    options = FLAT if len(size) == 3 else {}
    net = network(len(size), gate=gate, **options).eval()
    images = torch.randn(2, 1, *size)
    raw = net(images)
    maps = net.neck(net.backbone(images))
    assert [tuple(one.shape[2:]) for one in maps] == net.level_shapes(size)
    parts = unpack(raw[..., :-1] if gate else raw, net.part_shapes(size))
    assert list(parts) == [f"rpn_{level}" for level in range(5)] + [f"map_{level}" for level in range(4)]
    for level, features in enumerate(maps):
        hidden = net.rpn.conv(features)
        assert torch.allclose(parts[f"rpn_{level}"][:, :3], net.rpn.cls_logits(hidden), atol=1e-6)
        assert torch.allclose(parts[f"rpn_{level}"][:, 3:], net.rpn.bbox_pred(hidden), atol=1e-6)
        assert level == 4 or torch.equal(parts[f"map_{level}"], features)
    if gate:
        mean = maps[-1].flatten(2).mean(dim=2)
        assert torch.allclose(raw[:, 0, -1], net.gate(mean)[:, 0], atol=1e-6)


def test_without_extra_levels_all_maps_are_pooled():
    net = network(2, extra_levels=0, pooled_levels=4)
    assert net.strides == [(s, s) for s in (4, 8, 16, 32)]
    assert len(net.part_shapes((64, 64))) == 8
    unpack(net(torch.zeros(1, 1, 64, 64)), net.part_shapes((64, 64)))


@pytest.mark.parametrize("depth", [0, 1, 3])
def test_proposal_head(depth):
    torch.manual_seed(0)
    head = ProposalHead(2, 32, 3, depth)
    assert head(torch.zeros(2, 32, 4, 5)).shape == (2, 3 + 12, 4, 5)
    layers = [module for module in head.modules() if isinstance(module, nn.Conv2d)]
    assert len(layers) == depth + 2
    for layer in layers:
        assert layer.weight.std().item() == pytest.approx(0.01, rel=0.2) and not layer.bias.any()
