# SPDX-License-Identifier: Apache-2.0
"""KiU-Net: the published count without what is never used, the network written out, the memory law."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from segmentation_network_tester import SegmentationNetworkContract, image

from monai_labelfx.networks.kiu_net import KiUNet, _Fusion


def tiny(spatial_dims: int, in_channels: int = 2, out_channels: int = 3, **keywords) -> KiUNet:
    torch.manual_seed(0)
    return KiUNet(spatial_dims, in_channels, out_channels, **{"features": 6, "depth": 2, **keywords})


class TestContract(SegmentationNetworkContract):
    larger, noise = (5, 9, 3), 6  # of its Ki-Net, 16 times as many pixels and 64 times as many voxels

    @staticmethod
    def make(spatial_dims, in_channels, out_channels, **keywords):
        return tiny(spatial_dims, in_channels, out_channels, **keywords)


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def counted(spatial_dims: int, in_channels: int, out_channels: int, features: int, depth: int) -> int:
    def conv(i: int, o: int) -> int:
        return 3**spatial_dims * i * o + o + 2 * o

    width = [features * 2**level for level in range(depth)]
    encoder = sum(conv(i, o) for i, o in zip([in_channels, *width], width, strict=False))
    decoder = sum(conv(2 * o, o) for o in (*width[:-1], features // 2))
    fusions = sum(conv(w, w) for w in (*width, *width[:-1]))
    return 2 * (encoder + decoder + fusions) + features // 2 * out_channels + out_channels


def test_parameter_counts_are_the_published_ones_without_the_idle_layers():
    unused = 2 * (9 * 64 * 64 + 64 + 2 * 64)
    assert parameters(KiUNet(2, 1, 2)) == counted(2, 1, 2, 16, 3) == 290_658 - unused == 216_546


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
def test_parameter_counts_of_other_shapes(spatial_dims):
    net = KiUNet(spatial_dims, 3, 4, features=6, depth=2)
    assert parameters(net) == counted(spatial_dims, 3, 4, 6, 2)
    assert len(KiUNet(spatial_dims, 3, 4, features=2).u_encoders) == (2 if spatial_dims == 3 else 3)


def by_hand(net: KiUNet, x: torch.Tensor) -> torch.Tensor:
    """Depth two in two dimensions for sizes of four, one line per arrow of the figure."""
    weights = net.state_dict()

    def conv(name: str, x: torch.Tensor) -> torch.Tensor:
        return F.conv2d(x, weights[f"{name}.weight"], weights[f"{name}.bias"], padding=1)

    def norm(name: str, x: torch.Tensor) -> torch.Tensor:
        mean, var, scale, shift = (
            weights[f"{name}.{k}"][:, None, None] for k in ("running_mean", "running_var", "weight", "bias")
        )
        return ((x - mean) / torch.sqrt(var + 1e-5) * scale + shift).clamp(min=0)

    def pool(name: str, x: torch.Tensor) -> torch.Tensor:
        x = conv(f"{name}.conv", x)
        return norm(f"{name}.norm", torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)]).amax(0))

    def grow(name: str, x: torch.Tensor) -> torch.Tensor:
        return norm(f"{name}.norm", F.interpolate(conv(f"{name}.conv", x), scale_factor=2, mode="bilinear"))

    def fuse(name: str, u: torch.Tensor, k: torch.Tensor, factor: int) -> tuple[torch.Tensor, torch.Tensor]:
        small = F.interpolate(
            norm(f"{name}.to_u.1", conv(f"{name}.to_u.0", k)), scale_factor=1 / factor, mode="bilinear"
        )
        large = F.interpolate(norm(f"{name}.to_ki.1", conv(f"{name}.to_ki.0", u)), scale_factor=factor, mode="bilinear")
        return u + small, k + large

    u1, k1 = fuse("encoder_fusions.0", pool("u_encoders.0", x), grow("ki_encoders.0", x), 4)
    u2, k2 = fuse("encoder_fusions.1", pool("u_encoders.1", u1), grow("ki_encoders.1", k1), 16)
    u, k = fuse("decoder_fusions.0", grow("u_decoders.0", u2), pool("ki_decoders.0", k2), 4)
    u, k = grow("u_decoders.1", u + u1), pool("ki_decoders.1", k + k1)
    return F.conv2d(u + k, weights["head.weight"], weights["head.bias"])


def test_equals_the_network_written_out():
    net = TestContract().ready(2).double()
    x = image(8, 12, batch=2, dtype=torch.float64)
    torch.testing.assert_close(net(x), by_hand(net, x))


def test_logits_are_free_to_be_negative():
    """The released code ends with a ReLU."""
    net = TestContract().ready(2)
    net.head.bias.data -= net(image(16, 16)).mean()
    out = net(image(16, 16))
    assert out.min() < 0 < out.max()


@pytest.mark.parametrize(
    ("spatial_dims", "keywords", "expansion", "deepest"),
    [
        (2, {"depth": None}, 64, (64, 128)),
        (3, {"depth": None}, 64, (32, 64, 32)),
        (3, {"depth": 3, "features": 2}, 512, (64, 128, 64)),
        (3, {"strides": (2, 2, 1)}, 16, (32, 64, 8)),
        (3, {"strides": [(2, 2, 1), 2]}, 32, (32, 64, 16)),
    ],
)
def test_memory_law(spatial_dims, keywords, expansion, deepest):
    net, sizes = tiny(spatial_dims, **keywords).eval(), []
    net.ki_encoders[-1].register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[2:]))
    x = image(8, 16, 8)[(..., *[0] * (3 - spatial_dims))]
    with torch.no_grad():
        net(x)
    assert net.expansion == expansion and tuple(sizes[0]) == deepest
    assert sizes[0].numel() == expansion * x[0, 0].numel()


def reach(steps: torch.nn.Module, size: int, middle: int) -> int:
    x = torch.rand(1, 1, size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    y = x
    for step in steps:
        y = step(y)
    y[0, :, middle].sum().backward()
    seen = x.grad[0, 0].nonzero()
    return int(seen.max() - seen.min()) + 1


def test_the_ki_net_looks_at_few_voxels_and_the_u_net_at_many():
    torch.manual_seed(0)
    net = KiUNet(1, 1, 1, features=16, depth=3, norm=None).double()
    for parameter in net.parameters():
        parameter.data.abs_()  # so that no ReLU hides a voxel
    few, many = reach(net.ki_encoders, 64, 256), reach(net.u_encoders, 64, 4)
    assert few <= 7 and many >= 14  # maximum pooling passes one voxel of two


def test_fusion_gives_each_branch_the_residual_of_the_other():
    torch.manual_seed(0)
    fusion = _Fusion(1, 2, None)
    for branch in (fusion.to_u, fusion.to_ki):
        branch[0].weight.data.zero_()
        branch[0].weight.data[:, :, 1] = torch.eye(2)
        branch[0].bias.data.zero_()
    u, k = torch.tensor([[[1.0, -3.0], [2.0, 4.0]]]), torch.tensor([[[1.0, 3, 5, 7, -1, -1, -1, -1], [2.0] * 8]])
    new_u, new_k = fusion(u, k)
    assert new_u.tolist() == [[[1 + 4, -3 + 0], [2 + 2, 4 + 2]]], "the mean of the two voxels in the middle of four"
    torch.testing.assert_close(new_k[0, 1], 2 + torch.tensor([2, 2, 2.25, 2.75, 3.25, 3.75, 4, 4]))
    torch.testing.assert_close(new_k[0, 0] - k[0, 0], torch.tensor([1, 1, 0.875, 0.625, 0.375, 0.125, 0, 0]))


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": 1}, "features must be 2 or more, because the decoders end with half of it, got 1"),
        ({"depth": 0}, "depth must be 1 or more, got 0"),
        ({"strides": (2, 2, 2)}, "strides must be one number or 2"),
        ({"norm": "layerless"}, "norm must be"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        tiny(2, **keywords)
