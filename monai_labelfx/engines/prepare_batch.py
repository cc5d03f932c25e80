# SPDX-License-Identifier: Apache-2.0
"""Batches of DenoiSeg as MONAI's engines want them: an input and one target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.data import MetaTensor
from monai.engines import PrepareBatch

from monai_labelfx.ops.blind_spots import blind_spot_mask


class DenoiSegPrepareBatch(PrepareBatch):
    """Make the pair (masked image, targets) of a batch, for ``prepare_batch`` of a SupervisedTrainer or -Evaluator.

    The targets are the mapping that :py:class:`~monai_labelfx.losses.DenoiSegLoss` takes:

    ===============  ================================  =========================================================
    ``image``        ``<image_key><target_suffix>``    unmasked image (B, C, \\*spatial), or the image itself
    ``blind_spots``  ``<image_key><blind_suffix>``     true at blind spots, same shape; absent if the batch has none
    ``label``        ``<label_key>``                   class indices (B, 1, \\*spatial), zeros if the batch has none
    ``has_label``    ``<has_label_key>``               (B,) bool; if the batch has none: all true with a label, all
                                                       false without one
    ``ignore``       ``<label_key><ignore_suffix>``    (B, 1, \\*spatial) bool; absent if the batch has none
    ===============  ================================  =========================================================

    All are plain tensors on the engine's device, without metadata: each operation on a MetaTensor costs about twice its
    time on small batches, and no loss reads metadata. To predict in the input's geometry use MONAI's default
    ``prepare_batch`` in the evaluator; this one fits evaluators that compute the loss on masked images.

    Args:
        image_key: key of the (masked) image.
        label_key: key of the class indices.
        has_label_key: key of the flags.
        target_suffix: suffix of the unmasked image, as ``RandBlindSpotMaskd`` writes it.
        blind_suffix: suffix of the blind spots, as ``RandBlindSpotMaskd`` writes them.
        ignore_suffix: suffix of the voxels without annotation, as ``InstancesToBorderClassesd`` keys it.
        blind_spots: keywords of :py:func:`~monai_labelfx.ops.blind_spot_mask`, for instance ``{"fraction": 0.015}``:
            draw the blind spots here, for the whole batch on the device, instead of in the transforms. They come from
            torch's global generator, which :py:class:`~monai_labelfx.engines.SeedEpoch` seeds for trainers. Masks of
            validation images, which must not change, belong in the transforms.

    Raises:
        KeyError: if the batch has no image.
        ValueError: if flags, label and image do not fit together, or if ``blind_spots`` are given although the batch
            has blind spots already.

    Example:
        >>> import torch
        >>> batch = {"image": torch.zeros(2, 1, 8, 8), "image_target": torch.ones(2, 1, 8, 8)}
        >>> image, target = DenoiSegPrepareBatch()(batch)
        >>> tuple(image.shape), sorted(target), target["has_label"].tolist()
        ((2, 1, 8, 8), ['has_label', 'image', 'label'], [False, False])
    """

    def __init__(
        self,
        image_key: str = "image",
        *,
        label_key: str = "label",
        has_label_key: str = "has_label",
        target_suffix: str = "_target",
        blind_suffix: str = "_blind_spots",
        ignore_suffix: str = "_ignore",
        blind_spots: Mapping[str, Any] | None = None,
    ) -> None:
        self.image_key = image_key
        self.label_key = label_key
        self.has_label_key = has_label_key
        self.target_key = image_key + target_suffix
        self.blind_key = image_key + blind_suffix
        self.ignore_key = label_key + ignore_suffix
        self.blind_spots = None if blind_spots is None else dict(blind_spots)

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Return the masked image and the mapping of targets; ``kwargs`` go to ``Tensor.to`` of the images."""

        def take(key: str, **to: Any) -> torch.Tensor:
            value = batchdata[key]
            value = value.as_tensor() if isinstance(value, MetaTensor) else torch.as_tensor(value)
            return value.to(device=device, non_blocking=non_blocking, **to)

        if self.image_key not in batchdata:
            raise KeyError(f"the batch has no {self.image_key!r}; it has {sorted(map(str, batchdata))}.")
        image = take(self.image_key, **kwargs)
        target: dict[str, torch.Tensor] = {"image": image}
        if self.target_key in batchdata:
            target["image"] = take(self.target_key, **kwargs)
        if self.blind_key in batchdata:
            target["blind_spots"] = take(self.blind_key, dtype=torch.bool)
        if self.blind_spots is not None:
            if "blind_spots" in target:
                raise ValueError(
                    f"blind_spots are to be drawn here, but the batch already has {self.blind_key!r}; "
                    "take RandBlindSpotMaskd out of the transforms, or leave blind_spots out."
                )
            image, target["blind_spots"] = blind_spot_mask(image, **self.blind_spots)
        has_label = take(self.has_label_key).reshape(-1) if self.has_label_key in batchdata else None
        if self.label_key in batchdata:
            target["label"] = take(self.label_key, dtype=torch.int64)
        else:
            if has_label is not None and bool(has_label.any()):
                raise ValueError(
                    f"{self.has_label_key!r} says that images are labelled, but the batch has no {self.label_key!r}."
                )
            target["label"] = torch.zeros((image.shape[0], 1, *image.shape[2:]), dtype=torch.int64, device=image.device)
        if has_label is None:
            has_label = torch.full((image.shape[0],), self.label_key in batchdata, device=image.device)
        target["has_label"] = has_label.bool()
        if self.ignore_key in batchdata:
            target["ignore"] = take(self.ignore_key, dtype=torch.bool)
        self._check(image, target)
        return image, target

    def _check(self, image: torch.Tensor, target: Mapping[str, torch.Tensor]) -> None:
        if target["label"].shape[2:] != image.shape[2:] or len(target["label"]) != len(image):
            raise ValueError(
                f"{self.label_key!r} has shape {tuple(target['label'].shape)}, which does not fit "
                f"{self.image_key!r} of shape {tuple(image.shape)}; expected (B, 1, *spatial)."
            )
        if target["has_label"].shape != (len(image),):
            raise ValueError(
                f"{self.has_label_key!r} must hold one flag for each of the {len(image)} images, "
                f"found {target['has_label'].numel()}."
            )
