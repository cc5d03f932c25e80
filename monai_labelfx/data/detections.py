# SPDX-License-Identifier: Apache-2.0
"""Detections as a JSON file in world coordinates that 3D Slicer opens and any program reads."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from monai.config import NdarrayOrTensor
from monai.utils import convert_data_type

from monai_labelfx._atomic import replacing
from monai_labelfx.data._reading import ImageFileError

__all__ = ["load_detections", "save_detections"]

_SCHEMA = (
    "https://raw.githubusercontent.com/slicer/slicer/master/Modules/Loadable/Markups/Resources/Schema/"
    "markups-schema-v1.0.3.json#"
)
_VERSION = 1
_RAS_TO_LPS = np.array([-1.0, -1.0, 1.0])
_CORNERS = np.array([[corner >> axis & 1 for axis in range(3)] for corner in range(8)])


def save_detections(
    path: str | os.PathLike,
    boxes: NdarrayOrTensor | Sequence,
    *,
    labels: NdarrayOrTensor | Sequence,
    scores: NdarrayOrTensor | Sequence,
    affine: NdarrayOrTensor,
    names: Mapping[int, str] | None = None,
) -> Path:
    """Write the boxes of one image; the file appears complete or not at all.

    The file is a 3D Slicer markups file (call it ``*.mrk.json`` and drop it on Slicer's window): one
    oriented ROI in mm, LPS, for each box. Beside the markups, the entry ``labelfx`` holds the exact data:

    - ``version`` (1), ``spatial_dims``, ``affine_ras`` (4 x 4), ``names`` (label -> name);
    - ``detections``, one entry for each box: ``box`` as given, ``label``, ``score``, and ``corners_lps``: the box's 8
      corners in mm. Corner 0 is the low one; bit 0, 1, 2 of its number says high in x, y, z.

    Corners of a box are half open, as in MONAI: a box from 0 to n covers the voxels 0 to n - 1. A voxel reaches half a
    voxel from its centre, where the affine puts its index. So in the world the box reaches from index -0.5 to n - 0.5.
    A box of two axes is one slice thick.

    Args:
        path: the file to write; its folder is made.
        boxes: (N, 4) or (N, 6) in voxels, ``x0, y0[, z0], x1, y1[, z1]`` (MONAI's standard mode), fractions allowed.
        labels: (N,) whole numbers.
        scores: (N,) finite numbers.
        affine: 4 x 4, voxel to mm, RAS (as in ``MetaTensor.affine``) of the image that the boxes are in.
        names: what labels mean, shown in Slicer.

    Returns:
        The path of the file.

    Raises:
        ValueError: wrong shapes, numbers that are not finite, a box with high <= low, or a singular affine.

    Notes:
        Under a sheared affine (a tilted gantry) a box is no cuboid: ``corners_lps`` are exact, and the ROI is the
        smallest cuboid along the slices that encloses them.

        This file serves any image, NIfTI and PNG too, and holds boxes exactly. For images that came from DICOM,
        :py:func:`save_detection_report` writes a structured report beside it, which a PACS files under the patient.
        That one knows no box: a volume's box is a stack of contours in float32, which few viewers show.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     path = save_detections(
        ...         f"{folder}/a.mrk.json", [[0, 0, 0, 4, 2, 1]], labels=[1], scores=[0.9], affine=np.diag([2, 2, 5, 1])
        ...     )
        ...     found = load_detections(path)
        >>> found["boxes"].tolist(), found["labels"].tolist(), found["scores"].tolist()
        ([[0.0, 0.0, 0.0, 4.0, 2.0, 1.0]], [1], [0.9])
    """
    data = _checked(boxes, labels, scores, affine, names)
    named, grid = data["names"], data["affine"]
    markups, detections = [], []
    for box, label, score in zip(data["boxes"], data["labels"].tolist(), data["scores"].tolist(), strict=True):
        corners = _corners(box, grid)
        markups.append(_markup(corners, grid, f"{named.get(label, f'label {label}')} {score:.2f}"))
        detections.append({"box": box.tolist(), "label": label, "score": score, "corners_lps": corners.tolist()})
    block = {
        "version": _VERSION,
        "spatial_dims": data["boxes"].shape[1] // 2,
        "affine_ras": grid.tolist(),
        "names": {str(label): name for label, name in named.items()},
        "detections": detections,
    }
    text = json.dumps({"@schema": _SCHEMA, "markups": markups, "labelfx": block}, indent=1, allow_nan=False)
    with replacing(Path(path)) as temporary:
        temporary.write_text(text + "\n", encoding="utf-8")
    return Path(path)


def load_detections(path: str | os.PathLike) -> dict[str, Any]:
    """Read what :py:func:`save_detections` wrote: its arguments.

    Returns:
        ``boxes`` (N, 4) or (N, 6) float64 in voxels, ``labels`` (N,) int64, ``scores`` (N,) float64, ``affine`` (4, 4)
        float64 RAS, ``names``: each value as it was given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no JSON, no ``labelfx`` entry (Slicer drops it when it saves), another version, or unusable numbers.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"detections file {str(file)!r} does not exist")
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ImageFileError(f"detections file {str(file)!r} is not a JSON file ({error})") from error
    block = document.get("labelfx") if isinstance(document, dict) else None
    if not isinstance(block, dict):
        raise ImageFileError(
            f"detections file {str(file)!r} has no 'labelfx' entry, expected a file that save_detections wrote "
            "(3D Slicer drops this entry when it saves)"
        )
    if block.get("version") != _VERSION:
        raise ImageFileError(
            f"detections file {str(file)!r} has version {block.get('version')!r}, this package reads {_VERSION}"
        )
    try:
        dims, found = block["spatial_dims"], block["detections"]
        return _checked(
            np.array([one["box"] for one in found], dtype=np.float64).reshape(len(found), 2 * dims),
            np.array([one["label"] for one in found] or np.empty(0, np.int64)),
            [one["score"] for one in found],
            np.array(block["affine_ras"], dtype=np.float64),
            {int(label): name for label, name in block["names"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ImageFileError(
            f"detections file {str(file)!r} has an unusable 'labelfx' entry: {type(error).__name__} {error}"
        ) from error


def _checked(boxes: Any, labels: Any, scores: Any, affine: Any, names: Mapping[int, str] | None) -> dict[str, Any]:
    """The arguments as arrays of float64 and int64."""
    boxes, scores, affine = (_array(value).astype(np.float64) for value in (boxes, scores, affine))
    labels = _array(labels)
    if boxes.ndim != 2 or boxes.shape[1] not in (4, 6):
        raise ValueError(f"boxes must have the shape (N, 4) or (N, 6), got {boxes.shape}")
    if labels.size == 0:
        labels = labels.astype(np.int64)
    if labels.shape != boxes.shape[:1] or scores.shape != boxes.shape[:1]:
        raise ValueError(f"{len(boxes)} boxes need as many labels and scores, got {labels.shape} and {scores.shape}")
    if labels.dtype.kind not in "iu" or (labels.size and labels.max() > np.iinfo(np.int64).max):
        raise ValueError(f"labels must be whole numbers of 64 bits, got {labels.dtype}")
    if not np.isfinite(boxes).all() or not np.isfinite(scores).all():
        raise ValueError("boxes and scores must be finite")
    low, high = np.split(boxes, 2, axis=1)
    empty = np.flatnonzero((high <= low).any(axis=1))
    if empty.size:
        raise ValueError(f"box {empty[0]} is empty: {boxes[empty[0]].tolist()} (low corner, then high corner)")
    if affine.shape != (4, 4) or not np.isfinite(affine).all() or not abs(np.linalg.det(affine)) > 0:
        raise ValueError(f"affine must be an invertible 4 x 4 matrix, got {affine.tolist()}")
    named = dict(names or {})
    if not all(isinstance(key, (int, np.integer)) and isinstance(name, str) for key, name in named.items()):
        raise ValueError("names must map labels (whole numbers) to texts")
    named = {int(key): name for key, name in named.items()}
    return {"boxes": boxes, "labels": labels.astype(np.int64), "scores": scores, "affine": affine, "names": named}


def _array(value: Any) -> np.ndarray:
    return convert_data_type(value, np.ndarray)[0] if hasattr(value, "__array__") else np.array(value)


def _corners(box: np.ndarray, affine: np.ndarray) -> np.ndarray:
    """The 8 corners (8, 3) in mm, LPS."""
    low, high = np.split(box, 2)
    if len(low) == 2:
        low, high = np.append(low, 0.0), np.append(high, 1.0)
    index = np.where(_CORNERS == 1, high, low) - 0.5
    return (index @ affine[:3, :3].T + affine[:3, 3]) * _RAS_TO_LPS


def _markup(corners: np.ndarray, affine: np.ndarray, name: str) -> dict[str, Any]:
    """The ROI around the corners, with the axes of the image (of its slices where the affine is sheared)."""
    axes = np.linalg.qr(affine[:3, :3] * _RAS_TO_LPS[:, None])[0]
    if np.linalg.det(axes) < 0:
        axes[:, 2] *= -1  # a rotation; the sign of an axis does not matter to a box
    center = corners.mean(axis=0)
    size = 2 * np.abs((corners - center) @ axes).max(axis=0)
    orientation = axes.ravel().tolist()
    point = {"id": "1", "label": name, "position": center.tolist(), "orientation": orientation, "visibility": True}
    return {
        "type": "ROI",
        "name": name,
        "coordinateSystem": "LPS",
        "coordinateUnits": "mm",
        "locked": True,
        "roiType": "Box",
        "center": center.tolist(),
        "orientation": orientation,  # row by row, the columns are the box's axes
        "size": size.tolist(),
        "controlPoints": [point],
    }
