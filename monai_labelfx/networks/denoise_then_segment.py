# SPDX-License-Identifier: Apache-2.0
"""The rival *Sequential* of DenoiSeg as one network: a trained denoiser, then a segmenter on its output."""

from __future__ import annotations

import torch
from torch import nn

from monai_labelfx.networks.denoiseg_unet import DenoiSegUNet


class DenoiseThenSegment(nn.Module):
    """Denoise with a frozen network, then segment what it made.

    The Sequential baseline of DenoiSeg [1]_ first trains Noise2Void on all images, then the Baseline (alpha = 0) on the
    denoised images. Holding both in one module keeps one checkpoint, one inference and one evaluation for all rivals.

    Args:
        denoiser: network whose first channels are denoised images, followed by ``num_classes`` channels that are
            ignored here; it is frozen and stays in evaluation mode.
        segmenter: network that takes the denoised channels and whose last ``num_classes`` channels are class logits.
        num_classes: number of classes (background, foreground, border).

    Shape:
        - input: (B, C, *spatial).
        - output: (B, C + num_classes, *spatial): the denoised channels first, then the class logits.

    Notes:
        The published study denoised the images once and wrote them; here the denoiser runs in each step, which gives
        the same images. That study standardised the denoised images again; here they keep the scale of the
        standardised noisy ones, so that a tile and the whole image give the same result.

    Example:
        >>> import torch
        >>> from monai_labelfx.networks import DenoiSegUNet, DenoiseThenSegment
        >>> unet = [DenoiSegUNet(2, features=4, depth=1) for _ in range(2)]
        >>> DenoiseThenSegment(*unet)(torch.rand(1, 1, 8, 8)).shape
        torch.Size([1, 4, 8, 8])

    References:
        .. [1] Buchholz et al., "DenoiSeg: Joint Denoising and Segmentation", ECCV workshops 2020, section 3.
    """

    def __init__(self, denoiser: DenoiSegUNet, segmenter: DenoiSegUNet, *, num_classes: int = 3) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False)
        self.segmenter = segmenter
        self.num_classes = num_classes
        self.divisor = segmenter.divisor
        # the denoiser must be right on every voxel that the segmenter's aligned margin reads
        reaches = zip(denoiser.halo, segmenter.halo, self.divisor, strict=True)
        self.halo = tuple(-(-far // d) * d + near for near, far, d in reaches)
        self.denoiser.eval()

    def train(self, mode: bool = True) -> DenoiseThenSegment:
        """Set the segmenter's mode; the denoiser's batch statistics stay as they were trained."""
        super().train(mode)
        self.denoiser.eval()
        return self

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            denoised = self.denoiser(x)[:, : x.shape[1]]
        return torch.cat([denoised, self.segmenter(denoised)[:, -self.num_classes :]], dim=1)
