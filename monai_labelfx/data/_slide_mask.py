# SPDX-License-Identifier: Apache-2.0
"""The label map of a whole slide, collected on disk and written as a tiled TIFF when it is complete."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from monai_labelfx._atomic import replacing

_TILE = 512
_AT_ONCE = 8 * _TILE  # voxels of a row
_SMALLEST = 1024  # longer side of the coarsest level
_CLASSIC = 2**32 - 2**25  # bytes for which a classic TIFF has offsets


class SlideMask:
    """A map (x, y) of class numbers that lies on disk.

    What is collected lies in a file without a name beside the target, so that nothing is left of it, however the
    process ends; only touched parts of it take space. ``save`` writes the target, complete or not at all.

    Args:
        path: the TIFF to write.
        shape: voxels along x and y.
        mpp: um per voxel; None: the file tells none.
    """

    def __init__(self, path: str | os.PathLike, shape: Sequence[int], *, mpp: float | None = None) -> None:
        self.path, self.mpp = Path(path), mpp
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._scratch: Any = tempfile.TemporaryFile(dir=self.path.parent, buffering=0)
        self._shape = (int(shape[1]), int(shape[0]))
        self._scratch.truncate(self._shape[0] * self._shape[1])  # zeros, without writing them

    def write(self, start: Sequence[int], values: np.ndarray) -> None:
        """Put class numbers (w, h) at ``start``."""
        (x, y), width = start, self._shape[1]
        for number, row in enumerate(np.ascontiguousarray(values.T, np.uint8)):
            self._scratch.seek((y + number) * width + x)
            if self._scratch.write(row) != row.size:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))

    def save(self) -> Path:
        """Write the file: tiles, deflate, and levels of every second voxel down to about a thousand; then close."""
        import tifffile

        strides = [1]
        while max(self._shape) > _SMALLEST * strides[-1]:
            strides.append(2 * strides[-1])
        big = self._shape[0] * self._shape[1] * 4 // 3 >= _CLASSIC
        with replacing(self.path) as temporary, tifffile.TiffWriter(temporary, bigtiff=big) as tif:
            for stride in strides:
                options: dict[str, Any] = {"subifds": len(strides) - 1} if stride == 1 else {"subfiletype": 1}
                if self.mpp is not None:
                    options |= {"resolution": (1e4 / self.mpp / stride,) * 2, "resolutionunit": "CENTIMETER"}
                tif.write(
                    self._tiles(stride),
                    shape=tuple(-(-size // stride) for size in self._shape),
                    dtype=np.uint8,
                    tile=(_TILE, _TILE),
                    photometric="minisblack",
                    compression="zlib",
                    metadata=None,
                    **options,
                )
        self.close()
        return self.path

    def close(self) -> None:
        """Drop what was collected."""
        self._scratch.close()

    def _tiles(self, stride: int) -> Iterator[np.ndarray]:
        """Tiles of every ``stride``-th voxel, row by row."""
        height, width = self._shape
        block = np.empty((_TILE, min(_AT_ONCE, -(-width // (_TILE * stride)) * _TILE)), np.uint8)
        for y, x in product(range(0, height, _TILE * stride), range(0, width, _AT_ONCE * stride)):
            count = min(_AT_ONCE * stride, width - x)
            block.fill(0)
            for number, row in enumerate(range(y, min(y + _TILE * stride, height), stride)):
                self._scratch.seek(row * width + x)
                found = np.frombuffer(self._scratch.read(count), np.uint8)[::stride]
                block[number, : len(found)] = found
            for left in range(0, -(-count // stride), _TILE):
                yield block[:, left : left + _TILE].copy()
