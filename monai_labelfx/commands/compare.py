# SPDX-License-Identifier: Apache-2.0
"""labelfx compare: train and evaluate a method and its rivals over several seeds, and print the tables.

  labelfx compare cxr_detection --datalist data/datalist.json --seeds 0 1 2 --out runs/comparison
  labelfx compare denoiseg --rivals denoiseg noise2void --dataset_dir data --max_epochs 20
  labelfx compare cxr_detection --datalist data/datalist.json --for yolov3 learning_rate=0.002 max_epochs=200

A cell is the mean over the seeds +- its standard error. Where the evaluation also gives an interval over the test
images (metrics <name>_low and <name>_high), its mean bounds follow in brackets. What is complete is skipped, so a
comparison that was stopped goes on; --id value overrides a configuration as in labelfx run, --for that of one rival.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_labelfx.commands.bundle_folder import find_bundle, stem

OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("bundle", metavar="NAME", help="stem or folder name of a bundle, or a path to one")
    parser.add_argument(
        "--rivals",
        "--rival",
        nargs="+",
        default=["all"],
        metavar="R",
        help="which to compare, the method by its stem; default: all, the method and every rival",
    )
    parser.add_argument("--seeds", nargs="+", type=int, default=[0], metavar="S", help="default: 0")
    parser.add_argument("--preset", nargs="+", default=[], metavar="P", help="lay configs/presets/P.yaml over it")
    parser.add_argument(
        "--for",
        dest="own",
        nargs="+",
        action="append",
        default=[],
        metavar=("R", "ID=VALUE"),
        help="overrides for one of them, over those for all; may be given again for another",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write into; default: runs/compare/NAME")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def main(args: argparse.Namespace) -> int:
    """Run everything that is not complete, then print and save the tables."""
    from monai_labelfx.commands.plan import run_plan
    from monai_labelfx.commands.run import comparison_layout, rival_names
    from monai_labelfx.commands.table import compare_runs, read_metrics, save_tables
    from monai_labelfx.commands.workflow import parse_overrides

    bundle = find_bundle(args.bundle)
    layout, names = comparison_layout(bundle), rival_names(bundle, args.rivals)
    seeds = list(dict.fromkeys(args.seeds))
    overrides, own = parse_overrides(args.overrides), own_overrides(args.own, names)
    if "seed" in overrides or any("seed" in values for values in own.values()):
        raise ValueError("compare sets the seed of each run itself: use --seeds instead of --seed")
    for name in own:
        _check_overrides(own[name], _plans(bundle, [name], args.preset, {}).values())
    plans = _plans(bundle, names, args.preset, own)
    _check_overrides(overrides, plans.values())
    out = args.out or Path("runs") / "compare" / stem(bundle)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in plans["evaluate"]["table"]["rows"].values()}
    for seed in seeds:
        for plan in plans.values():
            plan["overrides"] = {**overrides, "seed": seed}
            folders = run_plan(bundle, plan, out / f"seed_{seed}", progress=not args.no_progress)
        for step, name in plan["table"]["rows"].items():
            found[name].append(read_metrics(folders[step]))
    labels = layout.get("rows", {})
    tables = compare_runs({labels.get(name, name): _cells(runs) for name, runs in found.items()}, layout)
    count = f"Mean +- standard error over {len(seeds)} seeds." if len(seeds) > 1 else f"One seed, {seeds[0]}."
    note = " ".join(f"{count} {layout.get('note', '')}".split())
    print(f"\n{save_tables(out, tables, note)}\n\n{note}\noutput is in {out}")
    return 0


def own_overrides(groups: Sequence[Sequence[str]], names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Overrides by rival, from groups of its name and ``ID=VALUE``.

    Raises:
        ValueError: for a name that is not compared, or a part that is not ``ID=VALUE``.

    Example:
        >>> own_overrides([["yolov3", "learning_rate=0.002", "max_epochs=9"]], ["fcos", "yolov3"])
        {'yolov3': {'learning_rate': 0.002, 'max_epochs': 9}}
    """
    from monai_labelfx.commands.workflow import parse_overrides

    own: dict[str, dict[str, Any]] = {}
    for name, *pairs in groups:
        if name not in names:
            raise ValueError(f"--for names {name!r}, which is not compared: expected one of {', '.join(names)}")
        parts = [pair.partition("=") for pair in pairs]
        if not parts or not all(key and equals for key, equals, _ in parts):
            raise ValueError(f"--for {' '.join([name, *pairs])}: expected ID=VALUE after the name of a rival")
        own.setdefault(name, {}).update(parse_overrides({key: value for key, _, value in parts}))
    return own


def _plans(
    bundle: Path, names: Sequence[str], presets: Sequence[str], own: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    from monai_labelfx.commands.run import comparison_plan

    return {what: comparison_plan(bundle, names, what, presets, {}, own) for what in ("train", "evaluate")}


def _check_overrides(overrides: Mapping[str, Any], plans: Iterable[Mapping[str, Any]]) -> None:
    """Refuse an identifier that neither training nor evaluation has; each takes those that it has."""
    from monai_labelfx.commands.workflow import merge_configs

    known = {key for plan in plans for step in plan["steps"] for key in merge_configs(step["config"])}
    for name in overrides:
        if name.replace("::", "#").split("#")[0] not in known:
            raise ValueError(f"no configuration has the identifier {name!r}")


def summary(values: Sequence[float | None], bounds: Sequence[tuple[float, float]] = ()) -> str | None:
    """Mean +- standard error of the mean, and the mean bounds of an interval; ``None`` when no run has a value.

    Example:
        >>> summary([0.5, 0.7, 0.6]), summary([0.5], [(0.4, 0.7)])
        ('0.600 ± 0.058', '0.500 [0.400, 0.700]')
    """
    numbers = [value for value in values if value is not None and not math.isnan(value)]
    if not numbers:
        return None
    mean = sum(numbers) / len(numbers)
    text = f"{mean:.3f}"
    if len(numbers) > 1:
        variance = sum((value - mean) ** 2 for value in numbers) / (len(numbers) - 1)
        text += f" ± {math.sqrt(variance / len(numbers)):.3f}"
    if bounds:
        low, high = (sum(side) / len(bounds) for side in zip(*bounds, strict=True))
        text += f" [{low:.3f}, {high:.3f}]"
    return text


def _cells(runs: Sequence[Mapping[str, float]]) -> dict[str, str | None]:
    """The cell of every metric that any run has; the bounds of intervals have none of their own."""
    keys = dict.fromkeys(key for run in runs for key in run if not key.endswith(("_low", "_high")))
    return {key: summary([run.get(key) for run in runs], _bounds(runs, key)) for key in keys}


def _bounds(runs: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    pairs = [(run.get(f"{key}_low"), run.get(f"{key}_high")) for run in runs]
    return [(low, high) for low, high in pairs if low is not None and high is not None]
