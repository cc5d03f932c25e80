# SPDX-License-Identifier: Apache-2.0
"""Networks for any number of spatial dimensions, from MONAI's layer factories."""

from __future__ import annotations

from monai_labelfx.networks.blur_pool import MaxBlurPool
from monai_labelfx.networks.cam_network import CAMNetwork
from monai_labelfx.networks.cycle_gan_generator import CycleGANGenerator
from monai_labelfx.networks.darknet53_backbone import Darknet53Backbone
from monai_labelfx.networks.denoise_then_segment import DenoiseThenSegment
from monai_labelfx.networks.denoiseg_unet import DenoiSegUNet
from monai_labelfx.networks.enet import ENet
from monai_labelfx.networks.feature_pyramid import FeaturePyramid
from monai_labelfx.networks.gan_circle_generator import GANCircleGenerator
from monai_labelfx.networks.invertible_generator import InvertibleGenerator
from monai_labelfx.networks.kiu_net import KiUNet
from monai_labelfx.networks.med_t import MedT
from monai_labelfx.networks.non_local_means import NonLocalMeans
from monai_labelfx.networks.patch_gan_discriminator import PatchGANDiscriminator
from monai_labelfx.networks.patch_projection_heads import PatchProjectionHeads
from monai_labelfx.networks.psp_net import PSPNet
from monai_labelfx.networks.residual_unet import ResidualUNet
from monai_labelfx.networks.resnet38_weights import load_resnet38_weights
from monai_labelfx.networks.resnet_backbone import ResNetBackbone
from monai_labelfx.networks.rrdb_generator import RRDBGenerator
from monai_labelfx.networks.torchvision_weights import inflate_weights, load_torchvision_weights
from monai_labelfx.networks.uc_trans_net import UCTransNet
from monai_labelfx.networks.vgg16_backbone import VGG16Backbone
from monai_labelfx.networks.wide_resnet38_backbone import WideResNet38Backbone

__all__ = [
    "CAMNetwork",
    "CycleGANGenerator",
    "Darknet53Backbone",
    "DenoiSegUNet",
    "DenoiseThenSegment",
    "ENet",
    "FeaturePyramid",
    "GANCircleGenerator",
    "InvertibleGenerator",
    "KiUNet",
    "MaxBlurPool",
    "MedT",
    "NonLocalMeans",
    "PSPNet",
    "PatchGANDiscriminator",
    "PatchProjectionHeads",
    "RRDBGenerator",
    "ResNetBackbone",
    "ResidualUNet",
    "UCTransNet",
    "VGG16Backbone",
    "WideResNet38Backbone",
    "inflate_weights",
    "load_resnet38_weights",
    "load_torchvision_weights",
]
