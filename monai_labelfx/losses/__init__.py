# SPDX-License-Identifier: Apache-2.0
"""Losses on logits: a function first, a module as its shell."""

from __future__ import annotations

from monai_labelfx.losses.auxiliary_head import AuxiliaryHeadLoss
from monai_labelfx.losses.box_tightness import BoxTightnessLoss, box_tightness_loss
from monai_labelfx.losses.denoiseg import DenoiSegLoss, denoiseg_loss, denoiseg_loss_terms
from monai_labelfx.losses.easy_example import EasyExampleLoss, easy_example_loss, easy_example_weights
from monai_labelfx.losses.gan import GANDiscriminatorLoss, GANGeneratorLoss
from monai_labelfx.losses.global_constraints import GlobalConstraintsLoss, global_constraints_loss
from monai_labelfx.losses.gradient_penalty import GradientPenalty
from monai_labelfx.losses.intensity_affinity import IntensityAffinityLoss, intensity_affinity_loss
from monai_labelfx.losses.joint_total_variation import JointTotalVariationLoss, joint_total_variation_loss
from monai_labelfx.losses.log_barrier import log_barrier_extension
from monai_labelfx.losses.noise2void import Noise2VoidLoss
from monai_labelfx.losses.ohem import OHEMLoss, ohem_loss
from monai_labelfx.losses.pairwise_smoothness import PairwiseSmoothnessLoss, pairwise_smoothness_loss
from monai_labelfx.losses.patch_metric import PatchMetricLoss, PatchPositions, patch_metric_loss

__all__ = [
    "AuxiliaryHeadLoss",
    "BoxTightnessLoss",
    "DenoiSegLoss",
    "EasyExampleLoss",
    "GANDiscriminatorLoss",
    "GANGeneratorLoss",
    "GlobalConstraintsLoss",
    "GradientPenalty",
    "IntensityAffinityLoss",
    "JointTotalVariationLoss",
    "Noise2VoidLoss",
    "OHEMLoss",
    "PairwiseSmoothnessLoss",
    "PatchMetricLoss",
    "PatchPositions",
    "box_tightness_loss",
    "denoiseg_loss",
    "denoiseg_loss_terms",
    "easy_example_loss",
    "easy_example_weights",
    "global_constraints_loss",
    "intensity_affinity_loss",
    "joint_total_variation_loss",
    "log_barrier_extension",
    "ohem_loss",
    "pairwise_smoothness_loss",
    "patch_metric_loss",
]
