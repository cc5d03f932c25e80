# SPDX-License-Identifier: Apache-2.0
"""The label update of DeepCut: what a network predicts inside the boxes, sharpened by the image, is the next label."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.ops.dense_field import FIELD_METHODS, refine_by_field

_LOWEST = 1e-6  # probability; in float32 1 - p can come no nearer to 1 than that by much
_HIGHEST = math.log((1 - _LOWEST) / _LOWEST)


class RefinePseudoLabel(Transform):
    """Refined masks of a prediction inside filled boxes: one step of DeepCut (Rajchl et al. 2017).

    Each class is a field of its own with the two labels background and object, whose energies are ``-log(1 - p)`` and
    ``-log p``. The mean field (:py:func:`~monai_labelfx.ops.refine_by_field`) lets neighbours of like intensity agree,
    the more probable label is taken, and what lies outside the boxes of the class becomes background. The image goes
    from its percentiles to 0 to 255 first, since the settings of the field are for 8-bit grey values.

    ``transform(prediction, image, filled)`` takes (C, \\*spatial), (K, \\*spatial) and (C, \\*spatial), above 0 in the
    boxes of a class, and returns (C, \\*spatial) uint8 in the container of the prediction, on its device.

    Args:
        kind: what the prediction is, ``"probabilities"`` (default) or ``"logits"`` of a sigmoid per class.
        method: ``"window"`` (default) or ``"dense"``, the latter with the extra ``crf``.
        percentiles: of each channel of the image, which become 0 and 255; values beyond are cut off. Default 0.5 and
            99.5; (0, 100) is the paper's code.
        margin: the field is made of the part of the image around the boxes of a class, up to this number of voxels
            away. Default 10, the reach of its bilateral kernel; ``None``: the whole image, as in the paper's code.
        keep_empty_boxes: a box (or several that touch) without any voxel of the refined mask stays filled. Default
            ``False``: it becomes background, as in the paper's code, and the next training loses that object.
        spacing: voxel size per spatial axis, in which the field measures distances; ``"image"``: that of the image's
            affine in units of its shortest axis, if it has one. Default ``None``: voxels.
        field: further keywords of :py:func:`~monai_labelfx.ops.refine_by_field`; the defaults are those of DeepCut as
            Kervadec et al. (2020) run it.

    Raises:
        ValueError: for an option out of its range; in the call, when shapes do not fit together, ``spacing`` is
            ``"image"`` without an affine, or image or prediction hold NaN.
        ImportError: for ``method="dense"`` without the extra ``crf``.

    Notes:
        Probabilities are kept within 1e-6 and 1 - 1e-6; the paper's code has an infinite energy at 0. It takes the
        argmax of a softmax over all classes, where here classes may overlap, as boxes do.

    Example:
        >>> image = torch.tensor([[[5.0, 5, 80, 80, 80, 80, 5, 5]]])
        >>> prediction = torch.tensor([[[0.1, 0.4, 0.4, 0.8, 0.8, 0.6, 0.6, 0.1]]])
        >>> filled = torch.tensor([[[0, 1, 1, 1, 1, 1, 1, 0]]])
        >>> RefinePseudoLabel()(prediction, image, filled).tolist()
        [[[0, 0, 1, 1, 1, 1, 0, 0]]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        kind: str = "probabilities",
        *,
        method: str = "window",
        percentiles: tuple[float, float] = (0.5, 99.5),
        margin: int | None = 10,
        keep_empty_boxes: bool = False,
        spacing: Sequence[float] | str | None = None,
        field: Mapping[str, Any] | None = None,
    ) -> None:
        if kind not in ("probabilities", "logits"):
            raise ValueError(f"kind must be 'probabilities' or 'logits', got {kind!r}.")
        if method not in FIELD_METHODS:
            raise ValueError(f"method must be one of {', '.join(map(repr, FIELD_METHODS))}, got {method!r}.")
        if len(percentiles) != 2 or not 0 <= percentiles[0] < percentiles[1] <= 100:
            raise ValueError(f"percentiles must be two numbers, 0 <= low < high <= 100, got {percentiles}.")
        if margin is not None and margin < 0:
            raise ValueError(f"margin must be a number of voxels, 0 or above, or None, got {margin}.")
        if isinstance(spacing, str) and spacing != "image":
            raise ValueError(f"spacing must be voxel sizes, 'image' or None, got {spacing!r}.")
        self.kind = kind
        self.percentiles = percentiles
        self.margin = margin
        self.keep_empty_boxes = keep_empty_boxes
        self.spacing = spacing
        self.field = {"method": method, **(field or {})}

    def __call__(  # type: ignore[override]
        self, prediction: NdarrayOrTensor, image: NdarrayOrTensor, filled: NdarrayOrTensor
    ) -> NdarrayOrTensor:
        values = _plain(prediction)
        boxes = _plain(filled).to(values.device) > 0
        grey = _plain(image).to(values.device)
        if values.shape != boxes.shape or values.shape[1:] != grey.shape[1:] or values.ndim < 2:
            raise ValueError(
                "prediction and filled boxes must be (C, *spatial) and the image (K, *spatial), got "
                f"{tuple(values.shape)}, {tuple(boxes.shape)} and {tuple(grey.shape)}."
            )
        if self.kind == "probabilities" and not (values.min() >= 0 and values.max() <= 1):
            raise ValueError(
                f"probabilities must lie between 0 and 1, got {float(values.min()):g} to {float(values.max()):g}."
            )
        grey = torch.stack([self._rescaled(channel) for channel in grey])
        options = {**self.field, "spacing": self._sizes(image, grey.ndim - 1)}
        result = torch.zeros(values.shape, dtype=torch.uint8, device=values.device)
        for channel, inside in enumerate(boxes):
            if not inside.any():
                continue
            window = self._window(inside)
            logits = self._two_labels(values[channel][window])
            labels = refine_by_field(logits, grey[(slice(None), *window)][None], **options)
            mask = (labels[0, 1] > labels[0, 0]) & inside[window]
            if self.keep_empty_boxes:
                mask |= _unanswered(inside[window], mask)
            result[channel][window] = mask.to(torch.uint8)
        return convert_to_dst_type(result, prediction, dtype=torch.uint8)[0]

    def _two_labels(self, values: torch.Tensor) -> torch.Tensor:
        """(1, 2, \\*spatial) log probabilities of background and object."""
        values = values.float()
        values = values.clamp(-_HIGHEST, _HIGHEST) if self.kind == "logits" else values.logit(_LOWEST)
        return torch.nn.functional.logsigmoid(torch.stack([-values, values]))[None]

    def _rescaled(self, channel: torch.Tensor) -> torch.Tensor:
        """One channel of the image from 0 to 255; a constant one is 0."""
        low, high = np.percentile(channel.detach().cpu().float().numpy(), self.percentiles)
        return ((channel.float() - low) * (255 / max(high - low, 1e-12))).clamp(0, 255)

    def _sizes(self, image: Any, ndim: int) -> Sequence[float] | None:
        if not isinstance(self.spacing, str):
            return self.spacing
        if not isinstance(image, MetaTensor):
            raise ValueError(f"spacing='image' needs an image with an affine, got a plain {type(image).__name__}.")
        sizes = [float(size) for size in image.pixdim][:ndim]
        return [size / min(sizes) for size in sizes]

    def _window(self, inside: torch.Tensor) -> tuple[slice, ...]:
        """The part of the image that the field is made of."""
        if self.margin is None:
            return (slice(None),) * inside.ndim
        places = inside.nonzero()
        low = (places.amin(0) - self.margin).clamp(min=0).tolist()
        high = (places.amax(0) + self.margin + 1).tolist()
        return tuple(slice(start, stop) for start, stop in zip(low, high, strict=True))


