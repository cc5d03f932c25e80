# SPDX-License-Identifier: Apache-2.0
"""The patch discriminator: counts and map sizes of four papers, and the layers written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from generator_tester import image
from monai.data import MetaTensor

from monai_labelfx.networks.patch_gan_discriminator import PatchGANDiscriminator

CYCLE_GAN = {"features": (64, 128, 256, 512), "kernel_size": 4, "norm": "instance", "squeeze_excitation": None}
GAN_CIRCLE = {**CYCLE_GAN, "norm": ("instance", {"affine": True})}
INVERTIBLE = {
    "features": (64, 128, 256),
    "strides": (2, 2, 1, 1),
    "kernel_size": 4,
    "norm": "batch",
    "squeeze_excitation": None,
    "bias": (False, True, True, True),
}
SMALL = {"features": (4, 8, 8), "strides": (2, 1, 1, 1), "squeeze_excitation": 2}
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])


def parameters(net: torch.nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


@pytest.mark.parametrize(
    ("keywords", "count", "size", "scores"),
    [({}, 401_373, 128, 16), (CYCLE_GAN, 2_762_689, 256, 30), (INVERTIBLE, 661_633, 256, 62)],
)
def test_the_papers_discriminators(keywords, count, size, scores):
    net = PatchGANDiscriminator(2, **keywords)
    assert parameters(net) == count
    with torch.no_grad():
        assert net(torch.zeros(1, 1, size, size)).shape == (1, 1, scores, scores)


def test_more_counts_of_papers():
    assert parameters(PatchGANDiscriminator(2, 3, **CYCLE_GAN)) == 2_764_737, "cycleGAN's own, of colour pictures"
    assert parameters(PatchGANDiscriminator(2, **GAN_CIRCLE)) == 2_764_481


@DIMS
def test_counts_of_other_shapes(spatial_dims):
    def conv(i: int, o: int) -> int:
        return 3**spatial_dims * i * o + o

    def excitation(c: int) -> int:
        return 2 * c * (c // 2) + c // 2 + c

    expected = conv(2, 4) + conv(4, 8) + conv(8, 8) + conv(8, 1) + 2 * excitation(8)
    assert parameters(PatchGANDiscriminator(spatial_dims, 2, **SMALL)) == expected


def test_patches_of_cycle_gan_are_70_voxels_wide():
    net = PatchGANDiscriminator(2, **{**CYCLE_GAN, "features": (2, 2, 2, 2), "norm": None}).double()
    x = image(128, 128, dtype=torch.float64).requires_grad_()
    net(x)[0, 0, 6, 6].backward()
    seen = x.grad[0, 0].nonzero()
    assert (seen.amax(0) - seen.amin(0)).tolist() == [69, 69]


def excite(layer: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
    first, second = (m for m in layer.modules() if isinstance(m, torch.nn.Linear))
    pooled = x.mean((2, 3))
    gate = torch.sigmoid(F.relu(pooled @ first.weight.T + first.bias) @ second.weight.T + second.bias)
    return x * gate[:, :, None, None]


def rectify(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x > 0, x, 0.2 * x)


def ready(norm, **keywords) -> PatchGANDiscriminator:
    torch.manual_seed(0)
    net = PatchGANDiscriminator(2, norm=norm, **{**SMALL, **keywords}).double()
    for _ in range(500):  # power iterations and running statistics
        net(torch.randn(2, 1, 8, 8, dtype=torch.float64))
    for name, parameter in net.named_parameters():
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.2)
    return net.eval()


def test_equals_the_network_written_out_with_spectral_norm():
    net, x = ready("spectral"), image(12, 10, batch=2, dtype=torch.float64)

    def conv(layer: torch.nn.Module, x: torch.Tensor, stride: int = 1) -> torch.Tensor:
        weight = layer.parametrizations.weight.original
        weight = weight / torch.linalg.svdvals(weight.flatten(1))[0]
        return F.conv2d(x, weight, layer.bias, stride, 1)

    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    gates = [m for m in net.modules() if type(m).__name__ == "ChannelSELayer"]
    assert len(convs) == 4 and len(gates) == 2
    y = rectify(conv(convs[0], x, 2))
    y = excite(gates[0], rectify(conv(convs[1], y)))
    y = excite(gates[1], rectify(conv(convs[2], y)))
    torch.testing.assert_close(net(x), conv(convs[3], y), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("norm", ["batch", "instance", None])
def test_equals_the_network_written_out_with_norms_of_features(norm):
    net, x = ready(norm, squeeze_excitation=None), image(12, 10, batch=2, dtype=torch.float64)
    convs = [m for m in net.modules() if isinstance(m, torch.nn.Conv2d)]
    norms = [m for m in net.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert len(norms) == (2 if norm == "batch" else 0) and not any(hasattr(c, "parametrizations") for c in convs)

    def normed(number: int, x: torch.Tensor) -> torch.Tensor:
        if norm is None:
            return x
        if norm == "instance":
            mean, var, weight, bias = x.mean((2, 3)), x.var((2, 3), correction=0), 1, 0
        else:
            layer = norms[number]
            mean, var = layer.running_mean[None], layer.running_var[None]
            weight, bias = layer.weight[:, None, None], layer.bias[:, None, None]
        return (x - mean[..., None, None]) / torch.sqrt(var[..., None, None] + 1e-5) * weight + bias

    y = rectify(F.conv2d(x, convs[0].weight, convs[0].bias, 2, 1))
    y = rectify(normed(0, F.conv2d(y, convs[1].weight, convs[1].bias, 1, 1)))
    y = rectify(normed(1, F.conv2d(y, convs[2].weight, convs[2].bias, 1, 1)))
    torch.testing.assert_close(net(x), F.conv2d(y, convs[3].weight, convs[3].bias, 1, 1))


@DIMS
def test_batches_channels_last_state_and_repetition(spatial_dims):
    torch.manual_seed(0)
    net = PatchGANDiscriminator(spatial_dims, **SMALL)
    x = image(9, *[7] * (spatial_dims - 1), batch=8)
    net(x).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
    net.eval()
    with torch.no_grad():
        expected = net(x)
        assert torch.equal(net(x), expected) and expected.isfinite().all() and expected.abs().max() < 10
        torch.testing.assert_close(torch.cat([net(one) for one in x.split(1)]), expected)
        other = PatchGANDiscriminator(spatial_dims, **SMALL).eval()
        other.load_state_dict(net.state_dict())
        assert torch.equal(other(x), expected)
        form = torch.channels_last if spatial_dims == 2 else torch.channels_last_3d
        torch.testing.assert_close(net.to(memory_format=form)(x.to(memory_format=form)), expected)


def test_strides_per_axis_and_thin_stacks():
    net = PatchGANDiscriminator(3, **{**SMALL, "strides": ((2, 2, 1), 1, (2, 1, 1), 1)})
    assert net(image(16, 8, 3)).shape == (1, 1, 4, 4, 3)
    assert PatchGANDiscriminator(3, **{**SMALL, "kernel_size": (3, 3, 1)})(image(9, 9, 1)).shape == (1, 1, 5, 5, 1)


def test_a_meta_tensor_gives_a_plain_one():
    net = PatchGANDiscriminator(2, **SMALL).eval()
    x = image(9, 9)
    assert type(net(MetaTensor(x))) is torch.Tensor and torch.equal(net(MetaTensor(x)), net(x))


@pytest.mark.parametrize("norm", [None, "spectral", "instance"])
def test_a_gradient_penalty_can_be_minimised(norm):
    net, x = PatchGANDiscriminator(2, norm=norm, **SMALL), image(9, 9).requires_grad_()
    slope = torch.autograd.grad(net(x).sum(), x, create_graph=True)[0]
    (slope.flatten(1).norm(dim=1) - 1).square().mean().backward()
    grads = [p.grad for p in net.parameters() if p.grad is not None]
    assert any(g.any() for g in grads) and all(g.isfinite().all() for g in grads)


def test_it_learns_to_tell_noise_from_none():
    torch.manual_seed(0)
    net = PatchGANDiscriminator(2, **SMALL)
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(40):
        fake, real = torch.randn(4, 1, 16, 16), 0.1 * torch.randn(4, 1, 16, 16)
        optimizer.zero_grad()
        loss = (net(real) - 1).square().mean() + net(fake).square().mean()
        loss.backward()
        optimizer.step()
    assert loss < 0.5


@pytest.mark.parametrize("norm", ["spectral", "batch", None])
def test_autocast(norm):
    net, x = PatchGANDiscriminator(2, norm=norm, **SMALL), image(12, 12, batch=2)
    with torch.autocast("cpu", torch.bfloat16):
        y = net(x)
    y.float().sum().backward()
    assert y.isfinite().all()


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"features": (4, 0)}, r"features\[1\] must be 1 or more, got 0"),
        ({"in_channels": 0}, "in_channels must be"),
        ({"strides": (2, 2)}, r"strides must have 5 entries, one per convolution .* got \(2, 2\)"),
        ({"bias": (True,)}, r"bias must have 5 entries, .* got \(True,\)"),
        ({"strides": (2, 2, 2, 1, 0)}, "strides of a convolution must hold whole numbers of 1 or more, got 0"),
        ({"strides": ((2, 2, 1), 2, 2, 1, 1)}, "strides of a convolution must be one number or 2"),
        ({"kernel_size": (3,)}, "kernel_size must be one number or 2"),
        ({"squeeze_excitation": 65}, "squeeze_excitation must be from 1 to the 64 channels of a layer, got 65"),
        ({"squeeze_excitation": 0}, "squeeze_excitation must be"),
        ({"norm": "spectrum"}, "norm must be 'spectral', None or a norm of MONAI .* got 'spectrum'"),
    ],
)
def test_bad_arguments_are_named(keywords, message):
    with pytest.raises(ValueError, match=message):
        PatchGANDiscriminator(2, **keywords)


def test_bad_images_are_named():
    for shape in ((1, 2, 8, 8), (1, 1, 8, 8, 8), (1, 8, 8)):
        with pytest.raises(ValueError, match=r"takes \(B, 1, size, size\), got \("):
            PatchGANDiscriminator(2)(torch.zeros(shape))
    with pytest.raises(ValueError, match="spatial_dims must be 1, 2 or 3"):
        PatchGANDiscriminator(4)
    assert PatchGANDiscriminator(2).eval()(torch.zeros(1, 1, 1, 1)).shape == (1, 1, 1, 1)
    with pytest.raises(ValueError, match=r"convolution 5 of 5 leaves \(0, 0\) voxels: use larger crops"):
        PatchGANDiscriminator(2, **{**CYCLE_GAN, "norm": None})(torch.zeros(1, 1, 16, 16))
    with pytest.raises(ValueError, match=r"convolution 4 of 5 leaves \(1, 1\) .* another norm than instance norm"):
        PatchGANDiscriminator(2, **CYCLE_GAN)(torch.zeros(1, 1, 16, 16))
