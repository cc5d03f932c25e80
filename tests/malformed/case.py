# SPDX-License-Identifier: Apache-2.0
"""One malformed or unusual input, and what must come of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Case:
    """``write(folder)`` makes the input and returns what a user would hand over; then a sentence or a result.

    ``error`` is a regular expression that the sentence must match. ``result`` is the array in MONAI's order that must
    come back, with its type; ``affine`` (None: not looked at) and ``channel`` (the axis of channels) go with it.
    """

    write: Callable[[Path], Any]
    error: str | None = None
    result: np.ndarray | None = None
    affine: np.ndarray | None = None
    channel: int | None = None


def file(name: str, content: bytes | Callable[[], bytes]) -> Callable[[Path], Path]:
    """A writer of one file with fixed bytes."""

    def write(folder: Path) -> Path:
        (folder / name).write_bytes(content() if callable(content) else content)
        return folder / name

    return write
