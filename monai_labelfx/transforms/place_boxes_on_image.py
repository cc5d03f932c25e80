# SPDX-License-Identifier: Apache-2.0
"""Boxes carried to where the spatial transforms of their image have moved them."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any, cast

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import InvertibleTransform, MapTransform
from monai.utils import TransformBackends, ensure_tuple

from monai_labelfx.ops.box_affine import boxes_through_affine, clip_boxes
from monai_labelfx.transforms.boxes_to_bags import index_map

__all__ = ["PlaceBoxesOnImage", "PlaceBoxesOnImaged"]

_SLIVER = 1e-3  # voxels: a box that is thinner after the cut has only touched the image
GRID_SHAPE = "spatial_shape"  # in the meta of boxes: of the image they were on, to cut at when they go back


class PlaceBoxesOnImage(InvertibleTransform):
    r"""Move boxes to where their objects have gone, whatever MONAI's spatial transforms did to the image.

    MONAI's transforms leave boxes alone, but write what they do into the affine of the image. Boxes that carry the
    affine of the image at the time when they were true (:py:class:`AttachBoxesd`) need one transform behind all the
    spatial ones: ``inverse(affine now) @ affine then`` maps old to new voxels, and
    :func:`monai_labelfx.ops.boxes_through_affine` moves their corners. So flips, crops, pads, zooms, resizes,
    rotations, shears, ``Spacing``, ``Orientation``, ``Affine`` and any chain of these are followed, random or not, and
    pending (lazy) ones as if they were done.

    Exact where the map keeps boxes boxes (flips, 90-degree turns, zooms, crops, pads). A rotated box is replaced by its
    hull, which is looser than the object: for small angles only, or make boxes from the rotated label map
    (:py:class:`AttachBoxesd` behind the spatial transforms). Elastic deformations leave no trace in an affine: leave
    them out, or make the boxes from the deformed label map. The same for transforms that move voxels without changing
    ``affine`` (MONAI's ``Transpose``).

    Then boxes are cut at the image, and a box of which too little is left is dropped. An affine does not tell of what
    was outside in between: where a pad, a turn or a zoom follows a crop that is not lazy, what the crop cut off looks
    like image again. So let the transform that cuts be the last one, or put this transform behind both.

    The inverse takes boxes (also other ones, such as predictions as a ``MetaTensor`` under MONAI's ``Invertd``) back to
    the voxels that this transform found them in, and cuts them there; it drops none and brings back none.

    Args:
        min_visible: smallest share of a box's volume that must lie inside the image, 0 to 1. Default 0: any part does,
            if it is at least 0.001 voxels long on every axis. A box cut before counts as whole.
        clip: cut boxes at the image. Default ``True``; with ``False`` they reach out, and are dropped all the same.

    Raises:
        ValueError: for ``min_visible`` outside 0 to 1; in the call, when only one of boxes and image has an affine, an
            affine has no inverse, a picture has moved to another slice, or boxes do not match the image.

    Notes:
        Where the whole map is within 0.01 voxels of one of whole numbers it is taken as that, as in
        :py:class:`BoxesToBags`. Without affines on both sides (plain tensors) boxes stay where they are.

    Example:
        >>> from monai.transforms import Flip
        >>> image = MetaTensor(torch.zeros(1, 10, 12), affine=torch.eye(4))
        >>> boxes = MetaTensor(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), affine=image.affine)
        >>> place = PlaceBoxesOnImage()
        >>> moved, kept = place(boxes, Flip(0)(image))
        >>> moved.tolist(), kept.tolist(), place.inverse(moved).tolist()
        ([[6.0, 2.0, 9.0, 8.0]], [True], [[1.0, 2.0, 4.0, 8.0]])
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, *, min_visible: float = 0.0, clip: bool = True) -> None:
        if not 0 <= min_visible <= 1:
            raise ValueError(f"min_visible must be a share of the box of 0 to 1, got {min_visible}.")
        self.min_visible = min_visible
        self.clip = clip

    def __call__(  # type: ignore[override]
        self, boxes: NdarrayOrTensor, image: NdarrayOrTensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Boxes (M, 2 * spatial_dims) on the image as it is now, and which of the N given ones they are, (N,) bool.

        Args:
            boxes: (N, 2 * spatial_dims); as a ``MetaTensor`` with the affine of their image at their time, or plain.
            image: (C, *spatial), the same image as it is now; a ``MetaTensor`` where ``boxes`` is one.
        """
        ndim = image.ndim - 1
        rows = torch.as_tensor(boxes).as_subclass(torch.Tensor)
        if rows.ndim != 2 or rows.shape[1] != 2 * ndim:
            raise ValueError(
                f"boxes must have the shape (N, {2 * ndim}) for an image of {ndim} spatial axes, got "
                f"{tuple(rows.shape)}."
            )
        if isinstance(boxes, MetaTensor) != isinstance(image, MetaTensor):
            known, plain = ("boxes", "image") if isinstance(boxes, MetaTensor) else ("image", "boxes")
            raise ValueError(
                f"the {known} came with an affine and the {plain} without, so nothing tells what happened in between: "
                "make the boxes with AttachBoxesd, and keep the image a MetaTensor."
            )
        matrix = index_map(boxes, image, ndim)
        shape = tuple(image.peek_pending_shape() if isinstance(image, MetaTensor) else image.shape[1:])
        exact = rows.double() if matrix is None else boxes_through_affine(rows.double(), matrix)
        cut = clip_boxes(exact, shape)
        whole, left = exact[:, ndim:] - exact[:, :ndim], cut[:, ndim:] - cut[:, :ndim]
        enough = left.prod(1) >= self.min_visible * whole.prod(1) * (1 - 1e-9)
        kept = (left >= _SLIVER).all(1) & enough  # NaN is not
        dtype = rows.dtype if rows.is_floating_point() else torch.float32
        result = (cut if self.clip else exact)[kept].to(dtype)
        return (self._traced(result, boxes, image, matrix, shape) if matrix is not None else result), kept

    def inverse(self, data: torch.Tensor) -> torch.Tensor:
        """Boxes (N, 2 * spatial_dims), one row for each given one, in the voxels before the last call."""
        if not isinstance(data, MetaTensor):
            raise ValueError(f"boxes must be the MetaTensor that this transform made, got {type(data).__name__}.")
        data = cast(MetaTensor, data.clone())  # pop_transform takes the note out of it
        step = self.pop_transform(data)["extra_info"]
        rows = data.as_subclass(torch.Tensor)
        moved = boxes_through_affine(rows.double(), np.linalg.inv(step["map"]))
        if self.clip and step["shape"] is not None:
            moved = clip_boxes(moved, step["shape"])
        dtype = rows.dtype if rows.is_floating_point() else torch.float32
        return _with_grid(moved.to(dtype), data, torch.as_tensor(step["affine"]), step["shape"])

    def _traced(
        self, rows: torch.Tensor, boxes: Any, image: Any, matrix: np.ndarray, shape: tuple[int, ...]
    ) -> torch.Tensor:
        """The moved boxes with the affine of the image and a note for the way back."""
        before = boxes.meta.get(GRID_SHAPE)
        step = {
            "map": matrix.tolist(),
            "affine": boxes.affine.tolist(),
            "shape": None if before is None else [int(size) for size in before],
        }
        moved = _with_grid(rows, boxes, image.peek_pending_affine(), shape)
        self.push_transform(moved, orig_size=tuple(boxes.shape[1:]), extra_info=step)
        return moved


class PlaceBoxesOnImaged(MapTransform, InvertibleTransform):
    """Dictionary twin of :py:class:`PlaceBoxesOnImage`, which documents it: boxes, and what belongs to each of them.

    Args:
        keys: the key of the boxes.
        reference_key: the image (C, \\*spatial) the boxes belong to.
        label_keys: what has one row for each box (labels, scores, masks of single objects; tensors, arrays or lists),
            of which the rows of dropped boxes go too. Masks are not moved: let MONAI's transforms do that. Default
            ``("box_label",)``.
        min_visible: see :py:class:`PlaceBoxesOnImage`. Default 0.
        clip: see :py:class:`PlaceBoxesOnImage`. Default ``True``.
        allow_missing_keys: skip keys that the item lacks instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, when the item has no boxes, image or labels.
        ValueError: as for :py:class:`PlaceBoxesOnImage`; for several keys, or labels of another number than the boxes.

    Example:
        >>> from monai.transforms import Compose, SpatialCropd
        >>> chain = Compose([SpatialCropd("image", roi_start=(5, 0), roi_end=(10, 12)), PlaceBoxesOnImaged("box")])
        >>> image = MetaTensor(torch.zeros(1, 10, 12), affine=torch.eye(4))
        >>> boxes = MetaTensor(torch.tensor([[1.0, 2.0, 4.0, 8.0], [4.0, 3.0, 8.0, 6.0]]), affine=image.affine)
        >>> item = chain({"image": image, "box": boxes, "box_label": torch.tensor([0, 1])})
        >>> item["box"].tolist(), item["box_label"].tolist()
        ([[0.0, 3.0, 3.0, 6.0]], [1])
    """

    backend = PlaceBoxesOnImage.backend

    def __init__(
        self,
        keys: KeysCollection = "box",
        *,
        reference_key: str = "image",
        label_keys: Sequence[str] = ("box_label",),
        min_visible: float = 0.0,
        clip: bool = True,
        allow_missing_keys: bool = False,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        check_one_key(self.keys)
        self.reference_key = reference_key
        self.label_keys = ensure_tuple(label_keys)
        self.transform = PlaceBoxesOnImage(min_visible=min_visible, clip=clip)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            check_item(item, type(self).__name__, self.reference_key, self.label_keys, self.allow_missing_keys)
            number = len(item[key])
            item[key], kept = self.transform(item[key], item[self.reference_key])
            keep_rows(item, self.label_keys, kept, number)
        return item

    def inverse(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """The item with its boxes as they were before, dropped ones excepted."""
        item = dict(data)
        for key in self.key_iterator(item):
            item[key] = self.transform.inverse(item[key])
        return item


def _with_grid(rows: torch.Tensor, like: MetaTensor, affine: torch.Tensor, shape: Sequence[int] | None) -> MetaTensor:
    """``rows`` with the meta and history of ``like`` on another grid."""
    result = MetaTensor(rows).copy_meta_from(like)
    result.affine = affine.clone()
    result.meta[GRID_SHAPE] = shape
    return result


def check_one_key(keys: Sequence[Hashable]) -> None:
    """ValueError unless ``keys`` is one key."""
    if len(keys) != 1:
        raise ValueError(f"keys must be one key, for label_keys belong to its boxes, got {tuple(keys)}.")


def check_item(item: Mapping, name: str, reference: str, labels: Sequence[str], allow_missing: bool) -> None:
    """KeyError when the item lacks the image or, unless they may be missing, labels."""
    missing = [key for key in (reference, *(() if allow_missing else labels)) if key not in item]
    if missing:
        raise KeyError(f"{name}: the item has no {missing[0]!r}; keys {sorted(map(str, item))}")


def keep_rows(item: dict, keys: Sequence[str], kept: torch.Tensor, number: int) -> None:
    """Leave in each of ``keys`` the rows that are kept, in its own container."""
    chosen = kept.cpu()
    for key in keys:
        if key not in item:
            continue
        rows = item[key]
        if len(rows) != number:
            raise ValueError(f"{key} must have one row for each of {number} boxes, got {len(rows)}.")
        if isinstance(rows, torch.Tensor):
            item[key] = rows[chosen.to(rows.device)]
        elif isinstance(rows, np.ndarray):
            item[key] = rows[chosen.numpy()]
        else:
            item[key] = [row for row, keep in zip(rows, chosen.tolist(), strict=True) if keep]