def _unanswered(inside: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The connected parts of the boxes in which the mask is empty."""
    from scipy import ndimage

    parts, count = ndimage.label(inside.cpu().numpy())
    answered = np.bincount(parts[mask.cpu().numpy()], minlength=count + 1) > 0
    answered[0] = True
    return torch.as_tensor(~answered[parts], device=inside.device)


def _plain(value: NdarrayOrTensor) -> torch.Tensor:
    return convert_to_tensor(value, track_meta=False).detach()


class RefinePseudoLabeld(MapTransform):
    """Dictionary twin of :py:class:`RefinePseudoLabel`: each of ``keys`` becomes its refined mask.

    Args:
        keys: keys of the predictions.
        image_key: key of the image.
        filled_key: key of the filled boxes.
        allow_missing_keys: skip keys that an item lacks instead of raising ``KeyError``.
        keywords: those of :py:class:`RefinePseudoLabel`.

    Raises:
        KeyError: an item has no image or no filled boxes.

    Example:
        >>> item = {"pred": torch.full((1, 2, 3), 0.9), "image": torch.zeros(1, 2, 3)}
        >>> item["label_filled"] = torch.tensor([[[0, 1, 1], [0, 1, 1]]])
        >>> RefinePseudoLabeld("pred")(item)["pred"].tolist()
        [[[0, 1, 1], [0, 1, 1]]]
    """

    backend = RefinePseudoLabel.backend

    def __init__(
        self,
        keys: KeysCollection,
        *,
        image_key: str = "image",
        filled_key: str = "label_filled",
        allow_missing_keys: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.image_key = image_key
        self.filled_key = filled_key
        self.transform = RefinePseudoLabel(**keywords)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for needed in (self.image_key, self.filled_key):
            if needed not in item:
                raise KeyError(f"RefinePseudoLabeld: the item has no {needed!r}; keys {sorted(map(str, item))}")
        for key in self.key_iterator(item):
            item[key] = self.transform(item[key], item[self.image_key], item[self.filled_key])
        return item
