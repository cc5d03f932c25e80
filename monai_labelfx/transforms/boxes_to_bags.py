# SPDX-License-Identifier: Apache-2.0
"""Boxes carried through the spatial transforms that the image has been through since they were made."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import MetaTensor
from monai.data.utils import to_affine_nd
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends

from monai_labelfx.ops.box_frames import boxes_to_frames
from monai_labelfx.ops.crossing_lines import WHOLE
from monai_labelfx.transforms._box_rows import checked_max_boxes, padded_rows

__all__ = ["BoxesToBags", "BoxesToBagsd"]

_SAME = 1e-2  # of a voxel, anywhere in the image: below this a map is the nearest one of whole numbers
_PLANE = 1e-1  # of a slice: a picture whose plane has moved by more is another slice


class BoxesToBags(Transform):
    """Frames for the bags of boxes: where each box has gone when the image was flipped, turned, zoomed, cropped or cut.

    The box around a rotated box is loose, and bags of a loose box lie (29 in 100 lines are without object at 45
    degrees). A frame holds the box itself, a corner and its edge vectors, and the loss lays the crossing lines of the
    original box in it (:func:`monai_labelfx.ops.boxes_to_frames`). What has happened to the image is read from its
    affine: boxes made by :py:class:`LabelsToTightBoxes` or :py:class:`PackBoxesd` carry the affine of their time, and
    ``inverse(affine now) @ affine then`` maps old to new voxels. So this transform comes after the spatial ones, random
    or not; it draws nothing, and ``CacheDataset`` caches it only where nothing random comes before it.

    Exact for flips, rotations by 90 degrees, transposes, crops and pads, in any order. For zooms, rotations, shears and
    resampling to another spacing it is exact up to the voxel that resampling itself moves things by. Not valid for
    elastic and other local deformations, of which an affine knows nothing: leave them out, or make the boxes from the
    deformed mask. The same holds for anything that moves voxels without changing ``affine`` (MONAI's ``Transpose``).

    Bags that leave the image are left out by the loss. An affine does not tell of what was outside in between, though:
    where a pad, a turn or a zoom follows a crop, what the crop has cut off looks like image again. So let the transform
    that cuts be the last one. And pad images with zeros: reflected objects outside their boxes count as background.

    Args:
        max_boxes: pad to this number of frames with zeros. Default ``None``: as many as there are boxes.

    Raises:
        ValueError: in the call, when one of boxes and image has an affine and the other none, an affine has no inverse,
            a picture has moved to another slice, a box is unusable, or there are more boxes than ``max_boxes``.

    Notes:
        Boxes are first rounded outwards to whole voxels of their own array, as in
        :func:`monai_labelfx.ops.box_crossing_lines`, so that bags of an image that nothing has moved are its crossing
        lines. A box that a crop has cut, or lost, keeps its frame: the loss leaves out the bags that are not complete.

    Example:
        >>> from monai.transforms import Flip
        >>> image = MetaTensor(torch.zeros(1, 10, 12), affine=torch.eye(4))
        >>> boxes = MetaTensor(torch.tensor([[1.0, 2.0, 4.0, 8.0]]), affine=image.affine)
        >>> BoxesToBags()(boxes, Flip(0)(image)).tolist()
        [[[9.0, 2.0], [-3.0, 0.0], [0.0, 6.0]]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, *, max_boxes: int | None = None) -> None:
        self.max_boxes = checked_max_boxes(max_boxes)

    def __call__(  # type: ignore[override]
        self, boxes: NdarrayOrTensor, image: NdarrayOrTensor, labels: NdarrayOrTensor | None = None
    ) -> torch.Tensor:
        """Frames (N, spatial_dims + 1, spatial_dims) float32 of boxes (N, 2 * spatial_dims) in an image (C, *spatial).

        Args:
            boxes: as a ``MetaTensor`` with the affine of the image they were made on, or without any.
            image: the same image as it is now, with pending (lazy) operations taken as done.
            labels: (N,) class channels; -1 marks padding. Rows of zeros are padding too.
        """
        ndim = image.ndim - 1
        exact = torch.as_tensor(boxes).as_subclass(torch.Tensor).double()
        if exact.ndim != 2 or exact.shape[1] != 2 * ndim:
            raise ValueError(
                f"boxes must have the shape (N, {2 * ndim}) for an image of {ndim} spatial axes, got "
                f"{tuple(exact.shape)}."
            )
        if labels is not None:
            channels = torch.as_tensor(labels).as_subclass(torch.Tensor)
            if channels.shape != exact.shape[:1]:
                raise ValueError(f"labels must be one for each of {len(exact)} boxes, got {tuple(channels.shape)}.")
            exact = exact.masked_fill((channels < 0)[:, None].to(exact.device), 0)
        whole = torch.cat(((exact[:, :ndim] + WHOLE).floor(), (exact[:, ndim:] - WHOLE).ceil()), 1)
        frames = boxes_to_frames(whole, index_map(boxes, image, ndim)).float()
        return padded_rows(frames, self.max_boxes)


class BoxesToBagsd(MapTransform):
    """Dictionary twin of :py:class:`BoxesToBags`, which documents it.

    For the key "label" it reads "label_boxes", "label_box_labels" and the image, and writes "label_bags" (N,
    spatial_dims + 1, spatial_dims) float32. With ``max_boxes`` the boxes and their labels are padded as well, with
    zeros and -1.

    Args:
        keys: the first part of the names, "label" for "label_boxes".
        reference_key: the image (C, \\*spatial) the boxes belong to.
        max_boxes: pad to this number of boxes, so that images make a batch. Default ``None``: as many as there are.
        allow_missing_keys: skip keys of which the item has no boxes instead of raising ``KeyError``.

    Raises:
        KeyError: the item has no boxes, labels or image under these names.
        ValueError: as for :py:class:`BoxesToBags`.

    Example:
        >>> from monai.transforms import Compose, RandRotated
        >>> from monai_labelfx.transforms.labels_to_tight_boxes import LabelsToTightBoxesd
        >>> label = MetaTensor(torch.zeros(1, 32, 32))
        >>> label[0, 10:20, 8:24] = 1
        >>> chain = Compose([LabelsToTightBoxesd("label", max_boxes=4), RandRotated("image", 1.0, prob=1.0)])
        >>> item = chain({"image": label.clone(), "label": label})
        >>> BoxesToBagsd("label")(item)["label_bags"].shape
        torch.Size([4, 3, 2])
    """

    backend = BoxesToBags.backend

    def __init__(
        self,
        keys: KeysCollection,
        reference_key: str = "image",
        *,
        max_boxes: int | None = None,
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.reference_key = reference_key
        self.transform = BoxesToBags(max_boxes=max_boxes)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.keys:
            boxes, labels = f"{key}_boxes", f"{key}_box_labels"
            if self.allow_missing_keys and boxes not in item:
                continue
            missing = [name for name in (boxes, labels, self.reference_key) if name not in item]
            if missing:
                raise KeyError(f"BoxesToBagsd: the item has no {missing[0]!r}; keys {sorted(map(str, item))}")
            item[f"{key}_bags"] = self.transform(item[boxes], item[self.reference_key], item[labels])
            item[boxes] = padded_rows(item[boxes], self.transform.max_boxes)
            item[labels] = padded_rows(item[labels], self.transform.max_boxes, -1)
        return item


def index_map(boxes: Any, image: Any, ndim: int) -> np.ndarray | None:
    """From the voxels that the boxes count to those of the image, a homogeneous matrix; ``None`` without affines."""
    if isinstance(boxes, MetaTensor) != isinstance(image, MetaTensor):
        known = "boxes" if isinstance(boxes, MetaTensor) else "image"
        raise ValueError(
            f"of boxes and image only the {known} came with an affine, so nothing tells what happened in between: load "
            "image and label alike (both as MetaTensor), and make the boxes with LabelsToTightBoxesd or PackBoxesd "
            "before any spatial transform."
        )
    if not isinstance(boxes, MetaTensor) or not isinstance(image, MetaTensor):
        return None
    affines = [np.asarray(matrix, dtype=np.float64) for matrix in (boxes.affine, image.peek_pending_affine())]
    rank = min(len(matrix) for matrix in affines) - 1  # MONAI's lazy resampling of a picture leaves a 3x3 affine
    then, now = (np.asarray(to_affine_nd(rank, matrix)) for matrix in affines)
    sizes = np.linalg.norm(now[:rank, :rank], axis=0)
    if not np.isfinite(then).all() or not abs(np.linalg.det(now[:rank, :rank])) > 1e-9 * sizes.prod():
        raise ValueError(
            f"the affines of boxes and image must be finite and have an inverse, got {then.tolist()}, {now.tolist()}."
        )
    found = np.linalg.solve(now, then)
    if abs(found[ndim:rank, [*range(ndim), rank]]).max(initial=0) > _PLANE:
        raise ValueError("the image lies in another plane than the boxes: take both from one slice.")
    found = np.asarray(to_affine_nd(ndim, found))
    whole = np.rint(found)
    reach = np.array([*image.peek_pending_shape(), 1.0]) + 1
    return whole if (abs(found - whole)[:ndim] @ reach).max() <= _SAME else found
