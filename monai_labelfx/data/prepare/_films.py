# SPDX-License-Identifier: Apache-2.0
"""What the adapters of pictures with boxes share: finding files, boxes inside the picture, a split by patient."""

from __future__ import annotations

import shutil
import warnings
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from monai_labelfx._atomic import replacing
from monai_labelfx.data._coco_masks import decoded
from monai_labelfx.data._reading import reading
from monai_labelfx.data.class_names import class_names_note
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._instance_maps import instance_maps, save_instance_maps
from monai_labelfx.data.prepare._volumes import split_by_subject

_PICTURES = {".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".dcm"}
_NAMED = 5  # images that a warning names


class Film(NamedTuple):
    """A picture with its boxes [x0, y0, x1, y1] in pixels and their classes; ``shape`` is what the source states."""

    path: Path
    subject: str
    boxes: Sequence[Sequence[float]] = ()
    labels: Sequence[int] = ()
    shape: tuple[int, int] | None = None
    split: str | None = None  # of the source; None: drawn
    masks: Sequence[Mapping[str, Any]] | None = None  # run lengths of each object; None: boxes are all there is


class Pictures:
    """The pictures below a folder, found by the end of their path."""

    def __init__(self, folder: Path, *, allow_missing: bool = False) -> None:
        self.folder, self.allow_missing, self.missing = folder, allow_missing, 0
        self.by_name: dict[str, list[Path]] = defaultdict(list)
        for path in sorted(folder.rglob("*")):
            if path.suffix.lower() in _PICTURES and not path.name.startswith("."):
                self.by_name[path.name].append(path)

    def find(self, name: str, *, inside: str = "") -> Path | None:
        """The one picture whose path ends with ``name`` (preferred: below a folder whose name begins with ``inside``).

        ``None`` for a missing one if that is allowed, and counted; else a ValueError.
        """
        parts = PurePosixPath(name.replace("\\", "/")).parts
        ends = [path for path in self.by_name.get(parts[-1], []) if path.parts[-len(parts) :] == parts] if parts else []
        if len(ends) > 1 and inside:
            folders = {path: path.relative_to(self.folder).parts[:-1] for path in ends}
            ends = [path for path in ends if any(part.startswith(inside) for part in folders[path])] or ends
        if len(ends) > 1:
            raise ValueError(f"picture {name!r} is at {str(ends[0])!r} and at {str(ends[1])!r}, expected one")
        if ends:
            return ends[0]
        if not self.allow_missing:
            raise ValueError(
                f"picture {name!r} is not below {str(self.folder)!r}; with allow_missing=True pictures that are not "
                "there are left out and counted"
            )
        self.missing += 1
        return None


def thinned(films: Sequence[Film], empty: float | None, seed: int) -> list[Film]:
    """At most ``empty`` films without boxes for each with boxes, drawn by ``seed``; None: all of them."""
    if empty is None:
        return list(films)
    if not empty >= 0:
        raise ValueError(f"empty must be a number of images without boxes for each with boxes, 0 or above, got {empty}")
    bare = [index for index, film in enumerate(films) if not film.boxes]
    number = min(len(bare), round(empty * (len(films) - len(bare))))
    chosen = set(np.random.RandomState(seed).permutation(bare)[:number].tolist())
    return [film for index, film in enumerate(films) if film.boxes or index in chosen]


def write_films(
    target: Path,
    films: Sequence[Film],
    class_names: Sequence[str],
    *,
    validation: float,
    test: float,
    seed: int,
    copy: bool,
    notes: Mapping[str, Any],
) -> Path:
    """Copy the pictures, split them by subject and write the datalist; all of it appears complete or not at all.

    Boxes are cut at the picture; those without volume, outside or not finite are dropped, with one warning. A picture
    of another size than stated is refused: its boxes would be those of another picture. ``notes`` has a ``name``.

    Of films with masks the boxes are the tight ones of these, in the order of the numbers in the label maps that are
    written too.
    """
    if not films:
        raise ValueError(f"{notes['name']}: no picture to prepare")
    twice = [path for path, count in Counter(film.path for film in films).items() if count > 1]
    if twice:
        raise ValueError(f"picture {str(twice[0])!r} is in the annotations more than once")
    names = [film.path.name for film in films]
    flat, base = len(set(names)) == len(names), _common(films)
    dropped: dict[str, int] = {}
    items: dict[str | None, list[dict[str, Any]]] = defaultdict(list)
    with replacing(target) as temporary:
        (temporary / "images").mkdir(parents=True)
        for film in films:
            place = f"images/{film.path.name if flat else film.path.relative_to(base).as_posix()}"
            if copy:
                (temporary / place).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(film.path, temporary / place)
            item = {"image": place if copy else str(film.path.absolute())}
            item |= _boxed(film, dropped) if film.masks is None else _masked(film, temporary, place, dropped)
            items[film.split].append(item | {"subject": film.subject})
        drawn = items.pop(None, [])
        splits = split_by_subject(drawn, validation=validation, test=test, seed=seed) if drawn else {}
        for split, part in items.items():
            splits[str(split)] = splits.get(str(split), []) + part
        _warn(dropped)
        told = {**notes, "dropped_boxes": sum(dropped.values()), "seed": seed, **class_names_note(class_names)}
        order = sorted(splits, key=lambda split: ("training", "validation", "test").index(split))
        save_datalist(temporary / "datalist.json", {split: splits[split] for split in order}, notes=told)
    return target / "datalist.json"


def picture_shape(path: Path) -> tuple[int, int]:
    """Size (x, y) of a picture, from its header."""
    if path.suffix.lower() == ".dcm":
        import pydicom

        with reading(str(path), "DICOM"):
            header = pydicom.dcmread(path, stop_before_pixels=True)
            return int(header.Columns), int(header.Rows)
    from PIL import Image

    with reading(str(path), "picture"), Image.open(path) as image:
        return image.size


def _checked_shape(film: Film) -> tuple[int, int]:
    """Size (x, y) of the picture, which must be what the source states."""
    shape = picture_shape(film.path)
    if film.shape is not None and tuple(film.shape) != shape:
        raise ValueError(
            f"picture {str(film.path)!r} has {shape[0]} x {shape[1]} pixels, but its boxes are of one of "
            f"{film.shape[0]} x {film.shape[1]}"
        )
    return shape


def _masked(film: Film, folder: Path, place: str, dropped: dict[str, int]) -> dict[str, Any]:
    """Write the label map of a film; the keys of its item."""
    shape, name = _checked_shape(film), str(film.path)
    masks = (decoded(one, shape, f"mask {number} of {name!r}") for number, one in enumerate(film.masks or ()))
    try:
        found = instance_maps(masks, shape)
    except ValueError as error:
        raise ValueError(f"picture {name!r}: {error}") from error
    if len(found.order) < len(film.labels):
        dropped[film.path.name] = len(film.labels) - len(found.order)
    path = folder / PurePosixPath("labels", *PurePosixPath(place).parts[1:]).with_suffix(".png")
    paths = [one.relative_to(folder).as_posix() for one in save_instance_maps(path, found.maps)]
    return {
        "label": paths[0] if len(paths) == 1 else paths,
        "box": found.boxes,
        "box_label": [film.labels[index] for index in found.order],
    }


def _boxed(film: Film, dropped: dict[str, int]) -> dict[str, Any]:
    """Boxes cut at the picture, and their classes, as the keys of an item."""
    shape = _checked_shape(film)
    rows = np.asarray(film.boxes, dtype=np.float64).reshape(-1, 4)
    limit = np.array([*shape, *shape], dtype=np.float64)
    cut = np.minimum(np.maximum(rows, 0.0), limit)
    solid = np.concatenate([np.isfinite(rows), rows[:, :2] < rows[:, 2:], cut[:, :2] < cut[:, 2:]], axis=1)
    good = np.asarray(solid.all(axis=1))
    if not good.all():
        dropped[film.path.name] = int((~good).sum())
    labels = [label for label, keep in zip(film.labels, good.tolist(), strict=True) if keep]
    return {"box": cut[good].tolist(), "box_label": labels}


def _common(films: Sequence[Film]) -> Path:
    """The deepest folder above all pictures."""
    shared = set(films[0].path.parents).intersection(*(film.path.parents for film in films))
    return max(shared, key=lambda folder: len(folder.parts))


def _warn(dropped: Mapping[str, int]) -> None:
    if dropped:
        shown = ", ".join(map(repr, list(dropped)[:_NAMED]))
        more = f" and {len(dropped) - _NAMED} more" * (len(dropped) > _NAMED)
        warnings.warn(
            f"dropped {sum(dropped.values())} boxes without volume or outside the image, of {shown}{more}.",
            stacklevel=4,
        )
