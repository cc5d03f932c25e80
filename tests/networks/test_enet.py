# SPDX-License-Identifier: Apache-2.0
"""ENet against its architecture: counted by hand, its bottlenecks written out, its unpooling against torch's."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.networks.enet import ENet, _Bottleneck, _PoolingBottleneck, _unpool

LAYERS = {"norm": "batch", "act": "prelu"}


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def counted(spatial_dims: int, in_channels: int = 1, out_channels: int = 1, f: int = 16) -> int:
    """Weights and biases of convolutions, scales and shifts of norms, one slope per PReLU, from the paper's table."""

    def conv(i: int, o: int, side: int, bias: int = 1) -> int:
        return side**spatial_dims * i * o + bias * o

    def unit(i: int, o: int, side: int, bias: int = 1) -> int:
        return conv(i, o, side, bias) + 2 * o + 1

    def branch(i: int, o: int, first: int = 1) -> int:
        return unit(i, i // 4, first) + unit(i // 4, i // 4, 3) + unit(i // 4, o, 1)

    def asymmetric(i: int) -> int:
        inner = i // 4
        middle = spatial_dims * (5 * inner * inner + inner) + 2 * inner + 1
        return unit(i, inner, 1) + middle + unit(inner, i, 1)

    same = branch(8 * f, 8 * f)
    initial = conv(in_channels, f - in_channels, 3)
    first_group = branch(f, 4 * f, 2) + 1 + 4 * (branch(4 * f, 4 * f) + 1)
    second_group = branch(4 * f, 8 * f, 2) + 1 + 6 * (same + 1) + 2 * (asymmetric(8 * f) + 1)
    third_group = 5 * (same + 1) + 2 * (asymmetric(8 * f) + 1) + branch(8 * f, 4 * f) + conv(8 * f, 4 * f, 3) + 1
    decoder = branch(8 * f, 4 * f, 3) + 1 + branch(4 * f, 4 * f) + 1 + branch(4 * f, f) + unit(4 * f, f, 1) + 1
    last = branch(2 * f, f, 3) + 1 + branch(f, f) + 1 + 2 * unit(f, f, 3, 0) + conv(f, out_channels, 1)
    return initial + first_group + second_group + third_group + decoder + last


def test_parameter_count_is_the_papers_without_its_unused_ones():
    heads, slopes = 9 * 128 + 1 + 9 * 16 + 1, 2
    assert parameters(ENet(2)) == counted(2) == 458_230 == 459_530 - heads - slopes


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_parameter_counts_of_other_shapes(spatial_dims):
    assert parameters(ENet(spatial_dims, 3, 2, features=8)) == counted(spatial_dims, 3, 2, 8)


def test_presets_of_the_reference_code():
    torch.manual_seed(0)
    net = ENet(2)
    rates = [m.p for m in net.modules() if isinstance(m, torch.nn.Dropout)]
    assert rates.count(0.1) == 8 + 3 and rates.count(0.01) == 2 + 4 + 8 + 2
    plain, asymmetric = [(3, 3)], [(5, 1), (1, 5)]
    for group in (net.group2, net.group3):
        convs = [[m for m in block.branch if hasattr(m, "conv")][1:-1] for block in group]
        sides = [[m.conv.kernel_size for m in inner] for inner in convs]
        assert sides == [plain, plain, asymmetric, plain, plain, plain, asymmetric, plain]
        assert [inner[0].conv.dilation[0] for inner in convs] == [1, 2, 1, 4, 1, 8, 1, 16]
    scales = torch.cat([m.weight.detach() for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)])
    assert 0.015 < scales.std() < 0.025 and abs(scales.mean() - 1) < 0.01
    assert net.group2[0].branch[0].conv.weight.std().item() == pytest.approx((2 / (128 + 32)) ** 0.5, rel=0.1)
    plain = ENet(2, init="torch")
    assert all((m.weight == 1).all() for m in plain.modules() if isinstance(m, torch.nn.BatchNorm2d))


def test_asymmetric_convolutions_take_one_axis_at_a_time():
    sides = [m.kernel_size for m in ENet(3, features=4).modules() if hasattr(m, "kernel_size")]
    assert [s for s in sides if isinstance(s, tuple) and 5 in s] == [(5, 1, 1), (1, 5, 1), (1, 1, 5)] * 4


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_unpooling_is_torchs(spatial_dims):
    x = torch.randn(2, 3, *(6, 4, 8)[:spatial_dims], generator=torch.Generator().manual_seed(0))
    pool = getattr(F, f"max_pool{spatial_dims}d")
    unpool = getattr(F, f"max_unpool{spatial_dims}d")
    pooled, indices = pool(x, 2, return_indices=True)
    torch.testing.assert_close(_unpool(pooled, indices, x), unpool(pooled, indices, 2))


