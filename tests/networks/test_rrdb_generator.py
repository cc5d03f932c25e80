# SPDX-License-Identifier: Apache-2.0
"""The RRDB generator: published counts, the network written out with exact spectral norms, taps, identity start."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generator_tester import GeneratorContract, image
from monai.data import MetaTensor

from monai_labelfx.networks.rrdb_generator import RRDBGenerator


class TestContract(GeneratorContract):
    @staticmethod
    def make(spatial_dims, **keywords):
        return RRDBGenerator(spatial_dims, **{"features": 4, "growth": 2, **keywords})

    full = make


class TestResidualContract(GeneratorContract):
    @staticmethod
    def make(spatial_dims, **keywords):
        options = {"features": 4, "growth": 2, "dense_blocks": 2, "residual": True, "share_weights": True}
        return RRDBGenerator(spatial_dims, **{**options, **keywords})

    full = make


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_parameter_counts_are_the_published_ones():
    assert parameters(RRDBGenerator(2)) == 95_169
    shared = RRDBGenerator(2, share_weights=True)
    assert parameters(shared) == 32_833
    assert sum(v.numel() for k, v in shared.state_dict().items() if "_u" not in k and "_v" not in k) == 32_833


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("share_weights", [False, True])
def test_parameter_counts_of_other_shapes(spatial_dims, share_weights):
    def conv(i: int, o: int, side: int = 3) -> int:
        return side**spatial_dims * i * o + o

    block = sum(conv(6 + n * 5, 5) for n in range(4)) + conv(6 + 4 * 5, 6)
    expected = conv(2, 6) + (1 if share_weights else 4) * block + conv(6, 6, 1) + conv(6, 3)
    net = RRDBGenerator(spatial_dims, 2, 3, features=6, growth=5, dense_blocks=4, share_weights=share_weights)
    assert parameters(net) == expected


def test_receptive_radius_of_the_published_network_is_17():
    assert RRDBGenerator(2).halo == (17, 17) and RRDBGenerator(3).halo == (17,) * 3
    net = RRDBGenerator(2).double().eval()
    x = image(41, 41, dtype=torch.float64).requires_grad_()
    net(x)[0, 0, 20, 20].backward()
    seen = x.grad[0, 0].nonzero() - 20
    assert seen.min() == -17 and seen.max() == 17 and len(seen) == 35**2


def unit(conv: torch.nn.Module) -> torch.Tensor:
    """The weight over its largest singular value."""
    weight = conv.parametrizations.weight.original
    return weight / torch.linalg.svdvals(weight.flatten(1))[0]


def by_hand(net: RRDBGenerator, x: torch.Tensor) -> torch.Tensor:
    """The two-dimensional network of unit spectral norms, one line per layer of the paper's figure."""

    def conv(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(F.pad(x, [1] * 4, mode="replicate"), unit(layer), layer.bias)

    def rectify(x: torch.Tensor) -> torch.Tensor:
        return torch.where(x > 0, x, 0.2 * x)

    first = conv(net.first, x)
    y = first
    for n in range(3):
        block = net.blocks[0 if len(net.blocks) == 1 else n]
        a = rectify(conv(block.convs[0], y))
        b = rectify(conv(block.convs[1], torch.cat([y, a], 1)))
        c = rectify(conv(block.convs[2], torch.cat([y, a, b], 1)))
        d = rectify(conv(block.convs[3], torch.cat([y, a, b, c], 1)))
        y = y + 0.1 * rectify(conv(block.convs[4], torch.cat([y, a, b, c, d], 1)))
    middle = F.conv2d(first + 0.1 * y, unit(net.middle), net.middle.bias)
    return conv(net.last, rectify(middle))


@pytest.mark.parametrize("share_weights", [False, True])
def test_equals_the_network_written_out(share_weights):
    torch.manual_seed(0)
    net = RRDBGenerator(2, 2, 3, features=6, growth=4, share_weights=share_weights).double()
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.1)
    for _ in range(400):  # power iterations, one in each pass
        net(torch.zeros(1, 2, 1, 1, dtype=torch.float64))
    x = torch.randn(2, 2, 9, 7, dtype=torch.float64)
    torch.testing.assert_close(net.eval()(x), by_hand(net, x), rtol=1e-6, atol=1e-9)


