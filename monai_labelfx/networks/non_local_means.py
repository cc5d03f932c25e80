# SPDX-License-Identifier: Apache-2.0
"""Non-local means as a network without parameters: the classical floor that a trained denoiser has to beat."""

from __future__ import annotations

import math

import numpy as np
import pywt
import torch

from monai_labelfx.networks._any_size import AnySizeNetwork

_MEDIAN_OF_NORMAL = 0.6744897501960817  # of its absolute value, at unit standard deviation
_ROUNDING = 1e-9  # of the largest value


class NonLocalMeans(AnySizeNetwork):
    """Each voxel becomes a mean of the voxels around it, weighted by how alike their patches are (Buades et al. 2005).

    With P the patches around voxels i and j, and sigma the standard deviation of the noise::

        y_i = sum_j w_ij x_j / sum_j w_ij,    w_ij = exp(-max(mean((P_i - P_j)^2 - 2 sigma^2), 0) / h^2)

    over all j within ``patch_distance`` of i: scikit-image's ``denoise_nl_means`` in its fast mode, one image and
    channel after the other, in float64. ``h = strength * sigma``, and unless sigma is given it is that of the whole
    image: the median size of the finest wavelet coefficients over 0.6745, as scikit-image's ``estimate_sigma``.
    ``y(x + c) = y(x) + c``: only differences of values matter.

    Args:
        spatial_dims: 2 or 3. Volumes of thick slices are denoised slice by slice with 2 (see
            :py:class:`monai_labelfx.inferers.SlicewiseInferer`), since a patch is as wide in all directions.
        in_channels: channels of the image, denoised one by one.
        patch_size: side of a patch, odd (5).
        patch_distance: largest distance along each axis of the voxels that are averaged (6).
        strength: h over sigma; 0.8 is scikit-image's advice for the fast mode.
        sigma: standard deviation of the noise in the units of the image, HU for an image in HU. None: estimated for
            each image and channel; where that gives 0 the image is returned as it is.

    Attributes:
        halo: ``patch_distance + patch_size // 2`` per axis (8). Tiled results equal untiled ones **only where sigma is
            given**: each tile would estimate its own. Run whole images otherwise.
        divisor: ones.

    Shape:
        - input and output: (B, in_channels, *spatial), any size, of the input's device and type; a MetaTensor keeps its
          metadata.

    Raises:
        ValueError: for arguments out of range, and in forward for an input of another rank or number of channels or
            without voxels.

    Notes:
        Runs on the CPU and has no gradient. In its fast mode scikit-image adds up ``patch_size - 1`` voxels per axis
        but divides by ``patch_size`` per axis for the mean, leaves out j where the exponent is below -5, and
        approximates the exponential (to 4 %). Regions without any noise, such as padding that has become air, do not
        count in the estimate; scikit-image's takes their rounding errors for noise of next to nothing. The estimate
        takes noise to be independent between voxels; that of filtered back-projection is not, and a smooth kernel
        hides most of it: give sigma where it was measured.

    Example:
        >>> import torch
        >>> noisy = 40 + 20 * torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
        >>> bool(NonLocalMeans(2)(noisy).std() < 8)
        True
    """

    def __init__(
        self,
        spatial_dims: int,
        in_channels: int = 1,
        *,
        patch_size: int = 5,
        patch_distance: int = 6,
        strength: float = 0.8,
        sigma: float | None = None,
    ) -> None:
        if spatial_dims not in (2, 3):
            raise ValueError(f"spatial_dims must be 2 or 3, got {spatial_dims}.")
        for name, value in (("patch_size", patch_size), ("patch_distance", patch_distance)):
            if value < 1:
                raise ValueError(f"{name} must be 1 or more, got {value}.")
        if patch_size % 2 == 0:
            raise ValueError(f"patch_size must be odd, got {patch_size}.")
        for name, number in (("strength", strength), ("sigma", sigma)):
            if number is not None and not (number > 0 and math.isfinite(number)):
                raise ValueError(f"{name} must be above 0 and finite, got {number}.")
        super().__init__(spatial_dims, in_channels, in_channels, [])
        self.patch_size, self.patch_distance = patch_size, patch_distance
        self.strength, self.sigma = strength, sigma
        self.halo = (patch_distance + patch_size // 2,) * spatial_dims

    def run_padded(self, x: torch.Tensor) -> torch.Tensor:
        """Denoise a plain tensor of any size."""
        images = x.detach().to("cpu", torch.float64).flatten(0, 1).numpy()
        denoised = np.stack([self._denoise(image) for image in images])
        return torch.from_numpy(denoised).reshape(x.shape).to(x)

    def _denoise(self, image: np.ndarray) -> np.ndarray:
        from skimage.restoration import denoise_nl_means

        sigma = self.sigma if self.sigma is not None else _noise(image)
        if sigma == 0:
            return image
        return denoise_nl_means(
            image,
            patch_size=self.patch_size,
            patch_distance=self.patch_distance,
            h=self.strength * sigma,
            sigma=sigma,
            fast_mode=True,
        )

    def extra_repr(self) -> str:
        return f"{self.patch_size}, {self.patch_distance}, strength={self.strength}, sigma={self.sigma}"


def _noise(image: np.ndarray) -> float:
    """Standard deviation of white noise from the finest diagonal coefficients (Donoho and Johnstone 1995)."""
    details = np.abs(pywt.dwtn(image, "db2")["d" * image.ndim])
    details = details[details > _ROUNDING * np.abs(image).max()]
    return float(np.median(details)) / _MEDIAN_OF_NORMAL if details.size else 0.0