def scattered_norms(module: torch.nn.Module) -> torch.nn.Module:
    """The module in evaluation mode, no norm the identity."""
    for m in module.modules():
        if isinstance(m, torch.nn.BatchNorm2d):
            for tensor in (m.running_mean, m.running_var, m.weight.data, m.bias.data):
                tensor.uniform_(0.5, 1.5)
    return module.eval()


def unit(module: torch.nn.Module, x: torch.Tensor, **keywords) -> torch.Tensor:
    """Convolution, norm, PReLU from a Convolution's weights."""
    conv, norm, act = module.conv, module.adn.N, module.adn.A
    x = F.conv2d(x, conv.weight, conv.bias, **keywords)
    scale = norm.weight / torch.sqrt(norm.running_var + 1e-5)
    x = x * scale[:, None, None] + (norm.bias - norm.running_mean * scale)[:, None, None]
    return torch.where(x > 0, x, act.weight * x)


@pytest.mark.parametrize(("dilation", "asymmetric"), [(1, False), (4, False), (1, True)])
@pytest.mark.parametrize("out_channels", [8, 4])
def test_a_bottleneck_written_out(dilation, asymmetric, out_channels):
    torch.manual_seed(0)
    block = scattered_norms(
        _Bottleneck(8, out_channels, 0.1, dilation=dilation, asymmetric=asymmetric, spatial_dims=2, **LAYERS)
    )
    x = torch.randn(2, 8, 9, 7)
    y = unit(block.branch[0], x)
    if asymmetric:
        y = F.conv2d(y, block.branch[1].conv.weight, block.branch[1].conv.bias, padding=(2, 0))
        y = unit(block.branch[2], y, padding=(0, 2))
    else:
        y = unit(block.branch[1], y, padding=dilation, dilation=dilation)
    y = unit(block.branch[-2], y)
    if out_channels == 8:
        y = y + x
    elif dilation > 1:
        y = y + F.conv2d(x, block.shortcut.conv.weight, block.shortcut.conv.bias, padding=1)
    else:
        y = y + unit(block.shortcut, x)
    torch.testing.assert_close(block(x), torch.where(y > 0, y, block.act.weight * y))


def test_a_pooling_bottleneck_written_out():
    torch.manual_seed(0)
    block = scattered_norms(_PoolingBottleneck(4, 6, (2, 2), 0.1, spatial_dims=2, **LAYERS))
    x = torch.randn(2, 4, 8, 6)
    y = unit(block.branch[2], unit(block.branch[1], unit(block.branch[0], x, stride=2), padding=1))
    pooled, indices = F.max_pool2d(x, 2, return_indices=True)
    y[:, :4] += pooled
    out, where = block(x)
    torch.testing.assert_close(out, torch.where(y > 0, y, block.act.weight * y))
    assert torch.equal(where, indices)


def test_the_network_written_out_in_its_parts():
    torch.manual_seed(0)
    net = scattered_norms(ENet(2, 2, 3, features=8))
    x = torch.randn(2, 2, 32, 48)
    pooled = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    half = torch.cat([F.conv2d(x, net.initial_conv.weight, net.initial_conv.bias, 2, 1), pooled], 1)
    pooled, indices1 = net.down1(half)
    quarter = net.group1(pooled)
    eighth, indices2 = net.down2(quarter)
    for block in [*net.group2, *net.group3]:
        eighth = block(eighth)
    up = F.max_unpool2d(eighth, indices2, 2)
    y = net.tail2(net.act2(up + net.up2(torch.cat([up, quarter], 1))))
    up = F.max_unpool2d(y, indices1, 2)
    y = net.act1(up + net.up1[1](net.up1[0](torch.cat([up, half], 1))))
    y = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = unit(net.last[1], unit(net.last[0], y, padding=1), padding=1)
    torch.testing.assert_close(net(x), F.conv2d(y, net.last[2].weight, net.last[2].bias))


@pytest.mark.parametrize("act", ["prelu", "relu", ("leakyrelu", {"negative_slope": 0.1}), None], ids=str)
def test_activations(act):
    assert ENet(2, features=4, act=act).eval()(torch.rand(1, 1, 16, 16)).isfinite().all()


def test_dropout_is_random_in_training_only():
    net, x = ENet(2, features=8, dropout=(0.5, 0.5)), torch.rand(2, 1, 32, 32)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": 6}, "features must be a multiple of 4 above in_channels=1, got 6"),
        ({"features": 4, "in_channels": 4}, "above in_channels=4, got 4"),
        ({"features": 0}, "features must be"),
        ({"dropout": (0.1,)}, "dropout must be two rates"),
        ({"dropout": (0.1, 1.0)}, "dropout must be two rates"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        ENet(2, **keywords)


def test_divisor_is_the_product_of_the_strides():
    assert ENet(2).divisor == (8, 8)
    assert ENet(3, strides=[2, (2, 2, 1), (2, 2, 1)]).divisor == (8, 8, 2)
