# SPDX-License-Identifier: Apache-2.0
"""Batches of labelled patches as MONAI's engines want them: images and one target."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from monai.engines import PrepareBatch

from monai_labelfx.cams._fit import IMAGE, LABEL, SUB, patch_pair


class PatchPrepareBatch(PrepareBatch):
    """Make the pair (images, target) of a batch of patches, for a :py:class:`~monai_labelfx.cams.CAMProvider`.

    The target is the labels (B, K) of ``label_key``, 1 present, 0 absent, -1 unknown; for batches with sub-labels the
    mapping of ``labels`` and ``sub_labels``, both (B, K), that :py:class:`~monai_labelfx.cams.SCCAM` takes; and
    ``None`` for batches without labels, in prediction. All are plain tensors on the engine's device.

    Args:
        image_key: key of the images (B, C, \\*spatial).
        label_key: key of the labels, as :py:class:`~monai_labelfx.transforms.GridPatchSamplesd` writes them.
        sub_key: key of the sub-labels, the cluster of each class that is present, else -1.

    Raises:
        KeyError: in the call, if the batch has no image.
        ValueError: in the call, for labels or sub-labels that are not one row for each image.

    Example:
        >>> import torch
        >>> batch = {"image": torch.zeros(2, 3, 8, 8), "patch_label": torch.tensor([[1, 0], [1, 1]])}
        >>> images, target = PatchPrepareBatch()(batch)
        >>> target.tolist()
        [[1, 0], [1, 1]]
        >>> _, target = PatchPrepareBatch()({**batch, "sub_label": torch.tensor([[4, -1], [0, 2]])})
        >>> sorted(target)
        ['labels', 'sub_labels']
    """

    def __init__(self, image_key: str = IMAGE, *, label_key: str = LABEL, sub_key: str = SUB) -> None:
        self.image_key = image_key
        self.label_key = label_key
        self.sub_key = sub_key

    def __call__(
        self,
        batchdata: Mapping[str, Any],
        device: str | torch.device | None = None,
        non_blocking: bool = False,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor | dict[str, torch.Tensor] | None]:
        """Return the images and the target; ``kwargs`` go to ``Tensor.to`` of the images."""
        return patch_pair(
            batchdata,
            device,
            non_blocking,
            image_key=self.image_key,
            label_key=self.label_key,
            sub_key=self.sub_key,
            **kwargs,
        )
