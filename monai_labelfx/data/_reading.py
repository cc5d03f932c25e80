# SPDX-License-Identifier: Apache-2.0
"""One clear sentence, with the file name, for whatever a file-format library raises."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


class ImageFileError(ValueError):
    """An image file that cannot be used; the message names the file, what was found and what was expected."""


@contextmanager
def reading(path: str, kind: str) -> Iterator[None]:
    """Turn any error inside the block into an :py:class:`ImageFileError` about ``path`` (``FileNotFoundError`` stays).

    Format libraries raise all sorts of exceptions on corrupt bytes (``struct.error``, ``EOFError``, ``MemoryError``,
    ``IndexError``...), so nothing narrower than ``Exception`` keeps the promise of one sentence.
    """
    if not os.path.exists(path):
        raise FileNotFoundError(f"image file {path!r} does not exist")
    try:
        yield
    except ImageFileError:
        raise
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = lines[0][:200] if lines else type(error).__name__
        raise ImageFileError(
            f"image file {path!r} cannot be read as {kind} (corrupt or incomplete?): {reason}"
        ) from error


def check_size(path: str, kind: str, needed: int, per_byte: float) -> None:
    """Refuse a header that announces more than ``per_byte`` bytes of pixels for each byte of the file.

    Without this a flipped bit in a header allocates gigabytes before the library notices that the data are missing.
    """
    available = os.path.getsize(path)
    if needed > per_byte * available:
        raise ImageFileError(
            f"image file {path!r} cannot be read as {kind}: its header announces {needed} bytes of pixels, "
            f"too many for a file of {available} bytes"
        )
