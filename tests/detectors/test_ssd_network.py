# SPDX-License-Identifier: Apache-2.0
"""The parts of SSD's network: the scaled norm, halving levels, the head, and what backbone an image size gets."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from monai_labelfx.detectors._ssd_network import HalvingLevel, ScaledL2Norm, SSDHead, SSDNeck, vgg_backbone
from monai_labelfx.networks.torchvision_weights import load_torchvision_weights


@pytest.mark.parametrize("shape", [(2, 6, 5, 4), (1, 6, 3, 4, 2)])
def test_the_scaled_norm(shape):
    torch.manual_seed(0)
    x = torch.randn(shape, dtype=torch.float64)
    norm = ScaledL2Norm(6).double()
    nn.init.normal_(norm.weight)
    got = norm(x).movedim(1, -1).reshape(-1, 6)
    for row, vector in zip(got, x.movedim(1, -1).reshape(-1, 6), strict=True):
        length = sum(float(value) ** 2 for value in vector) ** 0.5
        assert row.tolist() == pytest.approx(
            [float(v) / length * float(w) for v, w in zip(vector, norm.weight, strict=True)]
        )


def test_the_scale_starts_with_20_for_512_channels_and_features_of_one_size():
    assert ScaledL2Norm(512).weight.unique().tolist() == [20]
    sizes = [ScaledL2Norm(c)(torch.rand(1, c, 4, 4)).square().mean().item() for c in (8, 128, 512)]
    assert sizes == pytest.approx([20**2 / 512] * 3)


def test_gradients_of_the_norm_are_finite_where_all_channels_are_0():
    x = torch.zeros(1, 4, 3, 3, requires_grad=True)
    ScaledL2Norm(4)(x).sum().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() < 1e7


def test_the_norm_is_in_float32_under_autocast():
    norm, x = ScaledL2Norm(64), torch.randn(1, 64, 4, 4)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(norm(x), norm(x.clone())) and norm(x).dtype == torch.float32
        low = norm(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.equal(low, norm(x.bfloat16().float()).bfloat16())
    assert norm(1e20 * torch.ones(1, 64, 2, 2)).isfinite().all()


@pytest.mark.parametrize("axes", [2, 3])
def test_the_last_level_is_the_published_one_on_two_voxels(axes):
    torch.manual_seed(0)
    level = HalvingLevel(axes, 8, 6, (2,) * axes, last=True)
    x = torch.randn(1, 8, *(2,) * axes)
    apply = nn.functional.conv2d if axes == 2 else nn.functional.conv3d
    published = apply(torch.relu(level.reduce(x)), level.halve.weight, level.halve.bias, padding=1).relu()
    assert level.reduce.out_channels == 3 and published.shape[2:] == (1,) * axes
    assert torch.allclose(level(x), published, atol=1e-6)


@pytest.mark.parametrize("last", [False, True])
def test_a_level_halves_upwards_and_sees_every_voxel(last):
    torch.manual_seed(0)
    level = HalvingLevel(2, 4, 4, (2, 1), last)
    for size in (1, 2, 3, 4, 7, 8):
        x = torch.rand(1, 4, size, 3, requires_grad=True)
        for layer in (level.reduce, level.halve):
            nn.init.constant_(layer.weight, 0.1)
        out = level(x)
        assert out.shape[2:] == (-(-size // 2), 3)
        out.sum().backward()
        assert (x.grad > 0).all()


def test_the_published_channels_and_windows():
    with torch.device("meta"):
        backbone = vgg_backbone("vgg16", 2, 3, None, (512, 512))
        neck = SSDNeck(backbone, 2, 7, (512, 512))
    assert neck.out_channels == [512, 1024, 512, 256, 256, 256, 256]
    assert [stride[0] for stride in neck.strides] == [8, 16, 32, 64, 128, 256, 512]
    assert [level.reduce.out_channels for level in neck.extra] == [256, 128, 128, 128, 128]
    assert [level.halve.kernel_size for level in neck.extra] == [(3, 3)] * 4 + [(4, 4)]
    assert len(neck.norms) == 1 and backbone.fc6[0].dilation == (6, 6)


def test_an_axis_of_one_place_is_not_halved_further():
    with torch.device("meta"):
        backbone = vgg_backbone({"features": 4}, 3, 1, "group", (256, 256, 24))
        neck = SSDNeck(backbone, 3, 6, (256, 256, 24))
    assert [stride[2] for stride in neck.strides] == [8, 16, 32, 32, 32, 32]
    assert [level.halve.kernel_size for level in neck.extra] == [(3, 3, 3)] * 3 + [(4, 4, 3)]


@pytest.mark.parametrize(
    ("size", "stride", "dilation"), [(512, 8, 6), (300, 8, 6), (200, 8, 4), (128, 4, 5), (48, 4, 2), (32, 4, 1)]
)
def test_the_backbone_fits_the_image(size, stride, dilation):
    with torch.device("meta"):
        backbone = vgg_backbone({"features": 4}, 2, 1, "group", (size, size))
    assert backbone.strides == [(stride,) * 2, (2 * stride,) * 2] and backbone.fc6[0].dilation == (dilation,) * 2


def test_backbones_of_all_forms():
    with torch.device("meta"):
        given = vgg_backbone(
            {"features": 4, "pool_strides": [(2, 2, 1), 2, 2, 2], "dilation": 2}, 3, 1, None, (128,) * 3
        )
        assert given.strides[0] == (8, 8, 4) and given.fc6[0].dilation == (2, 2, 2)
        assert vgg_backbone(given, 3, 1, "group", (128,) * 3) is given
        assert not any(isinstance(module, nn.GroupNorm) for module in given.modules())
        assert any(
            isinstance(m, nn.GroupNorm) for m in vgg_backbone({"features": 8}, 2, 1, "group", (64, 64)).modules()
        )
    with pytest.raises(ValueError, match="must be 'vgg16', keywords of VGG16Backbone or a module, got 'vgg19'"):
        vgg_backbone("vgg19", 2, 1, "group", (512, 512))
    with pytest.raises(ValueError, match="must have the attribute 'out_channels', Linear has none"):
        vgg_backbone(nn.Linear(1, 1), 2, 1, "group", (512, 512))


@pytest.mark.parametrize("axes", [2, 3])
def test_weights_of_torchvision_load(axes):
    """Names of torchvision's VGG-16: 13 convolutions at these places of ``features``."""
    places = (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)
    widths = [3, 4, 4, 8, 8, 16, 16, 16, 32, 32, 32, 32, 32, 32]
    published = {}
    for place, inputs, outputs in zip(places, widths, widths[1:], strict=False):
        published[f"features.{place}.weight"] = torch.rand(outputs, inputs, 3, 3)
        published[f"features.{place}.bias"] = torch.rand(outputs)
    backbone = vgg_backbone({"features": 4}, axes, 1, None, (512,) * axes)
    left = load_torchvision_weights(backbone, published, strict=False)
    assert left == ["fc6.0.weight", "fc6.0.bias", "fc7.0.weight", "fc7.0.bias"]
    assert torch.equal(backbone.features[28].bias, published["features.28.bias"])


@pytest.mark.parametrize("axes", [2, 3])
def test_the_head_keeps_logits_and_boxes_of_an_anchor_together(axes):
    torch.manual_seed(0)
    head = SSDHead(axes, [4, 6], [2, 3], logits=3)
    maps = [torch.rand(2, 4, *(3,) * axes), torch.rand(2, 6, *(2,) * axes)]
    raw = head(maps)
    assert raw.shape == (2, 3 + 2 * axes, 2 * 3**axes + 3 * 2**axes)
    place, anchor = (1,) * axes, 2  # of the second level
    at = 2 * 3**axes + (2**axes - 1) * 3 + anchor
    logits = head.cls_logits[1](maps[1])[(1, slice(3 * anchor, 3 * anchor + 3), *place)]
    boxes = head.bbox_reg[1](maps[1])[(1, slice(2 * axes * anchor, 2 * axes * (anchor + 1)), *place)]
    assert torch.allclose(raw[1, :, at], torch.cat([logits, boxes]), atol=1e-6)
