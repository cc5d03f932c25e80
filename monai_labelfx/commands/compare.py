# SPDX-License-Identifier: Apache-2.0
"""labelfx compare: train and evaluate a method and its rivals over several seeds, and print one table.

  labelfx compare cxr_detection --datalist data/datalist.json --seeds 0 1 2 --out runs/comparison
  labelfx compare denoiseg --rivals denoiseg noise2void --dataset_dir data --max_epochs 20

A cell is the mean over the seeds +- its standard error. Where the evaluation also gives an interval over the test
images (metrics <name>_low and <name>_high), its mean bounds follow in brackets. What is complete is skipped, so a
comparison that was stopped goes on; --id value overrides a configuration as in labelfx run.
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
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write into; default: runs/compare/NAME")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def main(args: argparse.Namespace) -> int:
    """Run everything that is not complete, then print and save the table."""
    from monai_labelfx.commands.plan import run_plan
    from monai_labelfx.commands.run import comparison_plan, rival_names
    from monai_labelfx.commands.table import read_metrics, save_table
    from monai_labelfx.commands.workflow import parse_overrides

    bundle = find_bundle(args.bundle)
    names = rival_names(bundle, args.rivals)
    seeds = list(dict.fromkeys(args.seeds))
    overrides = parse_overrides(args.overrides)
    if "seed" in overrides:
        raise ValueError("compare sets the seed of each run itself: use --seeds instead of --seed")
    out = args.out or Path("runs") / "compare" / stem(bundle)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in names}
    plans = {name: comparison_plan(bundle, names, name, args.preset, {}) for name in ("train", "evaluate")}
    _check_overrides(overrides, plans.values())
    for seed in seeds:
        for plan in plans.values():
            plan["overrides"] = {**overrides, "seed": seed}
            folders = run_plan(bundle, plan, out / f"seed_{seed}", progress=not args.no_progress)
        for step, name in plan["table"]["rows"].items():
            found[name].append(read_metrics(folders[step]))
    columns, titles, note = _layout(bundle, found)
    rows = [
        [titles.get(name, name), *(summary([run.get(key) for run in runs], _bounds(runs, key)) for key in columns)]
        for name, runs in found.items()
    ]
    count = f"Mean +- standard error over {len(seeds)} seeds." if len(seeds) > 1 else f"One seed, {seeds[0]}."
    text = save_table(out, ["run", *columns.values()], rows, f"{count} {note}".strip())
    print(f"\n{text}\n\n{count} {note}\noutput is in {out}")
    return 0


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


def _bounds(runs: Sequence[Mapping[str, float]], key: str) -> list[tuple[float, float]]:
    pairs = [(run.get(f"{key}_low"), run.get(f"{key}_high")) for run in runs]
    return [(low, high) for low, high in pairs if low is not None and high is not None]


def _layout(
    bundle: Path, found: Mapping[str, Sequence[Mapping[str, float]]]
) -> tuple[dict[str, str], dict[str, str], str]:
    """Metric -> head of its column, run -> name of its row, and a note.

    They are those of ``configs/comparison.yaml`` where a bundle has one; else every metric that any run has.
    """
    from monai_labelfx.commands.run import comparison_layout

    content = comparison_layout(bundle)
    if content:
        return dict(content["columns"]), dict(content.get("rows", {})), " ".join(content.get("note", "").split())
    keys = dict.fromkeys(key for runs in found.values() for run in runs for key in run)
    return {key: key for key in keys if not key.endswith(("_low", "_high"))}, {}, ""
