# SPDX-License-Identifier: Apache-2.0
"""Discs of even tissue in a clean CT slice: soft tissue, a cavity and bone, for the HU of regions of interest."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

_SOFT, _CAVITY, _BONE = (0, 100), (-1100, -700), (400, 3000)
_SPREAD = 20.0  # HU: more is an edge or a mixture (bone may have more)
_RADIUS = (3.0, 25.0)  # of a disc in pixels: least and most


def even_classes(hu: np.ndarray) -> np.ndarray:
    """Where a slice (x, y) in HU is soft tissue, cavity within the body, and bone: bool (3, x, y)."""
    smooth = ndimage.median_filter(hu, 5)
    body = ndimage.binary_opening(smooth > -500, iterations=3)
    inside = ndimage.binary_erosion(ndimage.binary_fill_holes(body), iterations=3)
    spread = ndimage.generic_gradient_magnitude(smooth, ndimage.sobel) / 8
    return np.stack(
        [
            inside & (smooth > low) & (smooth < high) & (spread < limit)
            for (low, high), limit in ((_SOFT, _SPREAD), (_CAVITY, 2 * _SPREAD), (_BONE, np.inf))
        ]
    )


def largest_discs(classes: np.ndarray) -> np.ndarray:
    """The largest disc within each class (n, x, y) as label map (x, y) of 1 to n; none where there is no room."""
    labels = np.zeros(classes.shape[1:], np.uint8)
    x, y = np.indices(labels.shape)
    for label, one in enumerate(classes, 1):
        depth = ndimage.distance_transform_edt(np.pad(one, 1))[1:-1, 1:-1]
        radius = min(0.8 * depth.max(), _RADIUS[1])
        if radius >= _RADIUS[0]:
            centre = np.unravel_index(depth.argmax(), depth.shape)
            labels[(x - centre[0]) ** 2 + (y - centre[1]) ** 2 <= radius**2] = label
    return labels
