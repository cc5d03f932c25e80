# SPDX-License-Identifier: Apache-2.0
"""Feature pyramid: a naive reference, MONAI's and torchvision's outputs, extra levels, odd sizes, strides."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from monai.networks.blocks.feature_pyramid_network import FeaturePyramidNetwork, LastLevelMaxPool, LastLevelP6P7
from torch.export import Dim
from torchvision_recipe import CHANNELS, PYRAMID, seeded_image, seeded_weights, some_channels

from monai_labelfx.networks.feature_pyramid import FeaturePyramid
from monai_labelfx.networks.torchvision_weights import load_torchvision_weights

rows_first = partial(load_torchvision_weights, transpose=False)  # pictures as torchvision has them

GOLDEN = Path(__file__).parent / "torchvision_golden.npz"
CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
EXTRA = ("none", "pool", "convs_on_input", "convs_on_output")


def pyramid(spatial_dims: int = 2, channels=(4, 6, 8), **keywords) -> FeaturePyramid:
    torch.manual_seed(0)
    return FeaturePyramid(spatial_dims, channels, 4, **keywords)


def maps_of(sizes, channels=(4, 6, 8), dtype=torch.float32):
    return [torch.randn(2, c, *size, dtype=dtype) for c, size in zip(channels, sizes, strict=True)]


def naive(net: FeaturePyramid, maps):
    """Repeat voxels two by two, cut to the size, add; extra levels by their definition."""
    conv, state = CONV[net.spatial_dims], net.state_dict()

    def run(name, x, stride=1):
        weight = state[f"{name}.weight"]
        return conv(x, weight, state[f"{name}.bias"], stride, weight.shape[-1] // 2)

    above, levels = None, []
    for i in reversed(range(len(maps))):
        merged = run(f"inner_blocks.{i}.0", maps[i])
        if above is not None:
            for axis in range(2, merged.ndim):
                above = above.repeat_interleave(2, axis).narrow(axis, 0, merged.shape[axis])
            merged = merged + above
        above = merged
        levels.insert(0, run(f"layer_blocks.{i}.0", merged))
    if net.extra == "pool":
        levels.append(levels[-1][(..., *(slice(0, None, 2) for _ in range(net.spatial_dims)))])
    elif net.extra != "none":
        levels.append(run("extra_blocks.p6", maps[-1] if net.extra == "convs_on_input" else levels[-1], 2))
        levels.append(run("extra_blocks.p7", levels[-1].clamp(min=0), 2))
    return levels


@pytest.mark.parametrize("extra", EXTRA)
@pytest.mark.parametrize(
    "sizes",
    [
        [(9,), (5,), (3,)],
        [(8, 17), (4, 9), (2, 5)],
        [(9, 1, 6), (5, 1, 3), (3, 1, 2)],
        [(1, 1, 1), (1, 1, 1), (1, 1, 1)],
    ],
)
def test_naive_reference(extra, sizes):
    net = pyramid(len(sizes[0]), extra=extra).double()
    maps = maps_of(sizes, dtype=torch.float64)
    for level, expected in zip(net(maps), naive(net, maps), strict=True):
        torch.testing.assert_close(level, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("extra", "last"),
    [
        ("none", None),
        ("pool", LastLevelMaxPool(3)),
        ("convs_on_input", LastLevelP6P7(3, 8, 4)),
        ("convs_on_output", LastLevelP6P7(3, 4, 4)),
    ],
)
def test_monai_s_pyramid_gives_the_same(extra, last):
    theirs = FeaturePyramidNetwork(3, [4, 6, 8], 4, last)
    ours = pyramid(3, extra=extra)
    assert rows_first(ours, theirs.state_dict()) == []
    maps = maps_of([(9, 6, 7), (5, 3, 4), (3, 2, 2)])
    expected = theirs({str(i): m for i, m in enumerate(maps)}).values()
    for level, value in zip(ours(maps), expected, strict=True):
        torch.testing.assert_close(level, value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("extra", ["pool", "convs_on_input"])
def test_torchvision_s_levels(extra):
    net = FeaturePyramid(2, [shape[0] for shape in PYRAMID.values()], CHANNELS, extra=extra)
    shapes = {name: tuple(value.shape) for name, value in net.state_dict().items()}
    rows_first(net, seeded_weights(shapes))
    golden = np.load(GOLDEN)
    found = some_channels(net([seeded_image(name, shape) for name, shape in PYRAMID.items()]))
    assert len(found) == (4 if extra == "pool" else 5)
    for index, values in enumerate(found):
        np.testing.assert_allclose(values, golden[f"{extra}.{index}"], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", EXTRA[1:])
def test_strides_per_axis_of_extra_levels(extra):
    net = pyramid(3, extra=extra, num_extra=2, extra_strides=[(2, 2, 1), 2])
    strides = net.out_strides([(4, 4, 1), (8, 8, 1), (16, 16, 1)])
    assert strides == [(4, 4, 1), (8, 8, 1), (16, 16, 1), (32, 32, 1), (64, 64, 2)]
    image = (100, 65, 5)
    sizes = [tuple(-(-n // s) for n, s in zip(image, stride, strict=True)) for stride in strides]
    levels = net(maps_of(sizes[:3]))
    assert [tuple(level.shape[2:]) for level in levels] == sizes
    assert [level.shape[1] for level in levels] == net.out_channels


def test_extra_levels_by_default():
    assert [len(pyramid(extra=extra).out_channels) for extra in EXTRA] == [3, 4, 5, 5]
    assert len(pyramid(extra="convs_on_output", num_extra=3).extra_blocks) == 3
    assert list(pyramid(extra="convs_on_input").extra_blocks) == ["p6", "p7"]


def test_the_finest_maps_can_be_left_out():
    whole, part = pyramid(), pyramid(channels=(6, 8))
    state = whole.state_dict()
    part.load_state_dict(
        {name: state[name.replace(".1.0.", ".2.0.").replace(".0.0.", ".1.0.")] for name in part.state_dict()}
    )
    maps = maps_of([(8, 8), (4, 4), (2, 2)])
    for level, expected in zip(part(maps[1:]), whole(maps)[1:], strict=True):
        assert torch.equal(level, expected)


def test_norm_takes_the_place_of_the_bias():
    net = pyramid(norm="group", extra="convs_on_output")
    assert net.inner_blocks[0][0].bias is None and isinstance(net.layer_blocks[0][1], torch.nn.GroupNorm)
    assert all(level.isfinite().all() for level in net(maps_of([(8, 8), (4, 4), (2, 2)])))


def test_maps_are_not_edited_and_gradients_reach_everything():
    net = pyramid(3, extra="convs_on_input")
    maps = [m.requires_grad_() for m in maps_of([(8, 6, 5), (4, 3, 3), (2, 2, 2)])]
    before = [m.detach().clone() for m in maps]
    sum(level.square().sum() for level in net(maps)).backward()
    assert all(torch.equal(m, b) and m.grad.any() for m, b in zip(maps, before, strict=True))
    assert all(parameter.grad.any() for parameter in net.parameters())


def test_first_weights():
    net = FeaturePyramid(2, [64], 64)
    weight = net.layer_blocks[0][0].weight
    assert abs(weight.var() * 64 * 9 - 1) < 0.05
    assert not net.layer_blocks[0][0].bias.any()


def test_exports_with_any_size():
    class Levels(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = pyramid(extra="convs_on_input")

        def forward(self, fine, middle, coarse):
            return self.net([fine, middle, coarse])

    names = ("fine", "middle", "coarse")
    sizes = {name: {0: Dim.AUTO, 2: Dim.AUTO, 3: Dim.AUTO} for name in names}
    program = torch.export.export(Levels(), tuple(maps_of([(24, 28), (12, 14), (6, 7)])), dynamic_shapes=sizes)
    other = maps_of([(33, 40), (17, 20), (9, 10)])
    for level, expected in zip(program.module()(*other), Levels()(*other), strict=True):
        torch.testing.assert_close(level, expected)


def test_bad_arguments():
    with pytest.raises(ValueError, match="in_channels must name the channels of one map or more"):
        FeaturePyramid(2, [])
    with pytest.raises(ValueError, match=r"in_channels\[1\] must be 1 or more, got 0"):
        FeaturePyramid(2, [4, 0])
    with pytest.raises(ValueError, match="extra must be one of .* got 'p6p7'"):
        pyramid(extra="p6p7")
    with pytest.raises(ValueError, match="num_extra must be 0 for extra='none' .* got 2 for 'none'"):
        pyramid(num_extra=2)
    with pytest.raises(ValueError, match="got 0 for 'pool'"):
        pyramid(extra="pool", num_extra=0)
    with pytest.raises(ValueError, match="spatial_dims must be 1, 2 or 3, got 4"):
        FeaturePyramid(4, [4])
    with pytest.raises(ValueError, match=r"takes 3 maps, got 2"):
        pyramid()(maps_of([(4, 4), (2, 2), (1, 1)])[:2])
    with pytest.raises(ValueError, match="strides must have 3 entries, one per map, got 1"):
        pyramid().out_strides([(4, 4)])
