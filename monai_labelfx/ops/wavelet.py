# SPDX-License-Identifier: Apache-2.0
"""An image as a smooth band and the rest: the wavelet high-pass as small matrices, one pair per axis."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple, overload

import torch

from monai_labelfx.ops._wavelet_matrices import (
    axis_matrices,
    check_depth,
    check_levels,
    check_mode,
    deepest_level,
    filter_length,
    level_for_extent,
    rounds_products,
)

__all__ = ["high_pass", "high_pass_split", "max_wavelet_level", "physical_wavelet_level", "project_correction"]


def high_pass_split(
    x: torch.Tensor,
    *,
    wavelet: str = "db3",
    level: int | Sequence[int] = 6,
    mode: str = "symmetric",
    axes: Sequence[int] | None = None,
    pad: bool = False,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Split ``x`` into a high band and a low band, low + high = x, as Jung et al. (2022) do before denoising.

    The high band H(x) is what a multi-level wavelet reconstruction gives when its coarsest approximation is set to
    zero. The path to that approximation uses low-pass filters only, so it is separable and its reconstruction is ::

        low = (S_1 A_1 (x) S_2 A_2 (x) ...) x        high = x - low

    with an analysis A (m, n) and a synthesis S (n, m) for an axis of n voxels, where m is about n / 2^level plus the
    filter's length (12 for 512 voxels, db3, level 6): two products with thin matrices for each axis, no filter bank.
    A and S are PyWavelets' answers to unit signals; the last pairs used are kept.

    Split whole slices or volumes, never tiles or crops: the widest wave of db3 at level 6 spans 316 voxels, so the
    bands of a crop are not the crop of the bands (they differ by hundreds of HU near its borders).

    Args:
        x: of any shape. In HU, 1024 more on every voxel then changes nothing in the high band (but see ``mode``).
        wavelet: name of any discrete wavelet of PyWavelets. Default ``"db3"`` (the paper).
        level: of the decomposition; the low band keeps structures larger than some 2^level voxels. One number, or one
            for each split axis, 0 for an axis that is left alone. Default 6 (the paper, for 512 x 512).
        mode: what lies beyond the border: a mode of PyWavelets, or ``"orthogonal"``. Default ``"symmetric"`` (the
            paper's code). ``"zero"`` and ``"antisymmetric"`` put part of a constant into the high band, all others
            none. ``"orthogonal"`` asks nothing of the border: the low band is the nearest image (least squares) that
            any coarsest coefficients can give. Then, and with ``"periodization"`` on sizes that 2^level divides, the
            high band of a high band is itself; in all other cases it is not (13 HU rms on an image full of edges).
        axes: which to split; all others are batch. Default ``None``: all from the third on.
        pad: extend each split axis symmetrically to a multiple of 2^level plus the filter's length times 2^level
            first, and cut afterwards, as the published code does. Default ``False``.

    Returns:
        High and low band, of the shape of ``x`` and on its device; float64 for float64, else float32, also under
        autocast, for integers and for half precision, whose 11 or 8 bits would move CT numbers.

    Raises:
        ValueError: for an unknown wavelet or mode, axes that do not exist, no level above 0, ``pad`` with
            ``"orthogonal"``, and a level deeper than PyWavelets' ``dwt_max_level`` for the size of an axis.

    Notes:
        ``"orthogonal"`` is none of PyWavelets' transforms and differs from them by tens of HU on a head slice, since
        its borders reach far in. Its high bands have no mean. In float32, values of some 1000 HU leave errors of up to
        2e-3 HU; give float64 where that matters. Where float32 products may be rounded (TF32, bfloat16) they are made
        in float64.

    Example:
        >>> x = 1000.0 + torch.arange(16.0, dtype=torch.float64).reshape(1, 1, 4, 4)
        >>> high, low = high_pass_split(x, wavelet="haar", level=1)
        >>> low[0, 0, 0].round(decimals=3).tolist()  # means of blocks of 2 x 2
        [1002.5, 1002.5, 1004.5, 1004.5]
        >>> high[0, 0, 0].round(decimals=3).tolist()  # and what is left
        [-2.5, -1.5, -2.5, -1.5]
        >>> high, low = high_pass_split(x, wavelet="haar", level=(0, 2))
        >>> low[0, 0, :, 0].round(decimals=3).tolist()
        [1001.5, 1005.5, 1009.5, 1013.5]
    """
    plan = _plan(x, wavelet, level, mode, axes, pad)
    with torch.autocast(x.device.type, enabled=False):
        axis, synthesis = plan.last
        low = _product(synthesis, _coarse(plan), axis).to(plan.kind)
        high = plan.values.to(plan.kind) - low
    return high.permute(plan.back), low.permute(plan.back)


