# SPDX-License-Identifier: Apache-2.0
"""Rows of boxes, of their labels or of frames, padded to a fixed number."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor


def padded_rows(rows: Any, number: int | None, value: int = 0) -> Any:
    """``rows`` (N, ...) and as many rows of ``value`` as are missing, in the same container and with its meta.

    Args:
        rows: array, tensor or ``MetaTensor``.
        number: of rows wanted. ``None``: as many as there are.
        value: what to pad with. Default 0; -1 for labels.

    Raises:
        ValueError: when there are more rows: to drop some would turn their objects into background.
    """
    if number is None or len(rows) == number:
        return rows
    if len(rows) > number:
        raise ValueError(f"the item has {len(rows)} boxes, more than max_boxes={number}: give a higher max_boxes.")
    shape = (number - len(rows), *rows.shape[1:])
    if isinstance(rows, np.ndarray):
        return np.concatenate([rows, np.full(shape, value, rows.dtype)])
    plain = rows.as_subclass(torch.Tensor)
    result = torch.cat([plain, plain.new_full(shape, value)])
    return MetaTensor(result).copy_meta_from(rows) if isinstance(rows, MetaTensor) else result


def checked_max_boxes(max_boxes: int | None) -> int | None:
    """``max_boxes`` of a constructor."""
    if max_boxes is not None and max_boxes < 1:
        raise ValueError(f"max_boxes must be 1 or above, or None for no padding, got {max_boxes}.")
    return max_boxes
