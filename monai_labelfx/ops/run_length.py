# SPDX-License-Identifier: Apache-2.0
"""Masks as run lengths, in the compressed form of COCO, in any number of dimensions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

_BITS = 5  # of a number in a character
_FIRST = 48  # character of 0
_MOST_CHARACTERS = 12  # of a number: 60 bits


def encode_run_lengths(masks: torch.Tensor | np.ndarray) -> list[dict[str, Any]]:
    r"""Masks as COCO's compressed run lengths, what ``pycocotools.mask`` reads and writes.

    A mask is the lengths of its runs, outside and inside in turns, the first one outside (0 where the first voxel is
    inside). COCO goes down the columns of a picture. Here x is the first axis, so that this is the plain order of the
    array, its last axis fastest, and volumes are written alike.

    Length i is written as its difference to length i - 2, from i = 3 on. A number is written in groups of 5 bits of its
    two's complement, the lowest first, up to the one that holds its sign; each is the character 48 + group, and 32 more
    where another group follows.

    Args:
        masks: (N, \*spatial) bool or whole numbers, any number of spatial axes; what is not 0 is inside.

    Returns:
        For each mask ``size``, the lengths of the spatial axes, last axis first ([height, width] for a picture of x and
        y), and ``counts``, the characters: ready for JSON.

    Raises:
        TypeError: for masks of floating point numbers.
        ValueError: for masks without spatial axes.

    Example:
        >>> import torch
        >>> from monai_labelfx.ops.run_length import encode_run_lengths
        >>> encode_run_lengths(torch.tensor([[[0, 0, 1], [1, 0, 0]]]))  # 2 voxels outside, 2 inside, 2 outside
        [{'size': [3, 2], 'counts': '222'}]
    """
    array = masks.detach().cpu().numpy() if isinstance(masks, torch.Tensor) else np.asarray(masks)
    if array.dtype.kind not in "biu":
        raise TypeError(f"masks must be bool or whole numbers, got {array.dtype}: compare them with a threshold.")
    if array.ndim < 2:
        raise ValueError(f"masks must have the shape (N, *spatial), got {array.shape}.")
    size = list(array.shape[:0:-1])
    return [{"size": list(size), "counts": compressed_counts(_lengths(mask.reshape(-1) != 0))} for mask in array]


def decode_run_lengths(run_lengths: Iterable[Mapping[str, Any]], size: Sequence[int] | None = None) -> torch.Tensor:
    r"""Masks of COCO's run lengths, compressed or not; see :py:func:`encode_run_lengths`.

    Args:
        run_lengths: for each mask ``size``, lengths of the spatial axes, last axis first, and ``counts``: the
            characters, as text or bytes, or the lengths of the runs themselves.
        size: lengths of the spatial axes, last axis first, that the masks must have. Default ``None``, those of the
            first mask; needed where there is none.

    Returns:
        (N, \*spatial) bool.

    Raises:
        ValueError: for sizes that differ, characters that are no numbers, runs of negative length, and runs that do not
            add up to the size; without masks and ``size``.

    Example:
        >>> from monai_labelfx.ops.run_length import decode_run_lengths
        >>> decode_run_lengths([{"size": [3, 2], "counts": "222"}]).int().tolist()
        [[[0, 0, 1], [1, 0, 0]]]
    """
    items = list(run_lengths)
    for number, item in enumerate(items):
        for key in ("size", "counts"):
            if key not in item:
                raise ValueError(f"run_lengths[{number}] has no {key!r}, found {sorted(map(str, item))}.")
    if size is None and not items:
        raise ValueError("run_lengths is empty: size must tell the lengths of the axes then.")
    shape = [int(n) for n in (items[0]["size"] if size is None else size)]
    if min(shape, default=-1) < 0:
        raise ValueError(f"size must be the lengths of the axes, 0 or above, got {shape}.")
    masks = np.zeros((len(items), math.prod(shape)), bool)
    for number, item in enumerate(items):
        found = [int(n) for n in item["size"]]
        if found != shape:
            raise ValueError(f"the size of run_lengths[{number}] is {found}, expected {shape}, the same for all masks.")
        lengths = _read_lengths(item["counts"], f"run_lengths[{number}]", masks.shape[1])
        masks[number] = np.repeat(np.arange(len(lengths)) % 2 == 1, lengths)
    return torch.from_numpy(masks.reshape(len(items), *reversed(shape)))


def _read_lengths(counts: Any, name: str, voxels: int) -> np.ndarray:
    if isinstance(counts, str | bytes):
        lengths = _from_characters(counts, name)
    else:
        lengths = np.array(counts, dtype=np.int64).reshape(-1)
    low, high, total = (int(lengths.min(initial=voxels)), int(lengths.max(initial=0)), int(lengths.sum()))
    if low < 0 or high > voxels or total != voxels:
        raise ValueError(
            f"the counts of {name} must be runs of {voxels} voxels together, got {len(lengths)} runs of {low} to "
            f"{high} voxels, {total} together."
        )
    return lengths


def _lengths(inside: np.ndarray) -> np.ndarray:
    """Lengths of the runs of a flat mask, the first one outside."""
    ends = np.flatnonzero(inside[1:] != inside[:-1]) + 1
    starts = [0, 0] if len(inside) and inside[0] else [0]
    return np.diff(np.concatenate([starts, ends, [len(inside)]])).astype(np.int64)


def compressed_counts(lengths: np.ndarray) -> str:
    """The lengths of runs (R,) int64 as the characters of COCO; from the fourth on, less the length two before."""
    numbers = lengths.copy()
    numbers[3:] -= lengths[1:-2]
    groups, follows = [], []
    more = np.ones(len(numbers), bool)
    while more.any():
        group, numbers = numbers & 31, numbers >> _BITS
        follows.append(more)
        more = more & (numbers != np.where(group & 16, -1, 0))
        groups.append(group + _FIRST + 32 * more)
    return np.stack(groups, 1)[np.stack(follows, 1)].astype(np.uint8).tobytes().decode("ascii")


def _from_characters(characters: str | bytes, name: str) -> np.ndarray:
    text = characters.encode("utf-8") if isinstance(characters, str) else characters
    codes = np.frombuffer(text, np.uint8).astype(np.int64) - _FIRST
    last = (codes & 32) == 0
    wrong = (codes < 0) | (codes > 63)
    if wrong.any():
        place = int(wrong.argmax())
        raise ValueError(
            f"the counts of {name} have {bytes(text[place : place + 1])!r} at {place}, expected characters "
            f"{chr(_FIRST)!r} to {chr(_FIRST + 63)!r}."
        )
    if not len(codes) or not last[-1]:
        raise ValueError(f"the counts of {name} end within a number after {len(codes)} characters.")
    first = np.concatenate([[0], np.flatnonzero(last)[:-1] + 1])
    characters_of = np.diff(np.append(first, len(codes)))
    if characters_of.max() > _MOST_CHARACTERS:
        raise ValueError(f"the counts of {name} have a number of {characters_of.max()} characters, at most 12 are one.")
    place = np.arange(len(codes)) - np.repeat(first, characters_of)
    numbers = np.add.reduceat((codes & 31) << (_BITS * place), first)
    negative = codes[first + characters_of - 1] & 16 != 0
    numbers -= np.where(negative, np.int64(1) << (_BITS * characters_of), 0)
    numbers[1::2] = numbers[1::2].cumsum()
    numbers[2::2] = numbers[2::2].cumsum()
    return numbers
