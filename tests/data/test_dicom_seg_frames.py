# SPDX-License-Identifier: Apache-2.0
"""Stored frames of a SEG, and the label map that they make."""

from __future__ import annotations

import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
)

from monai_labelfx.data._dicom_seg_frames import Frames, fill_from_label_map, fill_from_masks
from monai_labelfx.data._dicom_seg_grid import Grid


def stored(values: np.ndarray, bits: int, syntax=ExplicitVRLittleEndian) -> Dataset:
    """A dataset of frames (frames, rows, columns); bit planes are packed without gaps between frames."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.NumberOfFrames, dataset.Rows, dataset.Columns = values.shape
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit, dataset.PixelRepresentation, dataset.SamplesPerPixel = bits - 1, 0, 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    if bits == 1:
        dataset.PixelData = np.packbits(values.ravel(), bitorder="little").tobytes()
    else:
        dataset.PixelData = values.astype(f"{'>' if syntax == ExplicitVRBigEndian else '<'}u{bits // 8}").tobytes()
    dataset["PixelData"].VR = "OW"
    return dataset


def picture(bits: int, shape=(5, 3, 7)) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 2**bits, shape)


@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("shape", [(5, 3, 7), (1, 1, 1), (4, 8, 8)])
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian, DeflatedExplicitVRLittleEndian])
def test_frames_need_not_begin_with_a_byte(bits, shape, syntax):
    values = picture(bits, shape)
    frames = Frames(stored(values, bits, syntax), shape[0], "seg.dcm")
    assert all(np.array_equal(frames[index], values[index]) for index in reversed(range(shape[0])))


def test_big_endian():
    values = picture(16, (4, 2, 8))
    frames = Frames(stored(values, 16, ExplicitVRBigEndian), 4, "seg.dcm")
    assert all(np.array_equal(frames[index], values[index]) for index in range(4))


@pytest.mark.parametrize("bits", [1, 8, 16])
def test_missing_bytes(bits):
    dataset = stored(picture(bits), bits)
    dataset.PixelData = dataset.PixelData[:-1]
    with pytest.raises(ValueError, match=r"'seg.dcm' is cut off: its 5 frames need \d+ bytes, found \d+"):
        Frames(dataset, 5, "seg.dcm")


@pytest.mark.parametrize(("keyword", "value"), [("BitsAllocated", 32), ("BitsAllocated", None), ("SamplesPerPixel", 3)])
def test_pixels_that_no_segmentation_has(keyword, value):
    dataset = stored(picture(8), 8)
    setattr(dataset, keyword, value)
    with pytest.raises(ValueError, match="'seg.dcm' has no pixels of one sample of 1, 8 or 16 bits"):
        Frames(dataset, 5, "seg.dcm")


def test_label_map_values_are_looked_up():
    values = picture(2)
    grid = Grid(6, np.array([5, 0, 1, 2, 3]), np.eye(4))
    volume = np.zeros((6, 3, 7), dtype=np.uint16)
    fill_from_label_map(volume, Frames(stored(values, 8), 5, "s"), grid, [(1, 500), (3, 7)], {0, 1, 2, 3}, "s")
    assert np.array_equal(volume[grid.plane], np.array([0, 500, 0, 7])[values]) and not volume[4].any()
    twice = Grid(5, np.array([4, 4, 1, 2, 3]), np.eye(4))
    with pytest.raises(ValueError, match="several label maps in one place"):
        fill_from_label_map(volume, Frames(stored(values, 8), 5, "s"), twice, [], {0, 1, 2, 3}, "s")


def masks(numbers: list[int | None], values: np.ndarray) -> Frames:
    dataset = stored(values, 1)
    dataset.PerFrameFunctionalGroupsSequence = [Dataset() for _ in numbers]
    for item, number in zip(dataset.PerFrameFunctionalGroupsSequence, numbers, strict=True):
        if number is not None:
            item.SegmentIdentificationSequence = [Dataset()]
            item.SegmentIdentificationSequence[0].ReferencedSegmentNumber = number
    return Frames(dataset, len(numbers), "seg.dcm")


def test_masks_are_painted_in_the_order_asked_for():
    values = np.zeros((3, 3, 7), dtype=np.uint8)
    values[0, :, :4], values[1, :, 2:], values[2, 0] = 1, 1, 1
    frames, grid = masks([1, 2, 1], values), Grid(2, np.array([0, 0, 1]), np.eye(4))
    volume = np.zeros((2, 3, 7), dtype=np.uint16)
    fill_from_masks(volume, frames, grid, [(2, 20), (1, 10)], "seg.dcm", cover=True)
    assert volume[0, 0].tolist() == [10, 10, 10, 10, 20, 20, 20] and volume[1].sum() == 70
    with pytest.raises(ValueError, match="'seg.dcm' has overlapping segments"):
        fill_from_masks(np.zeros_like(volume), frames, grid, [(1, 1), (2, 2)], "seg.dcm", cover=False)
    alone = np.zeros_like(volume)
    fill_from_masks(alone, frames, grid, [(2, 2), (3, 3)], "seg.dcm", cover=False)
    assert np.array_equal(alone[0], 2 * values[1]) and not alone[1].any()


def test_masks_without_a_segment_and_twice():
    grid = Grid(1, np.zeros(2, dtype=int), np.eye(4))
    volume = np.zeros((1, 3, 7), dtype=np.uint16)
    with pytest.raises(ValueError, match="does not say of which segment its frame 2 is"):
        fill_from_masks(volume, masks([1, None], picture(1, (2, 3, 7))), grid, [(1, 1)], "seg.dcm", cover=False)
    with pytest.raises(ValueError, match="several frames of segment 1 in one place"):
        fill_from_masks(volume, masks([1, 1], picture(1, (2, 3, 7))), grid, [(1, 1)], "seg.dcm", cover=False)
