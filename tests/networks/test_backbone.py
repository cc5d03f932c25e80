# SPDX-License-Identifier: Apache-2.0
"""What every backbone keeps: sizes, any input size, freezing, checks, autocast and export, each for all of them."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from torch.export import Dim

from monai_labelfx.networks._backbone import MaxPool, he_init, total_strides
from monai_labelfx.networks.darknet53_backbone import Darknet53Backbone
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.vgg16_backbone import VGG16Backbone

SMALL = {
    ResNetBackbone: {"depth": 10, "features": 4},
    VGG16Backbone: {"features": 4},
    Darknet53Backbone: {"features": 2},
}
KINDS = pytest.mark.parametrize("kind", SMALL)
POOLS = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}


def small(kind: type, spatial_dims: int = 2, in_channels: int = 1, **keywords):
    torch.manual_seed(0)
    return kind(spatial_dims, in_channels, **{**SMALL[kind], **keywords})


@KINDS
@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize("size", [(1, 1, 1), (32, 33, 31), (65, 64, 1), (7, 100, 63)])
def test_maps_have_the_ceiling_of_n_over_stride(kind, spatial_dims, size):
    net = small(kind, spatial_dims)
    size = size[:spatial_dims]
    maps = net(torch.rand(2, 1, *size))
    assert [m.shape[1] for m in maps] == net.out_channels
    for m, stride in zip(maps, net.strides, strict=True):
        assert tuple(m.shape[2:]) == tuple(-(-n // s) for n, s in zip(size, stride, strict=True))
    assert set(net.strides[0]) == {2**net.first_level}


@KINDS
def test_first_voxels_of_a_map_follow_the_first_of_the_image(kind):
    """Strides count from voxel 0: an image that goes on changes nothing far from its end."""
    net = small(kind, norm="frozen_batch").eval()
    image = torch.rand(1, 1, 384, 32)  # Darknet-53 sees 362 voxels to either side
    longer = torch.cat([image, torch.rand(1, 1, 5, 32)], dim=2)
    for m, far in zip(net(image), net(longer), strict=True):
        torch.testing.assert_close(far[:, :, :1], m[:, :, :1], rtol=1e-4, atol=1e-4 * m.abs().max().item())


@KINDS
def test_a_flat_volume_is_an_image(kind):
    """With windows of one along z, a volume is one image per slice."""
    norm = "frozen_batch"
    flat = small(kind, 2, norm=norm).eval()
    deep = small(kind, 3, norm=norm).eval()
    state = {}
    for name, value in deep.state_dict().items():  # only the middle slice of a window sees anything
        source = flat.state_dict()[name]
        state[name] = source if source.shape == value.shape else F.pad(source[..., None], (value.shape[-1] // 2,) * 2)
    deep.load_state_dict(state)
    image = torch.rand(1, 1, 37, 45)
    for m, volume in zip(flat(image), deep(image[..., None]), strict=True):
        torch.testing.assert_close(volume[..., 0], m, rtol=1e-4, atol=1e-5)


@KINDS
@pytest.mark.parametrize("norm", ["group", "batch"])
def test_frozen_parts_have_no_gradient_and_keep_their_statistics(kind, norm):
    net = small(kind, norm=norm, frozen_stages=1)
    frozen = {id(p) for part in net.parts()[:2] for module in part for p in module.parameters()}
    before = {name: value.clone() for name, value in net.state_dict().items()}
    net.train()
    sum(m.square().mean() for m in net(torch.rand(4, 1, 70, 70))).backward()
    for parameter in net.parameters():
        assert (parameter.grad is None) == (id(parameter) in frozen)
    moved = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    still = {name for name in before if name.endswith("running_mean")} - moved
    assert len(still) == (0 if norm == "group" else {ResNetBackbone: 3, VGG16Backbone: 4, Darknet53Backbone: 4}[kind])
    assert net.training and not any(module.training for part in net.parts()[:2] for module in part)


@KINDS
def test_every_parameter_is_in_one_part(kind):
    net = small(kind)
    parts = [id(p) for part in net.parts() for module in part for p in module.parameters()]
    assert sorted(parts) == sorted(id(p) for p in net.parameters())
    net.freeze(len(net.parts()) - 1)
    assert not any(p.requires_grad for p in net.parameters())
    net.freeze(-1)
    assert all(p.requires_grad for p in net.parameters())


@KINDS
@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_gradients_reach_every_parameter(kind, spatial_dims):
    net = small(kind, spatial_dims)
    sum(m.square().sum() for m in net(torch.rand(1, 1, *(64, 48, 40)[:spatial_dims]))).backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


@KINDS
def test_first_weights_are_he_s(kind):
    convs = [layer for layer in small(kind, features=8).modules() if isinstance(layer, torch.nn.Conv2d)]
    for layer in convs:
        if layer.weight.numel() > 4000:
            fan_out = layer.out_channels * layer.weight[0, 0].numel()
            assert abs(layer.weight.var() * fan_out / 2 - 1) < 0.1
        assert layer.bias is None or not layer.bias.any()


@KINDS
def test_same_seed_same_weights_same_maps(kind):
    image = torch.rand(1, 1, 40, 40)
    first, second = small(kind), small(kind)
    assert all(torch.equal(a, b) for a, b in zip(first(image), second(image), strict=True))


@KINDS
@pytest.mark.parametrize("norm", ["group", "frozen_batch"])
def test_images_of_a_batch_do_not_see_each_other(kind, norm):
    net = small(kind, norm=norm)
    images = torch.rand(3, 1, 40, 33)
    together = net(images)
    for i in range(3):
        for m, alone in zip(together, net(images[i : i + 1]), strict=True):
            torch.testing.assert_close(m[i : i + 1], alone, rtol=1e-3, atol=1e-4)


@KINDS
def test_half_precision_stays_close(kind):
    net = small(kind).eval()
    image = torch.rand(1, 1, 64, 64)
    with torch.no_grad():
        exact = net(image)
        with torch.autocast("cpu", torch.bfloat16):
            rough = net(image)
    for a, b in zip(exact, rough, strict=True):
        assert (a - b).norm() < 0.05 * a.norm()


@KINDS
def test_meta_tensor_runs_as_a_plain_one(kind):
    net = small(kind).eval()
    image = torch.rand(1, 1, 33, 33)
    for m, plain in zip(net(MetaTensor(image, torch.eye(4))), net(image), strict=True):
        assert not isinstance(m, MetaTensor) and torch.equal(m, plain)


@pytest.mark.parametrize(
    ("kind", "spatial_dims"),
    [
        (ResNetBackbone, 3),
        (VGG16Backbone, 2),
        *(pytest.param(*case, marks=pytest.mark.slow) for case in [(ResNetBackbone, 2), (VGG16Backbone, 3)]),
        *(pytest.param(Darknet53Backbone, spatial_dims, marks=pytest.mark.slow) for spatial_dims in (2, 3)),
    ],
)
def test_exports_with_any_size(kind, spatial_dims):
    net = small(kind, spatial_dims).eval()
    sizes = {"x": {0: Dim.AUTO, **{axis + 2: Dim.AUTO for axis in range(spatial_dims)}}}
    program = torch.export.export(net, (torch.rand(2, 1, *(70,) * spatial_dims),), dynamic_shapes=sizes).module()
    other = torch.rand(1, 1, *(81, 97, 66)[:spatial_dims])
    for m, exported in zip(net(other), program(other), strict=True):
        torch.testing.assert_close(exported, m, rtol=1e-3, atol=1e-4)


@KINDS
def test_bad_inputs(kind):
    net = small(kind, 2, 3)
    name = kind.__name__
    with pytest.raises(
        ValueError, match=rf"{name} with spatial_dims=2 and in_channels=3 takes .* got \(1, 1, 32, 32\)"
    ):
        net(torch.rand(1, 1, 32, 32))
    with pytest.raises(ValueError, match=rf"{name} .* got \(1, 3, 32, 32, 32\)"):
        net(torch.rand(1, 3, 32, 32, 32))
    with pytest.raises(ValueError, match="spatial_dims must be 1, 2 or 3, got 4"):
        small(kind, 4)
    with pytest.raises(ValueError, match="in_channels must be 1 or more, got 0"):
        small(kind, 2, 0)
    with pytest.raises(ValueError, match="features must be 1 or more, got 0"):
        small(kind, features=0)
    with pytest.raises(ValueError, match="frozen_stages must be -1 .* got 9"):
        small(kind, frozen_stages=9)
    with pytest.raises(ValueError, match="norm must be"):
        small(kind, norm="bach")


@pytest.mark.parametrize("spatial_dims", POOLS)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (3, 1), (2, 2), (3, 3), (1, 1)])
def test_max_pool_is_pytorch_s(spatial_dims, kernel, stride):
    for size in [(9, 8, 7), (1, 2, 3), (1, 1, 1)]:
        x = torch.randn(2, 3, *size[:spatial_dims])
        padding = kernel // 2 if kernel % 2 else 0
        expected = POOLS[spatial_dims](x, kernel, stride, padding, ceil_mode=kernel % 2 == 0)
        pooled = MaxPool((kernel,) * spatial_dims, (stride,) * spatial_dims)(x)
        assert torch.equal(pooled, expected)
        assert tuple(pooled.shape[2:]) == tuple(-(-n // stride) for n in size[:spatial_dims])


def test_max_pool_per_axis():
    x = torch.randn(2, 3, 9, 8, 7)
    expected = F.max_pool3d(x, (1, 3, 3), (1, 2, 2), (0, 1, 1))
    assert torch.equal(MaxPool((1, 3, 3), (1, 2, 2))(x), expected)
    expected = F.max_pool3d(x, (2, 1, 2), (2, 1, 2), ceil_mode=True)
    assert torch.equal(MaxPool((2, 1, 2), (2, 1, 2))(x), expected)


def test_strides_and_first_weights():
    assert total_strides([(2, 1), (1, 1), (2, 3)]) == [(2, 1), (2, 1), (4, 3)]
    layer = torch.nn.Conv2d(8, 64, 3)
    he_init(layer)
    assert layer.bias.eq(0).all()
    assert abs(layer.weight.std() - (2 / (64 * 9)) ** 0.5) < 0.003
