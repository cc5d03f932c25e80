# SPDX-License-Identifier: Apache-2.0
"""The objects of an item's label map, checked, numbered and with their classes, for detectors of masks."""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor, get_track_meta
from monai.transforms import MapTransform
from monai.utils import TransformBackends
from scipy.optimize import linear_sum_assignment

from monai_labelfx.ops._arrays import as_array
from monai_labelfx.ops.box_affine import clip_boxes
from monai_labelfx.ops.instances import integer_labels
from monai_labelfx.transforms._object_numbers import number_objects
from monai_labelfx.transforms._voxel_grids import check_applied, is_moved, one_grid, voxel_volume
from monai_labelfx.transforms.attach_boxes import _name
from monai_labelfx.transforms.labels_to_tight_boxes import _KINDS, LabelsToTightBoxes
from monai_labelfx.transforms.place_boxes_on_image import check_one_key

__all__ = ["AttachInstancesd"]

VOLUMES = "instance_volumes"  # in the meta of the label map: of the objects 1 to N, as they were in the file


class AttachInstancesd(MapTransform):
    """The label map of an item with its objects numbered 1 to N, and their classes (N,) int64, for detectors of masks.

    Put it directly behind loading, and :py:class:`InstancesToMasksd` behind all spatial transforms. In between one map
    moves with its image, whatever the number of objects: give both keys to the transforms, ``mode`` "nearest" for the
    label map (for ``Resized`` and ``Zoomd`` "nearest-exact", as their "nearest" shifts it by up to half a voxel), and
    ``padding_mode`` "zeros", for other paddings add mirrored parts to objects. The masks then give the boxes, which are
    tight after rotations and elastic deformations too.

    ==================  ============================================================================================
    ``<keys>``          (C, \\*spatial) int32, 0 background, objects 1 to N over all channels; several channels are
                        needed only where objects overlap. A ``MetaTensor`` with the meta data of the label map (the
                        affine of the image if it came without); ``meta["instance_volumes"]`` lists the volumes of the
                        objects in the units of the affine (mm**D), for ``min_visible`` of the other transform
    ``<label_key>``     (N,) int64, the class of object 1, 2, ...
    ``<box_key>``       is compared with the masks and left out: the masks give better ones
    ==================  ============================================================================================

    An image without objects has an empty label map, or an empty list of boxes: then it gets an empty map on its grid.
    An item with neither is refused: nobody has drawn there, which is not the same.

    Args:
        keys: the key of the label map (C, \\*spatial), of whole numbers. Default "label".
        reference_key: the image (C, \\*spatial), as it is in its file.
        label_key: the list of classes, read for ``"instances"`` and written. Default "box_label".
        box_key: listed boxes in voxels of the file, low corner, then high corner, half open. Default "box".
        kind: what the numbers of the map are. ``"instances"`` (default): each number of a channel is one object, in
            however many parts and with any gaps; its class is the entry of ``label_key`` with its rank, channel after
            channel, or its channel if the item has no such list. ``"classes"``: (1, \\*spatial), each connected
            component of the number v is an object of class v - 1. ``"masks"``: each component of what is not 0 in
            channel c is an object of class c.
        min_size: objects of fewer voxels become background, with one warning that counts them. Default 0, all stay.
        num_classes: classes that exist. Default ``None``, any number.
        tolerance: how far listed boxes, cut at the image, may lie from the tight boxes of the masks, in voxels on each
            side. Default 1. ``None``: they are not looked at, for boxes that people draw are often looser. Boxes are
            compared in the order of the objects for ``"instances"``, else each with the object that fits best.
        allow_missing_keys: leave an item without image, or without a label map and an empty list of boxes, as it is
            instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, when the item has no image, or no label map.
        ValueError: for a setting out of its range; in the call, for a label map on another grid than the image, with
            negative or fractional numbers, numbers above those that its floats tell apart, or pending operations; for
            another number of classes or boxes than objects, classes outside 0 to num_classes - 1, and boxes that do
            not fit.

    Example:
        >>> label = torch.tensor([[[0, 7, 7], [0, 0, 0], [3, 0, 7]]])
        >>> item = {"image": MetaTensor(torch.zeros(1, 3, 3)), "label": label, "box_label": [1, 0]}
        >>> out = AttachInstancesd()(item)
        >>> out["label"].tolist(), out["box_label"].tolist(), out["label"].meta["instance_volumes"]
        ([[[0, 2, 2], [0, 0, 0], [1, 0, 2]]], [1, 0], [1.0, 3.0])
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        reference_key: str = "image",
        label_key: str = "box_label",
        box_key: str = "box",
        kind: str = "instances",
        min_size: int = 0,
        num_classes: int | None = None,
        tolerance: float | None = 1.0,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_one_key(self.keys)
        if kind not in _KINDS:
            raise ValueError(f"kind must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}.")
        if min_size < 0:
            raise ValueError(f"min_size must be a number of voxels, 0 or above, got {min_size}.")
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be a number of classes, 1 or above, got {num_classes}.")
        if tolerance is not None and not tolerance >= 0:
            raise ValueError(f"tolerance must be voxels, 0 or above, or None to compare nothing, got {tolerance}.")
        self.reference_key = reference_key
        self.label_key = label_key
        self.box_key = box_key
        self.kind = kind
        self.min_size = min_size
        self.num_classes = num_classes
        self.tolerance = tolerance

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.reference_key not in item:
            if self.allow_missing_keys:
                return item
            raise KeyError(f"AttachInstancesd: the item has no {self.reference_key!r}; keys {sorted(map(str, item))}")
        image, key, boxes = item[self.reference_key], self.keys[0], item.get(self.box_key)
        label = item.get(key)
        if label is None and boxes is not None and not len(boxes):
            label = torch.zeros(1, *image.shape[1:], dtype=torch.int32)
        if label is None:
            if self.allow_missing_keys:
                return item
            raise KeyError(
                f"{_name(image)} has no label map {key!r}: masks are needed; an image without objects has an empty "
                "label map"
            )
        numbered, told = number_objects(as_array(self._checked(label, image)), self.kind)
        listed = item.get(self.label_key) if self.kind == "instances" else None
        classes = self._classes(told if listed is None else listed, len(told), image)
        if boxes is not None and self.tolerance is not None:
            self._compare(boxes, numbered, classes, item.get(self.label_key), image, self.tolerance)
        numbered, classes, sizes = self._large(numbered, classes, image)
        item[key] = _with_meta(torch.from_numpy(numbered), label, image, sizes)
        item[self.label_key] = torch.from_numpy(classes).to(item[key].device)
        item.pop(self.box_key, None)
        return item

    def _checked(self, label: Any, image: Any) -> torch.Tensor:
        """The label map as int64, on the grid of the image."""
        name = f"{self.keys[0]} of {_name(image)}"
        label = label if isinstance(label, torch.Tensor) else torch.as_tensor(np.asarray(label))
        check_applied(label, name, "AttachInstancesd")
        wanted = "1" if self.kind == "classes" else "C"
        if label.ndim != image.ndim or label.shape[0] < 1 or (self.kind == "classes" and label.shape[0] != 1):
            raise ValueError(
                f"{name} must have the shape ({wanted}, *spatial) and {image.ndim - 1} spatial axes, got "
                f"{tuple(label.shape)}."
            )
        if not one_grid(label, image):
            found = "the same with another affine" if label.shape[1:] == image.shape[1:] else tuple(label.shape[1:])
            raise ValueError(f"{name} must have the grid of the image {tuple(image.shape[1:])}, got {found}.")
        plain = label.as_subclass(torch.Tensor)
        whole = integer_labels(plain, name)
        if plain.is_floating_point() and whole.numel() and whole.max() > (limit := 2 / torch.finfo(plain.dtype).eps):
            raise ValueError(
                f"{name} has numbers up to {int(whole.max())}, and {plain.dtype} tells neighbours apart up to "
                f"{int(limit)} only: load it as whole numbers."
            )
        return whole

    def _classes(self, labels: Any, number: int, image: Any) -> np.ndarray:
        """The classes (N,) int64, checked."""
        array = np.asarray(labels.detach().cpu() if isinstance(labels, torch.Tensor) else labels)
        array = array if array.size else np.zeros(0, np.int64)
        if array.shape != (number,) or array.dtype.kind not in "iu":
            raise ValueError(
                f"{self.label_key} of {_name(image)} must be a whole number for each of {number} objects of "
                f"{self.keys[0]!r}, got {array.dtype} of the shape {array.shape}."
            )
        wrong = (array < 0) | (array >= (np.inf if self.num_classes is None else self.num_classes))
        if wrong.any():
            limit = "0 or above" if self.num_classes is None else f"0 to {self.num_classes - 1}"
            raise ValueError(
                f"{_name(image)} must have objects of the classes {limit}, got {array[wrong][0]} for object "
                f"{int(wrong.argmax()) + 1}."
            )
        return array.astype(np.int64)

    def _compare(
        self, given: Any, numbered: np.ndarray, classes: np.ndarray, labels: Any, image: Any, tolerance: float
    ) -> None:
        """ValueError unless the listed boxes are those of the masks."""
        if is_moved(image):
            raise ValueError(
                f"{_name(image)} has been moved since it was loaded, and its boxes count the voxels of the file: put "
                "AttachInstancesd directly behind loading."
            )
        tight = LabelsToTightBoxes("instances")(numbered)["_boxes"].as_subclass(torch.Tensor).double()
        try:
            rows = np.asarray(given.detach().cpu() if isinstance(given, torch.Tensor) else given, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise ValueError(f"{self.box_key} of {_name(image)} must be lists of numbers, got {error}.") from error
        rows = rows if rows.size else rows.reshape(0, tight.shape[1])
        if rows.shape != tuple(tight.shape):
            raise ValueError(
                f"{self.box_key} of {_name(image)} must be {tight.shape[1]} numbers for each of {len(tight)} objects "
                f"of {self.keys[0]!r}, got the shape {rows.shape}."
            )
        boxes = clip_boxes(torch.from_numpy(rows), numbered.shape[1:])
        which = np.arange(len(tight))
        if self.kind != "instances":  # their order is that of the scan, which no list follows
            own = None if labels is None else self._classes(labels, len(tight), image)
            beyond = (torch.cdist(tight, boxes.nan_to_num(), p=torch.inf) - tolerance).clamp(min=0).numpy()
            other = 0 if own is None else classes[:, None] != own[None]  # decides between objects in one place
            which = linear_sum_assignment(beyond + 1e-3 * other)[1]
            if own is not None and (own[which] != classes).any():
                first = int((own[which] != classes).argmax())
                raise ValueError(
                    f"{self.label_key} of {_name(image)} must agree with {self.keys[0]!r}, got class "
                    f"{own[which[first]]} for the box of object {first + 1}, which is of class {classes[first]}."
                )
        fits = ((boxes[which] - tight).abs() <= tolerance).all(1)
        if not fits.all():
            first = int(fits.to(torch.uint8).argmin())
            raise ValueError(
                f"{self.box_key} of {_name(image)} must lie within {tolerance:g} voxels of the masks, got "
                f"{boxes[which[first]].tolist()} for object {first + 1}, whose mask has the box "
                f"{tight[first].tolist()} (tolerance=None compares nothing)."
            )

    def _large(
        self, numbered: np.ndarray, classes: np.ndarray, image: Any
    ) -> tuple[np.ndarray, np.ndarray, torch.Tensor]:
        """The objects that are large enough, their classes and their sizes in voxels; a warning counts the others."""
        sizes = np.bincount(numbered.ravel(), minlength=1)[1:]
        kept = sizes >= self.min_size
        if not kept.all():
            warnings.warn(
                f"{_name(image)}: dropped {len(kept) - int(kept.sum())} of {len(kept)} objects (smaller than "
                f"{self.min_size} voxels).",
                stacklevel=3,
            )
            numbered = np.concatenate([[0], np.where(kept, np.cumsum(kept), 0)]).astype(np.int32)[numbered]
        return numbered, classes[kept], torch.from_numpy(sizes[kept])


def _with_meta(numbered: torch.Tensor, label: Any, image: Any, sizes: torch.Tensor) -> torch.Tensor:
    """The map in the place and with the meta data of the label map that it was made of."""
    numbered = numbered.to(label.device if isinstance(label, torch.Tensor) else "cpu")
    if not get_track_meta():
        return numbered
    source = label if isinstance(label, MetaTensor) else image
    if not isinstance(source, MetaTensor):
        result = MetaTensor(numbered)
    elif source is label:
        result = MetaTensor(numbered).copy_meta_from(source)
    else:
        result = MetaTensor(numbered, affine=image.peek_pending_affine().clone())
    volume = voxel_volume(result.affine, numbered.ndim - 1)
    result.meta[VOLUMES] = [float(size) * volume for size in sizes.tolist()]
    return result
