# SPDX-License-Identifier: Apache-2.0
"""What each loss makes of wrong labels: a small network trained on spoilt masks of synthetic ellipses.

    OMP_NUM_THREADS=1 python benchmarks/easy_example_noise.py [--out FILE] [--noise flips dilation] [--seeds 0 1 2]

64 training and 32 test pictures of 64 x 64, bright ellipses in noise. The masks of the training pictures are spoilt
once per seed:

- ``flips``: each pixel is wrong with probability 0.3;
- ``blocks``: each block of 8 x 8 is inverted with probability 0.3;
- ``dilation``, ``erosion``: objects are 4 pixels too wide or too narrow on each side;
- ``missing``: each object is left out with probability 0.3.

The network has 6 layers, 16 channels, growing dilation and batch normalisation; 200 steps of Adam at 0.003 with 8
pictures each. The seed draws pictures, noise, weights and batches, and is the same for every loss. The table holds the
mean over the classes of the intersection over union, pooled over the clean test masks, in percent: mean and sample
standard deviation over the seeds. MAE is 1 - mean(p), the limit that the example loss is a relative of; OHEM keeps the
hardest quarter.

``flips`` and ``blocks`` are scattered, the others systematic: there no gain is expected. ``--norm none`` leaves the
normalisation out: cross-entropy then averages the flips away by itself, and losses that trust what is sure may end in
a network that finds background everywhere, as objects are rare; a warm-up keeps them from it.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.losses.easy_example import EasyExampleLoss  # noqa: E402
from monai_labelfx.losses.ohem import OHEMLoss  # noqa: E402

SIZE, TRAIN, TEST, OBJECTS = 64, 64, 32, 3
RADII = (5, 12)
CONTRAST, DEVIATION = 1.0, 0.5
WRONG, BLOCK, MARGIN = 0.3, 8, 4
CHANNELS, DILATIONS = 16, (1, 2, 4, 8, 1)
STEPS, BATCH, RATE = 200, 8, 3e-3
GOAL = 3.0  # points that normalized_loss wins over cross-entropy under flips

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels[:, 0])


def mean_absolute_error(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return 1 - logits.softmax(1).gather(1, labels).mean()


LOSSES: dict[str, Callable[[], Loss]] = {
    "CE": lambda: cross_entropy,
    "normalized_loss": EasyExampleLoss,
    "confidence_max": lambda: EasyExampleLoss("confidence_max"),
    "confidence_difference": lambda: EasyExampleLoss("confidence_difference"),
    "mixed": lambda: EasyExampleLoss("mixed"),
    "normalized_loss, class_balanced": lambda: EasyExampleLoss(class_balanced=True),
    "normalized_loss, warm_up 50": lambda: EasyExampleLoss(warm_up=50),
    "OHEM": lambda: OHEMLoss(threshold=None, min_kept=0.25),
    "MAE": lambda: mean_absolute_error,
}
"""Name -> a new loss for each training: one with a warm-up counts steps."""


def ellipses(number: int, draw: torch.Generator) -> torch.Tensor:
    """Masks of single ellipses (number, OBJECTS, SIZE, SIZE), bool."""
    shape = (number, OBJECTS, 1, 1)
    centre = [SIZE * (0.2 + 0.6 * torch.rand(shape, generator=draw)) for _ in range(2)]
    radius = [RADII[0] + (RADII[1] - RADII[0]) * torch.rand(shape, generator=draw) for _ in range(2)]
    angle = torch.pi * torch.rand(shape, generator=draw)
    x, y = torch.meshgrid(torch.arange(SIZE), torch.arange(SIZE), indexing="ij")
    x, y = x - centre[0], y - centre[1]
    along, across = x * angle.cos() + y * angle.sin(), y * angle.cos() - x * angle.sin()
    return (along / radius[0]) ** 2 + (across / radius[1]) ** 2 < 1


def spoil(noise: str, objects: torch.Tensor, draw: torch.Generator) -> torch.Tensor:
    """The labels (number, 1, SIZE, SIZE) of a training set with wrong ones."""
    mask = objects.any(1, keepdim=True)
    if noise in ("flips", "blocks"):
        side = 1 if noise == "flips" else BLOCK
        wrong = torch.rand((len(mask), 1, SIZE // side, SIZE // side), generator=draw) < WRONG
        return (mask ^ F.interpolate(wrong.float(), scale_factor=side).bool()).long()
    if noise == "missing":
        seen = torch.rand(objects.shape[:2], generator=draw) >= WRONG
        return (objects & seen[..., None, None]).any(1, keepdim=True).long()
    sign = 1 if noise == "dilation" else -1
    return (sign * F.max_pool2d(sign * mask.float(), 2 * MARGIN + 1, 1, MARGIN)).long()


def network(norm: str) -> torch.nn.Sequential:
    layers: list[torch.nn.Module] = []
    for number, dilation in enumerate(DILATIONS):
        layers += [
            torch.nn.Conv2d(CHANNELS if number else 1, CHANNELS, 3, padding=dilation, dilation=dilation),
            torch.nn.BatchNorm2d(CHANNELS) if norm == "batch" else torch.nn.Identity(),
            torch.nn.ReLU(),
        ]
    return torch.nn.Sequential(*layers, torch.nn.Conv2d(CHANNELS, 2, 1))


def train(loss: Loss, noise: str, seed: int, norm: str) -> float:
    """Mean intersection over union of both classes on clean masks, in percent."""
    draw = torch.Generator().manual_seed(seed)
    objects = ellipses(TRAIN + TEST, draw)
    masks = objects.any(1, keepdim=True)
    images = CONTRAST * masks + DEVIATION * torch.randn(masks.shape, generator=draw)
    labels = spoil(noise, objects[:TRAIN], draw)
    torch.manual_seed(seed)
    model = network(norm)
    optimizer = torch.optim.Adam(model.parameters(), RATE)
    for _ in range(STEPS):
        batch = torch.randint(TRAIN, (BATCH,), generator=draw)
        optimizer.zero_grad()
        loss(model(images[batch]), labels[batch]).backward()
        optimizer.step()
    model.eval()
    with torch.no_grad():
        predicted = model(images[TRAIN:]).argmax(1, keepdim=True).bool()
    scores = []
    for side in (False, True):
        found, truth = predicted == side, masks[TRAIN:] == side
        scores.append(float((found & truth).sum() / (found | truth).sum()))
    return 100 * statistics.mean(scores)


def table(found: dict[str, dict[str, list[float]]]) -> str:
    """Mean and deviation of each loss under each noise, and whether the goal is met."""
    rows = [f"| noise | {' | '.join(LOSSES)} |", "|---" * (len(LOSSES) + 1) + "|"]
    for noise, scores in found.items():
        cells = [f"{statistics.mean(s):.1f} +- {statistics.stdev(s) if s[1:] else 0:.1f}" for s in scores.values()]
        rows.append(f"| {noise} | {' | '.join(cells)} |")
    if "flips" in found:
        gain = statistics.mean(found["flips"]["normalized_loss"]) - statistics.mean(found["flips"]["CE"])
        met = "yes" if gain >= GOAL else "NO"
        rows += ["", f"Goal: normalized_loss at least {GOAL:g} points above CE under flips: {met} ({gain:+.1f})."]
    return "\n".join(rows)


def main() -> None:
    names = ("flips", "blocks", "dilation", "erosion", "missing")
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file, and all numbers to .json beside")
    parser.add_argument("--noise", nargs="+", choices=names, default=list(names), help="default: all")
    parser.add_argument("--norm", choices=("batch", "none"), default="batch", help="normalisation of the network")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    start = time.perf_counter()
    found: dict[str, dict[str, list[float]]] = {}
    for noise in options.noise:
        found[noise] = {
            name: [train(loss(), noise, s, options.norm) for s in options.seeds] for name, loss in LOSSES.items()
        }
        print(f"  {noise}, {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__}, norm {options.norm}, "
        f"seeds {' '.join(map(str, options.seeds))}"
    )
    text = (
        f"Mean IoU of clean test masks after training on spoilt ones, percent, {STEPS} steps. {machine}.\n\n"
        f"{table(found)}\n"
    )
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "scores": found}, indent=2))


if __name__ == "__main__":
    main()
