# SPDX-License-Identifier: Apache-2.0
"""The stored type of a source, and values as its numbers; tests/test_ct_identity.py goes through the files."""

from __future__ import annotations

import numpy as np
import pydicom
import pytest
from dicom_derived_samples import as_stored, read, series
from dicom_samples import enhanced, phantom, save, series_slices

from monai_labelfx.data._stored_type import StoredType, stored_type_of


def test_numbers_are_the_nearest_and_clipped():
    stored = StoredType(np.dtype(np.int16), 0.5, -1024.0)
    values = np.array([-1024.0, -1023.8, -1023.7, -1024.3, 40.0, 1e9, -1e9])
    assert stored.numbers(values).tolist() == [0, 0, 1, -1, 2128, 32767, -32768]
    assert StoredType(np.dtype(np.uint8), -2.0, 0.0).numbers(np.array([-20, 20])).tolist() == [10, 0]
    assert values[0] == -1024.0


@pytest.mark.parametrize("dtype", ["int8", "uint8", "int16", "uint16", "int32", "uint32", "int64", "uint64"])
def test_both_ends_of_every_type(dtype):
    limits = np.iinfo(dtype)
    found = StoredType(np.dtype(dtype)).numbers(np.array([-1e30, 1e30]))
    assert found.dtype == dtype and found[0] == limits.min
    assert int(found[1]) == (limits.max if limits.bits < 64 else int(np.nextafter(float(limits.max), 0)))


def test_what_whole_numbers_cannot_hold():
    values = np.array([0.0, np.nan, np.inf, -np.inf])
    with pytest.raises(ValueError, match="holds 3 values that are NaN or infinite, which the int16 of its source"):
        StoredType(np.dtype(np.int16)).numbers(values)
    assert np.array_equal(StoredType(np.dtype(np.float64)).numbers(values), values, equal_nan=True)


@pytest.mark.parametrize("collated", [False, True])
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("int16 1.0 -1024.0", StoredType(np.dtype(np.int16), 1.0, -1024.0)),
        ("uint8 2.0 0.0", StoredType(np.dtype(np.uint8), 2.0, 0.0)),
        ("float64 2.0 5.0", StoredType(np.dtype(np.float64))),  # the slope is in the values
        ("int16 2.059 0.0", StoredType(np.dtype(np.float32))),  # of NIfTI-2, which holds it as float64
    ],
)
def test_of_nifti(text, expected, collated):
    assert stored_type_of({"nifti_stored": [text] if collated else text}) == expected
    assert expected.text.split()[0] == expected.dtype.name


@pytest.mark.parametrize("meta", [None, {}, {"nifti_stored": "int16 1.0"}, {"nifti_stored": "int16 0.0 1.0"}])
def test_an_image_that_does_not_know(meta):
    with pytest.raises(ValueError, match="does not know how its source stored.*AutoReader"):
        stored_type_of(meta)


@pytest.mark.parametrize("text", ["complex64 1.0 0.0", "int16 nan 0.0", "int16 1.0 inf", "cat 1.0 0.0", "int16 x 0.0"])
def test_text_that_no_reader_writes(text):
    with pytest.raises(ValueError, match="does not know"):
        stored_type_of({"nifti_stored": text})


def test_of_dicom(tmp_path):
    change = as_stored(bits=12, signed=True, slope=lambda index: 0.5, intercept=-8192)
    image = read(series(tmp_path / "a", change))
    assert stored_type_of(image.meta) == StoredType(np.dtype(np.int16), 0.5, -8192.0)
    for name, other in {
        "slope": as_stored(slope=lambda index: 1.0 + (index == 5)),
        "type": lambda image, index: as_stored(signed=index == 5)(image, index),
        "rounding": as_stored(slope=lambda index: 2.059),
    }.items():
        assert stored_type_of(read(series(tmp_path / name, other)).meta) == StoredType(np.dtype(np.float32)), name
    shown = read(series(tmp_path / "b", as_stored()), display=True)
    assert stored_type_of(shown.meta) == StoredType(np.dtype(np.float32))


def test_of_dicom_by_a_table(tmp_path):
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [256, 0, 16], list(range(256)), "HU"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    slices = series_slices(np.full((4, 4, 2), -1000.0))
    for one in slices:
        one.ModalityLUTSequence = [table]
        del one.RescaleSlope, one.RescaleIntercept
    assert stored_type_of(read(save(tmp_path, slices)).meta) == StoredType(np.dtype(np.float32))


def test_of_multi_frame_dicom(tmp_path):
    save(tmp_path, [enhanced(phantom())])
    meta = read(tmp_path / "0000.dcm").meta
    assert stored_type_of(meta) == StoredType(np.dtype(np.uint16), 1.0, -1024.0)
    (tmp_path / "0000.dcm").unlink()
    with pytest.raises(ValueError, match="are gone"):
        stored_type_of(meta)
