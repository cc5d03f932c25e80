# SPDX-License-Identifier: Apache-2.0
"""The boxes of a batch, in any of the forms a target may hold them in, as flat tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch

from monai_labelfx.ops._arrays import as_array
from monai_labelfx.ops.crossing_lines import WHOLE

_FLAT = 1e-6  # edges of a frame whose parallelotope is this small beside the cuboid of their lengths are dependent


class BoxTarget(NamedTuple):
    r"""All boxes of a batch, image after image, without padding and without those of images nobody looked at.

    - ``boxes``: (N, 2 \* spatial_dims), low corner then high corner, half open, in voxels; ``None`` with ``frames``.
    - ``frames``: (N, spatial_dims + 1, spatial_dims), the corner, then one edge vector for each axis of the original
      box; ``None`` with ``boxes``. Of the two exactly one is there.
    - ``image``: (N,) int64, the place of the box's image in the batch.
    - ``label``: (N,) int64, the class channel of the box.
    - ``tight_sides``: (N, 2 \* spatial_dims) bool, low sides then high sides, or ``None`` where the target has none.
    - ``looked``: (B,) bool, images whose boxes are known, all of them: what lies outside is background.
    """

    boxes: torch.Tensor | None
    frames: torch.Tensor | None
    image: torch.Tensor
    label: torch.Tensor
    tight_sides: torch.Tensor | None
    looked: torch.Tensor


def read_box_target(
    target: Mapping[str, Any],
    batch: int,
    channels: int,
    spatial_shape: Sequence[int],
    device: torch.device | str | None = None,
) -> BoxTarget:
    r"""The parts ``boxes``, ``bags``, ``labels``, ``tight_sides`` and ``has_boxes`` of a target, checked.

    Args:
        target: a mapping; each part may be missing or ``None``, parts of other names are not looked at.

            - ``boxes``: a list with (N_i, 2 \* spatial_dims), or ``None`` for an image nobody looked at, for each of
              the B images; or (B, N, 2 \* spatial_dims), padded.
            - ``bags``: frames, (N_i, spatial_dims + 1, spatial_dims) or (B, N, spatial_dims + 1, spatial_dims); with
              them ``boxes`` is not read.
            - ``labels``: class channel of each box, a list of (N_i,) or (B, N), where -1 is the label of padding.
            - ``tight_sides``: a list of (N_i, 2 \* spatial_dims), or ``None`` for tight on all sides; or padded.
            - ``has_boxes``: (B,) bool. Default all true where there are boxes or bags, else all false.
        batch: B, number of images.
        channels: number of class channels.
        spatial_shape: voxels per spatial axis; boxes may lie outside.
        device: device of the result. Default ``None``: the CPU, where all is read and checked.

    Returns:
        :py:class:`BoxTarget`. Boxes and frames are float64 where they came so, else float32.

    Raises:
        TypeError: when the target is no mapping, or a part does not hold real numbers.
        ValueError: when shapes do not fit, a label is no class channel, or a box is inverted, empty or not finite.
            Boxes of images whose ``has_boxes`` is false, and padding, may hold anything.
    """
    if not isinstance(target, Mapping):
        raise TypeError(f"target must be a mapping with boxes (or bags) and labels, got {type(target).__name__}.")
    name = "boxes" if target.get("bags") is None else "bags"
    ndim = len(spatial_shape)
    looked = _looked(target, batch, default=target.get(name) is not None)
    if target.get(name) is None:
        if looked.any():
            raise ValueError("target has neither boxes nor bags, so has_boxes must be false for every image.")
        none = torch.zeros(0, dtype=torch.int64, device=device)
        nowhere = torch.zeros(0, 2 * ndim, device=device)
        return BoxTarget(nowhere, None, none, none, None, torch.from_numpy(looked).to(device))
    if target.get("labels") is None:
        raise ValueError(f"target has {name} but no labels: each box needs its class channel.")

    shape = (2 * ndim,) if name == "boxes" else (ndim + 1, ndim)
    rows, counts, known = _rows(target, name, shape, batch)
    looked &= known
    label, label_counts, _ = _rows(target, "labels", (), batch)
    if not np.array_equal(counts, label_counts):
        raise ValueError(f"labels must be one for each of {counts.tolist()} {name}, got {label_counts.tolist()}.")
    image = np.arange(batch).repeat(counts)
    place = np.arange(len(image)) - (counts.cumsum() - counts)[image]
    padded = not isinstance(target[name], (list, tuple))
    keep = looked[image] & (label != -1) if padded else looked[image]

    sides = None
    if target.get("tight_sides") is not None:
        sides = torch.from_numpy(_sides(target, counts, 2 * ndim).astype(bool)[keep]).to(device)
    rows, label, image, place = rows[keep], label[keep], image[keep], place[keep]
    _check_labels(label, image, place, channels, padded)
    _check_rows(name, rows, image, place, ndim)
    found = torch.from_numpy(rows).to(device)
    return BoxTarget(
        found if name == "boxes" else None,
        found if name == "bags" else None,
        torch.from_numpy(image).to(device),
        torch.from_numpy(label.astype(np.int64)).to(device),
        sides,
        torch.from_numpy(looked).to(device),
    )


def axis_aligned(target: BoxTarget) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Boxes (N, 2 * spatial_dims) and their tight sides, for what is laid along the axes only.

    Raises:
        ValueError: for a frame that does not lie along the axes, to the thousandth of a voxel.
    """
    if target.boxes is not None:
        return target.boxes, target.tight_sides
    frames = cast(torch.Tensor, target.frames)
    corner, edges = frames[:, 0], frames[:, 1:]
    axis = edges.abs().argmax(2)  # of the array, for each axis of the original box
    along = edges.gather(2, axis[..., None]).squeeze(2)
    oblique = (edges.abs().sum(2) - along.abs() > WHOLE).any(1)
    oblique |= (axis.sort(1).values != torch.arange(axis.shape[1], device=axis.device)).any(1)
    if oblique.any():
        row = int(oblique.int().argmax())
        image = int(target.image[row])
        raise ValueError(
            f"bags must be boxes along the axes here, moved by flips, transposes, zooms and crops at most, got the "
            f"frame {frames[row].tolist()} for box {int((target.image[:row] == image).sum())} of image {image}."
        )
    end = corner + torch.zeros_like(corner).scatter(1, axis, along)
    sides = target.tight_sides
    if sides is not None:
        low, high = sides.chunk(2, 1)
        low, high = torch.where(along < 0, high, low), torch.where(along < 0, low, high)
        sides = torch.cat([torch.zeros_like(part).scatter(1, axis, part) for part in (low, high)], 1)
    return torch.cat((torch.minimum(corner, end), torch.maximum(corner, end)), 1), sides


