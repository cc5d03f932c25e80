# SPDX-License-Identifier: Apache-2.0
"""One bundle workflow, run in this process: which files make it up, its overrides, its progress bar."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from monai_labelfx.commands.bundle_folder import PACKAGE, config_file
from monai_labelfx.commands.files import write_text
from monai_labelfx.commands.quiet import quiet_bundle_runs, quiet_engine_routine

WORKFLOWS = ("train", "evaluate", "inference")
SET_BY_RUN = ("bundle_root", "output_dir", "stages_dir", "stage_dirs")
"""Identifiers that every run sets, whether or not the configuration names them."""


def config_files(
    bundle: Path, workflow: str = "train", presets: Sequence[str] = (), overlays: Sequence[Path] = ()
) -> list[Path]:
    """The configuration files of a workflow, in the order in which later ones override earlier ones.

    Training is ``train``, presets, overlays; evaluation lays ``evaluate`` over the same list; inference is
    ``inference``, presets, overlays.
    """
    if workflow not in WORKFLOWS:
        raise ValueError(f"workflow is {workflow!r}, expected one of {', '.join(WORKFLOWS)}")
    first = "inference" if workflow == "inference" else "train"
    files = [config_file(bundle, first), *(config_file(bundle, p, "presets") for p in presets), *overlays]
    return [*files, config_file(bundle, "evaluate")] if workflow == "evaluate" else files


def parse_overrides(pairs: Mapping[str, str]) -> dict[str, Any]:
    """Values from the command line, each read as YAML.

    Example:
        >>> parse_overrides({"max_epochs": "3", "amp": "false", "tile_size": "[64, 64]", "dataset_dir": "data"})
        {'max_epochs': 3, 'amp': False, 'tile_size': [64, 64], 'dataset_dir': 'data'}
    """
    values = {}
    for name, text in pairs.items():
        try:
            values[name] = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ValueError(f"--{name} {text!r} is not valid YAML: {' '.join(str(error).split())}") from error
    return values


def check_overrides(config: Mapping[str, Any], overrides: Mapping[str, Any]) -> None:
    """Refuse overrides of identifiers that the configuration does not have: a misspelt one would change nothing.

    Raises:
        ValueError: naming the identifier and the closest one that exists.
    """
    for name in overrides:
        keys = name.replace("::", "#").split("#")
        node: Any = config
        # a new keyword of an existing component is fine, so of a nested identifier only the parents must exist
        for depth, key in enumerate(keys[:-1] or keys):
            found = key in node if isinstance(node, Mapping) else isinstance(node, list) and key.lstrip("-").isdigit()
            if not found and name not in SET_BY_RUN:
                close = difflib.get_close_matches(key, list(node), 1) if isinstance(node, Mapping) else []
                hint = f": did you mean {'#'.join([*keys[:depth], *close])!r}?" if close else ""
                raise ValueError(f"the configuration has no identifier {'#'.join(keys[: depth + 1])!r}{hint}")
            if found:
                node = node[key] if isinstance(node, Mapping) else node[int(key)]


def writable_folder(folder: str | Path) -> Path:
    """The folder, made when absent.

    Raises:
        ValueError: when it lies inside the installed package, which is never written to.
    """
    path = Path(folder).expanduser().absolute()
    if path.resolve().is_relative_to(PACKAGE):
        raise ValueError(f"{path} is inside the installed package: choose another folder with --out")
    if path.exists() and not path.is_dir():
        raise ValueError(f"{path} is a file, expected a folder")
    path.mkdir(parents=True, exist_ok=True)
    return path


def merge_configs(files: Sequence[Path]) -> dict[str, Any]:
    """One configuration from several files, later ones over earlier ones, as MONAI merges them.

    Presets and rivals are written for training. Over ``inference``, which stands alone, an entry ``a#b`` is left out
    where there is no ``a`` (inference has no blind spots to set), and so is a new entry that nothing refers to.

    Raises:
        ValueError: when an entry ``a#b`` of another workflow overrides an ``a`` that does not exist.
    """
    from monai.bundle import ConfigParser
    from monai.bundle.utils import merge_kv

    parser = ConfigParser(config={})
    for file in files:
        content = ConfigParser.load_config_file(file)
        if not isinstance(content, dict):
            raise ValueError(f"{file} holds a {type(content).__name__}, expected a mapping")
        for name, value in content.items():
            known = parser.get()  # the parser itself compares what it lacks with all its keys, which takes long
            parts = name.removeprefix("+").replace("::", "#").split("#")
            changes = len(parts) > 1 or name.startswith("+")
            if parts[0] not in known and changes:
                if files[0].stem == "inference":
                    continue
                raise ValueError(f"{file}: {name!r} changes {parts[0]!r}, which {files[0].name} does not have")
            if name in known or changes:
                merge_kv(parser, name, value)
            else:
                known[name] = value
    config = parser.get()
    if files[0].stem != "inference":
        return config
    used = _reachable(config, ConfigParser.load_config_file(files[0]))
    return {name: value for name, value in config.items() if name in used}


def used_identifiers(config: Mapping[str, Any]) -> set[str]:
    """The top-level identifiers that running a workflow reads, directly or not."""
    return _reachable(config, ("imports", "initialize", "run", "finalize"))


def _reachable(config: Mapping[str, Any], start: Iterable[str]) -> set[str]:
    """The top-level identifiers in ``start`` and all that they refer to, directly or not."""
    from monai.bundle import ReferenceResolver

    found: set[str] = set()
    ahead = [name for name in start if name in config]
    while ahead:
        name = ahead.pop()
        if name not in found:
            found.add(name)
            references = ReferenceResolver.find_refs_in_config(config=config[name], id=name)
            ahead += [root for r in references if (root := r.split("::")[0]) in config]
    return found


def execute(
    bundle: Path,
    workflow: str,
    files: Sequence[Path],
    output_dir: str | Path,
    overrides: Mapping[str, Any] | None = None,
    *,
    progress: bool = True,
) -> Path:
    """Run one workflow of a bundle.

    Args:
        bundle: the bundle's folder; it becomes ``bundle_root``.
        workflow: ``"train"``, ``"evaluate"`` or ``"inference"``.
        files: configuration files, later ones override earlier ones.
        output_dir: run folder. What is run is written there first, as ``config_<workflow>.yaml``.
        overrides: values by identifier.
        progress: show a bar with loss and time left.

    Returns:
        The run folder.
    """
    output_dir = writable_folder((overrides or {}).get("output_dir", output_dir))
    with bundle_workflow(bundle, workflow, files, output_dir, overrides) as flow:
        flow.initialize()
        if progress:
            _attach_progress(flow)
            if sys.stderr.isatty():
                quiet_engine_routine()
        flow.run()
        flow.finalize()
    return output_dir


@contextmanager
def bundle_workflow(
    bundle: Path, workflow: str, files: Sequence[Path], output_dir: Path, overrides: Mapping[str, Any] | None = None
) -> Iterator[Any]:
    """A MONAI ``ConfigWorkflow``, not yet initialised, of the merged configuration saved in ``output_dir``.

    ``sys.path`` is left as it was: MONAI adds a folder at each run, which would pile up over the steps of a plan.
    """
    from monai.bundle import ConfigParser, ConfigWorkflow

    quiet_bundle_runs()
    parser = ConfigParser(config=merge_configs(files))
    check_overrides(parser.get(), overrides or {})
    parser.update({"bundle_root": str(bundle), **(overrides or {}), "output_dir": str(output_dir)})
    file = output_dir / f"config_{workflow}.yaml"
    write_text(file, yaml.safe_dump(parser.get(), sort_keys=False, allow_unicode=True, width=120))
    logging_file = bundle / "configs" / "logging.conf"
    path = list(sys.path)
    try:
        yield ConfigWorkflow(
            config_file=str(file),
            meta_file=str(bundle / "configs" / "metadata.json"),
            logging_file=str(logging_file) if logging_file.is_file() else False,
            workflow_type="infer" if workflow == "inference" else "train",
        )
    finally:
        sys.path[:] = path


def _attach_progress(flow: Any) -> None:
    """A bar for each engine that the ``run`` expressions name."""
    from ignite.engine import Engine
    from monai.bundle import ReferenceResolver

    from monai_labelfx.engines import ProgressBar

    expressions = flow.parser.get("run", [])
    names: dict[str, int] = {}
    for expression in [expressions] if isinstance(expressions, str) else expressions:
        names |= ReferenceResolver.match_refs_pattern(expression)
    for name in names:
        engine = flow.parser.get_parsed_content(name)
        if isinstance(engine, Engine):
            ProgressBar(desc=name.split("::")[0]).attach(engine)
