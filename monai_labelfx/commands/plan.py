# SPDX-License-Identifier: Apache-2.0
"""Plans: several steps run in order, each skipped when its output is complete, and one table of their metrics.

A plan is a mapping. Rivals, stages and demonstrations are all plans; ``configs/demo.yaml`` is one that is written out::

    data: {_target_: monai_labelfx.data.brain_mr, labelled: 1}      # called with destination=<out>/data
    data_choices: {nuclei: {data: {_target_: ...}, presets: [...]}}  # replaces these keys of the plan
    presets: [...]                # laid over the first file of every step
    overrides: {max_epochs: 20}   # for every step that has them
    steps:
      - name: denoiseg            # its folder is <out>/denoiseg unless overrides set output_dir
        workflow: train           # train, evaluate, inference, or call
        config: [train.yaml]      # relative to configs/; by default the files of the workflow
        overrides: {datalist: "{data}"}
        done: models/model.pt     # a file or list of files that the step must leave behind
    table: {rows: {denoiseg: DenoiSeg}, columns: {ap: AP}}   # or tables: [{title: ..., columns: ...}]
    note: What the table shows, and what it does not.

``{out}``, ``{data}`` (what the data function returned), ``{data_dir}`` (its folder) and ``{bundle}`` are filled in.
A step of workflow ``call`` holds ``call: {_target_: ...}`` instead of a configuration.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_labelfx._version import __version__
from monai_labelfx.commands.bundle_folder import config_file
from monai_labelfx.commands.files import read_json, write_json
from monai_labelfx.commands.table import compare_runs, read_metrics, save_tables
from monai_labelfx.commands.workflow import WORKFLOWS, config_files, execute, merge_configs, writable_folder

PLAN_KEYS = {"data", "data_choices", "presets", "overrides", "steps", "table", "note"}
STEP_KEYS = {"name", "workflow", "config", "overrides", "done", "call"}


def load_plan(bundle: Path, name: str = "demo", choice: str | None = None) -> dict[str, Any]:
    """Read ``configs/<name>.yaml`` and put one of its ``data_choices`` in place.

    Raises:
        ValueError: for a key that plans do not have, a step without a name, or an unknown choice.
    """
    from monai.bundle import ConfigParser

    file = config_file(bundle, name)
    plan = ConfigParser.load_config_file(file)
    if not isinstance(plan, dict):
        raise ValueError(f"{file} holds a {type(plan).__name__}, expected a mapping with steps")
    choices = plan.pop("data_choices", None) or {}
    if choice is not None:
        if choice not in choices:
            raise ValueError(f"no data {choice!r} in {file.name}: it has {', '.join(sorted(choices)) or 'no choices'}")
        chosen = choices[choice]
        plan |= {"data": chosen} if "_target_" in chosen else chosen
    _check_plan(plan, file)
    return plan


def _check_plan(plan: Mapping[str, Any], file: Path) -> None:
    unknown = set(plan) - PLAN_KEYS
    if unknown:
        raise ValueError(f"{file}: unknown key {min(unknown)!r}, expected some of {', '.join(sorted(PLAN_KEYS))}")
    steps = plan.get("steps")
    if not isinstance(steps, list) or not all(isinstance(step, dict) and step.get("name") for step in steps):
        raise ValueError(f"{file}: steps must be a list of mappings with a name each")
    names = [step["name"] for step in steps]
    for step in steps:
        unknown = set(step) - STEP_KEYS
        if unknown:
            raise ValueError(f"{file}: step {step['name']!r} has the unknown key {min(unknown)!r}")
        if step.get("workflow", "train") not in (*WORKFLOWS, "call"):
            raise ValueError(f"{file}: step {step['name']!r} has the unknown workflow {step['workflow']!r}")
        if names.count(step["name"]) > 1:
            raise ValueError(f"{file}: two steps are called {step['name']!r}")


def run_plan(bundle: Path, plan: Mapping[str, Any], out: str | Path, *, progress: bool = True) -> dict[str, Path]:
    """Run the steps that are not complete, print and save the table.

    A finished step leaves ``complete_<workflow>.json`` with a fingerprint of its configuration, its overrides and the
    steps before it, or what its ``after`` says instead. The next call skips it when the fingerprint is the same, and
    runs it again when anything changed.

    Returns:
        Step name to its folder.
    """
    out = writable_folder(out)
    places = {"out": str(out), "bundle": str(bundle)}
    before = __version__
    if plan.get("data"):
        call = {"destination": "{out}/data", **plan["data"]}
        marker = _step(bundle, {"name": "data", "workflow": "call", "call": call}, places, progress, "data")
        path = Path(marker["result"] or out / "data")
        places |= {"data": str(path), "data_dir": str(path.parent)}
        before = marker["fingerprint"]
    folders = {}
    fingerprints: dict[str, str] = {}
    for number, step in enumerate(plan["steps"], 1):
        step = {"after": before, **step}
        if earlier := step.pop("after_step", None):  # only what that one wrote is read, not all before
            step["after"] = fingerprints[earlier]
        if step.get("workflow") != "call":
            step["config"] = step_files(bundle, step, plan.get("presets", ()))
            step["overrides"] = step_overrides(plan, step)
        label = f"{number}/{len(plan['steps'])} {step['name']}"
        before = fingerprints[step["name"]] = _step(bundle, step, places, progress, label)["fingerprint"]
        folders[step["name"]] = _folder(step, places)
    _print_table(plan, folders, out)
    return folders


def _print_table(plan: Mapping[str, Any], folders: Mapping[str, Path], out: Path) -> None:
    table = plan.get("table") or {}
    rows = table.get("rows") or [name for name, folder in folders.items() if (folder / "metrics.json").is_file()]
    labels = rows if isinstance(rows, Mapping) else {name: name for name in rows}
    unknown = set(labels) - set(folders)
    if unknown:
        raise ValueError(f"the table has a row for {min(unknown)!r}, which is no step: {', '.join(folders)}")
    if labels:
        tables = compare_runs({label: read_metrics(folders[name]) for name, label in labels.items()}, table)
        print(f"\n{save_tables(out, tables, plan.get('note', ''))}")
    if plan.get("note"):
        print(f"\n{' '.join(plan['note'].split())}")


def step_files(bundle: Path, step: Mapping[str, Any], presets: Sequence[str]) -> list[Path]:
    """The configuration files of a step, with the presets over the first one."""
    if not step.get("config"):
        return config_files(bundle, step.get("workflow", "train"), presets)
    files = [bundle / "configs" / name for name in step["config"]]
    for file in files:
        if not file.is_file():
            raise ValueError(f"step {step['name']!r} names {file}, which does not exist")
    return [files[0], *(config_file(bundle, p, "presets") for p in presets), *files[1:]]


def step_overrides(plan: Mapping[str, Any], step: Mapping[str, Any]) -> dict[str, Any]:
    """The plan's overrides as far as the step's configuration has them (inference has no epochs), then its own."""
    config = merge_configs(step["config"])
    common = {k: v for k, v in plan.get("overrides", {}).items() if k.replace("::", "#").split("#")[0] in config}
    return {**common, **step.get("overrides", {})}


def _folder(step: Mapping[str, Any], places: Mapping[str, str]) -> Path:
    return Path(fill(step.get("overrides", {}).get("output_dir", f"{{out}}/{step['name']}"), places)).absolute()


def _step(
    bundle: Path, step: Mapping[str, Any], places: Mapping[str, str], progress: bool, label: str
) -> dict[str, Any]:
    """Run one step unless its marker says that just this is complete; returns the marker's content."""
    folder = writable_folder(_folder(step, places))
    fingerprint, marker = _fingerprint(step, places), folder / f"complete_{step.get('workflow', 'train')}.json"
    done = step.get("done") or []
    needed = [folder / fill(name, places) for name in ([done] if isinstance(done, str) else done)]
    if marker.is_file():
        content = read_json(marker, {})
        if content.get("fingerprint") == fingerprint and all(file.exists() for file in needed):
            print(f"[{label}] complete, skipped: {folder}", flush=True)
            return content
        print(f"[{label}] has changed since it was complete: running it again", flush=True)
        marker.unlink()
    print(f"[{label}] {folder}", flush=True)
    start, result = time.monotonic(), None
    if step.get("workflow") == "call":
        result = _call(fill(step.get("call"), places), step["name"])
    else:
        overrides = fill(dict(step["overrides"]), places)
        execute(bundle, step.get("workflow", "train"), step["config"], folder, overrides, progress=progress)
    for file in needed:
        if not file.exists():
            raise ValueError(f"step {step['name']!r} ended without writing {file}")
    seconds = round(time.monotonic() - start, 2)
    content = {"step": step["name"], "seconds": seconds, "fingerprint": fingerprint, "result": result}
    write_json(marker, content)
    print(f"[{label}] done in {seconds:.1f} s", flush=True)
    return content


