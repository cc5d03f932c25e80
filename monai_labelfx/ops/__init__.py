# SPDX-License-Identifier: Apache-2.0
"""Pure n-dimensional tensor functions, on any device, without MONAI objects."""

from __future__ import annotations

from monai_labelfx.ops.border_classes import border_classes
from monai_labelfx.ops.instances import decode_instances

__all__ = [
    "border_classes",
    "decode_instances",
]
