# SPDX-License-Identifier: Apache-2.0
"""Array transforms and their dictionary twins."""

from __future__ import annotations

from monai_labelfx.transforms.apply_correction import ApplyCorrectiond
from monai_labelfx.transforms.attach_boxes import AttachBoxesd
from monai_labelfx.transforms.attach_instances import AttachInstancesd
from monai_labelfx.transforms.border_classes_to_instances import BorderClassesToInstances, BorderClassesToInstancesd
from monai_labelfx.transforms.boxes_to_bags import BoxesToBags, BoxesToBagsd
from monai_labelfx.transforms.boxes_to_original import BoxesToOriginald
from monai_labelfx.transforms.check_hounsfield import CheckHounsfield, CheckHounsfieldd
from monai_labelfx.transforms.colours_to_classes import ColoursToClasses, ColoursToClassesd
from monai_labelfx.transforms.fill_boxes import FillBoxes, FillBoxesd
from monai_labelfx.transforms.fill_missing_label import FillMissingLabeld
from monai_labelfx.transforms.grid_patch_labels import GridPatchLabels, GridPatchLabelsd
from monai_labelfx.transforms.grid_patch_samples import GridPatchSamplesd, RandGridPatchSamplesd
from monai_labelfx.transforms.high_pass_split import HighPassSplit, HighPassSplitd
from monai_labelfx.transforms.instances_to_border_classes import InstancesToBorderClasses, InstancesToBorderClassesd
from monai_labelfx.transforms.instances_to_masks import InstancesToMasks, InstancesToMasksd
from monai_labelfx.transforms.labels_to_tight_boxes import LabelsToTightBoxes, LabelsToTightBoxesd
from monai_labelfx.transforms.pack_boxes import PackBoxesd
from monai_labelfx.transforms.patch_pseudo_label import PatchPseudoLabel, PatchPseudoLabeld
from monai_labelfx.transforms.patch_table import read_patch_table, write_patch_table
from monai_labelfx.transforms.place_boxes_on_image import PlaceBoxesOnImage, PlaceBoxesOnImaged
from monai_labelfx.transforms.place_on_grid import PlaceOnGridd
from monai_labelfx.transforms.rand_blind_spot_mask import RandBlindSpotMask, RandBlindSpotMaskd
from monai_labelfx.transforms.rand_crop_by_box import RandCropByBoxd
from monai_labelfx.transforms.rand_slice_patch import RandSlicePatch, RandSlicePatchd
from monai_labelfx.transforms.rand_stain_jitter import RandStainJitter, RandStainJitterd
from monai_labelfx.transforms.read_patch_labels import ReadPatchLabelsd
from monai_labelfx.transforms.refine_pseudo_label import RefinePseudoLabel, RefinePseudoLabeld
from monai_labelfx.transforms.replace_padding import ReplacePadding, ReplacePaddingd
from monai_labelfx.transforms.restore_intensity import RestoreIntensity, RestoreIntensityd
from monai_labelfx.transforms.sanitize_meta import SanitizeMeta, SanitizeMetad
from monai_labelfx.transforms.seeded_gaussian_noise import SeededGaussianNoise, SeededGaussianNoised
from monai_labelfx.transforms.simulate_low_dose import SimulateLowDose, SimulateLowDosed
from monai_labelfx.transforms.split_denoiseg import SplitDenoiSeg, SplitDenoiSegd
from monai_labelfx.transforms.standardize_intensity import StandardizeIntensity, StandardizeIntensityd
from monai_labelfx.transforms.threshold_classes import ThresholdClasses, ThresholdClassesd
from monai_labelfx.transforms.to_channels import ToChannels, ToChannelsd
from monai_labelfx.transforms.to_single_channel import ToSingleChannel, ToSingleChanneld

__all__ = [
    "ApplyCorrectiond",
    "AttachBoxesd",
    "AttachInstancesd",
    "BorderClassesToInstances",
    "BorderClassesToInstancesd",
    "BoxesToBags",
    "BoxesToBagsd",
    "BoxesToOriginald",
    "CheckHounsfield",
    "CheckHounsfieldd",
    "ColoursToClasses",
    "ColoursToClassesd",
    "FillBoxes",
    "FillBoxesd",
    "FillMissingLabeld",
    "GridPatchLabels",
    "GridPatchLabelsd",
    "GridPatchSamplesd",
    "HighPassSplit",
    "HighPassSplitd",
    "InstancesToBorderClasses",
    "InstancesToBorderClassesd",
    "InstancesToMasks",
    "InstancesToMasksd",
    "LabelsToTightBoxes",
    "LabelsToTightBoxesd",
    "PackBoxesd",
    "PatchPseudoLabel",
    "PatchPseudoLabeld",
    "PlaceBoxesOnImage",
    "PlaceBoxesOnImaged",
    "PlaceOnGridd",
    "RandBlindSpotMask",
    "RandBlindSpotMaskd",
    "RandCropByBoxd",
    "RandGridPatchSamplesd",
    "RandSlicePatch",
    "RandSlicePatchd",
    "RandStainJitter",
    "RandStainJitterd",
    "ReadPatchLabelsd",
    "RefinePseudoLabel",
    "RefinePseudoLabeld",
    "ReplacePadding",
    "ReplacePaddingd",
    "RestoreIntensity",
    "RestoreIntensityd",
    "SanitizeMeta",
    "SanitizeMetad",
    "SeededGaussianNoise",
    "SeededGaussianNoised",
    "SimulateLowDose",
    "SimulateLowDosed",
    "SplitDenoiSeg",
    "SplitDenoiSegd",
    "StandardizeIntensity",
    "StandardizeIntensityd",
    "ThresholdClasses",
    "ThresholdClassesd",
    "ToChannels",
    "ToChannelsd",
    "ToSingleChannel",
    "ToSingleChanneld",
    "read_patch_table",
    "write_patch_table",
]
