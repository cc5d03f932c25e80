# SPDX-License-Identifier: Apache-2.0
"""Draw one synthetic picture of glands in H&E stain, and which gland each pixel belongs to, in 2-D and 3-D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy import ndimage

_HAEMATOXYLIN, _EOSIN = (0.58, 0.71, 0.40), (0.14, 0.85, 0.51)  # absorption of red, green and blue, of length 1
_RADII = (21.0, 46.0)  # of a gland, before it is stretched; all lengths are pixels at scale 1
_THICKNESS = (11.0, 16.0)  # of the epithelium, at least; of round glands half to nine tenths of their half width
_TRIES = 90  # places to try for a gland
_KEPT = 0.6  # share of a gland that its neighbours must leave free


class Stain(NamedTuple):
    """How one slide takes up the stains: absorption (2, 3) at full concentration, and the colour of empty glass (3)."""

    absorption: np.ndarray
    glass: np.ndarray


def draw_stain(generator: np.random.Generator) -> Stain:
    """The stain of one slide: hues, strengths and white balance differ as they do between laboratories."""
    hues = np.array([_HAEMATOXYLIN, _EOSIN]) + generator.normal(0, 0.07, (2, 3))
    strengths = generator.uniform((1.4, 0.6), (2.4, 1.5))[:, None]
    hues = hues.clip(0.02)
    glass = generator.uniform(0.84, 0.99) * (1 + generator.normal(0, 0.035, 3))
    return Stain(hues / np.linalg.norm(hues, axis=1, keepdims=True) * strengths, glass.clip(0.6, 1.0))


def gland_picture(
    generator: np.random.Generator,
    shape: Sequence[int],
    stain: Stain,
    *,
    malignant: bool,
    extent: float,
    scale: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Colours (\\*spatial, 3) uint8 and gland numbers (\\*spatial) uint16 of one picture.

    Args:
        generator: of everything that is drawn.
        shape: of the picture.
        stain: of the slide.
        malignant: irregular glands with crowded nuclei and torn lumens, instead of round ones with goblet cells.
        extent: share of the picture in which glands may lie, 0 to 1; the rest is stroma.
        scale: factor of all lengths.
    """
    shape = tuple(shape)
    mucosa = _mucosa(generator, shape, extent)
    glands = _layout(generator, shape, mucosa, malignant, scale)
    inside = glands > 0
    depth = ndimage.distance_transform_edt(inside) if inside.any() else np.zeros(shape)
    height = np.full(shape, 40.0 * scale) if not inside.any() else ndimage.distance_transform_edt(~inside)
    thickness = scale * generator.uniform(*_THICKNESS, int(glands.max()))
    if not malignant:
        deepest = ndimage.maximum(depth, glands, np.arange(1, len(thickness) + 1))
        thickness = np.maximum(thickness, generator.uniform(0.5, 0.9, len(thickness)) * deepest)
    level = depth / np.concatenate([[1.0], thickness])[glands]  # 0 at the border of a gland, 1 where its lumen begins
    basal = depth / (_THICKNESS[1] * scale)
    stains = np.stack([np.zeros(shape), np.zeros(shape)])
    _paint_stroma(generator, stains, height, scale)
    slope = np.stack(np.gradient(ndimage.gaussian_filter(depth - height, 1.5)))
    _paint_epithelium(generator, stains, level, slope, malignant, scale)
    nuclei = _nuclei(generator, level if malignant else basal, height, slope, mucosa, malignant, scale)
    stains[0] = np.maximum(stains[0], nuclei * (1 + 0.12 * smooth(generator, shape, 1.0 * scale)))
    stains *= 1 + 0.05 * smooth(generator, shape, 30 * scale)
    optical = np.tensordot(stains.clip(0), stain.absorption, axes=(0, 0))  # (*spatial, 3), law of Beer and Lambert
    colours = ndimage.gaussian_filter(stain.glass * np.exp(-optical), (0.6,) * len(shape) + (0,))
    noisy = 255 * colours + generator.normal(0, 3, colours.shape)
    return np.rint(noisy.clip(0, 255)).astype(np.uint8), glands


def smooth(generator: np.random.Generator, shape: Sequence[int], width: float | np.ndarray) -> np.ndarray:
    """Smooth noise of mean 0 and standard deviation 1 that wraps around; ``width``: sigma in pixels, or per axis."""
    spectrum = np.fft.rfftn(generator.normal(size=shape))
    widths = np.broadcast_to(width, len(shape))
    for axis, size in enumerate(shape):
        frequency = np.fft.rfftfreq(size) if axis == len(shape) - 1 else np.fft.fftfreq(size)
        weight = np.exp(-2 * (np.pi * widths[axis] * frequency) ** 2)
        spectrum *= weight.reshape([-1 if other == axis else 1 for other in range(len(shape))])
    field = np.fft.irfftn(spectrum, s=tuple(shape), axes=tuple(range(len(shape))))
    return (field - field.mean()) / (field.std() + 1e-12)


