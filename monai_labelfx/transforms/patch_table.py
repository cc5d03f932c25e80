# SPDX-License-Identifier: Apache-2.0
"""Tables of patch labels as CSV, for people with a spreadsheet: read with every cell checked, written whole."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch

from monai_labelfx._atomic import replacing

__all__ = ["read_patch_table", "write_patch_table"]

_STARTS, _SIZES = ("x", "y", "z"), ("width", "height", "depth")
_MOST = 2**31  # voxels along an axis, so that nothing overflows
_TICKS = {
    **dict.fromkeys(("1", "1.0", "yes", "true", "present"), 1),
    **dict.fromkeys(("0", "0.0", "no", "false", "absent"), 0),
    **dict.fromkeys(("", "?", "unknown", "-1"), -1),
}


def read_patch_table(
    path: str | os.PathLike, classes: int | Sequence[str], *, image: str | None = None
) -> dict[str, Any]:
    r"""Patches of an image and their labels from a CSV file that a person has filled in.

    =======================  ========================================================================================
    ``image``                file name of the image, or the end of its path; may be left out where the table serves
                             one image
    ``x``, ``y``[, ``z``]    first voxel along the axes of the tensor as MONAI loads it: for pictures x goes to the
                             right and y down, for NIfTI x, y, z are i, j, k
    ``width``, ``height``    size in voxels along x and y; ``depth`` along z
    one per class            its name, or ``class_0``, ``class_1``...: ``1``, ``yes``, ``true`` or ``present``; ``0``,
                             ``no``, ``false`` or ``absent``; empty, ``?`` or ``unknown``
    ``<class>_cluster``      sub-category of the class in this patch, a whole number from 0, or empty; may be left out
    =======================  ========================================================================================

    Further columns are not read. The header decides whether commas or semicolons part the cells; capitals and blanks
    around words do not matter; empty lines are passed over.

    Args:
        path: the file, UTF-8 with or without byte order mark.
        classes: the names of all classes with the background, or their number.
        image: path of the image whose rows are wanted. Default ``None``: all rows, which must belong to one image.

    Returns:
        ``patches`` (N, 2 \* D) int64; ``patch_labels`` (N, K) int8: 1 present, 0 absent, -1 unknown; ``sub_labels``
        (N, K) int64, -1 where there is none, if the table has such a column; and ``lines``, the N line numbers.

    Raises:
        FileNotFoundError: no such file.
        ValueError: one sentence with the file, the line and the column, for a column that is missing or there twice,
            a cell that is not understood, no row for this image, and no known label.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     table = Path(folder, "ticks.csv")
        ...     _ = table.write_text("x;y;width;height;stroma;gland\n0;0;64;64;yes;?\n32;0;64;64;no;yes\n")
        ...     found = read_patch_table(table, ["stroma", "gland"])
        >>> found["patches"].tolist(), found["patch_labels"].tolist()
        ([[0, 0, 64, 64], [32, 0, 64, 64]], [[1, -1], [0, 1]])
    """
    table = _Table(path)
    names = class_names(classes)
    places, ticks, clusters = table.columns(names)
    rows = table.rows_of(image)
    numbers = [[row.whole(name, 0 if name in _STARTS else 1) for name in places] for row in rows]
    labels = [[row.tick(name) for name in ticks] for row in rows]
    if not any(label >= 0 for row in labels for label in row):
        whose = f" for image {image!r}" if image and table.has("image") else ""
        raise ValueError(f"{table.path!r} has no known label{whose}: nothing but empty cells or ? under {ticks}.")
    found: dict[str, Any] = {
        "patches": torch.tensor(numbers, dtype=torch.int64),
        "patch_labels": torch.tensor(labels, dtype=torch.int8),
        "lines": [row.line for row in rows],
    }
    if any(clusters):
        subs = [[row.whole(name, -1, empty=-1) if name else -1 for name in clusters] for row in rows]
        found["sub_labels"] = torch.tensor(subs, dtype=torch.int64)
    return found


def write_patch_table(
    path: str | os.PathLike, items: Iterable[Mapping[str, Any]], classes: int | Sequence[str]
) -> Path:
    r"""Write patches and their labels as a CSV file that :py:func:`read_patch_table` reads, and people too.

    Args:
        path: the file; its folder is made, and it appears under its name when it is complete.
        items: one mapping per image: ``image``, what to call it in its column (the column is left out when no item has
            it), ``patches`` (N, 2 \* D), ``patch_labels`` (N, K) and, for cluster columns, ``sub_labels`` (N, K).
        classes: names of the classes, or their number, as for :py:func:`read_patch_table`.

    Returns:
        The path.

    Raises:
        ValueError: when the shapes of an item do not fit the classes or the other items, or only some have names.

    Example:
        >>> import tempfile
        >>> item = {"image": "a.png", "patches": [[0, 0, 8, 8]], "patch_labels": [[1, -1]]}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     print(write_patch_table(f"{folder}/ticks.csv", [item], 2).read_text().strip())
        image,x,y,width,height,class_0,class_1
        a.png,0,0,8,8,1,
    """
    names = class_names(classes)
    content = [_written(item, len(names)) for item in items]
    kinds = {(part["image"] is not None, part["patches"].shape[1], "sub_labels" in part) for part in content}
    if len(kinds) != 1:
        raise ValueError("items of a patch table must have equally many axes, and all an image and sub_labels or none.")
    named, numbers, clustered = kinds.pop()
    header = [*["image"] * named, *_STARTS[: numbers // 2], *_SIZES[: numbers // 2], *names]
    header += [f"{name}_cluster" for name in names] * clustered
    target = Path(path)
    with replacing(target) as temporary, temporary.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(header)
        for part in content:
            cells = np.concatenate([part[key] for key in ("patches", "patch_labels", "sub_labels") if key in part], 1)
            for row in cells.tolist():
                known = ["" if value < 0 else value for value in row[numbers:]]
                writer.writerow([*[part["image"]] * named, *row[:numbers], *known])
    return target


def class_names(classes: int | Sequence[str]) -> list[str]:
    """The columns of the classes: their names, or class_0, class_1... for a number of them."""
    names = [f"class_{k}" for k in range(classes)] if isinstance(classes, int) else [str(one) for one in classes]
    if isinstance(classes, str) or len(names) < 2 or len({_word(name) for name in names}) < len(names):
        raise ValueError(f"classes must be a number of 2 or above, or as many different names, got {classes!r}.")
    taken = [name for name in names if _word(name) in ("image", *_STARTS, *_SIZES) or not _word(name)]
    if taken:
        raise ValueError(f"a class of a patch table cannot be called {taken[0]!r}, which is another column.")
    return names


class _Table:
    """The rows of a CSV file below its header."""

    def __init__(self, path: str | os.PathLike) -> None:
        self.path = os.fspath(path)
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no table of patch labels {self.path!r}.")
        try:
            with Path(path).open(newline="", encoding="utf-8-sig") as stream:
                first = stream.readline()
                stream.seek(0)
                reader = csv.reader(stream, delimiter=";" if first.count(";") > first.count(",") else ",", strict=True)
                found = [(reader.line_num, [cell.strip() for cell in cells]) for cells in reader]
        except (UnicodeDecodeError, csv.Error) as error:
            raise ValueError(f"{self.path!r} cannot be read as a CSV table in UTF-8: {error}.") from error
        header = [_word(cell) for cell in found[0][1]] if found else []
        if not any(header):
            raise ValueError(f"{self.path!r} has no header in its first line: expected x,y,width,height and classes.")
        twice = next((name for name in header if name and header.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{self.path!r} has the column {twice!r} twice.")
        self.header = header
        self.rows = [_Row(self, line, cells) for line, cells in found[1:] if any(cells)]

    def has(self, name: str) -> bool:
        return _word(name) in self.header

    def columns(self, names: list[str]) -> tuple[list[str], list[str], list[str]]:
        """Columns of starts and sizes, of the classes, and of their clusters, "" where there is none."""
        ndim = 3 if self.has("z") or self.has("depth") else 2
        places = [*_STARTS[:ndim], *_SIZES[:ndim]]
        ticks = [name if self.has(name) else f"class_{number}" for number, name in enumerate(names)]
        missing = [name for name in places if not self.has(name)]
        missing += [name for name, tick in zip(names, ticks, strict=True) if not self.has(tick)]
        if missing:
            raise ValueError(
                f"{self.path!r} has no column {missing[0]!r}, only {', '.join(filter(None, self.header))}."
            )
        clusters = [f"{tick}_cluster" if self.has(f"{tick}_cluster") else "" for tick in ticks]
        return places, ticks, clusters

    def rows_of(self, image: str | None) -> list[_Row]:
        """The rows of an image: all where the table has no column for it."""
        if not self.rows:
            raise ValueError(f"{self.path!r} has no row below its header.")
        if not self.has("image"):
            return self.rows
        names = list(dict.fromkeys(row.text("image") for row in self.rows))
        if image is None or names == [""]:
            if len(names) > 1:
                raise ValueError(
                    f"{self.path!r} has rows of {len(names)} images, and the image at hand has no file name to tell "
                    "which are its own."
                )
            return self.rows
        found = {name for name in names if _ends_with(image, name)}
        if not found:
            raise ValueError(
                f"{self.path!r} has no row for image {image!r}; it names {', '.join(map(repr, names[:3]))}"
                f"{', ...' if len(names) > 3 else ''}."
            )
        return [row for row in self.rows if row.text("image") in found]


class _Row:
    """The cells of one row."""

    def __init__(self, table: _Table, line: int, cells: list[str]) -> None:
        if len(cells) > len(table.header) and any(cells[len(table.header) :]):
            raise ValueError(
                f"{table.path!r}, line {line}: there are {len(cells)} cells, but the header has {len(table.header)}."
            )
        self.table, self.line = table, line
        self.cells = dict(zip(table.header, [*cells, *[""] * len(table.header)], strict=False))

    def text(self, name: str) -> str:
        return self.cells[_word(name)]

    def whole(self, name: str, least: int, *, empty: int | None = None) -> int:
        """The whole number in a cell; ``empty`` where it is empty and may be."""
        text = self.text(name)
        if empty is not None and text in ("", "?"):
            return empty
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not math.isfinite(value) or value != int(value) or not least <= value < _MOST:
            raise self.error(name, f"must be a whole number of {least} or more", text)
        return int(value)

    def tick(self, name: str) -> int:
        """1 present, 0 absent, -1 unknown."""
        text = self.text(name)
        if _word(text) not in _TICKS:
            raise self.error(name, "must be 1, yes, true or present; 0, no, false or absent; or empty", text)
        return _TICKS[_word(text)]

    def error(self, name: str, wanted: str, text: str) -> ValueError:
        return ValueError(f"{self.table.path!r}, line {self.line}, column {name!r}: {wanted}, got {text!r}.")


def _word(text: str) -> str:
    return text.strip().casefold()


def _ends_with(path: str, end: str) -> bool:
    """Whether a path ends with the parts of another one."""
    own, wanted = (PurePosixPath(one.replace("\\", "/")).parts for one in (path, end))
    return bool(wanted) and own[-len(wanted) :] == wanted


def _written(item: Mapping[str, Any], classes: int) -> dict[str, Any]:
    """The parts of an item as arrays, checked."""
    parts = {key: item[key] for key in ("patches", "patch_labels", "sub_labels") if item.get(key) is not None}
    arrays = {
        key: np.asarray(value.cpu() if isinstance(value, torch.Tensor) else value) for key, value in parts.items()
    }
    wanted = {"patches": (4, 6), "patch_labels": (classes,), "sub_labels": (classes,)}
    for key in ("patches", "patch_labels", *(["sub_labels"] if "sub_labels" in arrays else [])):
        shape = arrays[key].shape if key in arrays else ()
        if len(shape) != 2 or shape[1] not in wanted[key] or shape[0] != len(arrays["patches"]):
            raise ValueError(
                f"{key} of an item of a patch table must be (N, {wanted[key][0]}) with N patches, got shape {shape}."
            )
    return {**arrays, "image": item.get("image")}
