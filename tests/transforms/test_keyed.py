# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import inspect
import pickle

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from monai.data import CacheDataset, DataLoader
from monai.transforms import Compose, Randomizable, Transform
from monai.utils import TransformBackends

from monai_labelfx.transforms._keyed import Keyed, RandKeyed


class Shift(Transform):
    """Add a number."""

    backend = [TransformBackends.TORCH, TransformBackends.NUMPY]

    def __init__(self, by: float = 1.0) -> None:
        self.by = by

    def __call__(self, img):
        return {"": img + self.by, "_before": img}


class Shiftd(Keyed):
    array = Shift


class RandShift(Randomizable, Transform):
    """Add a random number."""

    backend = [TransformBackends.TORCH]

    def __init__(self, *, low: float = 0.0, high: float = 1.0) -> None:
        self.low, self.high = low, high
        self.drawn = 0.0

    def randomize(self, img) -> None:
        self.drawn = self.R.uniform(self.low, self.high)

    def __call__(self, img, randomize: bool = True):
        if randomize:
            self.randomize(img)
        return img + self.drawn


class RandShiftd(RandKeyed):
    array = RandShift


def test_companions_are_written_beside_the_key_and_the_item_is_left_alone():
    item = {"a": np.zeros(2), "c": 1}
    out = Shiftd(["a", "b"], by=2, allow_missing_keys=True)(item)
    assert out.keys() == {"a", "a_before", "c"} and item.keys() == {"a", "c"}
    assert np.array_equal(out["a"], [2, 2]) and np.array_equal(out["a_before"], [0, 0])
    with pytest.raises(KeyError):
        Shiftd(["a", "b"])(item)


def test_signature_documentation_and_backend_are_those_of_the_array_class():
    signature = inspect.signature(Shiftd)
    assert list(signature.parameters) == ["keys", "by", "allow_missing_keys"]
    assert signature.parameters["by"].default == 1.0
    assert signature.parameters["by"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "Shift" in Shiftd.__doc__ and Shiftd.backend is Shift.backend


def test_a_misspelt_keyword_names_the_array_class():
    with pytest.raises(TypeError, match="Shift"):
        Shiftd("a", buy=2)


def test_keys_share_one_draw_and_only_the_random_twin_is_random():
    out = RandShiftd(["a", "b"]).set_random_state(0)({"a": torch.zeros(1), "b": torch.zeros(1)})
    assert torch.equal(out["a"], out["b"]) and out["a"] != 0
    assert issubclass(RandShiftd, Randomizable) and not issubclass(Shiftd, Randomizable)
    first, second = (Compose([RandShiftd("a")]).set_random_state(7)({"a": torch.zeros(1)})["a"] for _ in range(2))
    assert torch.equal(first, second)


def test_pickle_keeps_the_shared_state():
    twin = pickle.loads(pickle.dumps(RandShiftd("a").set_random_state(3)))
    assert twin.R is twin.transform.R


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_data_set_draws_anew_in_every_worker(workers):
    data = [{"a": torch.zeros(1)} for _ in range(6)]
    dataset = CacheDataset(data, Compose([RandShiftd("a")]), progress=False)
    loader = DataLoader(dataset, batch_size=1, num_workers=workers)
    drawn = [float(batch["a"]) for _ in range(2) for batch in loader]
    assert len(set(drawn)) == 12


def test_configurations_name_it_by_path():
    config = {"t": {"_target_": f"{__name__}.Shiftd", "keys": "a", "by": 3}}
    import sys

    assert __name__ in sys.modules
    transform = ConfigParser(config).get_parsed_content("t")
    assert transform({"a": np.zeros(1)})["a"] == 3
