# SPDX-License-Identifier: Apache-2.0
"""Read one picture (PNG, JPEG, BMP) or NumPy array, and refuse what would silently become something else."""

from __future__ import annotations

import os

import numpy as np
from monai.data import NumpyReader, PILReader

from monai_labelfx.data._reading import ImageFileError

_FORMATS = ("PNG", "JPEG", "BMP")
_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I", "I;16", "I;16B", "F")


def read_picture(path: str) -> tuple[np.ndarray, dict]:
    """Array (x, y[, channel]) of the values in the file, of a palette picture the indices, and MONAI's meta."""
    with open(path, "rb") as file:
        head = file.read(26)
    if head.startswith(b"\x89PNG") and len(head) == 26 and head[24] == 16 and head[25] in (2, 4, 6):
        raise ImageFileError(
            f"image file {path!r} is a PNG with 16 bits per colour, of which Pillow would drop 8: convert it to TIFF"
        )
    reader = PILReader(formats=_FORMATS)  # by content: else a stack of another format would give its first page
    with reader.read(path) as picture:
        if picture.mode not in _MODES:
            raise ImageFileError(
                f"image file {path!r} has the colour model {picture.mode}, expected grey, a palette, RGB or RGBA"
            )
        picture.load()
        return reader.get_data(picture)


def read_npy(path: str) -> tuple[np.ndarray, dict]:
    """The array and MONAI's meta; never unpickles, and allocates nothing before the file is known to be long enough."""
    mapped = np.load(path, mmap_mode="r", allow_pickle=False)
    if not isinstance(mapped, np.memmap):
        raise ImageFileError(f"image file {path!r} is an archive of arrays (.npz), expected one array (.npy)")
    size = os.path.getsize(path)
    if size > mapped.offset + max(mapped.nbytes, 1):
        raise ImageFileError(
            f"image file {path!r} of {size} bytes holds more than its header announces: {mapped.dtype}, {mapped.shape}"
        )
    return NumpyReader().get_data(np.array(mapped))
