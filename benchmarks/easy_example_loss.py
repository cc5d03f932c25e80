# SPDX-License-Identifier: Apache-2.0
"""Time of online easy example mining beside plain cross-entropy and the authors' order of computations.

    python benchmarks/easy_example_loss.py [--out FILE] [--repeats 31]

Forward and backward of random float32 logits and random labels, on one thread. Calls are interleaved in one process and
medians taken; ratios are those of processor times, which a busy machine hardly changes. The authors' algorithm is
written out below: a softmax of minus the loss over all voxels of an image, divided by its mean, and the classes of an
image counted in a Python set.

Where glibc gives large blocks back to the system after each call, page faults inflate and scatter the times of all
sides. On Linux the program therefore starts itself again with an allocator that keeps them (``MALLOC_MMAP_THRESHOLD_``,
``MALLOC_TRIM_THRESHOLD_``, ``MALLOC_TOP_PAD_``); ``--default-malloc`` leaves it as it is.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.losses.easy_example import easy_example_loss  # noqa: E402
from monai_labelfx.losses.ohem import ohem_loss  # noqa: E402

SHAPES = ((4, 2, 320, 320), (1, 2, 96, 96, 96))
MALLOC = {
    "MALLOC_MMAP_THRESHOLD_": str(2**31),
    "MALLOC_TRIM_THRESHOLD_": str(2**33),
    "MALLOC_TOP_PAD_": str(2**29),
}
IGNORED = 255
SEED, GOAL, TOLERANCE = 0, 2.0, 1e-6
PLAIN, OURS, AUTHORS = "cross_entropy", "EasyExampleLoss", "authors' algorithm"

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def plain(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(logits, labels[:, 0])


def authors(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    losses = F.cross_entropy(logits, labels[:, 0], reduction="none", ignore_index=IGNORED)
    with torch.no_grad():
        flat = losses.flatten(1)
        weights = torch.softmax(-flat, dim=1)
        weights = weights / weights.mean(dim=1, keepdim=True)
        for number, image in enumerate(labels):
            if len(set(image.flatten().tolist()) - {IGNORED}) <= 1:
                weights[number] = 1
    return (losses * weights.view_as(losses)).mean()


def losses() -> dict[str, Loss]:
    """Name -> what is timed."""
    ours: dict[str, dict[str, Any]] = {
        OURS: {},
        "ignore_index=255": {"ignore_index": IGNORED},
        "weighting=confidence_max": {"weighting": "confidence_max"},
        "weighting=confidence_difference": {"weighting": "confidence_difference"},
        "weighting=mixed": {"weighting": "mixed"},
        "scope=batch": {"scope": "batch"},
        "scope=block, 32 voxels": {"scope": "block", "block_size": 32},
        "class_balanced": {"class_balanced": True},
    }
    found: dict[str, Loss] = {PLAIN: plain, AUTHORS: authors}
    found |= {name: functools.partial(easy_example_loss, **options) for name, options in ours.items()}
    found["OHEMLoss"] = ohem_loss
    return found


def measure(shape: tuple[int, ...], repeats: int) -> dict[str, dict[str, float]]:
    """Median milliseconds of forward alone, and of forward and backward, of each loss."""
    draw = torch.Generator().manual_seed(SEED)
    logits = torch.randn(shape, generator=draw, requires_grad=True)
    labels = torch.randint(0, shape[1], (shape[0], 1, *shape[2:]), generator=draw)
    times: dict[str, list[tuple[float, float, float]]] = {name: [] for name in losses()}
    found: dict[str, dict[str, float]] = {}
    for _ in range(repeats + 3):  # the first rounds warm up
        for name, loss in losses().items():
            logits.grad = None
            wall, processor = time.perf_counter(), time.process_time()
            value = loss(logits, labels)
            forward = time.process_time()
            value.backward()
            now = time.process_time()
            times[name].append((now - processor, forward - processor, time.perf_counter() - wall))
            found[name] = {"value": value.item()}
    for name, measured in times.items():
        columns = zip(*measured[3:], strict=True)
        names = ("processor", "forward", "wall")
        found[name] |= {key: 1e3 * statistics.median(c) for key, c in zip(names, columns, strict=True)}
    print(f"  {shape}", file=sys.stderr, flush=True)
    return found


def table(found: dict[str, dict[str, dict[str, float]]]) -> str:
    """The medians, their ratios to cross-entropy, and whether the goal is met."""
    rows = ["| shape | loss | forward ms | forward + backward ms | wall ms | times cross_entropy |", "|---" * 6 + "|"]
    most, difference = 0.0, 0.0
    for shape, cells in found.items():
        base = cells[PLAIN]["processor"]
        for name, cell in cells.items():
            rows.append(
                f"| {shape} | {name} | {cell['forward']:.2f} | {cell['processor']:.2f} | {cell['wall']:.2f} "
                f"| {cell['processor'] / base:.2f} |"
            )
        most = max(most, cells[OURS]["processor"] / base)
        difference = max(difference, abs(cells[OURS]["value"] / cells[AUTHORS]["value"] - 1))
    met = most <= GOAL and difference <= TOLERANCE
    rows += [
        "",
        f"Goals: {OURS} at most {GOAL:g} times cross_entropy, and its value that of the authors' algorithm to "
        f"{TOLERANCE:.0e}: {'yes' if met else 'NO'} ({most:.2f}, {difference:.0e}).",
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file, and all numbers to .json beside")
    parser.add_argument("--repeats", type=int, default=31, help="timed rounds of each shape (default 31)")
    parser.add_argument("--default-malloc", action="store_true", help="do not start again with an allocator that keeps")
    options = parser.parse_args()
    kept = all(os.environ.get(key) == value for key, value in MALLOC.items())
    if sys.platform == "linux" and not kept and not options.default_malloc:
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **MALLOC})
    torch.set_num_threads(1)
    found = {"x".join(map(str, shape)): measure(shape, options.repeats) for shape in SHAPES}
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"memory {'kept' if kept else 'given back'} between calls, seed {SEED}"
    )
    text = (
        f"Online easy example mining, float32, medians of {options.repeats} interleaved rounds, ratios of processor "
        f"times. {machine}.\n\n{table(found)}\n"
    )
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "cases": found}, indent=2))


if __name__ == "__main__":
    main()
