# SPDX-License-Identifier: Apache-2.0
"""The audit of CT numbers, and mean and noise of homogeneous media, as a handler of MONAI's evaluators."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
from ignite.engine import Engine, Events

from monai_labelfx.engines._as_read import collected
from monai_labelfx.engines._json import write_json
from monai_labelfx.metrics.ct_number import HUAudit
from monai_labelfx.metrics.homogeneous_patches import patch_values, ranked_patches

__all__ = ["HUAuditHandler"]

_MEDIUM = ("deviation", "input_mean", "input_std", "mean", "std")  # of one patch


class HUAuditHandler:
    """Handler that compares predictions with their inputs, both in HU, and tells whether CT numbers moved.

    It reads decollated batches and outputs after postprocessing (``decollate=True``, MONAI's default for evaluators)
    and writes into ``engine.state.metrics``, over the images of all processes:

    =========================  =========================================================================================
    ``hu_class_shift``         worst absolute mean shift of an intensity class or region of interest, HU
    ``hu_block_shift``         worst absolute mean shift of a block of 16 x 16 voxels, HU, with the noise taken out
    ``hu_low_band``            worst absolute difference of the low wavelet bands, HU
    ``hu_slope``               mean over images of the slope of output against input; also ``hu_intercept``, HU
    ``hu_structure``           mean correlation of absolute difference and gradient of the input
    ``hu_failures``            number of images that fail the audit
    ``hu_shift_<class>``       mean shift over all voxels of a class or region of interest, HU
    ``<medium>_mean``          of the medium, in HU, in its most homogeneous patches: means of the patches' means, also
                               ``_std`` of their standard deviations, ``_input_mean`` and ``_input_std`` of the input,
                               and ``_shift``, output minus input: Table 2 of Jung et al., MICCAI 2022
    =========================  =========================================================================================

    Numbers that are not defined are left out. The patches of a medium are the best ``patch_count`` of all images
    together; the inputs tell where they lie, so that rivals are compared in the same places.

    Rank 0 writes the whole reports, one for each image, as JSON. Images are named by the stem of their files, and
    nothing else of their meta data is written.

    Args:
        output_dir: folder of the file. Default ``None``: write none.
        audit: the limits. Default ``None``, :py:class:`~monai_labelfx.metrics.ct_number.HUAudit` with its defaults.
        pred_key: key of the output in HU. Default ``"pred"``.
        hu_key: key of the input in HU. Default ``"hu"``.
        roi_key: key of a label map of regions of interest; items may lack it. Default ``"roi"``.
        padding_key: key of the mask of padding, which is left out; items may lack it. Default ``"image_padding"``.
        media: name -> (low, high) in HU of homogeneous media. Default ``None``, none. The paper has air and brain.
        patch_size: side of a patch in voxels. Default 60 (the paper).
        patch_count: number of patches. Default 300 (the paper).
        filename: name of the file.

    Raises:
        ValueError: for a medium that is no range; in a run for outputs that are not decollated, items that lack output
            or input, and images that cannot be compared, with the name of the file.

    Example:
        >>> import torch
        >>> hu = torch.zeros(1, 64, 64)
        >>> engine = Engine(lambda engine, batch: [{"hu": hu, "pred": hu + 3}])
        >>> HUAuditHandler(media={"water": (-10, 10)}, patch_size=16).attach(engine)
        >>> metrics = engine.run([0]).metrics
        >>> metrics["hu_failures"], metrics["hu_shift_water"], metrics["water_shift"]
        (1, 3.0, 3.0)
    """

    def __init__(
        self,
        output_dir: str | Path | None = None,
        *,
        audit: HUAudit | None = None,
        pred_key: str = "pred",
        hu_key: str = "hu",
        roi_key: str = "roi",
        padding_key: str = "image_padding",
        media: Mapping[str, Sequence[float]] | None = None,
        patch_size: int = 60,
        patch_count: int = 300,
        filename: str = "hu_audit.json",
    ) -> None:
        self.output_dir = None if output_dir is None else Path(output_dir)
        self.audit = HUAudit() if audit is None else audit
        self.pred_key, self.hu_key = pred_key, hu_key
        self.roi_key, self.padding_key = roi_key, padding_key
        self.media: dict[str, tuple[float, float]] = {}
        for name, ends in (media or {}).items():
            if len(ends) != 2 or not ends[0] < ends[1]:
                raise ValueError(f"media[{name!r}] must be a range (low, high) of HU, got {tuple(ends)}.")
            self.media[str(name)] = (float(ends[0]), float(ends[1]))
        self.patch_size, self.patch_count = patch_size, patch_count
        self.filename = filename
        self._items: list[dict[str, Any]] = []
        self._written: list[str] = []

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.EPOCH_COMPLETED, self._save)

    def _forget(self, engine: Engine) -> None:
        self._items = []

    def _collect(self, engine: Engine) -> None:
        for item in collected(engine, type(self).__name__):
            path, name = self._name(item)
            for key in (self.pred_key, self.hu_key):
                if item.get(key) is None:
                    raise ValueError(f"{name} must have an image under {key!r}, its keys are {sorted(map(str, item))}.")
            pred, hu, exclude = item[self.pred_key], item[self.hu_key], item.get(self.padding_key)
            try:
                report = self.audit(pred, hu, roi=item.get(self.roi_key), exclude=exclude).as_dict()
                media = {medium: self._patches(pred, hu, exclude, ends) for medium, ends in self.media.items()}
            except (TypeError, ValueError) as error:
                raise ValueError(f"the CT numbers of {name} cannot be compared: {error}") from error
            self._items.append({"path": path, "name": name, "report": report, "media": media})

    def _name(self, item: Mapping[str, Any]) -> tuple[str, str]:
        """Path of an item's file if it has one, and what it is called in public."""
        metas = (getattr(item.get(key), "meta", None) or {} for key in (self.hu_key, self.pred_key))
        path = next((str(meta["filename_or_obj"]) for meta in metas if meta.get("filename_or_obj")), "")
        return path, Path(path).name.split(".")[0] or f"item {len(self._items) + 1}"

    def _patches(self, pred: Any, hu: Any, exclude: Any, ends: tuple[float, float]) -> np.ndarray:
        """Rows of the columns ``_MEDIUM`` of the best patches of an image."""
        size, count = self.patch_size, self.patch_count
        places, deviations = ranked_patches(hu, low=ends[0], high=ends[1], size=size, count=count, exclude=exclude)
        return np.stack([deviations, *patch_values(hu, places, size), *patch_values(pred, places, size)], axis=1)

    def _save(self, engine: Engine) -> None:
        items = _once(idist.all_gather(self._items))
        self._items = []
        metrics = {**_summary([item["report"] for item in items], self.audit.block_size), **self._media(items)}
        for name in self._written:
            engine.state.metrics.pop(name, None)
        self._written = list(metrics)
        engine.state.metrics.update(metrics)
        if idist.get_rank() > 0:
            return
        if self.output_dir is not None:
            limits = {"region_limit": self.audit.region_limit, "block_limit": self.audit.block_limit}
            reports = [{"name": item["name"], **item["report"]} for item in items]
            content = {**limits, "block_size": self.audit.block_size, "summary": metrics, "items": reports}
            write_json(self.output_dir / self.filename, content)
        for item in items:
            for sentence in item["report"]["failures"]:
                logging.getLogger(__name__).warning("CT numbers of %s moved: %s", item["name"], sentence)

    def _media(self, items: Sequence[Mapping[str, Any]]) -> dict[str, float]:
        metrics: dict[str, float] = {}
        for medium in self.media:
            rows = np.concatenate([np.zeros((0, len(_MEDIUM))), *(item["media"][medium] for item in items)])
            if not len(rows):
                low, high = self.media[medium]
                logging.getLogger(__name__).warning(
                    "no image has a homogeneous patch of %d x %d voxels from %g to %g HU: %s is left out",
                    *(self.patch_size, self.patch_size, low, high, medium),
                )
                continue
            best = rows[np.argsort(rows[:, 0], kind="stable")[: self.patch_count]].mean(axis=0)
            found = {f"{medium}_{name}": float(value) for name, value in zip(_MEDIUM[1:], best[1:], strict=True)}
            metrics |= {**found, f"{medium}_shift": found[f"{medium}_mean"] - found[f"{medium}_input_mean"]}
        return metrics


def _once(ranks: Any) -> list[dict[str, Any]]:
    """The items of all ranks; one that a sampler gave to two ranks, to fill the last batches, counts once."""
    items: list[dict[str, Any]] = []
    for own in ranks:
        seen = [(item["path"], item["report"]) for item in items if item["path"]]
        items += [item for item in own if (item["path"], item["report"]) not in seen]
    return items


def _summary(reports: Sequence[Mapping[str, Any]], block_size: int) -> dict[str, float]:
    """The metrics of reports as :py:meth:`HUReport.as_dict` gives them; those that are defined."""
    if not reports:
        return {}
    regions = [{**report["classes"], **report["rois"]} for report in reports]
    metrics = {
        "hu_class_shift": _worst(region["shift"] for each in regions for region in each.values()),
        "hu_block_shift": _worst(report["blocks"][str(block_size)]["worst"] for report in reports),
        "hu_low_band": _worst(report["low_band"] for report in reports),
        **{f"hu_{name}": _mean(report[name] for report in reports) for name in ("slope", "intercept", "structure")},
    }
    for name in dict.fromkeys(name for each in regions for name in each):
        found = [each[name] for each in regions if name in each]
        voxels = sum(region["voxels"] for region in found)
        metrics[f"hu_shift_{name}"] = sum(region["shift"] * region["voxels"] for region in found) / voxels
    defined = {name: value for name, value in metrics.items() if not math.isnan(value)}
    return {**defined, "hu_failures": sum(not report["passed"] for report in reports)}


def _worst(values: Iterable[float | None]) -> float:
    return max((abs(value) for value in values if value is not None), default=math.nan)


def _mean(values: Iterable[float | None]) -> float:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else math.nan
