# SPDX-License-Identifier: Apache-2.0
"""What the matrices of the wavelet split do to constants, ramps, offsets and themselves, and how they are kept."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch

from monai_labelfx.ops._wavelet_matrices import (
    MODES,
    MOVES_CONSTANTS,
    ORTHOGONAL,
    axis_matrices,
    check_mode,
    filter_length,
)
from monai_labelfx.ops.wavelet import high_pass, high_pass_split, project_correction

KEEPS_CONSTANTS = [mode for mode in MODES if mode not in MOVES_CONSTANTS]
CPU = torch.device("cpu")


def phantom(*shape: int) -> torch.Tensor:
    """Air, tissue and two bones, (1, 1, *shape) float64."""
    grid = torch.meshgrid(*(torch.linspace(-1, 1, n, dtype=torch.float64) for n in shape), indexing="ij")
    radius = sum(axis.square() for axis in grid).sqrt()
    image = torch.where(radius < 0.8, 40.0, -1000.0).double()
    for at in (-0.3, 0.4):
        image[sum((axis - at).square() for axis in grid) < 0.02] = 1200.0
    return image[None, None]


def rms(x: torch.Tensor) -> float:
    return float(x.square().mean().sqrt())


def test_the_form_is_small():
    for size, level, pad, small in ((512, 6, False, 12), (512, 6, True, 18), (512, 5, True, 26), (64, 3, False, 12)):
        analysis, synthesis = axis_matrices(size, "db3", "symmetric", level, pad, torch.float64, CPU)
        assert analysis.shape == (small, size) and synthesis.shape == (size, small)
        assert analysis.is_contiguous() and synthesis.is_contiguous()


def test_matrices_are_kept_by_all_that_they_depend_on():
    first = axis_matrices(64, "db3", "symmetric", 3, False, torch.float32, CPU)
    assert axis_matrices(64, "db3", "symmetric", 3, False, torch.float32, CPU)[0] is first[0]
    others = [
        (65, "db3", "symmetric", 3, False, torch.float32, CPU),
        (64, "sym3", "reflect", 3, False, torch.float32, CPU),
        (64, "db3", "reflect", 3, False, torch.float32, CPU),
        (64, "db3", "symmetric", 2, False, torch.float32, CPU),
        (64, "db3", "symmetric", 3, True, torch.float32, CPU),
        (64, "db3", "symmetric", 3, False, torch.float64, CPU),
    ]
    for key in others:
        other = axis_matrices(*key)[0]
        assert other.dtype != first[0].dtype or other.shape != first[0].shape or not torch.equal(other, first[0])
    most = axis_matrices.cache_info().maxsize
    assert most is not None and most <= 64
    for size in range(70, 71 + most):
        axis_matrices(size, "haar", "symmetric", 1, False, torch.float32, CPU)
    assert axis_matrices.cache_info().currsize == most


@pytest.mark.parametrize("pad", [False, True])
@pytest.mark.parametrize("mode", KEEPS_CONSTANTS)
def test_offsets_have_no_high_band(mode, pad):
    if pad and mode == ORTHOGONAL:
        return
    x = phantom(256, 250)
    wanted = high_pass(x, level=5, mode=mode, pad=pad)
    assert float(high_pass(torch.full_like(x, 1000.0), level=5, mode=mode, pad=pad).abs().max()) < 1e-11
    assert float((high_pass(x + 1000, level=5, mode=mode, pad=pad) - wanted).abs().max()) < 1e-10
    single = high_pass((x + 1000).float(), level=5, mode=mode, pad=pad)
    assert float((single - wanted).abs().max()) < 5e-3


@pytest.mark.parametrize("mode", MOVES_CONSTANTS)
def test_two_modes_make_an_edge_of_an_offset(mode):
    assert float(high_pass(torch.full((1, 1, 128, 128), 1000.0), level=4, mode=mode).abs().max()) > 300
    check_mode(mode)
    with pytest.raises(ValueError, match=f"mode '{mode}' puts part of a constant into the high band"):
        project_correction(torch.zeros(1, 1, 128, 128), level=4, mode=mode)


@pytest.mark.parametrize("shape", [(128, 128), (127, 90), (64, 32, 48)])
def test_orthogonal_is_a_projection_without_mean_that_keeps_ramps(shape):
    x, level = phantom(*shape), {2: 4, 3: 2}[len(shape)]
    high = project_correction(x, level=level)
    assert torch.equal(high, high_pass(x, level=level, mode=ORTHOGONAL))
    assert rms(high) > 10 and rms(high - high_pass(x, level=level)) > 1, "neither nothing nor the symmetric one"
    assert rms(project_correction(high, level=level) - high) < 1e-10
    assert abs(float(high.mean())) < 1e-10
    other = torch.randn_like(x)
    assert float((high * other).sum()) == pytest.approx(float((x * project_correction(other, level=level)).sum()))
    low = high_pass_split(x, level=level, mode=ORTHOGONAL)[1]
    assert abs(float((low * high).mean())) < 1e-8, "the nearest low band is at a right angle to the rest"
    ramp = sum(
        torch.arange(n, dtype=torch.float64).reshape(-1, *[1] * (len(shape) - axis - 1)) for axis, n in enumerate(shape)
    )
    assert float(project_correction(ramp[None, None], level=level).abs().max()) < 1e-9


def test_adding_a_projected_correction_leaves_the_low_band():
    x, correction = phantom(100, 120), 50 * torch.randn(1, 1, 100, 120, dtype=torch.float64) + 19
    moved = x + project_correction(correction, level=4)
    before, after = (high_pass_split(each, level=4, mode=ORTHOGONAL)[1] for each in (x, moved))
    assert float((before - after).abs().max()) < 1e-10 and rms(moved - x) > 10
    assert abs(float((moved - x).mean())) < 1e-10


@pytest.mark.parametrize("wavelet", ["haar", "sym8", "bior2.2", "coif3"])
def test_orthogonal_of_other_wavelets(wavelet):
    x = phantom(160, 150)
    high = project_correction(x, wavelet=wavelet, level=3)
    assert rms(project_correction(high, wavelet=wavelet, level=3) - high) < 1e-9 and abs(float(high.mean())) < 1e-9


def test_which_splits_can_be_repeated():
    x = phantom(512, 512)
    drift = {}
    for mode in ("symmetric", "reflect", "periodization", ORTHOGONAL):
        high = high_pass(x, mode=mode)
        drift[mode] = rms(high_pass(high, mode=mode) - high)
    assert drift[ORTHOGONAL] < 1e-10 and drift["periodization"] < 1e-10
    assert drift["symmetric"] > 1 and drift["reflect"] > 1
    assert abs(float(high_pass(x, mode="periodization").mean())) < 1e-10
    odd = high_pass(x[..., :500, :511], mode="periodization")
    assert rms(high_pass(odd, mode="periodization") - odd) > 1e-2, "on sizes that 64 does not divide it is none"


def test_the_bands_of_a_crop_are_not_the_crop_of_the_bands():
    """So the split is done on whole slices, and only the network is tiled."""
    x = phantom(256, 256)
    whole = high_pass(x, level=5)
    tiles = torch.cat([high_pass(half, level=5) for half in x.split(160, dim=-1)[:1]], -1)
    assert rms(tiles - whole[..., :160]) > 10


def test_filter_lengths():
    assert [filter_length(name) for name in ("haar", "db1", "db3", "sym8", "bior2.2")] == [2, 2, 6, 16, 6]
    assert all(filter_length(name) == pywt.Wavelet(name).dec_len for name in pywt.wavelist(kind="discrete"))


def test_synthesis_of_padding_is_cut_where_the_image_was():
    """A wave of the padded axis lies where it would without matrices."""
    analysis, synthesis = axis_matrices(50, "db3", "symmetric", 2, True, torch.float64, CPU)
    signal = np.random.default_rng(0).normal(size=50)
    before, after = 13, 13  # 50 -> 52 -> 76
    coarsest, *details = pywt.wavedec(np.pad(signal, (before, after), mode="symmetric"), "db3", "symmetric", 2)
    assert np.allclose(analysis.numpy() @ signal, coarsest, rtol=0, atol=1e-12)
    low = pywt.waverec([coarsest, *map(np.zeros_like, details)], "db3", "symmetric")[before : before + 50]
    assert np.allclose(synthesis.numpy() @ coarsest, low, rtol=0, atol=1e-12)
