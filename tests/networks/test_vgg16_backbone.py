# SPDX-License-Identifier: Apache-2.0
"""VGG-16 of SSD: published size, torchvision's outputs and names, strides per axis, first weights."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision_recipe import SHAPES, seeded_image, seeded_weights, some_channels

from monai_labelfx.networks.torchvision_weights import load_torchvision_weights
from monai_labelfx.networks.vgg16_backbone import VGG16Backbone

rows_first = partial(load_torchvision_weights, transpose=False)  # pictures as torchvision has them

GOLDEN = Path(__file__).parent / "torchvision_golden.npz"
# from the names of torchvision's SSD extractor to those of VGG, which are torchvision's too
SSD_NAMES = {"features.": "features."} | {
    f"extra.0.{theirs}.": f"{ours}."
    for theirs, ours in {
        "1": "features.24",
        "3": "features.26",
        "5": "features.28",
        "7.1": "fc6.0",
        "7.3": "fc7.0",
    }.items()
}


def small(spatial_dims: int = 2, **keywords) -> VGG16Backbone:
    torch.manual_seed(0)
    return VGG16Backbone(spatial_dims, 1, **{"features": 4, **keywords})


def test_parameters_of_the_published_network():
    with torch.device("meta"):
        net = VGG16Backbone(2, 3, norm=None)
        normed = VGG16Backbone(2, 3, norm="batch")
    assert sum(p.numel() for p in net.features.parameters()) == 14_714_688
    assert sum(p.numel() for p in normed.features.parameters()) == 14_723_136
    assert sum(p.numel() for p in net.parameters()) == 20_483_904


def test_names_are_torchvision_s():
    convs = [name for name, layer in small(norm=None).named_modules() if isinstance(layer, torch.nn.Conv2d)]
    assert convs[:13] == [f"features.{i}" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
    convs = [name for name, layer in small(norm="batch").named_modules() if isinstance(layer, torch.nn.Conv2d)]
    assert convs[:13] == [f"features.{i}" for i in (0, 3, 7, 10, 14, 17, 20, 24, 27, 30, 34, 37, 40)]


def test_torchvision_s_maps():
    net = VGG16Backbone(2, 3, norm=None).eval()
    theirs = {}
    for name, value in net.state_dict().items():
        old = max((old for old, new in SSD_NAMES.items() if name.startswith(new)), key=lambda o: len(SSD_NAMES[o]))
        theirs[old + name[len(SSD_NAMES[old]) :]] = tuple(value.shape)
    assert "extra.0.7.3.weight" in theirs and "extra.0.1.bias" in theirs
    assert rows_first(net, seeded_weights(theirs), prefix_map=SSD_NAMES) == []
    golden = np.load(GOLDEN)
    with torch.no_grad():
        found = some_channels(net(seeded_image("vgg16", SHAPES["vgg16"])))
    for index, values in enumerate(found):
        np.testing.assert_allclose(values, golden[f"vgg16.{index}"], rtol=1e-5, atol=1e-5)


def test_strides_per_axis():
    net = small(3, pool_strides=[(2, 2, 1), 2, (2, 2, 1), 2], dilation=(6, 6, 2))
    assert net.strides == [(8, 8, 2), (16, 16, 4)]
    assert [tuple(m.shape) for m in net(torch.rand(1, 1, 65, 64, 5))] == [(1, 32, 9, 8, 3), (1, 64, 5, 4, 2)]
    assert net.fc6[0].dilation == (6, 6, 2)


def test_the_last_voxel_of_an_odd_axis_is_seen():
    """Blocks are rounded up: without that, a lone last voxel would be dropped."""
    net = small(norm=None)
    image = torch.rand(1, 1, 33, 33, requires_grad=True)
    net(image)[1].sum().backward()
    assert image.grad[..., -1, -1].any()


def test_maps_are_after_their_relu():
    fine, coarse = small()(torch.randn(1, 1, 64, 64))
    assert fine.min() == 0 and coarse.min() == 0 and fine.max() > 0 and coarse.max() > 0


def test_fc6_spans_thirteen_voxels_of_its_map():
    net = small(norm=None)
    x = torch.zeros(1, 32, 31, 31, requires_grad=True)
    net.fc6[0](x)[0, 0, 15, 15].backward()
    rows = x.grad.abs().sum((0, 1, 3)).nonzero().flatten()
    assert rows.tolist() == [9, 15, 21]


def test_bad_arguments():
    with pytest.raises(ValueError, match="pool_strides must have 4 entries, one per pooling, got 2"):
        small(pool_strides=2)
    with pytest.raises(ValueError, match=r"an entry of pool_strides must be one number or 2.* got \(2, 2, 1\)"):
        small(pool_strides=[2, 2, 2, (2, 2, 1)])
    with pytest.raises(ValueError, match="dilation must hold whole numbers of 1 or more, got 0"):
        small(dilation=0)
