# SPDX-License-Identifier: Apache-2.0
"""The structure of the package: the import ladder, mirrored tests, public names and their documentation."""

from __future__ import annotations

import ast
import doctest
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import monai_labelfx

ROOT = Path(monai_labelfx.__file__).parent
TESTS = Path(__file__).parent
NAMES = TESTS / "public_names.json"
RUNG = {
    "_version": 0,
    "_atomic": 0,
    "ops": 1,
    **dict.fromkeys(("transforms", "losses", "networks", "metrics"), 2),
    **dict.fromkeys(("data", "detectors", "cams", "inferers", "visualize"), 3),
    "engines": 4,
    "bundles": 5,
    **dict.fromkeys(("commands", "cli"), 6),
}
KINDS = sorted(d.name for d in ROOT.iterdir() if (d / "__init__.py").is_file())
SOURCES = sorted(p for p in ROOT.rglob("*.py"))


def _module(path: Path) -> str:
    parts = ("monai_labelfx", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = sorted(_module(path) for path in SOURCES if path.name != "__main__.py")


def _imported(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in found if name.startswith("monai_labelfx.")}


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_go_down_the_ladder(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    for name in _imported(path):
        kind = name.split(".")[1]
        if own in RUNG and kind in RUNG:
            same = kind == own or {kind, own} == {"commands", "cli"}
            assert same or RUNG[kind] < RUNG[own], f"{path} imports {name}, which is not on a lower rung"


@pytest.mark.parametrize("path", SOURCES, ids=lambda p: str(p.relative_to(ROOT)))
def test_every_source_has_licence_and_mirror(path):
    assert path.read_text().startswith("# SPDX-License-Identifier: Apache-2.0\n"), path
    if path.name in ("__init__.py", "_version.py", "__main__.py"):
        return
    relative = path.relative_to(ROOT)
    mirror = TESTS / relative.parent / f"test_{relative.stem.lstrip('_')}.py"
    assert mirror.is_file(), f"{relative} has no {mirror.relative_to(TESTS)}"


def test_every_test_mirrors_a_source():
    for path in TESTS.glob("*/**/test_*.py"):
        relative = path.relative_to(TESTS)
        stem = relative.stem.removeprefix("test_")
        candidates = [ROOT / relative.parent / f"{prefix}{stem}.py" for prefix in ("", "_")]
        assert any(c.is_file() for c in candidates), f"{relative} mirrors no source file"


def _public() -> dict[str, list[str]]:
    return {
        f"monai_labelfx.{kind}": sorted(importlib.import_module(f"monai_labelfx.{kind}").__all__)
        for kind in KINDS
        if importlib.import_module(f"monai_labelfx.{kind}").__all__
    }


def test_public_names_are_locked():
    assert _public() == json.loads(NAMES.read_text()), "public names changed: edit tests/public_names.json on purpose"


def _own_objects() -> dict[str, str]:
    return {
        name: module
        for module in MODULES
        for name, value in vars(importlib.import_module(module)).items()
        if (inspect.isclass(value) or inspect.isfunction(value)) and value.__module__ == module and name[0] != "_"
    }


def test_no_public_name_is_monais():
    from monai.bundle.config_item import ComponentLocator

    table = ComponentLocator(excludes=["monai_labelfx"]).get_component_module_name("DiceLoss")
    assert table, "the locator found nothing: this test would prove nothing"
    locator = ComponentLocator(excludes=["monai_labelfx"])
    clashes = {
        name: found
        for name in _own_objects()
        if (found := [m for m in _as_list(locator.get_component_module_name(name)) if "labelfx" not in m])
    }
    assert not clashes, f"MONAI has these names, and its own win: {clashes}"


def _as_list(value) -> list[str]:
    return [] if value is None else [value] if isinstance(value, str) else list(value)


@pytest.mark.parametrize("module", sorted(_public()))
def test_every_public_object_is_documented(module):
    kind = importlib.import_module(module)
    for name in kind.__all__:
        value = getattr(kind, name)
        assert (value.__doc__ or "").strip() if callable(value) else True, f"{module}.{name} has no docstring"
        if inspect.isclass(value) or inspect.isfunction(value):
            assert not value.__doc__.startswith(f"{name}("), f"{module}.{name} has no docstring"


def _examples(module: str) -> list[doctest.DocTest]:
    found = doctest.DocTestFinder(exclude_empty=True).find(importlib.import_module(module))
    return [test for test in found if test.examples]


@pytest.mark.parametrize("module", MODULES)
def test_docstring_examples_run(module, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with np.printoptions(legacy="1.25"):
        for test in _examples(module):
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE, verbose=False)
            output: list[str] = []
            runner.run(test, out=output.append)
            assert runner.failures == 0, "".join(output)


def test_public_classes_have_examples():
    """Each public part of the computing kinds shows how it is called; a twin is shown by its array class."""
    missing = []
    for module, names in _public().items():
        if module.rsplit(".", 1)[1] not in ("ops", "transforms", "losses", "networks", "metrics"):
            continue
        for name in names:
            value = getattr(importlib.import_module(module), name)
            if callable(value) and not hasattr(value, "array") and ">>>" not in (value.__doc__ or ""):
                missing.append(f"{module}.{name}")
    assert not missing, missing


def test_import_is_cheap_and_defers_heavy_packages():
    code = (
        "import sys, monai_labelfx; assert 'torch' not in sys.modules; import monai; before = set(sys.modules);"
        "import monai_labelfx.ops, monai_labelfx.transforms, monai_labelfx.losses, monai_labelfx.networks,"
        "monai_labelfx.metrics, monai_labelfx.data, monai_labelfx.engines, monai_labelfx.visualize;"
        "new = {m.split('.')[0] for m in set(sys.modules) - before};"
        "assert not new & {'skimage', 'matplotlib', 'highdicom', 'tifffile', 'onnx'}, new"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_no_source_is_too_long():
    """400 lines is an alarm (design, section 3.1)."""
    long = {str(p.relative_to(ROOT)): n for p in SOURCES if (n := len(p.read_text().splitlines())) > 400}
    assert not long, long
