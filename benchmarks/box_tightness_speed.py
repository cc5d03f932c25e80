# SPDX-License-Identifier: Apache-2.0
"""Speed of the losses for segmentation from tight boxes beside the published code, and of planes in 3-D.

    python benchmarks/box_tightness_speed.py [--reference FOLDER] [--out FILE] [--repeats 9]

FOLDER is a checkout of github.com/wangjuan313/wsis-boundingbox, which this project does not hold; without it only ours
is timed. Each step is forward and backward, on one thread, float32. Ours starts from logits and boxes, so the bags are
laid anew in every step; the published code is given the probabilities and the mask of the boxes for nothing. Its smooth
maxima are called as functions, since its class drops the kind that it is asked for. Steps are interleaved, medians
taken; ratios are those of processor times, which a busy machine hardly changes. Operator calls are what reaches the
dispatcher below autograd, in both directions.

In 3-D the peer is a plain prototype of planes by projection, from the logits of the volume.
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
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from box_tightness_peers import (  # noqa: E402
    BETA,
    GAMMA,
    CatRecorder,
    Reference,
    load_reference,
    prototype,
    prototype_lines,
)

from monai_labelfx.losses.box_tightness import BoxTightnessLoss  # noqa: E402
from monai_labelfx.losses.intensity_affinity import intensity_affinity_loss  # noqa: E402
from monai_labelfx.losses.pairwise_smoothness import pairwise_smoothness_loss  # noqa: E402
from monai_labelfx.ops.box_bags import box_bag_logits  # noqa: E402

IMAGES, SIZE, SIDE, VOLUME = 16, 256, 80, 96
ANGLES = (-40.0, -20.0, 0.0, 20.0, 40.0)
KINDS = {"max": ("max", 1.0), "alpha-softmax 4": ("softmax", 4.0), "quasimax 6": ("quasimax", 6.0)}
PLANE_ALPHA = 20.0
FULL: dict[str, Any] = {"affinity": 1.0, "area": (0.1, 0.9)}
SEED = 0
FASTER = {("unary", 1): 5.0, ("unary", 4): 10.0, ("pairwise", 1): 20.0, ("pairwise", 4): 20.0}  # goals
MOST_CALLS = 200
SLOWER = 3.0  # times the prototype, at most


class CallCounter(TorchDispatchMode):
    """Counts the operators that reach the dispatcher below autograd, views included."""

    calls = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += 1
        return func(*args, **(kwargs or {}))


def corners(per_image: int) -> torch.Tensor:
    """Low corners (images, boxes, 2): one box somewhere, or four on a grid, 24 pixels from the edges of quadrants."""
    if per_image == 1:
        return torch.randint(45, 131, (IMAGES, 1, 2), generator=torch.Generator().manual_seed(SEED))
    return torch.cartesian_prod(*[torch.tensor([24, 152])] * 2).expand(IMAGES, 4, 2)


def make_logits(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(SEED)).requires_grad_()


class Ours:
    """Our losses of one batch, from logits and boxes."""

    def __init__(self, logits: torch.Tensor, low: torch.Tensor) -> None:
        boxes = torch.cat((low, low + SIDE), -1)
        image = torch.randn(logits.shape, generator=torch.Generator().manual_seed(SEED + 1))
        self.logits, self.image = logits, image
        self.target = {"boxes": boxes, "labels": torch.zeros(boxes.shape[:2], dtype=torch.int64), "image": image}
        self.inside = torch.zeros(logits.shape, dtype=torch.bool)
        for mask, corners in zip(self.inside, low.tolist(), strict=True):
            for corner in corners:
                mask[(0, *(slice(first, first + SIDE) for first in corner))] = True

    def loss(self, **options: Any) -> torch.Tensor:
        return BoxTightnessLoss(**options)(self.logits, self.target)

    def unary(self, kind: str, alpha: float, angles: tuple[float, ...] = ANGLES) -> torch.Tensor:
        """As the published code has it: no ring, and both sums are divided by the number of positive bags."""
        how = {"normalization": "positive_bags", "ring": 0, "smoothness": 0.0}
        return self.loss(kind=kind, alpha=alpha, angles=angles, **how)

    def pairwise(self) -> torch.Tensor:
        return pairwise_smoothness_loss(self.logits, self.inside)

    def affinity(self) -> torch.Tensor:
        return intensity_affinity_loss(self.logits, self.image, self.inside)

    def bags(self, kind: str, alpha: float, angles: tuple[float, ...] = ANGLES) -> torch.Tensor:
        """The logits of all positive bags."""
        boxes = self.target["boxes"]
        images = torch.arange(len(boxes)).repeat_interleave(boxes.shape[1])
        how: dict[str, Any] = {"kind": kind, "alpha": alpha, "angles": angles, "image_index": images}
        return box_bag_logits(self.logits.flatten(0, 1), boxes.flatten(0, 1), **how).logits

    def positive_term(self, kind: str, alpha: float, angles: tuple[float, ...] = ANGLES) -> torch.Tensor:
        missed = -self.bags(kind, alpha, angles)
        return BETA * (missed.sigmoid() ** GAMMA * torch.nn.functional.softplus(missed)).mean()


class Step:
    """One training step of a loss: forward and backward to ``leaf``; ``prepare`` is not timed."""

    def __init__(self, leaf: torch.Tensor, loss: Callable, prepare: Callable[[torch.Tensor], Any] | None = None):
        self.leaf, self.loss, self.prepare = leaf, loss, prepare
        self.wall: list[float] = []
        self.processor: list[float] = []

    def run(self) -> None:
        self.leaf.grad = None
        given = () if self.prepare is None else (self.prepare(self.leaf),)
        wall, processor = time.perf_counter(), time.process_time()
        self.loss(*given).backward()
        self.processor.append(1e3 * (time.process_time() - processor))
        self.wall.append(1e3 * (time.perf_counter() - wall))

    def calls(self) -> tuple[int, int]:
        """Operators below autograd, and all that the profiler sees, those that operators call among them."""
        with CallCounter() as counter:
            self.run()
        with torch.profiler.profile() as profile:
            self.run()
        return counter.calls, sum(event.count for event in profile.key_averages() if event.key.startswith("aten::"))


def measure(title: str, steps: dict[str, Step], repeats: int, goal: float | None = None) -> dict[str, Any]:
    """Run the steps in turn; medians without the first round."""
    calls, profiler_calls = steps["ours"].calls()
    row: dict[str, Any] = {"step": title, "goal": goal, "calls": calls, "profiler_calls": profiler_calls}
    for step in steps.values():
        step.wall, step.processor = [], []
    for _ in range(repeats + 1):
        for step in steps.values():
            step.run()
    for name, step in steps.items():
        row[name] = {"wall": statistics.median(step.wall[1:]), "processor": statistics.median(step.processor[1:])}
    print(f"  {title}", file=sys.stderr, flush=True)
    return row


def image_rows(losses: ModuleType | None, repeats: int) -> list[dict[str, Any]]:
    """2-D, with one box and with four boxes per image."""
    rows = []
    logits = make_logits(IMAGES, 1, SIZE, SIZE)
    for count in (1, 4):
        ours, peer = (
            Ours(logits, corners(count)),
            Reference(losses, logits.shape, corners(count), SIDE) if losses else None,
        )
        cases: dict[str, tuple[str, Callable, Callable | None]] = {}
        for title, (kind, alpha) in KINDS.items():
            theirs = partial(peer.unary, kind=kind, alpha=alpha, angles=(-40, 41, 20)) if peer else None
            cases[f"unary, {title}"] = "unary", partial(ours.unary, kind, alpha), theirs
        cases["pairwise"] = "pairwise", ours.pairwise, peer.pairwise if peer else None
        cases["affinity"] = "affinity", ours.affinity, None
        cases["BoxTightnessLoss()"] = "whole", ours.loss, None
        cases["with affinity and area"] = "whole", partial(ours.loss, **FULL), None
        for title, (term, our_loss, peer_loss) in cases.items():
            steps = {"ours": Step(logits, our_loss)}
            if peer_loss:
                steps["peer"] = Step(logits, peer_loss, torch.sigmoid)
            rows.append(measure(f"{count} per image: {title}", steps, repeats, FASTER.get((term, count))))
    return rows


def volume_rows(repeats: int) -> list[dict[str, Any]]:
    """3-D, one box of 80 voxels a side; the prototype runs beside each step."""
    logits = make_logits(1, 1, *[VOLUME] * 3)
    ours, views, box = cube(logits)
    ready = logits.detach()[box].sigmoid().requires_grad_()
    plane: dict[str, Any] = {"kind": "softmax", "alpha": PLANE_ALPHA}
    cases: dict[str, tuple[Callable, float | None]] = {
        f"positive term, alpha-softmax {PLANE_ALPHA:g}": (partial(ours.positive_term, **plane), SLOWER),
        "positive term, max": (partial(ours.positive_term, "max", 1.0), None),
        "unary": (partial(ours.loss, **plane, smoothness=0.0), None),
        "pairwise": (ours.pairwise, None),
        "affinity": (ours.affinity, None),
        "BoxTightnessLoss()": (partial(ours.loss, **plane), None),
        "with affinity and area": (partial(ours.loss, **plane, **FULL), None),
        "the prototype, from ready probabilities of the box": (partial(prototype, ready, views, PLANE_ALPHA), None),
    }
    peer = Step(logits, lambda: prototype(logits[box].sigmoid(), views, PLANE_ALPHA))
    return [
        measure(title, {"ours": Step(ready if "ready" in title else logits, loss), "peer": peer}, repeats, goal)
        for title, (loss, goal) in cases.items()
    ]


def cube(logits: torch.Tensor, angles: tuple[float, ...] = ANGLES) -> tuple[Ours, list[torch.Tensor], tuple]:
    """Ours with a box amid the volume, the lines of the prototype, and the place of the box."""
    start = (VOLUME - SIDE) // 2
    box = (0, 0, *[slice(start, start + SIDE)] * 3)
    return Ours(logits, torch.full((1, 1, 3), start)), prototype_lines(SIDE, angles), box


def compared_values(losses: ModuleType | None) -> dict[str, float]:
    """How far ours is from the published code and the prototype, at angle 0, where it must agree, and elsewhere."""
    ours, views, box = cube(make_logits(1, 1, *[VOLUME] * 3), (0.0,))
    term = ours.positive_term("softmax", PLANE_ALPHA, (0.0,))
    plain = prototype(ours.logits[box].sigmoid(), views, PLANE_ALPHA)
    found = {"3-D, angle 0: positive term / prototype - 1": (term / plain - 1).item()}
    if losses is None:
        return found
    for count in (1, 4):
        ours = Ours(make_logits(IMAGES, 1, SIZE, SIZE), corners(count))
        peer = Reference(losses, ours.logits.shape, corners(count), SIDE)
        p, name = ours.logits.detach().sigmoid(), f"{count} per image"
        with CatRecorder() as recorder:
            theirs = peer.unary(p, "max", 1.0, (0, 1, 1))
        difference = ours.bags("max", 1.0, (0.0,)).sigmoid().sort().values - recorder.results[-1].sort().values
        found[f"{name}, angle 0, max: largest difference of a bag"] = difference.abs().max().item()
        found[f"{name}, angle 0, max: unary / published - 1"] = (ours.unary("max", 1.0, (0.0,)) / theirs - 1).item()
        for title, (kind, alpha) in KINDS.items():
            with CatRecorder() as recorder:
                theirs = peer.unary(p, kind, alpha, (-40, 41, 20))
            found[f"{name}, 5 angles, {title}: unary / published - 1"] = (ours.unary(kind, alpha) / theirs - 1).item()
        bags = len(ours.bags("max", 1.0)) / len(recorder.results[-1])
        found[f"{name}, 5 angles: bags / published - 1"] = bags - 1
        found[f"{name}: pairwise / published - 1"] = (ours.pairwise() / peer.pairwise(p) - 1).item()
    return found


def table(rows: list[dict[str, Any]], peer: str, faster: bool) -> str:
    """Wall / processor times, and the ratio of processor times: peer / ours where ours is to be faster."""
    ratio = f"{peer} / ours" if faster else f"ours / {peer}"
    heads = ["step", "ours ms", f"{peer} ms", ratio, "goal", "operator calls", "seen by the profiler"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        cells = ["{wall:.1f} / {processor:.1f}".format(**row[n]) if n in row else "-" for n in ("ours", "peer")]
        goal = "-"
        if "peer" in row:
            row["ratio"] = (row["peer"]["processor"] / row["ours"]["processor"]) ** (1 if faster else -1)
            if row["goal"]:
                met = (row["ratio"] >= row["goal"]) == faster
                goal = f"{'at least' if faster else 'at most'} {row['goal']:g}: {'yes' if met else 'NO'}"
        shown = f"{row['ratio']:.1f}" if "ratio" in row else "-"
        calls = [str(row[name]) for name in ("calls", "profiler_calls")]
        lines.append(f"| {' | '.join([row['step'], *cells, shown, goal, *calls])} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--reference", type=Path, help="folder with the published code; without it only ours is timed")
    parser.add_argument("--out", type=Path, help="also write the tables to this file, and all numbers to .json beside")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds of each row (default 9)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    losses = load_reference(options.reference) if options.reference else None
    values = compared_values(losses)
    images, volumes = image_rows(losses, options.repeats), volume_rows(options.repeats)
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"seed {SEED}, {'beside the published code' if losses else 'without the published code (no --reference)'}"
    )
    parts = [
        f"Losses of tight boxes, forward and backward, float32, medians of {options.repeats} interleaved rounds, wall "
        f"/ processor time; ratios of processor times. {machine}.",
        f"{IMAGES} images of {SIZE} x {SIZE}, boxes of {SIDE} x {SIDE}, angles {ANGLES}. Wanted: fewer than "
        f"{MOST_CALLS} operator calls.",
        table(images, "published", True),
        f"One box of {SIDE} voxels a side in a volume of {VOLUME}.",
        table(volumes, "prototype", False),
        "| values | relative, or as said |\n|---|---|\n" + "\n".join(f"| {k} | {v:.3g} |" for k, v in values.items()),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        content = {"machine": machine, "images": images, "volumes": volumes, "values": values}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
