# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch
from torch.nn.functional import interpolate

from monai_labelfx.ops._fold_resize import fold_resize, resize_columns, resize_rows, row_samples

CASES = [((7,), (11,)), ((9, 6), (5, 13)), ((5, 4, 6), (8, 3, 6)), ((1, 5), (4, 1))]
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def whole(maps: torch.Tensor, size: tuple[int, ...]) -> torch.Tensor:
    return interpolate(maps, size=size, mode=MODES[len(size)], align_corners=False)


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)


@pytest.mark.parametrize(("old", "new"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_folded_channels_give_the_numbers_of_interpolate(old, new, dtype):
    maps = draw(2, 3, *old, dtype=dtype)
    for given in (maps, maps.transpose(0, 1).contiguous().transpose(0, 1)):  # any strides
        resized = fold_resize(given, new)
        assert resized.shape == (2, 3, *new) and resized.dtype == dtype
        assert torch.allclose(resized, whole(maps, new), atol=1e-6 if dtype == torch.float32 else 1e-14)


def test_maps_of_the_size_are_not_copied_and_empty_ones_are_no_error():
    maps = draw(1, 2, 4, 5)
    assert (
        fold_resize(maps, (4, 5)) is maps
        and resize_columns(maps[:, :, 1:3], (5,)).data_ptr() == maps[0, 0, 1].data_ptr()
    )
    assert fold_resize(maps[:, :0], (8, 9)).shape == (1, 0, 8, 9)


@pytest.mark.parametrize(("old", "new"), CASES)
def test_rows_then_columns_equal_the_whole(old, new):
    maps = draw(2, 3, *old)
    expected = whole(maps, new)
    assert torch.allclose(resize_columns(resize_rows(maps, new[0]), new[1:]), expected, atol=1e-12)
    for first in range(new[0]):
        for last in range(first + 1, new[0] + 1):
            part = resize_columns(resize_rows(maps, new[0], first, last), new[1:])
            assert torch.allclose(part, expected[:, :, first:last], atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_rows_of_half_precision(dtype):
    maps = draw(1, 2, 6, 5).to(dtype)
    resized = resize_rows(maps, 9)
    assert resized.dtype == dtype
    assert torch.allclose(resized.double(), whole(maps.double(), (9, 5)), atol=1e-2)


@pytest.mark.parametrize(("old", "new"), [(5, 5), (5, 12), (12, 5), (1, 7), (7, 1)])
def test_samples_are_rows_of_the_image_in_order(old, new):
    below, above, share = row_samples(old, new, 0, new)
    assert 0 <= int(below.min()) and int(above.max()) < old
    assert (below.diff() >= 0).all() and (above.diff() >= 0).all()
    assert torch.equal(above - below, (share > 0).long()) and (share < 1).all()
    if old == new:
        assert torch.equal(below, torch.arange(old)) and not share.any()


def test_gradients_reach_the_maps():
    maps = draw(1, 2, 4, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: resize_columns(resize_rows(x, 6, 1, 5), (5,)), maps)
