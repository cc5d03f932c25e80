# SPDX-License-Identifier: Apache-2.0
"""Back to the grey values that an image had before it was standardised."""

from __future__ import annotations

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor
from monai.transforms import Transform
from monai.utils import TransformBackends

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["RestoreIntensity", "RestoreIntensityd"]


class RestoreIntensity(Transform):
    """x * std + mean with the two numbers that :py:class:`StandardizeIntensity` left in the tensor's own meta.

    Works on anything that carries the image's meta, such as the denoised channels of a network's output. The numbers
    are removed from the meta, so that nothing is restored twice. Rounding and dtype are left to the writer.

    Input a MetaTensor (C, *spatial); output the same shape and floating dtype, meta kept.

    Raises:
        ValueError: the input is no MetaTensor or its meta lacks ``intensity_mean`` and ``intensity_std``.

    Example:
        >>> from monai_labelfx.transforms import StandardizeIntensity
        >>> RestoreIntensity()(StandardizeIntensity()(torch.tensor([[1.0, 3.0]]))).tolist()
        [[1.0, 3.0]]
    """

    backend = [TransformBackends.TORCH]

    def __call__(self, img: NdarrayOrTensor) -> torch.Tensor:
        if not isinstance(img, MetaTensor) or not {"intensity_mean", "intensity_std"} <= set(img.meta):
            found = f"meta {sorted(map(str, img.meta))}" if isinstance(img, MetaTensor) else f"a {type(img).__name__}"
            raise ValueError(
                "RestoreIntensity needs a MetaTensor whose meta holds intensity_mean and intensity_std, as "
                f"StandardizeIntensity writes them and nothing restored yet; found {found}"
            )
        values = img.as_tensor() * float(img.meta["intensity_std"]) + float(img.meta["intensity_mean"])
        result = MetaTensor(values).copy_meta_from(img)
        for key in ("intensity_mean", "intensity_std"):
            del result.meta[key]
        return result


class RestoreIntensityd(Keyed):
    array = RestoreIntensity
