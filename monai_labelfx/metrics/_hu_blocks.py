# SPDX-License-Identifier: Apache-2.0
"""Means over square blocks of slices, and what the removal of noise alone does to them."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

_REACH = 3  # blocks on each side whose noise is taken together, 7 x 7 in all
_RATIO = (0.25, 0.75)
_MAD = 1.482602218505602  # standard deviation of a normal variable over the median of its absolute value


def block_sums(values: np.ndarray, size: int) -> np.ndarray:
    """Sums of (S, X, Y) over blocks of ``size`` x ``size``, (S, ceil(X / size), ceil(Y / size)) float64.

    Blocks start at the first voxel; the last ones of an axis have what is left.

    Example:
        >>> block_sums(np.arange(10).reshape(1, 2, 5), 2).tolist()
        [[[12.0, 20.0, 13.0]]]
    """
    for axis in (2, 1):
        values = np.add.reduceat(values, np.arange(0, values.shape[axis], size), axis=axis, dtype=np.float64)
    return values


class BlockMeans:
    """Means of slices over blocks of several sizes, of the valid voxels.

    Args:
        values: (S, X, Y), 0 where not valid.
        valid: bool, (S, X, Y).
        sizes: sides of blocks in voxels. Those that are multiples of others cost next to nothing.

    Example:
        >>> valid = np.array([[[True, True, False, False], [True, False, False, True]]])
        >>> BlockMeans(np.where(valid, 6.0, 0.0), valid, [2])[2].tolist()
        [[[6.0, nan]]]
    """

    def __init__(self, values: np.ndarray, valid: np.ndarray, sizes: Iterable[int]) -> None:
        self._sums: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        for size in sorted(set(sizes)):
            base = max((done for done in self._sums if size % done == 0), default=1)
            sums, counts = self._sums.get(base, (values, valid))
            self._sums[size] = block_sums(sums, size // base), block_sums(counts, size // base)

    def __getitem__(self, size: int) -> np.ndarray:
        """(S, ceil(X / size), ceil(Y / size)); NaN where less than half of ``size`` x ``size`` voxels are valid."""
        sums, counts = self._sums[size]
        return np.divide(sums, counts, out=np.full(sums.shape, np.nan), where=2 * counts >= size * size)


def block_noise(means: BlockMeans, size: int) -> np.ndarray:
    """Standard error of block means of a difference by noise that was removed, (S, BX, BY), 0 where unknown.

    Four squares of side h that make one of side 2 h have the means a, b, c, d. Their contrast (a - b - c + d) / 2 has
    the standard deviation s(h) of such a mean, and no part of a constant or of a slope, so that a drift of CT numbers
    is not taken for noise; nor are single edges and false structures, since s is 1.48 times the median of the
    contrasts' absolute values over 7 x 7 blocks around. From small squares it is carried on to the block, ::

        s(size) = s(size / 4) * r ** 2,        r = min(s(size / 2) / s(size / 4), s(size / 4) / s(size / 8))

    with r of the whole image, within 1/4 and 3/4. It is 1/2 for white noise, less for that of a sharp kernel, and more
    for noise that is correlated. There it falls with the side, while it rises in a drift, hence the lesser of the two.

    Args:
        means: of output minus input, with ``size`` and a half, a quarter and an eighth of it among its sizes.
        size: side of a block, a multiple of 8.
    """
    blocks = means[size].shape[1:]
    half, quarter, eighth = (_contrasts(means[size // parts], blocks, parts) for parts in (2, 4, 8))
    first, second, third = (_middle(contrast) for contrast in (half, quarter, eighth))
    ratio = min(first / second, second / third) if second and third else 0.0
    side = 2  # contrasts of quarters along a side of a block
    reach, margin = (2 * _REACH + 1) * side, _REACH * side
    around = np.pad(quarter, [(0, 0), (margin, margin), (margin, margin)], constant_values=np.nan)
    windows = np.lib.stride_tricks.sliding_window_view(around, (reach, reach), axis=(1, 2))[:, ::side, ::side]
    local = _median_of_defined(windows.reshape(*windows.shape[:3], reach * reach))
    return _MAD * local * min(max(ratio, _RATIO[0]), _RATIO[1]) ** 2


def _contrasts(means: np.ndarray, blocks: tuple[int, ...], parts: int) -> np.ndarray:
    """Absolute contrasts of squares, ``parts`` of which make a side of a block; NaN where a square is not there."""
    pad = [(0, parts * count - have) for count, have in zip(blocks, means.shape[1:], strict=True)]
    means = np.pad(means, [(0, 0), *pad], constant_values=np.nan)
    return np.abs(means[:, ::2, ::2] - means[:, 1::2, ::2] - means[:, ::2, 1::2] + means[:, 1::2, 1::2]) / 2


def _middle(contrasts: np.ndarray) -> float:
    """Median of the contrasts where something was changed; 0 without any."""
    changed = contrasts[contrasts > 0]
    return float(np.median(changed)) if changed.size else 0.0


def _median_of_defined(values: np.ndarray) -> np.ndarray:
    """Median along the last axis of what is not NaN; 0 where nothing is."""
    ordered = np.sort(values, axis=-1)  # NaN last
    count = (~np.isnan(values)).sum(axis=-1)
    ends = np.stack([np.maximum(count - 1, 0) // 2, count // 2], axis=-1)
    ends = np.minimum(ends, np.maximum(count - 1, 0)[..., None])
    middle = np.take_along_axis(ordered, ends, axis=-1).mean(axis=-1)
    return np.where(count > 0, middle, 0.0)
