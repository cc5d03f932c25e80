# SPDX-License-Identifier: Apache-2.0
"""Label maps to the tight boxes of their objects: weak labels from masks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.ops.components import component_boxes, small_components
from monai_labelfx.ops.instances import integer_labels, per_axis
from monai_labelfx.transforms._box_rows import checked_max_boxes, padded_rows
from monai_labelfx.transforms._keyed import Keyed

_KINDS = ("classes", "masks", "instances")


class LabelsToTightBoxes(Transform):
    """One tight box for each connected component of a label map, and the class channel of each box.

    The result is a mapping, so the dictionary twin leaves the label as it is and writes beside it, for the key "label",
    "label_boxes" (N, 2 * spatial_dims) float32 and "label_box_labels" (N,) int64: what a loss on boxes takes as its
    target. Boxes are in voxels of the label as it comes in: low corner, then high corner, half open (MONAI's standard
    mode). Spatial transforms that follow do not move them: put it behind all of these, or before them and
    :py:class:`BoxesToBagsd` behind. For that the boxes of a ``MetaTensor`` are a ``MetaTensor`` with its affine. See
    :func:`monai_labelfx.ops.component_boxes`.

    Args:
        kind: what the label is. ``"classes"``: (1, \\*spatial), the number v is the class channel v - 1. ``"masks"``:
            (C, \\*spatial), what is not 0 in channel c is of class c; channels may overlap. ``"instances"``:
            (C, \\*spatial), each number in channel c is one object of class c. Default ``"classes"``.
        connectivity: how many axes two voxels of one component may differ in, 1 (faces) to the number of spatial axes.
            Default ``None``, the number of spatial axes, as in the code of the paper.
        min_size: smallest component that gets a box, in voxels. With a number above 1 the mapping also has
            "_box_ignore" (1, \\*spatial) bool with the meta data of the label: the voxels of the dropped components,
            for the part ``ignore`` of the target. Default 0: every component has a box, single voxels too.
        margin: voxels to loosen each box by on either side of each axis, one number or one per axis; boxes end at the
            image. To study loose boxes. Default 0, tight.
        max_boxes: pad to this number of boxes with zeros, label -1, so that images with different numbers of boxes
            make a batch (B, max_boxes, 2 * spatial_dims). Default ``None``, no padding.
        first_class: added to the class channels. Default 0; 1 for a network whose channel 0 is the background.

    Raises:
        ValueError: when the label has the wrong number of channels, negative or fractional numbers, or more components
            than ``max_boxes``: to drop some would turn their voxels into background.

    Example:
        >>> label = torch.tensor([[[1, 1, 0, 0], [0, 0, 0, 2], [0, 1, 0, 2]]])
        >>> out = LabelsToTightBoxesd("label", max_boxes=4)({"label": label})
        >>> out["label_boxes"].tolist()
        [[0.0, 0.0, 1.0, 2.0], [2.0, 1.0, 3.0, 2.0], [1.0, 3.0, 3.0, 4.0], [0.0, 0.0, 0.0, 0.0]]
        >>> out["label_box_labels"].tolist()
        [0, 0, 1, -1]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        kind: str = "classes",
        *,
        connectivity: int | None = None,
        min_size: int = 0,
        margin: int | Sequence[int] = 0,
        max_boxes: int | None = None,
        first_class: int = 0,
    ) -> None:
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}.")
        if min_size < 0:
            raise ValueError(f"min_size must be a number of voxels, 0 or above, got {min_size}.")
        if first_class < 0:
            raise ValueError(f"first_class must be a channel, 0 or above, got {first_class}.")
        self.kind = kind
        self.connectivity = connectivity
        self.min_size = min_size
        self.margin = margin
        self.max_boxes = checked_max_boxes(max_boxes)
        self.first_class = first_class

    def __call__(self, img: NdarrayOrTensor) -> dict[str, torch.Tensor]:
        label = convert_to_tensor(img, track_meta=get_track_meta())
        if label.ndim < 2 or label.shape[0] < 1 or (self.kind == "classes" and label.shape[0] != 1):
            wanted = "(1, *spatial)" if self.kind == "classes" else "(C, *spatial)"
            raise ValueError(f"a label of kind {self.kind!r} must have shape {wanted}, got {tuple(label.shape)}.")
        channels = label.as_subclass(torch.Tensor)
        if self.kind == "masks":
            channels = integer_labels(channels, "the label") != 0
        keywords: dict[str, Any] = {"connectivity": self.connectivity, "instances": self.kind == "instances"}
        found = [component_boxes(channel, min_size=self.min_size, **keywords) for channel in channels]
        boxes = torch.cat([one for one, _ in found])
        classes = torch.cat([self._channel(number, values) for number, (_, values) in enumerate(found)])
        boxes, classes = self._padded(self._loosened(boxes, channels.shape[1:]), classes)
        carried = MetaTensor(boxes, affine=img.affine.clone()) if isinstance(img, MetaTensor) else boxes
        result = {"_boxes": carried, "_box_labels": classes}
        if self.min_size > 1:
            small = [small_components(channel, self.min_size, **keywords) for channel in channels]
            ignore = torch.stack(small).any(dim=0, keepdim=True)
            result["_box_ignore"] = convert_to_dst_type(ignore, label, dtype=torch.bool)[0]
        return result

    def _channel(self, number: int, values: torch.Tensor) -> torch.Tensor:
        if self.kind == "classes":
            return values - 1 + self.first_class
        return torch.full_like(values, number + self.first_class)

    def _loosened(self, boxes: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        margin = per_axis(self.margin, len(shape), "margin")
        if any(voxels != int(voxels) for voxels in margin):
            raise ValueError(f"margin must be a whole number of voxels, got {self.margin}.")
        step = boxes.new_tensor(margin)
        low, high = boxes.split(len(shape), dim=1)
        low, high = (low - step).clamp(min=0), torch.minimum(high + step, boxes.new_tensor(shape))
        return torch.cat([low, high], dim=1).to(torch.float32)

    def _padded(self, boxes: torch.Tensor, classes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self.max_boxes is not None and len(boxes) > self.max_boxes:
            raise ValueError(
                f"the label has {len(boxes)} components, more than max_boxes={self.max_boxes}: "
                "give a higher max_boxes, or a min_size that drops the small ones."
            )
        return padded_rows(boxes, self.max_boxes), padded_rows(classes, self.max_boxes, -1)


class LabelsToTightBoxesd(Keyed):
    array = LabelsToTightBoxes
