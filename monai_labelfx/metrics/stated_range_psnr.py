# SPDX-License-Identifier: Apache-2.0
"""Peak signal-to-noise ratio with a stated data range."""

from __future__ import annotations

import math
from typing import Literal

import torch

from monai_labelfx.metrics.per_image import PerImageMetric


class StatedRangePSNR(PerImageMetric):
    """PSNR = 20 log10(range) - 10 log10(mean squared error) in dB, mean over images.

    Figures compare only when they state the range. The DenoiSeg paper (Buchholz et al. 2020) takes the maximum minus
    the minimum of each clean image.

    ``metric(y_pred, y)`` takes denoised and clean images, batches (B, C, \\*spatial) or lists of (C, \\*spatial), and
    returns the PSNR of each image over all its channels and voxels, (B, 1); ``get_buffer()`` gives the same for all
    images.

    Args:
        data_range: ``"image"`` (default, paper) for the maximum minus the minimum of each clean image; or one number
            for all images, for instance 255.

    Raises:
        ValueError: when ``data_range`` is no such thing, images do not fit together, a prediction or clean image holds
            NaN or infinity, or a clean image is constant although its range is asked for; in ``aggregate()``, when no
            image was added.

    Notes:
        Identical images have PSNR infinity, and so has the mean they enter.

    Example:
        >>> metric = StatedRangePSNR(data_range=10)
        >>> metric([torch.tensor([[1.0, 0.0]])], [torch.tensor([[0.0, 1.0]])])
        tensor([[20.]], dtype=torch.float64)
    """

    def __init__(self, data_range: Literal["image"] | float = "image") -> None:
        if data_range != "image" and (isinstance(data_range, str) or not 0 < float(data_range) < math.inf):
            raise ValueError(f"data_range must be 'image' or a number above 0, got {data_range!r}.")
        self.data_range = data_range
        super().__init__(columns=1)

    def _measure(self, prediction: torch.Tensor, reference: torch.Tensor) -> list[float]:
        prediction, reference = (
            image if image.dtype == torch.float64 else image.to(torch.float32) for image in (prediction, reference)
        )
        error = float((prediction - reference).square().mean())
        if not math.isfinite(error):
            raise ValueError("a prediction or its clean image holds NaN or infinity; PSNR needs finite values.")
        if self.data_range == "image":
            extent = float(reference.max() - reference.min())
            if extent == 0:
                raise ValueError("a clean image is constant, so its range is 0; give data_range as a number.")
        else:
            extent = float(self.data_range)
        return [20 * math.log10(extent) - 10 * math.log10(error) if error else math.inf]

    def _score(self, rows: torch.Tensor) -> torch.Tensor:
        return rows
