# SPDX-License-Identifier: Apache-2.0
"""Networks for any number of spatial dimensions, from MONAI's layer factories."""

from __future__ import annotations

from monai_labelfx.networks.blur_pool import MaxBlurPool
from monai_labelfx.networks.denoise_then_segment import DenoiseThenSegment
from monai_labelfx.networks.denoiseg_unet import DenoiSegUNet
from monai_labelfx.networks.enet import ENet
from monai_labelfx.networks.residual_unet import ResidualUNet

__all__ = ["DenoiSegUNet", "DenoiseThenSegment", "ENet", "MaxBlurPool", "ResidualUNet"]
