# SPDX-License-Identifier: Apache-2.0
"""What benchmarks/box_tightness_speed.py compares with: the published losses, from a folder, and a plain prototype.

The published code, github.com/wangjuan313/wsis-boundingbox, has no licence, so this project does not hold it. The
prototype of planes by projection is what its description needs and no more: from probabilities, two products per voxel
of the box, sums along each axis, one gather of indices that are prepared for nothing.
"""

from __future__ import annotations

import importlib
import math
import sys
import types
from pathlib import Path
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

BETA, GAMMA = 0.25, 2.0


class CatRecorder(TorchFunctionMode):
    """Keeps what torch.cat returns: the published code collects its bags with it and tells nobody."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[torch.Tensor] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func is torch.cat:
            self.results.append(result.detach())
        return result


def load_reference(folder: Path) -> types.ModuleType:
    """The published losses. Empty packages stand in for its own, which import data sets and networks."""
    for name in ("torchvision_wj", "torchvision_wj.utils"):
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    return importlib.import_module("torchvision_wj.utils.losses")


class Reference:
    """The published losses of one batch, from probabilities, with the mask and the rows of boxes that they want."""

    def __init__(self, losses: types.ModuleType, shape: torch.Size, low: torch.Tensor, side: int) -> None:
        self.losses, rows = losses, []
        self.mask = torch.zeros(shape)
        for image, boxes in enumerate(low.tolist()):
            for y, x in boxes:
                self.mask[image, 0, y : y + side, x : x + side] = 1
                rows.append([image, 0, (2 * x + side) // 2, (2 * y + side) // 2, math.hypot(side, side) / 2])
        self.rows = torch.tensor(rows)

    def unary(self, p: torch.Tensor, kind: str, alpha: float, angles: tuple[int, int, int]) -> torch.Tensor:
        focal = {"alpha": BETA, "gamma": GAMMA, "sampling_prob": 1.0}
        how: dict[str, Any] = {"mode": "focal", "angle_params": angles, "focal_params": focal}
        if kind == "max":
            return self.losses.MILUnaryParallelSigmoidLoss(**how)(p, self.mask, self.rows).sum()
        how |= {"method": {"softmax": "expsumr", "quasimax": "explogs"}[kind], "gpower": alpha}
        return self.losses.mil_parallel_approx_sigmoid_loss(p, self.mask, self.rows, **how).sum()

    def pairwise(self, p: torch.Tensor) -> torch.Tensor:
        return self.losses.MILPairwiseLoss(softmax=False)(p, self.mask).sum()


def prototype_lines(size: int, angles: tuple[float, ...]) -> list[torch.Tensor]:
    """Rows of flat indices, one pixel per step, of the lines of a square seen along each of three axes.

    A slab of a cube is a line of angle 0 in two views; it stays in one.
    """
    step, views = torch.arange(size), []
    for view in range(3):
        found = []
        for pair, angle in ((pair, angle) for pair in (0, 1) for angle in angles if angle or pair == view % 2):
            shift = step * math.tan(math.radians(angle))
            place = (step[:, None] + (shift - shift.min())).round().long()  # a row for each line
            place = place[place.amax(1) < size]
            found.append(place + step * size if pair == 0 else place * size + step)
        views.append(torch.cat(found))
    return views


def prototype(x: torch.Tensor, views: list[torch.Tensor], alpha: float) -> torch.Tensor:
    """The positive term of one box from its probabilities, in the plainest way: eq. 5 and 6 over planes."""
    weight = (alpha * (x - 1)).exp()
    weighted, values = x * weight, []
    for axis, lines in enumerate(views):
        top, bottom = weighted.sum(axis).flatten(), weight.sum(axis).flatten()
        values.append(top[lines].sum(1) / bottom[lines].sum(1))
    s = torch.cat(values)
    return -BETA * ((1 - s) ** GAMMA * s.log()).mean()
