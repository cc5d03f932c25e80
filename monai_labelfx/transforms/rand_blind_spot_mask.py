# SPDX-License-Identifier: Apache-2.0
"""Noise2Void's blind spots for one image: the transform around :py:func:`monai_labelfx.ops.blind_spot_mask`."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Randomizable, Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.ops.blind_spots import blind_spot_mask, check_blind_spot_options
from monai_labelfx.transforms._keyed import RandKeyed

WINDOW_UNITS = ("voxel", "mm")
ROUNDING = 1e-6  # so that a spacing of 0.1 mm reaches 0.3 mm in three steps


class RandBlindSpotMask(Randomizable, Transform):
    """Hide random voxels of an image (C, *spatial) behind values of their neighbours (Noise2Void, Krull et al. 2019).

    Returns a mapping: ``""``, the masked image (the network's input); ``"_target"``, the image as it came; and
    ``"_blind_spots"``, bool, true at the hidden voxels, where the denoising loss is taken. All have the image's shape
    and metadata. The twin writes them under ``key``, ``key + "_target"`` and ``key + "_blind_spots"``.

    Put it last: after every spatial and intensity augmentation, which would move or mix what is hidden. There is no
    ``prob``, because an image without blind spots has no denoising loss. Several keys of one twin share one draw:
    images of one size get the same blind spots, channel by channel, also when one has more channels than the other.

    Args:
        fraction: share of blind spots per channel, in (0, 1): exactly ``max(1, round(fraction * voxels))`` are drawn.
            Default 1.5 %: the configuration of the DenoiSeg and N2V code.
        strategy: ``"uniform"`` (a random voxel of the window), ``"median"``, ``"mean"``, all without the hidden voxels,
            or ``"identity"`` (leaves the values).
        window: full side of the window that replacements come from; one number, or one per spatial axis. Default 11
            voxels, as in the N2V code.
        window_unit: ``"voxel"``, sides are odd whole numbers; or ``"mm"``, the window holds the voxels within
            ``window / 2`` mm of the hidden one along each axis, which follows the spacing of anisotropic images and
            needs a MetaTensor.
        structure: 0/1 array for structured masks (structN2V), with as many axes as the image has spatial ones, all of
            odd length; see :py:func:`monai_labelfx.ops.blind_spot_mask`.
        seed: draw the same mask at every call, for validation. Default ``None``: a new one each time, from the random
            state of the transform.

    Raises:
        TypeError: for an image that is not floating point (put ``EnsureType(dtype=torch.float32)`` before).
        ValueError: for an option out of range, or ``window_unit="mm"`` and an image without metadata.

    Example:
        >>> import torch
        >>> hide = RandBlindSpotMask(fraction=0.01).set_random_state(0)
        >>> out = hide(torch.rand(1, 64, 64))
        >>> list(out), out["_blind_spots"].sum().item()
        (['', '_target', '_blind_spots'], 41)
        >>> torch.equal(out[""] != out["_target"], out["_blind_spots"])
        True
    """

    backend = [TransformBackends.TORCH]

    def __init__(
        self,
        fraction: float = 0.015,
        strategy: str = "uniform",
        *,
        window: float | Sequence[float] = 11,
        window_unit: str = "voxel",
        structure: Any = None,
        seed: int | None = None,
    ) -> None:
        check_blind_spot_options(fraction, strategy)
        if window_unit not in WINDOW_UNITS:
            raise ValueError(f"window_unit must be one of {', '.join(WINDOW_UNITS)}, got {window_unit!r}")
        self.fraction, self.strategy = fraction, strategy
        self.window, self.window_unit = window, window_unit
        self.structure, self.seed = structure, seed
        self._drawn = 0

    def randomize(self, data: Any = None) -> None:
        """Draw the seed of the next mask."""
        self._drawn = int(self.R.randint(2**31, dtype="int64")) if self.seed is None else self.seed

    def __call__(self, img: NdarrayOrTensor, randomize: bool = True) -> dict[str, torch.Tensor]:
        """Mask one image (C, *spatial); with ``randomize=False`` by the last draw."""
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        if randomize:
            self.randomize(image)
        masked, spots = blind_spot_mask(
            image[None].as_subclass(torch.Tensor),
            self.fraction,
            self.strategy,
            window=self._window_in_voxels(img, image.ndim - 1),  # type: ignore[arg-type]
            structure=self.structure,
            generator=torch.Generator().manual_seed(self._drawn),
        )
        parts = {"": masked[0], "_target": image, "_blind_spots": spots[0]}
        return {suffix: convert_to_dst_type(part, image, dtype=part.dtype)[0] for suffix, part in parts.items()}

    def _window_in_voxels(self, img: NdarrayOrTensor, axes: int) -> float | Sequence[float]:
        if self.window_unit == "voxel":
            return self.window
        if not isinstance(img, MetaTensor):
            raise ValueError(f"window_unit='mm' needs a MetaTensor, which knows its spacing, got {type(img).__name__}")
        sides = tuple(self.window) if isinstance(self.window, Iterable) else (self.window,) * axes
        spacing = img.pixdim.tolist()[:axes]
        if len(sides) != len(spacing) or any(side <= 0 for side in sides):
            raise ValueError(f"window must be one positive number of mm or {axes} of them, got {self.window}")
        reach = [math.floor(side / 2 / step + ROUNDING) for side, step in zip(sides, spacing, strict=True)]
        return [2 * steps + 1 for steps in reach]


class RandBlindSpotMaskd(RandKeyed):
    array = RandBlindSpotMask
