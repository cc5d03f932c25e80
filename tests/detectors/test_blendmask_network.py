# SPDX-License-Identifier: Apache-2.0
"""The network of BlendMask: its parts, bases that stay in place, and attention at chosen places only."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from monai_labelfx.detectors import _blendmask_network
from monai_labelfx.detectors._blendmask_network import BottomModule
from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors.blendmask import BlendMask
from monai_labelfx.detectors.fcos import FCOS

SMALL = {"backbone": {"depth": 10, "features": 8}, "pyramid_channels": 16, "first_level": 3, "extra_levels": 1}
FLAT = {"depth": 10, "features": 8, "stem_stride": (2, 2, 1), "pool_stride": (2, 2, 1)}
SIZES = {2: (45, 70), 3: (37, 50, 20)}


def network(spatial_dims: int, **options) -> nn.Module:
    torch.manual_seed(0)
    settings = {**SMALL, "head_depth": 1, "base_channels": 8, "attention_size": 3, **options}
    return BlendMask(spatial_dims, 1, 2, **settings).network


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("training", [True, False])
def test_parts_of_the_output(spatial_dims, training):
    size = SIZES[spatial_dims]
    module = network(spatial_dims).train(training)
    raw = module(torch.randn(2, 1, *size))
    parts = unpack(raw, module.part_shapes(size))
    assert ("semantic" in parts) == training
    maps = module.neck(module.backbone(torch.zeros(1, 1, *size)))
    assert [part.shape[2:] for name, part in parts.items() if "features" in name] == [m.shape[2:] for m in maps]
    assert parts["bases"].shape == (2, 4, *(2 * n for n in maps[0].shape[2:]))
    assert parts["places"].shape == (2, 3 + 2 * spatial_dims, sum(m.shape[2:].numel() for m in maps))


def test_it_says_of_places_what_fcos_says():
    images = torch.randn(2, 1, 45, 70)
    module = network(2, image_gate=0.5)
    fcos = FCOS(2, 1, 2, **SMALL, head_depth=1, level_scales=False, image_gate=0.5).network
    assert not fcos.load_state_dict(module.state_dict(), strict=False).missing_keys
    raw, wanted = module(images), fcos(images)
    parts = unpack(raw[..., :-1], module.part_shapes((45, 70)))
    assert torch.equal(parts["places"], wanted[:, :-1]) and torch.equal(raw[:, 0, -1], wanted[:, -1, 0])
    features = fcos.head.regression_head.conv(fcos.neck(fcos.backbone(images))[1])
    assert torch.equal(parts["features 1"], features)


def test_strides_along_each_axis():
    module = network(3, backbone=FLAT, first_level=2)
    assert module.strides[0] == (4, 4, 1) and module.base_scale == (0.5, 0.5, 1)
    size = (40, 33, 10)
    parts = unpack(module(torch.randn(1, 1, *size)), module.part_shapes(size))
    assert parts["bases"].shape == (1, 4, 20, 18, 10)


def test_no_semantic_head_no_parameters():
    module = network(2, semantic_weight=None)
    assert not [name for name, _ in module.named_parameters() if "semantic" in name]
    assert "semantic" not in module.part_shapes((32, 32))
    assert module(torch.randn(1, 1, 32, 32)).shape[-1] == sum(map(math.prod, module.part_shapes((32, 32)).values()))


@pytest.mark.parametrize("size", [(41, 50), (41, 43, 50)])
def test_voxels_of_all_levels_stay_where_they_are(size):
    """Maps that hold the coordinate of their voxels: so must the sum of levels, and the bases, away from borders."""
    strides = [(n,) * len(size) for n in (8, 16, 32)]
    bottom = BottomModule(len(size), 1, 1, 1, strides, (2,) * len(size))
    bottom.refine = nn.ModuleList([nn.Identity()] * 3)
    bottom.tower = bottom.last = nn.Identity()
    for axis in range(len(size)):
        maps = []
        for stride in strides:
            shape = [-(-n // s) for n, s in zip(size, stride, strict=True)]
            line = (torch.arange(shape[axis]) + 0.5) * stride[axis]
            maps.append(line.reshape([-1 if a == axis else 1 for a in range(len(size))]).expand(1, 1, *shape))
        found = bottom(maps)
        assert found.shape[2:] == tuple(2 * n for n in maps[0].shape[2:])
        inside = found.movedim(2 + axis, -1)[..., 5:9]  # between the middles of the two voxels of stride 32
        assert torch.allclose(inside, 3 * (torch.arange(5, 9) + 0.5) * 4)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_attention_at_places_is_that_of_the_convolution(spatial_dims, monkeypatch):
    module, asked = network(spatial_dims), []
    original = _blendmask_network.convolution_at

    def count(convolution, maps, image, place):
        assert convolution is module.attention
        asked.append(len(place))
        return original(convolution, maps, image, place)

    monkeypatch.setattr(_blendmask_network, "convolution_at", count)
    monkeypatch.setattr(module.attention, "forward", None)  # never everywhere
    features = [torch.randn(2, 16, *(side,) * spatial_dims) for side in (5, 3, 2)]
    number = sum(maps[0, 0].numel() for maps in features)
    image = torch.tensor([1, 0, 1, 0, 0, 1, 1])
    place = torch.tensor([number - 1, 0, 5**spatial_dims, 7, 5**spatial_dims - 1, 7, 7])
    found = module.attention_at(features, image, place)
    assert sum(asked) == 7 and found.shape == (7, 4, *[3] * spatial_dims)
    monkeypatch.undo()
    every = torch.cat([module.attention(maps).flatten(2) for maps in features], dim=2)
    wanted = every[image, :, place].unflatten(1, found.shape[1:])
    assert torch.allclose(found, wanted, atol=1e-5)
    weight = torch.randn_like(wanted)
    gradients = [torch.autograd.grad((r * weight).sum(), module.attention.parameters()) for r in (found, wanted)]
    assert all(torch.allclose(a, b, atol=1e-3) for a, b in zip(*gradients, strict=True))


def test_no_place_gives_every_parameter_a_gradient():
    module = network(2)
    none = torch.zeros(0, dtype=torch.long)
    features = [torch.randn(1, 16, 4, 4, requires_grad=True), torch.randn(1, 16, 2, 2, requires_grad=True)]
    found = module.attention_at(features, none, none)
    found.sum().backward()
    assert found.shape == (0, 4, 3, 3)
    assert all((t.grad == 0).all() for t in (*features, module.attention.weight, module.attention.bias))


def test_attention_starts_small():
    module = network(2, pyramid_channels=32)
    assert module.attention.weight.std().item() == pytest.approx(0.01, rel=0.05)
    assert (module.attention.bias == 0).all() and module.attention.weight.shape == (36, 32, 3, 3)
