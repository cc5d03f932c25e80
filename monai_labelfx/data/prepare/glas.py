# SPDX-License-Identifier: Apache-2.0
"""GlaS, glands in H&E stain (Warwick-QU): pictures ``train_1.bmp``, ``train_1_anno.bmp`` and ``Grade.csv``."""

from __future__ import annotations

import csv
import os
import re
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_labelfx._atomic import replacing
from monai_labelfx.data._balanced_split import balanced_split
from monai_labelfx.data._reading import ImageFileError, reading
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._splits import check_destination
from monai_labelfx.ops.patch_label_statistics import patch_label_statistics
from monai_labelfx.transforms.grid_patch_labels import GridPatchLabels

__all__ = ["prepare"]

_NAME = re.compile(r"(?P<name>(train|test(?P<part>[AB]))_\d+)(?P<mask>_anno)?", re.IGNORECASE)
_PICTURES = {".bmp", ".png", ".jpg", ".jpeg", ".tif", ".tiff"}
_LOSSLESS = {".bmp", ".png"}
_MICROMETRES = 0.62  # per pixel: objective 20 of the scanner
_KEYS = ("image", "label", "instances")
_PATCHES = (112, 64, 32)  # sizes whose labels are told; 112 is that of Li et al. 2022


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    validation: float = 0.2,
    copy: bool = False,
    allow_missing: bool = False,
    seed: int = 0,
) -> Path:
    """Turn GlaS (85 training pictures, 60 of test part A, 20 of part B, of 16 patients) into a datalist.

    Expected anywhere below ``source``: ``train_<n>.bmp``, ``testA_<n>.bmp`` and ``testB_<n>.bmp``, to each the numbers
    of its glands, ``<name>_anno.bmp``, and ``Grade.csv`` with the columns "name", "patient ID" and "grade (GlaS)".

    Written: ``instances/<name>.png`` (0 background, 1..N the glands), ``labels/<name>.png`` (0 and 1) and
    ``datalist.json``, whose items have ``image``, ``label``, ``instances``, ``patient``, ``grade`` ("benign" or
    "malignant"), ``differentiation`` (the finer grade, where the table has it), ``part`` ("train", "A" or "B") and
    ``mpp`` (0.62 um per pixel). The pictures stay where they are.

    The datalist notes under "patch_labels" what labels of patches of 112, 64 and 32 pixels (5 % rule, half a patch of
    stride) of the training masks would tell: the share of patches with both labels, and the entropy of each label in
    bits. Large patches hold everything and teach little.

    The split "test" has parts A and B. The others are split by patient into "training" and "validation", with about
    equal shares of both grades. The authors' test shares most of its patients with training: this is told in a warning
    and in the datalist.

    Args:
        source: the folder with the unpacked data.
        destination: new or empty folder to write; it appears complete or not at all.
        validation: share of the training pictures for validation, about, since patients stay together; 0 for none.
        copy: copy the pictures to ``images`` too, so that the folder can be moved.
        allow_missing: leave out pictures of ``Grade.csv`` that are not there, and count them, instead of raising.
        seed: seed of the split.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no ``Grade.csv``, one without the columns, or a picture that it does not name; a picture without
            annotation, of another size than it, of another name, or twice; a share out of range: one sentence naming
            the file or argument.

    Notes:
        GlaS is for research only, and copies must not be passed on: Sirinukunwattana et al., Medical Image Analysis 35,
        2017.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    table = _only_table(folder)
    rows = dict(_rows(table))
    images, masks = _find(folder)
    for name, path in images.items():
        if name not in rows:
            raise ValueError(f"picture {str(path)!r} is not in {str(table)!r}, expected its patient and grade there")
        if name not in masks:
            raise ValueError(f"picture {str(path)!r} has no annotation, expected {path.stem}_anno{path.suffix}")
    missing = [name for name in rows if name not in images]
    if missing and not allow_missing:
        raise ValueError(
            f"picture {missing[0]!r} of {str(table)!r} is not below {str(folder)!r} ({len(missing)} in all); with "
            "allow_missing=True pictures that are not there are left out and counted"
        )
    with replacing(target) as temporary:
        temporary.mkdir(parents=True)
        items = [
            _write(temporary, name, images[name], masks[name], copy) | rows[name] for name in rows if name in images
        ]
        drawn = [item for item in items if item["part"] == "train"]
        if not drawn:
            raise ValueError(f"source {str(folder)!r} holds no picture train_<n>.bmp")
        splits = balanced_split(drawn, {"validation": validation}, group="patient", kind="grade", seed=seed)
        splits["test"] = [item for item in items if item["part"] != "train"]
        shared = _shared(drawn, splits["test"])
        notes: dict[str, Any] = {
            "name": "GlaS",
            "seed": seed,
            "missing_pictures": len(missing),
            "patients_in_training_and_test": " ".join(shared),
            "patch_labels": _patch_labels(temporary, splits["training"]),
        }
        save_datalist(
            temporary / "datalist.json",
            {name: part for name, part in splits.items() if part},
            notes=notes,
            path_keys=_KEYS,
        )
    if shared:
        warnings.warn(
            f"{len(shared)} patients ({', '.join(shared)}) have pictures in the authors' training and test: the test "
            "does not show how well it works for other patients",
            stacklevel=2,
        )
    return target / "datalist.json"


def _only_table(folder: Path) -> Path:
    found = [path for path in sorted(folder.rglob("*.csv")) if path.name.lower() == "grade.csv"]
    if len(found) != 1:
        raise ValueError(f"source {str(folder)!r} holds {len(found)} files Grade.csv, expected one")
    return found[0]


def _rows(path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """Name of a picture -> patient and grades. Titles are compared without blanks and signs, as they are irregular."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            text = file.read()
        delimiter = max(",;\t", key=text.splitlines()[0].count) if text.strip() else ","
        cells = [[cell.strip() for cell in row] for row in csv.reader(text.splitlines(), delimiter=delimiter)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ImageFileError(f"{str(path)!r} is not a CSV file ({error})") from error
    title = [re.sub("[^a-z]", "", cell.lower()) for cell in cells[0]] if cells else []
    wanted = {"name": "name", "patient": "patient(id)?", "grade": "grade(glas)?", "differentiation": "gradesiri.*"}
    columns = {key: [i for i, cell in enumerate(title) if re.fullmatch(form, cell)] for key, form in wanted.items()}
    for key in ("name", "patient", "grade"):
        if len(columns[key]) != 1:
            raise ImageFileError(
                f"{str(path)!r} has the columns {cells[0] if cells else []}, expected 'name', 'patient ID' and "
                "'grade (GlaS)', each once"
            )
    seen = set()
    for number, row in enumerate(cells[1:], start=2):
        if not any(row):
            continue
        values = {key: row[places[0]] for key, places in columns.items() if places and len(row) > places[0]}
        match = _NAME.fullmatch(Path(values.get("name", "")).stem)
        if not match or match["mask"] or not values.get("patient") or not values.get("grade"):
            raise ImageFileError(f"{str(path)!r}, line {number}: expected name, patient and grade, found {row}")
        name = match["name"].lower()
        if name in seen:
            raise ImageFileError(f"{str(path)!r}, line {number}: {values['name']} is there twice")
        seen.add(name)
        part = (match["part"] or "train").upper().replace("TRAIN", "train")
        yield name, {key: value for key, value in values.items() if key != "name" and value} | {"part": part}


def _find(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Pictures and annotations by name."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() not in _PICTURES or path.name.startswith("."):
            continue
        match = _NAME.fullmatch(path.stem)
        if not match or path.suffix.lower() not in _LOSSLESS:
            raise ValueError(
                f"unknown picture {str(path)!r}, expected train_<n>.bmp, testA_<n>.bmp, testB_<n>.bmp and their "
                "<name>_anno.bmp"
            )
        place = masks if match["mask"] else images
        name = match["name"].lower()
        if name in place:
            raise ValueError(f"picture {path.stem!r} is at {str(place[name])!r} and at {str(path)!r}, expected one")
        place[name] = path
    for name, path in masks.items():
        if name not in images:
            raise ValueError(f"annotation {str(path)!r} has no picture, expected {name}{path.suffix}")
    return images, masks


def _write(folder: Path, name: str, image: Path, mask: Path, copy: bool) -> dict[str, Any]:
    """Write the masks of one picture; the keys of its item."""
    from PIL import Image

    with reading(str(image), "picture"), Image.open(image) as picture:
        size = picture.size
    with reading(str(mask), "picture"), Image.open(mask) as picture:
        glands = np.asarray(picture)
    if glands.ndim == 3 and (glands[..., :3] == glands[..., :1]).all():
        glands = glands[..., 0]
    if glands.ndim != 2:
        raise ValueError(f"annotation {str(mask)!r} is in colour, expected the number of its gland at each pixel")
    if glands.shape[::-1] != size:
        raise ValueError(f"annotation {str(mask)!r} has {glands.shape[::-1]} pixels, but its picture has {size}")
    item: dict[str, Any] = {"image": str(image.absolute()), "mpp": _MICROMETRES}
    numbers = glands.astype(np.uint8 if glands.max(initial=0) < 256 else np.uint16)
    for key, array in {"labels": (glands > 0).astype(np.uint8), "instances": numbers}.items():
        path = folder / key / f"{image.stem}.png"
        path.parent.mkdir(exist_ok=True)
        Image.fromarray(array).save(path)
        item[key.removesuffix("s") if key == "labels" else key] = path.relative_to(folder).as_posix()
    if copy:
        (folder / "images").mkdir(exist_ok=True)
        shutil.copyfile(image, folder / "images" / image.name)
        item["image"] = f"images/{image.name}"
    return item


def _patch_labels(folder: Path, items: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """What patch labels of each size would tell."""
    from PIL import Image

    found: dict[int, list[torch.Tensor]] = {size: [] for size in _PATCHES}
    for item in items:
        with Image.open(folder / item["label"]) as picture:
            mask = torch.from_numpy(np.array(picture))[None]
        for size, labels in found.items():
            labels.append(GridPatchLabels(size)(mask)["patch_labels"])
    told = {}
    for size, labels in found.items():
        all_of = patch_label_statistics(torch.cat(labels))
        told[f"{size}"] = {
            "patches": all_of["patches"],
            "with_both_labels": round(all_of["several_classes"], 4),
            "entropy_in_bits": [round(bits, 4) for bits in all_of["entropy"]],
        }
    return told


def _shared(training: list[dict[str, Any]], test: list[dict[str, Any]]) -> list[str]:
    """Patients of both, in the order of their numbers."""
    both = {item["patient"] for item in training} & {item["patient"] for item in test}
    return sorted(both, key=lambda patient: (len(patient), patient))
