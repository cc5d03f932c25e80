# SPDX-License-Identifier: Apache-2.0
"""labelfx run: train, evaluate or apply a bundle, its rivals, stages or sweeps.

Every identifier of the configuration can be overridden by --id value (read as YAML), nested ones by --a#b#c value:

  labelfx run denoiseg train --dataset_dir data --max_epochs 50 --out runs/mine
  labelfx run denoiseg evaluate --dataset_dir data --out runs/mine
  labelfx run denoiseg train --dataset_dir data --rivals all --out runs/comparison
  labelfx run denoiseg train --dataset_dir data --sweep alpha --out runs/sweep
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

from monai_labelfx._version import __version__
from monai_labelfx.commands.bundle_folder import (
    config_file,
    config_names,
    find_bundle,
    rivals,
    stage_files,
    stage_overlays,
    stage_plans,
    stem,
)

OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("bundle", metavar="NAME", help="stem or folder name of a bundle, or a path to one")
    parser.add_argument(
        "workflow", nargs="?", default="train", choices=("train", "evaluate", "inference"), help="default: train"
    )
    parser.add_argument("--preset", nargs="+", default=[], metavar="P", help="lay configs/presets/P.yaml over it")
    parser.add_argument(
        "--rival",
        "--rivals",
        nargs="+",
        default=[],
        metavar="R",
        help="run a rival (configs/rivals or configs/stages) instead; several, or 'all' for the method and every "
        "rival, run one after the other and end in a table",
    )
    parser.add_argument(
        "--stages",
        nargs="?",
        const="",
        metavar="PLAN",
        help="run configs/stages[/PLAN]/NN_*.yaml in order; complete ones are skipped",
    )
    parser.add_argument(
        "--sweep",
        metavar="S",
        help="run every combination of the values that configs/sweeps/S.yaml lists, one after the other, ending in a "
        "table",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="run folder; default: runs/NAME")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def stage_steps(
    bundle: Path, plan: str, workflow: str, presets: Sequence[str], overrides: Mapping[str, Any]
) -> list[dict[str, Any]]:
    """The steps of ``configs/stages[/<plan>]``.

    Each stage, and the one that its ``stage_base`` names, overlays the training configuration, or that of the workflow
    which its ``stage_workflow`` names. Every stage gets ``stages_dir``, the folder whose sub-folders are the outputs of
    all stages of the plan. Workflows other than ``train`` apply to the result, so they use the last stage only.
    """
    from monai.bundle import ConfigParser

    from monai_labelfx.commands.workflow import config_files, merge_configs

    files = stage_files(bundle, plan)
    if not files:
        known = ", ".join(stage_plans(bundle)) or "none"
        raise ValueError(f"bundle {bundle.name} has no stages {plan!r} in configs/stages: its plans are {known}")
    folder = f"{{out}}/{plan}" if plan else "{out}"
    steps = []
    for file in files if workflow == "train" else files[-1:]:
        own = ConfigParser.load_config_file(file).get("stage_workflow", "train") if workflow == "train" else workflow
        config = config_files(bundle, own, presets, stage_overlays(file))
        steps.append(
            {
                "name": f"{plan}/{file.stem}" if plan else file.stem,
                "workflow": own,
                "config": config,
                "overrides": {**overrides, "stages_dir": folder, "output_dir": f"{folder}/{file.stem}"},
                "done": merge_configs(config).get("stage_done", []) if workflow == "train" else [],
            }
        )
    return steps


def comparison_plan(
    bundle: Path,
    names: Sequence[str],
    workflow: str,
    presets: Sequence[str],
    overrides: Mapping[str, Any],
    own: Mapping[str, Mapping[str, Any]] | None = None,
) -> dict[str, Any]:
    """A plan that runs the method (its stem) and rivals one after the other and tabulates their metrics.

    Rows are in the order of ``configs/comparison.yaml``, then as named. ``own`` holds overrides by name, for the steps
    of that name which have them.
    """
    from monai_labelfx.commands.method_plan import in_stages, method_steps
    from monai_labelfx.commands.plan import step_overrides
    from monai_labelfx.commands.workflow import config_files

    steps: list[dict[str, Any]] = []
    labels = {}
    for name in names:
        if name in set(stage_plans(bundle)) - {stem(bundle), *config_names(bundle, "rivals")}:
            new = stage_steps(bundle, name, workflow, presets, overrides)
        elif workflow == "train" and in_stages(bundle, name):
            folders = f"{{out}}/{name}", f"{{out}}/{stem(bundle)}"
            new = method_steps(bundle, name, presets, overrides, root=folders[0], shared=folders[1])
            new = [step for step in new if step["name"] not in [other["name"] for other in steps]]
        else:
            overlays = [] if name == stem(bundle) else [config_file(bundle, name, "rivals")]
            files = config_files(bundle, workflow, presets, overlays)
            new = [{"name": name, "workflow": workflow, "config": files, "overrides": dict(overrides)}]
            if in_stages(bundle, name):  # its stages lie where training has put them
                folders = f"{{out}}/{name}", f"{{out}}/{stem(bundle)}"
                last = method_steps(bundle, name, presets, {}, root=folders[0], shared=folders[1])[-1]["overrides"]
                new[0]["overrides"] |= {key: last[key] for key in ("stages_dir", "stage_dirs")}
        for step in new:
            if step["name"].split("/")[0] == name:  # not what it shares with the method
                step["overrides"] |= step_overrides(
                    {"overrides": (own or {}).get(name, {})}, {"config": step["config"]}
                )
        if "after_step" not in new[0]:
            new[0]["after"] = __version__  # no rival uses what another wrote
        steps += new
        labels[steps[-1]["name"]] = name
    layout = comparison_layout(bundle)
    order = [*layout.get("rows", {}), *names]
    rows = dict(sorted(labels.items(), key=lambda row: order.index(row[1])))
    return {"steps": steps, "table": {**(layout if workflow == "evaluate" else {}), "rows": rows}}


LAYOUT_KEYS = {"rows", "columns", "tables", "note"}


def comparison_layout(bundle: Path) -> dict[str, Any]:
    """What ``configs/comparison.yaml`` says of tables; empty without the file.

    ``rows`` maps names to labels, ``columns`` metrics to heads; ``tables`` is a list of ``title`` and ``columns``; and
    there may be a ``note``.

    Raises:
        ValueError: for another key, or a table without title or columns.
    """
    from monai.bundle import ConfigParser

    file = bundle / "configs" / "comparison.yaml"
    layout: dict[str, Any] = ConfigParser.load_config_file(file) if file.is_file() else {}
    unknown = set(layout) - LAYOUT_KEYS
    if unknown:
        raise ValueError(f"{file}: unknown key {min(unknown)!r}, expected some of {', '.join(sorted(LAYOUT_KEYS))}")
    for table in layout.get("tables", []):
        if not isinstance(table, dict) or set(table) != {"title", "columns"} or not all(table.values()):
            raise ValueError(f"{file}: a table is {table!r}, expected a mapping with a title and columns")
    return layout


def sweep_plan(
    bundle: Path,
    name: str,
    workflow: str,
    presets: Sequence[str],
    overlays: Sequence[Path],
    overrides: Mapping[str, Any],
) -> dict[str, Any]:
    """A plan with one step for each combination of the values in ``configs/sweeps/<name>.yaml``.

    The file maps identifiers to lists of values; a step is named after its values and has its own folder.
    """
    from monai.bundle import ConfigParser

    from monai_labelfx.commands.workflow import config_files

    file = config_file(bundle, name, "sweeps")
    axes = ConfigParser.load_config_file(file)
    for identifier, values in axes.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"{file}: {identifier!r} holds {values!r}, expected a list of values")
    files = config_files(bundle, workflow, presets, overlays)
    steps = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        label = "_".join(f"{identifier.split('#')[-1]}={value}" for identifier, value in chosen.items())
        steps.append({"name": label, "workflow": workflow, "config": files, "overrides": {**overrides, **chosen}})
    return {"steps": steps, "table": {"rows": {step["name"]: step["name"] for step in steps}}}


def rival_names(bundle: Path, asked: Sequence[str]) -> list[str]:
    """The rivals that were asked for; ``["all"]`` is the method, by its stem, and every rival."""
    known = [stem(bundle), *rivals(bundle)]
    names = known if list(asked) == ["all"] else list(dict.fromkeys(asked))
    for name in names:
        if name not in known:
            raise ValueError(f"bundle {bundle.name} has no rival {name!r}: it has {', '.join(known[1:]) or 'none'}")
    return names


def _stage_of(checkpoint: str, steps: Sequence[dict[str, Any]], out: Path) -> dict[str, Any]:
    """The stage that goes on from a checkpoint: in whose folder it lies, else the last."""
    from monai_labelfx.commands.plan import fill

    places = {"out": str(out.expanduser().absolute())}
    folders = [Path(fill(step["overrides"]["output_dir"], places)) for step in steps]
    inside = [number for number, folder in enumerate(folders) if Path(checkpoint).absolute().is_relative_to(folder)]
    return steps[max(inside, key=lambda number: len(folders[number].parts), default=-1)]


def with_overrides(plan: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The plan with overrides for those of its steps that use them, so that a change runs no other step again.

    Those that no step uses are printed: a preset or rival may have put another part in place of the one they are for.

    Raises:
        ValueError: for an identifier that no step has.
    """
    from monai_labelfx.commands.workflow import check_overrides, merge_configs, used_identifiers

    known: dict[str, Any] = {}
    steps = []
    unused = dict.fromkeys(overrides)
    for step in plan["steps"]:
        config = merge_configs(step["config"])
        known |= config
        used = used_identifiers(config)
        own = {k: v for k, v in overrides.items() if k.replace("::", "#").split("#")[0] in used}
        unused = {name: None for name in unused if name not in own}
        steps.append({**step, "overrides": {**own, **step["overrides"]}})
    check_overrides(known, overrides)
    if unused:
        print(f"without effect, as no step uses it: {', '.join(f'--{name}' for name in unused)}", flush=True)
    return {**plan, "steps": steps}