def test_a_fresh_network_is_right_in_evaluation_mode():
    """The older hook of PyTorch gave values of 1e20 HU here."""
    torch.manual_seed(0)
    net, x = RRDBGenerator(2).double().eval(), image(24, 24, dtype=torch.float64)
    y, exact = net(x), by_hand(net, x)
    assert (y - exact).abs().max() < 0.2 * exact.abs().max()


def test_spectral_norm_moves_in_training_mode_only():
    net, x = RRDBGenerator(2, features=4, growth=2), image(9, 9)
    start = net.first.parametrizations.weight[0]._u.clone()
    net.first.parametrizations.weight.original.data.normal_()
    net.eval()(x)
    assert torch.equal(net.first.parametrizations.weight[0]._u, start)
    net.train()(x)
    assert not torch.equal(net.first.parametrizations.weight[0]._u, start)


@pytest.mark.parametrize("residual", [False, True])
def test_forward_is_decode_of_encode(residual):
    torch.manual_seed(0)
    net, x = RRDBGenerator(3, residual=residual, features=4, growth=2).eval(), image(9, 5, 4, batch=2)
    net.last.bias.data += 1
    taps = net.encode(x)
    assert isinstance(taps, list) and [tuple(t.shape) for t in taps] == [(2, 4, 9, 5, 4)] * 2
    before = [t.clone() for t in taps]
    assert torch.equal(net.decode(taps), net(x))
    assert all(torch.equal(a, b) for a, b in zip(taps, before, strict=True)), "a tap is not changed in place"
    torch.testing.assert_close(net.middle(taps[0]), taps[1])
    assert all(type(t) is torch.Tensor for t in net.encode(MetaTensor(x)))
    with pytest.raises(ValueError, match="takes"):
        net.encode(x[0])


def test_a_residual_decoder_wants_the_list_of_the_encoder():
    net, x = RRDBGenerator(2, residual=True, features=4, growth=2), image(9, 5)
    with pytest.raises(ValueError, match="needs the list that encode returned"):
        net.decode(list(net.encode(x)))


def test_taps_carry_the_gradient_to_the_encoder():
    net = RRDBGenerator(2, features=4, growth=2)
    net.encode(image(9, 9))[1].sum().backward()
    assert net.first.parametrizations.weight.original.grad.any() and net.last.bias.grad is None


@pytest.mark.parametrize("spectral", [False, True])
def test_residual_starts_at_the_identity_and_learns(spectral):
    net, x = RRDBGenerator(2, residual=True, spectral=spectral), image(20, 16)
    assert torch.equal(net(x), x) and torch.equal(net.eval()(x), x)
    assert not hasattr(net.last, "parametrizations") and hasattr(net.first, "parametrizations") is spectral
    optimizer = torch.optim.Adam(net.train().parameters(), 1e-2)
    for _ in range(20):
        optimizer.zero_grad()
        loss = net(x).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.8 * x.square().mean()


def test_start_of_the_weights():
    torch.manual_seed(0)
    net = RRDBGenerator(2)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 1 + 3 * 5 + 2 and net.middle.kernel_size == (1, 1)
    for conv in convs:
        assert hasattr(conv, "parametrizations") and not conv.bias.any()
        assert conv.parametrizations.weight.original.std().item() == pytest.approx(0.01, rel=0.15)
    plain, x = RRDBGenerator(2, spectral=False), image(64, 64)
    assert not any(hasattr(m, "parametrizations") for m in plain.modules())
    assert 0.3 < plain(x).std() < 3, "He's weights keep the scale"


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": 0}, "features must be 1 or more, got 0"),
        ({"growth": 0}, "growth must be"),
        ({"dense_blocks": 0}, "dense_blocks must be"),
        ({"residual": True, "out_channels": 2}, "residual needs as many channels out as in, got 1 in and 2 out"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        RRDBGenerator(2, **keywords)
