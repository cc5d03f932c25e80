# SPDX-License-Identifier: Apache-2.0
"""Neck and head of YOLOv3: which map goes where, and the layout of the output."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.detectors._yolov3_network import YOLOHead, YOLONeck


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_neck_goes_from_coarse_to_fine(spatial_dims):
    torch.manual_seed(0)
    neck = YOLONeck(spatial_dims, [8, 16, 32], "group")
    assert neck.out_channels == [4, 8, 16]
    maps = [torch.randn(2, c, *[n] * spatial_dims) for c, n in ((8, 9), (16, 5), (32, 3))]
    fine, middle, coarse = neck(maps)
    assert torch.equal(coarse, neck.blocks[2](maps[2]))
    up = F.interpolate(neck.narrow[1](coarse), size=maps[1].shape[2:])
    assert up.shape[1] == 8 and torch.equal(middle, neck.blocks[1](torch.cat([up, maps[1]], dim=1)))
    up = F.interpolate(neck.narrow[0](middle), size=maps[0].shape[2:])
    assert up.shape[1] == 4 and torch.equal(fine, neck.blocks[0](torch.cat([up, maps[0]], dim=1)))


def test_a_block_is_five_convolutions():
    layers = [
        layer for layer in YOLONeck(2, [8, 16], "batch").blocks[0].modules() if isinstance(layer, torch.nn.Conv2d)
    ]
    assert [layer.kernel_size[0] for layer in layers] == [1, 3, 1, 3, 1]
    assert [layer.in_channels for layer in layers] == [12, 4, 8, 4, 8]
    assert [layer.out_channels for layer in layers] == [4, 8, 4, 8, 4] and layers[0].bias is None


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_the_head_has_classes_then_objectness_then_boxes(spatial_dims):
    torch.manual_seed(0)
    head = YOLOHead(spatial_dims, [4, 8], 2, [3, 1], norm=None, prior=0.03)
    channels = 3 + 2 * spatial_dims
    maps = [torch.randn(2, 4, *[3] * spatial_dims), torch.randn(2, 8, *[2] * spatial_dims)]
    raw = head(maps)
    assert raw.shape == (2, channels, 3 * 3**spatial_dims + 2**spatial_dims)
    # place 1 of the finest level: its second anchor
    numbers = head.pred[0](head.conv[0](maps[0])).flatten(2)[:, :, 1]
    assert torch.equal(raw[:, :, 3 + 1], numbers[:, channels : 2 * channels])
    fresh = head([torch.zeros_like(level) for level in maps])
    with torch.no_grad():
        for layer in head.conv:
            layer[0][0].bias.zero_()
    fresh = head([torch.zeros_like(level) for level in maps])
    assert (
        torch.allclose(fresh[:, 2].sigmoid(), torch.tensor(0.03)) and (fresh[:, [0, 1, *range(3, channels)]] == 0).all()
    )
