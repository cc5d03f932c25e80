# SPDX-License-Identifier: Apache-2.0
"""Loading wide ResNet-38 from a file: names, prefixes, volumes, x first, and one sentence for what does not fit."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.networks.cam_network import CAMNetwork
from monai_labelfx.networks.psp_net import PSPNet
from monai_labelfx.networks.resnet38_weights import load_resnet38_weights
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.wide_resnet38_backbone import WideResNet38Backbone


def small(spatial_dims: int = 2, in_channels: int = 3, seed: int = 0, **keywords) -> WideResNet38Backbone:
    torch.manual_seed(seed)
    net = WideResNet38Backbone(spatial_dims, in_channels, width=1 / 16, **keywords).eval()
    for name, value in net.state_dict().items():
        if name.endswith("running_var"):
            value.uniform_(0.5, 2)
        elif name.endswith(("running_mean", "bias")):
            value.normal_(0, 0.1)
    return net


@pytest.fixture
def source():
    return small(seed=1)


@pytest.fixture
def file(tmp_path):
    """Writes a state dict, returns its path."""

    def write(content):
        torch.save(content, tmp_path / "res38.pth")
        return tmp_path / "res38.pth"

    return write


def assert_same_maps(found, expected):
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * b.abs().max().item())


@pytest.mark.parametrize("norm", ["batch", "frozen_batch"])
@pytest.mark.parametrize("prefix", ["", "module.", "backbone."])
@pytest.mark.parametrize("inner", [False, True])
def test_the_backbone_is_read_and_heads_are_left_out(source, file, norm, prefix, inner):
    state = {prefix + name: value for name, value in source.state_dict().items()}
    state |= {f"{prefix}fc8.weight": torch.zeros(20, 256, 1, 1), "decode_head.conv_seg.bias": torch.zeros(2)}
    net = small(norm=norm, dilations=(1, 1, 1, 2, 4, 4), frozen_stages=1)
    assert load_resnet38_weights(net, file({"state_dict": state, "epoch": 3} if inner else state), transpose=False) == [
        f"{prefix}fc8.weight",
        "decode_head.conv_seg.bias",
    ]
    for name, value in net.state_dict().items():
        assert name.endswith("num_batches_tracked") or torch.equal(value, source.state_dict()[name]), name


@pytest.mark.parametrize("kind", [CAMNetwork, PSPNet])
def test_into_the_network_that_holds_it(source, file, kind):
    net = kind(small(), 2)
    assert load_resnet38_weights(net, file(source.state_dict()), transpose=False) == []
    image = torch.rand(1, 3, 33, 40)
    assert_same_maps(net.eval().backbone(image), source(image))


def test_pictures_with_x_first_and_images_of_one_channel(source, file):
    image = torch.rand(1, 1, 33, 40)
    net = small(in_channels=1)
    assert load_resnet38_weights(net, str(file(source.state_dict()))) == []
    maps = [m.transpose(-1, -2) for m in net(image.transpose(-1, -2))]
    assert_same_maps(maps, source(image.expand(-1, 3, -1, -1)))


def test_an_image_s_weights_into_a_volume_s_network(source, file):
    image = torch.rand(1, 3, 33, 40)
    net = small(3)
    path = file(source.state_dict())
    load_resnet38_weights(net, path, depth="centre", transpose=False)
    assert_same_maps([m[..., 0] for m in net(image[..., None])], source(image))
    load_resnet38_weights(net, path, depth_axis=0, transpose=False)
    weight = source.state_dict()["b6.conv_branch2b1.weight"]
    torch.testing.assert_close(net.b6.conv_branch2b1.weight[:, :, 1], weight / 3)


def test_a_volume_s_weights(file):
    source, net = small(3, 1, seed=1), small(3, 1)
    load_resnet38_weights(net, file(source.state_dict()), transpose=False)
    image = torch.rand(1, 1, 17, 20, 9)
    assert_same_maps(net(image), source(image))
    with pytest.raises(ValueError, match="res38.pth does not fit: .* has another shape for conv1a.weight"):
        load_resnet38_weights(small(2, 1), file(source.state_dict()), transpose=False)


def test_refusals_name_the_file_and_change_nothing(source, file, tmp_path):
    net = small()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    state = source.state_dict()
    missing = {name: value for name, value in state.items() if not name.startswith("bn7.")}
    bad = [
        (missing, r"res38\.pth does not fit: .* does not have bn7\.weight, bn7\.bias, bn7\.running_mean and 1 more\."),
        ({**state, "b4_6.conv_branch2a.weight": torch.zeros(1)}, r"fit: .* has b4_6\.conv_branch2a\.weight, which"),
        ({**state, "b4.extra": torch.zeros(1)}, r"does not fit: .* has b4\.extra, which the module does not know"),
        ({**state, "conv1a.weight": torch.zeros(4, 3, 3, 3)}, r"another shape for conv1a\.weight .*\(4, 3, 3, 3\)"),
        ({**state, "b2.bn_branch2a.weight": 3}, r"res38\.pth does not fit: .* got int for 'b2\.bn_branch2a\.weight'"),
        ({"layer1.weight": torch.zeros(1)}, r"res38\.pth does not hold .* it has no conv1a\.weight"),
        (torch.zeros(3), r"res38\.pth must hold tensors by name, got Tensor"),
    ]
    for content, message in bad:
        with pytest.raises(ValueError, match=message):
            load_resnet38_weights(net, file(content))
    with pytest.raises(ValueError, match="batch norm's statistics need norm='batch' or 'frozen_batch'"):
        load_resnet38_weights(small(norm="group"), file(state))
    with pytest.raises(ValueError, match="network must hold one WideResNet38Backbone, ResNetBackbone has 0"):
        load_resnet38_weights(ResNetBackbone(2, 3, depth=10, features=8), file(state))
    with pytest.raises(ValueError, match="Sequential has 2"):
        load_resnet38_weights(torch.nn.Sequential(small(), small()), file(state))
    with pytest.raises(FileNotFoundError):
        load_resnet38_weights(net, tmp_path / "nowhere.pth")
    code = file({"conv1a.weight": print}).read_bytes()  # names a function, which nobody calls
    for content in (b"", b"not a file of PyTorch", code):
        (tmp_path / "other.pth").write_bytes(content)
        with pytest.raises(ValueError, match=r"other\.pth is not a file of tensors by name, as torch\.save"):
            load_resnet38_weights(net, tmp_path / "other.pth")
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
