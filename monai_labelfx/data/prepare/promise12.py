# SPDX-License-Identifier: Apache-2.0
"""PROMISE12, prostate MR: ``CaseNN.mhd`` with ``CaseNN_segmentation.mhd``."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx._atomic import replacing
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.prepare._metaimage import read_metaimage
from monai_labelfx.data.prepare._splits import check_destination
from monai_labelfx.data.prepare._volumes import check_same_grid, save_volume, split_by_subject

__all__ = ["prepare"]

_CASE = re.compile(r"case\d+", re.IGNORECASE)
_MASK = "_segmentation"
_OFFICIAL_TEST = {"test": "test", "live": "livechallenge"}  # beginning of a folder's name -> prefix of its cases
_TRAINING_CASES, _HELD_OUT = 50, 10  # of the paper


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    validation: float = 0.2,
    test: float = 0.0,
    paper_split: bool = False,
    seed: int = 0,
) -> Path:
    """Turn PROMISE12 into NIfTI volumes, masks and a datalist, split by patient.

    Expected anywhere below ``source``: ``CaseNN.mhd`` and ``CaseNN_segmentation.mhd`` with their ``.raw`` files, as in
    ``TrainingData_Part1`` to ``3`` of the challenge or ``training_data``, ``test_data`` and ``livechallenge_test_data``
    of the release on Zenodo. The three sets use the same numbers for other patients, so cases below a folder whose name
    begins with "test" or "live" become ``test_CaseNN`` and ``livechallenge_CaseNN``.

    Written: ``images/CaseNN.nii.gz`` (the values and the type of the file, on its grid), ``labels/CaseNN.nii.gz`` (0
    and 1) and ``datalist.json``, whose items have ``subject``, the name of the case.

    =====================================  ===========================================================================
    training case with a segmentation      "training", "validation" or "test", by patient
    test or live case with a segmentation  "test": nobody trains on the official test cases by accident
    case without a segmentation            "unlabelled": a split that no evaluation reads by accident
    =====================================  ===========================================================================

    Args:
        source: the folder with the unpacked data.
        destination: new or empty folder to write; it appears complete or not at all.
        validation: share of the training cases for validation, drawn by ``seed``. 0.2 is the paper's 10 of 50.
        test: share of the training cases for the test; the official test cases come on top.
        paper_split: hold out for validation the very ten cases that the code of the paper (and of the work it compares
            with) draws by ``random.seed(0)`` and ``random.sample`` from the 50 sorted training cases; ``validation``,
            ``test`` and ``seed`` are not used.
        seed: seed of the draw.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no case, a segmentation without image, two cases of one name, an unusable file, a segmentation with
            another grid than its image or without any voxel, ``paper_split`` without exactly 50 segmented training
            cases, or shares out of range: one sentence naming the file or argument.

    Notes:
        The paper reports its Dice on the ten held-out cases, which also chose its epoch and threshold. They become
        "validation" here; evaluate on them by ``--split validation``. Values of segmentations above 0 become 1.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    cases = _find(folder)
    with replacing(target) as temporary:
        temporary.mkdir()
        items = {name: _write(name, image, mask, temporary) for name, (image, mask) in cases.items()}
        splits = _split(list(items.values()), validation=validation, test=test, paper_split=paper_split, seed=seed)
        notes = {"name": "PROMISE12", "paper_split": paper_split, "seed": seed}
        save_datalist(temporary / "datalist.json", splits, notes=notes)
    return target / "datalist.json"


def _find(folder: Path) -> dict[str, tuple[Path, Path | None]]:
    """Name of the case -> its image and its segmentation, in the order of the names."""
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in sorted(folder.rglob("*.[mM][hH][dD]")):
        stem = path.stem
        found = masks if stem.lower().endswith(_MASK) else images
        stem = stem[: -len(_MASK)] if found is masks else stem
        if not _CASE.fullmatch(stem):
            continue
        name = _prefix(path.relative_to(folder)) + stem.capitalize()
        if name in found:
            raise ValueError(f"case {name} is at {str(path)!r} and at {str(found[name])!r}, expected one")
        found[name] = path
    lonely = sorted(set(masks) - set(images))
    if lonely:
        raise ValueError(f"segmentation {str(masks[lonely[0]])!r} has no image {lonely[0]}.mhd beside it")
    if not images:
        packed = " (but .zip files: unpack them first)" if any(folder.rglob("*.zip")) else ""
        raise ValueError(
            f"source {str(folder)!r} holds no case{packed}, expected CaseNN.mhd and CaseNN_segmentation.mhd"
        )
    return {name: (images[name], masks.get(name)) for name in sorted(images)}


def _prefix(path: Path) -> str:
    for part in path.parts[:-1]:
        for beginning, prefix in _OFFICIAL_TEST.items():
            if part.lower().startswith(beginning):
                return f"{prefix}_"
    return ""


def _write(name: str, image: Path, mask: Path | None, folder: Path) -> dict[str, Any]:
    item = {"image": f"images/{name}.nii.gz", "subject": name}
    array, affine = read_metaimage(image)
    save_volume(folder / item["image"], array, affine)
    if mask is not None:
        inside, own = read_metaimage(mask)
        check_same_grid(mask, inside.shape, own, image=image, image_shape=array.shape, expected=affine)
        if not (inside > 0).any():
            raise ValueError(f"segmentation {str(mask)!r} is empty, expected voxels above 0")
        item["label"] = f"labels/{name}.nii.gz"
        save_volume(folder / item["label"], (inside > 0).astype(np.uint8), affine)
    return item


def _split(
    items: list[dict[str, Any]], *, validation: float, test: float, paper_split: bool, seed: int
) -> dict[str, list[dict[str, Any]]]:
    official = tuple(f"{prefix}_" for prefix in _OFFICIAL_TEST.values())
    labelled = [item for item in items if "label" in item]
    own = [item for item in labelled if not item["subject"].startswith(official)]
    if paper_split:
        if len(own) != _TRAINING_CASES:
            raise ValueError(
                f"paper_split=True needs the {_TRAINING_CASES} segmented training cases, found {len(own)} of them"
            )
        held_out = set(random.Random(0).sample(range(_TRAINING_CASES), _HELD_OUT))
        splits = {
            "training": [item for index, item in enumerate(own) if index not in held_out],
            "validation": [item for index, item in enumerate(own) if index in held_out],
        }
    else:
        splits = split_by_subject(own, validation=validation, test=test, seed=seed) if own else {}
    rest = {
        "test": [item for item in labelled if item["subject"].startswith(official)],
        "unlabelled": [item for item in items if "label" not in item],
    }
    for name, part in rest.items():
        if part:
            splits[name] = splits.get(name, []) + part
    return splits
