# SPDX-License-Identifier: Apache-2.0
"""A detector that finds every object with its mask, to test what comes before and behind networks."""

from __future__ import annotations

from pathlib import Path

import torch
from scipy import ndimage

from monai_labelfx.ops.box_affine import masks_to_boxes

GROUND = 100.0
"""Grey value where nothing is."""


class BrightInstances(torch.nn.Module):
    """The connected parts that are more than ``level`` brighter (class 0) or darker (class 1) than the ground.

    They are in the order of a scan, with scores that fall from 0.9. With ``bit``, object k is instead where that bit of
    the grey value in units of ``bit`` is set, of class 0, and objects may overlap. With ``one_class`` all are of class
    0. It learns nothing.
    """

    def __init__(
        self, level: float = 50.0, bit: float | None = None, one_class: bool = False, crop_masks: bool = False
    ) -> None:
        super().__init__()
        self.level, self.bit, self.one_class, self.crop_masks = level, bit, one_class, crop_masks
        self.network = torch.nn.Linear(1, 1)

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None) -> list[dict]:
        """Detections, in evaluation mode only."""
        return [self._found(torch.as_tensor(image)[0].as_subclass(torch.Tensor)) for image in images]

    def _found(self, image: torch.Tensor) -> dict:
        if self.bit:
            numbers = (image / self.bit).round().long()
            masks = torch.stack([(numbers >> k) % 2 == 1 for k in range(8)])
            masks = masks[masks.flatten(1).any(1)]
            labels = torch.zeros(len(masks), dtype=torch.int64)
        else:
            parts, count = ndimage.label(((image - GROUND).abs() > self.level).numpy())
            masks = torch.from_numpy(parts) == torch.arange(1, count + 1).reshape(-1, *[1] * image.ndim)
            labels = torch.tensor([int(image[mask].mean() < GROUND) for mask in masks], dtype=torch.int64)
        labels = labels * (not self.one_class)
        boxes = masks_to_boxes(masks)
        found = {"boxes": boxes, "labels": labels, "scores": 0.9 - 0.1 * torch.arange(len(masks))}
        if self.crop_masks:
            low, high = (corners.long().tolist() for corners in boxes.chunk(2, dim=1))
            ends = [tuple(map(slice, *pair)) for pair in zip(low, high, strict=True)]
            return found | {"masks": [mask[own] for mask, own in zip(masks, ends, strict=True)]}
        return found | {"masks": masks}


def arguments(checkpoint: Path, **settings: float | bool) -> list[str]:
    """Options that put it into a bundle, grey values left as they are; writes its checkpoint."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": BrightInstances().network.state_dict()}, checkpoint)
    chosen = str({"_target_": "bright_instances.BrightInstances", **settings})
    own = ["--masks", "true", "--num_classes", "2", "--intensity_mean", "0", "--intensity_std", "1"]
    return ["--detector", chosen, "--ckpt_path", str(checkpoint), *own]
