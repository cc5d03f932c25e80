# SPDX-License-Identifier: Apache-2.0
"""The generator of GAN-Circle: widths from the decay rule, count, and the network written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generator_tester import GeneratorContract, image

from monai_labelfx.networks.gan_circle_generator import GANCircleGenerator

WIDTHS = [128, 105, 92, 80, 70, 61, 53, 45, 37, 30, 22, 16]


class TestContract(GeneratorContract):
    long = 80

    @staticmethod
    def make(spatial_dims, **keywords):
        return GANCircleGenerator(spatial_dims, **{"features": 6, "min_features": 2, "layers": 3, **keywords})

    @staticmethod
    def full(spatial_dims):
        return GANCircleGenerator(spatial_dims, features=2, min_features=1)


class TestThinContract(TestContract):
    @staticmethod
    def make(spatial_dims, **keywords):
        stride = (2, 2, 1)[-spatial_dims:] if spatial_dims < 4 else 2
        options = {"features": 6, "min_features": 2, "layers": 3, "stride": stride}
        return GANCircleGenerator(spatial_dims, **{**options, **keywords})

    full = make


def test_widths_and_counts():
    net = GANCircleGenerator(2)
    assert net.widths == WIDTHS and sum(WIDTHS) == 739

    def conv(i: int, o: int, side: int = 3) -> int:
        return side**2 * i * o + o

    row = conv(1, 128) + sum(conv(i, o) for i, o in zip(WIDTHS, WIDTHS[1:], strict=False))
    rest = conv(739, 64, 1) + conv(739, 32, 1) + conv(32, 8) + conv(72, 72) + 9 * 36
    assert sum(p.numel() for p in net.parameters()) == row + rest + conv(72, 36, 4) == 611_418
    flat = GANCircleGenerator(2, stride=1)
    assert sum(p.numel() for p in flat.parameters()) == row + rest + conv(72, 36)
    assert (flat.halo, flat.divisor) == ((16, 16), (1, 1)) and (net.halo, net.divisor) == ((29, 29), (2, 2))
    thin = GANCircleGenerator(3, features=4, min_features=2, stride=(2, 2, 1))
    assert (thin.halo, thin.divisor) == ((29, 29, 16), (2, 2, 1))


@pytest.mark.parametrize("stride", [1, 2])
def test_equals_the_network_written_out(stride):
    torch.manual_seed(0)
    net = GANCircleGenerator(2, 2, features=6, min_features=2, layers=2, stride=stride).double()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.3)
    x = torch.randn(2, 2, 12, 8, dtype=torch.float64)

    def conv(layer: torch.nn.Module, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        return F.conv2d(x, layer.weight, layer.bias, stride, layer.weight.shape[-1] // 2)

    def rectify(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.1 * x)

    f0 = rectify(conv(net.row[0], x, stride))
    f1 = rectify(conv(net.row[1], f0))
    f2 = rectify(conv(net.row[2], f1))
    assert [f.shape[1] for f in (f0, f1, f2)] == [6, 3, 2]
    f = torch.cat([f0, f1, f2], 1)
    g = torch.cat([rectify(conv(net.wide, f)), conv(net.narrow, rectify(conv(net.before, f)))], 1)
    y = rectify(F.conv_transpose2d(conv(net.joined, g), net.up.weight, net.up.bias, stride, 1))
    assert net.last.bias is None
    torch.testing.assert_close(net(x), x + conv(net.last, y))


def test_start_of_the_weights():
    torch.manual_seed(0)
    net = GANCircleGenerator(2)
    for conv in net.row[1:6]:
        assert conv.weight.var().item() == pytest.approx(1 / (9 * conv.in_channels), rel=0.1)
        assert not conv.bias.any()
    assert net.up.weight.var().item() == pytest.approx(1 / (4 * 72), rel=0.1), "each output meets 4 of 16 weights"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": 0}, "features must be 1 or more, got 0"),
        ({"layers": 0}, "layers must be"),
        ({"min_features": 200}, "min_features must be at most features=128, got 200"),
        ({"stride": 3}, "stride must be 1 or 2 on every axis, got 3"),
        ({"stride": (2, 2, 1)}, "stride must be one number or 2"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        GANCircleGenerator(2, **keywords)


def test_the_image_is_added():
    net, x = GANCircleGenerator(2, features=4, min_features=2, layers=2), image(7, 9)
    net.last.weight.data.zero_()
    assert torch.equal(net(x), x)
