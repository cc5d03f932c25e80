# SPDX-License-Identifier: Apache-2.0
"""A picture of what an evaluator produced: image, prediction and reference of the first items, side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import ignite.distributed as idist
import numpy as np
import torch
from ignite.engine import Engine, Events
from monai.data import MetaTensor
from monai.transforms import Orientation

from monai_labelfx.metrics._mask_crops import MaskCrops, place_crops
from monai_labelfx.ops.box_affine import boxes_through_affine
from monai_labelfx.visualize import save_overview
from monai_labelfx.visualize.draw_detections import drawn_masks, drawn_of, place_of

_IMAGES = ("image", "colour")
_NUMBERS = ("boxes", "labels", "scores")


class OverviewSaver:
    """Handler that draws items of an evaluator into a PNG when the evaluator is done.

    It reads decollated batches and outputs, after postprocessing (``decollate=True``, MONAI's default for evaluators).
    An item that lacks some of the keys is drawn with the others. Only rank 0 draws.

    Args:
        output_dir: folder of the picture; made when absent.
        items: ``[key, kind]`` or ``[key, kind, caption]`` for each panel of a row; kinds are those of
            :py:func:`monai_labelfx.visualize.overview_page`: ``"image"``, ``"colour"``, ``"labels"``, ``"classes"``,
            ``"boxes"``.
            Boxes are drawn over the row's first image, in whose voxels they are. Their key may be a list of keys to
            draw in one panel, such as ``[[pred, target], boxes, "prediction, reference dashed"]``. Masks that are
            with them, (N, \\*spatial) or a list of blocks, are drawn too.
        maximum: how many items are drawn, the first ones.
        filename: name of the page.
        per_item: write one picture per item, named after its file, instead of one page.
        image_key: key whose meta names the item; only the stem of the file name is used.
        orientation: axis codes in which volumes with an affine are drawn; the default shows axial slices as
            radiologists look at them. ``None`` draws them as they were loaded. 2-D pictures are always drawn as loaded.
        planes: 1 or 3 slices of a volume, as of ``overview_page``.
        panel_size: as of ``overview_page``.
        names: label -> what is written beside a box.
        min_score: boxes below are left out.
        max_boxes: how many boxes with scores a panel shows, the best ones.
        windows: key -> the two values that become black and white in its panels; percentiles in the others.
        differences: name -> two keys: items may show the first minus the second under that name.

    Raises:
        ValueError: if ``items`` is empty, one of them is not ``[key, kind]`` or ``[key, kind, caption]``, or there are
            boxes without an image.

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
        names: Mapping[int, str] | None = None,
        min_score: float = 0.0,
        max_boxes: int = 25,
        windows: Mapping[str, tuple[float, float]] | None = None,
        differences: Mapping[str, tuple[str, str]] | None = None,
    ) -> None:
        if not items or not all(len(item) in (2, 3) and not isinstance(item, str) for item in items):
            raise ValueError(f"items must be a list of [key, kind] or [key, kind, caption], got {items!r}")
        self.output_dir = Path(output_dir)
        self.items = [(key, kind, caption[0] if caption else ", ".join(_keys(key))) for key, kind, *caption in items]
        kinds = [kind for _, kind, _ in self.items]
        if "boxes" in kinds and not set(kinds) & set(_IMAGES):
            raise ValueError(f"boxes are drawn over an image: items must have one of kind 'image', got {items!r}")
        self.maximum = maximum
        self.filename = filename
        self.per_item = per_item
        self.image_key = image_key
        self.planes = planes
        self.panel_size = panel_size
        self.names = names
        self.min_score = min_score
        self.max_boxes = max_boxes
        self.differences = dict(differences or {})
        self.windows = {caption: windows[key] for key, _, caption in self.items if key in windows} if windows else {}
        self._orient = None if orientation is None else Orientation(axcodes=orientation, labels=None)
        self._box_keys = [key for keys, kind, _ in self.items if kind == "boxes" for key in _keys(keys)]
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
            item |= {name: item[a] - item[b] for name, (a, b) in self.differences.items() if a in item and b in item}
            present = {key: item[key] for keys, _, _ in self.items for key in _keys(keys) if item.get(key) is not None}
            image = next((present[key] for key, kind, _ in self.items if kind in _IMAGES and key in present), None)
            boxes = {key: self._upright_boxes(present[key], image) for key in self._box_keys if key in present}
            cut = self._cut([boxes[key] for key in boxes], image)
            panels: list[tuple[str, Any, str]] = []
            spacing: list[float] | None = None
            for keys, kind, caption in self.items:
                found = [key for key in _keys(keys) if key in present]
                if kind == "boxes" and found and image is not None:
                    panels.append((caption, [_at(boxes[key], cut) for key in found], kind))
                elif kind != "boxes" and found:
                    array, own = self._prepared(present[found[0]], cut, 3 if kind == "colour" else 1)
                    spacing = own if all(kind == "boxes" for _, _, kind in panels) else spacing
                    panels.append((caption, array, kind))
            if panels:
                self._rows.append((self._title(item), panels))
                self._spacings.append(spacing)

    def _cut(self, found: Sequence[Mapping[str, Any]], image: Any) -> int | None:
        """Where the one slice of a volume is cut that shows the best box, if it has boxes."""
        if not found or image is None or image.ndim != 4 or self.planes != 1:
            return None
        drawn = drawn_of(found, found[0]["shape"], self.min_score, self.max_boxes)
        return place_of(drawn, found[0]["shape"])[-1]

    def _upright_boxes(self, value: Mapping[str, Any], image: Any) -> dict[str, Any]:
        """Boxes and masks on the CPU, in the voxels of the image as it is drawn, and the shape of that."""
        if image is None:
            return {}
        shape = tuple(image.shape[1:])
        found: dict[str, Any] = {
            key: torch.as_tensor(value[key]).detach() for key in _NUMBERS if value.get(key) is not None
        }
        rows = None
        if "scores" in found:  # masks of the others would take time and memory
            rows = found["scores"].argsort(descending=True)[: self.max_boxes]
            found = {key: part[rows] for key, part in found.items()}
        found = {key: part.cpu().as_subclass(torch.Tensor) for key, part in found.items()}
        if not found["boxes"].numel():
            found["boxes"] = torch.zeros(0, 2 * len(shape))
        masks = value.get("masks")
        if masks is not None:
            if rows is not None:
                masks = [masks[row] for row in rows.tolist()] if isinstance(masks, list | tuple) else masks[rows]
            found["masks"] = drawn_masks(masks, found["boxes"], shape, "masks")
        if image.ndim == 4 and isinstance(image, MetaTensor) and self._orient is not None:
            upright: Any = self._orient(image[:1])
            moved = torch.linalg.inv(upright.affine.double()) @ image.affine.double()
            shape = tuple(upright.shape[1:])
            found["boxes"] = boxes_through_affine(found["boxes"], moved)
            if masks is not None:
                found["masks"] = _turned(found["masks"], moved, shape)
        return {**found, "shape": shape}

    def _prepared(
        self, value: Any, cut: int | None = None, channels: int = 1
    ) -> tuple[torch.Tensor, list[float] | None]:
        """The first channels on the CPU, upright, thinned to the slice that is drawn; and its voxel size."""
        value = torch.as_tensor(value)
        volume = value.ndim == 4
        meta = isinstance(value, MetaTensor)
        if volume and meta and self._orient is not None:
            value = self._orient(value[:channels])
        spacing = [float(s) for s in value.pixdim] if meta else None
        plain = (value.as_tensor() if isinstance(value, MetaTensor) else value)[:channels].detach().cpu()
        if volume and self.planes == 1:
            middle = plain.shape[-1] // 2 if cut is None else min(cut, plain.shape[-1] - 1)
            plain = plain[..., middle : middle + 1].clone()
        return plain, spacing[: plain.ndim - 1] if spacing else None

    def _title(self, item: Mapping[str, Any]) -> str:
        name = getattr(item.get(self.image_key), "meta", {}).get("filename_or_obj")
        stem = Path(str(name)).name.split(".")[0] if name else ""
        return stem or f"item {len(self._rows) + 1}"

    def _save(self, engine: Engine) -> None:
        if not self._rows:
            return
        names = ("planes", "panel_size", "names", "min_score", "max_boxes", "windows")
        options: dict[str, Any] = {name: getattr(self, name) for name in names}
        if self.per_item:
            for number, (row, spacing) in enumerate(zip(self._rows, self._spacings, strict=True)):
                name = row[0] if row[0] not in [r[0] for r in self._rows[:number]] else f"{row[0]}_{number + 1}"
                save_overview(self.output_dir / f"{name}.png", [row], spacings=[spacing], **options)
        else:
            save_overview(self.output_dir / self.filename, self._rows, spacings=self._spacings, **options)
        self._forget(engine)


