# SPDX-License-Identifier: Apache-2.0
"""The invertible generator: it inverts in HU, its count is the released one, and it is what the paper writes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generator_tester import DIMS, GeneratorContract, image, without_zeros
from monai.data import MetaTensor, set_track_meta
from testers import AFFINE

from monai_labelfx.networks.invertible_generator import InvertibleGenerator

UNIT = 2000  # HU


class TestContract(GeneratorContract):
    long = 140

    @staticmethod
    def make(spatial_dims, **keywords):
        return InvertibleGenerator(spatial_dims, **{"blocks": 1, "growth": 4, **keywords})

    @staticmethod
    def full(spatial_dims):
        return InvertibleGenerator(spatial_dims, growth=1)

    def test_all_parameters_learn(self):
        """Halves of the triangular matrices do not count, so they alone have no gradient."""
        net = self.ready(2).train()
        net(image(8, 6)).square().mean().backward()
        for name, parameter in net.named_parameters():
            grad = parameter.grad
            if name.endswith("lower"):
                assert not grad.triu().any() and grad.tril(-1).count_nonzero() == 6
            elif name.endswith("upper"):
                assert not grad.tril().any() and grad.triu(1).count_nonzero() == 6
            else:
                assert grad.any() and grad.isfinite().all()


class TestThinContract(TestContract):
    @staticmethod
    def make(spatial_dims, **keywords):
        squeeze = {2: (4, 1), 3: (2, 2, 1)}.get(spatial_dims, 2)
        return InvertibleGenerator(spatial_dims, **{"blocks": 1, "growth": 4, "squeeze": squeeze, **keywords})

    full = make
    long = 180


def perturbed(spatial_dims: int, amount: float = 0.02, **keywords) -> InvertibleGenerator:
    torch.manual_seed(0)
    net = InvertibleGenerator(spatial_dims, **keywords)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter += amount * torch.randn_like(parameter)
    return net.eval()


def test_parameter_count_is_the_released_one():
    assert sum(p.numel() for p in InvertibleGenerator(2).parameters()) == 3_691_088
    net = InvertibleGenerator(3, 2, blocks=2, growth=5)  # 16 channels, quarters of 4

    def conv(i: int, o: int) -> int:
        return 27 * i * o + o

    function = sum(conv(12 + 5 * n, 5) for n in range(4)) + conv(12 + 20, 4)
    assert sum(p.numel() for p in net.parameters()) == 2 * (4 * function + 2 * 16**2 + 16)


@pytest.mark.parametrize("init", ["identity", "orthogonal"])
@pytest.mark.parametrize(("spatial_dims", "size", "growth"), [(2, (64, 48), 64), (3, (12, 10, 8), 16)])
def test_inverts_to_a_thousandth_of_a_hounsfield_unit(init, spatial_dims, size, growth):
    net = perturbed(spatial_dims, init=init, growth=growth)
    high = 300 / UNIT * image(*size, batch=2)
    high[:, :, 20:24] += 1200 / UNIT
    with torch.no_grad():
        changed = net(high)
        assert (UNIT * (changed - high)).square().mean().sqrt() > 50, "else there is nothing to invert"
        assert (UNIT * (net.inverse(changed) - high)).abs().max() < 1e-3
        assert (UNIT * (net(net.inverse(high)) - high)).abs().max() < 1e-3


def test_with_the_low_band_carried_outside_the_image_inverts():
    """Low and high band of either image differ by what the network did to the high one."""
    net, low, high = perturbed(2, growth=8), 0.5 * image(32, 32, seed=2), 0.15 * image(32, 32)
    with torch.no_grad():
        denoised = low + net(high)
        back = low + net.inverse(denoised - low)
    assert (UNIT * (back - (low + high))).abs().max() < 1e-3 < (UNIT * (denoised - back)).abs().max()


def test_inverse_under_autocast_keeps_the_state_in_full():
    net, high = perturbed(2, 0.005, growth=16), 0.15 * image(32, 32)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        changed = net(high)
        back = net.inverse(changed)
    assert changed.dtype == back.dtype == torch.float32
    assert (UNIT * (back - high)).abs().max() < 1


@DIMS
def test_identity_start(spatial_dims):
    net, x = InvertibleGenerator(spatial_dims, growth=8), image(10, *[6] * (spatial_dims - 1))
    assert torch.equal(net(x), x) and torch.equal(net.inverse(x), x)


def test_orthogonal_start_keeps_the_norm_but_not_the_image():
    torch.manual_seed(0)
    net, x = InvertibleGenerator(2, growth=8, init="orthogonal"), image(16, 16)
    y = net(x)
    torch.testing.assert_close(y.norm(), x.norm(), rtol=1e-5, atol=0)
    assert (y - x).norm() > 0.5 * x.norm()
    for mixing in net.mixings:
        lower, upper = mixing._factors()
        matrix = mixing.permutation.double() @ lower @ upper
        torch.testing.assert_close(matrix @ matrix.T, torch.eye(4).double(), rtol=0, atol=1e-5)


def by_hand(net: InvertibleGenerator, x: torch.Tensor) -> torch.Tensor:
    """Two-dimensional, one channel, squeezed by 2 x 2, in the order of the paper's equations."""

    def dense(function: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        for conv in function.convs[:-1]:
            y = F.conv2d(x, conv.weight, conv.bias, padding=1)
            x = torch.cat([x, torch.where(y > 0, y, 0.2 * y)], 1)
        return F.conv2d(x, function.convs[-1].weight, function.convs[-1].bias, padding=1)

    state = torch.cat([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 1)
    for mixing, coupling in zip(net.mixings, net.couplings, strict=True):
        matrix = torch.zeros(4, 4, dtype=torch.float64)
        for i in range(4):
            for j in range(4):
                for k in range(4):
                    lower = mixing.lower[i, k] if k < i else float(k == i)
                    scale = mixing.sign[k] * mixing.log_scale[k].exp()
                    matrix[i, j] += lower * (mixing.upper[k, j] if j > k else scale * (k == j))
        matrix = matrix[mixing.permutation.argmax(1)]
        a, b, c, d = torch.einsum("ij,bjxy->bixy", matrix, state).split(1, 1)
        f1, f2, f3, f4 = coupling.functions
        a = a - dense(f1, torch.cat([b, c, d], 1))
        b = b - dense(f2, torch.cat([a, c, d], 1))
        c = c - dense(f3, torch.cat([a, b, d], 1))
        d = d - dense(f4, torch.cat([a, b, c], 1))
        state = torch.cat([a, b, c, d], 1)
    y = torch.empty_like(x)
    for number, (i, j) in enumerate([(0, 0), (0, 1), (1, 0), (1, 1)]):
        y[:, 0, i::2, j::2] = state[:, number]
    return y


def test_equals_the_equations():
    net = perturbed(2, 0.1, blocks=2, growth=3, init="orthogonal").double()
    x = image(8, 6, batch=2, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_hand(net, x))


def test_squeeze_of_a_volume_puts_the_last_axis_first_among_channels():
    net = InvertibleGenerator(3, 2, growth=1, squeeze=(2, 1, 2))
    x = torch.arange(2 * 4 * 3 * 4.0).reshape(1, 2, 4, 3, 4)
    expected = torch.stack([x[:, c, i::2, :, k::2] for c in (0, 1) for i in (0, 1) for k in (0, 1)], 1)
    assert torch.equal(net._squeeze(x), expected) and torch.equal(net._unsqueeze(expected), x)


def test_inverse_of_sizes_that_are_padded_is_refused():
    net = InvertibleGenerator(2, growth=2)
    assert net(image(7, 8)).shape == (1, 1, 7, 8)
    with pytest.raises(ValueError, match=r"takes sizes that are multiples of \(2, 2\), got \(1, 1, 7, 8\)"):
        net.inverse(image(7, 8))
    with pytest.raises(ValueError, match="takes"):
        net.inverse(image(8, 8)[0])


def test_inverse_keeps_metadata_and_tiles():
    net = without_zeros(InvertibleGenerator(2, blocks=1, growth=3)).double()
    x = image(120, 4, dtype=torch.float64)
    wrapped = MetaTensor(x, affine=AFFINE)
    back = net.inverse(wrapped)
    assert isinstance(back, MetaTensor) and torch.equal(back.affine, wrapped.affine)
    set_track_meta(False)
    try:
        assert type(net.inverse(wrapped)) is torch.Tensor
    finally:
        set_track_meta(True)
    torch.testing.assert_close(net.inverse(x[:, :, 40:])[:, :, 40:], back.as_tensor()[:, :, 80:])


def test_gradient_flows_through_the_inverse():
    net, x = perturbed(2, growth=2, blocks=1).double(), image(4, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(net.inverse, (x,), fast_mode=True)
    net.inverse(x).sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"blocks": 0}, "blocks must be 1 or more, got 0"),
        ({"growth": 0}, "growth must be"),
        ({"init": "random"}, "init must be one of .* got 'random'"),
        ({"squeeze": (2, 1)}, r"in_channels=1 and squeeze=\(2, 1\) give 2 channels, which is not a multiple of 4"),
        ({"squeeze": (2, 2, 1)}, "squeeze must be one number or 2"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        InvertibleGenerator(2, **keywords)
