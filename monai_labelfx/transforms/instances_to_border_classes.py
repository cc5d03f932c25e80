# SPDX-License-Identifier: Apache-2.0
"""Instance label maps to the three-class target of DenoiSeg."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.ops import border_classes
from monai_labelfx.transforms._keyed import Keyed


class InstancesToBorderClasses(Transform):
    """Classes background (0), foreground (1) and border (2) from an instance label map.

    See :func:`monai_labelfx.ops.border_classes` for the rule. The input has shape (1, \\*spatial): 0 is background,
    every other number one object. The result has the same shape, is int64, and keeps the meta data.

    Args:
        border_width: thickness of the border, one number or one per axis, in voxels or in the unit of ``spacing``.
            Default 1, the code of the paper (Buchholz et al. 2020, DenoiSeg; the paper gives no rule).
        connectivity: how many axes neighbours may differ in, 1 to the number of spatial axes. Default 1, the reference.
        spacing: voxel size per axis, or ``"image"`` to take it from each image's affine. Default ``None``, voxels.
        ignore_label: number, for instance 255 or -1, of the voxels that nobody annotated. Given it, the result is a
            mapping ``{"": classes, "_ignore": mask}``, so that the dictionary twin also writes ``key + "_ignore"``
            (bool), which :class:`monai_labelfx.losses.DenoiSegLoss` leaves out; these voxels get class 0. Default
            ``None``, all voxels are annotated.

    Raises:
        ValueError: when the input has more than one channel, negative or fractional labels, or ``spacing="image"``
            meets an array without affine.

    Notes:
        Loaders that read labels as float32 keep apart only labels up to 2**24.

    Example:
        >>> InstancesToBorderClasses()(torch.tensor([[0, 0, 4, 4, 4, 9, 9, 9]])).tolist()
        [[0, 2, 1, 1, 2, 2, 1, 1]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        border_width: float | Sequence[float] = 1,
        *,
        connectivity: int = 1,
        spacing: Sequence[float] | str | None = None,
        ignore_label: int | None = None,
    ) -> None:
        if isinstance(spacing, str) and spacing != "image":
            raise ValueError(f"spacing must be None, 'image' or a voxel size per axis, got {spacing!r}.")
        self.border_width = border_width
        self.connectivity = connectivity
        self.spacing = spacing
        self.ignore_label = ignore_label

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor | dict[str, torch.Tensor]:
        image = convert_to_tensor(img, track_meta=get_track_meta())
        if image.ndim < 2 or image.shape[0] != 1:
            raise ValueError(f"an instance label map must have shape (1, *spatial), got {tuple(image.shape)}.")
        labels = image.as_subclass(torch.Tensor)
        ignore = None if self.ignore_label is None else labels == self.ignore_label
        if ignore is not None:
            labels = labels.where(~ignore, 0)
        spacing = self._voxel_size(image)
        classes = border_classes(labels, self.border_width, connectivity=self.connectivity, spacing=spacing)
        result = convert_to_dst_type(classes, image, dtype=torch.int64)[0]
        if ignore is None:
            return result
        return {"": result, "_ignore": convert_to_dst_type(ignore, image, dtype=torch.bool)[0]}

    def _voxel_size(self, image: torch.Tensor) -> Sequence[float] | None:
        if not isinstance(self.spacing, str):
            return self.spacing
        if not isinstance(image, MetaTensor):
            raise ValueError("spacing='image' needs a MetaTensor with an affine, got an array without meta data.")
        return image.pixdim[: image.ndim - 1].tolist()


class InstancesToBorderClassesd(Keyed):
    array = InstancesToBorderClasses
