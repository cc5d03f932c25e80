# SPDX-License-Identifier: Apache-2.0
"""Random masks of one connected object each, thin curves above all, and their tight boxes."""

from __future__ import annotations

import numpy as np
import torch
from scipy import ndimage


def tight_box(mask: np.ndarray) -> torch.Tensor:
    places = np.argwhere(mask)
    return torch.tensor([[*places.min(0), *(places.max(0) + 1)]])


def random_walk(rng, shape, steps: int, turn: float) -> np.ndarray:
    """A curve one voxel thick that mostly keeps its direction, each step to one of all neighbours."""
    mask, place = np.zeros(shape, bool), np.array([rng.integers(n) for n in shape])
    direction = rng.integers(-1, 2, len(shape))
    for _ in range(steps):
        mask[tuple(place)] = True
        if rng.random() < turn:
            direction = rng.integers(-1, 2, len(shape))
        place = np.clip(place + direction, 0, np.array(shape) - 1)
    return mask


def straight_curve(rng, shape) -> np.ndarray:
    """One voxel thick, all neighbours allowed, between two random voxels."""
    ends = [np.array([rng.integers(n) for n in shape]) for _ in range(2)]
    steps = max(abs(ends[1] - ends[0]).max(), 1)
    mask = np.zeros(shape, bool)
    for step in range(steps + 1):
        mask[tuple(np.rint(ends[0] + (ends[1] - ends[0]) * step / steps).astype(int))] = True
    return mask


def blob(rng, shape) -> np.ndarray:
    """The largest component, corners touching, of thresholded noise."""
    noise = ndimage.gaussian_filter(rng.standard_normal(shape), rng.choice([0.0, 0.7, 1.5]))
    parts, _ = ndimage.label(noise > np.quantile(noise, rng.uniform(0.4, 0.8)), np.ones([3] * len(shape)))
    return parts == 1 + np.bincount(parts.ravel())[1:].argmax()


def objects(seed: int, shape, number: int):
    rng = np.random.default_rng(seed)
    for _ in range(number):
        yield random_walk(rng, shape, int(rng.integers(1, 60)), rng.uniform(0.05, 1))
        yield straight_curve(rng, shape)
        yield blob(rng, shape)
