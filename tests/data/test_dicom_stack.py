# SPDX-License-Identifier: Apache-2.0
"""stacked: the pixels of each slice in its place, with its own rescale; what does not go together is refused."""

from __future__ import annotations

import copy
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from dicom_samples import colour, enhanced, phantom, save, series_slices, write_series
from pydicom.dataset import Dataset
from pydicom.uid import RLELossless

from monai_labelfx.data._dicom_geometry import arrange
from monai_labelfx.data._dicom_stack import Stack, stacked
from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data.dicom_series import find_dicom_series

pytestmark = pytest.mark.filterwarnings("ignore:.*unlikely to represent the intended person name.*")


def stack_of(path: Path, on_irregular: str = "error", **options) -> Stack:
    (series,) = find_dicom_series(path)
    return stacked(arrange(series.frames, on_irregular=on_irregular), **options)


def array_of(path: Path, on_irregular: str = "error", **options) -> np.ndarray:
    """In the order (x, y, z)."""
    return stack_of(path, on_irregular, **options).array.T


def refused(path: Path, on_irregular: str = "error") -> str:
    with pytest.raises(ImageFileError) as caught:
        stack_of(path, on_irregular)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def twice(change=lambda image: None) -> list[Dataset]:
    """A series with the slices 2 and 5 twice, the second time changed."""
    slices = series_slices(phantom())
    again = [copy.deepcopy(slices[number]) for number in (2, 5)]
    for image in again:
        change(image)
    return [*slices, *again]


def test_every_slice_has_its_own_slope_and_intercept(tmp_path):
    slices = series_slices(phantom())
    for number, image in enumerate(slices):
        image.RescaleSlope, image.RescaleIntercept = 1 + number / 4, -1000 - number
    stored = np.stack([image.pixel_array.T for image in slices], axis=-1).astype(np.float64)
    found = stack_of(save(tmp_path, slices))
    expected = stored * (1 + np.arange(8) / 4) - 1000 - np.arange(8)
    assert found.array.dtype == np.float32 and np.array_equal(found.array.T, expected) and found.kind == "rescaled"


