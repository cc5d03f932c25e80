# SPDX-License-Identifier: Apache-2.0
"""DenoiSeg against its rivals on real nuclei with few labelled images: the table of docs/results/denoiseg.md.

    LABELFX_DATA=<samples> python benchmarks/denoiseg_quality.py --out runs/quality --seeds 0 1 2

Each seed draws other training and validation images and other labelled ones, and every method gets the same draw; the
test images and the noise in them never change. Thresholds come from the validation images. A finished step is skipped,
so several processes may share the work by seeds, and a last call with all seeds and --table prints the table.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from pathlib import Path

import torch

from monai_labelfx.commands.bundle_folder import find_bundle, rivals
from monai_labelfx.commands.plan import run_plan
from monai_labelfx.commands.run import comparison_plan
from monai_labelfx.data import nuclei

METRICS = ("AP50", "AP50_95", "SEG", "Dice", "PSNR")


def methods_plan(workflow: str, overrides: dict, alphas: list[float]) -> dict:
    """A plan of DenoiSeg, its rivals, and DenoiSeg again at other values of alpha."""
    bundle = find_bundle("denoiseg")
    plan = comparison_plan(bundle, ["denoiseg", *rivals(bundle)], workflow, ["2d"], overrides)
    for alpha in alphas:
        name = f"denoiseg_alpha{alpha:g}"
        plan["steps"].append({**plan["steps"][0], "name": name, "overrides": {**overrides, "alpha": alpha}})
        plan["table"]["rows"][name] = name
    return plan


def run(
    out: Path, seed: int, labelled: int, epochs: int, sigma: float, alphas: list[float]
) -> dict[str, dict[str, float]]:
    """Train and test all methods for one draw; returns method -> metrics."""
    bundle = find_bundle("denoiseg")
    folder = out / f"labelled{labelled}_sigma{sigma:g}" / f"seed{seed}"
    datalist = folder / "data" / "datalist.json"
    if not datalist.is_file():
        nuclei(folder / "data", labelled=labelled, counts=(30, 2, 20), sigma=sigma, seed=seed)
    # half of each batch is labelled, so that a short training sees the labels often enough; the same for all methods
    overrides = {"datalist": str(datalist), "seed": seed, "batch_size": 8, "steps_per_epoch": 50, "min_size": 20}
    training = {**overrides, "max_epochs": epochs, "val_interval": 2, "labelled_per_batch": 4}
    plan = methods_plan("train", training, alphas)
    run_plan(bundle, {"steps": plan["steps"]}, folder, progress=False)
    run_plan(bundle, methods_plan("evaluate", {**overrides, "save_predictions": False}, alphas), folder, progress=False)
    return collect(folder, alphas)


def run_last(out: Path, seed: int, labelled: int, sigma: float, alphas: list[float]) -> dict[str, dict[str, float]]:
    """Test the networks of the last step, not those of the best validation loss, of finished runs of one draw.

    The thresholds are those that were searched for the best ones.
    """
    bundle = find_bundle("denoiseg")
    folder = out / f"labelled{labelled}_sigma{sigma:g}" / f"seed{seed}"
    overrides = {"datalist": str(folder / "data" / "datalist.json"), "seed": seed, "min_size": 20}
    plan = methods_plan("evaluate", {**overrides, "save_predictions": False}, alphas)
    for step in plan["steps"]:
        checkpoint = folder / step["name"] / "models" / "last.pt"
        step["overrides"] |= {"ckpt_path": str(checkpoint), "output_dir": f"{{out}}/last/{step['name']}"}
    run_plan(bundle, plan, folder, progress=False)
    return collect(folder / "last", alphas)


def collect(folder: Path, alphas: list[float]) -> dict[str, dict[str, float]]:
    """Method -> metrics of the finished runs of one draw."""
    rows = methods_plan("evaluate", {}, alphas)["table"]["rows"]
    return {label: json.loads((folder / step / "metrics.json").read_text()) for step, label in rows.items()}


def mean_sem(values: list[float]) -> tuple[float, float]:
    """Mean and standard error of the mean (sample deviation)."""
    error = statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else math.nan
    return statistics.fmean(values), error


def table(results: dict[int, dict[str, dict[str, float]]]) -> str:
    """Markdown: each method's mean and SEM over the draws, then DenoiSeg's gain over each rival, paired by draw."""
    methods = list(next(iter(results.values())))
    others = [m for m in methods if m.startswith("denoiseg_alpha")]
    shown = list(METRICS)
    lines = [f"| | {' | '.join(shown)} |", f"|---|{'---|' * len(shown)}"]

    def row(label: str, pick) -> str:
        cells = []
        for metric in shown:
            values = [pick(draw, metric) for draw in results.values()]
            if any(v is None for v in values):
                cells.append("")
            else:
                cells.append("{:.3f} ± {:.3f}".format(*mean_sem(values)))
        return f"| {label} | {' | '.join(cells)} |"

    for method in methods:
        lines.append(row(method, lambda draw, metric, m=method: draw[m].get(metric)))
    for rival in [m for m in methods[1:] if m not in others]:

        def gain(draw, metric, r=rival):
            ours, theirs = draw["denoiseg"].get(metric), draw[r].get(metric)
            return None if ours is None or theirs is None else ours - theirs

        lines.append(row(f"gain over {rival}", gain))
    for other in others:
        lines.append(
            row(
                f"gain of {other} over baseline",
                lambda d, m, o=other: d[o][m] - d["baseline"][m] if m in d[o] else None,
            )
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/bench/denoiseg_quality"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--labelled", type=int, default=2, help="labelled training images of 30")
    parser.add_argument("--alphas", type=float, nargs="+", default=[], help="DenoiSeg at these values of alpha, too")
    parser.add_argument("--table", action="store_true", help="train nothing, print the table of what is there")
    parser.add_argument("--last", action="store_true", help="train nothing, test the networks of the last step")
    parser.add_argument("--epochs", type=int, default=24, help="of 50 steps of 8 patches of 64 x 64")
    parser.add_argument("--sigma", type=float, default=20.0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = f"labelled{options.labelled}_sigma{options.sigma:g}"
    if options.table:
        where = "last" if options.last else "."
        results = {s: collect(options.out / name / f"seed{s}" / where, options.alphas) for s in options.seeds}
    elif options.last:
        setting = (options.labelled, options.sigma, options.alphas)
        results = {s: run_last(options.out, s, *setting) for s in options.seeds}
    else:
        setting = (options.labelled, options.epochs, options.sigma, options.alphas)
        results = {s: run(options.out, s, *setting) for s in options.seeds}
    name += "_last" if options.last else ""
    text = table(results)
    print(f"\n{len(results)} draws, {options.labelled} labelled training images, 2 labelled for validation\n\n{text}")
    (options.out / f"{name}.json").write_text(json.dumps(results, indent=2))
    (options.out / f"{name}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
