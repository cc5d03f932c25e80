# SPDX-License-Identifier: Apache-2.0
"""Data Science Bowl 2018, ``stage1_train``: one folder per image, one mask picture per nucleus."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx._atomic import replacing
from monai_labelfx.data._reading import reading
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._splits import check_destination, hide_labels, split_by_image

__all__ = ["prepare"]


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    validation: float = 0.1,
    test: float = 0.1,
    labelled: int | None = None,
    grey_only: bool = True,
    seed: int = 0,
) -> Path:
    """Turn ``stage1_train`` of the Data Science Bowl 2018 (BBBC038v1) into images, label maps and a datalist.

    Expected below ``source`` (or below ``source/stage1_train``): ``<id>/images/<any>.png`` and ``<id>/masks/*.png``,
    one mask per nucleus. Written: ``images/<id>.png`` (the same bytes), ``labels/<id>.png`` (16 bit, 0 background, 1..N
    in the order of the mask names) and ``datalist.json``. Where two masks overlap the first wins; the number of such
    pixels is noted in the datalist.

    Args:
        source: the folder.
        destination: new or empty folder to write; it appears complete or not at all.
        validation: share of images for validation.
        test: share of images for the test.
        labelled: number of training images that keep their label in the datalist, drawn by ``seed``; None: all.
        grey_only: leave out pictures whose colour channels differ (stained tissue), as the paper's subset does; their
            number is noted in the datalist.
        seed: seed of the split and the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: another layout, unusable pictures, masks of another size than their image, or shares and numbers
            out of range: one sentence naming the folder or argument.

    Notes:
        The paper's own data set is cropped from 4470 / 10 = 447 of these images; see ``prepare.denoiseg`` for it.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import load_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for case in ("a", "b", "c"):
        ...         for name in ("images/image.png", "masks/1.png"):
        ...             path = Path(folder, "stage1_train", case, name)
        ...             path.parent.mkdir(parents=True)
        ...             _save(np.eye(8, dtype=np.uint16), path)
        ...     splits = load_datalist(prepare(folder, f"{folder}/prepared"))
        >>> {split: len(items) for split, items in splits.items()}
        {'training': 1, 'validation': 1, 'test': 1}
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    folder = folder / "stage1_train" if (folder / "stage1_train").is_dir() else folder
    if not folder.is_dir():
        raise FileNotFoundError(f"source folder {str(folder)!r} does not exist")
    cases = sorted(path for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not cases:
        raise ValueError(
            f"source folder {str(folder)!r} holds no case, expected <id>/images/*.png and <id>/masks/*.png"
        )
    overlap = skipped = 0
    items = []
    with replacing(target) as temporary:
        for name in ("images", "labels"):
            (temporary / name).mkdir(parents=True)
        for case in cases:
            image = _only_image(case)
            pixels = _pixels(image)
            if grey_only and pixels.ndim == 3 and pixels.shape[-1] >= 3 and (pixels[..., :3] != pixels[..., :1]).any():
                skipped += 1
                continue
            labels, shared = _merge_masks(case, pixels.shape[:2])
            overlap += shared
            item = {"image": f"images/{case.name}.png", "label": f"labels/{case.name}.png", "subject": case.name}
            shutil.copyfile(image, temporary / item["image"])
            _save(labels, temporary / item["label"])
            items.append(item)
        splits = split_by_image(items, validation=validation, test=test, seed=seed)
        hide_labels(splits["training"], labelled, seed=seed)
        notes: dict[str, Any] = {
            "name": "Data Science Bowl 2018, stage1_train",
            "overlapping_pixels": overlap,
            "colour_images_left_out": skipped,
            "seed": seed,
        }
        save_datalist(temporary / "datalist.json", splits, notes=notes)
    return target / "datalist.json"


def _only_image(case: Path) -> Path:
    images = sorted((case / "images").glob("*.png"))
    if len(images) != 1:
        raise ValueError(f"case {str(case)!r} has {len(images)} pictures images/*.png, expected one")
    return images[0]


def _pixels(path: Path) -> np.ndarray:
    from PIL import Image

    with reading(str(path), "PNG"), Image.open(path) as image:
        return np.asarray(image)


def _merge_masks(case: Path, shape: tuple[int, ...]) -> tuple[np.ndarray, int]:
    """One label map from the case's masks, and how many pixels a later mask wanted that were taken."""
    masks = sorted((case / "masks").glob("*.png"))
    if not masks:
        raise ValueError(f"case {str(case)!r} has no masks/*.png, expected one picture per nucleus")
    if len(masks) > np.iinfo(np.uint16).max:
        raise ValueError(f"case {str(case)!r} has {len(masks)} masks, more than a 16-bit label map holds")
    labels, overlap = np.zeros(shape, np.uint16), 0
    for number, path in enumerate(masks, start=1):
        mask = _pixels(path)
        mask = mask[..., 0] if mask.ndim == 3 else mask
        if mask.shape != shape:
            raise ValueError(f"mask {str(path)!r} has {mask.shape} rows and columns, but its image has {shape}")
        inside = mask != 0
        overlap += int(np.count_nonzero(inside & (labels != 0)))
        labels[inside & (labels == 0)] = number
    return labels, overlap


def _save(labels: np.ndarray, path: Path) -> None:
    from PIL import Image

    Image.fromarray(labels).save(path)