def _looked(target: Mapping[str, Any], batch: int, *, default: bool) -> np.ndarray:
    """Which images (B,) have boxes or are known to have none."""
    if target.get("has_boxes") is None:
        return np.full(batch, default)
    looked = _array("has_boxes", target["has_boxes"]).astype(bool)
    if looked.size != batch:
        raise ValueError(f"has_boxes must hold one bool for each of {batch} images, got {looked.shape}.")
    return looked.reshape(batch)


def _rows(
    target: Mapping[str, Any], name: str, shape: tuple[int, ...], batch: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All rows (M, \\*shape) of a part, their number (B,) and whether an image has an entry (B,)."""
    value = target[name]
    if not isinstance(value, (list, tuple)):
        rows = _floats(_array(name, value))
        if rows.ndim != 2 + len(shape) or rows.shape[0] != batch or rows.shape[2:] != shape:
            wanted = ", ".join(map(str, (batch, "N", *shape)))
            raise ValueError(f"{name} must be a list of {batch}, or padded ({wanted}), got {rows.shape}.")
        return rows.reshape(batch * rows.shape[1], *shape), np.full(batch, rows.shape[1]), np.ones(batch, bool)
    if len(value) != batch:
        raise ValueError(f"{name} must have one entry for each of {batch} images, got {len(value)}.")
    known = np.array([entry is not None for entry in value], bool)
    nothing = np.zeros((0, *shape), np.float32)
    parts = [nothing if entry is None else _floats(_array(name, entry)) for entry in value]
    parts = [part if part.size else nothing for part in parts]
    for number, part in enumerate(parts):
        if part.ndim != 1 + len(shape) or part.shape[1:] != shape:
            wanted = ", ".join(("N", *map(str, shape)))
            raise ValueError(f"{name} of image {number} must be ({wanted}), got {part.shape}.")
    return np.concatenate([nothing, *parts]), np.array([len(part) for part in parts], np.int64), known


def _sides(target: Mapping[str, Any], counts: np.ndarray, sides: int) -> np.ndarray:
    """The tight sides (M, sides) of all boxes."""
    value = target["tight_sides"]
    if isinstance(value, (list, tuple)) and len(value) == len(counts):
        value = [np.ones((n, sides)) if v is None else v for v, n in zip(value, counts, strict=True)]
    rows, side_counts, _ = _rows({"tight_sides": value}, "tight_sides", (sides,), len(counts))
    if not np.array_equal(counts, side_counts):
        raise ValueError(
            f"tight_sides must have one row for each of {counts.tolist()} boxes, got {side_counts.tolist()}."
        )
    return rows


def _check_labels(label: np.ndarray, image: np.ndarray, place: np.ndarray, channels: int, padded: bool) -> None:
    """ValueError for the first label that is no class channel."""
    wrong = ~((label >= 0) & (label < channels) & (label == np.floor(label)))  # NaN too
    if wrong.any():
        row = wrong.argmax()
        padding = "-1 for padding" if padded else "padding, label -1, has only the padded form"
        raise ValueError(
            f"labels must be class channels from 0 to {channels - 1} ({padding}), got {label[row]:g} for "
            f"box {place[row]} of image {image[row]}."
        )


def _check_rows(name: str, rows: np.ndarray, image: np.ndarray, place: np.ndarray, ndim: int) -> None:
    """ValueError for the first box, or frame, that is not finite or has no extent."""
    finite = np.isfinite(rows).all(tuple(range(1, rows.ndim)))
    exact = np.where(finite.reshape(-1, *[1] * (rows.ndim - 1)), rows, 0).astype(np.float64)
    if name == "boxes":
        good = finite & (exact[:, :ndim] < exact[:, ndim:]).all(1)
        wanted = "be finite, with every high corner above its low one"
    else:
        edges = exact[:, 1:]
        good = finite & (abs(np.linalg.det(edges)) > _FLAT * np.linalg.norm(edges, axis=2).prod(1))
        wanted = "hold a finite corner and edges that span a box"
    if not good.all():
        row = good.argmin()
        raise ValueError(f"{name} must {wanted}, got {rows[row].tolist()} for box {place[row]} of image {image[row]}.")


def _floats(values: np.ndarray) -> np.ndarray:
    """Float64 as it is, all else as float32."""
    return values.astype(np.float64 if values.dtype == np.float64 else np.float32)


def _array(name: str, value: Any) -> np.ndarray:
    """Real numbers as an array, without gradient."""
    if isinstance(value, torch.Tensor):
        value = as_array(value)
    try:
        value = np.asarray(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"{name} must hold tensors of real numbers, got {type(value).__name__}: {error}") from error
    if value.dtype.kind not in "biuf":
        raise TypeError(f"{name} must hold tensors of real numbers, got {value.dtype}.")
    return value
