# SPDX-License-Identifier: Apache-2.0
"""Images as stacks of slices: shapes, memory, faults."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor

from monai_labelfx.metrics._hu_slices import compared, hu_slices, is_plane, label_slices, same_slices, stacks


@pytest.mark.parametrize("kind", [np.asarray, torch.as_tensor, lambda a: MetaTensor(torch.as_tensor(a))])
def test_slices_are_those_of_the_last_axis_in_any_container(kind):
    volume = np.arange(60.0).reshape(5, 4, 3)
    for image in (kind(volume), kind(volume[None])):
        slices = hu_slices(image, "source")
        assert slices.shape == (3, 5, 4) and not is_plane(image)
        assert all(np.array_equal(slices[number], volume[..., number]) for number in range(3))
    for image in (kind(volume[..., 0]), kind(volume[None, ..., 0])):
        assert hu_slices(image, "source").shape == (1, 5, 4) and is_plane(image)
    assert hu_slices(kind(volume[..., :1]), "source").shape == (1, 5, 4) and not is_plane(kind(volume[..., :1]))


def test_memory_is_shared_and_gradients_do_not_hurt():
    array = np.zeros((5, 4, 3))
    assert np.shares_memory(hu_slices(array, "source"), array)
    assert hu_slices(torch.zeros(5, 4, requires_grad=True), "source").shape == (1, 5, 4)
    assert hu_slices(torch.zeros(5, 4, dtype=torch.bfloat16), "source").dtype == np.float32


def test_stacks_cover_every_slice_once():
    parts = list(stacks(np.zeros((7, 900, 900), np.int8)))
    assert [number for part in parts for number in range(part.start, part.stop)] == list(range(7)) and len(parts) == 4
    assert [(part.start, part.stop) for part in stacks(np.zeros((2, 3000, 3000), np.int8))] == [(0, 1), (1, 2)]


def test_what_is_left_out_is_zero_and_may_be_anything():
    before = np.array([[[1.0, np.nan, 3.0]]])
    after = np.array([[[2.5, 5.0, np.inf]]])
    values, difference, valid = compared(before, after, np.array([[[0, 1, 1]]]))
    assert values.tolist() == [[[1, 0, 0]]] and difference.tolist() == [[[1.5, 0, 0]]]
    assert valid.tolist() == [[[True, False, False]]]
    with pytest.raises(ValueError, match="source holds NaN or infinity"):
        compared(before, after, np.array([[[0, 0, 1]]]))
    with pytest.raises(ValueError, match="output holds NaN or infinity"):
        compared(before, after, np.array([[[0, 1, 0]]]))


@pytest.mark.parametrize("kind", [np.int16, np.uint16, np.int32, np.float16, np.float32, np.float64])
def test_differences_are_exact_in_every_type(kind):
    before, after = (np.array([[values]], kind) for values in ([2000, 7], [1999, 20]))
    _, difference, _ = compared(before, after, None)
    assert difference.dtype == np.float32 and difference.tolist() == [[[-1, 13]]]


def test_labels():
    assert label_slices(np.array([[[0.0, 2.0]]])).tolist() == [[[0, 2]]]
    for wrong in ([[[0.5]]], [[[-1]]], [[[np.nan]]]):
        with pytest.raises(ValueError, match="roi must hold whole numbers"):
            label_slices(np.array(wrong))


def test_bad_images_are_named():
    for shape in ((3,), (2, 5, 4, 3), (1, 1, 5, 4, 3), (0, 4)):
        with pytest.raises(ValueError, match="source must be a slice or a volume of one channel"):
            hu_slices(np.zeros(shape), "source")
    with pytest.raises(TypeError, match="source must hold numbers, got complex128"):
        hu_slices(np.zeros((3, 3), complex), "source")
    with pytest.raises(ValueError, match=r"output must have .* \(5, 4, 3\), got \(5, 4, 2\)"):
        same_slices(hu_slices(np.zeros((5, 4, 3)), "source"), np.zeros((5, 4, 2)), "output")