def main(args: argparse.Namespace) -> int:
    """Run the workflow and say where its output is."""
    from monai_labelfx.commands.method_plan import in_stages, method_steps
    from monai_labelfx.commands.plan import run_plan
    from monai_labelfx.commands.workflow import config_files, execute, parse_overrides

    bundle = find_bundle(args.bundle)
    overrides = parse_overrides(args.overrides)
    names = rival_names(bundle, args.rival)
    default = Path("runs") / "-".join([stem(bundle), *(names if len(names) == 1 else [])])
    out = args.out or Path(overrides.pop("output_dir", default))
    if args.stages is not None:
        if names:
            raise ValueError("--stages and --rival exclude each other: a plan of stages is a rival too")
        if args.sweep:
            raise ValueError("--stages and --sweep exclude each other")
        plan = {"steps": stage_steps(bundle, args.stages, args.workflow, args.preset, {})}
        run_plan(bundle, with_overrides(plan, overrides), out, progress=not args.no_progress)
    elif args.sweep:
        overlays = [config_file(bundle, name, "rivals") for name in names if name != stem(bundle)]
        plan = sweep_plan(bundle, args.sweep, args.workflow, args.preset, overlays, overrides)
        run_plan(bundle, plan, out, progress=not args.no_progress)
    elif args.workflow == "train" and len(names) < 2 and in_stages(bundle, name := "".join(names) or stem(bundle)):
        steps = method_steps(bundle, name, args.preset, {})
        if checkpoint := overrides.pop("resume_from", None):
            _stage_of(checkpoint, steps, out)["overrides"]["resume_from"] = checkpoint
        run_plan(bundle, with_overrides({"steps": steps}, overrides), out, progress=not args.no_progress)
    elif len(names) > 1 or set(names) & set(stage_plans(bundle)) - {stem(bundle), *config_names(bundle, "rivals")}:
        plan = comparison_plan(bundle, names, args.workflow, args.preset, {})
        run_plan(bundle, with_overrides(plan, overrides), out, progress=not args.no_progress)
    else:
        overlays = [config_file(bundle, name, "rivals") for name in names if name != stem(bundle)]
        files = config_files(bundle, args.workflow, args.preset, overlays)
        execute(bundle, args.workflow, files, out, overrides, progress=not args.no_progress)
    print(f"output is in {out}")
    return 0
