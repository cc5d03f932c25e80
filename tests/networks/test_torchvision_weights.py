# SPDX-License-Identifier: Apache-2.0
"""Loading torchvision's weights: names, one channel from three, images into volumes, clear refusals."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from monai_labelfx.networks.feature_pyramid import FeaturePyramid
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.torchvision_weights import inflate_weights, load_torchvision_weights
from monai_labelfx.networks.vgg16_backbone import VGG16Backbone

rows_first = partial(load_torchvision_weights, transpose=False)  # pictures as torchvision has them


class Network(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.trunk = small()
        self.neck = FeaturePyramid(2, self.trunk.out_channels[1:], 4, extra="convs_on_output")


def small(spatial_dims: int = 2, in_channels: int = 3, seed: int = 0, **keywords) -> ResNetBackbone:
    """A backbone whose statistics are not those of a fresh one."""
    torch.manual_seed(seed)
    net = ResNetBackbone(spatial_dims, in_channels, **{"depth": 10, "features": 4, "norm": "batch", **keywords}).eval()
    for name, value in net.state_dict().items():
        if name.endswith(("running_var", "bn1.weight", "bn2.weight")):
            value.uniform_(0.5, 1.5)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
    return net


def published(seed: int = 1, **keywords) -> dict[str, torch.Tensor]:
    """A classifier's state dict."""
    state = small(seed=seed, **keywords).state_dict()
    return {**state, "fc.weight": torch.zeros(1000, 32), "fc.bias": torch.zeros(1000)}