def high_pass(
    x: torch.Tensor,
    *,
    wavelet: str = "db3",
    level: int | Sequence[int] = 6,
    mode: str = "symmetric",
    axes: Sequence[int] | None = None,
    pad: bool = False,
) -> torch.Tensor:
    """The high band of :func:`high_pass_split` alone, which documents it, without memory for the low band.

    Example:
        >>> high_pass(torch.tensor([[[1.0, 3.0, 5.0, 5.0]]]), wavelet="haar", level=1).round(decimals=3).tolist()
        [[[-1.0, 1.0, 0.0, 0.0]]]
    """
    plan = _plan(x, wavelet, level, mode, axes, pad)
    with torch.autocast(x.device.type, enabled=False):
        axis, synthesis = plan.last
        high = _remainder(plan.values, synthesis, _coarse(plan), axis).to(plan.kind)
    return high.permute(plan.back)


def project_correction(
    correction: torch.Tensor,
    *,
    wavelet: str = "db3",
    level: int | Sequence[int] = 6,
    mode: str = "orthogonal",
    axes: Sequence[int] | None = None,
) -> torch.Tensor:
    """The high band of a correction: what may be added to an image without moving its smooth part.

    y = x + P(correction) has the low band of x, whatever a network put into the correction, where P is a projection:
    with ``"orthogonal"``, and with ``"periodization"`` on sizes that 2^level divides. With ``"orthogonal"`` the mean of
    y over the image is that of x too.

    Args:
        correction: output minus input of a denoiser, any shape, of the whole slice or volume (not of a tile).
        wavelet: as in :func:`high_pass_split`. Default ``"db3"``.
        level: as there. Default 6.
        mode: as there, but for ``"zero"`` and ``"antisymmetric"``. Default ``"orthogonal"``.
        axes: as there. Default ``None``, all from the third on.

    Returns:
        As the bands of :func:`high_pass_split`.

    Raises:
        ValueError: as there, and for the two modes.

    Example:
        >>> correction = torch.randn(1, 1, 32, 32, generator=torch.Generator().manual_seed(0)) + 7.0
        >>> safe = project_correction(correction, level=2)
        >>> round(correction.mean().item()), abs(round(safe.mean().item(), 4))
        (7, 0.0)
    """
    check_mode(mode, keeps_offsets=True)
    return high_pass(correction, wavelet=wavelet, level=level, mode=mode, axes=axes)


@overload
def max_wavelet_level(size: int, wavelet: str = "db3") -> int: ...
@overload
def max_wavelet_level(size: Sequence[int], wavelet: str = "db3") -> tuple[int, ...]: ...
def max_wavelet_level(size: int | Sequence[int], wavelet: str = "db3") -> int | tuple[int, ...]:
    """Deepest level for an axis of ``size`` voxels, floor(log2(size / (taps - 1))), or one for each axis.

    Raises:
        ValueError: for a wavelet that PyWavelets does not have.

    Example:
        >>> max_wavelet_level(512), max_wavelet_level((512, 512, 32))
        (6, (6, 6, 2))
    """
    if isinstance(size, int):
        return deepest_level(size, wavelet)
    return tuple(deepest_level(each, wavelet) for each in size)


def physical_wavelet_level(
    extent: float, spacing: Sequence[float], size: Sequence[int], wavelet: str = "db3"
) -> tuple[int, ...]:
    """One level per axis for a low band that keeps what is larger than ``extent``, in millimetres.

    For each axis the level whose 2^level voxels are nearest to ``extent`` (in octaves), from 0 to the maximum for its
    size: thick slices get fewer levels than the plane.

    Args:
        extent: in the unit of ``spacing``. The paper's level 6 is 64 voxels: 45 mm at 0.7 mm.
        spacing: from voxel to voxel, one number per axis.
        size: voxels, one number per axis.
        wavelet: as in :func:`high_pass_split`. Default ``"db3"``.

    Raises:
        ValueError: for numbers that are not positive, another number of sizes than spacings, or an unknown wavelet.

    Example:
        >>> physical_wavelet_level(45.0, spacing=(0.7, 0.7, 3.0), size=(512, 512, 100))
        (6, 6, 4)
    """
    if len(spacing) != len(size) or not all(number > 0 and math.isfinite(number) for number in (extent, *spacing)):
        raise ValueError(
            f"extent and spacing must be positive, with one spacing per axis, got extent {extent}, spacing "
            f"{tuple(spacing)} for size {tuple(size)}."
        )
    return tuple(level_for_extent(extent, step, each, wavelet) for step, each in zip(spacing, size, strict=True))


