# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.ndimage import convolve1d, maximum_filter

from monai_labelfx.networks import MaxBlurPool


def reference(image: np.ndarray, strides: tuple[int, ...]) -> np.ndarray:
    """Stride-one max over the window at each voxel, triangular blur, subsampling, with ample replicated borders."""
    margin = 8
    wide = np.pad(image.astype(np.float64), margin, mode="edge")
    # scipy's window of side s starts (s // 2) before its origin; shift it so that it starts at the voxel
    pooled = maximum_filter(wide, size=strides, origin=tuple(-(s // 2) for s in strides))
    for axis, s in enumerate(strides):
        pooled = convolve1d(pooled, np.convolve(np.ones(s), np.ones(s)) / s**2, axis=axis)
    inside = tuple(slice(margin, margin + n, s) for n, s in zip(image.shape, strides, strict=True))
    return pooled[inside]


@pytest.mark.parametrize(
    ("shape", "strides"),
    [((8,), (2,)), ((6, 4), (2, 2)), ((9, 8), (3, 4)), ((6, 4, 3), (2, 2, 1)), ((2, 4, 6), (2, 2, 2))],
)
def test_matches_scipy(shape, strides):
    image = torch.randn(2, 3, *shape, generator=torch.Generator().manual_seed(0))
    pooled = MaxBlurPool(len(shape), strides)(image)
    for b, c in np.ndindex(2, 3):
        np.testing.assert_allclose(pooled[b, c], reference(image[b, c].numpy(), strides), atol=1e-6)


@pytest.mark.parametrize(("bright", "expected"), [(7, [0, 0, 0, 3, 1, 0, 0, 0]), (8, [0, 0, 0, 1, 3, 0, 0, 0])])
def test_kernel_is_one_two_one_and_symmetric(bright, expected):
    """The max widens one voxel of 4 to two, and [1, 2, 1] / 4 weighs these by 2 + 1 and by 1."""
    image = torch.zeros(1, 1, 16)
    image[..., bright] = 4.0
    assert MaxBlurPool(1)(image).flatten().tolist() == expected


@pytest.mark.parametrize("strides", [(2, 2), (4, 2), (3, 3)])
def test_flip_of_the_image_flips_the_result(strides):
    image = torch.randn(1, 1, 12, 12, generator=torch.Generator().manual_seed(0))
    pool = MaxBlurPool(2, strides)
    torch.testing.assert_close(pool(image.flip(2, 3)).flip(2, 3), pool(image))


def test_constant_stays_constant_and_stride_one_is_identity():
    torch.testing.assert_close(MaxBlurPool(3)(torch.full((1, 2, 4, 4, 4), 0.7)), torch.full((1, 2, 2, 2, 2), 0.7))
    image = torch.randn(1, 2, 3, 5)
    assert torch.equal(MaxBlurPool(2, 1)(image), image)


def test_gradcheck():
    image = torch.rand(1, 1, 4, 4, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(MaxBlurPool(2), image)


@pytest.mark.parametrize("strides", [(2, 2), 0, (2, 2, 0)])
def test_bad_strides(strides):
    with pytest.raises(ValueError):
        MaxBlurPool(3, strides)
