# SPDX-License-Identifier: Apache-2.0
"""Contracts that every part of a kind must keep, written once."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Mapping

import numpy as np
import torch
from monai.data import CacheDataset, MetaTensor
from monai.transforms import Compose, Randomizable

AFFINE = torch.tensor([[0.0, -0.7, 0.0, 3.0], [0.9, 0.0, 0.0, -2.0], [0.0, 0.0, 2.5, 1.0], [0.0, 0.0, 0.0, 1.0]])


def containers(array: np.ndarray) -> dict[str, object]:
    """One picture as numpy, tensor and MetaTensor with an oblique-looking affine."""
    tensor = torch.as_tensor(array.copy())
    return {"numpy": array.copy(), "tensor": tensor, "metatensor": MetaTensor(tensor.clone(), affine=AFFINE.clone())}


def picture(spatial_dims: int, channels: int = 1, size: int = 16, seed: int = 0) -> np.ndarray:
    """Seeded noise of shape (channels, size, size + 1[, size + 2]): no two axes alike."""
    shape = (channels, *(size + axis for axis in range(spatial_dims)))
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def as_mapping(result) -> dict[str, torch.Tensor]:
    """The result of an array transform as suffix -> tensor."""
    return dict(result) if isinstance(result, Mapping) else {"": result}


def assert_same(first, second) -> None:
    """Equal keys, shapes, types of number and values."""
    first, second = as_mapping(first), as_mapping(second)
    assert first.keys() == second.keys()
    for key, value in first.items():
        left, right = torch.as_tensor(value), torch.as_tensor(second[key])
        assert left.dtype == right.dtype and left.shape == right.shape, key
        assert torch.equal(left.as_subclass(torch.Tensor), right.as_subclass(torch.Tensor)), key


def check_transform(array_class, twin_class, keywords: dict, array: np.ndarray) -> None:
    """The MONAI contract: containers agree, input untouched, meta kept, twin equals array, determinism, pickles, cache.

    ``array`` is channel-first. Every case a transform must keep is asserted here, so a transform test calls this for
    2-D and 3-D and adds only what is special about it.
    """
    random = issubclass(array_class, Randomizable)

    def fresh(seed: int = 3):
        transform = array_class(**keywords)
        return transform.set_random_state(seed) if random else transform

    expected = fresh()(array.copy())
    for kind, data in containers(array).items():
        before = copy.deepcopy(data)
        result = fresh()(data)
        assert_same(result, expected)
        assert_same(data, before)
        if kind == "metatensor":
            for suffix, value in as_mapping(result).items():
                if torch.as_tensor(value).ndim == array.ndim:
                    assert isinstance(value, MetaTensor), f"{suffix!r} lost its MetaTensor"
                    assert torch.equal(value.affine, data.affine), suffix

    twin = twin_class(keys=["image", "absent"], allow_missing_keys=True, **keywords)
    if random:
        twin.set_random_state(3)
    item = {"image": containers(array)["metatensor"], "other": 1}
    out = twin(item)
    assert set(item) == {"image", "other"} and out["other"] == 1
    if "" not in as_mapping(expected):  # a transform of companions only leaves its key as it was
        assert out.pop("image") is item["image"]
    assert_same({k.removeprefix("image"): v for k, v in out.items() if k.startswith("image")}, expected)
    assert twin.backend == array_class.backend
    try:
        twin_class(keys="absent", **keywords)({"image": array})
    except KeyError:
        pass
    else:
        raise AssertionError("a missing key must raise KeyError")

    clone = pickle.loads(pickle.dumps(twin))
    if random:
        first = Compose([clone]).set_random_state(11)({"image": array.copy()})
        second = Compose([twin]).set_random_state(11)({"image": array.copy()})
        assert_same(first, second)
        assert not all(
            torch.equal(torch.as_tensor(a), torch.as_tensor(b))
            for a, b in zip(as_mapping(fresh(1)(array)).values(), as_mapping(fresh(2)(array)).values(), strict=True)
        ), "two seeds gave the same result"
        two = twin_class(keys=["image", "copy"], **keywords).set_random_state(5)({"image": array, "copy": array.copy()})
        assert_same(
            {k.removeprefix("image"): v for k, v in two.items() if k.startswith("image")},
            {k.removeprefix("copy"): v for k, v in two.items() if k.startswith("copy")},
        )
    else:
        assert_same(clone({"image": array}), twin({"image": array}))

    dataset = CacheDataset([{"image": array}], Compose([twin]).set_random_state(1), progress=False)
    written = f"image{next(iter(as_mapping(expected)))}"
    draws = [dataset[0][written] for _ in range(4)]
    frozen = all(torch.equal(torch.as_tensor(draws[0]), torch.as_tensor(d)) for d in draws[1:])
    assert frozen is not random, "CacheDataset must freeze deterministic transforms and only these"
