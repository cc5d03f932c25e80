# SPDX-License-Identifier: Apache-2.0
"""Samples for a classifier: patches with known labels cut from an image, all in order or some at random."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import TransformBackends, ensure_tuple_rep

from monai_labelfx.ops._resize import resize_linear
from monai_labelfx.transforms._patches import (
    check_unit,
    checked_patches,
    image_name,
    require_keys,
    voxel_sizes,
)

__all__ = ["GridPatchSamplesd", "RandGridPatchSamplesd"]

_MODES = ("linear", "nearest")
Window = tuple[np.ndarray, np.ndarray]  # start and size along each axis, as shares of the patch


class GridPatchSamplesd(MapTransform):
    r"""One item for each patch of an image with a known label, in their order: what validation and clustering look at.

    The result is a list of items, as of MONAI's ``RandCropByPosNegLabeld``: ``Compose`` sends each through the
    transforms behind, and MONAI's ``DataLoader`` (``list_data_collate``) makes one batch of all. An item holds

    - each of ``keys``: the patch (C, \*output_size), with the affine of its place where the image has one;
    - ``patch_label`` (K,) int8: 1 present, 0 absent, -1 unknown;
    - ``patch_index``: its row in the patches of the image, which ``filename_or_obj`` in its meta data names;
    - ``sub_label`` (K,) int64, if the image has sub-labels;

    and nothing else: what belongs to the whole image makes no batch.

    Args:
        keys: what to cut, (C, \*spatial), all on one grid. Default "image".
        output_size: voxels of a sample, one number or one per axis, to which patches are resized: by linear
            interpolation, antialiased where they shrink. Default ``None``: as large as the patch. 224 in the code of
            Li et al. (2022), for patches of 112.
        patch_size: voxels that a patch should have, in ``unit``: along an axis where the image, and so the patch, is
            shorter it is continued by reflection, so that all samples have one magnification. Default ``None``: such
            patches are stretched.
        unit: of ``patch_size``, ``"voxels"`` (default) or ``"mm"``.
        mode: ``"linear"`` (default) or ``"nearest"``, for masks; one for all keys or one each.
        patches_key: the patches (N, 2 \* D). Default "patches".
        labels_key: their labels (N, K). Default "patch_labels".
        sub_labels_key: their sub-labels (N, K); an image need not have any. Default "sub_labels".
        allow_missing_keys: pass over keys that an item lacks instead of raising ``KeyError``.

    Raises:
        KeyError: in the call, when the item has no image, patches or labels.
        ValueError: for options out of their range; in the call, for patches or labels of the wrong shape, for a patch
            outside the image, and for an image without any known label.

    Example:
        >>> item = {"image": torch.arange(12.0).reshape(1, 2, 6)}
        >>> item["patches"] = torch.tensor([[0, 0, 2, 2], [0, 2, 2, 2], [0, 4, 2, 2]])
        >>> item["patch_labels"] = torch.tensor([[1, 0], [-1, -1], [-1, 1]])
        >>> [(one["patch_index"], one["patch_label"].tolist()) for one in GridPatchSamplesd()(item)]
        [(0, [1, 0]), (2, [-1, 1])]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        keys: KeysCollection = "image",
        output_size: int | Sequence[int] | None = None,
        *,
        patch_size: float | Sequence[float] | None = None,
        unit: str = "voxels",
        mode: str | Sequence[str] = "linear",
        patches_key: str = "patches",
        labels_key: str = "patch_labels",
        sub_labels_key: str = "sub_labels",
        allow_missing_keys: bool = False,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        check_unit(unit)
        self.mode = ensure_tuple_rep(mode, len(self.keys))
        if not set(self.mode) <= set(_MODES):
            raise ValueError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {mode!r}.")
        self.output_size = output_size
        self.patch_size = patch_size
        self.unit = unit
        self.patches_key, self.labels_key, self.sub_labels_key = patches_key, labels_key, sub_labels_key

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        patches, labels, known = self._known(data)
        return self._samples(data, patches, labels, known, [None] * len(known))

    def _known(self, data: Mapping[Hashable, Any]) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
        """Patches and labels of the item, and the rows that have a label."""
        require_keys(data, [self.patches_key, self.labels_key], self)
        key, *others = tuple(self.key_iterator(dict(data))) or self.keys[:1]
        require_keys(data, [key], self)
        for other in others:
            if data[other].shape[1:] != data[key].shape[1:]:
                raise ValueError(
                    f"{other!r} of {image_name(data[key])} must lie on the grid of {key!r}, "
                    f"{tuple(data[key].shape[1:])}, got {tuple(data[other].shape[1:])}."
                )
        patches, labels = checked_patches(data[self.patches_key], data[self.labels_key], data[key])
        known = (labels >= 0).any(1).nonzero()[:, 0].tolist()
        if not known:
            raise ValueError(
                f"{image_name(data[key])} has {len(patches)} patches and no known label: tick some of them, or take "
                "the image out of the datalist of the classifier."
            )
        return patches, labels, known

    def _samples(
        self,
        data: Mapping[Hashable, Any],
        patches: torch.Tensor,
        labels: torch.Tensor,
        chosen: Sequence[int],
        windows: Sequence[Window | None],
    ) -> list[dict[Hashable, Any]]:
        """The items of the chosen patches, or of windows in them."""
        places = patches.cpu().numpy()
        subs = data.get(self.sub_labels_key)
        samples: list[dict[Hashable, Any]] = []
        for row, window in zip(chosen, windows, strict=True):
            sample: dict[Hashable, Any] = {"patch_label": labels[row].clone(), "patch_index": row}
            if subs is not None:
                sample["sub_label"] = torch.as_tensor(subs[row]).clone()
            samples.append(sample)
            for key, mode in self.key_iterator(dict(data), self.mode):
                sample[key] = self._cut(data[key], places[row], window, mode)
        return samples

    def _cut(self, image: Any, place: np.ndarray, window: Window | None, mode: str) -> torch.Tensor:
        """One patch of one image (C, \\*spatial), continued, narrowed to its window and resized."""
        values = torch.as_tensor(image).as_subclass(torch.Tensor)
        ndim = values.ndim - 1
        start, size = place[:ndim], place[ndim:]
        if self.patch_size is not None:
            wanted = np.array(voxel_sizes(self.patch_size, self.unit, image, "patch_size"))
            short = (size == values.shape[1:]) & (size < wanted)
            start, size = np.where(short, -((wanted - size) // 2), start), np.where(short, wanted, size)
        if window is not None:
            share = np.maximum(np.rint(window[1] * size).astype(int), 1)
            start, size = start + np.rint(window[0] * (size - share)).astype(int), share
        output = size if self.output_size is None else voxel_sizes(self.output_size, "voxels", image, "output_size")
        for axis, (first, count) in enumerate(zip(start.tolist(), size.tolist(), strict=True), start=1):
            extent = values.shape[axis]
            if 0 <= first and first + count <= extent:
                values = values.narrow(axis, first, count)
            else:
                values = values.index_select(axis, _reflected(first, count, extent, values.device))
        values = _resized(values, [int(one) for one in output], mode)
        if not isinstance(image, MetaTensor):
            return values
        result = MetaTensor(values).copy_meta_from(image)
        result.applied_operations = []  # no transform can be undone on a piece
        result.affine = _placed(image.affine, start, size / np.asarray(output))
        return result


class RandGridPatchSamplesd(GridPatchSamplesd, Randomizable):
    r"""As many samples of an image as wanted, drawn from its patches with a known label: what a classifier learns from.

    The items are those of :py:class:`GridPatchSamplesd`. No patch comes a second time before each has come once.

    Args:
        keys: what to cut, (C, \*spatial), all on one grid and through the same draws. Default "image".
        num_samples: samples of an image, drawn anew in each call. Default 4.
        output_size: as for :py:class:`GridPatchSamplesd`.
        scale: range of the volume of the window that is cut from a patch, as a share of the patch. Default (1, 1): the
            whole patch. (0.7, 1) is the random resized crop of the code of Li et al. (2022), which can lose a class
            whose label stays: noise in the labels.
        ratio: range of the quotient of the shares of the first axis and each other one, drawn evenly in its logarithm.
            Default (1, 1); (3/4, 4/3) in the same code. Sides end at those of the patch.
        balanced: draw each class as often present as absent where the labels of the image allow: the draws go in turn
            through the classes, present and absent, and take one of the patches that are so; a patch that is both
            may come twice. Default ``False``.
        keywords: ``patch_size``, ``unit``, ``mode``, ``patches_key``, ``labels_key``, ``sub_labels_key`` and
            ``allow_missing_keys`` of :py:class:`GridPatchSamplesd`.

    Raises:
        KeyError: as for :py:class:`GridPatchSamplesd`.
        ValueError: as for :py:class:`GridPatchSamplesd`, and for numbers of samples, scales or ratios out of their
            range.

    Example:
        >>> item = {"image": torch.zeros(1, 2, 6), "patches": torch.tensor([[0, 0, 2, 2], [0, 4, 2, 2]])}
        >>> item["patch_labels"] = torch.tensor([[1, 0], [-1, 1]])
        >>> draw = RandGridPatchSamplesd(num_samples=2, output_size=4).set_random_state(0)
        >>> sorted(one["patch_index"] for one in draw(item)), draw(item)[0]["image"].shape
        ([0, 1], torch.Size([1, 4, 4]))
    """

    def __init__(
        self,
        keys: KeysCollection = "image",
        num_samples: int = 4,
        output_size: int | Sequence[int] | None = None,
        *,
        scale: Sequence[float] = (1.0, 1.0),
        ratio: Sequence[float] = (1.0, 1.0),
        balanced: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(keys, output_size, **keywords)
        if isinstance(num_samples, bool) or num_samples != int(num_samples) or num_samples < 1:
            raise ValueError(f"num_samples must be a whole number of 1 or more, got {num_samples!r}.")
        if len(scale) != 2 or not 0 < scale[0] <= scale[1] <= 1:
            raise ValueError(f"scale must be two numbers, 0 < low <= high <= 1, got {scale!r}.")
        if len(ratio) != 2 or not 0 < ratio[0] <= ratio[1]:
            raise ValueError(f"ratio must be two numbers, 0 < low <= high, got {ratio!r}.")
        self.num_samples = int(num_samples)
        self.scale, self.ratio = (float(scale[0]), float(scale[1])), (float(ratio[0]), float(ratio[1]))
        self.balanced = balanced
        self._rows: list[int] = []
        self._windows: list[Window | None] = []

    def randomize(self, labels: torch.Tensor, known: Sequence[int], ndim: int) -> None:  # type: ignore[override]
        """Draw the rows of the next samples, and a window in each, as shares of its patch."""
        groups = [list(known)]
        if self.balanced:
            states = [
                (labels[:, k] == state).nonzero()[:, 0].tolist() for k in range(labels.shape[1]) for state in (0, 1)
            ]
            groups = [group for group in states if group]
        decks: list[list[int]] = [[] for _ in groups]
        order: list[int] = []
        self._rows = []
        while len(self._rows) < self.num_samples:
            order = order or self.R.permutation(len(groups)).tolist()
            number = order.pop()
            decks[number] = decks[number] or self.R.permutation(groups[number]).tolist()
            self._rows.append(decks[number].pop())
        self._windows = [self._window(ndim) for _ in self._rows]

    def _window(self, ndim: int) -> Window | None:
        if self.scale == self.ratio == (1, 1):
            return None
        volume = self.R.uniform(*self.scale)
        logs = self.R.uniform(math.log(self.ratio[0]), math.log(self.ratio[1]), size=ndim - 1)
        first = (volume * math.exp(logs.sum())) ** (1 / ndim)
        return self.R.uniform(size=ndim), np.minimum(first * np.exp([0.0, *-logs]), 1.0)

    def __call__(self, data: Mapping[Hashable, Any]) -> list[dict[Hashable, Any]]:
        patches, labels, known = self._known(data)
        self.randomize(labels, known, patches.shape[1] // 2)
        return self._samples(data, patches, labels, self._rows, self._windows)


def _reflected(first: int, count: int, extent: int, device: torch.device) -> torch.Tensor:
    """Voxels first to first + count of an axis, continued beyond its ends by reflection at the outermost centres."""
    period = max(2 * (extent - 1), 1)
    place = torch.arange(first, first + count, device=device) % period
    return torch.minimum(place, period - place) if extent > 1 else torch.zeros_like(place)


def _resized(values: torch.Tensor, size: list[int], mode: str) -> torch.Tensor:
    """Values (C, \\*spatial) at another size, in memory of their own."""
    if list(values.shape[1:]) == size:
        return values.clone(memory_format=torch.contiguous_format)
    if mode == "linear":
        floating = values if values.is_floating_point() else values.float()
        return resize_linear(floating, size).contiguous()
    for axis, (old, new) in enumerate(zip(values.shape[1:], size, strict=True), start=1):
        nearest = ((torch.arange(new, device=values.device) + 0.5) * (old / new)).long()
        values = values.index_select(axis, nearest.clamp(max=old - 1))
    return values


def _placed(affine: torch.Tensor, start: np.ndarray, step: np.ndarray) -> torch.Tensor:
    """The affine of a window: its voxel k has its centre at start + (k + 0.5) * step - 0.5."""
    ndim = min(len(start), len(affine) - 1)
    move = torch.eye(len(affine), dtype=torch.float64)
    for axis in range(ndim):
        move[axis, axis] = float(step[axis])
        move[axis, -1] = float(start[axis] + (step[axis] - 1) / 2)
    return affine.double().cpu() @ move
