# SPDX-License-Identifier: Apache-2.0
"""Numbers of a run as strict JSON, written whole or not at all."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from monai_labelfx._atomic import replacing


def write_json(path: Path, content: Any) -> None:
    """Write ``content`` as JSON with an indent; whatever JSON does not know becomes its ``str``."""
    text = json.dumps(content, indent=2, default=str, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def plain_numbers(values: Mapping[str, Any]) -> dict[str, float | None]:
    """The single numbers among ``values`` as floats; ``None`` where JSON has no word (NaN, infinity)."""
    numbers = {}
    for name, value in values.items():
        if isinstance(value, torch.Tensor | np.ndarray):
            if math.prod(value.shape) != 1:
                continue
            value = value.item()
        if isinstance(value, int | float | np.number):
            numbers[str(name)] = float(value) if math.isfinite(value) else None
    return numbers
