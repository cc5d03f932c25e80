# SPDX-License-Identifier: Apache-2.0
"""Pure n-dimensional tensor functions, on any device, without MONAI objects."""

from __future__ import annotations

from monai_labelfx.ops.blind_spots import blind_spot_mask
from monai_labelfx.ops.borders import border_classes
from monai_labelfx.ops.components import component_boxes, small_components
from monai_labelfx.ops.crossing_lines import CrossingLines, box_crossing_lines, box_crossing_planes, box_voxels
from monai_labelfx.ops.instances import decode_instances
from monai_labelfx.ops.mean_field import windowed_mean_field
from monai_labelfx.ops.smooth_maxima import (
    add_smooth_max_terms,
    alpha_for_target,
    smooth_max,
    smooth_max_from_terms,
    smooth_max_terms,
)

__all__ = [
    "CrossingLines",
    "add_smooth_max_terms",
    "alpha_for_target",
    "blind_spot_mask",
    "border_classes",
    "box_crossing_lines",
    "box_crossing_planes",
    "box_voxels",
    "component_boxes",
    "decode_instances",
    "small_components",
    "smooth_max",
    "smooth_max_from_terms",
    "smooth_max_terms",
    "windowed_mean_field",
]
