# SPDX-License-Identifier: Apache-2.0
"""Objects of label maps, numbered: against a loop, and against the boxes of the same objects."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import ndimage

from monai_labelfx.ops.box_affine import masks_to_boxes
from monai_labelfx.transforms._object_numbers import number_objects
from monai_labelfx.transforms.labels_to_tight_boxes import LabelsToTightBoxes

NUMBERS = st.sampled_from([0, 0, 1, 2, 5, 10**9])
MAPS = st.sampled_from([(1, 7), (2, 4, 5), (3, 3, 4, 2), (1, 0, 3)]).flatmap(
    lambda shape: arrays(np.int64, shape, elements=NUMBERS)
)


def naive(label: np.ndarray, kind: str) -> list[tuple[int, np.ndarray]]:
    """Class and voxels (*spatial) of each object, in order, one by one."""
    found = []
    for number, channel in enumerate(label):
        values = sorted(set(channel.ravel().tolist()) - {0}) if kind != "masks" else [None]
        for value in values:
            inside = channel != 0 if value is None else channel == value
            if kind == "instances":
                found.append((number, number, inside))
                continue
            parts, count = ndimage.label(inside, np.ones((3,) * inside.ndim))
            cls = value - 1 if kind == "classes" else number
            found += [(number, cls, parts == part + 1) for part in range(count)]
    return found


@pytest.mark.parametrize("kind", ["instances", "classes", "masks"])
@settings(max_examples=40, deadline=None)
@given(label=MAPS)
def test_against_a_loop(kind, label):
    before = label.copy()
    numbered, classes = number_objects(label, kind)
    wanted = naive(label, kind)
    assert numbered.dtype == np.int32 and classes.dtype == np.int64 and np.array_equal(label, before)
    assert classes.tolist() == [cls for _, cls, _ in wanted]
    expected = np.zeros_like(label)
    for number, (channel, _, inside) in enumerate(wanted, 1):
        expected[channel][inside] = number
    assert np.array_equal(numbered, expected)


@pytest.mark.parametrize("kind", ["instances", "classes", "masks"])
@pytest.mark.parametrize("ndim", [2, 3])
def test_the_order_is_that_of_the_boxes(kind, ndim):
    rng = np.random.default_rng(0)
    label = (rng.random((1 if kind == "classes" else 2, *(9,) * ndim)) < 0.1) * rng.integers(1, 6, (9,) * ndim)
    numbered, classes = number_objects(label, kind)
    boxes = LabelsToTightBoxes(kind)(label)
    masks = torch.from_numpy((numbered[None] == np.arange(1, len(classes) + 1).reshape(-1, *[1] * (ndim + 1))).any(1))
    assert torch.equal(masks_to_boxes(masks), boxes["_boxes"]) and torch.equal(
        torch.from_numpy(classes), boxes["_box_labels"]
    )
