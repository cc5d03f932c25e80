# SPDX-License-Identifier: Apache-2.0
"""labelfx report: one self-contained HTML page of a run: curves, pictures, metrics, versions, configuration."""

from __future__ import annotations

import argparse
import base64
import io
import re
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from monai_labelfx.commands.files import read_json, write_text
from monai_labelfx.commands.table import compare_runs, format_cell, read_metrics

MOST_PICTURES = 24
WIDEST = 1600
"""Pictures are shrunk to this many pixels, so that the page can be sent by mail."""

FILES = ("run.json", "history.json", "metrics.json")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:1080px;margin:2em auto;padding:0 1em;color:#222}"
    "table{border-collapse:collapse;margin:.6em 0}th,td{border:1px solid #ccc;padding:.25em .7em;text-align:left}"
    "td.n{text-align:right;font-variant-numeric:tabular-nums}th{background:#f3f3f3}h1,h2{margin:1.2em 0 .3em}"
    "figure{margin:1em 0}img{max-width:100%;border:1px solid #ddd}figcaption{color:#555}"
    "pre{background:#f7f7f7;padding:1em;overflow:auto;font-size:12px}svg{max-width:100%;height:auto;margin-right:1em}"
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("run", metavar="RUN", type=Path, help="folder of a run, a comparison or a demo")
    parser.add_argument("--out", type=Path, metavar="FILE", help="page to write; default: RUN/report.html")


def main(args: argparse.Namespace) -> int:
    """Write the page and say where it is."""
    print(f"wrote {write_report(args.run, args.out)}")
    return 0


def write_report(run: str | Path, file: str | Path | None = None) -> Path:
    """Write the page of a run folder.

    The page names no files but the stems of pictures, and shortens every path in a configuration to its last part, so
    that no folder named after a patient reaches it.

    Raises:
        ValueError: when the folder holds nothing of a run.
    """
    run = Path(run).expanduser()
    folders = run_folders(run)
    pictures = sorted(run.rglob("*.png"), key=lambda f: (len(f.relative_to(run).parts), str(f)))
    if not folders and not pictures:
        raise ValueError(f"{run} is no run folder: there is no {', '.join(FILES)} and no picture in or below it")
    title = escape(run.resolve().name)
    body = [f"<h1>{title}</h1>", _comparison(run, folders), _pictures(run, pictures)]
    body += [_section(run, folder) for folder in folders]
    page = (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f'<meta name="viewport" content="width=device-width"><style>{STYLE}</style></head>\n<body>\n'
        + "\n".join(part for part in body if part)
        + "\n</body></html>\n"
    )
    file = run / "report.html" if file is None else Path(file).expanduser()
    write_text(file, page)
    return file


def run_folders(run: Path) -> list[Path]:
    """``run`` and every folder below it that holds the record of a run."""
    return sorted({f.parent for name in FILES for f in run.rglob(name)}, key=lambda f: (len(f.parts), str(f)))


def _comparison(run: Path, folders: Sequence[Path]) -> str:
    content = read_json(run / "table.json", {})
    tables = [table for table in (content, *content.get("tables", [])) if table.get("rows")]
    if tables:
        parts = [
            (f"<h3>{escape(table['title'])}</h3>" if table.get("title") else "")
            + _table(list(table["rows"][0]), [list(row.values()) for row in table["rows"]])
            for table in tables
        ]
        return f"<h2>Comparison</h2>{''.join(parts)}<p>{escape(content.get('note') or '')}</p>"
    runs = {_name(run, f): read_metrics(f) for f in folders if (f / "metrics.json").is_file() and f != run}
    if len(runs) < 2:
        return ""
    (table,) = compare_runs(runs)
    return f"<h2>Comparison</h2>{_table(table.head, table.rows)}"


