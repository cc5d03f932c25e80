# SPDX-License-Identifier: Apache-2.0
"""Classifier with class activation maps: the mean of its maps, fused stages, strides, first bias, dropout, export."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from monai.data import MetaTensor
from monai.visualize import CAM
from torch.export import Dim

from monai_labelfx.networks.cam_network import CAMNetwork
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.wide_resnet38_backbone import WideResNet38Backbone

MODE = {2: "bilinear", 3: "trilinear"}
DIMS = pytest.mark.parametrize("spatial_dims", [2, 3])
KINDS = pytest.mark.parametrize("kind", ["resnet", "wide"])


def network(kind: str = "resnet", spatial_dims: int = 2, classes: int = 3, in_channels: int = 1, **keywords):
    torch.manual_seed(0)
    if kind == "wide":
        return CAMNetwork(WideResNet38Backbone(spatial_dims, in_channels, width=1 / 16), classes, **keywords).eval()
    return CAMNetwork(ResNetBackbone(spatial_dims, in_channels, depth=10, features=8), classes, **keywords).eval()


def image(spatial_dims: int, *size: int, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, 1, *size[:spatial_dims], generator=generator)


@KINDS
@DIMS
@pytest.mark.parametrize("size", [(1, 1, 1), (33, 40, 17), (64, 8, 24)])
def test_logits_are_the_mean_of_the_maps_and_a_linear_layer_on_pooled_features(kind, spatial_dims, size):
    net, x = network(kind, spatial_dims).double(), image(spatial_dims, *size).double()
    logits, cam, features = net(x), net.cam(x), net.features(x)
    maps = tuple(-(-n // 8) for n in size[:spatial_dims])
    assert logits.shape == (2, 3) and cam.shape == (2, 3, *maps) and net.stride == (8,) * spatial_dims
    assert features.shape == (2, net.out_channels, *maps)
    torch.testing.assert_close(logits, cam.flatten(2).mean(2), rtol=1e-9, atol=1e-9)
    linear = F.linear(features.flatten(2).mean(2), net.head.weight.flatten(1), net.head.bias)
    torch.testing.assert_close(logits, linear, rtol=1e-9, atol=1e-9)


@DIMS
def test_coarser_maps_are_interpolated_to_the_finest_of_the_fused(spatial_dims):
    net, x = network("resnet", spatial_dims), image(spatial_dims, 45, 33, 20)
    maps = net.backbone(x)[1:]
    resized = [F.interpolate(m, size=maps[0].shape[2:], mode=MODE[spatial_dims], align_corners=False) for m in maps[1:]]
    expected = torch.cat([maps[0], *resized], dim=1)
    torch.testing.assert_close(net.features(x), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(net.fuse(net.backbone(x)), net.features(x))


@DIMS
def test_maps_of_one_stride_are_joined_as_they_are(spatial_dims):
    net, x = network("wide", spatial_dims), image(spatial_dims, 33, 21, 9)
    assert torch.equal(net.features(x), torch.cat(net.backbone(x)[1:], dim=1))
    assert net.out_channels == 5632 // 16


@pytest.mark.parametrize(("fused", "stride", "channels"), [(1, 32, 64), (2, 16, 96), (3, 8, 112), (4, 4, 120)])
def test_how_many_maps_are_fused(fused, stride, channels):
    net = network(fused=fused)
    assert (net.stride, net.out_channels, net.head.weight.shape[1]) == ((stride, stride), channels, channels)
    assert net.cam(image(2, 65, 64)).shape[2:] == (-(-65 // stride), 64 // stride)


def test_strides_per_axis():
    backbone = ResNetBackbone(3, 1, depth=10, features=8, stem_stride=(2, 2, 1), stage_strides=(1, 2, (2, 2, 1), 2))
    net = CAMNetwork(backbone, 2)
    assert net.stride == (8, 8, 4)
    assert net.cam(image(3, 33, 24, 9)).shape[2:] == (5, 3, 3)


def test_monai_s_cam_has_the_same_maps():
    """An oracle, which asks a linear layer voxel by voxel for one class."""

    class Pooled(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net, self.seen = network(), torch.nn.Identity()
            head = self.net.head.state_dict()
            self.fc = torch.nn.Linear(self.net.out_channels, 3)
            self.fc.load_state_dict({name: p.flatten(1) if p.ndim > 1 else p for name, p in head.items()})

        def forward(self, x):
            return self.fc(self.seen(self.net.features(x)).flatten(2).mean(2))

    model, x = Pooled().eval(), image(2, 40, 48, batch=1)
    oracle = CAM(
        model, target_layers="seen", fc_layers="fc", upsampler=lambda size: lambda x: x, postprocessing=lambda x: x
    )
    with torch.no_grad():
        found = model.net.cam(x)
        for k in range(3):
            expected = oracle(x, class_idx=torch.tensor([k]), layer_idx=-1)
            torch.testing.assert_close(found[:, k : k + 1], expected, rtol=1e-4, atol=1e-4)


def test_first_bias():
    torch.testing.assert_close(network(classes=2, prior=0.9).head.bias.sigmoid(), torch.tensor([0.9, 0.9]))
    torch.testing.assert_close(network(classes=2, prior=(0.95, 0.1)).head.bias.sigmoid(), torch.tensor([0.95, 0.1]))
    assert network(classes=2, prior=(0.5, 0.5)).head.bias.requires_grad


def test_dropout_zeroes_whole_channels_in_training_only():
    net, x = network(dropout=0.5), image(2, 33, 33)
    assert torch.equal(net(x), net(x)) and torch.equal(net(x), network()(x))
    net.train()
    with torch.no_grad():
        net.head.weight.fill_(1)
        net.head.bias.zero_()
    torch.manual_seed(3)
    dropped = net.cam(x)
    torch.manual_seed(3)
    torch.testing.assert_close(net(x), dropped.flatten(2).mean(2), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(dropped, net.cam(x))


def test_metadata_is_left_behind():
    net, x = network(), image(2, 33, 40)
    for call in (net, net.cam, net.features):
        result = call(MetaTensor(x, torch.eye(4)))
        assert not isinstance(result, MetaTensor) and torch.equal(result, call(x))


@KINDS
@DIMS
def test_gradients_reach_every_parameter(kind, spatial_dims):
    net = network(kind, spatial_dims).train()
    net(image(spatial_dims, 33, 24, 17)).square().sum().backward()
    for name, parameter in net.named_parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def test_learns_which_half_is_bright():
    """Labels of whole images only; the maps find the place."""
    net = network("resnet", classes=2).train()
    optimiser = torch.optim.Adam(net.parameters(), 3e-3)
    x = 0.1 * torch.randn(4, 1, 64, 64)
    x[1:, :, :32] += torch.tensor([1.0, 0, 1])[:, None, None, None]
    x[2:, :, 32:] -= torch.tensor([1.0, 1])[:, None, None, None]
    target = torch.tensor([[0.0, 0], [1, 0], [0, 1], [1, 1]])
    for _ in range(40):
        loss = F.binary_cross_entropy_with_logits(net(x), target)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    bright, dark = net.eval().cam(x[3:])[0]
    assert bright[:3].mean() > bright[5:].mean() and dark[5:].mean() > dark[:3].mean()


@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning", "ignore::torch.jit.TracerWarning")
@KINDS
def test_scripts_traces_and_exports_with_any_size(kind):
    net, x = network(kind), image(2, 72, 70)
    forms = [torch.jit.trace(net, x), *([torch.jit.script(net)] if kind == "wide" else [])]
    free = ({axis: Dim.AUTO for axis in (0, 2, 3)},)
    forms.append(torch.export.export(net, (x,), dynamic_shapes=free).module())
    other = image(2, 41, 99, batch=3)
    for form in forms:
        torch.testing.assert_close(form(other), net(other), rtol=1e-4, atol=1e-5)


def test_bad_arguments():
    backbone = ResNetBackbone(2, 1, depth=10, features=8)
    with pytest.raises(TypeError, match="backbone must give maps, as WideResNet38Backbone does, got Identity"):
        CAMNetwork(torch.nn.Identity(), 2)
    with pytest.raises(ValueError, match="classes must be 1 or more, got 0"):
        CAMNetwork(backbone, 0)
    for fused in (0, 5):
        with pytest.raises(ValueError, match=f"fused must be 1 to 4, the maps of ResNetBackbone, got {fused}"):
            CAMNetwork(backbone, 2, fused=fused)
    with pytest.raises(ValueError, match="dropout must be a rate from 0 to below 1, got 1"):
        CAMNetwork(backbone, 2, dropout=1)
    for prior in (0, 1.0, (0.5,), (0.2, 1.5)):
        with pytest.raises(ValueError, match="prior must be one probability between 0 and 1, or 2 of them, got "):
            CAMNetwork(backbone, 2, prior=prior)
    net = CAMNetwork(backbone, 2)
    with pytest.raises(ValueError, match=r"CAMNetwork got an image without voxels, of shape \(1, 1, 0, 8\)"):
        net(torch.rand(1, 1, 0, 8))
    with pytest.raises(ValueError, match=r"ResNetBackbone with spatial_dims=2 .* takes .* got \(1, 3, 8, 8\)"):
        net.cam(torch.rand(1, 3, 8, 8))