def same(module: torch.nn.Module, state, prefix: str = "") -> bool:
    return all(torch.equal(value, state[prefix + name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
def test_classifier(norm):
    state = published()
    net = small(norm=norm)
    assert not same(net, state)
    assert rows_first(net, state) == []
    assert same(net, state)
    image = torch.randn(1, 3, 40, 33)
    for a, b in zip(net(image), small(seed=1)(image), strict=True):
        torch.testing.assert_close(a, b)


def test_counters_are_ignored():
    net = small()
    state = {**published(), "bn1.num_batches_tracked": torch.tensor(7)}
    rows_first(net, state)
    assert net.bn1.num_batches_tracked == 0
    rows_first(net, {name: value for name, value in state.items() if "tracked" not in name})


@pytest.mark.parametrize("old", [False, True])
def test_detector(old):
    """Trunk and pyramid of a detector, one at a time or together; torchvision's older pyramid names too."""
    source = Network()
    state = {f"backbone.body.{name}": value for name, value in source.trunk.state_dict().items()}
    state |= {f"backbone.fpn.{name}": value for name, value in source.neck.state_dict().items()}
    if old:
        state = {name.replace(".0.weight", ".weight").replace(".0.bias", ".bias") if "_blocks." in name else name: value
                 for name, value in state.items()}  # fmt: skip
        assert "backbone.fpn.inner_blocks.0.weight" in state
    state["head.classification_head.cls_logits.weight"] = torch.zeros(3)
    trunk, neck, whole = small(seed=2), FeaturePyramid(2, [8, 16, 32], 4, extra="convs_on_output"), Network()
    for parameter in whole.parameters():
        parameter.data.zero_()
    assert rows_first(trunk, state) == rows_first(neck, state) == []
    assert same(trunk, source.trunk.state_dict()) and same(neck, source.neck.state_dict())
    rows_first(whole, state, prefix_map={"backbone.body.": "trunk.", "backbone.fpn.": "neck."})
    assert same(whole, source.state_dict())


def test_longest_prefix_wins_and_others_are_left_out():
    source, target = torch.nn.Linear(2, 2), torch.nn.Sequential(torch.nn.Linear(2, 2))
    state = {"a.b.weight": source.weight.data, "a.b.bias": source.bias.data, "a.c": torch.zeros(1), "d": torch.zeros(1)}
    rows_first(target, state, prefix_map={"a.b.": "0."})
    assert same(target[0], source.state_dict())
    with pytest.raises(ValueError, match=r"has x\.c, which the module does not know"):
        rows_first(target, state, prefix_map={"a.": "x.", "a.b.": "0."})


def test_one_channel_sees_three_equal_ones():
    grey = small(in_channels=1)
    rows_first(grey, published())
    image = torch.randn(2, 1, 40, 33)
    for a, b in zip(grey(image), small(seed=1)(image.expand(-1, 3, -1, -1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    with pytest.raises(
        ValueError, match=r"another shape for conv1.weight .*\(4, 3, 7, 7\), the module's \(4, 2, 7, 7\)"
    ):
        rows_first(small(in_channels=2), published())


@pytest.mark.parametrize("depth_axis", [0, 1, 2, -1, -3])
def test_constant_along_the_new_axis_gives_the_image_s_maps(depth_axis):
    """Away from the ends, where windows reach the zeros of the padding; here no stride, so that there is a middle."""
    axis = depth_axis % 3
    strides = tuple(1 if k == axis else 2 for k in range(3))
    options = {"stem_stride": strides, "pool_stride": strides, "stage_strides": (1, strides, strides, strides)}
    volume = small(3, **options)
    assert rows_first(volume, published(), depth_axis=depth_axis) == []
    image = torch.randn(1, 3, 33, 40)
    deep = image.unsqueeze(axis + 2).repeat_interleave(41, axis + 2)
    for a, b in zip(volume(deep), small(seed=1)(image), strict=True):
        torch.testing.assert_close(a.select(axis + 2, 20), b, rtol=1e-3, atol=1e-4)
        assert not torch.allclose(a.select(axis + 2, 0), b, rtol=1e-3, atol=1e-4)


def test_centre_makes_every_slice_an_image():
    strides = {"stem_stride": (2, 2, 1), "pool_stride": (2, 2, 1), "stage_strides": (1, *([(2, 2, 1)] * 3))}
    volume = small(3, **strides)
    rows_first(volume, published(), depth="centre")
    image = torch.randn(1, 3, 33, 40, 3)
    for a in range(3):
        for whole, b in zip(volume(image), small(seed=1)(image[..., a]), strict=True):
            torch.testing.assert_close(whole[..., a], b, rtol=1e-3, atol=1e-4)


def test_inflated_weights_sum_to_the_image_s():
    layer = torch.nn.Conv3d(2, 3, (5, 3, 1))
    weight = torch.randn(3, 2, 5, 1, dtype=torch.float64)
    state = {"weight": weight, "bias": torch.ones(3), "other": torch.zeros(2)}
    result = inflate_weights(state, layer, depth_axis=1)
    torch.testing.assert_close(result["weight"].sum(3), weight)
    assert result["weight"].shape == layer.weight.shape and result["weight"].dtype == torch.float64
    assert result["bias"] is state["bias"] and result["other"] is state["other"], "nothing else is touched"
    assert state["weight"] is weight and weight.ndim == 4
    centre = inflate_weights(state, layer, depth_axis=-2, depth="centre")["weight"]
    assert torch.equal(centre[:, :, :, 1], weight) and not centre[:, :, :, [0, 2]].any()


@pytest.mark.parametrize("depth", ["mean", "centre"])
@pytest.mark.parametrize("kernel", [2, 4])
def test_transposed_convolution_of_a_constant_gives_the_image_s_map(depth, kernel):
    """Two slices come of each, and each of them is the image's map."""
    torch.manual_seed(0)
    options = {"stride": 2, "padding": kernel // 2 - 1}
    flat, volume = nn.ConvTranspose2d(3, 4, kernel, **options), nn.ConvTranspose3d(3, 4, kernel, **options)
    assert rows_first(volume, flat.state_dict(), depth=depth) == []
    image = torch.randn(1, 3, 5, 6)
    found = volume(image[..., None].expand(-1, -1, -1, -1, 5))[..., 2:-2]
    torch.testing.assert_close(found, flat(image)[..., None].expand_as(found), rtol=1e-4, atol=1e-5)


def test_ssd_head_from_the_classifier():
    """fc6 on a map is the fully connected layer where only every third voxel counts."""
    torch.manual_seed(0)
    source, target = (VGG16Backbone(2, 3, features=4, norm=None) for _ in range(2))
    state = {name: value for name, value in source.state_dict().items() if name.startswith("features.")}
    full = {"classifier.0": (256, 32 * 49), "classifier.3": (256, 256), "classifier.6": (1000, 256)}
    for name, shape in full.items():
        state |= {f"{name}.weight": torch.randn(shape), f"{name}.bias": torch.randn(shape[0])}
    assert rows_first(target, state) == []
    window = torch.zeros(1, 32, 7, 7)
    window[:, :, ::3, ::3] = torch.randn(1, 32, 3, 3)
    first = F.linear(window.flatten(1), state["classifier.0.weight"], state["classifier.0.bias"])
    spread = F.conv2d(window[:, :, ::3, ::3], target.fc6[0].weight, target.fc6[0].bias).flatten(1)
    torch.testing.assert_close(spread, first[:, ::4], rtol=1e-4, atol=1e-4)
    assert torch.equal(target.fc7[0].weight[:, :, 0, 0], state["classifier.3.weight"][::4, ::4])

    state["classifier.0.weight"] = state["classifier.0.weight"] * torch.nan  # as in torchvision's weights for SSD
    assert rows_first(target, state, strict=False) == [
        "fc6.0.weight",
        "fc6.0.bias",
        "fc7.0.weight",
        "fc7.0.bias",
    ]
    with pytest.raises(ValueError, match="does not have fc6.0.weight, fc6.0.bias, fc7.0.weight and 1 more"):
        rows_first(target, state)


def test_not_strict_copies_what_fits():
    net = small()
    before = net.conv1.weight.clone()
    state = published()
    state["conv1.weight"] = torch.zeros(5, 3, 7, 7)
    state["unknown"] = torch.zeros(1)
    del state["layer4.0.bn2.bias"]
    assert rows_first(net, state, strict=False) == ["conv1.weight", "layer4.0.bn2.bias"]
    assert torch.equal(net.conv1.weight, before) and torch.equal(net.bn1.weight, state["bn1.weight"])


def test_refusals_name_what_is_wrong_and_change_nothing():
    net = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = published()
    short = {name: value for name, value in state.items() if not name.startswith("layer4.")}
    with pytest.raises(ValueError, match=r"for ResNetBackbone does not have layer4\.0\.conv1\.weight, .* and 12 more"):
        rows_first(net, short)
    with pytest.raises(ValueError, match="has aux.weight, which the module does not know"):
        rows_first(net, {**state, "aux.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"has another shape for conv1\.weight"):
        rows_first(net, {**state, "conv1.weight": torch.zeros(4, 3, 3, 3)})
    with pytest.raises(ValueError, match="does not have conv1.weight"):
        rows_first(net, {"module." + name: value for name, value in state.items()}, strict=False)
    with pytest.raises(ValueError, match="does not have"):
        rows_first(net, {}, strict=False)
    with pytest.raises(TypeError, match="state_dict must hold tensors by name, got dict for 'state_dict'"):
        rows_first(net, {"state_dict": state})
    with pytest.raises(ValueError, match="depth must be 'mean' or 'centre', got 'max'"):
        rows_first(net, state, depth="max")
    with pytest.raises(ValueError, match="depth_axis must be one of the 3 spatial axes .* got 3"):
        rows_first(small(3), state, depth_axis=3)
    assert same(net, before)
    with pytest.raises(ValueError, match="batch norm's statistics need norm='batch' or 'frozen_batch'"):
        rows_first(small(norm="group"), state)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_pictures_with_x_first_need_kernels_with_x_first(spatial_dims):
    image = torch.randn(1, 3, 33, 40)
    net = small(spatial_dims)
    assert load_torchvision_weights(net, published(), depth="centre") == []
    lying = image.transpose(-1, -2) if spatial_dims == 2 else image.transpose(-1, -2)[..., None]
    for found, expected in zip(net(lying), small(seed=1)(image), strict=True):
        found = found if spatial_dims == 2 else found[..., 0]
        torch.testing.assert_close(found.transpose(-1, -2), expected, rtol=1e-4, atol=1e-5)


class Heads(nn.Module):
    """The heads of a detector, named as those of the networks here."""

    def __init__(self, *, masks: bool = True, dense: bool = False) -> None:
        super().__init__()
        torch.manual_seed(0)
        conv = partial(nn.Conv2d, 4, 4)
        self.neck = nn.ModuleDict({"fpn": FeaturePyramid(2, [4], 4)})
        if dense:
            tower = nn.Sequential(*(nn.Sequential(conv(3), nn.ReLU()) for _ in range(2)))
            self.head = nn.ModuleDict({"regression_head": nn.ModuleDict({"conv": tower, "bbox_reg": conv(3)})})
            return
        self.rpn = nn.ModuleDict({"conv": nn.Sequential(nn.Sequential(conv(3), nn.ReLU())), "cls_logits": conv(1)})
        self.box_head = nn.ModuleDict({"fc6": nn.Linear(4, 4), "cls_score": nn.Linear(4, 3)})
        if masks:
            blocks = {str(n): nn.Sequential(conv(3), nn.ReLU()) for n in range(2)}
            self.mask_head = nn.ModuleDict({**blocks, "conv5_mask": nn.ConvTranspose2d(4, 4, 2, 2)})


NEW = {
    "neck.fpn.": "backbone.fpn.",
    "rpn.": "rpn.head.",
    "box_head.fc": "roi_heads.box_head.fc",
    "box_head.cls": "roi_heads.box_predictor.cls",
    "mask_head.conv5": "roi_heads.mask_predictor.conv5",
    "mask_head.": "roi_heads.mask_head.",
    "head.": "head.",
}
OLD = {
    "blocks.0.0.": "blocks.0.",
    "rpn.head.conv.0.0.": "rpn.head.conv.",
    "mask_head.0.0.": "mask_head.mask_fcn1.",
    "mask_head.1.0.": "mask_head.mask_fcn2.",
    "regression_head.conv.0.0.": "regression_head.conv.0.",
    "regression_head.conv.1.0.": "regression_head.conv.2.",
}


def theirs(heads: Heads, *, old: bool) -> dict[str, torch.Tensor]:
    """A state dict with names of published files (old) or of torchvision today, and other values than ``heads``."""
    state = {}
    for name, value in heads.state_dict().items():
        own = next(own for own in NEW if name.startswith(own))
        name = name.replace(own, NEW[own], 1)
        for today, before in OLD.items() if old else ():
            name = name.replace(today, before)
        state[name] = value + 1
    return state


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize("old", [False, True])
def test_names_of_heads(old, dense):
    state, module = theirs(Heads(dense=dense), old=old), Heads(dense=dense)
    known = ("regression_head.conv.2.weight",) if dense else ("mask_head.mask_fcn1.bias", "rpn.head.conv.weight")
    assert all(any(name.endswith(end) for name in state) == old for end in known)
    assert rows_first(module, state) == []
    assert same(module, {name: value + 1 for name, value in Heads(dense=dense).state_dict().items()})


def test_heads_that_the_module_does_not_have_are_left_out():
    assert rows_first(Heads(masks=False), theirs(Heads(), old=False)) == []
    with pytest.raises(ValueError, match="for Heads does not have mask_head.0.0.weight, .* and 3 more"):
        rows_first(Heads(), theirs(Heads(masks=False), old=False))