def _mucosa(generator: np.random.Generator, shape: tuple[int, ...], extent: float) -> np.ndarray:
    """Rank 0 to 1 of each pixel, of which those below ``extent`` may hold glands: a front with a wavy border."""
    direction = generator.normal(size=len(shape))
    axes = [np.linspace(-1, 1, size) * weight for size, weight in zip(shape, direction, strict=True)]
    slope = np.sum(np.meshgrid(*axes, indexing="ij"), axis=0) / np.linalg.norm(direction)
    field = slope + 0.2 * smooth(generator, shape, 0.12 * max(shape))
    rank = np.empty(field.size)
    rank[field.ravel().argsort()] = np.linspace(0, 1, field.size)
    return rank.reshape(shape) / max(extent, 1e-6)  # below 1: mucosa


def _layout(
    generator: np.random.Generator, shape: tuple[int, ...], mucosa: np.ndarray, malignant: bool, scale: float
) -> np.ndarray:
    """Numbers of the glands, which keep a little stroma between each other and may be cut by the border."""
    glands, taken, number = np.zeros(shape, np.uint16), np.zeros(shape, bool), 0
    waves = 0.65 * smooth(generator, shape, 16 * scale) + 0.35 * smooth(generator, shape, 6 * scale)
    roughness = 0.26 if malignant else 0.07
    gap = max(1, round(scale * generator.uniform(3, 8)))
    stretch = generator.uniform(1.0, 1.4)  # cut along or across the crypts, in the whole picture
    for _ in range(_TRIES):
        centre = np.array([generator.uniform(-0.02, 1.02) * size for size in shape])
        radius = scale * np.exp(generator.uniform(*np.log(_RADII)))
        radii = radius * generator.uniform(0.75, 1.1, len(shape)) * np.where(np.arange(len(shape)) == 0, stretch, 1)
        turn = np.linalg.qr(generator.normal(size=(len(shape),) * 2))[0]
        place = tuple(int(min(max(c, 0), s - 1)) for c, s in zip(centre, shape, strict=True))
        if mucosa[place] >= 1 or taken[place]:
            continue
        reach = 1.6 * radii.max()
        window = tuple(
            slice(max(int(c - reach), 0), min(int(c + reach) + 1, s)) for c, s in zip(centre, shape, strict=True)
        )
        grid = np.stack(np.meshgrid(*(np.arange(w.start, w.stop) for w in window), indexing="ij"), -1) - centre
        whole = 1 - np.linalg.norm(grid @ turn / radii, axis=-1) + roughness * waves[window] > 0
        free = _largest(ndimage.binary_opening(whole & ~taken[window], iterations=2))
        if free.sum() < max(_KEPT * whole.sum(), (10 * scale) ** len(shape)):
            continue
        number += 1
        free = ndimage.binary_fill_holes(free) & ~taken[window]
        glands[window][free] = number
        taken[window] |= ndimage.binary_dilation(free, iterations=gap)
    return glands


def _largest(mask: np.ndarray) -> np.ndarray:
    parts, _ = ndimage.label(mask)
    sizes = np.bincount(parts.ravel())
    sizes[0] = 0
    return (parts == sizes.argmax()) & mask


def _paint_stroma(generator: np.random.Generator, stains: np.ndarray, height: np.ndarray, scale: float) -> None:
    """Fibres around the glands, clefts beside them, and tears."""
    shape = height.shape
    bend = smooth(generator, shape, 18 * scale)
    phase = height / (1.6 * scale) + 9 * bend + 0.6 * smooth(generator, shape, 2 * scale)
    fibres = np.sin(phase) * (0.6 + 0.4 * np.tanh(smooth(generator, shape, 10 * scale)))
    stains[0] = 0.13 + 0.03 * fibres + 0.02 * smooth(generator, shape, 2 * scale)
    stains[1] = 0.42 + 0.11 * fibres + 0.07 * smooth(generator, shape, 3 * scale)
    loose = smooth(generator, shape, 9 * scale) + 0.6 * smooth(generator, shape, 3 * scale)
    tear = _step(loose - 1.7, 0.25)
    cleft = _step(bend - 0.9, 0.3) * _step(3.5 * scale - np.abs(height - 2.5 * scale), 1.0)
    blood = _step(smooth(generator, shape, 5 * scale) - 2.3, 0.2)
    stains *= 1 - 0.85 * np.maximum(tear, cleft)
    stains[1] += 0.7 * blood


