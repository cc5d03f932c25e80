# SPDX-License-Identifier: Apache-2.0
"""From the headers of image planes to one regular grid, or to a sentence with everything that is wrong."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from monai_labelfx.data._dicom_frames import Frame, phase_names
from monai_labelfx.data._reading import ImageFileError

_COSINE = 1e-4  # orientations differ above this: 0.05 mm at the far edge of a large picture
_UNIT = 1e-3  # cosines written with three decimals are still unit and orthogonal
_SIZE = 1e-4  # relative difference of pixel sizes: 0.05 pixel at the far edge of a large picture
_SAME = 1e-2  # of a pixel: slices nearer than this lie in one place
_PLACE = 2e-2  # of the distance of slices: how far from where the affine says a slice may lie
_FAR = 1e6  # mm: no image lies or reaches so far
_LISTED = 4  # of a kind, in a message
_ADVICE = " (on_irregular='resample' interpolates to a regular grid, 'warn' keeps the slices as they are)"
_CROSS_SECTIONS = tuple(  # SOP classes whose images always have a place: CT, MR and PET, plain, enhanced, converted
    f"1.2.840.10008.5.1.4.1.1.{end}" for end in "2 2.1 2.2 4 4.1 4.3 4.4 128 128.1 130".split()
)


@dataclass(frozen=True, slots=True)
class Arrangement:
    """Image planes in order, and how they fill a regular grid.

    ``grid`` has for each slice of the array the frame that it comes from and the weight of the (kept) frame before it:
    above 0 where the slice lies between the two. ``repeated`` are frames in the place of the one before them; the
    caller must refuse them when their pixels differ.
    """

    frames: list[Frame]  # ascending along the slice normal
    affine: np.ndarray  # 4 x 4, voxel (x, y, z) of the array to LPS in mm
    grid: list[tuple[int, float]]
    repeated: frozenset[int]
    faults: list[str]  # what "warn" or "resample" tolerated


def arrange(frames: Sequence[Frame], *, on_irregular: str = "error") -> Arrangement:
    """Sort image planes by position, check them, and give the affine of the array.

    Raises:
        ImageFileError: planes that do not make one image; with "error" also those that make no regular one.
    """
    lost = _unplaced(frames)
    always = _unlike(frames)
    if lost or len(frames) == 1:
        refuse(frames, lost + always)
        return Arrangement([*frames], _plane(frames[0]), [(0, 0.0)], frozenset(), [])

    normal = np.cross(*np.median([frame.orientation for frame in frames], axis=0).reshape(2, 3))
    normal /= np.linalg.norm(normal)
    place = np.array([frame.position for frame in frames], dtype=float)
    height = place @ normal
    order = sorted(range(len(frames)), key=lambda i: (height[i], frames[i].path, frames[i].index or 0))
    frames, place, height = [frames[i] for i in order], place[order], height[order]
    pixel = min(min(frame.spacing) for frame in frames if frame.spacing)
    new = np.concatenate([[True], np.diff(height) > _SAME * pixel])
    kept = np.flatnonzero(new)
    step = _step(height[kept])

    faults = _repeats(frames, height, new) + _gaps(height[kept], step)
    slid = _slid(place[kept], height[kept], step)
    (always if on_irregular == "resample" else faults).extend(slid)  # no interpolation along the normal mends it
    grid = [(index, 0.0) for index in range(len(frames))]
    affine = _plane(frames[0])
    if len(kept) > 1:
        affine[:3, 2] = (place[-1] - place[0]) / (len(frames) - 1)
    if on_irregular == "resample" and faults:
        grid = _regrid(height[kept], kept, step)
        if not grid:
            always.append("more slices are missing than are there")
        if len(kept) > 1:
            affine[:3, 2] = (place[-1] - place[0]) * (step / (height[-1] - height[0]))
    if always or on_irregular == "error":
        refuse(frames, always + faults, "" if always else _ADVICE)
    return Arrangement(frames, affine, grid, frozenset(np.flatnonzero(~new).tolist()), faults)


def refuse(frames: Sequence[Frame], faults: list[str], advice: str = "") -> None:
    """Raise one sentence about the files of ``frames`` if there are faults."""
    if faults:
        raise ImageFileError(f"{name_of(frames)} is no regular image: {'; '.join(faults)}{advice}")


def name_of(frames: Sequence[Frame]) -> str:
    """The file or the folder of the frames, for messages."""
    paths = sorted({frame.path for frame in frames})
    return f"DICOM file {paths[0]!r}" if len(paths) == 1 else f"DICOM series in {os.path.commonpath(paths)!r}"


def _unplaced(frames: Sequence[Frame]) -> list[str]:
    """Why the planes cannot be put in order: geometry that is missing, impossible, or turned."""
    total = len(frames)
    projection = all(frame.position is None and frame.orientation is None for frame in frames)
    if projection and total > 1:
        kind = "images" if frames[0].index is None else "frames"
        return [
            f"its {total} {kind} have no ImagePositionPatient and ImageOrientationPatient (a film, several projections "
            "or lost geometry), so they make no volume: hand over one still image"
        ]
    if projection and frames[0].sop_class_uid not in _CROSS_SECTIONS:
        return _impossible(frames)
    faults = []
    fields = {"ImagePositionPatient": "position", "ImageOrientationPatient": "orientation", "PixelSpacing": "spacing"}
    for keyword, field in fields.items():
        missing = sum(getattr(frame, field) is None for frame in frames)
        if missing:
            faults.append(f"{keyword} is missing in {missing} of {total} slices")
    faults += _impossible(frames)
    orientations = _usable(frame.orientation for frame in frames)
    if orientations and np.ptp(orientations, axis=0).max() > _COSINE:
        faults.append(f"orientations differ (direction cosines): {_counts(orientations)}")
    return faults


def _impossible(frames: Sequence[Frame]) -> list[str]:
    bad: Counter[str] = Counter()
    for frame in frames:
        if frame.position and not _usable([frame.position]):
            bad["ImagePositionPatient is not finite or beyond a kilometre"] += 1
        if not all(1 / _FAR < size < _FAR for size in frame.spacing or ()):
            bad["PixelSpacing is no size above 0"] += 1
        if frame.orientation and not _is_orientation(frame.orientation):
            bad["ImageOrientationPatient is not two perpendicular directions of length 1"] += 1
    return [f"{text} in {count} of {len(frames)} slices" for text, count in bad.items()]


def _is_orientation(cosines: tuple[float, ...]) -> bool:
    axes = np.array(cosines).reshape(2, 3)
    return bool(_usable([cosines])) and float(np.abs(axes @ axes.T - np.eye(2)).max()) <= _UNIT


def _usable(values: Iterable[tuple[float, ...] | None]) -> list[tuple[float, ...]]:
    """Those that are there and of finite, possible numbers."""
    return [value for value in values if value and all(abs(number) < _FAR for number in value)]


def _unlike(frames: Sequence[Frame]) -> list[str]:
    """What must be alike in all planes and is not."""
    faults = []
    sizes = [(frame.columns, frame.rows, frame.samples) for frame in frames]
    if len(set(sizes)) > 1:
        faults.append(f"sizes differ (columns, rows, samples): {_counts(sizes)}")
    spacings = _usable(frame.spacing for frame in frames)
    if spacings and np.ptp(spacings, axis=0).max() > _SIZE * np.min(spacings):
        faults.append(f"PixelSpacing differs (mm between rows, between columns): {_counts(spacings)}")
    if len({frame.frame_of_reference_uid for frame in frames} - {""}) > 1:
        faults.append("FrameOfReferenceUID differs, so positions cannot be compared")
    return faults


def _counts(values: Iterable[Sequence[float]]) -> str:
    """The different values with how often they occur, most frequent first."""
    found = Counter("(" + ", ".join(f"{number + 0.0:.6g}" for number in value) + ")" for value in values)
    ranked = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    more = f" and {len(ranked) - _LISTED} other values" if len(ranked) > _LISTED else ""
    return ", ".join(f"{value} in {count} slices" for value, count in ranked[:_LISTED]) + more


def _plane(frame: Frame) -> np.ndarray:
    """The affine of one slice; where it says nothing: at 0, axes along x and y, 1 mm."""
    axes = np.array(frame.orientation or (1, 0, 0, 0, 1, 0), dtype=float).reshape(2, 3)
    between_rows, between_columns = frame.spacing or (1.0, 1.0)
    affine = np.eye(4)
    affine[:3, 0], affine[:3, 1] = axes[0] * between_columns, axes[1] * between_rows
    affine[:3, 2] = np.cross(*axes) * frame.thickness
    affine[:3, 3] = frame.position or (0, 0, 0)
    return affine


def _step(height: np.ndarray) -> float:
    """The distance of slices: the median, freed of rounding where all gaps are multiples of it; 0 for one slice."""
    gaps = np.diff(height)
    if not len(gaps):
        return 0.0
    step = float(np.median(gaps))
    steps = np.rint(gaps / step)
    fits = (np.abs(gaps / step - steps) < 0.1).all() and (steps > 0).all()
    return float(gaps.sum() / steps.sum()) if fits else step


def _repeats(frames: Sequence[Frame], height: np.ndarray, new: np.ndarray) -> list[str]:
    repeated = np.flatnonzero(~new).tolist()
    if not repeated:
        return []
    names = [
        name
        for column, name in enumerate(phase_names())
        if any(frames[i - 1].temporal[column] != frames[i].temporal[column] for i in repeated)
    ]
    first = height[repeated[0]]
    fault = f"{len(repeated)} of {len(frames)} slices lie where another one does (the first at {first:.6g} mm)"
    if names:
        fault += f", differing in {', '.join(names)}: several volumes (phases, echoes, b-values...) need one read each"
    return [fault]


def _gaps(height: np.ndarray, step: float) -> list[str]:
    """Gaps and uneven distances of slices at different heights."""
    if np.abs(height - np.linspace(height[0], height[-1], len(height))).max() <= _PLACE * step:
        return []
    gaps = np.diff(height)
    wide = np.flatnonzero(gaps >= 1.5 * step)
    faults = []
    for i in wide[:_LISTED]:
        missing = round(gaps[i] / step) - 1
        faults.append(
            f"a gap of {gaps[i]:.4g} mm instead of {step:.4g} mm between slices {i + 1} and {i + 2} of {len(height)} "
            f"(at {height[i]:.6g} and {height[i + 1]:.6g} mm along their normal), where {missing} "
            f"slice{'s seem' if missing > 1 else ' seems'} to be missing"
        )
    if len(wide) > _LISTED:
        faults.append(f"{len(wide) - _LISTED} more gaps")
    rest = np.delete(gaps, wide)
    if not len(wide) or np.ptp(rest) > _PLACE * step:
        faults.append(f"the slices are {rest.min():.4g} to {rest.max():.4g} mm apart, expected equal distances")
    return faults


def _slid(place: np.ndarray, height: np.ndarray, step: float) -> list[str]:
    """Slices beside the straight line from the first to the last; a tilted gantry shifts them along one."""
    if len(height) < 3:
        return []
    part = ((height - height[0]) / (height[-1] - height[0]))[:, None]
    beside = float(np.linalg.norm(place - place[0] - part * (place[-1] - place[0]), axis=1).max())
    if beside <= _PLACE * step:
        return []
    return [f"slices are shifted in their plane by up to {beside:.4g} mm against a straight stack"]


def _regrid(height: np.ndarray, kept: np.ndarray, step: float) -> list[tuple[int, float]]:
    """The ``grid`` of slices at different heights every ``step``; empty when most would be made up."""
    if len(height) == 1:
        return [(int(kept[0]), 0.0)]
    count = (height[-1] - height[0]) / step + _PLACE + 1
    if count >= 2 * len(height) + 1:
        return []
    grid = []
    for wanted in height[0] + step * np.arange(int(count)):
        above = int(np.searchsorted(height[:-1], wanted - _PLACE * step))
        distance = height[above] - wanted
        weight = 0.0 if distance <= _PLACE * step else float(distance / (height[above] - height[above - 1]))
        grid.append((int(kept[above]), weight))
    return grid
