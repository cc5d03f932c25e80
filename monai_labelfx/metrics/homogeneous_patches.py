# SPDX-License-Identifier: Apache-2.0
"""Mean and noise of homogeneous media, in square patches or circles: Table 2 of the patch-metric paper."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from monai.data import MetaTensor

from monai_labelfx.metrics._hu_classes import smoothed
from monai_labelfx.metrics._hu_slices import hu_slices, is_plane, same_slices

__all__ = ["RegionStatistics", "circle_statistics", "find_homogeneous_patches", "patch_statistics"]


class RegionStatistics(NamedTuple):
    """Mean and standard deviation in HU, and of how many patches (or, of a circle, voxels) they are.

    Example:
        >>> RegionStatistics(mean=35.02, std=289.47, number=300).mean
        35.02
    """

    mean: float
    std: float
    number: int


def find_homogeneous_patches(
    image: Any,
    *,
    low: float,
    high: float,
    size: int = 60,
    count: int = 300,
    stride: int | None = None,
    sigma: float | None = None,
    exclude: Any = None,
) -> np.ndarray:
    """The square patches in the plane of the slices in which a medium is most homogeneous.

    A patch qualifies when the smoothed image lies within [low, high] in all of its voxels. The best are those with the
    smallest standard deviation of the smoothed image. So noise does not choose them, unless it is strong after
    smoothing. Find them in the input of a denoiser, and measure all outputs in the same patches.

    Args:
        image: HU, tensor or array (X, Y), (1, X, Y), (X, Y, Z) or (1, X, Y, Z).
        low: least HU of the medium.
        high: greatest HU of the medium.
        size: side of a patch in voxels. Default 60 (Jung et al., MICCAI 2022).
        count: how many to find at most, over all slices. Default 300 (the paper).
        stride: voxels from one candidate to the next. Default ``None``, a quarter of ``size``.
        sigma: standard deviation of the Gaussian that smooths each slice, in voxels. Default ``None``, an eighth of
            ``size``: white noise of 289 HU then leaves 11 HU.
        exclude: true where voxels are no image, such as padding; no patch has one of them.

    Returns:
        First voxels of the patches, (K, 2) int64 in a slice, (K, 3) in a volume with the number of the slice last; the
        most homogeneous first. K is less than ``count`` where there are not as many, 0 where there is none.

    Raises:
        TypeError: when an image holds no numbers.
        ValueError: for arguments out of their range, shapes that differ, NaN or infinity.

    Notes:
        The paper does not say how it found its patches. These overlap, by three quarters at most: 300 of them are less
        than 300 independent samples.

    Example:
        >>> image = np.full((40, 40), -1000.0)
        >>> image[:, 20:] = 40.0
        >>> find_homogeneous_patches(image, low=0, high=80, size=8, stride=8, count=2).tolist()
        [[0, 24], [0, 32]]
    """
    places, _ = ranked_patches(
        image, low=low, high=high, size=size, count=count, stride=stride, sigma=sigma, exclude=exclude
    )
    return places


def ranked_patches(
    image: Any,
    *,
    low: float,
    high: float,
    size: int = 60,
    count: int = 300,
    stride: int | None = None,
    sigma: float | None = None,
    exclude: Any = None,
) -> tuple[np.ndarray, np.ndarray]:
    """The patches of :py:func:`find_homogeneous_patches`, and the deviations (K,) by which they are ranked.

    Example:
        >>> places, deviations = ranked_patches(np.zeros((9, 9)), low=-1, high=1, size=8)
        >>> places.tolist(), deviations.tolist()
        ([[0, 0]], [0.0])
    """
    stride = max(1, size // 4) if stride is None else stride
    sigma = size / 8 if sigma is None else sigma
    for name, value in (("size", size), ("count", count), ("stride", stride)):
        if value < 1:
            raise ValueError(f"{name} must be a number above 0, got {value}.")
    if not low < high or not 0 < sigma < math.inf:
        raise ValueError(f"expected low < high and sigma above 0, got low={low}, high={high} and sigma={sigma}.")
    slices = hu_slices(image, "image")
    left_out = None if exclude is None else same_slices(slices, exclude, "exclude")
    places = [np.zeros((0, 3), np.int64)]
    deviations = [np.zeros(0)]
    for number in range(len(slices)):
        valid = np.ones(slices.shape[1:], bool) if left_out is None else left_out[number] == 0
        values = np.where(valid, slices[number], 0).astype(np.float32)
        if not np.isfinite(values).all():
            raise ValueError("image holds NaN or infinity, expected finite HU.")
        smooth = smoothed(values[None], valid[None], sigma)[0].astype(np.float64)
        inside = valid & (smooth >= low) & (smooth <= high)
        starts, found = _candidates(smooth - (low + high) / 2, inside, size, stride)
        best = np.argsort(found, kind="stable")[:count]
        places.append(np.pad(starts[best], [(0, 0), (0, 1)], constant_values=number))
        deviations.append(found[best])
    every, found = np.concatenate(places), np.concatenate(deviations)
    best = np.argsort(found, kind="stable")[:count]
    return every[best, : 2 if is_plane(image) else 3], found[best]


def _candidates(values: np.ndarray, inside: np.ndarray, size: int, stride: int) -> tuple[np.ndarray, np.ndarray]:
    """First voxels (K, 2) of the patches on a grid that lie inside, and standard deviations of ``values`` in them."""
    first, second = (np.arange(0, extent - size + 1, stride) for extent in values.shape)
    if not first.size or not second.size:
        return np.zeros((0, 2), np.int64), np.zeros(0)
    kept = np.where(inside, values, 0.0)  # what lies outside would cost digits
    counts, sums, squares = (_box_sums(part, first, second, size) for part in (inside, kept, kept * kept))
    whole = counts == size * size
    means = sums[whole] / size**2
    variances = np.maximum(squares[whole] / size**2 - means**2, 0)
    rows, columns = np.nonzero(whole)
    return np.stack([first[rows], second[columns]], axis=1).astype(np.int64), np.sqrt(variances)


def _box_sums(values: np.ndarray, first: np.ndarray, second: np.ndarray, size: int) -> np.ndarray:
    """Sums over squares that begin at ``first`` x ``second``, from one table of cumulated sums."""
    table = np.pad(values.cumsum(axis=0, dtype=np.float64).cumsum(axis=1), [(1, 0), (1, 0)])
    strips = table[first + size] - table[first]
    return strips[:, second + size] - strips[:, second]


def patch_statistics(image: Any, positions: Any, size: int = 60) -> RegionStatistics:
    """Mean of the patches' means, and mean of their standard deviations (of n, not n - 1).

    Args:
        image: HU, as of :py:func:`find_homogeneous_patches`.
        positions: first voxels of patches as that function gives them, (K, 2) or (K, 3).
        size: side of a patch in voxels. Default 60.

    Returns:
        NaN for both without any patch.

    Raises:
        TypeError: when the image holds no numbers.
        ValueError: for positions of another number of axes than the image, and patches that leave it.

    Example:
        >>> image = np.array([[1.0, 3.0, 5.0, 5.0], [1.0, 3.0, 5.0, 5.0]])
        >>> patch_statistics(image, [[0, 0], [0, 2]], size=2)
        RegionStatistics(mean=3.5, std=0.5, number=2)
    """
    means, deviations = patch_values(image, positions, size)
    if not len(means):
        return RegionStatistics(math.nan, math.nan, 0)
    return RegionStatistics(float(means.mean()), float(deviations.mean()), len(means))


def patch_values(image: Any, positions: Any, size: int = 60) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation of each patch, (K,) and (K,) float64; see :py:func:`patch_statistics`.

    Example:
        >>> patch_values(np.eye(2), [[0, 0]], size=2)[0].tolist()
        [0.5]
    """
    slices, places = hu_slices(image, "image"), np.asarray(positions, dtype=np.int64)
    axes = 2 if is_plane(image) else 3
    if not places.size:
        return np.zeros(0), np.zeros(0)
    if places.ndim != 2 or places.shape[1] != axes:
        raise ValueError(f"positions must have the shape (K, {axes}) for this image, got {places.shape}.")
    room = np.array([extent - size for extent in slices.shape[1:]] + [len(slices) - 1])[:axes]
    if (places < 0).any() or (places > room).any() or size < 1:
        raise ValueError(
            f"a patch of {size} x {size} voxels leaves the image: positions must be at most {tuple(room.tolist())}."
        )
    windows = np.lib.stride_tricks.sliding_window_view(slices, (size, size), axis=(1, 2))
    numbers = places[:, 2] if axes == 3 else np.zeros(len(places), np.int64)
    patches = windows[numbers, places[:, 0], places[:, 1]].astype(np.float64)
    return patches.mean(axis=(1, 2)), patches.std(axis=(1, 2))


