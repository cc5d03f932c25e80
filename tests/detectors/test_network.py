# SPDX-License-Identifier: Apache-2.0
"""The network of a dense detector."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._network import DenseNetwork, PyramidNeck, extra_blocks, flatten_places, resnet_backbone
from monai_labelfx.networks import ResNetBackbone


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4)])
def test_places_are_in_c_order_and_their_anchors_together(shape):
    maps = torch.arange(2 * 6 * torch.Size(shape).numel(), dtype=torch.float32).reshape(2, 6, *shape)
    flat = flatten_places(maps, 2)  # 3 anchors of 2 channels
    assert flat.shape == (2, 2, torch.Size(shape).numel() * 3)
    for place, index in enumerate(torch.cartesian_prod(*map(torch.arange, shape)).tolist()):
        for anchor in range(3):
            for channel in range(2):
                assert flat[1, channel, 3 * place + anchor] == maps[(1, 2 * anchor + channel, *index)]


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_levels_have_the_shapes_of_the_maps(spatial_dims):
    trunk = ResNetBackbone(spatial_dims, 1, depth=10, features=8)
    neck = PyramidNeck(trunk, spatial_dims, 8, 3, "convs_on_input", 1)
    shapes = []

    class Head(torch.nn.Module):
        def forward(self, maps):
            shapes.extend(tuple(m.shape[2:]) for m in maps)
            return torch.cat([flatten_places(m, 8) for m in maps], dim=2)

    network = DenseNetwork(trunk, neck, Head(), strides=neck.strides, gate_channels=8)
    size = (33, 50, 47)[:spatial_dims]
    raw = network(torch.rand(2, 1, *size))
    assert shapes == network.level_shapes(size) and len(shapes) == 4
    assert raw.shape == (2, 9, sum(torch.Size(s).numel() for s in shapes))
    assert (raw[:, -1] == raw[:, -1:, 0]).all(), "the gate is one number for each image"


def test_backbones_by_name():
    trunk = resnet_backbone("resnext50_32x4d", 2, 1, "frozen_batch")
    assert trunk.layer1[0].conv2.groups == 32 and trunk.layer1[0].conv2.weight.shape[0] == 128
    assert resnet_backbone({"depth": 18, "features": 8, "norm": "batch"}, 3, 1, "group").out_channels[0] == 8
    assert resnet_backbone(trunk, 2, 1, "group") is trunk


def test_what_the_extra_levels_are_made_of():
    assert (extra_blocks("C5"), extra_blocks("P5")) == ("convs_on_input", "convs_on_output")
    with pytest.raises(ValueError, match="extra_from must be 'C5' or 'P5', got 'C4'"):
        extra_blocks("C4")
