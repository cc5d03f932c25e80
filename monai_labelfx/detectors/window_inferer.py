# SPDX-License-Identifier: Apache-2.0
"""Detection in large images: in windows, whose detections are merged."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from monai.inferers import Inferer

from monai_labelfx.detectors._window_masks import crops_of, united
from monai_labelfx.detectors._window_parts import Parts, join_parts, windows_around, without_covered
from monai_labelfx.ops.box_clustering import weighted_box_clustering
from monai_labelfx.ops.nms import greedy_nms

_MERGES = ("nms", "weighted")


def detector_keys(detector: Any) -> dict[str, str]:
    """What a detector calls ``boxes``, ``labels`` and ``scores``; MONAI's ``set_target_keys`` sets these attributes.

    Example:
        >>> detector_keys(torch.nn.Identity())
        {'boxes': 'boxes', 'labels': 'labels', 'scores': 'scores'}
    """
    names = {"boxes": "target_box_key", "labels": "target_label_key", "scores": "pred_score_key"}
    return {name: getattr(detector, attribute, name) for name, attribute in names.items()}


class WindowDetectionInferer(Inferer):
    """Run a detector in overlapping windows and merge what it detects, not maps of logits.

    So windows need not be aligned with the strides of a network, and it works for every detector that returns boxes,
    two-stage and mask detectors too. Windows are spread evenly over an image; an axis that is no longer than its window
    is covered by one of the axis' own length. An image that fits into one window gets exactly what the detector says of
    it (but for ``score_threshold`` and ``detections_per_image``).

    **Objects at the border of a window** are seen in part. A box that ends within ``border_margin`` of a side of its
    window, unless that is a side of the image too, is a *cut* box. Cut boxes are dealt with in this order:

    1. It is dropped where a box that is not cut covers at least half of it, has its class, and at least half its score.
    2. Those left belong to objects that no window shows whole. Two of one class are parts of one object where each is
       cut on the side on which the other goes on, their sections across that axis have an IoU of at least 0.5, and
       neither score is below half the other. Parts become one box around them, with the highest of their scores.
    3. What has no counterpart is dropped by rule 1 where parts that were joined cover it, such as the cap of a round
       object, whose section differs from the next one. Else it stays as it is: an object never vanishes because it is
       cut.

    The boxes that are not cut and those of 2 and 3 are then merged, class by class.

    Args:
        roi_size: size of a window, for each axis or for all; ``None``, 0 or below takes the whole axis.
        overlap: of neighbouring windows at least, as a share of their size, for each axis or for all; 0 to below 1.
            Objects up to this share of a window are whole in one of them. Default 0.5.
        sw_batch_size: windows in one call of the detector. Default 1.
        merge: ``"nms"`` (default) keeps the box of the highest score of those that overlap; ``"weighted"`` averages
            them, and lowers the score where windows that show the place whole found nothing there, see
            :py:func:`monai_labelfx.ops.box_clustering.weighted_box_clustering`; masks need ``"nms"``.
        iou_threshold: IoU of boxes of one class above which they are one object. Default 0.5.
        border_margin: in voxels, for each axis or for all. Default 1.
        score_threshold: detections below are left out. Default 0, the detector's own threshold counts.
        detections_per_image: how many are kept, those of the highest scores. Default ``None``, all.

    Shape:
        - inputs: (B, C, \\*spatial), or a sequence of images (C, \\*spatial) of any sizes.
        - output: for each image a mapping of ``boxes`` (N, 2 \\* D) in voxels of the image, ``labels`` (N,), ``scores``
          (N,) in falling order and, where the detector gives ``masks``, those, bool and in the detector's form:
          (N, \\*spatial), or a list of N blocks, each from the voxel ``floor(low)`` of its box to ``ceil(high)``, cut
          at the image. Boxes, labels and scores are called what the detector calls them.

    Raises:
        ValueError: for an option out of its range; in the call where ``roi_size`` or ``overlap`` have another number of
            axes than an image, where the detector is in training mode, or where ``merge="weighted"`` meets masks.

    Example:
        >>> import torch
        >>> def whole(images):  # a "detector" that finds what is bright
        ...     found = torch.stack([image[0].nonzero().amin(0) for image in images]).float()
        ...     one = lambda low: {"boxes": torch.cat([low, low + 4])[None], "labels": torch.tensor([0]),
        ...                        "scores": torch.tensor([0.5])}
        ...     return [one(low) for low in found]
        >>> image = torch.zeros(1, 1, 16, 16)
        >>> image[..., 6:10, 6:10] = 1
        >>> WindowDetectionInferer(12, overlap=0.6)(image, whole)[0]["boxes"]
        tensor([[ 6.,  6., 10., 10.]])
    """

    def __init__(
        self,
        roi_size: Sequence[int | None] | int | None,
        *,
        overlap: Sequence[float] | float = 0.5,
        sw_batch_size: int = 1,
        merge: str = "nms",
        iou_threshold: float = 0.5,
        border_margin: Sequence[float] | float = 1.0,
        score_threshold: float = 0.0,
        detections_per_image: int | None = None,
    ) -> None:
        super().__init__()
        if merge not in _MERGES:
            raise ValueError(f"merge must be one of {', '.join(map(repr, _MERGES))}, got {merge!r}.")
        if not all(0 <= share < 1 for share in _each(overlap)):
            raise ValueError(f"overlap must be 0 to below 1, got {overlap!r}.")
        if not all(margin >= 0 for margin in _each(border_margin)):
            raise ValueError(f"border_margin must be 0 or above, got {border_margin!r}.")
        if not 0 <= iou_threshold <= 1:
            raise ValueError(f"iou_threshold must be 0 to 1, got {iou_threshold}.")
        for name, number in (("sw_batch_size", sw_batch_size), ("detections_per_image", detections_per_image)):
            if number is not None and number < 1:
                raise ValueError(f"{name} must be 1 or above, got {number}.")
        self.roi_size, self.overlap, self.sw_batch_size = roi_size, overlap, sw_batch_size
        self.merge, self.iou_threshold, self.border_margin = merge, iou_threshold, border_margin
        self.score_threshold, self.detections_per_image = score_threshold, detections_per_image

    def __call__(
        self,
        inputs: torch.Tensor | Sequence[torch.Tensor],
        network: Callable[..., Any],
        *args: Any,
        **kwargs: Any,
    ) -> list[dict[str, Any]]:
        """Detections of each image; ``network`` is the detector, further arguments are handed to it."""
        if getattr(network, "training", False):
            raise ValueError("windows need a detector in evaluation mode; call detector.eval() first.")
        images = [image.as_subclass(torch.Tensor) for image in inputs]
        jobs: dict[tuple[int, ...], list[tuple[int, tuple[int, ...]]]] = defaultdict(list)
        for number, image in enumerate(images):
            size, starts = self._windows(tuple(image.shape[1:]))
            jobs[size] += [(number, start) for start in starts]
        seen: list[list[_Window]] = [[] for _ in images]
        keys = detector_keys(network)
        for size, places in jobs.items():
            whole = len(places) == len({number for number, _ in places})  # one window each: nothing to paste later
            for chunk in _chunks(places, self.sw_batch_size):
                batch = torch.stack([images[number][(slice(None), *_slices(low, size))] for number, low in chunk])
                for (number, low), found in zip(chunk, network(batch, *args, **kwargs), strict=True):
                    seen[number].append(_Window(low, size, self._above_threshold(found, keys, crop=not whole)))
        return [self._merged(one, tuple(image.shape[1:]), keys) for one, image in zip(seen, images, strict=True)]

    def _windows(self, shape: tuple[int, ...]) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """The size of the windows of an image of this shape, and their low corners."""
        axes = len(shape)
        sizes = [
            size if wanted is None or wanted < 1 else min(size, wanted)
            for size, wanted in zip(shape, _per_axis("roi_size", self.roi_size, axes), strict=True)
        ]
        shares = _per_axis("overlap", self.overlap, axes)
        lines = [_starts(*one) for one in zip(shape, sizes, shares, strict=True)]
        grid = torch.cartesian_prod(*(torch.tensor(line) for line in lines)).reshape(-1, axes)
        return tuple(sizes), [tuple(start) for start in grid.tolist()]

    def _above_threshold(self, found: Any, keys: dict[str, str], *, crop: bool) -> dict[str, Any]:
        """The detections of a window that count; their masks as crops, since most of a mask is empty."""
        keep = found[keys["scores"]] >= self.score_threshold
        result = {name: found[key][keep].as_subclass(torch.Tensor) for name, key in keys.items()}
        if "masks" in found:
            if self.merge != "nms":
                raise ValueError(f"detections with masks cannot be averaged: use merge='nms', got {self.merge!r}.")
            masks, result["blocks"] = found["masks"], isinstance(found["masks"], list)
            if result["blocks"]:
                masks = [masks[row].as_subclass(torch.Tensor) != 0 for row in keep.nonzero()[:, 0].tolist()]
            else:
                masks = masks[keep].as_subclass(torch.Tensor) != 0
            result |= {"crops": crops_of(masks, result["boxes"])} if crop else {"masks": masks}
        return result

    def _merged(self, windows: Sequence[_Window], shape: tuple[int, ...], keys: dict[str, str]) -> dict[str, Any]:
        if len(windows) == 1:
            found = windows[0].found
            chosen = slice(self.detections_per_image)
            result = {key: found[name][chosen] for name, key in keys.items()}
            if "crops" in found:  # in one batch with larger images
                objects = [[one] for one in found["crops"][chosen]]
                result["masks"] = united(objects, shape, found["boxes"][chosen], blocks=found["blocks"])
            elif "masks" in found:
                result["masks"] = found["masks"][chosen]
            return result
        boxes, labels, scores, sources, members, crops = self._joined(windows, shape)
        if self.merge == "weighted":
            margins = boxes.new_tensor(_per_axis("border_margin", self.border_margin, len(shape)))
            boxes, scores, labels = weighted_box_clustering(
                boxes,
                scores,
                labels,
                iou_threshold=self.iou_threshold,
                expected=windows_around(boxes, [one.low for one in windows], windows[0].size, shape, margins),
                sources=sources,
                min_score=self.score_threshold,
            )
            kept = torch.arange(len(scores), device=boxes.device)[: self.detections_per_image]
        else:
            options = {"classes": labels, "max_kept": self.detections_per_image}
            kept = greedy_nms(boxes, scores, self.iou_threshold, **options)
        result = {keys["boxes"]: boxes[kept], keys["labels"]: labels[kept], keys["scores"]: scores[kept]}
        if "crops" in windows[0].found:
            objects = [[crops[one] for one in members[group]] for group in kept.tolist()]
            result["masks"] = united(objects, shape, boxes[kept], blocks=windows[0].found["blocks"])
        return result

    def _joined(self, windows: Sequence[_Window], shape: tuple[int, ...]) -> tuple[Any, ...]:
        """Boxes, labels, scores and a window of each, cut ones judged; their members, and the masks of these."""
        counts = [len(window.found["scores"]) for window in windows]
        boxes, labels, scores = (torch.cat([window.found[key] for window in windows]) for key in detector_keys(None))
        number = torch.repeat_interleave(torch.tensor(counts)).to(boxes.device)
        low = boxes.new_tensor([window.low for window in windows])[number]
        boxes = boxes + torch.cat([low, low], dim=1)
        margins = boxes.new_tensor(_per_axis("border_margin", self.border_margin, len(shape)))
        parts = Parts(boxes, labels, scores, low, low + low.new_tensor(windows[0].size))
        cut = parts.cut(shape, margins)
        kept = without_covered(parts, cut.any(dim=1))
        boxes, labels, scores, group = join_parts(parts.take(kept), cut[kept])
        alone = cut[kept].any(dim=1) & (group.bincount(minlength=len(boxes))[group] == 1)
        caps = torch.zeros(len(boxes), dtype=torch.bool, device=boxes.device).index_fill(0, group[alone], True)
        left = without_covered(Parts(boxes, labels, scores, boxes, boxes), caps)
        crops = [
            (tuple(a + b for a, b in zip(window.low, start, strict=True)), crop)
            for window in windows
            for start, crop in window.found.get("crops", ())
        ]
        members: list[list[int]] = [[] for _ in range(len(boxes))]
        for index, target in zip(kept.tolist(), group.tolist(), strict=True):
            members[target].append(index)
        members = [members[row] for row in left.tolist()]
        boxes, labels, scores = boxes[left], labels[left], scores[left]
        first = torch.tensor([one[0] for one in members], dtype=torch.int64, device=boxes.device)
        return boxes, labels, scores, number[first], members, crops


class _Window(NamedTuple):
    low: tuple[int, ...]
    size: tuple[int, ...]
    found: dict[str, Any]


def _each(value: Any) -> Sequence[Any]:
    return value if isinstance(value, Sequence) else [value]


def _per_axis(name: str, value: Any, axes: int) -> Sequence[Any]:
    values = _each(value)
    values = list(values) * axes if len(values) == 1 else values
    if len(values) != axes:
        raise ValueError(f"{name} must be one number or one for each of the {axes} axes of the image, got {value!r}.")
    return values


def _starts(size: int, window: int, overlap: float) -> list[int]:
    """Where windows begin along an axis: the first at 0, the last ends with the axis, evenly spread."""
    count = math.ceil((size - window) / max(1, int(window * (1 - overlap)))) + 1
    return [round(k * (size - window) / (count - 1)) for k in range(count)] if count > 1 else [0]


def _slices(low: Sequence[int], size: Sequence[int]) -> tuple[slice, ...]:
    return tuple(slice(start, start + length) for start, length in zip(low, size, strict=True))


def _chunks(items: list[Any], size: int) -> Iterator[list[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
