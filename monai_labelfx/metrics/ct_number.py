# SPDX-License-Identifier: Apache-2.0
"""Do CT numbers stay where they were? An audit of a processed image against the image before."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from monai_labelfx.metrics._hu_blocks import BlockMeans
from monai_labelfx.metrics._hu_classes import SMOOTHINGS, check_classes, choose_smoothing
from monai_labelfx.metrics._hu_regions import HUShift
from monai_labelfx.metrics._hu_report import HUBlocks, HUReport, HUSlices, judge_blocks, judge_region, summarise_blocks
from monai_labelfx.metrics._hu_slices import compared, hu_slices, is_plane, label_slices, same_slices, stacks
from monai_labelfx.metrics._hu_totals import HUTotals
from monai_labelfx.ops.wavelet import max_wavelet_level

__all__ = ["HU_CLASSES", "HUAudit", "HUBlocks", "HUReport", "HUShift", "HUSlices", "block_mean_difference"]

HU_CLASSES: dict[str, tuple[float, float]] = {
    "air": (-1100.0, -900.0),
    "lung": (-900.0, -500.0),
    "fat": (-190.0, -30.0),
    "water": (-30.0, 20.0),
    "soft_tissue": (20.0, 150.0),
    "bone": (150.0, 3071.0),
}
"""Intensity classes, [low, high) in HU. Names of ranges, not of organs: contrast medium is among "bone".

