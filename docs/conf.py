# SPDX-License-Identifier: Apache-2.0
"""Sphinx configuration. The build is offline, runs no notebook, and treats every warning as an error."""

from __future__ import annotations

import logging
import re
import shutil
import sys
from pathlib import Path

import sphinx.util.logging
from docutils import nodes
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.pycode import ModuleAnalyzer

from monai_labelfx._version import __version__
from monai_labelfx.data import quiet_monai

HERE = Path(__file__).parent
logger = sphinx.util.logging.getLogger(__name__)

project = "monai_labelfx"
author = "The monai_labelfx authors"
copyright = author
version = release = __version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "myst_nb",
]
exclude_patterns = ["_build"]
templates_path = ["_templates"]

myst_enable_extensions = ["amsmath", "colon_fence", "dollarmath"]
myst_heading_anchors = 3
html_math_renderer = "mathml"  # browsers draw it themselves: pages need neither scripts nor a network
nb_execution_mode = "off"  # notebooks are executed by the tests and committed with their output

nitpicky = True  # a reference to a public name that is gone must not pass; only these have pages
nitpick_ignore_regex = [(r"py:.*", r"(?!monai_labelfx\.\w+\.\w+$).*")]
autosummary_imported_members = True
autosummary_ignore_module_all = False  # a page of a kind lists exactly its __all__
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
python_maximum_signature_line_length = 88
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_rtype = False
napoleon_custom_sections = ["Shape", "Edges", "Resuming", "Memory"]

html_theme = "pydata_sphinx_theme"
html_title = f"monai_labelfx {__version__}"
html_theme_options = {"show_prev_next": False, "navigation_with_keys": False, "secondary_sidebar_items": ["page-toc"]}
html_show_sourcelink = False
html_show_copyright = False


def _collect_tutorials() -> None:
    """Copy the notebooks below docs, because Sphinx reads no page outside; links to docs pages are made to fit."""
    for old in (HERE / "tutorials").glob("*.ipynb"):
        old.unlink()
    for notebook in sorted((HERE.parent / "tutorials").glob("*.ipynb")):
        text = notebook.read_text(encoding="utf-8").replace("](../docs/", "](../")
        (HERE / "tutorials" / notebook.name).write_text(text, encoding="utf-8")


def _escape_stars(app, what, name, obj, options, lines) -> None:
    """``(B, C, *spatial)`` in a docstring is a shape and no emphasis; literals and examples stay as they are."""
    for number, line in enumerate(lines):
        if not line.lstrip().startswith((">>>", "...")):
            parts = line.split("``")
            parts[::2] = [re.sub(r"(?<!\\)\*(?=spatial\b)", r"\\*", part) for part in parts[::2]]
            lines[number] = "``".join(parts)


def _docs_of_constants(app, what, name, obj, options, lines) -> None:
    """A constant has the docstring of its type; what is written below its definition is what readers want."""
    if what != "data" or obj.__doc__ != type(obj).__doc__:
        return
    package, _, constant = name.rpartition(".")
    lines.clear()
    for module in [one for one in sys.modules if one.startswith(f"{package}.")]:
        if getattr(sys.modules[module], constant, None) is obj:
            lines += ModuleAnalyzer.for_module(module).find_attr_docs().get(("", constant), [])


def _is_no_empty_glob(record: logging.LogRecord) -> bool:
    """Results and tutorials are found, and there may be none yet; Sphinx gives this warning no type to suppress."""
    return "toctree glob pattern" not in str(record.msg)


def _mathml(translator, node) -> None:
    block = isinstance(node, nodes.math_block)
    try:
        formula = tex2mathml(node.astext(), as_block=block)
    except MathError as error:
        logger.warning("%s", error, location=node, type="math")
        formula = f"<code>{translator.encode(node.astext())}</code>"
    translator.body.append(f'<div class="formula">{formula}</div>' if block else formula)
    raise nodes.SkipNode


def setup(app) -> None:
    app.add_html_math_renderer("mathml", (_mathml, None), (_mathml, None))
    app.connect("autodoc-process-docstring", _escape_stars)
    app.connect("autodoc-process-docstring", _docs_of_constants, priority=600)  # napoleon would see a type


quiet_monai()
_collect_tutorials()
shutil.rmtree(HERE / "api" / "generated", ignore_errors=True)  # no page of a name that is gone
logging.getLogger("sphinx.sphinx.directives.other").addFilter(_is_no_empty_glob)
