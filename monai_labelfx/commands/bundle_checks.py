# SPDX-License-Identifier: Apache-2.0
"""What is checked about a bundle by reading it: files, metadata, versions, and every component that it names."""

from __future__ import annotations

import ast
import builtins
import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata as packages
from pathlib import Path
from typing import Any

from monai_labelfx._version import __version__
from monai_labelfx.commands.bundle_folder import (
    config_file,
    config_names,
    metadata,
    stage_files,
    stage_overlays,
    stage_plans,
)
from monai_labelfx.commands.method_plan import in_stages, method_steps
from monai_labelfx.commands.workflow import SET_BY_RUN, config_files, merge_configs

CONFIGS = ("train", "evaluate", "inference", "multi_gpu_train", "demo")
FILES = ("LICENSE", "configs/metadata.json", "configs/logging.conf", "docs/README.md")
SCHEMA = Path(__file__).with_name("metadata_schema.json")
VERSION_KEYS = {"monai_version": "monai", "pytorch_version": "torch", "numpy_version": "numpy"}


def check_files(bundle: Path) -> None:
    """Everything that a bundle of this package holds is there, and no Python beside the installed package."""
    for name in CONFIGS:
        config_file(bundle, name)
    for name in FILES:
        if not (bundle / name).is_file() or not (bundle / name).read_text(encoding="utf-8").strip():
            raise ValueError(f"{name} is missing or empty")
    scripts = [f.relative_to(bundle) for f in bundle.rglob("*.py")]
    if scripts or (bundle / "scripts").exists():
        found = scripts[0] if scripts else "scripts"
        raise ValueError(f"{found}: a bundle holds configuration only, its parts come from the installed package")


def check_schema(bundle: Path) -> None:
    """metadata.json keeps to the vendored schema of the MONAI bundle specification."""
    from jsonschema import Draft202012Validator

    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    errors = sorted(Draft202012Validator(schema).iter_errors(metadata(bundle)), key=lambda e: [*map(str, e.path)])
    if errors:
        where = "#".join(map(str, errors[0].path)) or "top level"
        more = f" (and {len(errors) - 1} more)" if len(errors) > 1 else ""
        raise ValueError(f"metadata.json, {where}: {errors[0].message}{more}")


def check_changelog(bundle: Path) -> None:
    """The version of the bundle has an entry in its changelog."""
    meta = metadata(bundle)
    if meta.get("version") not in meta.get("changelog", {}):
        raise ValueError(f"version {meta.get('version')!r} has no entry in the changelog of metadata.json")


def check_versions(bundle: Path) -> None:
    """The versions in metadata.json, and those installed, lie in the ranges that this package requires."""
    from packaging.requirements import Requirement

    meta = metadata(bundle)
    asked = {name: meta[key] for key, name in VERSION_KEYS.items() if key in meta}
    asked |= meta.get("required_packages_version", {})
    ranges: dict[str, Any] = {}
    for text in packages.requires("monai-labelfx") or []:
        requirement = Requirement(text)
        ranges[requirement.name.lower()] = requirement.specifier
    for name, version in asked.items():
        if name == "monai-labelfx":
            if version != __version__:
                raise ValueError(f"metadata.json asks for monai-labelfx {version}, but this is {__version__}")
            continue
        if name.lower() not in ranges:
            raise ValueError(f"metadata.json asks for {name}, which monai-labelfx does not require")
        for which, value in (("metadata.json asks for", version), ("installed is", packages.version(name))):
            if not ranges[name.lower()].contains(value, prereleases=True):
                raise ValueError(f"{which} {name} {value}, but monai-labelfx requires {name}{ranges[name.lower()]}")


def check_components(bundle: Path) -> None:
    """Every ``_target_`` resolves and takes its keywords, every ``@`` refers to something, every ``$`` is Python.

    Covers all workflows, alone and under each preset, rival and stage, and the demo.
    """
    from monai.bundle import ComponentLocator

    faults: dict[str, str] = {}
    locator, meta = ComponentLocator(), metadata(bundle)  # one: its first use looks through all of MONAI
    for name, files in combinations(bundle):
        for fault in component_faults(merge_configs(files), meta, locator):
            faults.setdefault(fault, name)
    for name, data in demo_data(bundle):
        for fault in component_faults({"data": {"destination": "", **data}}, {}, locator):
            faults.setdefault(fault, name)
    if faults:
        fault, name = next(iter(faults.items()))
        raise ValueError(f"{name}: {fault}" + (f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""))


