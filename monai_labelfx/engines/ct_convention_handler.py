# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM of denoised CT under named conventions, as a handler."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch

from monai_labelfx.engines._image_rows import ImageRowsHandler
from monai_labelfx.engines._json import write_json
from monai_labelfx.metrics.ct_conventions import CONVENTIONS, CTConventionMetric, mean_of_scores


class CTConventionHandler(ImageRowsHandler):
    """PSNR and SSIM in HU against a reference, each result with its convention in its name.

    For ``"dml_ct"``, ``engine.state.metrics`` gets ``PSNR_dml_ct`` and ``SSIM_dml_ct`` of the predictions, and
    ``PSNR_dml_ct_input`` and ``SSIM_dml_ct_input`` of the noisy images as they came: what a number is worth shows only
    beside that of the input. They are means over the images of all processes whose scores are finite; see
    :py:func:`~monai_labelfx.metrics.ct_conventions.ct_psnr`.

    It needs decollated items, and reads batch and output together. Items without prediction or reference are left out;
    when no item has both, there is no metric and one line in the log.

    Args:
        conventions: names in :py:data:`~monai_labelfx.metrics.ct_conventions.CONVENTIONS`. Default: the paper's code.
        kinds: ``"PSNR"``, ``"SSIM"`` or both, the default.
        pred_key: key of the predictions (C, \\*spatial) in HU.
        reference_key: key of the references.
        input_key: key of the noisy images in HU. ``None``, or an item without it: not scored.
        slicewise: see :py:func:`~monai_labelfx.metrics.ct_conventions.ct_psnr`.
        output_dir: folder for ``ct_conventions.json``: the results, the definitions of their conventions, and a row
            per image. Default ``None``, no file.

    Raises:
        ValueError: when a convention or kind is unknown or none is given; in a run, when the output is not decollated,
            images do not fit together, or it is the key metric and there is no such finite result.

    Example:
        >>> from ignite.engine import Engine
        >>> engine = Engine(lambda engine, batch: batch)
        >>> CTConventionHandler(["range_4096"], kinds=["PSNR"]).attach(engine)
        >>> reference = torch.zeros(1, 8, 8)
        >>> items = [{"pred": reference + 2.0, "reference": reference, "hu": reference + 20.0}, {"pred": reference}]
        >>> {name: round(value, 2) for name, value in engine.run([items]).metrics.items()}
        {'PSNR_range_4096': 66.23, 'PSNR_range_4096_input': 46.23}
    """

    label = "ct_conventions"

    def __init__(
        self,
        conventions: Sequence[str] = ("dml_ct",),
        *,
        kinds: Sequence[str] = ("PSNR", "SSIM"),
        pred_key: str = "pred",
        reference_key: str = "reference",
        input_key: str | None = "hu",
        slicewise: bool = True,
        output_dir: str | os.PathLike | None = None,
    ) -> None:
        if isinstance(conventions, str) or not conventions or not kinds:
            raise ValueError(f"conventions and kinds must be lists of names, got {conventions!r} and {kinds!r}.")
        self.metrics = [
            CTConventionMetric(convention, kind, slicewise=slicewise)  # type: ignore[arg-type]
            for convention in conventions
            for kind in kinds
        ]
        self.conventions = tuple(conventions)
        self.pred_key = pred_key
        self.reference_key = reference_key
        self.input_key = input_key
        self.output_dir = None if output_dir is None else Path(output_dir)
        super().__init__()

    def _row(self, item: Mapping[str, Any]) -> dict[str, Any] | None:
        prediction, reference = item.get(self.pred_key), item.get(self.reference_key)
        if prediction is None or reference is None:
            return None
        source = None if self.input_key is None else item.get(self.input_key)
        name = getattr(prediction, "meta", getattr(reference, "meta", {})).get("filename_or_obj")
        row: dict[str, Any] = {"image": None if name is None else str(name)}
        for end, image in (("", prediction), ("_input", source)):
            for metric in self.metrics if image is not None else ():
                row[metric.name + end] = float(metric([image], [reference]))
                metric.reset()
        return row

    def _results(self, rows: list[dict[str, Any]]) -> dict[str, float]:
        names = [metric.name + end for end in ("", "_input") for metric in self.metrics]
        scores = {name: torch.tensor([row[name] for row in rows if name in row], dtype=torch.float64) for name in names}
        means = {name: float(mean_of_scores(values)) for name, values in scores.items()}
        return {name: mean for name, mean in means.items() if not math.isnan(mean)}

    def compute(self) -> dict[str, float]:
        """The results by name, none without references; also written to the file."""
        rows = self._gathered()
        results = self._results(rows) if rows else {}
        if rows and self.output_dir is not None and idist.get_rank() == 0:
            definitions = {name: _strict(CONVENTIONS[name]._asdict()) for name in self.conventions}
            content = {
                "metrics": _strict(results),
                "conventions": definitions,
                "images": [_strict(row) for row in rows],
            }
            self.output_dir.mkdir(parents=True, exist_ok=True)
            write_json(self.output_dir / "ct_conventions.json", content)
        return results


def _strict(values: Mapping[str, Any]) -> dict[str, Any]:
    """With ``None`` for numbers that are not finite, which JSON does not know."""

    def plain(value: Any) -> Any:
        if isinstance(value, tuple):
            return [plain(one) for one in value]
        return None if isinstance(value, float) and not math.isfinite(value) else value

    return {name: plain(value) for name, value in values.items()}
