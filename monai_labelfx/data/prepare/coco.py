# SPDX-License-Identifier: Apache-2.0
"""COCO JSON: any data set of pictures with boxes, or masks, in COCO's layout."""

from __future__ import annotations

import os
import re
from fnmatch import fnmatch
from pathlib import Path

from monai_labelfx.data.coco_json import CocoItems, load_coco
from monai_labelfx.data.prepare._films import Film, Pictures, thinned, write_films
from monai_labelfx.data.prepare._splits import check_destination

__all__ = ["prepare"]

_NIH = r"(\d{8})_\d{3}\.\w+"  # ChestX-ray14 and all that is made of it: patient, number of the film


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    annotations: str | None = None,
    subject: str = _NIH,
    masks: bool = False,
    validation: float = 0.1,
    test: float = 0.1,
    empty: float | None = None,
    copy: bool = True,
    allow_missing: bool = False,
    seed: int = 0,
) -> Path:
    """Turn a COCO data set of boxes, or masks, into a datalist, split by patient.

    Expected: a JSON file with "images", "annotations" and "categories", or a folder with one such file anywhere (with
    several, name one by ``annotations``, or those of the same categories by a pattern, such as
    ``annotations="instances_*.json"``). Pictures may be anywhere below the folder: each is the one whose path ends with
    its ``file_name``.

    Written: ``images/`` and ``datalist.json``, whose items have ``image``, ``box`` (lists [x0, y0, x1, y1] in pixels),
    ``box_label`` (0 to C - 1, in the order of the category ids, named under "class_names") and ``subject``. Pictures
    without annotation have empty lists. Odd boxes are dropped as by :py:func:`load_coco`.

    With ``masks`` also ``labels/``, a PNG of each picture in which object k of ``box_label`` has the value k (8 bits,
    or 16 for more than 255 objects), which the item names under ``label``; ``box`` is then the tight box of each mask.
    Objects that overlap cannot share a PNG: ``label`` is a list of several then, the channels of one label, and the
    objects are numbered channel after channel.

    Films of one patient stay together: the patient is the field "subject", "patient" or "patient_id" of an image, else
    what the pattern ``subject`` finds in its file name, else the picture itself.

    Args:
        source: the JSON file, or the folder.
        destination: new or empty folder to write; it appears complete or not at all.
        annotations: name or pattern of the JSON files, relative to ``source`` or just their names.
        subject: regular expression with one group, searched in the file name. The default knows the names of NIH's
            films, ``00000150_002.png``: patient and number.
        masks: write label maps of the objects, from polygons or run lengths.
        validation: share of patients for validation.
        test: share of patients for the test.
        empty: at most this many pictures without boxes for each with boxes, drawn by ``seed``. Default ``None``, all.
        copy: copy the pictures; with ``False`` the datalist names them where they are.
        allow_missing: leave out pictures that are not there, and count them, instead of raising.
        seed: seed of the draws.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: none or several data sets, an unusable one, a missing picture or one of another size than stated,
            more than 65535 objects with masks in a picture, or shares out of range: one sentence naming the file or
            argument.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    place, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not place.exists():
        raise FileNotFoundError(f"source {str(place)!r} does not exist")
    if re.compile(subject).groups != 1:
        raise ValueError(f"subject must be a regular expression with one group, the patient, got {subject!r}")
    folder = place if place.is_dir() else place.parent
    files = [place] if place.is_file() else _files(place, annotations)
    pictures = Pictures(folder, allow_missing=allow_missing)
    films: list[Film] = []
    names: list[str] = []
    for file in files:
        found = load_coco(file, image_root="", masks=masks)
        if names and names != found.class_names:
            raise ValueError(f"{str(file)!r} has other categories than {str(files[0])!r}: prepare one of them")
        names = found.class_names
        films += _films(found, pictures, subject)
    return write_films(
        target,
        thinned(films, empty, seed),
        names,
        validation=validation,
        test=test,
        seed=seed,
        copy=copy,
        notes={"name": f"COCO, {', '.join(file.name for file in files)}", "missing_pictures": pictures.missing},
    )


def _files(folder: Path, annotations: str | None) -> list[Path]:
    """The JSON files to read."""
    found = sorted(path for path in folder.rglob("*.json") if not path.name.startswith("."))
    if annotations is None:
        found = [path for path in found if _looks_like_coco(path)]
    else:
        places = {path: path.relative_to(folder).as_posix() for path in found}
        found = [path for path in found if fnmatch(places[path], annotations) or fnmatch(path.name, annotations)]
    if not found:
        wanted = "with images, annotations and categories" if annotations is None else f"called {annotations!r}"
        raise ValueError(f"source {str(folder)!r} holds no JSON file {wanted}")
    if annotations is None and len(found) > 1:
        shown = ", ".join(path.relative_to(folder).as_posix() for path in found[:5])
        raise ValueError(f"source {str(folder)!r} holds several data sets, name one by annotations: {shown}")
    return found


def _looks_like_coco(path: Path) -> bool:
    content = path.read_bytes()
    return all(key in content for key in (b'"images"', b'"annotations"', b'"categories"'))


def _films(found: CocoItems, pictures: Pictures, subject: str) -> list[Film]:
    films = []
    for item, shape in zip(found.items, found.shapes, strict=True):
        path = pictures.find(item["image"])
        if path is not None:
            match = re.search(subject, item["image"])
            patient = item.get("subject") or (match.group(1) if match and match.group(1) else item["image"])
            films.append(Film(path, patient, item["box"], item["box_label"], shape, masks=item.get("segmentation")))
    return films
