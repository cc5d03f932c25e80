# SPDX-License-Identifier: Apache-2.0
"""Where a slide holds tissue and where only glass, from a small picture of it."""

from __future__ import annotations

import numpy as np
from scipy import ndimage

from monai_labelfx.data._slide_file import SlideFile

_SMALLEST = 512  # longer side of a level that shows where tissue is
_LARGEST = 2048
_PALE, _COLOURFUL = 0.07, 0.15  # saturation that is glass at most, tissue at least, whatever Otsu says
_BLACK = 0.1  # of white; the saturation of dark noise means nothing


def thumbnail(slide: SlideFile) -> np.ndarray:
    """(W, H, 3) of the coarsest level with 512 voxels along its longer side, reduced to at most 2048."""
    level = max((n for n, shape in enumerate(slide.shapes) if max(shape) >= _SMALLEST), default=0)
    own = slide.shapes[level]
    factor = min(1.0, _LARGEST / max(own))
    shape = (max(1, round(own[0] * factor)), max(1, round(own[1] * factor)))
    return slide.resampled((0, 0), shape, shape, level)


def tissue_mask(slide: SlideFile) -> np.ndarray:
    """(W, H) of the thumbnail: whether a pixel is tissue.

    Tissue is coloured: its saturation is above the threshold of Otsu (1979), which is kept from 0.07 to 0.15 so that
    neither the noise of an empty slide nor a slide full of tissue is cut in two. Black is none: scanners fill gaps with
    it. Specks of one pixel are left out, and holes, such as the lumen of a gland, are filled.
    """
    from skimage.color import rgb2hsv
    from skimage.filters import threshold_otsu

    colours = rgb2hsv(thumbnail(slide))
    saturation, value = colours[..., 1], colours[..., 2]
    seen = value > _BLACK
    saturation = np.where(seen, saturation, 0)
    found = seen & (saturation > np.clip(threshold_otsu(saturation), _PALE, _COLOURFUL))
    if min(found.shape) > 2:
        found = ndimage.median_filter(found, size=3)
    return ndimage.binary_fill_holes(found)
