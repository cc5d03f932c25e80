# SPDX-License-Identifier: Apache-2.0
"""The two small matrices per axis that take a signal to its coarsest wavelet coefficients and back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import pywt
import torch

ORTHOGONAL = "orthogonal"
MODES = (*pywt.Modes.modes, ORTHOGONAL)
MOVES_CONSTANTS = ("zero", "antisymmetric")  # what they put beyond the border makes an edge of any offset
_KEPT = 32  # matrix pairs: 48 KiB each for 512 voxels at level 6, some MiB at level 1


@lru_cache(maxsize=128)
def filter_length(wavelet: str) -> int:
    """Taps of the decomposition filter; ValueError for a name that is no discrete wavelet."""
    if wavelet not in pywt.wavelist(kind="discrete"):
        raise ValueError(f'wavelet must be a discrete wavelet of PyWavelets such as "db3" or "haar", got {wavelet!r}.')
    return int(pywt.Wavelet(wavelet).dec_len)


def check_mode(mode: str, *, pad: bool = False, keeps_offsets: bool = False) -> None:
    """ValueError for an unknown mode, one that has no padding, or one that does not keep H(constant) = 0 if it must."""
    if mode not in MODES:
        raise ValueError(f"mode must be one of {', '.join(MODES)}, got {mode!r}.")
    if pad and mode == ORTHOGONAL:
        raise ValueError(f'pad must be False with mode "{ORTHOGONAL}", which asks nothing of the border.')
    if keeps_offsets and mode in MOVES_CONSTANTS:
        raise ValueError(
            f'mode {mode!r} puts part of a constant into the high band, so CT numbers would move: use "symmetric", '
            '"orthogonal" or another mode.'
        )


def check_levels(level: int | Sequence[int], count: int | None) -> tuple[int, ...]:
    """One level for each of ``count`` split axes; ValueError for other numbers of them, fractions and only zeros."""
    levels = tuple(level) if isinstance(level, Iterable) else (level,) * (1 if count is None else count)
    right = len(levels) == (len(levels) if count is None else count)
    if not right or not all(isinstance(each, (int, np.integer)) and each >= 0 for each in levels):
        axes = "split axes" if count is None else f"{count} split axes"
        raise ValueError(f"level must be a whole number of 0 or more, or one for each of the {axes}, got {level!r}.")
    if not any(levels):
        raise ValueError("level must be 1 or more on at least one axis: with 0 on all of them no high band is left.")
    return tuple(int(each) for each in levels)


def check_depth(shape: Sequence[int], axes: Sequence[int], levels: Sequence[int], wavelet: str, name: str) -> None:
    """ValueError that names the axis, its size and the deepest level, where a level is deeper than that."""
    for axis, level in zip(axes, levels, strict=True):
        deepest = deepest_level(shape[axis], wavelet)
        if level > deepest:
            raise ValueError(
                f"level {level} is too deep for axis {axis} of {name}, which has size {shape[axis]}: the maximum for "
                f"{wavelet} is {deepest}; give one level per axis, 0 to leave an axis alone."
            )


def deepest_level(size: int, wavelet: str) -> int:
    """Decompositions of ``size`` voxels until one filter no longer fits in."""
    return int(pywt.dwt_max_level(size, filter_length(wavelet))) if size > 0 else 0


@lru_cache(maxsize=_KEPT)
def axis_matrices(
    size: int, wavelet: str, mode: str, level: int, pad: bool, dtype: torch.dtype, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor]:
    """Analysis (m, size) and synthesis (size, m) of one axis; the low band is synthesis @ analysis @ signal.

    Built in float64 from what PyWavelets does to unit signals, so that borders and odd lengths are right by
    construction. With ``pad`` the unit signals are extended first and the reconstruction is cut. ``"orthogonal"`` has
    an orthonormal basis U of the range of the synthesis in its place, and the transpose of U as analysis.
    """
    before, after = _padding(size, wavelet, level) if pad else (0, 0)
    units = np.pad(np.eye(size), ((0, 0), (before, after)), mode="symmetric")
    border = "symmetric" if mode == ORTHOGONAL else mode
    coarsest, *details = pywt.wavedec(units, wavelet, border, level)
    zeros = [np.zeros((coarsest.shape[1], detail.shape[1])) for detail in details]
    waves = pywt.waverec([np.eye(coarsest.shape[1]), *zeros], wavelet, border)[:, before : before + size]
    if mode == ORTHOGONAL:
        basis, sizes, _ = np.linalg.svd(waves.T, full_matrices=False)
        basis = basis[:, sizes > sizes[0] * max(waves.shape) * np.finfo(float).eps]
        coarsest, waves = basis, basis.T
    with torch.inference_mode(False):  # a tensor made in inference mode could never be used in training
        analysis, synthesis = (
            torch.from_numpy(np.ascontiguousarray(part.T)).to(dtype).to(device) for part in (coarsest, waves)
        )
    return analysis, synthesis


def _padding(size: int, wavelet: str, level: int) -> tuple[int, int]:
    """Voxels before and after: up to a multiple of 2^level, and the filter's length at that level."""
    total = -size % 2**level + filter_length(wavelet) * 2**level
    return total // 2, total - total // 2


def level_for_extent(extent: float, spacing: float, size: int, wavelet: str) -> int:
    """The level whose 2^level voxels come nearest to ``extent``, at most the deepest."""
    return max(0, min(round(math.log2(extent / spacing)), deepest_level(size, wavelet)))


def rounds_products(device: torch.device, kind: torch.dtype) -> bool:
    """Whether products of float32 may be made of rounded factors (TF32, bfloat16) on this device."""
    if kind != torch.float32 or device.type not in ("cpu", "cuda"):
        return False
    backend = torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn
    precision = getattr(getattr(backend, "matmul", None), "fp32_precision", None)  # torch 2.9 and later
    if precision is None:
        return torch.get_float32_matmul_precision() != "highest"
    return precision not in ("none", "ieee")
