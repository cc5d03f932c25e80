# SPDX-License-Identifier: Apache-2.0
"""ChestX-Det: ``ChestX_Det_train.json`` and ``ChestX_Det_test.json`` with 13 findings in boxes and outlines."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.polygon_masks import polygons_to_mask
from monai_labelfx.data.prepare._films import Film, Pictures, picture_shape, thinned, write_films
from monai_labelfx.data.prepare._splits import check_destination
from monai_labelfx.ops.run_length import encode_run_lengths

__all__ = ["prepare"]

_FILES = {"train": "ChestX_Det*train.json", "test": "ChestX_Det*test.json"}


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    official_test: bool = False,
    masks: bool = False,
    empty: float | None = None,
    copy: bool = True,
    allow_missing: bool = False,
    seed: int = 0,
) -> Path:
    """Turn ChestX-Det (3,578 films of NIH, 13 findings) into a datalist.

    Expected anywhere below ``source``: ``ChestX_Det_train.json`` (3,025 films), ``ChestX_Det_test.json`` (553) or one
    of them, each a list of objects ``file_name``, ``syms`` (findings), ``boxes`` ([x0, y0, x1, y1] in pixels) and
    ``polygons``, and the films of ``train_data.zip`` and ``test_data.zip``, unpacked. A film without finding has empty
    lists.

    Written: ``images/``, the same bytes, and ``datalist.json``, whose items have ``image``, ``box`` (lists [x0, y0, x1,
    y1] in pixels, as in the source), ``box_label`` (in the alphabetical order of the findings, named under
    "class_names") and ``subject``, the name of the film. With ``masks`` also label maps of the findings, from the
    polygons, as in :py:mod:`monai_labelfx.data.prepare.coco`: findings overlap, so a film may have several.

    The file names do not tell the patient, so the split is by film. With ``official_test=True`` the films of the test
    file are the test, and validation is drawn from the others.

    Args:
        source: the folder.
        destination: new or empty folder to write; it appears complete or not at all.
        validation: share of films for validation (of the training file with ``official_test``).
        test: share of films for the test; not used with ``official_test``.
        official_test: keep the test of the authors.
        masks: write label maps of the findings, and make the boxes from these.
        empty: at most this many films without boxes for each with boxes, drawn by ``seed``. Default ``None``, all.
        copy: copy the films; with ``False`` the datalist names them where they are.
        allow_missing: leave out films that are not there, and count them, instead of raising.
        seed: seed of the draws.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no list, an entry of another form, another number of findings than boxes or, with ``masks``, than
            polygons, a polygon without three points, a film twice, a missing film, or shares out of range: one sentence
            naming the file or argument.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    entries = [(part, entry) for part in _FILES for entry in _entries(folder, part)]
    if not entries or (official_test and {part for part, _ in entries} != set(_FILES)):
        wanted = "ChestX_Det_train.json and ChestX_Det_test.json"
        raise ValueError(
            f"source {str(folder)!r} does not hold the lists {wanted}{'' if official_test else ' (or one)'}"
        )
    names = sorted({finding for _, entry in entries for finding in entry["syms"]})
    pictures = Pictures(folder, allow_missing=allow_missing)
    films = []
    for part, entry in entries:
        path = pictures.find(entry["file_name"], inside=part)
        if path is not None:
            labels = [names.index(finding) for finding in entry["syms"]]
            split = "test" if official_test and part == "test" else None
            lengths = _masks(entry, path) if masks else None
            films.append(Film(path, Path(entry["file_name"]).stem, entry["boxes"], labels, None, split, lengths))
    return write_films(
        target,
        thinned(films, empty, seed),
        names,
        validation=validation,
        test=0.0 if official_test else test,
        seed=seed,
        copy=copy,
        notes={"name": "ChestX-Det", "official_test": official_test, "missing_pictures": pictures.missing},
    )


def _entries(folder: Path, part: str) -> list[dict[str, Any]]:
    """The entries of the list of one part; none if the list is missing."""
    found = sorted(folder.rglob(_FILES[part]))
    if not found:
        return []
    if len(found) > 1:
        raise ValueError(f"list {_FILES[part]} is at {str(found[0])!r} and at {str(found[1])!r}, expected one")
    try:
        document = json.loads(found[0].read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ImageFileError(f"{str(found[0])!r} is not a JSON file ({error})") from error
    if not isinstance(document, list):
        raise ImageFileError(f"{str(found[0])!r} must be a list of films, found {type(document).__name__}")
    for number, entry in enumerate(document):
        if not _is_entry(entry):
            raise ImageFileError(
                f"{str(found[0])!r}, entry {number}: expected file_name, and in syms a finding for each of boxes "
                f"[x0, y0, x1, y1], found {str(entry)[:100]}"
            )
    return document


def _masks(entry: dict[str, Any], path: Path) -> list[dict[str, Any]]:
    """Run lengths of the polygons of a film, one for each finding."""
    polygons, shape = entry.get("polygons"), picture_shape(path)
    if not isinstance(polygons, list) or len(polygons) != len(entry["syms"]):
        raise ValueError(
            f"film {entry['file_name']!r} must have one of polygons for each of {len(entry['syms'])} findings, found "
            f"{str(polygons)[:100]}"
        )
    found = []
    for number, polygon in enumerate(polygons):
        pairs = isinstance(polygon, list) and all(isinstance(point, list) and len(point) == 2 for point in polygon)
        outline = [value for point in polygon for value in point] if pairs else polygon
        try:
            found += encode_run_lengths(polygons_to_mask([outline], shape)[None])
        except ValueError as error:
            raise ValueError(f"film {entry['file_name']!r}, finding {number}: {error}") from error
    return found


def _is_entry(entry: Any) -> bool:
    if not isinstance(entry, dict) or not isinstance(entry.get("file_name"), str):
        return False
    findings, boxes = entry.get("syms"), entry.get("boxes")
    if not isinstance(findings, list) or not isinstance(boxes, list) or len(findings) != len(boxes):
        return False
    numbers = all(
        isinstance(box, list) and len(box) == 4 and all(type(value) in (int, float) for value in box) for box in boxes
    )
    return numbers and all(isinstance(finding, str) for finding in findings)
