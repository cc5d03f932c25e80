# SPDX-License-Identifier: Apache-2.0
"""Pure n-dimensional tensor functions, on any device, without MONAI objects."""

from __future__ import annotations

from monai_labelfx.ops.blind_spots import blind_spot_mask
from monai_labelfx.ops.borders import border_classes
from monai_labelfx.ops.box_bags import BagLogits, box_bag_logits
from monai_labelfx.ops.box_frames import boxes_to_frames, frame_voxels, frames_to_mask
from monai_labelfx.ops.components import component_boxes, small_components
from monai_labelfx.ops.crossing_lines import CrossingLines, box_crossing_lines, box_crossing_planes, box_voxels
from monai_labelfx.ops.dense_field import FIELD_METHODS, refine_by_field
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
    "BagLogits",
    "CrossingLines",
    "FIELD_METHODS",
    "add_smooth_max_terms",
    "alpha_for_target",
    "blind_spot_mask",
    "border_classes",
    "box_bag_logits",
    "box_crossing_lines",
    "box_crossing_planes",
    "box_voxels",
    "boxes_to_frames",
    "component_boxes",
    "decode_instances",
    "frame_voxels",
    "frames_to_mask",
    "refine_by_field",
    "small_components",
    "smooth_max",
    "smooth_max_from_terms",
    "smooth_max_terms",
    "windowed_mean_field",
]