def _paint_epithelium(
    generator: np.random.Generator,
    stains: np.ndarray,
    level: np.ndarray,
    slope: np.ndarray,
    malignant: bool,
    scale: float,
) -> None:
    """Cytoplasm, goblet cells and the lumen with what floats in it."""
    shape, inside = level.shape, level > 0
    grain = smooth(generator, shape, 1.5 * scale)
    wave = smooth(generator, shape, 7 * scale)
    apical = 0.0 if malignant else _step(level - 0.4, 0.12)
    cytoplasm = np.stack([0.36 - 0.12 * apical + 0.04 * grain, 0.34 - 0.12 * apical + 0.04 * grain])
    if not malignant:
        points = _scatter(generator, shape, 8.0 * scale)
        points = points[(_at(level, points) > 0.42) & (generator.random(len(points)) < 0.85)]
        upright = _unit(np.stack([_at(part, points) for part in slope], -1))
        radii = scale * generator.uniform(3.0, 4.4, len(points))
        bubbles = _stamped(shape, points, 1.4 * radii, radii, upright, generator.uniform(0.5, 0.9, len(points)))
        cytoplasm *= 1 - bubbles
    opening = level - 1 - (0.22 if malignant else 0.1) * wave
    holes = _step(smooth(generator, shape, 5 * scale) - 1.3, 0.15) * _step(level - 0.8, 0.1) if malignant else 0.0
    lumen = np.maximum(_step(opening, 0.05), holes)
    debris = _step(smooth(generator, shape, 4 * scale) + 0.5 * grain - (0.9 if malignant else 1.5), 0.4)
    filling = np.stack([0.03 + (0.3 if malignant else 0.06) * debris, 0.04 + 0.28 * debris])
    stains[:, inside] = (cytoplasm * (1 - lumen) + filling * lumen)[:, inside]


def _nuclei(
    generator: np.random.Generator,
    level: np.ndarray,
    height: np.ndarray,
    slope: np.ndarray,
    mucosa: np.ndarray,
    malignant: bool,
    scale: float,
) -> np.ndarray:
    """Concentration of haematoxylin in nuclei: at the base of the epithelium, and spindles and round ones outside."""
    shape = level.shape
    points = _scatter(generator, shape, 4.6 * scale)
    place, luck = _at(level, points), generator.random(len(points))
    low, high, share = (0.08, 0.8, 0.72) if malignant else (0.08, 0.42, 0.95)
    epithelial = points[(place > low) & (place < high) & (luck < share)]
    upright = _unit(np.stack([_at(part, epithelial) for part in slope], -1))
    size = scale * generator.normal(1, 0.22 if malignant else 0.1, len(epithelial)).clip(0.6, 1.6)
    dark = generator.normal(0.72 if malignant else 0.8, 0.12, len(epithelial)).clip(0.45, 1.1)
    length, width = (4.6, 2.7) if malignant else (4.2, 2.2)
    drawn = _stamped(shape, epithelial, length * size, width * size, upright, dark)

    points = _scatter(generator, shape, 6.2 * scale)
    crowd = smooth(generator, shape, 20 * scale)
    share = (0.5 + 0.3 * np.tanh(_at(crowd, points))) * np.where(_at(mucosa, points) < 1, 1.0, 0.5)
    away = points[(_at(height, points) > 3 * scale) & (generator.random(len(points)) < share)]
    flat = np.stack([_at(part, away) for part in slope], -1)
    turn = generator.normal(size=flat.shape)
    flat = _unit(turn - (turn * _unit(flat)).sum(1, keepdims=True) * _unit(flat))
    spindle = generator.random(len(away)) < 0.55
    size = scale * generator.uniform(0.8, 1.2, len(away))
    long, short = np.where(spindle, 5.0, 2.9) * size, np.where(spindle, 1.6, 2.6) * size
    dark = generator.normal(0.85, 0.12, len(away)).clip(0.5, 1.2)
    return np.maximum(drawn, _stamped(shape, away, long, short, flat, dark))


def _scatter(generator: np.random.Generator, shape: tuple[int, ...], spacing: float) -> np.ndarray:
    """Points (N, D) that are random, yet keep some distance: a grid, shaken."""
    axes = [np.arange(spacing / 2, size, spacing) for size in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(shape))
    points = points + generator.uniform(-0.4, 0.4, points.shape) * spacing
    return points.clip(0, np.array(shape) - 1)


def _at(field: np.ndarray, points: np.ndarray) -> np.ndarray:
    return field[tuple(np.rint(points).astype(int).T)]


def _unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / (np.linalg.norm(vectors, axis=-1, keepdims=True) + 1e-9)


def _step(values: np.ndarray, width: float) -> np.ndarray:
    """0 to 1 around 0, over about twice the width."""
    return (0.5 + 0.5 * values / width).clip(0, 1)


def _stamped(
    shape: tuple[int, ...],
    points: np.ndarray,
    long: np.ndarray,
    short: np.ndarray,
    direction: np.ndarray,
    value: np.ndarray,
) -> np.ndarray:
    """The largest of N soft ellipsoids of revolution at each pixel."""
    drawn = np.zeros(shape)
    if not len(points):
        return drawn
    reach = int(np.ceil(max(long.max(), short.max()))) + 1
    offsets = np.stack(np.meshgrid(*[np.arange(-reach, reach + 1)] * len(shape), indexing="ij"), -1)
    corners = np.rint(points).astype(int)[:, None] + offsets.reshape(1, -1, len(shape))  # (N, M, D)
    away = corners - points[:, None]
    along = np.einsum("nmd,nd->nm", away, direction)
    across = (away**2).sum(-1) - along**2
    form = (2.2 * (1 - (along / long[:, None]) ** 2 - across / short[:, None] ** 2)).clip(0, 1) * value[:, None]
    seen = (form > 0) & ((corners >= 0) & (corners < np.array(shape))).all(-1)
    np.maximum.at(drawn, tuple(corners[seen].T), form[seen])
    return drawn
