# SPDX-License-Identifier: Apache-2.0
"""TBX11K, tuberculosis: COCO annotations and the films of ``imgs/health``, ``imgs/sick`` and ``imgs/tb``."""

from __future__ import annotations

import os
from pathlib import Path

from monai_labelfx.data.coco_json import load_coco
from monai_labelfx.data.prepare._films import Film, Pictures, thinned, write_films
from monai_labelfx.data.prepare._splits import check_destination

__all__ = ["prepare"]

_LISTS = (("TBX11K_train.json", "TBX11K_val.json"), ("TBX11K_trainval.json",))  # the first that is there


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    official_test: bool = False,
    empty: float | None = None,
    copy: bool = True,
    allow_missing: bool = False,
    seed: int = 0,
) -> Path:
    """Turn the public part of TBX11K (6,600 + 1,800 films, 1,211 boxes of tuberculosis) into a datalist.

    Expected anywhere below ``source``: ``annotations/json/TBX11K_train.json`` and ``TBX11K_val.json`` (or
    ``TBX11K_trainval.json``), and the films of 512 x 512 pixels below ``imgs``: ``health``, ``sick`` (ill, but not of
    tuberculosis) and ``tb``. The official test films have no public boxes and are not used, nor are the files
    ``annotations/xml``, whose boxes count the pixels of the originals.

    Written: ``images/``, the same bytes, and ``datalist.json``, whose items have ``image``, ``box`` (lists [x0, y0, x1,
    y1] in pixels), ``box_label`` (0 active, 1 obsolete tuberculosis; named under "class_names") and ``subject``, the
    film. Films of health and sick have no boxes. A film of ``tb`` without a box (``tb1199.png``) is left out and
    counted: it shows what nobody has marked.

    The data set does not tell the patient, so the split is by film.

    Args:
        source: the folder.
        destination: new or empty folder to write; it appears complete or not at all.
        validation: share of films for validation (of the training list with ``official_test``).
        test: share of films for the test; not used with ``official_test``.
        official_test: make the authors' validation films the test, as most papers do, for the labels of their test are
            not public.
        empty: at most this many films without boxes for each with boxes, drawn by ``seed``. Default ``None``, all,
            which is nine to one.
        copy: copy the films; with ``False`` the datalist names them where they are.
        allow_missing: leave out films that are not there, and count them, instead of raising.
        seed: seed of the draws.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no lists, unusable ones, a missing film or one of another size than stated, or shares out of range:
            one sentence naming the file or argument.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    pictures = Pictures(folder, allow_missing=allow_missing)
    films, names, unmarked, used = [], list[str](), 0, set[int]()
    for file in _lists(folder, official_test):
        found = load_coco(file, image_root="")
        if names and names != found.class_names:
            raise ValueError(f"{str(file)!r} has other categories than the other list, {found.class_names}")
        names = found.class_names
        for item, shape in zip(found.items, found.shapes, strict=True):
            if not item["box"] and Path(item["image"]).parts[:-1][-1:] == ("tb",):
                unmarked += 1
                continue
            path = pictures.find(item["image"])
            if path is not None:
                used.update(item["box_label"])
                split = "test" if official_test and file.name == _LISTS[0][1] else None
                films.append(Film(path, Path(item["image"]).stem, item["box"], item["box_label"], shape, split))
    return write_films(
        target,
        thinned(films, empty, seed),
        names if 2 in used else names[:2],  # the third category, of no known activity, is never used
        validation=validation,
        test=0.0 if official_test else test,
        seed=seed,
        copy=copy,
        notes={
            "name": "TBX11K",
            "official_test": official_test,
            "unmarked_films_left_out": unmarked,
            "missing_pictures": pictures.missing,
        },
    )


def _lists(folder: Path, official_test: bool) -> list[Path]:
    for group in _LISTS[: 1 if official_test else None]:
        found = [path for name in group for path in sorted(folder.rglob(name))]
        if len(found) > len(group):
            raise ValueError(
                f"source {str(folder)!r} holds {len(found)} lists {' and '.join(group)}, expected one each"
            )
        if len(found) == len(group):
            return found
    raise ValueError(
        f"source {str(folder)!r} holds no annotations/json/TBX11K_train.json and TBX11K_val.json"
        + ("" if official_test else " (or TBX11K_trainval.json)")
    )