Air below -900 HU and aerated lung from -900 to -500 HU: Gattinoni et al., Am J Respir Crit Care Med 164 (2001) 1701.
Fat from -190 to -30 HU and muscle up to 150 HU: the ranges of studies of body composition, after Mitsiopoulos et al.,
J Appl Physiol 85 (1998) 115. Fluid up to 20 HU: Herts et al., J Am Coll Radiol 15 (2018) 264. 3071 HU is what 12 bits
hold with an intercept of -1024. What is below -1100 HU is padding. Values between classes belong to none."""

_SAMPLED = 5  # slices of a volume from which the smoothing is chosen
_CHOICE = (
    3.0  # by how many standard deviations of the noise that smoothing leaves it can move a class by choosing voxels
)


class HUAudit:
    """Compares an image with what it was made from, both in HU: fails where CT numbers moved.

    ``audit(output, source)`` with d = output - source gives a :py:class:`HUReport`:

    * mean d of intensity classes and regions of interest (ROI), each with a bootstrap interval over blocks;
    * means of d over blocks of several sizes: the worst, and the 99th percentile of absolute values;
    * the largest absolute value in the low band of d (of mode "orthogonal"), that is of L(output) - L(source);
    * slope and intercept of the output's block means against those of the source;
    * correlation of absolute d with the gradient of the smoothed source: near 0 for even noise, above where structures
      went with it, below where noise was left at edges;
    * in volumes the standard deviation of the means of slices, before, after, and of their difference.

    It fails when a class or ROI moves by more than ``region_limit``, or a block of ``block_size`` by more than
    ``block_limit``, and noise does not explain it. d holds the noise that a denoiser took out, with its chance means:
    256 voxels of independent noise of 100 HU have a mean of 6 HU. So a region fails when the whole interval of its
    shift lies beyond the limit, and a block when it exceeds the limit by more than z standard errors of the mean of
    removed noise. (The error comes from contrasts within the blocks around, so that neither drifts nor single false
    structures pass for noise; z is the normal quantile at which one audit in 100 has a block that is beyond it by
    chance, 4.4 for 1024 blocks.) Shifts above a limit that noise explains are ``warnings`` of the report. Where no
    noise is removed the limits hold as they are. An audit in which nothing is large enough to be judged fails.

    Which voxels belong to a class is told from the smoothed source. Told from the voxels themselves, noise would choose
    them: those of 40 HU that noise made 10 HU would count as water, and a denoiser that puts them right would seem to
    move water by 30 HU (regression to the mean). So the Gaussian is as wide as it must be for the removed noise,
    smoothed, to have a standard deviation of at most ``region_limit``, from 2 up to 16 voxels, and regions are eroded
    by two standard deviations of the Gaussian, which mixes their borders. With strong noise small regions are lost, and
    where 16 voxels do not suffice a class must exceed the limit by three times the noise that is left. None of this
    concerns ROI.

    Args:
        region_limit: of the mean shift of classes and ROI, HU. Default 2 (what Table 2 of Jung et al., MICCAI 2022,
            implies).
        block_limit: of the mean shift of a block, HU. Default 5 (uniformity of a phantom, American College of
            Radiology).
        block_sizes: sides of blocks, in voxels. Default 8, 16, 32 and 64.
        block_size: the one of them that is judged, resampled, and fitted by a line; a multiple of 8. Default 16.
        classes: name -> [low, high) in HU. Default ``None``, :py:data:`HU_CLASSES`.
        roi_names: label -> name. Default ``None``, ``roi_1`` and so on.
        smoothing: standard deviation of the Gaussian, in voxels. Default ``None``, chosen as above from five slices.
        wavelet: of the low band. Default ``"db3"``.
        level: of the low band; less where an axis is too short for it. Default 6.
        strict: make no allowance for noise. Default ``False``.
        replicates: of the bootstrap. Default 1000.
        confidence: of its intervals. Default 0.95.
        seed: of its draws. Default 0.

    Shape:
        - output, source: (X, Y), (1, X, Y), (X, Y, Z) or (1, X, Y, Z), tensors on any device or arrays.
        - roi: whole numbers of that shape, 0 for no region. exclude: true where voxels are left out, such as padding.

    Raises:
        TypeError: when an image holds no numbers.
        ValueError: for arguments out of their range; in the call, for shapes that differ, NaN or infinity outside of
            ``exclude``, and a ``roi`` of fractions or negative numbers.

    Notes:
        Volumes are taken slice by slice: slices are thick, and limits for blocks come from slices. Blocks start at the
        first voxel, and count when half of them is there. A class needs ``block_size`` ** 2 voxels. Tissue whose value
        lies at the limit of a class keeps some regression to the mean, less than the noise left by smoothing. Noise in
        the block means pulls the slope towards 1 minus its share of their variance, little in images that have air.

    Example:
        >>> import torch
        >>> x = torch.full((64, 64), -1000.0)
        >>> x[:, 32:] = 40
        >>> report = HUAudit()(torch.where(x < -500, x + 3, x), x)
        >>> report.failures[0]
        'air shifts by +3.00 HU (95 % interval +3.00 to +3.00), limit 2 HU.'
        >>> report.classes["soft_tissue"].shift, report.blocks[16].worst, report.passed
        (0.0, 3.0, False)
    """

    def __init__(
        self,
        *,
        region_limit: float = 2.0,
        block_limit: float = 5.0,
        block_sizes: Sequence[int] = (8, 16, 32, 64),
        block_size: int = 16,
        classes: Mapping[str, Sequence[float]] | None = None,
        roi_names: Mapping[int, str] | None = None,
        smoothing: float | None = None,
        wavelet: str = "db3",
        level: int = 6,
        strict: bool = False,
        replicates: int = 1000,
        confidence: float = 0.95,
        seed: int = 0,
    ) -> None:
        for name, value in (("region_limit", region_limit), ("block_limit", block_limit), ("level", level)):
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be above 0, got {value}.")
        if block_size not in block_sizes or block_size % 8 or min(block_sizes) < 1:
            raise ValueError(
                f"block_size must be a multiple of 8 and one of block_sizes={tuple(block_sizes)}, got {block_size}."
            )
        if smoothing is not None and not 0 < smoothing < math.inf:
            raise ValueError(f"smoothing must be a number of voxels above 0, or None, got {smoothing}.")
        if replicates < 1 or not 0 < confidence < 1:
            raise ValueError(
                f"replicates must be above 0 and confidence between 0 and 1, got {replicates} and {confidence}."
            )
        self.region_limit, self.block_limit = float(region_limit), float(block_limit)
        self.block_sizes, self.block_size = tuple(sorted({int(size) for size in block_sizes})), int(block_size)
        self.classes = check_classes(HU_CLASSES if classes is None else classes)
        self.roi_names = {int(label): str(name) for label, name in (roi_names or {}).items()}
        self.smoothing = smoothing
        self.wavelet, self.level = wavelet, level
        self.strict = strict
        self.replicates, self.confidence, self.seed = replicates, confidence, seed

    def __call__(self, output: Any, source: Any, *, roi: Any = None, exclude: Any = None) -> HUReport:
        """Compare ``output`` with ``source``."""
        before = hu_slices(source, "source")
        after = same_slices(before, output, "output")
        labels = None if roi is None else label_slices(same_slices(before, roi, "roi"))
        left_out = None if exclude is None else same_slices(before, exclude, "exclude")

        def taken(part: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
            return compared(before[part], after[part], None if left_out is None else left_out[part])

        some = np.unique(np.linspace(0, len(before) - 1, _SAMPLED).round().astype(int))
        ranges = list(self.classes.values())
        sigmas = SMOOTHINGS if self.smoothing is None else (float(self.smoothing),)
        sigma, left = choose_smoothing(*taken(some), ranges, self.region_limit, sigmas)
        first, second = (min(self.level, max_wavelet_level(extent, self.wavelet)) for extent in before.shape[1:])
        totals = HUTotals(
            ranges=ranges,
            sigma=sigma,
            block_sizes=self.block_sizes,
            block_size=self.block_size,
            wavelet=self.wavelet,
            level=(first, second),
        )
        for part in stacks(before):
            totals.add(*taken(part), None if labels is None else labels[part])
        return self._report(totals, left)

    def _report(self, totals: HUTotals, left: float) -> HUReport:
        options: dict[str, Any] = {"replicates": self.replicates, "confidence": self.confidence, "seed": self.seed}
        names = list(self.classes)
        found = totals.classes.shifts(least=self.block_size**2, **options)
        classes = {names[number]: shift for number, shift in found.items()}
        marked = totals.rois.shifts(least=1, **options)
        rois = {self.roi_names.get(label, f"roi_{label}"): shift for label, shift in marked.items()}
        maps = totals.maps()
        judged = maps[self.block_size]
        choice = 0.0 if left <= self.region_limit else _CHOICE * left
        sentences = [
            judge_region(name, shift, self.region_limit, choice, self.confidence, self.strict)
            for found, choice in ((classes, choice), (rois, 0.0))
            for name, shift in found.items()
        ]
        sentences.append(judge_blocks(judged, totals.noise(), self.block_size, self.block_limit, self.strict))
        if not classes and not rois and np.isnan(judged).all():
            sentences.append(("no class, region or block is large enough to be judged.", True))
        slope, intercept = totals.line(judged)
        return HUReport(
            failures=tuple(sentence[0] for sentence in sentences if sentence and sentence[1]),
            warnings=tuple(sentence[0] for sentence in sentences if sentence and not sentence[1]),
            classes=classes,
            rois=rois,
            blocks={size: summarise_blocks(each, size) for size, each in maps.items()},
            low_band=totals.low_band,
            low_band_level=totals.level,
            slope=slope,
            intercept=intercept,
            structure=totals.structure(),
            slices=totals.profile(),
            smoothing=totals.sigma,
            smoothed_noise=left,
        )


def block_mean_difference(output: Any, source: Any, size: int = 16, *, exclude: Any = None) -> np.ndarray:
    """The map of differences of block means, output minus source, in the plane of x and y.

    Args:
        output: as of :py:class:`HUAudit`.
        source: likewise.
        size: side of a block in voxels. Default 16.
        exclude: true where voxels are left out.

    Returns:
        (ceil(X / size), ceil(Y / size)) HU, float64, for a volume with an axis of slices after them; NaN where less
        than half of a block is there.

    Raises:
        TypeError: when an image holds no numbers.
        ValueError: for a ``size`` below 1, and as of :py:class:`HUAudit`.

    Example:
        >>> block_mean_difference(np.arange(16.0).reshape(4, 4), np.zeros((4, 4)), 2).tolist()
        [[2.5, 4.5], [10.5, 12.5]]
    """
    if size < 1:
        raise ValueError(f"size must be a number of voxels above 0, got {size}.")
    before = hu_slices(source, "source")
    after = same_slices(before, output, "output")
    left_out = None if exclude is None else same_slices(before, exclude, "exclude")
    parts = []
    for part in stacks(before):
        _, difference, valid = compared(before[part], after[part], None if left_out is None else left_out[part])
        parts.append(BlockMeans(difference, valid, [size])[size])
    means = np.concatenate(parts)
    return means[0] if is_plane(source) else np.moveaxis(means, 0, -1)
