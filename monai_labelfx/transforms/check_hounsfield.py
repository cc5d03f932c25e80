# SPDX-License-Identifier: Apache-2.0
"""Refuse what cannot be CT in HU, by its values and what the reader said about it, before a network sees it."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from monai.config import NdarrayOrTensor
from monai.data import MetaTensor, get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["CheckHounsfield", "CheckHounsfieldd"]

_PICTURES = (".png", ".jpg", ".jpeg", ".bmp")
_BYTE = 255.0


class CheckHounsfield(Transform):
    """Hand on a CT image in HU untouched, and refuse anything else in one sentence with the file's name.

    Refused are: other than one channel or 2 to 3 spatial axes; no numbers, 8-bit types, and pictures (.png, .jpg, .bmp;
    NIfTI that stores 8 bits); a DICOM modality other than CT; DICOM values for display; NaN or infinite values; values
    outside ``limits``; values all between -1 and 1 (normalised), and, unless they are DICOM, which declares its unit,
    all between 0 and 255 (a grey picture): any CT image with air around the patient has values near -1000. Values that
    are never negative and exceed 255 (such as stored numbers without their intercept) are a warning, because a close
    crop of an organ may have none.

    Args:
        limits: the least and the greatest HU. The default (-32768, 65535) is what 16 bits hold, signed or unsigned; it
            leaves room for all paddings, which :py:class:`ReplacePaddingd` removes afterwards.

    Input (1, *spatial), output the same object. The values are looked at once, without copies.

    Raises:
        ValueError: see above.

    Example:
        >>> image = torch.tensor([[[-1000.0, 40.0], [0.0, 300.0]]])
        >>> CheckHounsfield()(image) is image
        True
        >>> CheckHounsfield()(torch.rand(1, 4, 4))
        Traceback (most recent call last):
        ValueError: the image has values between ... expected HU, with air near -1000: it seems to be normalised
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, *, limits: Sequence[float] = (-32768.0, 65535.0)) -> None:
        if len(limits) != 2 or not limits[0] < limits[1]:
            raise ValueError(f"limits must be the least and the greatest HU, got {limits!r}")
        self.limits = (float(limits[0]), float(limits[1]))

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        image: torch.Tensor = convert_to_tensor(img, track_meta=get_track_meta())
        meta = image.meta if isinstance(image, MetaTensor) else {}
        name = _name(meta)
        if image.ndim not in (3, 4) or image.shape[0] != 1:
            raise ValueError(f"{name} has the shape {tuple(image.shape)}, expected one channel and 2 or 3 spatial axes")
        _check_source(image, meta, name)
        self._check_values(image, meta, name)
        return img

    def _check_values(self, image: torch.Tensor, meta: Mapping[str, Any], name: str) -> None:
        if not image.numel():
            raise ValueError(f"{name} has the shape {tuple(image.shape)} without voxels, expected CT in HU")
        low, high = (float(end) for end in torch.aminmax(image.as_subclass(torch.Tensor)))
        if not (abs(low) < float("inf") and abs(high) < float("inf")):  # also when one is NaN, which aminmax hands on
            bad = int(torch.count_nonzero(~torch.isfinite(image.as_subclass(torch.Tensor))))
            raise ValueError(f"{name} holds {bad} values that are NaN or infinite, expected HU")
        found = f"{name} has values between {low:.6g} and {high:.6g}"
        if low < self.limits[0] or high > self.limits[1]:
            raise ValueError(
                f"{found}, expected HU between {self.limits[0]:.6g} and {self.limits[1]:.6g}: its slope and intercept "
                "may be wrong or applied twice, or a padding value is no number of 16 bits"
            )
        advice = "expected HU, with air near -1000"
        if low >= -1 and high <= 1:
            raise ValueError(f"{found}, {advice}: it seems to be normalised")
        if low >= 0 and high <= _BYTE and not meta.get("dicom_modality"):
            raise ValueError(f"{found}, {advice}: it seems to be a grey picture of 8 bits or through a window")
        if low >= 0:
            warnings.warn(
                f"{found}, and none below 0, {advice}: if these are stored numbers, their intercept was lost",
                stacklevel=2,
            )


def _check_source(image: torch.Tensor, meta: Mapping[str, Any], name: str) -> None:
    if image.dtype in (torch.uint8, torch.int8, torch.bool) or image.is_complex():
        kind = str(image.dtype).removeprefix("torch.")
        raise ValueError(f"{name} holds numbers of type {kind}, expected CT in HU, which takes 12 bits or more")
    modality = _text(meta, "dicom_modality")
    if "dicom_modality" in meta and modality != "CT":
        raise ValueError(f"{name} has the modality {modality!r}, expected 'CT'")
    if _text(meta, "dicom_values") == "display":
        raise ValueError(f"{name} was read for display, expected HU: read it with display=False")
    stored = _text(meta, "nifti_stored").split()
    if stored and stored[0] in ("uint8", "int8"):
        raise ValueError(
            f"{name} stores 8 bits per voxel ({stored[0]}), expected CT in HU, which takes 12 bits or more"
        )
    if _text(meta, "filename_or_obj").lower().endswith(_PICTURES):
        raise ValueError(f"{name} is a picture, whose grey values are no HU, expected a DICOM series or NIfTI of CT")


def _name(meta: Mapping[str, Any]) -> str:
    file = _text(meta, "filename_or_obj")
    return f"the image {file!r}" if file else "the image"


def _text(meta: Mapping[str, Any], key: str) -> str:
    """The text under a key, also where collating left it in a list of one."""
    value = meta.get(key)
    value = value[0] if isinstance(value, (list, tuple)) and len(value) == 1 else value
    return "" if value is None else str(value)


class CheckHounsfieldd(Keyed):
    array = CheckHounsfield