def _call(config: Any, name: str) -> str | None:
    from monai.bundle import ConfigParser

    if not isinstance(config, dict) or "_target_" not in config:
        raise ValueError(f"step {name!r} has workflow 'call' but no call: {{_target_: ...}}")
    result = ConfigParser({"call": config}).get_parsed_content("call")
    return None if result is None else str(result)


def _fingerprint(step: Mapping[str, Any], places: Mapping[str, str]) -> str:
    described = {key: value for key, value in step.items() if key != "config"}
    # how a result was reached, at once or in two goes, does not change it
    described["overrides"] = {k: v for k, v in (step.get("overrides") or {}).items() if k != "resume_from"}
    described["files"] = [Path(file).read_text(encoding="utf-8") for file in step.get("config", ())]
    text = json.dumps(fill(described, places), sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def fill(value: Any, places: Mapping[str, str]) -> Any:
    """Replace ``{out}`` and the other placeholders in every string of a nested value.

    Example:
        >>> fill({"datalist": "{data}", "n": [1, "{out}/a"]}, {"data": "d.json", "out": "runs"})
        {'datalist': 'd.json', 'n': [1, 'runs/a']}
    """
    if isinstance(value, Mapping):
        return {key: fill(item, places) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [fill(item, places) for item in value]
    if isinstance(value, str):
        for name, text in places.items():
            value = value.replace(f"{{{name}}}", text)
    return value
