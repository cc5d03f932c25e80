# SPDX-License-Identifier: Apache-2.0
"""Patch labels from masks: which classes each patch or block of a grid holds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.ops.instances import integer_labels
from monai_labelfx.ops.patch_grid import patch_grid, patch_sums
from monai_labelfx.transforms._patches import check_single_key, check_unit, image_name, voxel_sizes, voxel_spacing

__all__ = ["GridPatchLabels", "GridPatchLabelsd"]


class GridPatchLabels(Transform):
    r"""Patches of a regular grid and, for each, the classes that are present, absent or unknown in it.

    With the share s of a class in the voxels of a patch (ignored ones do not count), and its volume v:

    - present (1): s > ``present``, or v > ``present_volume``;
    - absent (0): s <= ``absent`` and v <= ``absent_volume``;
    - unknown (-1): between the two, and where all voxels of the patch are ignored.

    Each class has its own label, the background too, so that several may be present. The grid ends flush with the
    image (:func:`monai_labelfx.ops.patch_grid`); along an axis shorter than the patch there is one patch as long as
    the image. Patches count voxels of the mask as it comes in, so that spatial transforms behind this one do not move
    them: resample and reorient before it.

    Args:
        patch_size: one number or one per axis, in ``unit``. Default 112 (Li et al. 2022).
        stride: from patch to patch, in ``unit``. Default ``None``: half the patch, as in the paper.
        classes: K, number of classes with the background. Default 2.
        unit: ``"voxels"`` (default), or ``"mm"``: sizes are divided by the voxel sizes of the mask's affine and
            rounded, at least one voxel, and volumes are in mm to the power of the number of axes.
        present: share above which a class is present. Default 0.05, as in the code of the paper.
        absent: share up to which it is absent. Default ``None``: as ``present``, so that nothing is unknown, as in the
            code of the paper. 0.005 leaves out what nobody would tick for sure.
        present_volume: volume above which a class is present whatever its share: 5 % of a block of 96 voxels a side
            hides organs of 44 000 voxels. Default ``None``, only the share counts.
        absent_volume: volume up to which it may be absent. Default ``None``: as ``present_volume``.
        foreground: whatever is above 0 is class 1, for masks that number their objects; needs ``classes=2``. Default
            ``False``.
        ignore_index: value of the mask that counts for nothing, with ``foreground`` too. Default 255; ``None``: none,
            for masks that are black and white pictures.

    Returns:
        A mapping of "patches" (N, 2 \* D) int64, start and size along each axis, and "patch_labels" (N, K) int8, on the
        device of the mask (1, \*spatial).

    Raises:
        ValueError: for an option out of its range; in the call, for a mask of another shape, with fractions, with
            values outside 0 to K - 1, or with nothing but 0 and an ignored 255 as ``foreground``, and for mm without
            an affine.

    Example:
        >>> mask = torch.zeros(1, 4, 6)
        >>> mask[..., 3:] = 1
        >>> found = GridPatchLabels(4, stride=2)(mask)
        >>> found["patches"].tolist(), found["patch_labels"].tolist()
        ([[0, 0, 4, 4], [0, 2, 4, 4]], [[1, 1], [1, 1]])
        >>> GridPatchLabels((4, 2), stride=2, present=0.5, absent=0)(mask)["patch_labels"].tolist()
        [[1, 0], [-1, -1], [0, 1]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        patch_size: float | Sequence[float] = 112,
        stride: float | Sequence[float] | None = None,
        *,
        classes: int = 2,
        unit: str = "voxels",
        present: float = 0.05,
        absent: float | None = None,
        present_volume: float | None = None,
        absent_volume: float | None = None,
        foreground: bool = False,
        ignore_index: int | None = 255,
    ) -> None:
        check_unit(unit)
        if classes < 2:
            raise ValueError(f"classes must be the number of classes with the background, 2 or above, got {classes}.")
        if foreground and classes != 2:
            raise ValueError(f"foreground=True makes the classes 0 and 1, so classes must be 2, got {classes}.")
        absent = present if absent is None else absent
        if not 0 <= absent <= present <= 1:
            raise ValueError(f"shares must keep 0 <= absent <= present <= 1, got {absent} and {present}.")
        absent_volume = present_volume if absent_volume is None else absent_volume
        given = [one for one in (absent_volume, present_volume) if one is not None]
        if any(not one >= 0 for one in given) or given != sorted(given):
            raise ValueError(
                f"volumes must keep 0 <= absent_volume <= present_volume, got {absent_volume} and {present_volume}."
            )
        self.patch_size = patch_size
        self.stride = stride
        self.classes = classes
        self.unit = unit
        self.present, self.absent = present, absent
        self.present_volume, self.absent_volume = present_volume, absent_volume
        self.foreground = foreground
        self.ignore_index = ignore_index

    def __call__(self, img: NdarrayOrTensor) -> dict[str, torch.Tensor]:
        mask = convert_to_tensor(img, track_meta=get_track_meta())
        if mask.ndim < 2 or mask.shape[0] != 1:
            raise ValueError(f"the mask of {image_name(img)} must be (1, *spatial), got shape {tuple(mask.shape)}.")
        size = voxel_sizes(self.patch_size, self.unit, img, "patch_size")
        stride = (
            tuple(max(1, length // 2) for length in size)
            if self.stride is None
            else voxel_sizes(self.stride, self.unit, img, "stride")
        )
        shape = tuple(mask.shape[1:])
        starts = patch_grid(shape, size, stride, device=mask.device)
        sizes = starts.new_tensor([min(pair) for pair in zip(size, shape, strict=True)])
        patches = torch.cat([starts, sizes.expand_as(starts)], dim=1)
        counts = self._counts(mask.as_subclass(torch.Tensor), patches, img)
        return {"patches": patches, "patch_labels": self._labels(counts, img)}

    def _counts(self, mask: torch.Tensor, patches: torch.Tensor, img: Any) -> torch.Tensor:
        """Voxels of each class in each patch, (N, K)."""
        values = integer_labels(mask, f"the mask of {image_name(img)}")
        if self.ignore_index is not None:
            values = values.masked_fill(values == self.ignore_index, -1)
        if self.foreground:
            if self.ignore_index == 255 and bool((values < 0).any()) and not bool((values > 0).any()):
                raise ValueError(
                    f"the mask of {image_name(img)} holds nothing but 0 and 255: with ignore_index=None 255 is the "
                    "foreground, as in black and white pictures; with foreground=False it is ignored."
                )
            values = values.clamp(max=1)
        if values.numel() and int(values.max()) >= self.classes:
            foreign = values[values >= self.classes].unique().tolist()
            told = ", ".join(map(str, foreign[:5])) + (", ..." if len(foreign) > 5 else "")
            raise ValueError(
                f"the mask of {image_name(img)} must hold classes 0 to {self.classes - 1}, got {told}; numbers of "
                "objects become class 1 with foreground=True."
            )
        # One class after the other: a table of all at once would be K times as large.
        return torch.cat([patch_sums(values == number, patches) for number in range(self.classes)], dim=1)

    def _labels(self, counts: torch.Tensor, img: Any) -> torch.Tensor:
        share = counts.double() / counts.sum(1, keepdim=True)  # NaN without any valid voxel, so neither of the two
        volume = counts.double() * (float(np.prod(voxel_spacing(img))) if self.unit == "mm" else 1.0)
        present, absent = share > self.present, share <= self.absent
        if self.present_volume is not None:
            present |= volume > self.present_volume
        if self.absent_volume is not None:
            absent &= volume <= self.absent_volume
        labels = torch.full_like(counts, -1, dtype=torch.int8)
        return labels.masked_fill(absent, 0).masked_fill(present, 1)


class GridPatchLabelsd(MapTransform):
    """Dictionary twin of :py:class:`GridPatchLabels`: writes patches and their labels beside the mask.

    Items that have patch labels already, from :py:class:`ReadPatchLabelsd`, stay as they are: what a person has ticked
    goes before what a mask would say. They need no mask.

    Args:
        keys: the key of the mask. Default "label".
        patches_key: where to write the patches. Default "patches".
        labels_key: where to write their labels. Default "patch_labels".
        allow_missing_keys: leave an item without mask as it is instead of raising ``KeyError``.
        keywords: those of :py:class:`GridPatchLabels`.

    Raises:
        ValueError: in the call, when the item names patches whose labels nobody has read.

    Example:
        >>> found = GridPatchLabelsd(patch_size=2)({"label": torch.tensor([[[0, 0, 1], [0, 0, 1]]])})
        >>> found["patches"].tolist(), found["patch_labels"].tolist()
        ([[0, 0, 2, 2], [0, 1, 2, 2]], [[1, 0], [1, 1]])
    """

    backend = GridPatchLabels.backend

    def __init__(
        self,
        keys: KeysCollection = "label",
        *,
        patches_key: str = "patches",
        labels_key: str = "patch_labels",
        allow_missing_keys: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_single_key(self.keys, "the mask")
        self.patches_key = patches_key
        self.labels_key = labels_key
        self.transform = GridPatchLabels(**keywords)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        if self.labels_key in item:
            return item
        if self.patches_key in item:
            raise ValueError(
                f"the item has {self.patches_key!r} {item[self.patches_key]!r} and no {self.labels_key!r}: put "
                "ReadPatchLabelsd before GridPatchLabelsd."
            )
        for key in self.key_iterator(item):
            found = self.transform(item[key])
            item[self.patches_key], item[self.labels_key] = found["patches"], found["patch_labels"]
        return item
