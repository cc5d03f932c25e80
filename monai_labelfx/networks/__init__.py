# SPDX-License-Identifier: Apache-2.0
"""Networks for any number of spatial dimensions, from MONAI's layer factories."""

from __future__ import annotations

from monai_labelfx.networks.blur_pool import MaxBlurPool
from monai_labelfx.networks.cycle_gan_generator import CycleGANGenerator
from monai_labelfx.networks.darknet53_backbone import Darknet53Backbone
from monai_labelfx.networks.denoise_then_segment import DenoiseThenSegment
from monai_labelfx.networks.denoiseg_unet import DenoiSegUNet
from monai_labelfx.networks.enet import ENet
from monai_labelfx.networks.feature_pyramid import FeaturePyramid
from monai_labelfx.networks.gan_circle_generator import GANCircleGenerator
from monai_labelfx.networks.invertible_generator import InvertibleGenerator
from monai_labelfx.networks.non_local_means import NonLocalMeans
from monai_labelfx.networks.patch_gan_discriminator import PatchGANDiscriminator
from monai_labelfx.networks.patch_projection_heads import PatchProjectionHeads
from monai_labelfx.networks.residual_unet import ResidualUNet
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.rrdb_generator import RRDBGenerator
from monai_labelfx.networks.torchvision_weights import inflate_weights, load_torchvision_weights
from monai_labelfx.networks.vgg16_backbone import VGG16Backbone

__all__ = [
    "CycleGANGenerator",
    "Darknet53Backbone",
    "DenoiSegUNet",
    "DenoiseThenSegment",
    "ENet",
    "FeaturePyramid",
    "GANCircleGenerator",
    "InvertibleGenerator",
    "MaxBlurPool",
    "NonLocalMeans",
    "PatchGANDiscriminator",
    "PatchProjectionHeads",
    "RRDBGenerator",
    "ResNetBackbone",
    "ResidualUNet",
    "VGG16Backbone",
    "inflate_weights",
    "load_torchvision_weights",
]