def test_number_of_frames_must_fit_the_pixels(tmp_path):
    image = enhanced(phantom())
    image.PixelData = image.PixelData[: len(image.PixelData) * 5 // 8]
    assert "0000.dcm" in refused(save(tmp_path / "few", [image]))
    image = enhanced(phantom())
    del image.PerFrameFunctionalGroupsSequence[5:]
    image.NumberOfFrames = 5
    assert "0000.dcm" in refused(save(tmp_path / "many", [image]))


def test_a_multi_frame_file_is_opened_once(tmp_path, monkeypatch):
    from monai_labelfx.data import _dicom_stack

    folder, opened = save(tmp_path, [enhanced(phantom())]), []
    read = _dicom_stack._read
    monkeypatch.setattr(_dicom_stack, "_read", lambda path: opened.append(path) or read(path))
    assert np.array_equal(array_of(folder), phantom()) and opened == [str(tmp_path / "0000.dcm")]


@pytest.mark.parametrize("seed", range(3))
def test_frames_of_a_multi_frame_file_are_sorted_too(tmp_path, seed):
    image, order = enhanced(phantom()), np.random.default_rng(seed).permutation(8)
    groups = list(image.PerFrameFunctionalGroupsSequence)
    image.PerFrameFunctionalGroupsSequence = [groups[number] for number in order]
    image.PixelData = image.pixel_array[order].tobytes()
    assert np.array_equal(array_of(save(tmp_path, [image])), phantom())


def test_a_missing_frame_is_a_gap(tmp_path):
    image = enhanced(phantom())
    del image.PerFrameFunctionalGroupsSequence[3]
    image.PixelData, image.NumberOfFrames = np.delete(image.pixel_array, 3, axis=0).tobytes(), 7
    assert "1 slice seems to be missing" in refused(save(tmp_path, [image]))


@pytest.mark.parametrize("gap", [[], [3]])
def test_a_colour_series(tmp_path, gap):
    slices, stills = series_slices(phantom((20, 16, 8))), [colour() for _ in range(8)]
    pictures = np.random.default_rng(0).integers(0, 256, (8, 16, 20, 3)).astype(np.uint8)
    for image, still, picture in zip(slices, stills, pictures, strict=True):
        for keyword in ("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "SeriesInstanceUID"):
            setattr(still, keyword, image[keyword].value)
        still.FrameOfReferenceUID, still.PixelData = slices[0].FrameOfReferenceUID, picture.tobytes()
    folder = save(tmp_path, [still for number, still in enumerate(stills) if number not in gap])
    found = stack_of(folder, "resample").array
    expected = pictures.astype(np.float64)
    for number in gap:
        expected[number] = np.rint((expected[number - 1] + expected[number + 1]) / 2)
    assert found.dtype == np.uint8 and np.array_equal(found, expected)


def test_slices_in_one_place_with_equal_pixels(tmp_path):
    folder = save(tmp_path, twice())
    assert np.array_equal(array_of(folder, "resample"), phantom())
    assert np.array_equal(array_of(folder, "warn"), phantom()[..., [0, 1, 2, 2, 3, 4, 5, 5, 6, 7]])


@pytest.mark.parametrize("on_irregular", ["warn", "resample"])
def test_slices_in_one_place_with_other_pixels_are_never_tolerated(tmp_path, on_irregular):
    def second_echo(image):
        image.EchoNumbers, image.PixelData = 2, image.PixelData[:-2] + b"\x01\x00"

    text = refused(save(tmp_path, twice(second_echo)), on_irregular)
    assert "differing in EchoNumbers" in text and "the pixels of slices in the same place differ" in text


def test_equal_stored_values_of_other_slope_are_other_pixels(tmp_path):
    def rescaled(image):
        image.RescaleSlope = 2

    assert "pixels of slices in the same place differ" in refused(save(tmp_path, twice(rescaled)), "resample")


def test_interpolation_weighs_the_neighbours(tmp_path):
    slices = series_slices(phantom())
    folder = save(tmp_path, [image for number, image in enumerate(slices) if number not in (3, 4)])
    array, expected = array_of(folder, "resample"), phantom().astype(np.float64)
    expected[..., 3] = expected[..., 2] * 2 / 3 + phantom()[..., 5] / 3
    expected[..., 4] = expected[..., 2] / 3 + phantom()[..., 5] * 2 / 3
    assert array.dtype == np.float32 and np.allclose(array, expected, atol=1e-3)
    there = [0, 1, 2, 5, 6, 7]
    assert np.array_equal(array[..., there], phantom()[..., there])


def test_values_that_need_more_precision_get_it(tmp_path):
    slices = series_slices(phantom((16, 12, 3)))
    for number in (1, 2):
        slices[number].BitsAllocated, slices[number].BitsStored, slices[number].HighBit = 32, 32, 31
        slices[number].PixelData = np.full(12 * 16, 2**31 + number, np.uint32).tobytes()
    array = array_of(save(tmp_path, slices))
    assert array.dtype == np.float64 and np.array_equal(array[..., 0], phantom((16, 12, 3))[..., 0])
    assert np.unique(array[..., 1:]).tolist() == [2**31 + 1 - 1024, 2**31 + 2 - 1024]


def test_slices_of_several_kinds_are_refused(tmp_path):
    slices = series_slices(phantom((16, 12, 3)))
    slices[1].SOPClassUID, slices[1].Modality = "1.2.840.10008.5.1.4.1.1.1", "CR"
    assert "some slices are colour images or projections" in refused(save(tmp_path, slices))


def test_padding(tmp_path):
    slices = series_slices(phantom((16, 12, 3)))
    for image in slices:
        image.PixelPaddingValue = 5
        image.PixelData = b"\x05\x00" + image.PixelData[2:]
    folder = save(tmp_path / "a", slices)
    found = stack_of(folder)
    assert found.padding == "-1019.0" and (found.array[:, 0, 0] == -1019).all()
    found = stack_of(folder, padding_fill=-2000)
    assert found.padding == "-2000.0" and (found.array[:, 0, 0] == -2000).all()
    slices[1].RescaleIntercept = -1000
    folder = save(tmp_path / "b", slices)
    with pytest.warns(UserWarning, match="different padding values"):
        assert stack_of(folder).padding == ""
    assert stack_of(folder, padding_fill=-2000).padding == "-2000.0"
    del slices[1].PixelPaddingValue
    assert stack_of(save(tmp_path / "c", slices)).padding == "-1019.0", "one slice without padding names none"


def test_truncated_pixels_name_their_file(tmp_path):
    write_series(tmp_path, phantom())
    (tmp_path / "0003.dcm").write_bytes((tmp_path / "0003.dcm").read_bytes()[:-30])
    assert "0003.dcm" in refused(tmp_path)


def test_compressed_slices(tmp_path):
    slices = series_slices(phantom())
    for image in slices[::2]:
        image.compress(RLELossless)
    assert np.array_equal(array_of(save(tmp_path, slices)), phantom())


def test_memory_is_the_array_and_a_few_slices(tmp_path):
    folder = write_series(tmp_path, phantom((256, 256, 80)))
    stack_of(folder)
    tracemalloc.start()
    array = stack_of(folder).array
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert array.nbytes == 4 * 256 * 256 * 80
    assert peak < array.nbytes + 24 * array[0].nbytes, f"{peak / array.nbytes:.2f} times the array"
