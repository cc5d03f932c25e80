# SPDX-License-Identifier: Apache-2.0
"""Speed of greedy non-maximum suppression beside torchvision's C++ and MONAI's loop.

    python benchmarks/detection_nms.py [--out FILE] [--repeats 5]

torchvision is no requirement of this project; without it its column stays empty. An environment that has both is made
outside the repository and run with the repository on its path::

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 torchvision==0.28.0 monai==1.6.1 scipy
    PYTHONPATH=REPOSITORY ENV/bin/python benchmarks/detection_nms.py

Boxes: *random* has sides uniform in 8 to 128 in a square of 1024 pixels, or 8 to 64 in a cube of 256 voxels;
*clustered* has 50 such objects, each corner moved by 8 % of the side. IoU threshold 0.5, seed 0, one thread. Calls are
interleaved, medians taken; ratios are those of processor times, which a busy machine hardly changes. With classes,
torchvision's ``batched_nms`` is the peer, which moves the classes apart or loops over them. Memory is the growth of
the resident high-water mark during one call (Linux only).
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import json
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai.data.box_utils import non_max_suppression  # noqa: E402

from monai_labelfx.ops.nms import greedy_nms  # noqa: E402

THRESHOLD, SEED, OBJECTS, JITTER, CLASSES = 0.5, 0, 50, 0.08, 80
FIELDS = {2: (1024.0, 8.0, 128.0), 3: (256.0, 8.0, 64.0)}
COUNTS = (2000, 10000)
MOST_OF_TORCHVISION, LEAST_OF_MONAI = 2.0, 8.0  # times: at most, at least
MANY = 100000


def random_boxes(count: int, dims: int, draw: torch.Generator) -> torch.Tensor:
    extent, least, most = FIELDS[dims]
    sides = torch.rand(count, dims, generator=draw) * (most - least) + least
    low = torch.rand(count, dims, generator=draw) * (extent - sides)
    return torch.cat((low, low + sides), 1)


def box_set(kind: str, count: int, dims: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes, and scores that all differ: torchvision's loop over classes sorts equal ones in any order."""
    draw = torch.Generator().manual_seed(SEED)
    if kind == "random":
        boxes = random_boxes(count, dims, draw)
    else:
        objects = random_boxes(OBJECTS, dims, draw)[torch.randint(OBJECTS, (count,), generator=draw)]
        sides = (objects[:, dims:] - objects[:, :dims]).repeat(1, 2)
        boxes = objects + JITTER * sides * torch.randn(count, 2 * dims, generator=draw)
    return boxes, (torch.randperm(count, generator=draw) + 1) / count


def compare(title: str, calls: dict[str, Callable[[], torch.Tensor]], repeats: int) -> dict[str, Any]:
    """Medians in milliseconds, and which peers keep the same indices in the same order; the first round warms up."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    kept = {}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            kept[name] = call()
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
    row: dict[str, Any] = {"case": title, "kept": len(kept["ours"])}
    row["same"] = all(torch.equal(kept["ours"], indices) for indices in kept.values())
    for name, measured in times.items():
        wall, processor = (1e3 * statistics.median(column) for column in zip(*measured[1:], strict=True))
        row[name] = {"wall": wall, "processor": processor}
    print(f"  {title}", file=sys.stderr, flush=True)
    return row


def rows(repeats: int) -> list[dict[str, Any]]:
    found = []
    with_torchvision = importlib.util.find_spec("torchvision") is not None
    for dims in FIELDS:
        for count in COUNTS:
            for kind in ("random", "clustered"):
                boxes, scores = box_set(kind, count, dims)
                calls: dict[str, Callable[[], torch.Tensor]] = {"ours": partial(greedy_nms, boxes, scores, THRESHOLD)}
                if with_torchvision and dims == 2:
                    from torchvision.ops import nms

                    calls["torchvision"] = partial(nms, boxes, scores, THRESHOLD)
                calls["MONAI"] = partial(non_max_suppression, boxes, scores, THRESHOLD)
                found.append(compare(f"{dims}-D, {count} {kind}", calls, repeats))
    for kind in ("random", "clustered"):
        for dims in FIELDS:
            boxes, scores = box_set(kind, COUNTS[-1], dims)
            classes = torch.randint(CLASSES, scores.shape, generator=torch.Generator().manual_seed(SEED))
            calls = {"ours": partial(greedy_nms, boxes, scores, THRESHOLD, classes=classes)}
            if with_torchvision and dims == 2:
                from torchvision.ops import batched_nms

                calls["torchvision"] = partial(batched_nms, boxes, scores, classes, THRESHOLD)
            found.append(compare(f"{dims}-D, {COUNTS[-1]} {kind}, {CLASSES} classes", calls, repeats))
    return found


def many() -> dict[str, Any]:
    """One call with very many boxes: seconds and the growth of memory in MiB."""
    boxes, scores = box_set("random", MANY, 2)
    greedy_nms(boxes[:1000], scores[:1000], THRESHOLD)  # so that what torch loads once is loaded
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.process_time()
    kept = greedy_nms(boxes, scores, THRESHOLD)
    seconds = time.process_time() - start
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    return {"boxes": MANY, "kept": len(kept), "seconds": seconds, "MiB": grown}


def table(measured: list[dict[str, Any]]) -> str:
    names = ("ours", "torchvision", "MONAI")
    heads = ["case", "kept", *(f"{name} ms" for name in names), "ours / torchvision", "MONAI / ours", "same indices"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in measured:
        own = row["ours"]["processor"]
        cells = [row["case"], str(row["kept"])]
        cells += ["{wall:.1f} / {processor:.1f}".format(**row[name]) if name in row else "-" for name in names]
        peer = row["torchvision"]["processor"] if "torchvision" in row else None
        cells.append("-" if peer is None else _judged(own / peer, own / peer <= MOST_OF_TORCHVISION))
        loop = row["MONAI"]["processor"] if "MONAI" in row else None
        wanted = row["case"] == f"3-D, {COUNTS[-1]} random"
        cells.append("-" if loop is None else _judged(loop / own, not wanted or loop / own >= LEAST_OF_MONAI))
        lines.append(f"| {' | '.join([*cells, 'yes' if row['same'] else 'NO'])} |")
    return "\n".join(lines)


def _judged(ratio: float, met: bool) -> str:
    return f"{ratio:.2f}" if met else f"{ratio:.2f} NO"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file, and all numbers to .json beside")
    parser.add_argument("--repeats", type=int, default=5, help="timed rounds of each case (default 5)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    large = many()  # first, while the high-water mark is low
    measured = rows(options.repeats)
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"seed {SEED}"
    )
    parts = [
        f"Greedy non-maximum suppression at IoU {THRESHOLD}, float32, medians of {options.repeats} interleaved rounds, "
        f"wall / processor time; ratios of processor times. Wanted: at most {MOST_OF_TORCHVISION:g} times torchvision, "
        f"in 3-D at 10,000 random boxes {LEAST_OF_MONAI:g} times as fast as MONAI, the same indices. {machine}.",
        table(measured),
        "2-D, {boxes} random boxes, once: {seconds:.2f} s, {MiB:.0f} MiB more memory, {kept} kept.".format(**large),
    ]
    text = "\n\n".join(parts) + "\n"
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        content = {"machine": machine, "rows": measured, "many": large}
        options.out.with_suffix(".json").write_text(json.dumps(content, indent=2))


if __name__ == "__main__":
    main()
