# SPDX-License-Identifier: Apache-2.0
"""Dictionary twins of array transforms: the only dictionary logic of the package.

A twin is a class statement and one attribute::

    class RandBlindSpotMaskd(RandKeyed):
        array = RandBlindSpotMask

It takes ``keys`` first, then the keywords of the array class, then ``allow_missing_keys``.
An array transform that yields companions returns a mapping from key suffix to array
(``{"": masked, "_target": image}``); the twin writes each under ``key + suffix``.
"""

from __future__ import annotations

import inspect
from collections.abc import Hashable, Mapping
from typing import Any, ClassVar

import numpy as np
from monai.config import KeysCollection
from monai.transforms import MapTransform, Randomizable
from monai.utils import TransformBackends


class Keyed(MapTransform):
    """Dictionary twin of a deterministic array transform.

    Args:
        keys: keys of the items to transform.
        allow_missing_keys: skip keys that an item lacks instead of raising ``KeyError``.
        keywords: passed to the array class.
    """

    array: ClassVar[type]
    backend: list[TransformBackends]

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        array = cls.__dict__.get("array")
        if array is None:
            return
        kind = inspect.Parameter
        own = [
            p.replace(kind=kind.KEYWORD_ONLY)
            for p in inspect.signature(array).parameters.values()
            if p.kind not in (kind.VAR_POSITIONAL, kind.VAR_KEYWORD)
        ]
        cls.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                kind("keys", kind.POSITIONAL_OR_KEYWORD, annotation=KeysCollection),
                *own,
                kind("allow_missing_keys", kind.KEYWORD_ONLY, default=False, annotation=bool),
            ]
        )
        cls.backend = array.backend
        if cls.__doc__ is None or cls.__doc__ == Keyed.__doc__ or cls.__doc__ == RandKeyed.__doc__:
            cls.__doc__ = f"Dictionary twin of :py:class:`{array.__name__}`, applied to each of ``keys``.\n\n"
            cls.__doc__ += "Its keywords are those of the array transform, which documents them."

    def __init__(self, keys: KeysCollection, *, allow_missing_keys: bool = False, **keywords: Any) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.transform = self.array(**keywords)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for key in self.key_iterator(item):
            _write(item, key, self.transform(item[key]))
        return item


class RandKeyed(Keyed, Randomizable):
    """Dictionary twin of a random array transform: one draw, from the first key, shared by all keys."""

    def set_random_state(self, seed: int | None = None, state: np.random.RandomState | None = None) -> RandKeyed:
        Randomizable.set_random_state(self, seed, state)
        self.transform.set_random_state(state=self.R)
        return self

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        item = dict(data)
        for number, key in enumerate(self.key_iterator(item)):
            if number == 0:
                self.transform.randomize(item[key])
            _write(item, key, self.transform(item[key], randomize=False))
        return item


def _write(item: dict[Hashable, Any], key: Hashable, result: Any) -> None:
    if not isinstance(result, Mapping):
        item[key] = result
        return
    for suffix, value in result.items():
        item[f"{key}{suffix}" if suffix else key] = value
