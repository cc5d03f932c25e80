# SPDX-License-Identifier: Apache-2.0
"""A picture of what an evaluator produced: image, prediction and reference of the first items, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_labelfx.visualize import save_overview


class OverviewSaver:
    """Handler that draws items of an evaluator into a PNG when the evaluator is done.

    It reads decollated batches and outputs, after postprocessing (``decollate=True``, MONAI's default for evaluators).
    An item that lacks some of the keys is drawn with the others. Only rank 0 draws.

    Args:
        output_dir: folder of the picture; made when absent.
        items: ``[key, kind]`` or ``[key, kind, caption]`` for each panel of a row; kinds are those of
            :py:func:`monai_labelfx.visualize.overview_page`: ``"image"``, ``"labels"``, ``"classes"``.
        maximum: how many items are drawn, the first ones.
        filename: name of the page.
        per_item: write one picture per item, named after its file, instead of one page.
        image_key: key whose meta names the item; only the stem of the file name is used.
        orientation: axis codes in which volumes with an affine are drawn; the default shows axial slices as
            radiologists look at them. ``None`` draws them as they were loaded. 2-D pictures are always drawn as loaded.
        planes: 1 or 3 slices of a volume, as of ``overview_page``.
        panel_size: as of ``overview_page``.

    Raises:
        ValueError: if ``items`` is empty or one of them is not ``[key, kind]`` or ``[key, kind, caption]``.

    Example:
        >>> saver = OverviewSaver("runs/a", items=[["noisy", "image"], ["label", "labels", "reference"]])
        >>> saver.maximum
        8
    """

    def __init__(
        self,
        output_dir: str | Path,
        *,
        items: Sequence[Sequence[str]],
        maximum: int = 8,
        filename: str = "overview.png",
        per_item: bool = False,
        image_key: str = "image",
        orientation: str | None = "LPS",
        planes: int = 1,
        panel_size: int = 240,
    ) -> None:
        if not items or not all(len(item) in (2, 3) and not isinstance(item, str) for item in items):
            raise ValueError(f"items must be a list of [key, kind] or [key, kind, caption], got {items!r}")
        self.output_dir = Path(output_dir)
        self.items = [(key, kind, caption[0] if caption else key) for key, kind, *caption in items]
        self.maximum = maximum
        self.filename = filename
        self.per_item = per_item
        self.image_key = image_key
        self.planes = planes
        self.panel_size = panel_size
        self._orient = None if orientation is None else Orientation(axcodes=orientation, labels=None)
        self._rows: list[tuple[str, list[tuple[str, Any, str]]]] = []
        self._spacings: list[Sequence[float] | None] = []

    def attach(self, engine: Engine) -> None:
        """Add the handler to an evaluator."""
        engine.add_event_handler(Events.STARTED, self._forget)
        engine.add_event_handler(Events.ITERATION_COMPLETED, self._collect)
        engine.add_event_handler(Events.COMPLETED, self._save)

    def _forget(self, engine: Engine) -> None:
        self._rows, self._spacings = [], []

    def _collect(self, engine: Engine) -> None:
        batch, output = engine.state.batch, engine.state.output
        if not isinstance(output, list):
            raise ValueError("OverviewSaver needs decollated items: use decollate=True in the evaluator")
        for number, result in enumerate(output):
            if len(self._rows) >= self.maximum or idist.get_rank() > 0:
                return
            item = {**(batch[number] if isinstance(batch, list) else {}), **result}
            panels = [(caption, self._prepared(item[key]), kind) for key, kind, caption in self.items if key in item]
            if panels:
                self._rows.append((self._title(item), [(c, array, kind) for c, (array, _), kind in panels]))
                self._spacings.append(panels[0][1][1])

    def _prepared(self, value: Any) -> tuple[torch.Tensor, list[float] | None]:
        """The first channel on the CPU, upright, thinned to the slice that is drawn; and its voxel size."""
        value = torch.as_tensor(value)
        volume = value.ndim == 4
        meta = isinstance(value, MetaTensor)
        if volume and meta and self._orient is not None:
            value = self._orient(value[:1])
        spacing = [float(s) for s in value.pixdim] if meta else None
        plain = (value.as_tensor() if isinstance(value, MetaTensor) else value)[:1].detach().cpu()
        if volume and self.planes == 1:
            middle = plain.shape[-1] // 2
            plain = plain[..., middle : middle + 1].clone()
        return plain, spacing[: plain.ndim - 1] if spacing else None

    def _title(self, item: Mapping[str, Any]) -> str:
        name = getattr(item.get(self.image_key), "meta", {}).get("filename_or_obj")
        stem = Path(str(name)).name.split(".")[0] if name else ""
        return stem or f"item {len(self._rows) + 1}"

    def _save(self, engine: Engine) -> None:
        if not self._rows:
            return
        options: dict[str, Any] = {"planes": self.planes, "panel_size": self.panel_size}
        if self.per_item:
            for number, (row, spacing) in enumerate(zip(self._rows, self._spacings, strict=True)):
                name = row[0] if row[0] not in [r[0] for r in self._rows[:number]] else f"{row[0]}_{number + 1}"
                save_overview(self.output_dir / f"{name}.png", [row], spacings=[spacing], **options)
        else:
            save_overview(self.output_dir / self.filename, self._rows, spacings=self._spacings, **options)
        self._forget(engine)