class _Plan(NamedTuple):
    """An image whose slowest axis in memory comes first, and what to do to it."""

    values: torch.Tensor
    kind: torch.dtype
    back: list[int]
    steps: list[tuple[int, torch.Tensor, torch.Tensor]]

    @property
    def last(self) -> tuple[int, torch.Tensor]:
        """Axis and synthesis of the last expansion, that of the slowest axis."""
        return self.steps[0][0], self.steps[0][2]


def _plan(
    x: torch.Tensor, wavelet: str, level: int | Sequence[int], mode: str, axes: Sequence[int] | None, pad: bool
) -> _Plan:
    filter_length(wavelet)
    check_mode(mode, pad=pad)
    chosen = _axes(x, axes)
    levels = check_levels(level, len(chosen))
    check_depth(x.shape, chosen, levels, wavelet, f"x of shape {tuple(x.shape)}")
    kind = torch.promote_types(x.dtype, torch.float32)
    # an array that MONAI read from NIfTI has its first axis fastest: taken as it lies in memory it needs no copy
    strides = x.stride()
    order = sorted(range(x.ndim), key=lambda axis: -strides[axis])
    work = torch.float64 if rounds_products(x.device, kind) else kind
    values = x.permute(order).to(work).contiguous()
    depth = dict(zip(chosen, levels, strict=True))
    steps = [
        (place, *axis_matrices(x.shape[axis], wavelet, mode, depth[axis], pad, work, x.device))
        for place, axis in enumerate(order)
        if depth.get(axis)
    ]
    return _Plan(values, kind, sorted(range(x.ndim), key=order.__getitem__), steps)


def _axes(x: torch.Tensor, axes: Sequence[int] | None) -> list[int]:
    """Split axes, counted from the front."""
    chosen = list(range(2, x.ndim)) if axes is None else [axis + x.ndim * (axis < 0) for axis in axes]
    if not chosen or len(set(chosen)) < len(chosen) or not all(0 <= axis < x.ndim for axis in chosen):
        asked = "all from the third on" if axes is None else tuple(axes)
        raise ValueError(f"axes must be different axes of x, one at least, got {asked} for shape {tuple(x.shape)}.")
    return chosen


def _coarse(plan: _Plan) -> torch.Tensor:
    """Coarsest coefficients, expanded again on all split axes but the slowest.

    The slowest axis is contracted first, when the image is whole, and its expansion comes last: so each intermediate
    is thin, and the two products that touch the whole image run along its memory.
    """
    values = plan.values
    for axis, analysis, _ in plan.steps:
        values = _product(analysis, values, axis)
    for axis, _, synthesis in reversed(plan.steps[1:]):
        values = _product(synthesis, values, axis)
    return values


def _product(matrix: torch.Tensor, values: torch.Tensor, axis: int) -> torch.Tensor:
    """``matrix`` (k, n) times axis ``axis`` of ``values``, contiguous."""
    before, size, after = _folded(values, axis)
    shape = (*values.shape[:axis], matrix.shape[0], *values.shape[axis + 1 :])
    if after == 1:
        return torch.mm(values.view(before, size), matrix.T).view(shape)
    if before == 1:  # some 20 % faster than a batch of one
        return torch.mm(matrix, values.view(size, after)).view(shape)
    return torch.bmm(matrix.expand(before, -1, -1), values.view(before, size, after)).view(shape)


def _remainder(values: torch.Tensor, matrix: torch.Tensor, coarse: torch.Tensor, axis: int) -> torch.Tensor:
    """``values`` minus ``matrix`` times axis ``axis`` of ``coarse``, without memory for the product."""
    before, size, after = _folded(values, axis)
    small = matrix.shape[1]
    if after == 1:
        high = torch.addmm(values.view(before, size), coarse.view(before, small), matrix.T, alpha=-1)
    elif before == 1:
        high = torch.addmm(values.view(size, after), matrix, coarse.view(small, after), alpha=-1)
    else:
        stacked, thin = values.view(before, size, after), coarse.view(before, small, after)
        high = torch.baddbmm(stacked, matrix.expand(before, -1, -1), thin, alpha=-1)
    return high.view(values.shape)


def _folded(values: torch.Tensor, axis: int) -> tuple[int, int, int]:
    """Numbers of voxels before, along and after an axis."""
    return math.prod(values.shape[:axis]), values.shape[axis], math.prod(values.shape[axis + 1 :])
