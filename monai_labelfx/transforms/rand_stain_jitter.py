# SPDX-License-Identifier: Apache-2.0
"""Colour augmentation for stained tissue: more or less of each stain, as another laboratory would have used."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import RandomizableTransform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.transforms._keyed import RandKeyed
from monai_labelfx.transforms._patches import image_name

__all__ = ["RandStainJitter", "RandStainJitterd"]

# Absorbance of red, green and blue light by haematoxylin, eosin and DAB, one stain per row (Ruifrok & Johnston 2001).
_STAINS = np.array([[0.65, 0.70, 0.29], [0.07, 0.99, 0.11], [0.27, 0.57, 0.78]])
_ROUNDING = 1e-5  # of interpolation
_DARKEST = 1e-6  # share of light; the optical density of black would be infinite


class RandStainJitter(RandomizableTransform):
    r"""Scale the amounts of haematoxylin, eosin and DAB of a picture at random (Tellez et al. 2018).

    By the law of Beer and Lambert the optical density of a voxel, the logarithm of the share of light it lets through,
    is a sum over the stains in it: :math:`-\ln(I / w) = M^T c` with the absorbances M of the stains (Ruifrok & Johnston
    2001) and their amounts c. Each amount becomes

    .. math:: c_i' = (1 + a_i) \, c_i + b_i, \qquad a_i \sim U(-\sigma, \sigma), \quad b_i \sim U(-\beta, \beta)

    with one draw for the whole image, and the way back gives the new colours. White has no stain, so it stays white
    unless ``bias`` tints it.

    Args:
        sigma: :math:`\sigma`, largest relative change of the amount of a stain. Default 0.05, as in the paper; 0.2 is
            what later work of its authors calls strong.
        bias: :math:`\beta`, largest amount added, in units of the stains' absorbance (1 lets 1 / e of the light
            through). Default 0, so that the white ground stays white; the paper has 0.05, in units of its own.
        white: value that lets all light through. Default 255, as after :py:class:`ToChannels`.
        prob: probability that anything happens to an image. Default 1.

    Input (3, \*spatial), red, green and blue from 0 to ``white``; output the same shape and dtype, meta kept, from 0 to
    ``white``; whole-number dtypes are rounded. Computed in float32 at least.

    Raises:
        ValueError: for numbers out of their range; in the call, for another number of channels or values outside 0 to
            ``white``.

    Notes:
        Amounts of a colour that these stains cannot make are negative. They are scaled as they are, so that with
        ``sigma=0`` nothing changes; scikit-image's ``rgb2hed`` cuts them off at 0. The shares of light are kept above
        1e-6 as there.

    Example:
        >>> image = torch.tensor([[[255.0, 120.0]], [[255.0, 60.0]], [[255.0, 160.0]]])
        >>> jittered = RandStainJitter(sigma=0.2).set_random_state(seed=0)(image)
        >>> jittered[:, 0, 0].tolist(), bool((jittered[:, 0, 1] != image[:, 0, 1]).all())
        ([255.0, 255.0, 255.0], True)
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, sigma: float = 0.05, *, bias: float = 0.0, white: float = 255.0, prob: float = 1.0) -> None:
        RandomizableTransform.__init__(self, prob)
        if not 0 <= sigma <= 1:
            raise ValueError(f"sigma must be from 0 to 1, got {sigma}.")
        if not (0 <= bias < float("inf") and 0 < white < float("inf")):
            raise ValueError(f"bias must be 0 or more and white above 0, got {bias} and {white}.")
        self.sigma = sigma
        self.bias = bias
        self.white = white
        self._factors = np.ones(3)
        self._added = np.zeros(3)

    def randomize(self, data: Any) -> None:
        """Draw whether, and how much, the stains of the next image change."""
        super().randomize(None)
        self._factors = 1 + self.R.uniform(-self.sigma, self.sigma, 3)
        self._added = self.R.uniform(-self.bias, self.bias, 3)

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> torch.Tensor:
        """Change one image; with ``randomize=False`` by the last draw."""
        image = convert_to_tensor(img, track_meta=get_track_meta())
        if image.ndim < 2 or len(image) != 3:
            raise ValueError(
                f"{image_name(img)} must be (3, *spatial), red, green and blue, got shape {tuple(image.shape)}."
            )
        if randomize:
            self.randomize(img)
        values = image.as_subclass(torch.Tensor)
        light = values.to(torch.promote_types(values.dtype, torch.float32)) / self.white
        least, most = (float(one) for one in light.aminmax())
        if not (least >= -_ROUNDING and most <= 1 + _ROUNDING):
            raise ValueError(
                f"{image_name(img)} must hold values from 0 to white={self.white:g}, got {least * self.white:g} to "
                f"{most * self.white:g}."
            )
        if not self._do_transform:
            return image
        mixed = torch.tensordot(self._matrix(light), light.clamp(_DARKEST, 1).log(), dims=1)
        shift = -torch.as_tensor(self._added @ _STAINS, dtype=light.dtype, device=light.device)
        result = (mixed + shift.view(3, *[1] * (light.ndim - 1))).exp().clamp(max=1) * self.white
        result = result if values.is_floating_point() else result.round()
        return convert_to_dst_type(result.to(values.dtype), image, dtype=values.dtype)[0]

    def _matrix(self, light: torch.Tensor) -> torch.Tensor:
        """From old to new optical densities: to stains, times their factors, and back."""
        matrix = _STAINS.T @ np.diag(self._factors) @ np.linalg.inv(_STAINS.T)
        return torch.as_tensor(matrix, dtype=light.dtype, device=light.device)


class RandStainJitterd(RandKeyed):
    array = RandStainJitter
