# SPDX-License-Identifier: Apache-2.0
"""Gated axial attention against its equation in loops, its limits, and what its U-Net counts."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.networks._gated_axial import GatedAxialAttention, GatedAxialBlock, GatedAxialUNet


def attention(spatial_dims: int, axis: int, span: int = 5, channels: int = 8, heads: int = 2) -> GatedAxialAttention:
    torch.manual_seed(axis)
    net = GatedAxialAttention(spatial_dims, channels, axis, span, heads=heads, norm=None).double()
    net.gates.data = torch.tensor([0.7, -0.4, 1.3, 0.5], dtype=torch.float64)
    return net


def image(*size: int, batch: int = 2, channels: int = 8) -> torch.Tensor:
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(9), dtype=torch.float64)


def by_loops(net: GatedAxialAttention, x: torch.Tensor, gates) -> np.ndarray:
    """Equation 3, voxel by voxel, in float64; a line is every voxel that differs along the axis only."""
    x, weight = x.numpy(), net.qkv[0].weight.detach().numpy().reshape(2 * net.channels, net.channels)
    relative, d = net.relative.detach().numpy(), net.width
    out = np.zeros_like(x)
    length = x.shape[net.axis + 2]
    others = [range(n) for n in (x.shape[0], *x.shape[2 : net.axis + 2], 1, *x.shape[net.axis + 3 :])]
    for place in itertools.product(*others):

        def at(i: int, place=place) -> tuple:
            spot = list(place[1:])
            spot[net.axis] = i
            return (place[0], slice(None), *spot)

        for head in range(net.heads):
            rows = weight[head * 2 * d : (head + 1) * 2 * d]
            q, k, v = ([part @ x[at(i)] for i in range(length)] for part in np.split(rows, [d // 2, d]))
            for i in range(length):
                scores, values = [], []
                for w in range(length):
                    distance = max(-net.span + 1, min(net.span - 1, w - i))
                    r = relative[distance + net.span - 1]
                    rq, rk, rv = r[: d // 2], r[d // 2 : d], r[d:]
                    score = q[i] @ k[w] + gates[0] * (q[i] @ rq) + gates[1] * (k[w] @ rk)
                    scores.append(score / math.sqrt(d / 2))
                    values.append(gates[2] * v[w] + gates[3] * rv)
                weights = np.exp(scores) / np.exp(scores).sum()
                out[at(i)][head * d : (head + 1) * d] = sum(a * b for a, b in zip(weights, values, strict=True))
    return out


@pytest.mark.parametrize(("size", "axis"), [((5,), 0), ((4, 3), 0), ((4, 7), 1), ((2, 3, 4), 0), ((3, 4, 2), 1)])
def test_equals_the_equation_written_in_loops(size, axis):
    net, x = attention(len(size), axis), image(*size)
    torch.testing.assert_close(net(x), torch.as_tensor(by_loops(net, x, net.gates.tolist())))


def test_lines_beyond_the_span_share_the_farthest_distance():
    net, x = attention(2, 1, span=3), image(2, 9)
    torch.testing.assert_close(net(x), torch.as_tensor(by_loops(net, x, net.gates.tolist())))


@pytest.mark.parametrize("axis", [0, 1])
def test_gates_of_zero_are_plain_axial_attention(axis):
    net, x = attention(2, axis), image(4, 5)
    net.gates.data = torch.tensor([0, 0, 1, 0], dtype=torch.float64)
    plain = net(x)
    torch.testing.assert_close(plain, torch.as_tensor(by_loops(net, x, (0, 0, 1, 0))))
    net.relative.data.normal_(0, 100)
    assert torch.equal(net(x), plain), "nothing of the positions is left"
    turned = net(x.flip(axis + 2)).flip(axis + 2)
    torch.testing.assert_close(turned, plain)  # without positions, the order on the line is nothing


def test_scaled_dot_product_attention_of_pytorch_is_the_gateless_case():
    net, x = attention(2, 1), image(3, 6)
    net.gates.data = torch.tensor([0, 0, 1, 0], dtype=torch.float64)
    qkv = net.qkv(x).permute(0, 2, 3, 1).reshape(2, 3, 6, 2, 8).transpose(2, 3)
    q, k, v = qkv.split([2, 2, 4], -1)
    expected = F.scaled_dot_product_attention(q, k, v).transpose(2, 3).reshape(2, 3, 6, 8)
    torch.testing.assert_close(net(x), expected.permute(0, 3, 1, 2))


def test_lines_do_not_meet():
    net, x = attention(2, 0), image(4, 5).requires_grad_()
    net(x)[:, :, :, 2].sum().backward()
    assert x.grad[:, :, :, 2].all() and not x.grad[:, :, :, [0, 1, 3, 4]].any()


def test_each_gate_reaches_the_result_in_training():
    """In front of batch norm, a common factor of a branch would be divided out."""
    torch.manual_seed(0)
    net, x = GatedAxialAttention(2, 8, 0, 6, heads=2, norm="batch").train(), image(6, 5).float()
    net(x).square().mul(torch.linspace(0, 1, 5)).mean().backward()
    assert net.gates.grad.abs().min() > 1e-5
    assert net.gates.tolist() == pytest.approx([0.1, 0.1, 1, 0.1])
    before = net(x)
    net.gates.data[0] = 3
    assert (net(x) - before).abs().max() > 0.05


def test_gradients_are_those_of_the_formula():
    net, x = attention(1, 0, span=3, channels=4, heads=1), image(4, batch=1, channels=4).requires_grad_()
    assert torch.autograd.gradcheck(net, x)


@pytest.mark.parametrize(("size", "expected"), [((8, 6), (4, 3)), ((7, 5), (4, 3)), ((1, 1), (1, 1)), ((3, 1), (2, 1))])
def test_a_block_halves_and_rounds_up(size, expected):
    block = GatedAxialBlock(2, 3, 4, (8, 8), 2, heads=2, norm="batch").eval()
    assert block(image(*size, channels=3).float()).shape == (2, 8, *expected)
    thick = GatedAxialBlock(3, 3, 4, (8, 8, 8), 2, heads=2, norm="batch").eval()
    assert thick(image(*size, 1, channels=3).float()).shape == (2, 8, *expected, 1)


def test_the_last_window_of_a_block_is_the_mean_of_what_it_has():
    block = GatedAxialBlock(1, 2, 2, (5,), 2, heads=1, norm=None)
    block.attentions, block.down = torch.nn.Identity(), torch.nn.Identity()
    block.up, block.shortcut = torch.nn.Identity(), torch.nn.Module()
    block.shortcut.forward = lambda x: 0.0
    x = torch.tensor([[[1.0, 3, 4, 8, 9], [2, 2, 2, 4, 7]]])
    assert block(x).tolist() == [[[2, 6, 9], [2, 3, 7]]]


def test_a_block_without_change_of_shape_has_a_plain_shortcut():
    block = GatedAxialBlock(2, 8, 4, (8, 8), 1, heads=2, norm="batch")
    assert isinstance(block.shortcut, torch.nn.Identity)
    assert not isinstance(GatedAxialBlock(2, 8, 4, (8, 8), 2, heads=2, norm="batch").shortcut, torch.nn.Identity)


@pytest.mark.parametrize("bottleneck", [False, True])
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_the_unet_keeps_the_size_and_has_a_decoder_step_per_level(spatial_dims, bottleneck):
    size = (17, 12, 9)[:spatial_dims]
    net = GatedAxialUNet(
        spatial_dims,
        2,
        4,
        stem=3,
        blocks=(1, 2, 1),
        size=size,
        bottleneck=bottleneck,
        heads=2,
        norm="batch",
    ).eval()
    assert net(image(*size, channels=2).float()).shape == (2, 4, *size)
    assert len(net.steps) == 3 + bottleneck and net.reduction == 8
    spans = [[a.span for a in block.attentions] for level in net.levels for block in level]
    assert [s[0] for s in spans] == [9, 9, 5, 5], "the first block of a level attends before it halves"
    assert [tuple(step.stride) for step in net.steps] == [(2,) * spatial_dims] * bottleneck + [(1,) * spatial_dims] * 3


@pytest.mark.parametrize("bottleneck", [False, True])
def test_each_decoder_step_adds_the_features_of_its_level(bottleneck):
    torch.manual_seed(0)
    net = GatedAxialUNet(
        2, 2, 4, stem=3, blocks=(1, 1, 1), size=(16, 24), bottleneck=bottleneck, heads=2, norm="batch"
    ).eval()
    x = image(16, 24, channels=2).float()

    def step(number: int, y: torch.Tensor, factor: int = 2) -> torch.Tensor:
        return F.interpolate(net.steps[number](y), scale_factor=factor, mode="bilinear").clamp(min=0)

    first = net.levels[0](net.stem(x))
    second = net.levels[1](first)
    third = net.levels[2](second)
    assert [y.shape[1:] for y in (first, second, third)] == [(8, 8, 12), (16, 4, 6), (32, 2, 3)]
    y = third
    if bottleneck:
        y = F.interpolate(net.steps[0](third), size=(2, 3), mode="bilinear").clamp(min=0) + third
    y = step(bottleneck, y) + second
    y = step(bottleneck + 1, y) + first
    torch.testing.assert_close(net(x), step(bottleneck + 2, y))
