# SPDX-License-Identifier: Apache-2.0
"""Tables: aligned in the terminal and valid Markdown at the same time, and the comparison of runs by their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from monai_labelfx.commands.files import read_json, write_json, write_text


class Table(NamedTuple):
    """One table, with a row for each run."""

    head: list[str]
    rows: list[list[Any]]
    title: str = ""


def format_table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A Markdown table whose columns are padded; numbers to the right, with four decimals unless whole.

    Example:
        >>> print(format_table(["run", "ap"], [["denoiseg", 0.5], ["baseline", None]]))
        | run      |     ap |
        | :------- | -----: |
        | denoiseg | 0.5000 |
        | baseline |      - |
    """
    cells = [[format_cell(value) for value in row] for row in rows]
    right = [
        bool(rows) and all(v is None or isinstance(v, int | float) for v in column)
        for column in (zip(*rows, strict=True) if rows else [[]] * len(head))
    ]
    widths = [max(2, *map(len, column)) for column in zip(head, *cells, strict=True)]
    lines = [[h.rjust(w) if r else h.ljust(w) for h, w, r in zip(head, widths, right, strict=True)]]
    lines.append(["-" * (w - 1) + ":" if r else ":" + "-" * (w - 1) for w, r in zip(widths, right, strict=True)])
    lines += [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in cells]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_cell(value: Any) -> str:
    """A value as text: ``-`` when missing, four decimals for fractions."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "-"
    if isinstance(value, float):
        return f"{value:.0f}" if value.is_integer() and abs(value) >= 10 else f"{value:.4f}"
    return " ".join(str(value).replace("|", "\\|").split())


def read_metrics(folder: Path) -> dict[str, float]:
    """The numbers in ``metrics.json`` of a run folder; empty when there is no such file."""
    content = read_json(folder / "metrics.json", {})
    return {k: v for k, v in content.items() if isinstance(v, int | float) and not isinstance(v, bool)}


def compare_runs(runs: Mapping[str, Mapping[str, Any]], layout: Mapping[str, Any] | None = None) -> list[Table]:
    """The tables of several runs.

    A table with a title has only the runs that have a value for one of its columns, and is left out without any: boxes
    and masks can have a table each, although not every run has masks.

    Args:
        runs: row label to metrics by key; without metrics it is a row of dashes.
        layout: ``columns``, metric keys or metric key to column head, of one table without a title; ``tables``, a list
            of mappings with ``title`` and ``columns``. By default one table of every key that any run has.

    Raises:
        ValueError: when there are titled tables only and no run has a value for them.

    Example:
        >>> layout = {"tables": [{"title": "Boxes", "columns": {"ap": "AP"}}, {"title": "Masks", "columns": ["dice"]}]}
        >>> compare_runs({"one": {"ap": 0.5}, "two": {"ap": 0.7}}, layout)
        [Table(head=['run', 'AP'], rows=[['one', 0.5], ['two', 0.7]], title='Boxes')]
    """
    layout = layout or {}
    titled = list(layout.get("tables") or [])
    tables = []
    for table in [*([] if titled and not layout.get("columns") else [layout]), *titled]:
        columns, title = table.get("columns") or (), table.get("title", "")
        keys = list(columns) or list(dict.fromkeys(key for row in runs.values() for key in row))
        heads = [columns[key] if isinstance(columns, Mapping) else key for key in keys]
        rows = [[label, *(row.get(key) for key in keys)] for label, row in runs.items()]
        if title:
            rows = [row for row in rows if any(value is not None for value in row[1:])]
        if rows or not title:
            tables.append(Table(["run", *heads], rows, title))
    if not tables:
        raise ValueError(f"no run has a value for the tables {', '.join(repr(table['title']) for table in titled)}")
    return tables


def save_tables(folder: Path, tables: Sequence[Table], note: str = "") -> str:
    """Write ``table.md`` and ``table.json``; returns the Markdown of the tables.

    In JSON a table without a title is ``rows``, those with one are ``tables``, a list of ``title`` and ``rows``.
    """
    parts = [
        (f"**{table.title}**\n\n" if table.title else "") + format_table(table.head, table.rows) for table in tables
    ]
    text = "\n\n".join(parts)
    write_text(folder / "table.md", f"{text}\n\n{note}\n" if note else f"{text}\n")
    content: dict[str, Any] = {"note": note}
    for table in tables:
        rows = [dict(zip(table.head, row, strict=True)) for row in table.rows]
        if table.title:
            content.setdefault("tables", []).append({"title": table.title, "rows": rows})
        else:
            content["rows"] = rows
    write_json(folder / "table.json", content)
    return text
