# SPDX-License-Identifier: Apache-2.0
"""Pure n-dimensional tensor functions, on any device, without MONAI objects."""

from __future__ import annotations

from monai_labelfx.ops.blind_spots import blind_spot_mask
from monai_labelfx.ops.borders import border_classes
from monai_labelfx.ops.instances import decode_instances

__all__ = [
    "blind_spot_mask",
    "border_classes",
    "decode_instances",
]