def _section(run: Path, folder: Path) -> str:
    parts = [f"<h2>{escape(_name(run, folder))}</h2>"] if folder != run else []
    metrics = read_json(folder / "metrics.json", {})
    if metrics and not (run == folder and (run / "table.json").is_file()):  # a demo repeats its steps' numbers there
        parts += ["<h3>Metrics</h3>", _table(["metric", "value"], [[k, v] for k, v in metrics.items()])]
    curves = _curves(read_json(folder / "history.json", {}))
    parts += ["<h3>Curves</h3>", curves] if curves else []
    facts = _facts(read_json(folder / "run.json", {}))
    parts += ["<h3>Run</h3>", _table(["", ""], facts)] if facts else []
    for file in sorted(folder.glob("config*.yaml")):
        text = escape(without_folders(file.read_text(encoding="utf-8")))
        parts.append(f"<details><summary>Configuration: {escape(file.stem)}</summary><pre>{text}</pre></details>")
    return "\n".join(parts)


def _name(run: Path, folder: Path) -> str:
    return folder.relative_to(run).as_posix() if folder != run else run.resolve().name


def _facts(record: dict[str, Any]) -> list[list[Any]]:
    names = {"seed": "seed", "started": "started", "finished": "finished", "seconds": "seconds"}
    names |= {"peak_memory_mb": "peak memory (MB)", "peak_gpu_memory_mb": "peak GPU memory (MB)"}
    facts = [[text, record[name]] for name, text in names.items() if record.get(name) is not None]
    versions = record.get("versions") or {}
    return facts + [[f"version of {name}", version] for name, version in versions.items()]


def _curves(history: dict[str, Any]) -> str:
    from monai_labelfx.visualize import svg_curves

    groups: dict[str, dict[str, Any]] = {"Loss": {}, "Metrics": {}, "Learning rate": {}}
    for name, points in history.items():
        kind = "Loss" if "loss" in name.lower() else "Learning rate" if name in ("lr", "learning_rate") else "Metrics"
        groups[kind][name] = points
    return "".join(svg_curves(series, title) for title, series in groups.items() if series)


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    cells = [
        "".join(f'<td class="{"n" if _is_number(v) else "t"}">{escape(format_cell(v))}</td>' for v in row)
        for row in rows
    ]
    top = "".join(f"<th>{escape(name)}</th>" for name in head) if any(head) else ""
    return f"<table>{f'<tr>{top}</tr>' if top else ''}{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _is_number(value: Any) -> bool:
    return value is None or isinstance(value, int | float)


def _pictures(run: Path, files: Sequence[Path]) -> str:
    if not files:
        return ""
    # a demo copies its first picture to the top: shown once, first, under the name of the run that drew it
    unique = {file.read_bytes(): file for file in files}
    figures = []
    for content, file in list(unique.items())[:MOST_PICTURES]:
        caption = " / ".join([*file.relative_to(run).parts[:-1], file.stem])
        data = base64.b64encode(_shrunk(file, content)).decode()
        figures.append(
            f'<figure><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'
            f"<figcaption>{escape(caption)}</figcaption></figure>"
        )
    more = len(unique) - len(figures)
    note = f"<p>{more} more pictures lie in the run folder.</p>" if more else ""
    return f"<h2>Pictures</h2>{''.join(figures)}{note}"


def _shrunk(file: Path, content: bytes) -> bytes:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(content)) as image:
            if max(image.size) <= WIDEST:
                return content
            image.thumbnail((WIDEST, WIDEST))
            buffer = io.BytesIO()
            image.save(buffer, format="PNG", optimize=True)
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"{file} is not a readable PNG: {error}") from error
    return buffer.getvalue()


def without_folders(text: str) -> str:
    """Shorten absolute paths to ``.../<last part>``.

    Example:
        >>> without_folders("dataset_dir: /data/Mr Smith/knee")
        'dataset_dir: .../knee'
    """
    return re.sub(r"(?<![\w.@/])(?:/|[A-Za-z]:[\\/])(?=\S)(?:[^\n'\"/\\]+[\\/])+([^\n'\"/\\]+)", r".../\1", text)
