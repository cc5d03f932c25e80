# SPDX-License-Identifier: Apache-2.0
"""Padding of rows in every container."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from testers import AFFINE

from monai_labelfx.transforms._box_rows import checked_max_boxes, padded_rows


@pytest.mark.parametrize("shape", [(2,), (2, 4), (2, 3, 2), (0, 6)])
@pytest.mark.parametrize("kind", ["numpy", "tensor", "metatensor"])
def test_rows_are_added_at_the_end(shape, kind):
    rows = torch.arange(1.0, 1 + np.prod(shape)).reshape(shape)
    rows = {"numpy": rows.numpy(), "tensor": rows, "metatensor": MetaTensor(rows, affine=AFFINE)}[kind]
    out = padded_rows(rows, 5, -1)
    assert type(out) is type(rows) and out.shape == (5, *shape[1:]) and out.dtype == rows.dtype
    assert np.array_equal(out[: len(rows)], rows) and (np.asarray(out[len(rows) :]) == -1).all()
    assert kind != "metatensor" or torch.equal(out.affine, rows.affine)
    assert padded_rows(rows, None) is rows and padded_rows(rows, len(rows)) is rows


def test_too_many_rows_are_an_error():
    with pytest.raises(ValueError, match="the item has 3 boxes, more than max_boxes=2: give a higher max_boxes"):
        padded_rows(torch.zeros(3, 4), 2)
    with pytest.raises(ValueError, match="max_boxes must be 1 or above, or None for no padding, got 0"):
        checked_max_boxes(0)
    assert checked_max_boxes(None) is None and checked_max_boxes(4) == 4
