# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from monai.visualize import CAM

from monai_labelfx.cams.plain_cam import PlainCAM
from monai_labelfx.networks.cam_network import CAMNetwork
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from tests.cam_tester import CAMTester


class TestPlainCAM(CAMTester):
    def make(self, network, **options):
        return PlainCAM(network, **options)

    @pytest.mark.parametrize("spatial_dims", [2, 3])
    def test_maps_weigh_the_features(self, spatial_dims):
        provider = self.small(spatial_dims, classes=3).double()
        images = self.images(spatial_dims).double()
        features, head = provider.network.features(images), provider.network.head
        expected = torch.einsum("bf...,kf->bk...", features, head.weight.flatten(1))
        expected = expected + head.bias.reshape(-1, *(1,) * spatial_dims)
        torch.testing.assert_close(provider.cam(images), expected)


class _Linear(torch.nn.Module):
    """A CAM network as MONAI's CAM wants it: a linear layer on pooled features."""

    def __init__(self, network):
        super().__init__()
        self.backbone = network.backbone
        self.fused = torch.nn.Identity()
        self.fuse = network.fuse
        self.fc = torch.nn.Linear(network.out_channels, network.classes)
        self.fc.weight.data = network.head.weight.data.flatten(1)
        self.fc.bias.data = network.head.bias.data

    def forward(self, x):
        return self.fc(self.fused(self.fuse(self.backbone(x))).flatten(2).mean(2))


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_maps_are_those_of_monai(spatial_dims):
    network = CAMNetwork(ResNetBackbone(spatial_dims, 1, depth=10, features=4), classes=3).eval()
    provider = PlainCAM(network).eval()
    images = torch.randn(2, 1, *(32, 40, 24)[:spatial_dims])
    monai = CAM(_Linear(network).eval(), "fused", "fc", upsampler=lambda size: lambda x: x, postprocessing=lambda x: x)
    maps = provider.cam(images)
    for number in range(3):
        expected = monai(images, class_idx=torch.full((2,), number))
        torch.testing.assert_close(maps[:, number : number + 1], expected)
    torch.testing.assert_close(provider(images), network(images))


def test_dropout_of_the_network_is_used_in_training():
    provider = PlainCAM(CAMNetwork(ResNetBackbone(2, 1, depth=10, features=4), classes=2, dropout=0.5))
    provider.network.backbone.eval()
    images = torch.randn(2, 1, 32, 32)
    assert not torch.equal(provider(images), provider(images))
    assert torch.equal(provider.eval()(images), provider(images))
