# SPDX-License-Identifier: Apache-2.0
"""The residual U-Net against its architecture: counted by hand, and written out with torch functions."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.networks.residual_unet import ResidualUNet


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def counted(spatial_dims: int, in_channels: int = 1, out_channels: int = 1, features: int = 32, depth: int = 4) -> int:
    """Weights and bias of each convolution, scale and shift of each norm, added up from the block diagram."""
    area = 3**spatial_dims

    def conv(i: int, o: int) -> int:
        return area * i * o + o

    def block(i: int, o: int) -> int:
        return conv(i, o) + 4 * conv(o, o) + 5 * 2 * o

    width = [features * 2**level for level in range(depth + 1)]
    encoder = sum(block(i, o) for i, o in zip([in_channels, *width], width, strict=False))
    decoder = sum(conv(2 * w, w) + 2 * w + block(w, w) for w in width[:-1])
    return encoder + decoder + conv(features, out_channels)


def test_parameter_counts_are_the_papers():
    assert parameters(ResidualUNet(2)) == counted(2) == 19_644_961
    assert parameters(ResidualUNet(3)) == counted(3) == 58_887_841


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_parameter_counts_of_other_shapes(spatial_dims):
    net = ResidualUNet(spatial_dims, 3, 2, features=5, depth=2)
    assert parameters(net) == counted(spatial_dims, 3, 2, 5, 2)


def test_presets_of_the_reference_code():
    net = ResidualUNet(2, features=8)
    acts = [type(m).__name__ for m in net.encoders.modules() if hasattr(m, "inplace")]
    assert acts == ["LeakyReLU"] * 20 and {m.negative_slope for m in net.modules() if hasattr(m, "negative_slope")} == {
        0.2
    }
    decoder = [type(m).__name__ for part in (net.upsamplings, net.decoders) for m in part.modules()]
    assert decoder.count("ReLU") == 4 + 4 * 4 and decoder.count("ConvTranspose2d") == 4
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    assert len(convs) == 5 * 9 + 1 and {m.kernel_size for m in convs} == {(3, 3)}
    for conv in convs[5:-1]:
        assert conv.weight.std().item() == pytest.approx(math.sqrt(2 / (9 * conv.out_channels)), rel=0.25)
        assert conv.bias.any()
    torch.manual_seed(0)
    plain = ResidualUNet(2, features=8, init="torch").decoders[0].first.conv
    assert plain.weight.abs().max() <= 1 / math.sqrt(9 * 64), "PyTorch's own is uniform"


def by_hand(net: ResidualUNet, x: torch.Tensor) -> torch.Tensor:
    """Depth-one network written out for a picture of even size."""
    weights = net.state_dict()

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.adn.N.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return (x - mean) / torch.sqrt(var + 1e-5) * scale + shift

    def conv(name: str, x: torch.Tensor, slope: float) -> torch.Tensor:
        x = F.conv2d(x, weights[f"{name}.conv.weight"], weights[f"{name}.conv.bias"], padding=1)
        return F.leaky_relu(norm(name, x), slope)

    def block(name: str, x: torch.Tensor, slope: float) -> torch.Tensor:
        c = conv(f"{name}.first", x, slope)
        y = conv(f"{name}.residual.1", conv(f"{name}.residual.0", c, slope), slope)
        return conv(f"{name}.last", c + conv(f"{name}.residual.2", y, 1.0), slope)

    top = block("encoders.0", x, 0.2)
    pooled = torch.stack([top[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0)
    low = block("encoders.1.1", pooled, 0.2)
    up = F.conv_transpose2d(
        low, weights["upsamplings.0.conv.weight"], weights["upsamplings.0.conv.bias"], 2, padding=1, output_padding=1
    )
    x = block("decoders.0", (torch.relu(norm("upsamplings.0", up)) + top) / 2, 0.0)
    return F.conv2d(x, weights["head.conv.weight"], weights["head.conv.bias"], padding=1)


def test_equals_the_network_written_out():
    torch.manual_seed(0)
    net = ResidualUNet(2, 2, 3, features=4, depth=1).eval()
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.running_mean, module.running_var, module.weight.data, module.bias.data):
                tensor.uniform_(0.5, 1.5)
    x = torch.rand(2, 2, 6, 8, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(net(x), by_hand(net, x))


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="features must be 1 or more, got -1"):
        ResidualUNet(2, features=-1)
    with pytest.raises(ValueError, match="depth must be 1 or more, got 0"):
        ResidualUNet(2, depth=0)


def test_divisor_is_the_product_of_the_strides():
    assert ResidualUNet(2, features=1).divisor == (16, 16)
    assert ResidualUNet(3, features=1, strides=[(2, 2, 1), (2, 2, 1), 2, 2]).divisor == (16, 16, 4)
