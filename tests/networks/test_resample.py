# SPDX-License-Identifier: Apache-2.0
"""Pooling to bins and linear interpolation by matrices: PyTorch's own operators, gradients, precision."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.networks._resample import average_bins, resize_linear

POOL = {1: F.adaptive_avg_pool1d, 2: F.adaptive_avg_pool2d, 3: F.adaptive_avg_pool3d}
MODE = {1: "linear", 2: "bilinear", 3: "trilinear"}
SIZES = [(1,), (7,), (28,), (5, 12), (1, 6), (4, 1, 9), (7, 6, 5)]
OUT = [(1, 1, 1), (2, 3, 6), (17, 7, 40)]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("out", OUT)
def test_pytorch_s_operators_give_the_same(size, out):
    axes, out = len(size), list(out[: len(size)])
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(average_bins(x, out), POOL[axes](x, out), rtol=1e-12, atol=1e-12)
    expected = F.interpolate(x, size=out, mode=MODE[axes], align_corners=False)
    torch.testing.assert_close(resize_linear(x, out), expected, rtol=1e-12, atol=1e-12)


def test_gradients_are_pytorch_s():
    x = torch.randn(2, 3, 7, 5, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(2, 3, 6, 11, dtype=torch.float64)
    for ours, theirs in [
        (average_bins(x, [6, 11]), F.adaptive_avg_pool2d(x, (6, 11))),
        (resize_linear(x, [6, 11]), F.interpolate(x, size=(6, 11), mode="bilinear")),
    ]:
        found, expected = (torch.autograd.grad((y * weight).sum(), x)[0] for y in (ours, theirs))
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_constant_stays_one_and_the_type_stays():
    for dtype in (torch.float32, torch.bfloat16, torch.float64):
        x = torch.full((1, 2, 37, 3), 0.75, dtype=dtype)
        tolerance = {"rtol": 1e-2 if dtype == torch.bfloat16 else 1e-6, "atol": 0}
        for y in (average_bins(x, [6, 2]), resize_linear(x, [50, 40])):
            assert y.dtype == dtype
            torch.testing.assert_close(y, torch.full_like(y, 0.75), **tolerance)


def test_long_axes_are_exact_in_single_precision():
    x = torch.arange(500, dtype=torch.float32).view(1, 1, 500)
    expected = ((torch.arange(4000, dtype=torch.float64) + 0.5) / 8 - 0.5).clamp(0, 499)
    torch.testing.assert_close(resize_linear(x, [4000])[0, 0].double(), expected, rtol=1e-6, atol=1e-6)
