# SPDX-License-Identifier: Apache-2.0
"""NIH ChestX-ray14: ``BBox_List_2017.csv`` with the films that radiologists drew boxes on."""

from __future__ import annotations

import csv
import os
from pathlib import Path

from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.prepare._films import Film, Pictures, thinned, write_films
from monai_labelfx.data.prepare._splits import check_destination

__all__ = ["prepare"]

_CLASSES = (
    "Atelectasis",
    "Cardiomegaly",
    "Effusion",
    "Infiltrate",
    "Mass",
    "Nodule",
    "Pneumonia",
    "Pneumothorax",
)
_BOXES, _ENTRIES = "BBox_List_2017*.csv", "Data_Entry_2017*.csv"
_NONE = "No Finding"


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    empty: float | None = 1.0,
    copy: bool = True,
    allow_missing: bool = False,
    seed: int = 0,
) -> Path:
    """Turn NIH ChestX-ray14 (ChestX-ray8) into a datalist of 8 findings with boxes, split by patient.

    Expected anywhere below ``source``: ``BBox_List_2017.csv`` (880 films, 984 boxes, in pixels of the 1024 x 1024
    films), the films ``00013118_008.png`` (in ``images`` or ``images_001/images`` and so on; a part of them is enough,
    see ``allow_missing``) and, for films without boxes, ``Data_Entry_2017.csv`` or ``Data_Entry_2017_v2020.csv``.

    Most of the 112,120 films have a finding and no box: nobody has looked for its place, so they are neither. Films
    without boxes are those labelled "No Finding" that are on the disk, of which ``empty`` for each film with boxes are
    drawn. Boxes mark one finding each and are not exhaustive, so some detections counted as wrong are right.

    Written: ``images/``, the same bytes, and ``datalist.json``, whose items have ``image``, ``box`` (lists [x0, y0, x1,
    y1] in pixels), ``box_label`` (0 to 7, named under "class_names") and ``subject``, the patient: the first part of
    the file name.

    Args:
        source: the folder.
        destination: new or empty folder to write; it appears complete or not at all.
        validation: share of patients for validation.
        test: share of patients for the test.
        empty: at most this many films without finding for each with boxes, drawn by ``seed``. Default 1; 0 for none,
            ``None`` for all that are there.
        copy: copy the films; with ``False`` the datalist names them where they are.
        allow_missing: leave out films with boxes that are not there, and count them, instead of raising.
        seed: seed of the draws.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no or several lists of boxes, a row that is none, an unknown finding, a missing film, or shares out
            of range: one sentence naming the file or argument.

    Notes:
        The list calls the infiltrate "Infiltrate", the table of the films "Infiltration"; the former is kept.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    boxes = _read_boxes(_only(folder, _BOXES))
    pictures = Pictures(folder, allow_missing=allow_missing)
    films = []
    for name, rows in boxes.items():
        path = pictures.find(name)
        if path is not None:
            films.append(Film(path, _patient(name), [box for box, _ in rows], [label for _, label in rows]))
    entries = sorted(folder.rglob(_ENTRIES))
    for name in _without_finding(entries[0]) if entries and empty != 0 else []:
        if name in pictures.by_name and name not in boxes:
            path = pictures.find(name)
            films += [] if path is None else [Film(path, _patient(name))]
    return write_films(
        target,
        thinned(films, empty, seed),
        _CLASSES,
        validation=validation,
        test=test,
        seed=seed,
        copy=copy,
        notes={"name": "NIH ChestX-ray14", "missing_pictures": pictures.missing},
    )


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.rglob(pattern))
    if len(found) != 1:
        raise ValueError(f"source {str(folder)!r} holds {len(found)} files {pattern}, expected one")
    return found[0]


def _read_boxes(path: Path) -> dict[str, list[tuple[list[float], int]]]:
    """Film -> boxes and classes. The title names the four numbers in one field, "Bbox [x,y,w,h]", so count fields."""
    result: dict[str, list[tuple[list[float], int]]] = {}
    for number, row in enumerate(_rows(path), start=1):
        if number == 1 or not any(row):
            continue
        try:
            name, finding, (x, y, width, height) = row[0], row[1], map(float, row[2:6])
        except (IndexError, ValueError) as error:
            raise ImageFileError(
                f"{str(path)!r}, line {number}: expected film, finding, x, y, width, height, found {row[:6]}"
            ) from error
        if finding not in _CLASSES:
            raise ImageFileError(f"{str(path)!r}, line {number}: unknown finding {finding!r}, expected {_CLASSES}")
        result.setdefault(name, []).append(([x, y, x + width, y + height], _CLASSES.index(finding)))
    return result


def _without_finding(path: Path) -> list[str]:
    rows = _rows(path)
    title = rows[0] if rows else []
    if not {"Image Index", "Finding Labels"} <= set(title):
        raise ImageFileError(f"{str(path)!r} has no columns 'Image Index' and 'Finding Labels', found {title[:5]}")
    name, finding = title.index("Image Index"), title.index("Finding Labels")
    return [row[name] for row in rows[1:] if len(row) > max(name, finding) and row[finding] == _NONE]


def _rows(path: Path) -> list[list[str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return [[field.strip() for field in row] for row in csv.reader(file)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImageFileError(f"{str(path)!r} is not a CSV file ({error})") from error


def _patient(name: str) -> str:
    return name.split("_")[0]
