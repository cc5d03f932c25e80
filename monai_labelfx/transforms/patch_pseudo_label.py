# SPDX-License-Identifier: Apache-2.0
"""From raw class scores of an image and its patch labels to the pseudo mask of the next stage."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from typing import Any

import torch
from monai.config import KeysCollection, NdarrayOrTensor
from monai.transforms import MapTransform, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.ops.patch_grid import patch_coverage
from monai_labelfx.transforms._patches import checked_patches, image_name, require_keys

__all__ = ["PatchPseudoLabel", "PatchPseudoLabeld"]

_MODES = ("competing", "foreground")
_UNCOVERED = ("all", "ignore")


class PatchPseudoLabel(Transform):
    r"""Class probabilities of an image that agree with its patch labels, and the pseudo mask they give.

    In each patch only the classes that are not absent from it are allowed; unknown ones are. The patches that cover a
    voxel are averaged, and one argmax at the end makes the mask. With the raw scores :math:`s_k`, the patches n around
    a voxel and the allowed classes :math:`A_n`:

    .. math:: p_k = \frac{1}{|\{n\}|} \sum_n [k \in A_n] \, \frac{e^{s_k / T}}{\sum_{j \in A_n} e^{s_j / T}}

    for ``"competing"`` classes, of which the background is one. For ``"foreground"`` scores (class 0 is a dummy) the
    softmax gives way to :math:`\max(s_k, 0) / m_k`, where :math:`m_k` is its maximum over all voxels of the image where
    some patch allows class k, and to the constant ``background`` for class 0: numbers in [0, 1] that need not add up
    to 1. A class that no patch around a voxel allows never wins there, whatever the others have.

    Patches with the same allowed classes are worked out together, so that the cost depends on the number of different
    labels and the size of the image, not on the number of patches.

    ``transform(scores, patches, patch_labels)`` takes (K, \*spatial), (N, 2 \* D) and (N, K) and returns a mapping, in
    the container of the scores and on their device: "" the merged probabilities (K, \*spatial) float32 (float64 stays),
    "_cam" (1, \*spatial) uint8, the argmax of the scores without any patch label, and "_pseudo" (1, \*spatial) uint8.

    Args:
        mode: ``"competing"`` (default, as Li et al. 2022) or ``"foreground"``.
        temperature: T of the softmax, for competing classes only. Default 1.
        background: score of class 0, for foreground scores only. Default 0.26, as in the code of SEAM (Wang et al.
            2020).
        min_confidence: voxels whose best class has less than this become ``ignore_index``. Default 0: none.
        uncovered: what voxels in no patch are: ``"all"`` (default), as in a patch of which nothing is known, or
            ``"ignore"``, ``ignore_index`` with all probabilities 0.
        ignore_index: Default 255.

    Raises:
        ValueError: for an option out of its range or of the other mode; in the call, when the shapes do not fit, a
            patch lies outside the image or says that it holds no class at all, or scores are not finite.

    Notes:
        The authors' code takes the argmax in each patch, averages the numbers of the classes over the patches, and
        rounds half to even: ties go to the even class, and between 0 and 2 lies 1, which is neither.

    Example:
        >>> scores = torch.tensor([[[0.0, 0.0, 0.0, 0.0]], [[1.0, 1.0, 2.0, -1.0]]])
        >>> patches = torch.tensor([[0, 0, 1, 2], [0, 1, 1, 3]])
        >>> found = PatchPseudoLabel()(scores, patches, torch.tensor([[1, 0], [-1, 1]]))
        >>> found["_cam"].tolist(), found["_pseudo"].tolist()
        ([[[1, 1, 1, 0]]], [[[0, 0, 1, 0]]])
        >>> found[""][1].round(decimals=2).tolist()
        [[0.0, 0.3700000047683716, 0.8799999952316284, 0.27000001072883606]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        mode: str = "competing",
        *,
        temperature: float = 1.0,
        background: float | None = None,
        min_confidence: float = 0.0,
        uncovered: str = "all",
        ignore_index: int = 255,
    ) -> None:
        if mode not in _MODES:
            raise ValueError(f"mode must be one of {', '.join(map(repr, _MODES))}, got {mode!r}.")
        if uncovered not in _UNCOVERED:
            raise ValueError(f"uncovered must be one of {', '.join(map(repr, _UNCOVERED))}, got {uncovered!r}.")
        if not 0 < temperature < float("inf"):
            raise ValueError(f"temperature must be a positive finite number, got {temperature}.")
        if mode == "foreground" and temperature != 1:
            raise ValueError(f"foreground scores have no softmax, so no temperature, got {temperature}.")
        if mode == "competing" and background is not None:
            raise ValueError(f"competing classes learn their background, so it has no constant, got {background}.")
        background = 0.26 if background is None else background
        if not (0 <= background <= 1 and 0 <= min_confidence <= 1):
            raise ValueError(
                f"background and min_confidence must be from 0 to 1, got {background} and {min_confidence}."
            )
        if not 0 <= ignore_index <= 255:
            raise ValueError(f"ignore_index must be from 0 to 255, as the pseudo mask is uint8, got {ignore_index}.")
        self.mode = mode
        self.temperature = temperature
        self.background = background
        self.min_confidence = min_confidence
        self.uncovered = uncovered
        self.ignore_index = ignore_index

    def __call__(  # type: ignore[override]
        self, scores: NdarrayOrTensor, patches: NdarrayOrTensor, patch_labels: NdarrayOrTensor
    ) -> dict[str, NdarrayOrTensor]:
        values = convert_to_tensor(scores, track_meta=False).detach()
        values = values if values.dtype == torch.float64 else values.float()
        if values.ndim < 2 or not 2 <= len(values) <= self.ignore_index:
            raise ValueError(
                f"scores of {image_name(scores)} must be (K, *spatial) with 2 to {self.ignore_index} classes, got "
                f"shape {tuple(values.shape)}."
            )
        if not bool(values.isfinite().all()):
            raise ValueError(f"scores of {image_name(scores)} must be finite.")
        places, labels = checked_patches(patches, patch_labels, scores)
        allowed = labels != 0
        _check_labels(labels, allowed, values, scores)
        with torch.autocast(values.device.type, enabled=False):
            merged, votes, count = self._merged(values, places, allowed)
            confidence, best = merged.masked_fill(votes == 0, -1.0).max(dim=0, keepdim=True)
            unsure = (confidence < self.min_confidence) | (count == 0)
            pseudo = best.masked_fill(unsure, self.ignore_index)
            cam = (values if self.mode == "competing" else self._scaled(values)).argmax(dim=0, keepdim=True)
        return {
            "": convert_to_dst_type(merged, scores, dtype=merged.dtype)[0],
            "_cam": convert_to_dst_type(cam, scores, dtype=torch.uint8)[0],
            "_pseudo": convert_to_dst_type(pseudo, scores, dtype=torch.uint8)[0],
        }

    def _merged(
        self, values: torch.Tensor, places: torch.Tensor, allowed: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Merged probabilities (K, \\*spatial), how many patches of a voxel allow a class, and how many it has."""
        merged = torch.zeros_like(values)
        votes = torch.zeros_like(values, dtype=torch.int32)
        count = torch.zeros_like(votes[:1])
        for classes, window, number in _groups(places, allowed):
            part: Any = (classes, *window)
            count[:, *window] += number
            votes[part] += number
            if self.mode == "competing":
                merged[part] += self._softmax(values[part]) * number
        alone = count == 0
        if self.uncovered == "all" and bool(alone.any()):
            votes += alone
            count += alone
            if self.mode == "competing":
                merged += self._softmax(values) * alone
        if self.mode == "foreground":
            merged = self._scaled(values, votes > 0) * votes
        return merged / count.clamp(min=1), votes, count

    def _softmax(self, values: torch.Tensor) -> torch.Tensor:
        return torch.softmax(values / self.temperature, dim=0)

    def _scaled(self, values: torch.Tensor, allowed: torch.Tensor | None = None) -> torch.Tensor:
        """Foreground scores in [0, 1], with the largest of each class where it is allowed as 1."""
        positive = values.clamp(min=0)
        positive = positive if allowed is None else positive * allowed
        largest = positive.flatten(1).amax(1).clamp(min=torch.finfo(values.dtype).tiny)
        scaled = positive / largest.view(-1, *[1] * (values.ndim - 1))
        scaled[0] = self.background
        return scaled


class PatchPseudoLabeld(MapTransform):
    """Dictionary twin of :py:class:`PatchPseudoLabel`: the key becomes the probabilities, with both masks beside it.

    For the key "pred" these are "pred_cam" and "pred_pseudo".

    Args:
        keys: keys of the scores. Default "pred".
        patches_key: the patches of the image. Default "patches".
        labels_key: their labels. Default "patch_labels".
        allow_missing_keys: skip keys that an item lacks instead of raising ``KeyError``.
        keywords: those of :py:class:`PatchPseudoLabel`.

    Raises:
        KeyError: in the call, when the item has no patches or no labels.

    Example:
        >>> item = {"pred": torch.zeros(2, 1, 2), "patches": torch.tensor([[0, 0, 1, 2]])}
        >>> item["patch_labels"] = torch.tensor([[0, 1]])
        >>> PatchPseudoLabeld()(item)["pred_pseudo"].tolist()
        [[[1, 1]]]
    """

    backend = PatchPseudoLabel.backend

    def __init__(
        self,
        keys: KeysCollection = "pred",
        *,
        patches_key: str = "patches",
        labels_key: str = "patch_labels",
        allow_missing_keys: bool = False,
        **keywords: Any,
    ) -> None:
        super().__init__(keys, allow_missing_keys)
        self.patches_key = patches_key
        self.labels_key = labels_key
        self.transform = PatchPseudoLabel(**keywords)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        require_keys(item, [self.patches_key, self.labels_key], self)
        for key in self.key_iterator(item):
            found = self.transform(item[key], item[self.patches_key], item[self.labels_key])
            item |= {f"{key}{suffix}": value for suffix, value in found.items()}
        return item


def _check_labels(labels: torch.Tensor, allowed: torch.Tensor, values: torch.Tensor, scores: Any) -> None:
    if labels.shape[1] != len(values):
        raise ValueError(
            f"patch labels of {image_name(scores)} must be (N, {len(values)}), as its scores have so many classes, got "
            f"shape {tuple(labels.shape)}."
        )
    empty = (~allowed.any(1)).nonzero()[:, 0]
    if len(empty):
        raise ValueError(
            f"patch {int(empty[0])} of {image_name(scores)} has all classes marked as absent: one of them must be in "
            "it, and the background is a class."
        )


def _groups(places: torch.Tensor, allowed: torch.Tensor) -> Iterator[tuple[torch.Tensor, list[slice], torch.Tensor]]:
    """For each set of allowed classes: the classes, the part of the image its patches lie in, and how many cover it."""
    if not len(places):
        return
    sets, member = allowed.unique(dim=0, return_inverse=True)
    for number, row in enumerate(sets):
        start, size = places[member == number].chunk(2, dim=1)
        low, high = start.amin(0), (start + size).amax(0)
        shape = (high - low).tolist()
        window = [slice(first, first + extent) for first, extent in zip(low.tolist(), shape, strict=True)]
        inside = torch.cat([start - low, size], dim=1)
        yield row.nonzero()[:, 0], window, patch_coverage(inside, torch.ones_like(start[:, :1]), shape)
