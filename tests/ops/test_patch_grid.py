# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

module = importlib.import_module("monai_labelfx.ops.patch_grid")
patch_coverage, patch_grid, patch_sums = module.patch_coverage, module.patch_grid, module.patch_sums

SHAPES = {1: (13,), 2: (9, 7), 3: (6, 5, 7), 4: (3, 4, 2, 5)}


def naive_starts(extent: int, patch: int, stride: int) -> list[int]:
    starts, at = [], 0
    while at + patch <= extent:
        starts.append(at)
        at += stride
    if not starts:
        return [0]
    return starts if starts[-1] == extent - patch else [*starts, extent - patch]


def random_patches(shape: tuple[int, ...], number: int, seed: int = 0) -> torch.Tensor:
    """Patches that may be empty and may reach out of the image on any side."""
    rng = np.random.default_rng(seed)
    start = np.stack([rng.integers(-3, extent + 3, number) for extent in shape], 1)
    size = np.stack([rng.integers(0, extent + 2, number) for extent in shape], 1)
    return torch.from_numpy(np.concatenate([start, size], 1))


def inside(patch, shape) -> tuple[slice, ...]:
    ndim = len(shape)
    return tuple(
        slice(max(start, 0), max(min(start + size, extent), 0))
        for start, size, extent in zip(patch[:ndim], patch[ndim:], shape, strict=True)
    )


@settings(max_examples=60, deadline=None)
@given(axes=st.lists(st.tuples(st.integers(1, 20), st.integers(1, 12), st.integers(1, 14)), min_size=1, max_size=3))
def test_grid_is_the_naive_walk_along_each_axis(axes):
    size, patch, stride = zip(*axes, strict=True)
    found = patch_grid(size, patch, stride)
    assert found.dtype == torch.int64
    assert found.tolist() == [list(p) for p in itertools.product(*(naive_starts(*axis) for axis in axes))]


def test_grid_of_a_gland_image_and_of_an_image_smaller_than_the_patch():
    assert len(patch_grid((522, 775), 112, 56)) == 9 * 13
    assert patch_grid((100, 112), 112, 56).tolist() == [[0, 0]]
    assert patch_grid((10,), 4, 3).tolist() == [[0], [3], [6]]  # 10 - 4 is a multiple of the stride, 10 is not
    assert patch_grid((12,), 5, 4).tolist() == [[0], [4], [7]]  # 12 is a multiple of the stride, 12 - 5 is not


def test_every_voxel_of_the_grid_is_covered():
    for shape in SHAPES.values():
        starts = patch_grid(shape, 4, 3)
        patches = torch.cat([starts, torch.full_like(starts, 4)], 1)
        assert patch_coverage(patches, torch.ones(len(patches), 1, dtype=torch.int64), shape).min() >= 1


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int16, torch.uint8, torch.bool, torch.float16])
def test_sums_are_those_of_a_loop(rank, dtype):
    shape = SHAPES[rank]
    values = (torch.rand(3, *shape, generator=torch.Generator().manual_seed(1)) * 200).to(dtype)
    patches = random_patches(shape, 40)
    found = patch_sums(values, patches)
    kind = torch.float64 if dtype.is_floating_point else torch.int64
    expected = torch.stack([values[(slice(None), *inside(p, shape))].to(kind).flatten(1).sum(1) for p in patches])
    assert found.dtype == kind and found.shape == (40, 3)
    assert torch.allclose(found, expected, rtol=0, atol=1e-9) if dtype.is_floating_point else found.equal(expected)


@pytest.mark.parametrize("rank", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64, torch.int8, torch.bool])
def test_coverage_is_that_of_a_loop(rank, dtype):
    shape = SHAPES[rank]
    patches = random_patches(shape, 40, seed=2)
    values = (torch.randn(40, 3, generator=torch.Generator().manual_seed(3)) * 50).to(dtype)
    found = patch_coverage(patches, values, shape)
    kind = torch.float64 if dtype.is_floating_point else torch.int64
    expected = torch.zeros(3, *shape, dtype=kind)
    for patch, value in zip(patches, values.to(kind), strict=True):
        expected[(slice(None), *inside(patch, shape))] += value.view(3, *[1] * rank)
    assert found.dtype == kind and found.shape == expected.shape and found.is_contiguous()
    assert torch.allclose(found, expected, rtol=0, atol=1e-9) if dtype.is_floating_point else found.equal(expected)


@pytest.mark.parametrize("rank", [2, 3])
def test_coverage_is_the_transpose_of_sums(rank):
    shape = SHAPES[rank]
    patches = random_patches(shape, 15, seed=4)
    weights, image = torch.randn(15, 2, dtype=torch.float64), torch.randn(2, *shape, dtype=torch.float64)
    first = (patch_coverage(patches, weights, shape) * image).sum()
    second = (weights * patch_sums(image, patches)).sum()
    assert float(first) == pytest.approx(float(second), abs=1e-9)


def test_no_patches_and_no_channels():
    none = torch.zeros(0, 4, dtype=torch.int64)
    assert patch_sums(torch.ones(2, 4, 5), none).shape == (0, 2)
    assert patch_sums(torch.ones(0, 4, 5), torch.tensor([[0, 0, 2, 2]])).shape == (1, 0)
    assert patch_coverage(none, torch.zeros(0, 2), (4, 5)).equal(torch.zeros(2, 4, 5, dtype=torch.float64))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="size must hold one number of voxels above 0"):
        patch_grid((4, 0), 2, 1)
    with pytest.raises(ValueError, match="patch must be one whole number above 0, or 2, one per axis, got 0"):
        patch_grid((4, 4), 0, 1)
    with pytest.raises(ValueError, match=r"stride must be .* got \(1, 1, 1\)"):
        patch_grid((4, 4), 2, (1, 1, 1))
    with pytest.raises(ValueError, match=r"patches must be \(N, 4\) whole numbers.*float32"):
        patch_sums(torch.ones(1, 4, 4), torch.zeros(3, 4))
    with pytest.raises(ValueError, match=r"got torch.int64 of shape \(3, 6\)"):
        patch_sums(torch.ones(1, 4, 4), torch.zeros(3, 6, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"values must be \(N, K\), a row for each of 3 patches"):
        patch_coverage(torch.zeros(3, 4, dtype=torch.int64), torch.ones(2, 1), (4, 4))
