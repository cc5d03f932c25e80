# SPDX-License-Identifier: Apache-2.0
"""What an audit of CT numbers found, and the sentences about it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import norm

from monai_labelfx.metrics._hu_regions import HUShift

_FALSE_ALARMS = 0.01  # images of which one block is taken for shifted although it is noise


class HUBlocks(NamedTuple):
    """Differences of block means, output minus input.

    Example:
        >>> HUBlocks(number=1024, worst=-3.5, percentile_99=2.1, place=(16, 480)).worst
        -3.5
    """

    number: int
    worst: float
    """The one of largest absolute value, HU; NaN without blocks."""
    percentile_99: float
    """Of the absolute values, HU."""
    place: tuple[int, ...]
    """First voxel of the worst block, (x, y), in a volume (x, y, slice)."""


class HUSlices(NamedTuple):
    """Standard deviation, over the slices of a volume, of their means, HU.

    Example:
        >>> HUSlices(before=12.0, after=12.1, shift=0.2).shift
        0.2
    """

    before: float
    after: float
    shift: float
    """Of the difference of the means: flicker that the input does not have."""


class HUReport(NamedTuple):
    """Result of :py:class:`~monai_labelfx.metrics.ct_number.HUAudit`; in HU unless said.

    Example:
        >>> from monai_labelfx.metrics.ct_number import HUAudit
        >>> image = np.zeros((64, 64))
        >>> report = HUAudit()(image + 5, image)
        >>> report.passed, report.failures[0]
        (False, 'water shifts by +5.00 HU (95 % interval +5.00 to +5.00), limit 2 HU.')
    """

    failures: tuple[str, ...]
    """One sentence for each broken limit."""
    warnings: tuple[str, ...]
    """One sentence for each shift above a limit that noise can explain, and for what could not be judged."""
    classes: dict[str, HUShift]
    """Of the intensity classes that are large enough."""
    rois: dict[str, HUShift]
    blocks: dict[int, HUBlocks]
    """Side of the blocks in voxels -> differences."""
    low_band: float
    """Largest absolute difference of the low bands."""
    low_band_level: tuple[int, int]
    """Wavelet level of that band along x and y."""
    slope: float
    """Of the line through block means, output against input; NaN where the input's are all alike."""
    intercept: float
    """Of that line: the output for 0 HU, water."""
    structure: float
    """Correlation of the absolute difference with the gradient of the smoothed input."""
    slices: HUSlices | None
    """``None`` for a single slice."""
    smoothing: float
    """Standard deviation of the Gaussian that classes were told from, in voxels."""
    smoothed_noise: float
    """Standard deviation of the removed noise after that smoothing."""

    @property
    def passed(self) -> bool:
        """Whether no limit is broken."""
        return not self.failures

    @property
    def worst_region(self) -> float:
        """Shift of largest absolute value among classes and regions of interest, HU; NaN without any."""
        return max((s.shift for s in (*self.classes.values(), *self.rois.values())), key=abs, default=math.nan)

    def as_dict(self) -> dict[str, Any]:
        """All of it as JSON knows it, ``None`` for NaN."""
        return {"passed": self.passed, **{name: _plain(value) for name, value in self._asdict().items()}}


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(name): _plain(part) for name, part in value.items()}
    if isinstance(value, tuple):
        parts = getattr(value, "_asdict", None)
        return _plain(parts()) if parts is not None else [_plain(part) for part in value]
    return value


def judge_region(
    name: str, found: HUShift, limit: float, choice: float, confidence: float, strict: bool
) -> tuple[str, bool] | None:
    """The sentence about a region above the limit, and whether it is a failure; ``None`` for one within it.

    Args:
        name: of the region.
        found: its shift.
        limit: in HU.
        choice: HU by which noise may have moved it through the choice of its voxels.
        confidence: of the interval.
        strict: make no allowance for noise.
    """
    if not abs(found.shift) > limit:
        return None
    shift = f"{name} shifts by {found.shift:+.2f} HU"
    if math.isnan(found.low):
        fault = f"{shift}, limit {limit:g} HU"
        return (f"{fault}.", True) if strict else (f"{fault}, but it lies in one block, too few to tell noise.", False)
    sentence = f"{shift} ({100 * confidence:g} % interval {found.low:+.2f} to {found.high:+.2f}), limit {limit:g} HU"
    if strict or found.low > limit + choice or found.high < -limit - choice:
        return f"{sentence}.", True
    return f"{sentence}: noise can explain it.", False


def summarise_blocks(difference: np.ndarray, size: int) -> HUBlocks:
    """Numbers of a map of block differences (S, BX, BY) with NaN where there is none."""
    defined = ~np.isnan(difference)
    if not defined.any():
        return HUBlocks(0, math.nan, math.nan, ())
    absolute = np.abs(difference)
    index = np.unravel_index(int(np.nanargmax(absolute)), difference.shape)
    percentile = float(np.quantile(absolute[defined], 0.99))
    return HUBlocks(int(defined.sum()), float(difference[index]), percentile, block_place(index, difference, size))


def block_place(index: tuple[Any, ...], difference: np.ndarray, size: int) -> tuple[int, ...]:
    """First voxel of a block, in the image's order of axes."""
    number, column, row = (int(part) for part in index)
    place = (column * size, row * size)
    return place if len(difference) == 1 else (*place, number)


def judge_blocks(
    difference: np.ndarray, noise: np.ndarray, size: int, limit: float, strict: bool
) -> tuple[str, bool] | None:
    """The sentence about blocks above the limit, and whether it is a failure; ``None`` when all are within it.

    Args:
        difference: of block means, (S, BX, BY), NaN where there is no block.
        noise: standard errors of these, by the noise that was removed.
        size: side of a block in voxels.
        limit: in HU.
        strict: make no allowance for noise.
    """
    absolute = np.nan_to_num(np.abs(difference))
    above = absolute > limit
    if not above.any():
        return None
    factor = float(norm.isf(_FALSE_ALARMS / (2 * np.count_nonzero(~np.isnan(difference)))))
    allowed = limit + (0.0 if strict else factor * noise)
    failed = absolute > allowed
    excess = absolute - allowed if failed.any() else absolute
    worst = np.unravel_index(int(np.argmax(excess)), difference.shape)
    place = ", ".join(map(str, block_place(worst, difference, size)))
    number = int(failed.sum() or above.sum())
    blocks = "one block" if number == 1 else f"{number} blocks"
    sentence = (
        f"{blocks} of {size} x {size} voxels shift{'s' * (number == 1)} by more than {limit:g} HU, "
        f"the worst by {difference[worst]:+.2f} HU at ({place})"
    )
    if failed.any():
        return f"{sentence}" + ("." if strict else f", of which noise explains {factor * noise[worst]:.2f} HU."), True
    return f"{sentence}: noise can explain it.", False
