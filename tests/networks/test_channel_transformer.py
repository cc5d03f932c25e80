# SPDX-License-Identifier: Apache-2.0
"""Channel cross attention against its equations in loops; what does not depend on the order of tokens or on scale."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.networks._channel_transformer import (
    ChannelCrossAttention,
    ChannelTransformer,
    ChannelTransformerLayer,
)

CHANNELS = (2, 3, 4)


def tokens(count: int = 6, batch: int = 2, seed: int = 3) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(batch, count, c, generator=generator, dtype=torch.float64) for c in CHANNELS]


def attention(heads: int = 2) -> ChannelCrossAttention:
    torch.manual_seed(0)
    return ChannelCrossAttention(CHANNELS, heads=heads, dropout=0.0).double()


def by_loops(net: ChannelCrossAttention, parts: list[torch.Tensor]) -> list[np.ndarray]:
    """Equations 1 to 3 with a loop for each index."""
    everything = np.concatenate([p.numpy() for p in parts], 2)
    total, heads = everything.shape[2], net.heads
    results = []
    for part, scale in zip(parts, net.scales, strict=True):
        part, c = part.numpy(), part.shape[2]
        result = np.zeros_like(part)
        for image in range(part.shape[0]):
            for head in range(heads):
                wq, wk, wv = (
                    layer.weight.detach().numpy()[head * n : (head + 1) * n]
                    for layer, n in ((scale.query, c), (net.key, total), (net.value, total))
                )
                q, k, v = part[image] @ wq.T, everything[image] @ wk.T, everything[image] @ wv.T
                scores = np.array(
                    [
                        [sum(q[n, a] * k[n, b] for n in range(len(q))) / math.sqrt(total) for b in range(total)]
                        for a in range(c)
                    ]
                )
                scores = (scores - scores.mean()) / np.sqrt(scores.var() + 1e-5)
                weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
                for n in range(len(q)):
                    for a in range(c):
                        result[image, n, a] += sum(weights[a, b] * v[n, b] for b in range(total)) / heads
        results.append(result @ scale.out.weight.detach().numpy().T)
    return results


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("count", [1, 6])
def test_equals_the_equations_written_in_loops(heads, count):
    net, parts = attention(heads), tokens(count)
    for got, expected in zip(net(parts, torch.cat(parts, 2)), by_loops(net, parts), strict=True):
        torch.testing.assert_close(got, torch.as_tensor(expected))


def test_heads_that_are_alike_are_one_head():
    net, one, parts = attention(3), attention(1), tokens()
    for many, single in [(net.key, one.key), (net.value, one.value)]:
        many.weight.data = single.weight.data.repeat(3, 1)
    for many, single in zip(net.scales, one.scales, strict=True):
        many.query.weight.data, many.out = single.query.weight.data.repeat(3, 1), single.out
    for a, b in zip(net(parts, torch.cat(parts, 2)), one(parts, torch.cat(parts, 2)), strict=True):
        torch.testing.assert_close(a, b)


def test_instance_norm_takes_the_scale_of_the_queries_away():
    net, parts = attention(), tokens()
    for scale in net.scales:
        scale.query.weight.data *= 100
    before = net(parts, torch.cat(parts, 2))
    for scale in net.scales:
        scale.query.weight.data *= 7
    for a, b in zip(before, net(parts, torch.cat(parts, 2)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_a_layer_permutes_with_its_tokens_and_keeps_images_apart():
    torch.manual_seed(0)
    net, parts = ChannelTransformerLayer(CHANNELS, heads=2, mlp_ratio=3, dropout=0.1).double().eval(), tokens()
    out, order = net(parts), torch.randperm(6, generator=torch.Generator().manual_seed(0))
    for a, b in zip(net([p[:, order] for p in parts]), out, strict=True):
        torch.testing.assert_close(a, b[:, order])
    for a, b in zip(net([p[1:] for p in parts]), out, strict=True):
        torch.testing.assert_close(a, b[1:])


def test_a_layer_is_two_residuals_with_norms_before():
    torch.manual_seed(0)
    net, parts = ChannelTransformerLayer(CHANNELS, heads=2, mlp_ratio=3, dropout=0.0).double(), tokens()
    normed = [F.layer_norm(p, p.shape[2:], eps=1e-6) for p in parts]
    everything = F.layer_norm(torch.cat(parts, 2), (9,), eps=1e-6)
    for n, (got, part, found) in enumerate(zip(net(parts), parts, net.attention(normed, everything), strict=True)):
        first, last = net.perceptrons[n][1], net.perceptrons[n][4]
        x = part + found
        torch.testing.assert_close(got, x + last(F.gelu(first(F.layer_norm(x, x.shape[2:], eps=1e-6)))))
        last.weight.data.zero_(), last.bias.data.zero_(), net.attention.scales[n].out.weight.data.zero_()
    for got, part in zip(net(parts), parts, strict=True):
        assert torch.equal(got, part), "nothing learned, nothing changed"


def transformer(spatial_dims: int, grid, patches=None, **keywords) -> ChannelTransformer:
    torch.manual_seed(0)
    patches = patches or [(4,) * spatial_dims, (2,) * spatial_dims]
    options = {"layers": 1, "heads": 2, "mlp_ratio": 2, "dropout": 0.1, "norm": "batch", **keywords}
    return ChannelTransformer(spatial_dims, (2, 3), patches, grid, **options).eval()


@pytest.mark.parametrize(("spatial_dims", "size"), [(1, (12,)), (2, (8, 12)), (3, (4, 8, 12))])
def test_features_come_back_in_their_shapes(spatial_dims, size):
    net = transformer(spatial_dims, [2] * spatial_dims)
    features = [torch.rand(2, 2, *size), torch.rand(2, 3, *(n // 2 for n in size))]
    assert [r.shape for r in net(features)] == [f.shape for f in features]
    for reconstruction in net.reconstructions:
        reconstruction.conv[1].weight.data.zero_(), reconstruction.conv[1].bias.data.zero_()
    assert all(torch.equal(a, b) for a, b in zip(net(features), features, strict=True)), "added to what comes in"


def test_scales_meet_on_one_grid_place_by_place():
    """Without layers a token goes back to its own patch; with them, each place hears of all."""
    net = transformer(2, (2, 3), layers=0)
    for part in net.reconstructions:
        part.conv[2] = torch.nn.Identity()
    features = [torch.rand(1, 2, 8, 12).requires_grad_(), torch.rand(1, 3, 4, 6).requires_grad_()]
    fused = net(features)
    (grad,) = torch.autograd.grad(fused[0][0, :, 5, 9].sum(), features[0], retain_graph=True)
    seen = grad[0].abs().sum(0) > 0
    assert seen[4:, 8:].all() and seen.sum() == 16
    (grad,) = torch.autograd.grad(fused[1][0, :, 3, 0].sum(), features[1])
    assert (grad[0].abs().sum(0) > 0).nonzero().tolist() == [[2, 0], [2, 1], [3, 0], [3, 1]]
    fused = transformer(2, (2, 3))(features)
    assert all(g.abs().sum(1).all() for g in torch.autograd.grad(fused[0].sum(), features))


def test_positions_are_the_trained_ones_or_interpolated_along_each_axis():
    embedding = transformer(2, (3, 4)).embeddings[1]
    embedding.conv.weight.data.zero_(), embedding.conv.bias.data.zero_()
    embedding.positions.data.normal_()
    torch.testing.assert_close(embedding(torch.rand(1, 3, 6, 8)), embedding.positions.data, rtol=0, atol=0)
    expected = embedding.positions.data.numpy()
    for axis, (old, new) in enumerate(((3, 7), (4, 2)), start=2):
        places = (np.arange(new) + 0.5) * old / new - 0.5
        expected = np.apply_along_axis(lambda v, p=places, n=old: np.interp(p, np.arange(n), v), axis, expected)
    torch.testing.assert_close(embedding(torch.rand(2, 3, 14, 4)), torch.as_tensor(expected).float().repeat(2, 1, 1, 1))
