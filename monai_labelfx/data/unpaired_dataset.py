# SPDX-License-Identifier: Apache-2.0
"""Data set of pairs of images that do not belong together."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from monai.data import Dataset, MetaTensor

DOMAINS = ("low", "high")
FILE = "_file"


class UnpairedDataset(torch.utils.data.Dataset):
    """Items of two data sets side by side: index (i, j) gives item i of ``low`` and item j of ``high``.

    Both keep their own transforms and caches; MONAI's ``set_rnd``, and so
    :py:class:`~monai_labelfx.engines.SeedEpoch` and the workers of a ``DataLoader``, reaches the random ones of both.
    Which i meets which j is the matter of :py:class:`~monai_labelfx.engines.UnpairedSampler`.

    Items hold plain tensors, without metadata, under ``low`` and ``high`` with the suffixes of ``keys``, and the names
    of their files (no folders; empty where unknown) as ``low_file`` and ``high_file``, for messages and pictures.

    Args:
        low: data set of the noisy domain, whose items are mappings.
        high: data set of the clean domain.
        keys: key in the items of both -> suffix behind ``low`` and ``high``; the image has none. Default
            ``{"image": ""}``. With ``{"image": "", "foreground": "_foreground"}`` patches can be drawn inside the body.

    Raises:
        TypeError: for an index that is no pair, and for items that are no mappings (as of transforms that make several
            crops of an image).
        ValueError: for an empty data set, or suffixes that do not tell the keys apart.
        KeyError: if an item lacks a key.

    Example:
        >>> low, high = [{"image": torch.zeros(1, 2, 2)}], [{"image": torch.ones(1, 2, 2)}] * 3
        >>> pairs = UnpairedDataset(Dataset(low), Dataset(high))
        >>> len(pairs), sorted(pairs[0, 2])
        (3, ['high', 'high_file', 'low', 'low_file'])
    """

    def __init__(self, low: Dataset, high: Dataset, keys: Mapping[str, str] | None = None) -> None:
        self.low = low
        self.high = high
        self.keys = {"image": ""} if keys is None else dict(keys)
        suffixes = list(self.keys.values())
        if suffixes.count("") != 1 or len(set(suffixes)) < len(suffixes) or FILE in suffixes:
            raise ValueError(
                f"keys must give one key the suffix '', and all others different ones that are not {FILE!r}; got "
                f"{self.keys}."
            )
        self.image_key = next(key for key, suffix in self.keys.items() if not suffix)
        empty = [name for name in DOMAINS if len(getattr(self, name)) == 0]
        if empty:
            raise ValueError(f"{' and '.join(empty)} holds no item; each domain needs at least one.")

    def __len__(self) -> int:
        """Items of the larger domain: so many pairs show each of them once."""
        return max(len(self.low), len(self.high))

    def __getitem__(self, index: Any) -> dict[str, Any]:
        if not isinstance(index, (tuple, list)) or len(index) != len(DOMAINS):
            raise TypeError(f"the index must be a pair (low, high), got {index!r}: give the loader an UnpairedSampler.")
        pair: dict[str, Any] = {}
        for domain, number in zip(DOMAINS, index, strict=True):
            item = getattr(self, domain)[number]
            if not isinstance(item, Mapping):
                raise TypeError(f"item {number} of {domain} is a {type(item).__name__}, expected one mapping.")
            for key, suffix in self.keys.items():
                if key not in item:
                    raise KeyError(f"item {number} of {domain} has no {key!r}; it has {sorted(map(str, item))}.")
                pair[domain + suffix] = torch.as_tensor(item[key]).as_subclass(torch.Tensor)
            pair[domain + FILE] = _file(item[self.image_key])
        return pair


def _file(image: Any) -> str:
    name = image.meta.get("filename_or_obj", "") if isinstance(image, MetaTensor) else ""
    return os.path.basename(name) if isinstance(name, (str, os.PathLike)) else ""
