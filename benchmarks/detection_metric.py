# SPDX-License-Identifier: Apache-2.0
"""Speed of CocoDetectionMetric beside pycocotools and faster-coco-eval, single thread, interleaved calls.

    OMP_NUM_THREADS=1 python benchmarks/detection_metric.py [--out FILE] [--rounds 5]

The set: 300 images, 1,683 objects, 21,655 detections, 10 classes, made by chance. Peers that are not installed are left
out; both need only NumPy: `pip install pycocotools==2.0.11 faster-coco-eval==1.8.0`.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import functools
import importlib.util
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from coco_reference import coco_json, detections, peer_results, with_masks  # noqa: E402

from monai_labelfx.metrics.coco_detection import CocoDetectionMetric  # noqa: E402
from monai_labelfx.metrics.detection_bootstrap import detection_bootstrap  # noqa: E402

IMAGES, OBJECTS, DETECTIONS, CLASSES = 300, 1683, 21655, 10
PEERS = {"pycocotools": "pycocotools", "faster_coco_eval": "faster-coco-eval"}


def cut(items: list[dict], total: int) -> list[dict]:
    """The items without the last rows of the fullest images, down to ``total`` rows in all."""
    counts = [len(item["labels"]) for item in items]
    while sum(counts) > total:
        counts[counts.index(max(counts))] -= 1
    return [
        {key: value[:n] if isinstance(value, torch.Tensor) else value for key, value in item.items()}
        for item, n in zip(items, counts, strict=True)
    ]


def synthetic(dims: int = 2) -> tuple[list[dict], list[dict]]:
    """The set of exactly these numbers."""
    predictions, targets = detections(IMAGES, CLASSES, seed=0, objects=6.2, extra=66, dims=dims)
    predictions, targets = cut(predictions, DETECTIONS), cut(targets, OBJECTS)
    found = [sum(len(item["labels"]) for item in items) for items in (predictions, targets)]
    if found != [DETECTIONS, OBJECTS]:
        raise RuntimeError(f"the set has {found} detections and objects.")
    return predictions, targets


def ours(predictions: list[dict], targets: list[dict], **options) -> dict[str, float]:
    metric = CocoDetectionMetric(**options)
    metric(predictions, targets)
    return metric.aggregate()


def evaluate(copies: list[tuple[dict, list]], kind: str, agnostic: bool, module: str) -> dict[str, float]:
    return peer_results(*copies.pop(), kind, class_agnostic=agnostic, module=module)


def seconds(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, str]:
    """Name -> "minimum / median" of interleaved calls."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            times[name].append(time.perf_counter() - start)
    return {name: f"{min(values):.3f} / {statistics.median(values):.3f}" for name, values in times.items()}


def row(
    title: str, kind: str, predictions: list[dict], targets: list[dict], rounds: int, agnostic: bool = False
) -> str:
    """Times of all tools on one set, and the largest difference of any of their numbers from ours."""
    options = {"kinds": (kind,), "class_agnostic": agnostic}
    calls: dict[str, Callable[[], Any]] = {"ours": lambda: ours(predictions, targets, **options)}
    expected, differences = ours(predictions, targets, **options), []
    flat = kind == "mask" or predictions[0]["boxes"].shape[1] == 4
    peers = [name for name in PEERS if flat and importlib.util.find_spec(name) is not None]
    if peers and (kind == "box" or "pycocotools" in peers):
        truth, results = coco_json(predictions, targets, kind, CLASSES)
        for name in peers:
            # The tools write into what they are given.
            copies = [copy.deepcopy((truth, results)) for _ in range(rounds + 1)]
            calls[name] = functools.partial(evaluate, copies, kind, agnostic, name)
            found = calls[name]()
            differences.append(max(abs(found[key] - expected[key]) for key in found if found[key] == found[key]))
        if kind == "mask":
            calls["encoding"] = lambda: coco_json(predictions, targets, kind, CLASSES)
    times = seconds(calls, rounds)
    best = {name: float(text.split()[0]) for name, text in times.items()}
    ratio = f"{best['pycocotools'] / best['ours']:.1f}" if "pycocotools" in best else "-"
    cells = [times.get(name, "-") for name in ("ours", *PEERS, "encoding")]
    difference = f"{max(differences):.0e}" if differences else "-"
    return f"| {title} | {' | '.join(cells)} | {ratio} | {difference} |"


def bootstrap_row(predictions: list[dict], targets: list[dict]) -> str:
    metric = CocoDetectionMetric()
    metric(predictions, targets)
    metric.aggregate()
    cells = []
    for name in ("box_AP50", "box_mAP", "box_AR_300"):
        start = time.perf_counter()
        detection_bootstrap(metric, name, replicates=1000)
        cells.append(f"{name} {time.perf_counter() - start:.2f} s")
    return f"1,000 bootstrap replicates of the first row's set: {', '.join(cells)}."


def report(rounds: int) -> str:
    peers = [f"{title} {version(title)}" for name, title in PEERS.items() if importlib.util.find_spec(name) is not None]
    predictions, targets = synthetic()
    small = [detections(40, 4, seed=1, extra=60)[i] for i in (0, 1)]
    masks = [with_masks(items, (480, 560)) for items in small]
    lines = [
        "| set | ours s | pycocotools s | faster-coco-eval s | encoding of masks s | pycocotools / ours | difference |",
        "|---|---|---|---|---|---|---|",
        row("boxes, 2-D", "box", predictions, targets, rounds),
        row("boxes, 2-D, class-agnostic", "box", predictions, targets, rounds, agnostic=True),
        row("boxes, 3-D", "box", *synthetic(3), rounds),
        row("masks, 2-D, 40 images of 480 x 560", "mask", *masks, rounds),
    ]
    return (
        f"COCO metric: {IMAGES} images, {OBJECTS} objects, {DETECTIONS} detections, {CLASSES} classes; 10 thresholds, "
        f"4 area ranges, 4 caps; min / median wall time of {rounds} interleaved runs; ours from tensors to results, "
        f"the peers from their dictionaries (masks: run-length codes, encoding apart; ours reads dense masks); "
        f"difference: the largest of any result. "
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, "
        f"Python {platform.python_version()}, torch {torch.__version__}, {', '.join(peers) or 'no peer installed'}.\n\n"
        + "\n".join(lines)
        + f"\n\n{bootstrap_row(predictions, targets)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    text = report(options.rounds)
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
