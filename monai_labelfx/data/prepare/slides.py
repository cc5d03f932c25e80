# SPDX-License-Identifier: Apache-2.0
"""Whole slides (pyramidal TIFF, SVS), with ticks or masks or neither, cut into tiles for training."""

from __future__ import annotations

import csv
import os
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx._atomic import replacing
from monai_labelfx.data._balanced_split import balanced_split
from monai_labelfx.data._slide_file import SlideFile, open_slide
from monai_labelfx.data._slide_grid import slide_grids
from monai_labelfx.data._slide_ticks import slides_with_ticks, tiles_with_ticks
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._splits import check_destination
from monai_labelfx.data.slide_tiles import SLIDE_SUFFIXES, find_slides, slide_tiles
from monai_labelfx.transforms.patch_table import write_patch_table

__all__ = ["prepare"]

_KEYS = ("image", "label", "patches")


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    ticks: str | os.PathLike | None = None,
    masks: str | os.PathLike | None = None,
    classes: int | Sequence[str] = 2,
    tile: int = 1024,
    overlap: int = 0,
    level: int | None = None,
    mpp: float | None = None,
    tissue: float = 0.05,
    patients: str | os.PathLike | None = None,
    patient_pattern: str | None = None,
    validation: float = 0.2,
    test: float = 0.0,
    seed: int = 0,
) -> Path:
    """Cut slides into tiles of PNG, without loss, and write a datalist that is split by patient or slide.

    Written: ``images/<slide>/<slide>_x<X>_y<Y>.png`` (X, Y in voxels of level 0), likewise ``labels`` and, for each
    slide, ``ticks/<slide>.csv`` in voxels of its tiles; and ``datalist.json``, whose items have ``image``, ``slide``
    (its path below ``source``), ``position`` (x, y in voxels of level 0), and, where known, ``patient``, ``mpp``,
    ``patches`` (the table of ticks) and ``label``.

    With ticks or masks, slides that have neither are left out and counted in a warning. With ticks, only tiles that
    hold some are written, and so are tiles around ticks that lie across borders: each tick is in one tile, whole.

    Args:
        source: a slide, or a folder with slides (.svs, .tif, .tiff; in its folders too).
        destination: new or empty folder to write; it appears complete or not at all.
        ticks: CSV with columns image, x, y, width, height (voxels of level 0) and one for each class, see
            :py:func:`monai_labelfx.transforms.read_patch_table`.
        masks: folder with a TIFF of class numbers for each slide, ``<slide>.tif`` or ``<slide>_<word>.tif``, of the
            slide's size or reduced.
        classes: names of the classes, background too, or their number: the columns of ``ticks``.
        tile: voxels of a tile along x and y; slides that are smaller are one tile.
        overlap: voxels that neighbours share.
        level: level of the slides to cut; default 0 where ``mpp`` is not given.
        mpp: um per voxel of the tiles, instead of ``level``.
        tissue: without ticks, tiles are written where more than this share of them is tissue.
        patients: CSV with the columns slide and patient.
        patient_pattern: regular expression of the patient in a slide's name; its first group, else all that it finds.
        validation: share of the tiles for validation, about, as patients, or slides, stay together; 0 for none.
        test: the same for a test.
        seed: seed of the split.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source``, ``ticks``, ``masks`` or ``patients`` does not exist, or holds no slide.
        FileExistsError: ``destination`` is not empty.
        ValueError: an unusable slide, slides of mixed magnifications (more than 10 %; with ``mpp`` they are brought to
            one), ticks outside their slide, of no slide, or larger than a tile, a mask of another shape, a slide
            without its patient, too few patients to split: one sentence each.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    target = Path(destination).absolute()
    check_destination(target)
    for name, path in {"source": source, "masks": masks, "patients": patients}.items():
        if path is not None and not Path(path).exists():
            raise FileNotFoundError(f"{name} {os.fspath(path)!r} does not exist")
    root = Path(source)
    found = find_slides(root.absolute())
    paths = [item["image"] for item in found]
    names = _names(paths, root.absolute() if root.is_dir() else root.absolute().parent)
    owners = _patients(names, patients, patient_pattern)
    ticked = [False] * len(paths) if ticks is None else slides_with_ticks(ticks, paths)
    masked = {} if masks is None else _masks(Path(masks), names)
    cut: dict[str, Any] = {"tile_size": tile, "overlap": overlap, "level": level, "mpp": mpp}
    grids = slide_grids(found, key="image", level=level, mpp=mpp)
    items: list[dict[str, Any]] = []
    without = []
    with replacing(target) as temporary:
        for path, name, grid, has_ticks in zip(paths, names, grids, ticked, strict=True):
            if (ticks is not None or masks is not None) and not has_ticks and name not in masked:
                without.append(name)
                continue
            tiles = [one["tile"] for one in slide_tiles(path, **cut, tissue=None if has_ticks else tissue)]
            own = [(one, None) for one in tiles]
            if has_ticks:
                own = tiles_with_ticks(open_slide(path), grid, tiles, ticks, classes)  # type: ignore[arg-type, assignment]
            shared = {"slide": name} | ({"patient": owners[name]} if name in owners else {})
            items += [item | shared for item in _write(temporary, path, name, own, masked.get(name), classes)]
        if not items:
            raise ValueError(f"none of {len(names)} slides has ticks or a mask, expected at least one")
        splits = _split(items, validation, test, seed)
        notes = {"name": "slides", "seed": seed, "tile": tile, "overlap": overlap, "slides_left_out": len(without)}
        save_datalist(temporary / "datalist.json", splits, notes=notes, path_keys=_KEYS)
    if without:
        warnings.warn(
            f"{len(without)} of {len(names)} slides, such as {without[0]!r}, have neither ticks nor a mask and were "
            "left out",
            stacklevel=2,
        )
    return target / "datalist.json"


def _names(paths: Sequence[str], root: Path) -> list[str]:
    """Path below the root without suffix, with it where two would be equal."""
    names = [Path(path).relative_to(root).with_suffix("").as_posix() for path in paths]
    return [
        name if names.count(name) == 1 else Path(path).relative_to(root).as_posix()
        for name, path in zip(names, paths, strict=True)
    ]


def _patients(names: Sequence[str], table: str | os.PathLike | None, pattern: str | None) -> dict[str, str]:
    """Slide -> patient."""
    if table is not None and pattern is not None:
        raise ValueError("patients and patient_pattern exclude each other: give one of them")
    if table is not None:
        rows = _patient_rows(Path(table))
        found = {name: {rows[key] for key in _keys(name) if key in rows} for name in names}
        wanted = f"expected one in {os.fspath(table)!r}"
    elif pattern is not None:
        try:
            matches = {name: re.search(pattern, Path(name).name) for name in names}
        except re.error as error:
            raise ValueError(f"patient_pattern {pattern!r} is no regular expression: {error}") from error
        found = {name: {match[min(1, match.re.groups)]} if match else set() for name, match in matches.items()}
        wanted = f"expected one match of patient_pattern {pattern!r}"
    else:
        return {}
    for name, there in found.items():
        if len(there) != 1 or not all(there):
            raise ValueError(f"slide {name!r} has {len(there)} patients, {wanted}")
    return {name: there.pop() for name, there in found.items()}


def _keys(name: str) -> list[str]:
    """What a table may call a slide: its path, with or without suffix, or its name alone."""
    return [end + suffix for end in dict.fromkeys((name, Path(name).name)) for suffix in ("", *SLIDE_SUFFIXES)]


def _patient_rows(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8-sig")
        first = text.splitlines()[0] if text.strip() else ""
        reader = csv.reader(text.splitlines(), delimiter=";" if first.count(";") > first.count(",") else ",")
        rows = [[cell.strip() for cell in row] for row in reader if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ValueError(f"{str(path)!r} is not a CSV file ({error})") from error
    title = [cell.casefold() for cell in rows[0]] if rows else []
    if title.count("slide") != 1 or title.count("patient") != 1:
        raise ValueError(f"{str(path)!r} has the columns {title}, expected 'slide' and 'patient', each once")
    slide, patient = title.index("slide"), title.index("patient")
    found: dict[str, str] = {}
    for row in rows[1:]:
        if len(row) <= max(slide, patient) or not row[slide] or not row[patient]:
            raise ValueError(f"{str(path)!r}: expected a slide and its patient in each row, found {row}")
        if found.setdefault(row[slide], row[patient]) != row[patient]:
            raise ValueError(f"{str(path)!r} gives slide {row[slide]!r} two patients")
    return found


def _masks(folder: Path, names: Sequence[str]) -> dict[str, SlideFile]:
    """Slide -> its mask, where it has one."""
    files = [path for path in sorted(folder.rglob("*.tif*")) if path.suffix.lower() in (".tif", ".tiff")]
    found: dict[str, SlideFile] = {}
    for name in names:
        stem = Path(name).name
        stem = Path(stem).stem if stem.lower().endswith(SLIDE_SUFFIXES) else stem
        own = [path for path in files if re.fullmatch(rf"{re.escape(stem)}(_[^_]+)?", path.stem)]
        exact = [path for path in own if path.stem == stem]
        if len(exact or own) > 1:
            raise ValueError(f"slide {name!r} has {len(exact or own)} masks below {str(folder)!r}, expected one")
        if own:
            found[name] = open_slide((exact or own)[0], mask=True)
    if not found:
        raise FileNotFoundError(
            f"masks {str(folder)!r} holds no mask of a slide, expected <slide>.tif, such as {names[0]}.tif"
        )
    return found


def _write(
    folder: Path,
    path: str,
    name: str,
    tiles: Sequence[tuple[Mapping[str, Any], Mapping[str, Any] | None]],
    mask: SlideFile | None,
    classes: int | Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Write the tiles of a slide; their items."""
    from PIL import Image

    slide = open_slide(path)
    if mask is not None:
        _check_mask(mask, slide)
    tables = []
    for tile, ticks in tiles:
        place = "{}/{}_x{}_y{}.png".format(name, Path(name).name, *tile["position"])
        item: dict[str, Any] = {"image": f"images/{place}", "position": list(tile["position"])}
        sources = {"image": (slide, tile["level"])} | ({} if mask is None else {"label": (mask, 0)})
        for key, (file, level) in sources.items():
            values = file.resampled(tuple(tile["start"]), tuple(tile["size"]), tuple(tile["shape"]), level)
            item[key] = f"{key}s/{place}"
            (folder / item[key]).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.ascontiguousarray(values.swapaxes(0, 1))).save(folder / item[key])
        if "mpp" in tile:
            item["mpp"] = tile["mpp"]
        if ticks is not None:
            item["patches"] = f"ticks/{name}.csv"
            tables.append({"image": place, **ticks})
        yield item
    if tables:
        write_patch_table(folder / "ticks" / f"{name}.csv", tables, classes)


def _check_mask(mask: SlideFile, slide: SlideFile) -> None:
    """The mask has the proportions of the slide, but for the rounding of its sides, and is not larger."""
    (width, height), (own_width, own_height) = slide.shapes[0], mask.shapes[0]
    if own_width > width or abs(own_width * height - own_height * width) > width + height:
        raise ValueError(
            f"mask {mask.path!r} has {mask.shapes[0]} pixels, which is not the shape of slide {slide.path!r}, "
            f"{slide.shapes[0]}, or of a smaller copy"
        )


def _split(items: Sequence[dict[str, Any]], validation: float, test: float, seed: int) -> dict[str, list[dict]]:
    """By patient where it is known, else by slide, with about equal numbers of tiles."""
    group = "patient" if "patient" in items[0] else "slide"
    marked = [{**item, "kind": ""} for item in items]
    splits = balanced_split(marked, {"validation": validation, "test": test}, group=group, kind="kind", seed=seed)
    return {name: [{k: v for k, v in item.items() if k != "kind"} for item in part] for name, part in splits.items()}
