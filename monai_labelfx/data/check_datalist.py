# SPDX-License-Identifier: Apache-2.0
"""Open every item of a datalist before training and report what is wrong."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Collection
from pathlib import Path
from typing import Any, TypedDict

from monai_labelfx.data._check_item import check_item, paths_of
from monai_labelfx.data.datalist import PATH_KEYS, absolute_paths, iterate_entries
from monai_labelfx.data.dicom_series import find_dicom_series

__all__ = ["CheckReport", "CheckRow", "check_datalist"]

_PERSONS = ("subject", "patient", "slide")


class CheckRow(TypedDict):
    """One item: where it stands, what was measured (None where it could not be), what is wrong and what is odd."""

    split: str
    index: int
    item: str
    shape: list[int] | None
    spacing: list[float] | None
    dtype: str | None
    labels: int | None
    faults: list[str]
    warnings: list[str]


class CheckReport(TypedDict):
    """The rows, and all faults and warnings as lines that name the item; no faults means ready for training."""

    path: str
    rows: list[CheckRow]
    faults: list[str]
    warnings: list[str]


def check_datalist(
    path: str | os.PathLike,
    *,
    spatial_dims: int | None = None,
    allowed_labels: Collection[int] | None = None,
) -> CheckReport:
    """Open every file of a datalist and report faults; never raises about the data and prints nothing.

    Faults: an unusable JSON file or entry; a missing, truncated or corrupt file; NaN or infinite values; a wrong number
    of spatial axes; an unusable affine; a label or clean image whose shape or affine differs from the image's (by more
    than a hundredth of a voxel); label values that are negative, no integers or not allowed; boxes (key "box", corners
    [x0, y0(, z0), x1, y1(, z1)] in voxels, half open, a list per item) outside the image, or whose class channels
    (key "box_label") are not one whole number of 0 or above for each; a subject or an image, by path or by content, in
    two splits. Warnings: empty labels, an image twice in one split, files outside the folder, boxes that are not the
    tight box of one component of the label (by more than a voxel), hold several, or none.

    The numbers of a label are classes, or objects, whose classes "box_label" lists in rising order. They are objects
    where the label has several channels or the item no boxes; then another number of them than of classes (as where the
    type of the label cannot number them) and, of several channels, boxes that are off are faults. Of one channel with
    boxes they are what fits the boxes better, and boxes that fit neither are warnings.

    Args:
        path: the JSON file, see :py:func:`load_datalist`.
        spatial_dims: expected number of spatial axes of the images; None accepts any.
        allowed_labels: the label values that may occur besides 0; None accepts any (instance maps).

    Returns:
        A :py:class:`CheckReport` of plain lists and dictionaries. ``labels`` counts the distinct values besides 0.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import save_datalist
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = save_datalist(f"{folder}/datalist.json", {"training": [{"image": "absent.png"}]})
        ...     report = check_datalist(f"{folder}/datalist.json")
        >>> len(report["faults"]), report["rows"][0]["split"]
        (1, 'training')
    """
    file = Path(path)
    report = CheckReport(path=str(file), rows=[], faults=[], warnings=[])
    items: list[dict[str, Any]] = []
    try:
        entries = list(iterate_entries(file))
    except OSError as error:
        report["faults"].append(str(error))
        return report
    for split, index, entry, fault in entries:
        if not split or entry is None:
            report["faults"].append(f"datalist {str(file)!r}: {fault}")
            continue
        item = absolute_paths(entry, file, PATH_KEYS)
        findings = check_item(item, spatial_dims=spatial_dims, allowed_labels=allowed_labels)
        first = entry["image"] if isinstance(entry["image"], str) else entry["image"][0]
        row = CheckRow(split=split, index=index, item=first, **vars(findings))  # type: ignore[typeddict-item]
        report["rows"].append(row)
        items.append(item)
    folder = os.path.realpath(file.parent)
    paths = [real for item in items for _, real in paths_of(item, PATH_KEYS)]
    outside = [real for real in paths if not Path(real).is_relative_to(folder)]
    if outside:
        report["warnings"].append(
            f"{len(outside)} files lie outside the folder of the datalist, such as {outside[0]!r}"
        )
    _check_repeats(report["rows"], items)
    for row in report["rows"]:
        name = f"{row['split']}[{row['index']}] ({row['item']})"
        report["faults"] += [f"{name}: {text}" for text in row["faults"]]
        report["warnings"] += [f"{name}: {text}" for text in row["warnings"]]
    return report


def _check_repeats(rows: list[CheckRow], items: list[dict[str, Any]]) -> None:
    """What may stand in one split only: a person, a slide, an image file, the bytes of an image file.

    A patient or a slide that is in the test and elsewhere is a warning: some data sets are published so.
    """
    seen: dict[tuple[str, str], list[CheckRow]] = defaultdict(list)
    for row, item in zip(rows, items, strict=True):
        for key in _PERSONS:
            if item.get(key) is not None:
                seen[key, str(item[key])].append(row)
        for _, real in paths_of(item, ("image",)):
            seen["image", _identity(real)].append(row)
    for (kind, value), group in seen.items():
        first = group[0]
        place = f"{first['split']}[{first['index']}] ({first['item']})"
        for row in group[1:]:
            if row["split"] != first["split"]:
                what = f"{kind} {value!r}" if kind in _PERSONS else "the same image"
                published = kind in ("patient", "slide") and "test" in (row["split"], first["split"])  # such as GlaS
                row["warnings" if published else "faults"].append(f"{what} is also in another split, at {place}")
            elif kind == "image":
                row["warnings"].append(f"the same image is also at {place}")


def _identity(path: str) -> str:
    """What a copy under another name shares: the bytes of a file, the UIDs of a folder of DICOM; else the path."""
    if os.path.isdir(path):
        try:
            uids = [series.uid for series in find_dicom_series(path)]
        except (OSError, ValueError):  # a broken file, which is a fault of its own
            uids = []
        return " ".join(uids) or path
    if not os.path.isfile(path):
        return path
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
