# SPDX-License-Identifier: Apache-2.0
"""The network of SOLOv2: grids, coordinates, resampling and the mask branch."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn.functional import interpolate

from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors._solov2_network import SOLOv2Network, solov2_widths, with_coordinates
from monai_labelfx.ops._resize import resize_linear

MODES = {2: "bilinear", 3: "trilinear"}


class Maps(nn.Module):
    """A backbone and neck in one: the image, averaged over strides, as every map."""

    def __init__(self, strides):
        super().__init__()
        self.strides = strides

    def forward(self, images):
        if isinstance(images, list):
            return images
        maps = []
        for stride in self.strides:
            x = images
            for axis, step in enumerate(stride, start=2):
                pads = -x.shape[axis] % step
                x = torch.cat([x, x.narrow(axis, x.shape[axis] - 1, 1).repeat_interleave(pads, axis)], axis)
                x = x.unflatten(axis, (-1, step)).mean(axis + 1)
            maps.append(x)
        return maps


def small(strides, cells, **options):
    axes = len(strides[0])
    settings = {
        "extra_levels": 0,
        "depth": 2,
        "head_channels": 8,
        "branch_channels": 6,
        "mask_channels": 5,
        "mask_stride": strides[0],
        "norm": "none",
        "prior": 0.01,
        "gate": False,
    }
    neck = Maps(strides)
    return SOLOv2Network(nn.Identity(), neck, axes, 3, 2, cells=cells, **{**settings, **options})


@pytest.fixture(params=[2, 3], ids=["2d", "3d"])
def dims(request):
    torch.manual_seed(0)
    return request.param


# --- shapes ----------------------------------------------------------------------------------------------------------
def test_grids_of_the_paper():
    cells = [(800 / n,) * 2 for n in (40, 36, 24, 16, 12)]
    network = small([(s, s) for s in (4, 8, 16, 32, 64)], cells, extra_levels=1)
    assert network.grids((800, 800)) == [(40, 40), (36, 36), (24, 24), (16, 16), (12, 12)]
    assert network.grids((800, 400)) == [(40, 20), (36, 18), (24, 12), (16, 8), (12, 6)], "other axes, other numbers"
    assert network.grids((1, 1)) == [(1, 1)] * 5


def test_cells_divide_what_the_finest_map_covers(dims):
    network = small([(4,) * dims, (8,) * dims], [(5.0,) * dims, (30.0,) * (dims - 1) + (9.0,)])
    size = (33,) * (dims - 1) + (18,)
    assert network.extent(size) == (36,) * (dims - 1) + (20,)
    assert network.grids(size) == [(8,) * (dims - 1) + (4,), (2,) * (dims - 1) + (3,)]
    assert network.mask_shape(size) == network.level_shapes(size)[0] == (9,) * (dims - 1) + (5,)


@pytest.mark.parametrize("gate", [False, True])
def test_parts(dims, gate):
    network = small([(4,) * dims, (8,) * dims], [(5.0,) * dims, (9.0,) * dims], gate=gate, mask_stride=(2,) * dims)
    images = torch.randn(2, 3, *(20, 27, 16)[:dims])
    raw = network(images)
    parts = network.part_shapes(tuple(images.shape[2:]))
    assert list(parts) == ["logits0", "logits1", "features0", "features1", "masks"]
    found = unpack(raw[..., : raw.shape[2] - gate], parts)
    assert found["logits1"].shape == (2, 2, *network.grids(images.shape[2:])[1])
    assert found["masks"].shape == (2, 5, *(-(-n // 2) for n in images.shape[2:]))
    if gate:
        coarsest = network.neck(images)[-1].flatten(2).mean(2)
        assert torch.allclose(raw[:, 0, -1:], network.gate(coarsest), atol=1e-6)


def test_class_scores_start_at_the_prior(dims):
    network = small([(4,) * dims], [(5.0,) * dims], prior=0.2)
    logits = unpack(network(torch.zeros(1, 3, *[8] * dims)), network.part_shapes([8] * dims))["logits0"]
    assert logits.sigmoid().mean().item() == pytest.approx(0.2, abs=0.01)


def test_only_the_kernel_tower_sees_coordinates(dims):
    """An even image gives the same class logits away from the border, but other kernel features."""
    network = small([(2,) * dims], [(2.0,) * dims])
    image = torch.ones(1, 3, *[24] * dims)
    parts = unpack(network(image), network.part_shapes([24] * dims))
    inner = (slice(None), slice(None), *[slice(4, 8)] * dims)
    assert (parts["logits0"][inner].flatten(2).std(dim=2) < 1e-6).all()
    assert parts["features0"][inner].flatten(2).std(dim=2).max() > 1e-4
    assert parts["masks"][inner].flatten(2).std(dim=2).max() > 1e-4


def test_the_mask_branch_by_hand(dims):
    """Three levels: none, one and two steps of convolution, ReLU and upsampling by two, summed."""
    strides = [(2,) * dims, (4,) * dims, (8,) * dims]
    network = small([*strides, (16,) * dims], [(4.0,) * dims] * 4, extra_levels=1)
    images = torch.randn(1, 3, *[32] * dims)
    maps = network.neck(images)
    total = 0
    for level in range(3):
        steps = 2.0 * strides[level][0] / 32
        lines = [(torch.arange(n) + 0.5) * steps - 1 for n in maps[level].shape[2:]]
        x = torch.cat([maps[level], torch.stack(torch.meshgrid(*lines, indexing="ij"))[None]], dim=1)
        for number in range(max(level, 1)):
            x = network.mask_branch[level][number][0](x).relu()
            if level:
                x = interpolate(x, scale_factor=2, mode=MODES[dims])
        total = total + x
    wanted = network.mask_features[0](total).relu()
    found = unpack(network(images), network.part_shapes([32] * dims))["masks"]
    assert torch.allclose(found, wanted, atol=1e-5)


def test_finer_masks(dims):
    """A branch of one level, upsampled by two and convolved once more."""
    network = small([(4,) * dims], [(4.0,) * dims], mask_stride=(2,) * dims)
    images = torch.randn(1, 3, *[16] * dims)
    lines = [(torch.arange(4) + 0.5) / 2 - 1] * dims
    place = torch.stack(torch.meshgrid(*lines, indexing="ij"))[None]
    x = network.mask_branch[0][0][0](torch.cat([network.neck(images)[0], place], dim=1)).relu()
    x = network.refine[0](interpolate(x, scale_factor=2, mode=MODES[dims])).relu()
    found = unpack(network(images), network.part_shapes([16] * dims))["masks"]
    assert torch.allclose(found, network.mask_features[0](x).relu(), atol=1e-5)


def test_cells_stay_in_place_where_a_map_reaches_beyond_the_image(dims):
    maps = torch.randn(1, 3, *[2] * dims)
    seen = [resize_linear(maps, [n] * dims, [0.25] * dims) for n in (8, 5)]
    assert torch.equal(seen[0][(..., *[slice(0, 5)] * dims)], seen[1])


# --- coordinates -----------------------------------------------------------------------------------------------------
def test_coordinates_agree_between_levels(dims):
    fine = with_coordinates(torch.zeros(2, 1, *[8] * dims), (4,) * dims, (32,) * dims)
    coarse = with_coordinates(torch.zeros(2, 1, *[2] * dims), (16,) * dims, (32,) * dims)
    assert fine.shape == (2, 1 + dims, *[8] * dims)
    for axis in range(dims):
        line = fine[0, 1 + axis].movedim(axis, 0).flatten(1)
        assert (line == line[:, :1]).all()
        assert line[:, 0].tolist() == [-0.875 + 0.25 * k for k in range(8)]
        blocks = fine[:, 1 + axis]
        for other in range(dims):
            blocks = blocks.unflatten(1 + other, (2, 4)).mean(2 + other)
        assert torch.allclose(blocks, coarse[:, 1 + axis])


def test_widths():
    assert list(solov2_widths(2, 256, None, None, None).values()) == [512, 128, 256], "the paper's"
    assert list(solov2_widths(3, 256, None, None, None).values()) == [256, 64, 128]
    assert list(solov2_widths(2, 32, None, None, 7).values()) == [64, 16, 7]
