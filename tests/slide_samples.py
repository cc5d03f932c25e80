# SPDX-License-Identifier: Apache-2.0
"""Small whole slides: pyramids of TIFF tiles, and the like of an Aperio SVS."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tifffile

GLASS = 243


def tissue_picture(width: int, height: int, seed: int = 0) -> np.ndarray:
    """(width, height, 3), x first: a block of stained noise on white glass.

    It lies off the middle along x and has a pale corner, left and above, so that no flip looks alike.
    """
    generator = np.random.default_rng(seed)
    picture = np.full((width, height, 3), GLASS, np.uint8)
    block = (slice(width // 8, width // 2), slice(height // 4, height // 4 + height // 2))
    size = picture[block].shape[:2]
    picture[block] = np.array([180, 80, 150]) + generator.integers(-30, 30, (*size, 3))
    picture[block][: size[0] // 3, : size[1] // 3] = (220, 165, 200)
    return picture


def write_slide(
    path: Path,
    picture: np.ndarray,
    *,
    mpp: float | None = 0.5,
    levels: int = 3,
    step: int = 4,
    sub_files: bool = True,
    tile: int = 32,
    compression: str | None = "zlib",
) -> Path:
    """Write ``picture`` (x first, (w, h) or (w, h, C)) and levels of every ``step``-th voxel as a tiled pyramid."""
    path.parent.mkdir(parents=True, exist_ok=True)
    stored = np.ascontiguousarray(picture.swapaxes(0, 1))
    kind = "rgb" if stored.ndim == 3 and stored.shape[-1] >= 3 else "minisblack"
    common = {"tile": (tile, tile), "photometric": kind, "compression": compression, "metadata": None}
    with tifffile.TiffWriter(path) as tif:
        for level in range(levels):
            ratio = step**level
            options = dict(common)
            if mpp is not None:
                options |= {"resolution": (1e4 / mpp / ratio,) * 2, "resolutionunit": "CENTIMETER"}
            if sub_files and level == 0:
                options["subifds"] = levels - 1
            elif level:
                options["subfiletype"] = 1
            tif.write(np.ascontiguousarray(stored[::ratio, ::ratio]), **options)
    return path


def write_svs(path: Path, picture: np.ndarray, *, mpp: float = 0.5) -> Path:
    """A file as Aperio writes it: the slide, a preview, a coarser level, a label."""
    stored = np.ascontiguousarray(picture.swapaxes(0, 1))
    told = f"Aperio Image Library v1\r\n{picture.shape[0]}x{picture.shape[1]} |AppMag = 20|MPP = {mpp}"
    common = {"photometric": "rgb", "metadata": None, "compression": "zlib"}
    with tifffile.TiffWriter(path) as tif:
        tif.write(stored, tile=(32, 32), description=told, **common)
        tif.write(np.ascontiguousarray(stored[::8, ::8]), description=told, rowsperstrip=16, **common)
        tif.write(np.ascontiguousarray(stored[::4, ::4]), tile=(32, 32), description=told, **common)
        label = "Aperio Image Library\r\nlabel 20x20"
        tif.write(np.zeros((20, 20, 3), np.uint8), subfiletype=1, description=label, rowsperstrip=16, **common)
    return path