def circle_statistics(
    image: Any,
    centre: Sequence[float],
    radius: float,
    *,
    spacing: Sequence[float] | None = None,
    unit: Literal["voxel", "mm"] = "voxel",
) -> RegionStatistics:
    """Mean and standard deviation (of n, not n - 1) in a circle in the plane of a slice.

    Args:
        image: HU, as of :py:func:`find_homogeneous_patches`.
        centre: (x, y), in a volume (x, y, slice); 0 is the centre of the first voxel.
        radius: in mm, or in the unit of ``spacing``. A voxel belongs to the circle when its centre does.
        spacing: voxel size along x and y (and z). Default ``None``: that of a ``MetaTensor``, else 1, so that a plain
            array has its radius in voxels.
        unit: of ``centre``. ``"mm"`` counts from the first voxel along the axes of the array, not in the coordinates
            of the patient. The slice is the nearest one. Default ``"voxel"``.

    Raises:
        TypeError: when the image holds no numbers.
        ValueError: for arguments out of their range, a centre of another number of axes than the image or outside of
            it, and a circle without any voxel.

    Example:
        >>> image = np.zeros((5, 5))
        >>> image[2, 2] = 10.0
        >>> circle_statistics(image, (2, 2), 1.0)
        RegionStatistics(mean=2.0, std=4.0, number=5)
    """
    slices, axes = hu_slices(image, "image"), 2 if is_plane(image) else 3
    if spacing is None:
        spacing = image.pixdim.tolist() if isinstance(image, MetaTensor) else [1.0] * axes
    sizes = [float(size) for size in spacing][:axes]
    if len(sizes) < 2 or not all(0 < size < math.inf for size in sizes) or not 0 < radius < math.inf:
        raise ValueError(f"radius and spacing must be above 0, got {radius} and {list(spacing)}.")
    if unit not in ("voxel", "mm"):
        raise ValueError(f"unit must be 'voxel' or 'mm', got {unit!r}.")
    if len(centre) != axes or (unit == "mm" and len(sizes) < axes):
        raise ValueError(f"centre and spacing must have {axes} numbers for this image, got {list(centre)} and {sizes}.")
    place = [float(c) / (size if unit == "mm" else 1) for c, size in zip(centre, [*sizes, 1.0], strict=False)]
    extents = [*slices.shape[1:], len(slices)][:axes]
    if not all(-0.5 <= c <= extent - 0.5 for c, extent in zip(place, extents, strict=True)):
        raise ValueError(f"centre {list(centre)} ({unit}) lies outside of the image of {tuple(extents)} voxels.")
    plane = slices[min(math.floor(place[2] + 0.5), len(slices) - 1)] if axes == 3 else slices[0]
    x, y = ((np.arange(n) - c) * size for n, c, size in zip(plane.shape, place, sizes, strict=False))
    values = plane[np.square(x)[:, None] + np.square(y) <= radius**2].astype(np.float64)
    if not values.size:
        raise ValueError(f"the circle at {list(centre)} ({unit}) of radius {radius:g} holds no centre of a voxel.")
    return RegionStatistics(float(values.mean()), float(values.std()), values.size)
