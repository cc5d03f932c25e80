# SPDX-License-Identifier: Apache-2.0
"""Every notebook in tutorials/ is found, keeps MONAI's conventions, and runs from a clean start in a short setting."""

from __future__ import annotations

import ast
import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = Path(__file__).parents[1] / "tutorials"
NOTEBOOKS = sorted(TUTORIALS.glob("*.ipynb"))
LICENCE = [
    'Licensed under the Apache License, Version 2.0 (the "License");  ',
    "you may not use this file except in compliance with the License.  ",
    "You may obtain a copy of the License at  ",
    "&nbsp;&nbsp;&nbsp;&nbsp;http://www.apache.org/licenses/LICENSE-2.0  ",
]
INSTALL = '!python -c "import monai_labelfx" || pip install -q "monai-labelfx[viz]"'
OTHER_NAMES = {"epochs", "num_epochs", "n_epochs", "max_epoch", "val_every", "validation_interval"}
MACHINE_PATH = re.compile(r"(?<![\w.>])/(home|root|Users|work|opt|mnt|srv)/\w")


def _sources(notebook: nbformat.NotebookNode, kind: str) -> list[str]:
    return [cell.source for cell in notebook.cells if cell.cell_type == kind]


def _python(notebook: nbformat.NotebookNode) -> list[tuple[str, ast.Module]]:
    """The code cells but the first, with their syntax trees; lines for IPython are left out of these."""
    lines_for_ipython = re.compile(r"^[!%].*$", re.MULTILINE)
    return [(source, ast.parse(lines_for_ipython.sub("", source))) for source in _sources(notebook, "code")[1:]]


def _texts(notebook: nbformat.NotebookNode) -> Iterator[tuple[int, str]]:
    """Cell number and text of every output that has text."""
    for number, cell in enumerate(notebook.cells):
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            yield number, "".join([output.get("text", ""), data.get("text/plain", ""), data.get("text/markdown", "")])


def layout_faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """What MONAI's tutorial guidelines ask of the cells."""
    lines = "\n".join(_sources(notebook, "markdown")).split("\n")
    header = notebook.cells[0].source.split("\n")
    if notebook.cells[0].cell_type != "markdown" or header[:1] != ["Copyright (c) The monai_labelfx authors  "]:
        yield "the first cell does not begin with the copyright line"
    if header[1:5] != LICENCE or not any(line.startswith("# ") for line in header):
        yield "the first cell lacks the licence, with two spaces at each line end, or the title"
    for title in ("## Setup environment", "## Setup imports", "## Setup data directory", "## Cleanup data directory"):
        if title not in lines:
            yield f"there is no {title!r}"
    if _sources(notebook, "code")[0] != INSTALL:
        yield f"the first code cell is not {INSTALL}"
    code = "\n".join(source for source, _ in _python(notebook))
    if not ('os.environ.get("MONAI_DATA_DIRECTORY")' in code and "tempfile.mkdtemp()" in code):
        yield "the data directory is not MONAI_DATA_DIRECTORY or a temporary folder"
    if "shutil.rmtree(root_dir)" not in _sources(notebook, "code")[-1]:
        yield "the last cell does not remove the temporary folder"


