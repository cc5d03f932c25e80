# SPDX-License-Identifier: Apache-2.0
"""Several tensors as one row of numbers, and back."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._packed import pack, unpack

SHAPES = {"maps": (3, 4, 5), "volume": (2, 3, 1, 2), "rest": (7,), "none": (0, 4)}


def test_round_trip_with_gradients():
    parts = {name: torch.randn(2, *shape, requires_grad=True) for name, shape in SHAPES.items()}
    raw = pack(list(parts.values()))
    assert raw.shape == (2, 1, 60 + 12 + 7)
    found = unpack(raw, SHAPES)
    assert list(found) == list(SHAPES)
    assert all(torch.equal(found[name], part) for name, part in parts.items())
    assert all(part.untyped_storage().data_ptr() == raw.untyped_storage().data_ptr() for part in found.values())
    (2 * found["volume"]).sum().backward()
    assert (parts["volume"].grad == 2).all() and not parts["maps"].grad.any() and not parts["rest"].grad.any()


def test_parts_of_mixed_types_are_of_the_wider_one():
    assert pack([torch.ones(1, 2, dtype=torch.bfloat16), torch.ones(1, 2)]).dtype == torch.float32


@pytest.mark.parametrize("change", [-1, 1])
def test_numbers_that_do_not_add_up(change):
    with pytest.raises(ValueError, match=rf"must have 79 numbers for \{{'maps': .*\}}, got {79 + change}"):
        unpack(torch.zeros(2, 1, 79 + change), SHAPES)
