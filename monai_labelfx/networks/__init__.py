# SPDX-License-Identifier: Apache-2.0
"""Networks for any number of spatial dimensions, from MONAI's layer factories."""

from __future__ import annotations

from monai_labelfx.networks.blur_pool import MaxBlurPool
from monai_labelfx.networks.darknet53_backbone import Darknet53Backbone
from monai_labelfx.networks.denoise_then_segment import DenoiseThenSegment
from monai_labelfx.networks.denoiseg_unet import DenoiSegUNet
from monai_labelfx.networks.enet import ENet
from monai_labelfx.networks.feature_pyramid import FeaturePyramid
from monai_labelfx.networks.residual_unet import ResidualUNet
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.torchvision_weights import inflate_weights, load_torchvision_weights
from monai_labelfx.networks.vgg16_backbone import VGG16Backbone

__all__ = [
    "Darknet53Backbone",
    "DenoiSegUNet",
    "DenoiseThenSegment",
    "ENet",
    "FeaturePyramid",
    "MaxBlurPool",
    "ResNetBackbone",
    "ResidualUNet",
    "VGG16Backbone",
    "inflate_weights",
    "load_torchvision_weights",
]