def code_faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Imports in one cell, MONAI's variable names, short lines, no shell."""
    (imports, _), *others = _python(notebook)
    if imports.rstrip().split("\n")[-1] != "print_config()":
        yield "the cell of imports does not end in print_config()"
    for source, tree in others:
        if any(isinstance(node, ast.Import | ast.ImportFrom) for node in ast.walk(tree)):
            yield f"an import outside the cell of imports: {source[:60]!r}"
    stored = {
        node.id
        for _, tree in others
        for node in ast.walk(tree)
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if not {"max_epochs", "val_interval"} <= stored or stored & OTHER_NAMES:
        yield "the lengths of the training are not called max_epochs and val_interval"
    for source in _sources(notebook, "code"):
        yield from (f"a line of {len(line)} columns: {line}" for line in source.split("\n") if len(line) > 120)
        if source != INSTALL and re.search(r"^\s*[!%]", source, re.MULTILINE):
            yield f"a shell command or magic: {source[:60]!r}"


def output_faults(notebook: nbformat.NotebookNode) -> Iterator[str]:
    """Executed once from top to bottom, without errors and warnings, and fit to read."""
    counts = [cell.execution_count for cell in notebook.cells if cell.cell_type == "code"]
    if counts != list(range(1, len(counts) + 1)):
        yield f"the cells were not executed once, in order: {counts}"
    kinds: set[str] = set()
    for number, cell in enumerate(notebook.cells):
        lines = 0
        for output in cell.get("outputs", []):
            kinds |= {*output.get("data", {})}
            lines += len(output.get("text", "").splitlines())
            if output.output_type == "error" or output.get("name") == "stderr":
                yield f"cell {number} gave an error or a warning: {output.get('evalue', output.get('text'))}"
        if lines >= 100:
            yield f"cell {number} printed {lines} lines, expected fewer than 100"
    if "image/png" not in kinds:
        yield "there is no picture"
    for number, text in _texts(notebook):
        if found := MACHINE_PATH.search(text):
            yield f"cell {number} shows a path of one machine: {text[found.start() : found.start() + 80]!r}"


CHECKS = (layout_faults, code_faults, output_faults)


def shortened(source: str) -> str:
    """One epoch and one validation, by the rewriting that MONAI's runner of tutorials does."""
    return re.sub(r"^(max_epochs|val_interval) = \d+$", r"\1 = 1", source, flags=re.MULTILINE)


def test_there_are_tutorials_and_the_readme_names_each():
    readme = (TUTORIALS / "README.md").read_text()
    assert len(NOTEBOOKS) >= 2
    assert not [path.name for path in NOTEBOOKS if f"]({path.name})" not in readme]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_conventions(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size < 1_000_000
    assert not [fault for check in CHECKS for fault in check(notebook)]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_links_lead_somewhere(path):
    text = "\n".join(_sources(nbformat.read(path, as_version=4), "markdown"))
    for target in re.findall(r"\]\(([^)#:]+)\)", text):
        assert (TUTORIALS / target).exists(), target


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_runs_in_a_short_setting(path, tmp_path, monkeypatch):
    """From a clean start, offline, with no trace left: neither in the working folder nor among temporary files."""
    notebook = nbformat.read(path, as_version=4)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    before = [cell.source for cell in code]
    for cell in code:
        cell.source, cell.outputs = shortened(cell.source), []
    assert [cell.source for cell in code] != before, "nothing to shorten"

    for name in ("work", "temporary", "runtime"):
        (tmp_path / name).mkdir()
    monkeypatch.delenv("MONAI_DATA_DIRECTORY", raising=False)
    monkeypatch.delenv("MPLBACKEND", raising=False)
    settings = {
        "OMP_NUM_THREADS": "1",
        "PATH": os.pathsep.join([os.path.dirname(sys.executable), os.environ["PATH"]]),  # its shell line calls `python`
        "TMPDIR": str(tmp_path / "temporary"),
        "JUPYTER_RUNTIME_DIR": str(tmp_path / "runtime"),
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "runtime"),
        "PIP_NO_INDEX": "1",
        "http_proxy": "http://127.0.0.1:9",
        "https_proxy": "http://127.0.0.1:9",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    resources = {"metadata": {"path": str(tmp_path / "work")}}
    NotebookClient(notebook, timeout=300, kernel_name="python3", coalesce_streams=True, resources=resources).execute()

    faults = [fault for fault in output_faults(notebook) if "path of one machine" not in fault]
    assert not faults
    assert not [*(tmp_path / "work").iterdir(), *(tmp_path / "temporary").iterdir()]


def _changed(index: int, **values) -> nbformat.NotebookNode:
    notebook = nbformat.read(NOTEBOOKS[0], as_version=4)
    notebook.cells[index].update(values)
    return notebook


@pytest.mark.parametrize(
    ("index", "values", "fault"),
    [
        (0, {"source": "# Title"}, "copyright"),
        (2, {"source": "!pip install monai"}, "first code cell"),
        (4, {"source": "from __future__ import annotations"}, "print_config"),
        (6, {"source": "import os"}, "outside"),
        (6, {"source": "epochs = 3"}, "max_epochs"),
        (6, {"source": "x = " + "1 + " * 40 + "1"}, "columns"),
        (6, {"source": "%matplotlib inline"}, "magic"),
        (6, {"execution_count": None}, "not executed"),
        (6, {"outputs": [nbformat.v4.new_output("stream", name="stderr", text="a warning")]}, "warning"),
        (6, {"outputs": [nbformat.v4.new_output("stream", text="a\n" * 100)]}, "100 lines"),
        (6, {"outputs": [nbformat.v4.new_output("stream", text="in /home/me/data")]}, "path"),
        (-1, {"source": "pass"}, "temporary folder"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_the_checks_find_faults(index, values, fault):
    notebook = _changed(index, **values)
    found = [text for check in CHECKS for text in check(notebook)]
    assert any(fault in text for text in found), found
