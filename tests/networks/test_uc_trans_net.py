# SPDX-License-Identifier: Apache-2.0
"""UCTransNet: published counts, wiring, channel-wise cross attention, rectangles."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from segmentation_network_tester import SegmentationNetworkContract, image

from monai_labelfx.networks.uc_trans_net import UCTransNet, _ChannelCrossGate


def tiny(spatial_dims: int, in_channels: int = 2, out_channels: int = 3, **keywords) -> UCTransNet:
    torch.manual_seed(0)
    options = {"features": 6, "depth": 2, "layers": 1, "heads": 2, "mlp_ratio": 2, "img_size": 16, **keywords}
    return UCTransNet(spatial_dims, in_channels, out_channels, **options)


class TestContract(SegmentationNetworkContract):
    @staticmethod
    def make(spatial_dims, in_channels, out_channels, **keywords):
        return tiny(spatial_dims, in_channels, out_channels, **keywords)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def transformer_count(d: int, width: list[int], patches: list[int], tokens: int, layers: int, heads: int) -> int:
    total = sum(width)
    squares = sum(w * w for w in width)
    embedding = sum(w * w * p**d + w + w * tokens for w, p in zip(width, patches, strict=True))
    attention = heads * squares + 2 * heads * total * total + squares
    perceptrons = sum(8 * w * w + 5 * w for w in width)
    norms = 2 * total + 2 * total + 2 * total
    reconstruction = 2 * total + squares + total + 2 * total
    return embedding + layers * (attention + perceptrons + norms) + reconstruction


@pytest.mark.parametrize(
    ("spatial_dims", "size", "both", "part"), [(2, 224, 66_430_722, 52_374_144), (3, 64, 120_259_970, 79_510_400)]
)
def test_parameter_counts_are_the_published_ones(spatial_dims, size, both, part):
    with torch.device("meta"):
        net = UCTransNet(spatial_dims, 3, 2, img_size=size)
    width, cube = [64, 128, 256, 512], 3**spatial_dims
    transformer = transformer_count(spatial_dims, width, [16, 8, 4, 2], (size // 16) ** spatial_dims, 4, 4)

    def convs(*channels: int) -> int:
        return sum(cube * i * o + o + 2 * o for i, o in zip(channels, channels[1:], strict=False))

    encoder = convs(3, 64) + sum(convs(i, o, o) for i, o in zip(width, [*width[1:], 512], strict=True))
    decoder = sum(convs(2 * c, o, o) for c, o in ((512, 256), (256, 128), (128, 64), (64, 64)))
    gates = sum(2 * (c * c + c) for c in width)
    assert parameters(net.transformer) == transformer
    assert parameters(net) == encoder + transformer + gates + decoder + 64 * 2 + 2 == both
    assert transformer == part
    if spatial_dims == 2:
        assert round(both / 1e6, 1) == 66.4 and round(part / 1e6, 1) == 52.4, "the published counts"


def test_wiring():
    """A network of depth two, put together from its parts."""
    net, x = TestContract().ready(2), image(16, 24, batch=2)
    first = net.encoders[0](x)
    second = net.encoders[1][1:](F.max_pool2d(first, 2))
    deepest = net.encoders[2][1:](F.max_pool2d(second, 2))
    assert [f.shape[1:] for f in (first, second, deepest)] == [(6, 16, 24), (12, 8, 12), (12, 4, 6)]
    fused = net.transformer([first, second])
    up = deepest.repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = net.decoders[0](torch.cat([net.attentions[0](fused[1], up), up], 1))
    up = y.repeat_interleave(2, 2).repeat_interleave(2, 3)
    y = net.decoders[1](torch.cat([net.attentions[1](fused[0], up), up], 1))
    torch.testing.assert_close(net(x), net.head(y))
    kinds = [type(m).__name__ for m in net.encoders[1].modules()]
    assert kinds.count("Conv2d") == 2 and kinds.count("BatchNorm2d") == 2 and kinds.count("ReLU") == 2


@pytest.mark.parametrize("size", [(5,), (4, 3), (2, 3, 4)])
def test_channel_wise_cross_attention_is_equation_5(size):
    torch.manual_seed(0)
    gate = _ChannelCrossGate(3).double()
    skip, x = (torch.randn(2, 3, *size, dtype=torch.float64) for _ in range(2))
    out = gate(skip, x)
    for b in range(2):
        means = [t[b].reshape(3, -1).mean(1) for t in (skip, x)]
        mask = gate.of_skip.weight @ means[0] + gate.of_skip.bias + gate.of_decoder.weight @ means[1]
        weight = 1 / (1 + torch.exp(-(mask + gate.of_decoder.bias)))
        for c in range(3):
            torch.testing.assert_close(out[b, c], weight[c] * skip[b, c])
    gate.of_decoder.bias.data += 100
    torch.testing.assert_close(gate(skip, x), skip)


def test_logits_of_one_class_are_no_probabilities():
    out = TestContract().ready(2, out_channels=1)(5 * image(16, 16))
    assert out.shape[1] == 1 and out.min() < 0


@pytest.mark.parametrize("size", [(16, 16), (16, 40), (7, 33)])
def test_positions_fit_rectangles(size):
    net = TestContract().ready(2, img_size=(16, 24))
    assert [tuple(e.positions.shape) for e in net.transformer.embeddings] == [(1, 6, 4, 6), (1, 12, 4, 6)]
    before = net(image(*size))
    for embedding in net.transformer.embeddings:
        embedding.positions.data[..., -1] += 1
    assert before.shape[2:] == size and not torch.allclose(net(image(*size)), before)


def test_sizes_that_are_no_multiple_round_the_grid_up():
    assert tiny(2, img_size=(17, 3)).transformer.embeddings[0].positions.shape == (1, 6, 5, 1)


def test_thin_stacks_keep_their_thin_axis():
    net = tiny(3, strides=[(2, 2, 1), 2], img_size=(16, 16, 4)).eval()
    assert net.divisor == (4, 4, 2)
    assert [e.conv.kernel_size for e in net.transformer.embeddings] == [(4, 4, 2), (2, 2, 2)]
    assert net(image(9, 8, 3)).shape == (1, 3, 9, 8, 3)


def test_dropout_acts_in_training_only():
    net, x = tiny(2, dropout=0.5, norm=None).train(), image(16, 16)
    assert not torch.equal(net(x), net(x)) and torch.equal(net.eval()(x), net(x))
    still = tiny(2, dropout=0, norm=None).train()
    assert torch.equal(still(x), still(x))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": 0}, "features must be 1 or more, got 0"),
        ({"depth": 0}, "depth must be 1 or more, got 0"),
        ({"layers": 0}, "layers must be 1 or more, got 0"),
        ({"heads": 0}, "heads must be 1 or more, got 0"),
        ({"mlp_ratio": 0}, "mlp_ratio must be 1 or more, got 0"),
        ({"dropout": 1}, "dropout must be a rate from 0 to below 1, got 1"),
        ({"img_size": (16, 16, 16)}, "img_size must be one number or 2"),
        ({"strides": 0}, "strides must hold whole numbers of 1 or more"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        tiny(2, **keywords)
