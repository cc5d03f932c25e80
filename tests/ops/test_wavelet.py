# SPDX-License-Identifier: Apache-2.0
"""The wavelet high-pass against PyWavelets itself, axis orders and memory layouts, and what is done to number types."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from monai_labelfx.ops._wavelet_matrices import axis_matrices
from monai_labelfx.ops.wavelet import (
    high_pass,
    high_pass_split,
    max_wavelet_level,
    physical_wavelet_level,
    project_correction,
)

SHAPES = {
    (512, 512): 6,
    (511, 509): 6,
    (513, 515): 6,
    (500, 333): 6,
    (128, 128): 4,
    (64, 128, 128): 3,
    (63, 127, 125): 3,
    (65, 129, 131): 3,
    (33, 100, 77): 2,
}


def hounsfield(*shape: int, seed: int = 0) -> np.ndarray:
    """Edges of up to 3000 HU and noise, float64."""
    draw = np.random.default_rng(seed)
    steps = sum(
        np.sign(np.sin(np.arange(n) / 9 + axis)).reshape(-1, *[1] * (len(shape) - axis - 1))
        for axis, n in enumerate(shape)
    )
    return 1500 * steps / len(shape) + draw.normal(scale=50, size=shape)


def by_pywavelets(
    x: np.ndarray, level: int, mode: str, wavelet: str = "db3", axes=None
) -> tuple[np.ndarray, np.ndarray]:
    """High and low band by multi-level transforms in all directions, cut where odd sizes came back longer."""
    axes = tuple(range(x.ndim)) if axes is None else axes
    coarsest, *details = pywt.wavedecn(x, wavelet, mode, level, axes=axes)
    nothing = [{key: np.zeros_like(value) for key, value in each.items()} for each in details]
    cut = tuple(map(slice, x.shape))
    high = pywt.waverecn([np.zeros_like(coarsest), *details], wavelet, mode, axes=axes)[cut]
    return high, pywt.waverecn([coarsest, *nothing], wavelet, mode, axes=axes)[cut]


@pytest.mark.parametrize("mode", ["symmetric", "periodization", "reflect", "zero"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_the_bands_are_those_of_pywavelets(shape, mode):
    x = hounsfield(*shape)
    wanted = by_pywavelets(x, SHAPES[shape], mode)
    image = torch.from_numpy(x)[None, None]
    for kind, most in ((torch.float64, 1e-11), (torch.float32, 2e-3)):
        found = high_pass_split(image.to(kind), level=SHAPES[shape], mode=mode)
        for band, reference in zip(found, wanted, strict=True):
            assert band.dtype == kind and band.shape == image.shape
            assert np.abs(band[0, 0].numpy() - reference).max() <= most
        again = high_pass(image.to(kind), level=SHAPES[shape], mode=mode)
        assert np.abs(again[0, 0].numpy() - wanted[0]).max() <= most


@pytest.mark.parametrize("mode", pywt.Modes.modes)
@pytest.mark.parametrize("wavelet", ["haar", "db2", "db7", "sym4", "coif1", "bior2.4", "bior3.1", "rbio1.3", "dmey"])
def test_every_wavelet_and_mode(wavelet, mode):
    x = hounsfield(141, 150)
    level = min(max_wavelet_level(x.shape, wavelet))
    _, wanted = by_pywavelets(x, level, mode, wavelet)
    high, low = high_pass_split(torch.from_numpy(x), wavelet=wavelet, level=level, mode=mode, axes=(0, 1))
    # extrapolating modes make coefficients far above those of the image, whose last digit counts
    most = 1e-11 * max(1, np.abs(pywt.wavedecn(x, wavelet, mode, level)[0]).max() / 1e5)
    assert np.abs(low.numpy() - wanted).max() <= most
    # not the details alone: the filters of sym4 and dmey do not reconstruct to the last digit
    assert np.abs(high.numpy() - (x - wanted)).max() <= most


@pytest.mark.parametrize(("level", "sides"), [(6, ((192, 193), (198, 198))), (5, ((96, 97), (102, 102)))])
def test_the_padded_form_of_the_published_code(level, sides):
    x = hounsfield(511, 500)
    inside = tuple(slice(before, before + n) for (before, _), n in zip(sides, x.shape, strict=True))
    high, low = (band[inside] for band in by_pywavelets(np.pad(x, sides, mode="symmetric"), level, "symmetric"))
    found = high_pass_split(torch.from_numpy(x)[None, None], level=level, pad=True)
    assert np.abs(found[0][0, 0].numpy() - high).max() <= 1e-11
    assert np.abs(found[1][0, 0].numpy() - low).max() <= 1e-11
    bare = high_pass(torch.from_numpy(x)[None, None], level=level)[0, 0].numpy()
    assert np.abs(bare - high).max() > 50, "padding must be named: the two are different transforms"


def test_the_deepest_level_is_that_of_the_image_before_padding():
    x = hounsfield(40, 30)
    with pytest.raises(ValueError, match="too deep for axis 1"):
        high_pass(torch.from_numpy(x), level=3, pad=True, axes=(0, 1))
    found = high_pass(torch.from_numpy(x), level=2, pad=True, axes=(0, 1)).numpy()
    padded = np.pad(x, ((12, 12), (13, 13)), mode="symmetric")  # to 64 = 40 + 6 * 4 and 56 = 32 + 6 * 4
    wanted = by_pywavelets(padded, 2, "symmetric")[0][12:-12, 13:-13]
    assert np.abs(found - wanted).max() <= 1e-11


@settings(max_examples=40, deadline=None)
@given(st.data(), st.lists(st.integers(1, 40), min_size=1, max_size=3))
def test_levels_per_axis_are_one_axis_after_the_other(data, shape):
    deepest = max_wavelet_level(shape, "db2")
    levels = [data.draw(st.integers(0, most)) for most in deepest]
    if not any(levels):
        return
    x = hounsfield(*shape)
    low = x
    for axis, level in enumerate(levels):
        low = by_pywavelets(low, level, "symmetric", "db2", (axis,))[1] if level else low
    axes = range(len(shape))
    found = high_pass_split(torch.from_numpy(x), wavelet="db2", level=levels, axes=axes)
    assert np.abs(found[1].numpy() - low).max() <= 1e-11 and np.abs(found[0].numpy() - (x - low)).max() <= 1e-11
    fused = high_pass(torch.from_numpy(x), wavelet="db2", level=np.array(levels), axes=axes)
    assert np.abs(fused.numpy() - (x - low)).max() <= 1e-11


def test_all_other_axes_are_batch():
    x = torch.from_numpy(hounsfield(2, 3, 40, 5, 37))
    found = high_pass_split(x, level=(3, 2), axes=(2, -1))
    for i, j, k in np.ndindex(2, 3, 5):
        one = high_pass_split(x[i, j, :, k][None, None], level=(3, 2))
        for band, wanted in zip(found, one, strict=True):
            assert torch.allclose(band[i, j, :, k], wanted[0, 0], rtol=0, atol=1e-11)
    swapped = high_pass(x, level=(2, 3), axes=(-1, 2))
    assert torch.allclose(swapped, found[0], rtol=0, atol=1e-11)


def test_a_volume_of_depth_one_is_a_picture():
    x = torch.from_numpy(hounsfield(2, 1, 50, 60))
    volume = high_pass(x[..., None], level=(3, 3, 0))
    assert torch.allclose(volume[..., 0], high_pass(x, level=3), rtol=0, atol=1e-11)


@pytest.mark.parametrize("order", [(0, 1, 4, 3, 2), (4, 3, 2, 1, 0), (0, 2, 3, 4, 1), (3, 0, 2, 1, 4)])
def test_memory_layout_is_kept_and_changes_nothing(order):
    x = torch.from_numpy(hounsfield(2, 3, 20, 24, 28))
    wanted = high_pass_split(x, level=(1, 2, 2))
    laid = x.permute(order).contiguous().permute(np.argsort(order).tolist())
    found = high_pass_split(laid, level=(1, 2, 2))
    for band, reference in zip((*found, high_pass(laid, level=(1, 2, 2))), (*wanted, wanted[0]), strict=True):
        assert band.stride() == laid.stride()
        assert torch.allclose(band, reference, rtol=0, atol=1e-11)


def test_views_and_empty_batches():
    x = torch.from_numpy(hounsfield(4, 2, 64, 90))
    wanted = high_pass(x[1:, 1:, ::2, 3:-3].clone(), level=2)
    assert torch.allclose(high_pass(x[1:, 1:, ::2, 3:-3], level=2), wanted, rtol=0, atol=1e-11)
    assert torch.allclose(high_pass(x[:1].expand(5, -1, -1, -1), level=2)[4], high_pass(x[:1], level=2)[0], atol=1e-11)
    high, low = high_pass_split(torch.zeros(0, 1, 64, 64), level=2)
    assert high.shape == low.shape == high_pass(torch.zeros(0, 1, 64, 64), level=2).shape == (0, 1, 64, 64)


def test_one_image_and_a_batch_agree():
    x = torch.from_numpy(hounsfield(8, 1, 128, 128)).float()
    batch, (high, low) = high_pass(x, level=4), high_pass_split(x, level=4)
    for number in range(8):
        assert torch.allclose(batch[number], high_pass(x[number : number + 1], level=4)[0], rtol=0, atol=1e-3)
    assert torch.allclose(high, batch, rtol=0, atol=1e-3)
    assert float((low + high - x).abs().max()) <= 2.5e-4  # one rounding of 2000


def test_the_fused_high_band_needs_no_second_image():
    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            inputs = {t.untyped_storage().data_ptr() for t in tree_leaves(args) if isinstance(t, torch.Tensor)}
            new = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
            sizes.extend(t.numel() for t in new if t.untyped_storage().data_ptr() not in inputs)
            return result

    for shape, level in (((2, 1, 256, 256), 4), ((1, 1, 64, 64, 64), 3), ((1, 1, 64, 64, 5), (3, 3, 0))):
        for function, most in ((high_pass, 1), (high_pass_split, 2)):
            sizes: list[int] = []
            x = torch.zeros(shape)
            with Sizes():
                function(x, level=level)
            assert sizes.count(x.numel()) == most and sorted(sizes)[-most - 1] <= x.numel() / 4, (shape, function)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16, torch.int16, torch.uint8, torch.int64])
def test_small_types_are_split_in_float32(kind):
    x = torch.from_numpy(hounsfield(1, 1, 64, 64) / 16 + 120).to(kind)
    found = (*high_pass_split(x, level=3), high_pass(x, level=3))
    wanted = (*high_pass_split(x.float(), level=3), high_pass(x.float(), level=3))
    for band, reference in zip(found, wanted, strict=True):
        assert band.dtype == torch.float32 and torch.equal(band, reference)


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_autocast_changes_nothing(kind):
    x = torch.from_numpy(hounsfield(1, 1, 128, 128)).float()
    wanted = (*high_pass_split(x, level=4), high_pass(x, level=4), project_correction(x, level=4))
    with torch.autocast("cpu", dtype=kind):
        found = (*high_pass_split(x, level=4), high_pass(x, level=4), project_correction(x, level=4))
    assert all(band.dtype == torch.float32 for band in found)
    assert all(torch.equal(band, reference) for band, reference in zip(found, wanted, strict=True))


def test_products_that_may_be_rounded_are_made_in_float64():
    x = torch.from_numpy(hounsfield(1, 1, 256, 256)).float()
    exact = high_pass(x.double(), level=5)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        found, (high, low) = high_pass(x, level=5), high_pass_split(x, level=5)
    finally:
        torch.set_float32_matmul_precision(before)
    assert found.dtype == high.dtype == low.dtype == torch.float32
    assert torch.equal(found, exact.float())
    assert float((high - exact).abs().max()) <= 2.5e-4 and float((high + low - x).abs().max()) <= 2.5e-4


@pytest.mark.parametrize("mode", ["symmetric", "periodization", "orthogonal"])
@pytest.mark.parametrize(("shape", "level", "axes"), [((2, 1, 9, 7), 1, None), ((6, 2, 7), (1, 0, 1), (0, 1, 2))])
def test_gradients(shape, level, axes, mode):
    x = torch.randn(shape, dtype=torch.float64, requires_grad=True)

    def both(image):
        return high_pass_split(image, wavelet="db2", level=level, mode=mode, axes=axes)

    def fused(image):
        return high_pass(image, wavelet="db2", level=level, mode=mode, axes=axes)

    assert torch.autograd.gradcheck(both, x) and torch.autograd.gradcheck(fused, x)
    assert torch.autograd.gradgradcheck(fused, x)


def test_inference_mode_leaves_nothing_behind_that_training_cannot_use():
    axis_matrices.cache_clear()
    with torch.inference_mode():
        high_pass(torch.zeros(1, 1, 32, 32), level=2)
    x = torch.randn(1, 1, 32, 32, requires_grad=True)
    high_pass(x, level=2).square().sum().backward()
    assert x.grad is not None and axis_matrices.cache_info().misses == 1


def test_deepest_levels_are_those_of_pywavelets():
    for wavelet in ("haar", "db3", "sym8", "bior2.4"):
        for size in (1, 2, 5, 16, 63, 64, 65, 512):
            assert max_wavelet_level(size, wavelet) == pywt.dwt_max_level(size, pywt.Wavelet(wavelet))
    assert max_wavelet_level((64, 128, 192, 256, 320)) == (3, 4, 5, 5, 6) and max_wavelet_level(0) == 0


def test_levels_of_a_length_in_millimetres():
    assert physical_wavelet_level(64.0, (1.0, 1.0), (512, 512)) == (6, 6)
    assert physical_wavelet_level(64.0, (1.0, 5.0), (300, 512)) == (5, 4)
    assert physical_wavelet_level(1.0, (3.0,), (512,)) == (0,)
    assert physical_wavelet_level(64.0, (1.0,), (512,), "haar") == (6,)


@pytest.mark.parametrize("bad", [(0.0, (1.0,), (9,)), (1.0, (-1.0,), (9,)), (1.0, (1.0, 1.0), (9,))])
def test_lengths_must_be_positive_and_one_per_axis(bad):
    with pytest.raises(ValueError, match="extent and spacing must be positive, with one spacing per axis"):
        physical_wavelet_level(*bad)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"wavelet": "db99"}, "wavelet must be a discrete wavelet of PyWavelets .* got 'db99'"),
        ({"wavelet": "morl"}, "got 'morl'"),
        ({"mode": "mirror"}, "mode must be one of zero, .*, orthogonal, got 'mirror'"),
        ({"level": 4}, r"level 4 is too deep for axis 3 of x of shape \(1, 1, 99, 60\), .* size 60: .* db3 is 3"),
        ({"level": (0, 4)}, "too deep for axis 3"),
        ({"level": -1}, "whole number of 0 or more, or one for each of the 2 split axes, got -1"),
        ({"level": 1.5}, "got 1.5"),
        ({"level": (1, 1, 1)}, r"each of the 2 split axes, got \(1, 1, 1\)"),
        ({"level": (1, 0.5)}, r"got \(1, 0.5\)"),
        ({"level": 0}, "no high band is left"),
        ({"axes": (2, 2), "level": 2}, r"axes must be different axes of x, one at least, got \(2, 2\)"),
        ({"axes": (2, -2), "level": 2}, "must be different"),
        ({"axes": (4,), "level": 2}, r"got \(4,\) for shape \(1, 1, 99, 60\)"),
        ({"axes": (-5,), "level": 2}, "got"),
        ({"axes": (), "level": 2}, r"got \(\)"),
        ({"pad": True, "mode": "orthogonal", "level": 2}, "pad must be False"),
    ],
)
def test_bad_input(keywords, message):
    for function in (high_pass, high_pass_split):
        with pytest.raises(ValueError, match=message):
            function(torch.zeros(1, 1, 99, 60), **keywords)


def test_a_vector_has_no_axis_from_the_third_on():
    with pytest.raises(ValueError, match=r"all from the third on for shape \(99, 60\)"):
        high_pass(torch.zeros(99, 60), level=2)
