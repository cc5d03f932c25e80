# SPDX-License-Identifier: Apache-2.0
"""Segmentation from tight boxes against its rivals and full supervision: the tables of docs/results/box_tightness.md.

    python benchmarks/box_tightness_quality.py --data blobs --seeds 0 1 2 --out runs/box_quality
    LABELFX_DATA=<samples> python benchmarks/box_tightness_quality.py --data hippocampus_slices --seeds 0 1 2

Each seed draws other training and validation images (and initial weights), and every method gets the same draw; the
test images never change. Boxes come from the masks of the training images; every threshold is chosen by the boxes of
the validation images. A finished step is skipped, so several processes may share the work by seeds or methods, and a
last call with all of them and --table prints the tables.

Differences to 'ours' are paired: by seed, and by seed and test image. The latter are the same images under each seed,
so they are not independent; read them beside the former.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import statistics
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch

from monai_labelfx.commands.bundle_folder import find_bundle, rivals, stem
from monai_labelfx.commands.plan import run_plan
from monai_labelfx.commands.run import comparison_plan
from monai_labelfx.commands.workflow import parse_overrides
from monai_labelfx.data.box_samples import blobs, mr_volumes

OURS = "ours"
METRICS = {
    "Dice": "Dice at 0.5",
    "Dice_box": "Dice at the threshold chosen by boxes",
    "distance_box": "surface distance at it (mm)",
    "empty": "empty predictions, 0.5",
    "empty_box": "empty predictions, chosen threshold",
}
PAIRED = ("Dice", "Dice_box", "distance_box")  # differences are shown for these
MUST_BEAT = ("mil_baseline", "box_as_label")  # in the first of PAIRED
SIGMAS = 2.0  # by so many standard errors of the mean

Draws = dict[int, dict[str, dict[str, Any]]]  # seed -> method -> metrics, and "images": metric -> scores of test images


class Setting(NamedTuple):
    """One data set: what writes it, the presets that fit it, and values of the configuration."""

    build: Callable[..., Path]
    presets: tuple[str, ...]
    training: dict[str, Any]


SMALL = {"features": 8, "depth": 2, "batch_size": 8, "steps_per_epoch": 50, "max_epochs": 8}
SETTINGS = {
    "blobs": Setting(partial(blobs, size=64), ("2d",), {**SMALL, "patch_size": [64, 64]}),
    "blobs3d": Setting(
        partial(blobs, spatial_dims=3, counts=(48, 8, 16)),
        ("3d",),
        {**SMALL, "batch_size": 2, "max_epochs": 6, "patch_size": [32, 32, 32], "tile_size": 32},
    ),
    # all hippocampi are stored in one orientation, so no method gets flipped copies
    "hippocampus_slices": Setting(
        mr_volumes, ("slices",), {**SMALL, "max_epochs": 10, "patch_size": [40, 64], "flip_probability": 0.0}
    ),
    "hippocampus3d": Setting(
        mr_volumes, ("3d",), {**SMALL, "batch_size": 2, "patch_size": [40, 64, 48], "flip_probability": 0.0}
    ),
    "sarcoma_slices": Setting(
        partial(mr_volumes, collection="sarcoma_mr"), ("slices",), {**SMALL, "patch_size": [96, 96]}
    ),
}


def methods_plan(
    methods: list[str], workflow: str, setting: Setting, overrides: dict[str, Any], overlay: Path | None = None
) -> dict[str, Any]:
    """A plan of the methods, one after the other; 'ours' is the bundle as it is."""
    bundle = find_bundle("box_tightness")
    names = [stem(bundle) if method == OURS else method for method in methods]
    plan = comparison_plan(bundle, names, workflow, setting.presets, overrides)
    for step in plan["steps"]:
        step["config"] = [*step["config"], *([overlay] if overlay else [])]
    return plan


def per_image_overlay(folder: Path) -> Path:
    """A file to lay over the evaluation: the scores of each test image, in their order, go to CSV files."""
    file = folder / "per_image.json"
    folder.mkdir(parents=True, exist_ok=True)
    handler = {"_target_": "MetricsSaver", "save_dir": "@output_dir", "metrics": None, "metric_details": "*"}
    file.write_text(json.dumps({"+validate#handlers": [handler]}))
    return file


def run(folder: Path, methods: list[str], setting: Setting, seed: int, given: dict[str, Any]) -> None:
    """Train and test the methods for one draw."""
    bundle = find_bundle("box_tightness")
    datalist = folder / "data" / "datalist.json"
    if not datalist.is_file():
        setting.build(folder / "data", seed=seed)
    overrides = {"datalist": str(datalist), "seed": seed, **setting.training, **given}
    training = methods_plan(methods, "train", setting, overrides)
    run_plan(bundle, {"steps": training["steps"]}, folder, progress=False)
    # the evaluation gets the values of the training too, so that it runs again after another training
    testing = {**overrides, "save_predictions": False}
    evaluation = methods_plan(methods, "evaluate", setting, testing, per_image_overlay(folder))
    run_plan(bundle, evaluation, folder, progress=False)


def collect(folder: Path, methods: list[str]) -> dict[str, dict[str, Any]]:
    """Method -> metrics of the finished runs of one draw, and the scores of the test images."""
    plan = methods_plan(methods, "evaluate", Setting(blobs, (), {}), {})
    found = {}
    for step, method in zip(plan["table"]["rows"], methods, strict=True):
        metrics = json.loads((folder / step / "metrics.json").read_text())
        files = {name: folder / step / f"{name}_raw.csv" for name in PAIRED}
        images = {name: read_scores(file) for name, file in files.items() if file.is_file()}
        empty = {"empty": metrics["distance_not_computed"], "empty_box": metrics["distance_box_not_computed"]}
        found[method] = {**metrics, **empty, "images": images}
    return found


def read_scores(file: Path) -> list[float]:
    """The mean over classes of each image, in the order of the test images."""
    with file.open(newline="") as stream:
        return [float(row["mean"]) for row in csv.DictReader(stream)]


def mean_sem(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of the mean (sample deviation)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def cell(values: list[float | None]) -> str:
    """Mean ± SEM; empty where a draw lacks the value."""
    known = [float(value) for value in values if value is not None]
    return "{:.3f} ± {:.3f}".format(*mean_sem(known)) if known and len(known) == len(values) else ""


def differences(draws: Draws, rival: str, metric: str, by_image: bool) -> list[float | None]:
    """Ours minus rival, by seed, or by seed and test image (without images that have no score in one of them)."""
    found: list[float | None] = []
    for methods in draws.values():
        ours, theirs = methods[OURS], methods[rival]
        if not by_image:
            first, second = ours.get(metric), theirs.get(metric)
            found.append(None if first is None or second is None else first - second)
            continue
        scores = ours["images"].get(metric, []), theirs["images"].get(metric, [])
        if len(scores[0]) != len(scores[1]):
            raise ValueError(f"{metric} has {len(scores[0])} images for ours and {len(scores[1])} for {rival}.")
        pairs = [(a, b) for a, b in zip(*scores, strict=True) if math.isfinite(a) and math.isfinite(b)]
        found += [a - b for a, b in pairs] or [None]
    return found


def markdown(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])


def tables(draws: Draws) -> str:
    """Means of all methods, then the paired differences to ours, then the bars of the issue."""
    methods = list(next(iter(draws.values())))
    shown = [name for name in METRICS if any(draw[m].get(name) is not None for draw in draws.values() for m in methods)]
    if not shown:
        known = sorted({name for draw in draws.values() for m in methods for name in draw[m]} - {"images"})
        raise ValueError(f"metrics.json holds none of {', '.join(METRICS)}; it holds {', '.join(known) or 'nothing'}.")
    rows = [[m, *(cell([draw[m].get(name) for draw in draws.values()]) for name in shown)] for m in methods]
    parts = [markdown([f"mean ± SEM over {len(draws)} draws", *(METRICS[name] for name in shown)], rows)]
    if OURS in methods and len(methods) > 1:
        for by_image, title in ((False, "by draw"), (True, "by draw and test image")):
            rows = [
                [m, *(cell(differences(draws, m, name, by_image)) for name in shown if name in PAIRED)]
                for m in methods
                if m != OURS
            ]
            parts.append(markdown([f"ours minus, {title}", *(METRICS[n] for n in shown if n in PAIRED)], rows))
        parts += [verdict(draws, rival) for rival in MUST_BEAT if rival in methods]
    return "\n\n".join(parts)


def verdict(draws: Draws, rival: str) -> str:
    """Whether ours beats the rival by as many standard errors as it must."""
    lines = []
    for by_image, title in ((False, "by draw"), (True, "by draw and test image")):
        values = [value for value in differences(draws, rival, PAIRED[0], by_image) if value is not None]
        if len(values) > 1:
            gain, error = mean_sem(values)
            met = "yes" if gain >= SIGMAS * error and gain > 0 else "NO"
            lines.append(f"{title} {gain:+.3f} ± {error:.3f}: {met}")
    return f"Beats {rival} in {METRICS[PAIRED[0]]} by {SIGMAS:g} SEM? {'; '.join(lines) or 'too few draws'}."


def main() -> None:
    bundle = find_bundle("box_tightness")
    known = [OURS, *rivals(bundle)]
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=SETTINGS, default="blobs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--methods", nargs="+", choices=known, default=known, metavar="M", help=", ".join(known))
    parser.add_argument("--out", type=Path, default=Path("runs/bench/box_tightness_quality"))
    parser.add_argument("--epochs", type=int, help="of each training, instead of those of the setting")
    parser.add_argument(
        "--set", nargs=2, action="append", default=[], metavar=("ID", "VALUE"), help="a value of the training, as YAML"
    )
    parser.add_argument("--name", help="folder and table below --out; by default that of --data")
    parser.add_argument("--table", action="store_true", help="train nothing, print the tables of what is there")
    options = parser.parse_args()
    torch.set_num_threads(1)
    setting, name = SETTINGS[options.data], options.name or options.data
    given: dict[str, Any] = parse_overrides(dict(options.set))
    if options.epochs:
        given["max_epochs"] = options.epochs
    folders: Mapping[int, Path] = {seed: options.out / name / f"seed{seed}" for seed in options.seeds}
    for seed, folder in () if options.table else folders.items():
        run(folder, options.methods, setting, seed, given)
    draws = {seed: collect(folder, options.methods) for seed, folder in folders.items()}
    text = tables(draws)
    print(f"\n{name}, seeds {', '.join(map(str, options.seeds))}\n\n{text}")
    (options.out / f"{name}.json").write_text(json.dumps(draws, indent=2))
    (options.out / f"{name}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
