# SPDX-License-Identifier: Apache-2.0
"""Tables: aligned in the terminal and valid Markdown at the same time, and the comparison of runs by their metrics."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_labelfx.commands.files import read_json, write_json, write_text


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


def compare_runs(
    runs: Mapping[str, Path], columns: Sequence[str] | Mapping[str, str] = ()
) -> tuple[list[str], list[list[Any]]]:
    """Head and rows of the table of several runs.

    Args:
        runs: row label to run folder; a folder without ``metrics.json`` gives a row of dashes.
        columns: metric keys, or metric key to column head; by default every key that any run has.
    """
    metrics = {label: read_metrics(folder) for label, folder in runs.items()}
    keys = list(columns) or list(dict.fromkeys(key for row in metrics.values() for key in row))
    heads = [columns[key] if isinstance(columns, Mapping) else key for key in keys]
    return ["run", *heads], [[label, *(row.get(key) for key in keys)] for label, row in metrics.items()]


def save_table(folder: Path, head: Sequence[str], rows: Sequence[Sequence[Any]], note: str = "") -> str:
    """Write ``table.md`` and ``table.json``; returns the Markdown."""
    text = format_table(head, rows)
    write_text(folder / "table.md", f"{text}\n\n{note}\n" if note else f"{text}\n")
    content = {"note": note, "rows": [dict(zip(head, row, strict=True)) for row in rows]}
    write_json(folder / "table.json", content)
    return text
