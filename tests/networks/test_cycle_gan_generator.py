# SPDX-License-Identifier: Apache-2.0
"""The ResNet generator: the paper's count, its layers written out, and why it has no instance norm."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generator_tester import GeneratorContract, image

from monai_labelfx.networks.cycle_gan_generator import CycleGANGenerator


class TestContract(GeneratorContract):
    long = 100

    @staticmethod
    def make(spatial_dims, **keywords):
        return CycleGANGenerator(spatial_dims, **{"features": 3, "blocks": 2, **keywords})

    @staticmethod
    def full(spatial_dims):
        return CycleGANGenerator(spatial_dims, features=1, blocks=9)


class TestThinSpectralResidualContract(GeneratorContract):
    long = 100

    @staticmethod
    def make(spatial_dims, **keywords):
        options = {"features": 6, "blocks": 1, "residual": True, "norm": "spectral"}
        strides = (2, 2, 1)[-spatial_dims:] if spatial_dims < 4 else 2
        return CycleGANGenerator(spatial_dims, **{**options, "strides": strides, **keywords})

    full = make


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def counted(spatial_dims: int, i: int, o: int, f: int, blocks: int) -> int:
    def conv(i: int, o: int, side: int = 3) -> int:
        return side**spatial_dims * i * o + o

    ends = conv(i, f, 7) + conv(f, o, 7)
    return (
        ends
        + conv(f, 2 * f)
        + conv(2 * f, 4 * f)
        + 2 * blocks * conv(4 * f, 4 * f)
        + conv(4 * f, 2 * f)
        + conv(2 * f, f)
    )


def test_parameter_counts():
    assert parameters(CycleGANGenerator(2, 3, 3, norm="instance")) == counted(2, 3, 3, 64, 9) == 11_378_179
    assert parameters(CycleGANGenerator(2)) == counted(2, 1, 1, 64, 9) == 11_365_633
    for spatial_dims in (2, 3):
        assert parameters(CycleGANGenerator(spatial_dims, 2, 3, features=4, blocks=3)) == counted(
            spatial_dims, 2, 3, 4, 3
        )


def test_divisor_and_halo():
    net = CycleGANGenerator(3, features=1, strides=(2, 2, 1))
    assert net.divisor == (4, 4, 1) and net.halo == (83, 83, 3 + 2 + 18 + 2 + 3)
    assert CycleGANGenerator(2, features=1, strides=[(2, 1), 2]).divisor == (4, 2)


def by_hand(net: CycleGANGenerator, x: torch.Tensor, norm: str | None) -> torch.Tensor:
    convs = [m for m in net.modules() if isinstance(m, torch.nn.modules.conv._ConvNd)]
    assert [type(c).__name__ for c in convs] == ["Conv2d"] * 7 + ["ConvTranspose2d"] * 2 + ["Conv2d"]

    def normed(x: torch.Tensor) -> torch.Tensor:
        if norm is None:
            return x
        return (x - x.mean((2, 3), keepdim=True)) / torch.sqrt(x.var((2, 3), keepdim=True, correction=0) + 1e-5)

    def conv(number: int, x: torch.Tensor) -> torch.Tensor:
        layer = convs[number]
        pad = layer.weight.shape[-1] // 2
        return F.conv2d(F.pad(x, [pad] * 4, mode="replicate"), layer.weight, layer.bias)

    y = F.relu(normed(conv(0, x)))
    for number in (1, 2):
        y = F.relu(normed(F.conv2d(y, convs[number].weight, convs[number].bias, 2, 1)))
    for number in (3, 5):
        y = y + normed(conv(number + 1, F.relu(normed(conv(number, y)))))
    for number in (7, 8):
        y = F.relu(normed(F.conv_transpose2d(y, convs[number].weight, convs[number].bias, 2, 1, 1)))
    return conv(9, y)


@pytest.mark.parametrize("norm", [None, "instance"])
@pytest.mark.parametrize("residual", [False, True])
def test_equals_the_network_written_out(norm, residual):
    torch.manual_seed(0)
    net = CycleGANGenerator(2, 2, 2, features=3, blocks=2, norm=norm, residual=residual).double().eval()
    for parameter in net.parameters():
        parameter.data.normal_(0, 0.3)
    x = torch.randn(2, 2, 16, 12, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_hand(net, x, norm) + (x if residual else 0))


def test_instance_norm_forgets_the_ct_number_and_the_default_does_not():
    torch.manual_seed(0)
    x = image(32, 32, dtype=torch.float64)
    forgetful = CycleGANGenerator(2, features=4, blocks=1, norm=("instance", {"eps": 1e-12})).double().eval()
    for other in (x + 3, 2 * x, 0.5 * x - 1):
        torch.testing.assert_close(forgetful(other), forgetful(x), rtol=1e-4, atol=1e-6)
    net = CycleGANGenerator(2, features=4, blocks=1).double().eval()
    assert not any(isinstance(m, torch.nn.modules.instancenorm._InstanceNorm) for m in net.modules())
    assert (net(x + 3) - net(x)).abs().mean() > 0.1


def test_weights_without_a_norm_keep_the_scale_of_the_image():
    x = image(48, 48)
    for seed in range(3):
        torch.manual_seed(seed)
        assert 0.3 < CycleGANGenerator(2, features=16)(x).std() < 5
    torch.manual_seed(0)
    normed = CycleGANGenerator(2, features=16, norm="batch")
    assert normed.layers[0].weight.std().item() == pytest.approx(0.02, rel=0.1)


def test_spectral_norm_is_on_every_convolution_that_does_not_start_at_zero():
    for residual in (False, True):
        net = CycleGANGenerator(2, features=2, blocks=1, norm="spectral", residual=residual)
        plain = [m for m in net.modules() if "Conv" in type(m).__name__ and not hasattr(m, "parametrizations")]
        assert plain == ([net.layers[-1]] if residual else [])
        assert net.eval()(image(9, 9)).abs().max() < 100


@pytest.mark.parametrize("norm", [None, "spectral", "instance"])
def test_residual_starts_at_the_identity(norm):
    x = image(14, 9)
    assert torch.equal(CycleGANGenerator(2, features=2, blocks=1, norm=norm, residual=True)(x), x)


def test_bad_arguments_are_named():
    for keywords, message in (
        ({"features": 0}, "features must be 1 or more, got 0"),
        ({"blocks": 0}, "blocks must be"),
        ({"norm": "spectrum"}, "norm must be 'spectral', None or a norm of MONAI"),
        ({"residual": True, "out_channels": 2}, "residual needs as many channels out as in"),
        ({"strides": (2, 2, 1)}, "strides must be one number or 2"),
    ):
        with pytest.raises(ValueError, match=message):
            CycleGANGenerator(2, **keywords)
    with pytest.raises(ValueError, match="Instance norm has one voxel"):
        CycleGANGenerator(2, features=2, norm="instance")(image(4, 4))
