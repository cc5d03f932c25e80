# SPDX-License-Identifier: Apache-2.0
"""Windows that cover an image row by row, and the weighted mean of what a network says of them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product

import torch

from monai_labelfx.ops._fold_resize import resize_columns, row_samples
from monai_labelfx.ops.patch_grid import patch_grid

MODES = ("constant", "gaussian")
_SIGMA = 0.125  # of a Gaussian window, in window sizes: MONAI's default


def window_starts(size: int, window: int, overlap: float) -> list[int]:
    """Where the windows of one axis begin: every ``window * (1 - overlap)`` voxels, the last one flush with the end.

    The step is rounded down, as MONAI's ``SlidingWindowInferer`` does, and at least one voxel.

    Example:
        >>> window_starts(600, 320, 0.2), window_starts(320, 320, 0.2)
        ([0, 256, 280], [0])
    """
    step = max(1, int(window * (1 - overlap) + 1e-6))  # 10 * (1 - 0.9) is a little less than 1
    return [int(start) for start in patch_grid((size,), window, step)]


class WindowGrid:
    """Equal windows over an image. What they weigh is a product over the axes, so that no map of it is summed up.

    Args:
        size: of the image.
        window: at most ``size``.
        overlap: of neighbours, 0 or above and below 1, for each axis.
        mode: "constant", or "gaussian" with a deviation of an eighth of the window.

    Attributes:
        size: of the image.
        window: its size.
        rows: where windows begin along the first axis.
        totals: for each axis, the float64 weights of all windows over each of its voxels, added up.
        weight: (\\*window) float64, what a voxel of a window weighs, or None where each weighs 1.

    Example:
        >>> grid = WindowGrid((3, 5), (3, 3), (0.4, 0.4), "constant")
        >>> grid.rows, [(place[1].start, place[1].stop) for place in grid.places()], grid.totals[1].tolist()
        ([0], [(0, 3), (1, 4), (2, 5)], [1.0, 2.0, 3.0, 2.0, 1.0])
    """

    def __init__(self, size: Sequence[int], window: Sequence[int], overlap: Sequence[float], mode: str) -> None:
        self.size, self.window = tuple(size), tuple(window)
        self.rows, *self._columns = (window_starts(*axis) for axis in zip(size, window, overlap, strict=True))
        profiles = [_profile(length, mode) for length in self.window]
        self.totals = [torch.zeros(length, dtype=torch.float64) for length in self.size]
        for total, starts, profile in zip(self.totals, (self.rows, *self._columns), profiles, strict=True):
            for start in starts:
                total[start : start + len(profile)] += profile
        self.weight = None if mode == "constant" else _outer(profiles)

    def places(self) -> Iterator[tuple[slice, ...]]:
        """The windows of one row, in a band as high as a window."""
        for corner in product((0,), *self._columns):
            yield tuple(slice(start, start + length) for start, length in zip(corner, self.window, strict=True))

    def bands(self, height: int) -> Iterator[tuple[slice, list[tuple[int, int]]]]:
        """Rows of the image to hold at once: as many rows of windows as fit into a height, at least one.

        Yields:
            the rows, and for each row of windows where it begins, and how much of it no later window reaches.
        """
        rows: list[tuple[int, int]] = []
        for first, following in zip(self.rows, [*self.rows[1:], self.size[0]], strict=True):
            if rows and first + self.window[0] - rows[0][0] > height:
                yield slice(rows[0][0], rows[-1][0] + self.window[0]), rows
                rows = []
            rows.append((first, following - first))
        yield slice(rows[0][0], self.size[0]), rows


class BlendedRows:
    """The weighted mean of the scores of windows, resized to another size as soon as a row of windows is done.

    So no more than a band of scores, as high as a window, is held at the size at which windows lie over the image.

    Args:
        grid: of the windows.
        size: of the result.
        images: their number.
        passes: how often each window is added.

    Example:
        >>> grid = WindowGrid((3,), (2,), (0.5,), "constant")
        >>> blend = BlendedRows(grid, (3,), 1, 1)
        >>> for _, rows in grid.bands(3):
        ...     for first, done in rows:
        ...         for place in grid.places():
        ...             blend.add(torch.full((1, 1, 2), float(first)), [(0, place)])
        ...         print(*blend.finish(first, done))
        slice(0, 1, None) tensor([[[0.]]])
        slice(1, 3, None) tensor([[[0.5000, 1.0000]]])
    """

    def __init__(self, grid: WindowGrid, size: Sequence[int], images: int, passes: int) -> None:
        self.grid, self.size, self.images = grid, tuple(size), images
        # a row of the result lies between two rows of the windows' size, with these weights: linear, and of a mean
        self._below, self._above, share = row_samples(grid.size[0], size[0], 0, size[0])
        self._below_weight = (1 - share) / (passes * grid.totals[0][self._below])
        self._above_weight = share / (passes * grid.totals[0][self._above])
        self._columns = 1 / _outer(grid.totals[1:])
        self._weight = grid.weight
        self._between = bool(share.any())
        self._known = 0  # rows of the result that were given back
        self._band: torch.Tensor | None = None

    def add(self, scores: torch.Tensor, places: Sequence[tuple[int, tuple[slice, ...]]]) -> None:
        """Scores (N, K, \\*window), at N places: which image, and which part of the band."""
        if self._band is None:
            self._band = self._new_band(scores)
        for (image, place), part in zip(places, scores, strict=True):
            target = self._band[image, :, 1:][:, *place]
            if self._weight is None:
                target.add_(part)
            else:
                target.addcmul_(part, self._weight)

    def finish(self, first: int, count: int) -> tuple[slice, torch.Tensor]:
        """No more comes to ``count`` rows of the band, which lies at row ``first`` of the image: move it by as many.

        Returns:
            which rows of the result are known now, and these, (images, K, rows, \\*size).
        """
        band = self._band
        if band is None:
            raise ValueError(f"scores must be added to the row of windows at {first} before it is finished, got none.")
        rows = slice(self._known, int(torch.searchsorted(self._above, first + count)))
        below, above = (index[rows].to(band.device) - (first - 1) for index in (self._below, self._above))
        part = band.index_select(2, below).mul_(self._below_weight[rows])
        if self._between:
            part.addcmul_(band.index_select(2, above), self._above_weight[rows])
        self._known = rows.stop
        kept = band.shape[2] - count
        if first + count < self.grid.size[0]:
            band[:, :, :kept] = band[:, :, count:].clone() if kept > count else band[:, :, count:]
            band[:, :, kept:] = 0
        return rows, resize_columns(part.mul_(self._columns), self.size[1:])

    def _new_band(self, scores: torch.Tensor) -> torch.Tensor:
        """Zeros for as many channels as the scores have; the first row is for the last one of the band before."""
        height, *columns = self.grid.window[0], *self.grid.size[1:]
        shape = (-1, *[1] * len(columns))
        self._below_weight = self._below_weight.to(scores).reshape(shape)
        self._above_weight = self._above_weight.to(scores).reshape(shape)
        self._columns = self._columns.to(scores)
        self._weight = None if self._weight is None else self._weight.to(scores)
        return scores.new_zeros((self.images, scores.shape[1], height + 1, *columns))


def _profile(length: int, mode: str) -> torch.Tensor:
    if mode == "constant":
        return torch.ones(length, dtype=torch.float64)
    at = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
    return torch.exp(-0.5 * (at / (_SIGMA * length)) ** 2)


def _outer(lines: Sequence[torch.Tensor]) -> torch.Tensor:
    result = torch.ones((), dtype=torch.float64)
    for line in lines:
        result = result.unsqueeze(-1) * line
    return result
