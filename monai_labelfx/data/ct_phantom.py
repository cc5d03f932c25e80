# SPDX-License-Identifier: Apache-2.0
"""An analytic CT phantom: a body of soft tissue with round inserts of known HU and known edges."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["ct_phantom"]

AIR = -1000.0
INSERTS = (-1000.0, -95.0, 0.0, 120.0, 955.0)
"""HU of air, polyethylene, water, acrylic and bone in module 1 of the ACR phantom."""

_RING = 0.6  # distance of the inserts from the centre, as a share of the body's semi-axes


def ct_phantom(
    size: int = 256,
    *,
    depth: int | None = None,
    inserts: Sequence[float] = INSERTS,
    body: float = 40.0,
    seed: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    r"""An ellipse of soft tissue in air with disc-shaped inserts on a ring, as in the ACR CT phantom.

    A voxel on an edge is the mean of both sides, weighted by the share :math:`f = clip(1/2 - d, 0, 1)` of the inside,
    with :math:`d` the distance of its centre from the edge in voxels. So the edge response is known: a box one voxel
    wide. Everything else is constant, without noise: noise, bias and edges can be measured against the truth.

    In 3-D the slices change slowly: the semi-axes of the body swing by 8 % over the depth, and the ring of inserts
    turns by 20 degrees and breathes with the body, while the radius of the inserts stays.

    Args:
        size: voxels along x and along y, at least 32. The body covers 0.8 of it.
        depth: slices along z; None for one slice without this axis.
        inserts: HU of the inserts, in equal steps from +x towards +y.
        body: HU of the body, which is not water's, so that a water insert can be seen.
        seed: None for the standard phantom; a number draws shape, turn and radius of the inserts, as for another
            patient.

    Returns:
        The image in HU, float32 (x, y[, z]), and a label map, uint8: 1 to n for the inserts in their order, n + 1 for
        the body, 0 outside; a voxel has the label of what covers its centre. Erode a label by one voxel to leave the
        edges out.

    Raises:
        ValueError: an argument out of range, or so many inserts that they would touch.

    Example:
        >>> image, labels = ct_phantom(128)
        >>> image.shape, [float(np.median(image[labels == label])) for label in (1, 2, 3, 4, 5, 6)]
        ((128, 128), [-1000.0, -95.0, 0.0, 120.0, 955.0, 40.0])
    """
    if size < 32 or (depth is not None and depth < 1):
        raise ValueError(f"the phantom needs a size of at least 32 and a depth of at least 1, got {size} and {depth}")
    if not 1 <= len(inserts) <= 12:
        raise ValueError(f"inserts must be 1 to 12 values in HU, got {len(inserts)}")
    if not np.isfinite([*inserts, body]).all():
        raise ValueError(f"inserts and body must be finite HU, got {tuple(inserts)} and {body}")
    generator = np.random.default_rng(seed)
    draw = (lambda low, high, _: generator.uniform(low, high)) if seed is not None else (lambda _low, _high, mean: mean)
    semi = size * 0.4 * np.array([1.0, draw(0.75, 0.95, 0.85)])
    tilt, phase = draw(-0.3, 0.3, 0.0), draw(0, 2 * np.pi, 0.0)
    radius = size * min(0.05, 0.085 * 5 / len(inserts)) * draw(0.8, 1.2, 1.0)

    x, y = (np.arange(size)[:, None, None] - size // 2, np.arange(size)[:, None] - size // 2)
    z = (np.arange(depth or 1) + 0.5) / (depth or 1) - 0.5
    swing = 0.08 * np.sin(2 * np.pi * z) if depth else 0 * z
    along = [semi[0] * (1 + swing), semi[1] * (1 - swing)]
    u, v = np.cos(tilt) * x + np.sin(tilt) * y, np.cos(tilt) * y - np.sin(tilt) * x
    image = np.full((size, size, len(z)), AIR)
    labels = np.zeros(image.shape, np.uint8)
    _fill(image, labels, _ellipse_distance(u, v, along), body, len(inserts) + 1)
    for number, value in enumerate(inserts):
        turn = phase + 2 * np.pi * number / len(inserts) + (np.deg2rad(20) * z if depth else 0 * z)
        centre = _RING * along[0] * np.cos(turn), _RING * along[1] * np.sin(turn)
        _fill(image, labels, np.hypot(u - centre[0], v - centre[1]) - radius, value, number + 1)
    image = image.astype(np.float32)
    return (image, labels) if depth else (image[..., 0], labels[..., 0])


def _ellipse_distance(u: np.ndarray, v: np.ndarray, semi: Sequence[np.ndarray]) -> np.ndarray:
    """Distance from an ellipse, negative inside; exact to first order at the edge, where alone it matters."""
    level = np.hypot(u / semi[0], v / semi[1])
    slope = np.hypot(u / semi[0] ** 2, v / semi[1] ** 2)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(slope > 0, level * (level - 1) / slope, -np.minimum(*semi))


def _fill(image: np.ndarray, labels: np.ndarray, distance: np.ndarray, value: float, label: int) -> None:
    share = np.clip(0.5 - distance, 0, 1)
    image += share * (value - image)
    labels[distance < 0] = label
