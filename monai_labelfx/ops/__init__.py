# SPDX-License-Identifier: Apache-2.0
"""Pure n-dimensional tensor functions, on any device, without MONAI objects."""

from __future__ import annotations

from monai_labelfx.ops.anchor_grid import anchor_grid, anchor_shapes, grid_points
from monai_labelfx.ops.anchor_planning import AnchorPlan, plan_anchors
from monai_labelfx.ops.anchor_sampling import balanced_sample, hard_negative_sample, hard_negatives
from monai_labelfx.ops.blend import blend
from monai_labelfx.ops.blind_spots import blind_spot_mask
from monai_labelfx.ops.borders import border_classes
from monai_labelfx.ops.box_affine import (
    boxes_through_affine,
    boxes_to_voxels,
    boxes_to_world,
    clip_boxes,
    masks_to_boxes,
)
from monai_labelfx.ops.box_bags import BagLogits, box_bag_logits
from monai_labelfx.ops.box_clustering import box_clusters, weighted_box_clustering
from monai_labelfx.ops.box_coding import boxes_to_deltas, boxes_to_distances, deltas_to_boxes, distances_to_boxes
from monai_labelfx.ops.box_frames import boxes_to_frames, frame_voxels, frames_to_mask
from monai_labelfx.ops.box_matching import atss_matches, iou_matches
from monai_labelfx.ops.box_overlap import box_overlap, box_volume, paired_box_overlap
from monai_labelfx.ops.components import component_boxes, largest_components, small_components
from monai_labelfx.ops.crossing_lines import CrossingLines, box_crossing_lines, box_crossing_planes, box_voxels
from monai_labelfx.ops.dense_field import FIELD_METHODS, refine_by_field
from monai_labelfx.ops.instances import decode_instances
from monai_labelfx.ops.label_objects import label_objects
from monai_labelfx.ops.matrix_nms import mask_iou, matrix_nms
from monai_labelfx.ops.mean_field import windowed_mean_field
from monai_labelfx.ops.nms import greedy_nms
from monai_labelfx.ops.paste_masks import crop_masks, paste_masks
from monai_labelfx.ops.patch_grid import patch_coverage, patch_grid, patch_sums
from monai_labelfx.ops.patch_label_statistics import patch_label_statistics
from monai_labelfx.ops.patch_positions import patch_positions
from monai_labelfx.ops.roi_align import roi_align
from monai_labelfx.ops.run_length import decode_run_lengths, encode_run_lengths
from monai_labelfx.ops.smooth_maxima import (
    add_smooth_max_terms,
    alpha_for_target,
    smooth_max,
    smooth_max_from_terms,
    smooth_max_terms,
)
from monai_labelfx.ops.soft_nms import soft_nms
from monai_labelfx.ops.wavelet import (
    high_pass,
    high_pass_split,
    max_wavelet_level,
    physical_wavelet_level,
    project_correction,
)

__all__ = [
    "FIELD_METHODS",
    "AnchorPlan",
    "BagLogits",
    "CrossingLines",
    "add_smooth_max_terms",
    "alpha_for_target",
    "anchor_grid",
    "anchor_shapes",
    "atss_matches",
    "balanced_sample",
    "blend",
    "blind_spot_mask",
    "border_classes",
    "box_bag_logits",
    "box_clusters",
    "box_crossing_lines",
    "box_crossing_planes",
    "box_overlap",
    "box_volume",
    "box_voxels",
    "boxes_through_affine",
    "boxes_to_deltas",
    "boxes_to_distances",
    "boxes_to_frames",
    "boxes_to_voxels",
    "boxes_to_world",
    "clip_boxes",
    "component_boxes",
    "crop_masks",
    "decode_instances",
    "decode_run_lengths",
    "deltas_to_boxes",
    "distances_to_boxes",
    "encode_run_lengths",
    "frame_voxels",
    "frames_to_mask",
    "greedy_nms",
    "grid_points",
    "hard_negative_sample",
    "hard_negatives",
    "high_pass",
    "high_pass_split",
    "iou_matches",
    "label_objects",
    "largest_components",
    "mask_iou",
    "masks_to_boxes",
    "matrix_nms",
    "max_wavelet_level",
    "paired_box_overlap",
    "paste_masks",
    "patch_coverage",
    "patch_grid",
    "patch_label_statistics",
    "patch_positions",
    "patch_sums",
    "physical_wavelet_level",
    "plan_anchors",
    "project_correction",
    "refine_by_field",
    "roi_align",
    "small_components",
    "smooth_max",
    "smooth_max_from_terms",
    "smooth_max_terms",
    "soft_nms",
    "weighted_box_clustering",
    "windowed_mean_field",
]
