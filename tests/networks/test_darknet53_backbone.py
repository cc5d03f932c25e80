# SPDX-License-Identifier: Apache-2.0
"""Darknet-53: published size, a naive reference of the whole network, strides per axis."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.networks.darknet53_backbone import Darknet53Backbone

CONV = {2: F.conv2d, 3: F.conv3d}


def small(spatial_dims: int = 2, **keywords) -> Darknet53Backbone:
    torch.manual_seed(0)
    return Darknet53Backbone(spatial_dims, 1, **{"features": 2, **keywords})


def test_parameters_of_the_published_network():
    with torch.device("meta"):
        net = Darknet53Backbone(2, 3, norm="batch")
    assert sum(p.numel() for p in net.parameters()) == 41_609_928 - 1_025_000, "less the classifier of 1000 classes"
    convs = [layer for layer in net.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert len(convs) == 52, "with the fully connected layer there are 53"


@pytest.mark.parametrize("spatial_dims", CONV)
def test_naive_reference(spatial_dims):
    net = small(spatial_dims, norm="frozen_batch").double().eval()
    generator = torch.Generator().manual_seed(0)
    for module in net.modules():
        if hasattr(module, "running_var"):
            module.running_mean.normal_(0, 0.1, generator=generator)
            module.running_var.uniform_(0.5, 2, generator=generator)
            module.bias.normal_(0, 0.1, generator=generator)
    values = iter(net.state_dict().values())

    def unit(x, stride=1):
        kernel = next(values)
        weight, bias, mean, var = (next(values).reshape(-1, *(1,) * spatial_dims) for _ in range(4))
        x = CONV[spatial_dims](x, kernel, None, stride, kernel.shape[-1] // 2)
        x = weight * (x - mean) / torch.sqrt(var + 1e-5) + bias
        return torch.where(x > 0, x, 0.1 * x)

    image = torch.randn(1, 1, *(33, 20, 9)[:spatial_dims], dtype=torch.float64)
    x, maps = unit(image), []
    for blocks in (1, 2, 8, 8, 4):
        x = unit(x, 2)
        for _ in range(blocks):
            x = x + unit(unit(x))
        maps.append(x)
    assert next(values, None) is None, "every weight is used"
    for found, expected in zip(net(image), maps[2:], strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_blocks_narrow_to_half():
    net = Darknet53Backbone(2, 1, features=4)
    for stage, outputs in zip(net.stages, (8, 16, 32, 64, 128), strict=True):
        assert stage[0][0].out_channels == outputs and stage[1].narrow[0].out_channels == outputs // 2
    assert net.out_channels == [32, 64, 128]


def test_strides_per_axis():
    net = small(3, stage_strides=[(2, 2, 1), (2, 2, 1), 2, 2, (2, 1, 2)])
    assert net.strides == [(8, 8, 2), (16, 16, 4), (32, 16, 8)]
    assert [tuple(m.shape[2:]) for m in net(torch.rand(1, 1, 65, 64, 5))] == [(9, 8, 3), (5, 4, 2), (3, 4, 1)]


def test_convolutions_have_a_bias_only_without_a_norm():
    assert small().stem[0].bias is None and small(norm=None).stem[0].bias is not None


def test_bad_arguments():
    with pytest.raises(ValueError, match="stage_strides must have 5 entries, one per stage, got 2"):
        small(stage_strides=2)
    with pytest.raises(ValueError, match="an entry of stage_strides must hold whole numbers of 1 or more, got 0"):
        small(stage_strides=(2, 2, 2, 2, 0))
