# SPDX-License-Identifier: Apache-2.0
"""Choice of a model without pairs: noise like that of high-dose images, and CT numbers where they were."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from ignite.engine import Engine, Events
from ignite.metrics.metric import MetricUsage

from monai_labelfx.engines._image_rows import ImageRowsHandler
from monai_labelfx.metrics._hu_slices import hu_slices, same_slices
from monai_labelfx.metrics.ct_number import HUAudit, HUReport
from monai_labelfx.metrics.noise_target import NoiseTarget, evenly_spaced


class NoiseMatchHandler(ImageRowsHandler):
    """Scores denoised CT against the noise of high-dose images that match none of them. Smaller is better.

    With the noise of each image's homogeneous patches (:py:class:`~monai_labelfx.metrics.noise_target.NoiseTarget`),
    the limits of :py:class:`~monai_labelfx.metrics.ct_number.HUAudit`, and r the ratio of standard deviations, ::

        noise_match = mean |ln r| + mean nps_distance + mean hu_penalty
        hu_penalty  = max(0, |worst class shift| / 2 HU - 1) + max(0, |worst 16-voxel block shift| / 5 HU - 1)

    The penalty is 0 for an image that passes the audit, which does not blame shifts that the noise taken out explains.
    So too much noise, too little, noise of another texture, and moved CT numbers all make the score larger; moving a
    class by 4 HU costs as much as noise that is 2.7 times too strong.

    ===================  ============================================================================================
    ``noise_match``      the score
    ``noise_ratio``      geometric mean of r: below 1 for oversmoothed images
    ``nps_distance``     mean distance of noise textures, 0 for equal ones
    ``hu_penalty``       mean penalty, 0 when CT numbers are safe
    ===================  ============================================================================================

    They are written to ``engine.state.metrics``, over the images of all processes. Images in which the medium has no
    homogeneous patch count for ``hu_penalty`` only; when no image has a patch, or none came, there is no metric and
    one line in the log. It needs decollated items, and reads batch and output together. To keep the best model:
    ``CheckpointSaver(save_key_metric=True, key_metric_name="noise_match", key_metric_negative_sign=True)``.

    Args:
        high_images: high-dose images, any iterable of images (1, \\*spatial) in HU, or of items that hold them; for
            instance a dataset. They are read once, when the first run starts, by every process.
        medium: (low, high) HU of the medium whose noise is compared. Default -20 to 120.
        patch_size: side of the patches in voxels.
        patches: most patches of an image.
        slices: most slices of a volume that are looked at, evenly spaced.
        max_high_images: most high-dose images to read, evenly spaced where their number is known. ``None`` for all.
        audit: limits of the CT numbers. Default ``None``: ``HUAudit(replicates=200)``.
        pred_key: key of the predictions in HU.
        input_key: key of the images before denoising, in HU.
        high_key: key of the image in items of ``high_images``.
        padding_key: key of a mask of voxels that are no image, left out of the audit. An item may lack it.

    Raises:
        TypeError: when ``high_images`` is a data loader, whose batches are no images.
        ValueError: when a number or range is impossible; in a run, when no high-dose image has a homogeneous patch, an
            item lacks prediction or input, the output is not decollated, or it is the key metric without a result.

    Notes:
        The paper does not say how its networks were chosen; its code takes the best PSNR of matched pairs. Where there
        are pairs, :py:class:`~monai_labelfx.engines.ct_convention_handler.CTConventionHandler` does that.

        What noise explains is not blamed: where noise of 289 HU was removed, a shift of 10 HU passes in one slice. It
        is the worst block that counts, so that blurred edges of bone or a misplaced slice outweigh all else.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> high, source = (std * torch.randn(1, 64, 64, generator=generator) + 40 for std in (10, 20))
        >>> engine = Engine(lambda engine, batch: batch)
        >>> NoiseMatchHandler([high]).attach(engine)
        >>> scores = [dict(engine.run([[{"pred": y, "hu": source}]]).metrics) for y in (source, (source + 40) / 2)]
        >>> [round(score["noise_ratio"], 1) for score in scores]
        [2.0, 1.0]
        >>> scores[1]["noise_match"] < scores[0]["noise_match"]
        True
    """

    label = "noise_match"

    def __init__(
        self,
        high_images: Iterable[Any],
        *,
        medium: Sequence[float] = (-20.0, 120.0),
        patch_size: int = 32,
        patches: int = 32,
        slices: int = 16,
        max_high_images: int | None = 64,
        audit: HUAudit | None = None,
        pred_key: str = "pred",
        input_key: str = "hu",
        high_key: str = "hu",
        padding_key: str = "image_padding",
    ) -> None:
        if isinstance(high_images, torch.utils.data.DataLoader):
            raise TypeError(
                "high_images must give single images, but a DataLoader gives batches: hand over its dataset."
            )
        if max_high_images is not None and max_high_images < 1:
            raise ValueError(f"max_high_images must be 1 or above, or None for all, got {max_high_images}.")
        self.target = NoiseTarget(medium, patch_size=patch_size, patches=patches, slices=slices)
        self.slices = slices
        self.high_images = high_images
        self.max_high_images = max_high_images
        self.audit = HUAudit(replicates=200) if audit is None else audit
        self.pred_key = pred_key
        self.input_key = input_key
        self.high_key = high_key
        self.padding_key = padding_key
        super().__init__()

    def attach(self, engine: Engine, name: str | None = None, usage: str | MetricUsage | None = None) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._read_target)
        super().attach(engine, name, usage)

    def _read_target(self, engine: Engine) -> None:
        if len(self.target):
            return
        images = 0
        for image in self._chosen():
            self.target.add(image)
            images += 1
        deviation = self.target.deviation  # raises when there was no patch
        engine.logger.info(
            f"NoiseMatchHandler: {len(self.target)} of {images} high-dose images have a homogeneous patch; their noise "
            f"is {deviation:.1f} HU."
        )

    def _chosen(self) -> Iterator[Any]:
        most, given = self.max_high_images, self.high_images
        images: Iterable[Any] = given
        if most is not None and isinstance(given, Sized) and hasattr(given, "__getitem__"):
            images = (given[number] for number in (evenly_spaced(len(given), most) if len(given) else ()))
        for number, item in enumerate(images):
            if most is not None and number >= most:
                return
            if isinstance(item, Mapping) and self.high_key not in item:
                raise ValueError(
                    f"high-dose item {number} has no {self.high_key!r}, its keys are {sorted(map(str, item))}."
                )
            yield item[self.high_key] if isinstance(item, Mapping) else item

    def _row(self, item: Mapping[str, Any]) -> dict[str, Any]:
        for key in (self.pred_key, self.input_key):
            if item.get(key) is None:
                raise ValueError(f"an item has no {key!r}, its keys are {sorted(map(str, item))}.")
        output, source = item[self.pred_key], item[self.input_key]
        before = hu_slices(source, self.input_key)
        after = same_slices(before, output, self.pred_key)
        padding = item.get(self.padding_key)
        masks = None if padding is None else same_slices(before, padding, self.padding_key) != 0
        chosen = evenly_spaced(len(before), self.slices)
        volumes = [np.moveaxis(part[chosen], 0, -1) for part in (after, before)]
        report = self.audit(*volumes, exclude=None if masks is None else np.moveaxis(masks[chosen], 0, -1))
        found = self.target.compare(output, source)
        return {
            "penalty": self._penalty(report),
            "noise": None if found is None else (found.log_ratio, found.nps_distance),
        }

    def _penalty(self, report: HUReport) -> float:
        if report.passed:
            return 0.0
        audit = self.audit
        worst = (report.worst_region, audit.region_limit), (report.blocks[audit.block_size].worst, audit.block_limit)
        return sum(max(0.0, abs(shift) - limit) / limit for shift, limit in worst if math.isfinite(shift))

    def _results(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        noise = np.array([row["noise"] for row in rows if row["noise"] is not None], np.float64).reshape(-1, 2)
        if not len(noise):
            return {}
        penalty, distance = float(np.mean([row["penalty"] for row in rows])), float(noise[:, 1].mean())
        return {
            "noise_match": float(np.abs(noise[:, 0]).mean()) + distance + penalty,
            "noise_ratio": math.exp(noise[:, 0].mean()),
            "nps_distance": distance,
            "hu_penalty": penalty,
        }
