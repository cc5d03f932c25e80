# SPDX-License-Identifier: Apache-2.0
"""Masks whose colours are classes, as label maps."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import torch
from monai.config import NdarrayOrTensor
from monai.data import get_track_meta
from monai.transforms import Transform
from monai.utils import TransformBackends, convert_to_dst_type, convert_to_tensor

from monai_labelfx.transforms._keyed import Keyed

__all__ = ["ColoursToClasses", "ColoursToClassesd"]

_HEX = re.compile(r"#?([0-9a-fA-F]{6})")


class ColoursToClasses(Transform):
    r"""Label map of a mask in which each colour is a class.

    Args:
        palette: colour -> class. A colour is "#rrggbb" or (red, green, blue), each 0 to 255; several may be one class.
        unknown: class of all other colours, such as 255 where those are to be ignored. Default ``None``: they are an
            error, since an unnamed colour is a class that nobody has thought of, or the blurred edge of a mask that was
            resized or stored as JPEG.

    Shape:
        - input: (C, \*spatial), whole numbers of 0 to 255 in any dtype. C is 3, or 4 with alpha, which is dropped. A
          mask with 1 channel, or 2 with alpha, is grey: its value v is the colour (v, v, v).
        - output: (1, \*spatial), uint8, or int16 from class 256 on; with the meta data of the input.

    Raises:
        ValueError: an empty or unusable palette; another number of channels; values that are no whole numbers of 0 to
            255; colours that the palette lacks, with the most frequent one and its number of pixels.

    Example:
        >>> mask = torch.tensor([[[255, 0, 0]], [[0, 0, 0]], [[0, 0, 255]]])
        >>> ColoursToClasses({"#000000": 0, "#ff0000": 1, (0, 0, 255): 2})(mask).tolist()
        [[[1, 0, 2]]]
    """

    backend = [TransformBackends.TORCH]

    def __init__(self, palette: Mapping[str | Sequence[int], int], *, unknown: int | None = None) -> None:
        if not isinstance(palette, Mapping) or not palette:
            raise ValueError(f"palette must name a class for at least one colour, got {palette!r}")
        classes = {_code(colour): number for colour, number in palette.items()}
        if len(classes) < len(palette):
            raise ValueError(f"palette names a colour twice: {list(palette)}")
        for number in (*classes.values(), *([] if unknown is None else [unknown])):
            if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < 2**15:
                raise ValueError(f"classes must be whole numbers of 0 to {2**15 - 1}, got {number!r}")
        self.codes, self.classes = map(list, zip(*sorted(classes.items()), strict=True))
        self.unknown = unknown

    def __call__(self, img: NdarrayOrTensor) -> NdarrayOrTensor:
        mask = convert_to_tensor(img, track_meta=get_track_meta())
        found = _codes(mask.as_subclass(torch.Tensor))
        codes = torch.tensor(self.codes, device=found.device)
        place = torch.searchsorted(codes, found).clamp(max=len(codes) - 1)
        named = codes[place] == found
        if self.unknown is None and not bool(named.all()):
            raise ValueError(_complaint(found[~named], self.codes))
        most = max(*self.classes, self.unknown or 0)
        dtype = torch.uint8 if most < 256 else torch.int16
        labels = torch.tensor(self.classes, device=found.device)[place]
        labels = torch.where(named, labels, self.unknown or 0).to(dtype)[None]
        return convert_to_dst_type(labels, img, dtype=dtype)[0]


class ColoursToClassesd(Keyed):
    array = ColoursToClasses


def _code(colour: str | Sequence[int]) -> int:
    if isinstance(colour, str):
        match = _HEX.fullmatch(colour.strip())
        if match:
            return int(match[1], 16)
    elif len(colour) == 3 and all(isinstance(part, int) and 0 <= part <= 255 for part in colour):
        red, green, blue = colour
        return (red << 16) + (green << 8) + blue
    raise ValueError(f"a colour must be '#rrggbb' or three whole numbers of 0 to 255, got {colour!r}")


def _codes(mask: torch.Tensor) -> torch.Tensor:
    """One number per voxel, red * 65536 + green * 256 + blue."""
    if mask.ndim < 2 or not 1 <= mask.shape[0] <= 4:
        raise ValueError(f"expected a mask (C, *spatial) with 1 to 4 channels, got shape {tuple(mask.shape)}")
    colours = mask[:3] if mask.shape[0] > 2 else mask[:1].expand(3, *mask.shape[1:])
    whole = colours.to(torch.int64)
    if bool(((whole < 0) | (whole > 255)).any()) or (colours.is_floating_point() and bool((colours != whole).any())):
        raise ValueError("the mask holds values that are no whole numbers of 0 to 255, expected colours of 8 bits")
    return ((whole[0] << 16) + (whole[1] << 8) + whole[2]).contiguous()


def _complaint(codes: torch.Tensor, known: Sequence[int]) -> str:
    found, counts = codes.unique(return_counts=True)
    first = int(counts.argmax())
    more = f" and {len(found) - 1} more colours" if len(found) > 1 else ""
    names = ", ".join(f"#{code:06x}" for code in known[:8]) + ", ..." * (len(known) > 8)
    return (
        f"the mask has the colour #{int(found[first]):06x} at {int(counts[first])} pixels{more}, expected only those "
        f"of the palette, {names} (resized with interpolation, or stored as JPEG?)"
    )