def combinations(bundle: Path) -> Iterator[tuple[str, list[Path]]]:
    """Name and files of everything that the bundle can run."""
    yield "multi_gpu_train", [config_file(bundle, "train"), config_file(bundle, "multi_gpu_train")]
    overlays: dict[str, list[Path]] = {"": []}
    for kind in ("presets", "rivals"):
        overlays |= {f" with {kind}/{n}": [config_file(bundle, n, kind)] for n in config_names(bundle, kind)}
    for plan in ("", *stage_plans(bundle)):
        stages = stage_files(bundle, plan)
        for file in stages[:-1]:  # only the last one is evaluated or applied
            yield f"train with stages/{plan}/{file.stem}", config_files(bundle, "train", overlays=stage_overlays(file))
        overlays |= {f" with stages/{plan}/{file.stem}": stage_overlays(file) for file in stages[-1:]}
    for name in config_names(bundle, "rivals"):
        for step in method_steps(bundle, name, [], {}) if in_stages(bundle, name) else ():
            yield f"{step['name']} with rivals/{name}", step["config"]
    for text, files in overlays.items():
        for workflow in ("train", "evaluate", "inference"):
            yield workflow + text, config_files(bundle, workflow, overlays=files)


def demo_data(bundle: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Name and call of each data set of the demo."""
    demo = merge_configs([config_file(bundle, "demo")])
    if "data" in demo:
        yield "demo", demo["data"]
    for name, choice in (demo.get("data_choices") or {}).items():
        yield f"demo --data {name}", choice if "_target_" in choice else choice.get("data", {})


def component_faults(config: Mapping[str, Any], meta: Mapping[str, Any], locator: Any) -> Iterator[str]:
    """One sentence for each component, reference or expression of a configuration that cannot work."""
    from monai.bundle import ConfigComponent, ConfigParser

    parser = ConfigParser(config=dict(config))
    parser.set(dict(meta), "_meta_")
    for name in SET_BY_RUN:
        if name not in parser:
            parser[name] = ""
    parser.resolve_macro_and_relative_ids()
    known = _global_names(parser)
    for place, value in _walk(parser.get(), ""):
        if ConfigComponent.is_instantiable(value):
            component = ConfigComponent(config=value, id=place, locator=locator)
            yield from _component_fault(component, place)
        elif isinstance(value, str) and not place.startswith("_meta_"):
            yield from _text_fault(value, place, parser, known)


def _walk(value: Any, place: str) -> Iterator[tuple[str, Any]]:
    yield place, value
    pairs = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in pairs:
        yield from _walk(item, f"{place}#{key}" if place else str(key))


def _component_fault(component: Any, place: str) -> Iterator[str]:
    from pydoc import locate

    target = component.resolve_module_name()
    if not isinstance(target, str) or target.startswith("$"):
        return
    found: Any = locate(target)
    if found is None:
        yield f"{place} names {target}, which does not exist"
        return
    try:
        signature = inspect.signature(found)
    except (TypeError, ValueError):  # a class written in C without a signature
        return
    keywords = dict.fromkeys(component.resolve_args())
    partial = component.get_config().get("_mode_") == "callable"
    try:
        (signature.bind_partial if partial else signature.bind)(**keywords)
    except TypeError as error:
        yield f"{place}, {target}: {error}"


def _global_names(parser: Any) -> set[str]:
    """Names that expressions may use: MONAI's and those that the configuration imports, as MONAI binds them."""
    from monai.bundle import ConfigExpression

    known = {*dir(builtins), *parser.globals}
    for place, value in _walk(parser.get(), ""):
        if not place.startswith("_meta_") and ConfigExpression.is_import_statement(value):
            statement = ast.parse(value[1:]).body[0]
            # MONAI binds `import a.b` to the one name "a.b", which no expression can use
            known |= {alias.asname or alias.name for alias in getattr(statement, "names", ())}
    return known


def _text_fault(value: str, place: str, parser: Any, known: set[str]) -> Iterator[str]:
    from monai.bundle import ConfigExpression, ReferenceResolver

    references = ReferenceResolver.match_refs_pattern(value)
    missing = [name for name in references if name not in parser]
    if missing:
        yield f"{place} refers to @{missing[0].replace('::', '#')}, which is not defined"
    elif ConfigExpression.is_expression(value) and not ConfigExpression.is_import_statement(value):
        code = ReferenceResolver.update_refs_pattern(value, references)[1:]
        try:
            tree = ast.parse(code.strip(), place, "eval")
        except SyntaxError as error:
            yield f"{place} is not a Python expression: {error.msg}: {value[1:]}"
            return
        names = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
        bound = {node.arg for node in ast.walk(tree) if isinstance(node, ast.arg)}
        bound |= {node.id for node in names if not isinstance(node.ctx, ast.Load)}
        unknown = {node.id for node in names} - bound - known - {ReferenceResolver._vars}
        if unknown:
            yield f"{place} uses {min(unknown)}, which no `imports` entry binds (write `$import a.b as name`): {value}"


def first_steps(plan: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """The first step of each workflow of a plan."""
    steps: Sequence[dict[str, Any]] = plan["steps"]
    return {step.get("workflow", "train"): step for step in reversed(steps)}