def _keys(key: str | Sequence[str]) -> list[str]:
    return [key] if isinstance(key, str) else list(key)


def _turned(masks: MaskCrops, moved: torch.Tensor, shape: tuple[int, ...]) -> MaskCrops:
    """Masks where ``moved``, of which axes are swapped and flipped, takes them."""
    linear = moved[:3, :3]
    order = linear.abs().argmax(dim=1).tolist()
    flips = tuple(axis for axis, old in enumerate(order) if linear[axis, old] < 0)
    crops = [np.flip(crop.transpose(order), flips) for crop in masks.crops]
    blocks = torch.as_tensor(np.concatenate([masks.low, masks.high], axis=1), dtype=torch.float64)
    low, high = np.split(boxes_through_affine(blocks, moved).round().numpy().astype(np.int64), 2, axis=1)
    return MaskCrops(low, high, masks.volumes, crops, shape)


def _at(found: Mapping[str, Any], cut: int | None) -> dict[str, Any]:
    """Boxes and masks of the one slice that is left of a volume; all of them where none was cut."""
    result = {key: value for key, value in found.items() if key != "shape"}
    if cut is None:
        return result
    low, high = found["boxes"][:, 2], found["boxes"][:, 5]
    crossing = (low < cut + 1) & (high > cut)
    result |= {key: result[key][crossing] for key in _NUMBERS if key in result}
    result["boxes"] = result["boxes"].clone()
    result["boxes"][:, [2, 5]] = result["boxes"].new_tensor([0.0, 1.0])
    if "masks" in result:
        masks = result["masks"].take(np.flatnonzero(crossing.numpy()))
        slices = [
            crop[..., max(cut - start, 0) : max(cut + 1 - start, 0)]
            for start, crop in zip(masks.low[:, 2].tolist(), masks.crops, strict=True)
        ]
        masks.low[:, 2] = 0
        result["masks"] = place_crops(slices, masks.low, (*masks.shape[:2], 1))
    return result
