# SPDX-License-Identifier: Apache-2.0
"""A detector that is always right, the tight box of what is bright, to test what comes before and behind networks."""

from __future__ import annotations

from pathlib import Path

import torch


class BrightDetector(torch.nn.Module):
    """The tight box of the voxels above ``level``; no box where there are none. It learns nothing."""

    def __init__(self, level: float = 50.0, label: int = 0) -> None:
        super().__init__()
        self.level, self.label = level, label
        self.network = torch.nn.Linear(1, 1)

    def forward(self, images: list[torch.Tensor], targets: list[dict] | None = None) -> list[dict]:
        """Detections, in evaluation mode only."""
        return [self._found(image) for image in images]

    def _found(self, image: torch.Tensor) -> dict:
        places = (torch.as_tensor(image)[0] > self.level).nonzero().as_subclass(torch.Tensor)
        axes = image.ndim - 1
        boxes = torch.cat([places.amin(0), places.amax(0) + 1]) if len(places) else torch.zeros(0)
        count = int(len(places) > 0)
        boxes = boxes.reshape(count, 2 * axes).float()
        return {"boxes": boxes, "labels": torch.full((count,), self.label), "scores": torch.full((count,), 0.75)}


def arguments(checkpoint: Path, level: float = 50.0) -> list[str]:
    """Options that put it into a bundle, grey values left as they are; writes its checkpoint."""
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"model": BrightDetector().network.state_dict()}, checkpoint)
    chosen = f"{{'_target_': 'bright_detector.BrightDetector', 'level': {level}}}"
    return ["--detector", chosen, "--ckpt_path", str(checkpoint), "--intensity_mean", "0", "--intensity_std", "1"]
