# SPDX-License-Identifier: Apache-2.0
"""What becomes of an array before it is a SEG: labels or masks, or one sentence; marks that keep empty planes."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest

from monai_labelfx.data._dicom_seg_labels import clear_marks, labels_of, mark_empty
from monai_labelfx.data._dicom_source import DicomSource

SOURCE = DicomSource(["slice.dcm"], None, "source", {})


def label_map(channels: int = 1, highest: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, highest + 1, (channels, 5, 4, 3))


@pytest.mark.parametrize("dtype", [bool, "uint8", "int16", "int64", "float16", "float32", "float64"])
def test_label_values_of_any_type(dtype):
    array = label_map(highest=1 if dtype is bool else 3).astype(dtype)
    labels = labels_of(array, {}, SOURCE)
    assert labels.dtype == np.uint8 and np.array_equal(labels, array[0].T) and labels.flags.c_contiguous
    labels[:] = 9
    assert array.max() < 9


def test_two_bytes_where_labels_or_names_need_them():
    assert labels_of(label_map(highest=255), {}, SOURCE).dtype == np.uint8
    assert labels_of(label_map(highest=3), {256: "name"}, SOURCE).dtype == np.uint16
    array = label_map()
    array[0, 0, 0, 0] = 65535
    labels = labels_of(array, {}, SOURCE)
    assert labels.dtype == np.uint16 and labels[0, 0, 0] == 65535


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (-1, "'slice.dcm' holds values from -1.0 to 3.0, expected whole numbers from 0 to 65535"),
        (65536, "expected whole numbers from 0 to 65535"),
        (0.5, r"for a probability apply AsDiscrete\(threshold=0.5\)"),
        (np.nan, "NaN or infinity"),
        (np.inf, "NaN or infinity"),
        (1j, "values of type complex128"),
    ],
)
def test_values_that_are_no_labels(value, message):
    array = label_map().astype(type(value) if isinstance(value, complex) else float)
    array[0, 3, 3, 2] = value
    with pytest.raises(ValueError, match=message):
        labels_of(array, {}, SOURCE)


@pytest.mark.parametrize("dtype", [bool, "uint8", "float32"])
def test_channels_are_masks(dtype):
    masks = label_map(2, highest=1).astype(dtype)
    found = labels_of(masks, {}, SOURCE)
    assert found.dtype == np.uint8 and np.array_equal(found, np.moveaxis(masks, 0, -1).transpose(2, 1, 0, 3))
    half = np.full((2, 5, 4, 3), 0.4)
    half[0, 0, 0, 0] = 0.4999
    half[1, 2, 3, 1] = 0.5
    assert np.argwhere(labels_of(half, {}, SOURCE)).tolist() == [[1, 3, 2, 1]]


@pytest.mark.parametrize("value", [-0.1, 1.1, 2])
def test_channels_of_other_values(value):
    array = label_map(2, highest=1).astype(float)
    array[1, 0, 0, 0] = value
    with pytest.raises(ValueError, match="the 2 channels for 'slice.dcm' hold .* expected masks or probabilities"):
        labels_of(array, {}, SOURCE)


@pytest.mark.parametrize("soft", [False, True])
def test_channels_that_hold_the_background(soft):
    hot = np.moveaxis(np.eye(4)[label_map()[0]], -1, 0)
    if soft:
        hot = (np.exp(2 * hot) / np.exp(2 * hot).sum(axis=0)).astype(np.float32)
    with pytest.raises(ValueError, match=r"add up to 1 everywhere.*AsDiscrete\(argmax=True\)"):
        labels_of(hot, {}, SOURCE)


@pytest.mark.parametrize("order", [1, -1])
@pytest.mark.parametrize("channels", [1, 2])
def test_marks_leave_nothing_behind(order, channels):
    labels = np.zeros((6, 3, 5) if channels == 1 else (6, 3, 5, 2), dtype=np.uint8)
    labels[1, 0, 0], labels[2, 1, 1], labels[4] = 1, 1, 1
    labels[2, 2, 2] = 2 if channels == 1 else 1
    if channels == 1:
        labels[5, 0, 0] = 2  # not empty, and no plane of the first segment
    before = labels.copy()
    marked = mark_empty(labels)
    assert marked.tolist() == ([0, 3] if channels == 1 else [0, 3, 5])
    assert (labels != before).sum() == len(marked)
    first = (labels if channels == 1 else labels[..., 0]) == 1
    positions = [[0.0, 0.0, 2.0 * index] for index in range(6)]
    kept = [index for index in range(6)[::order] if first[index].any()]
    place = [SimpleNamespace(PlanePositionSequence=[SimpleNamespace(ImagePositionPatient=positions[i])]) for i in kept]
    bits = np.packbits(first[kept].ravel(), bitorder="little").tobytes()
    result = SimpleNamespace(PixelData=bits, Rows=3, Columns=5, PerFrameFunctionalGroupsSequence=place)
    clear_marks(result, marked, labels, positions)
    found = np.unpackbits(np.frombuffer(result.PixelData, np.uint8), bitorder="little")[: len(kept) * 15]
    expected = (before if channels == 1 else before[..., 0]) == 1
    assert np.array_equal(found.reshape(-1, 3, 5), expected[kept])
