# SPDX-License-Identifier: Apache-2.0
"""The MetaImage reader: types, byte orders and places of the voxels, the geometry, and every refusal."""

from __future__ import annotations

import zlib
from pathlib import Path

import numpy as np
import pytest

from monai_labelfx.data.prepare._metaimage import read_metaimage

HEADER = {
    "ObjectType": "Image",
    "NDims": "3",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "TransformMatrix": "0 1 0 0 0 1 1 0 0",
    "Offset": "10 -20 30",
    "CenterOfRotation": "0 0 0",
    "AnatomicalOrientation": "RAI",
    "ElementSpacing": "0.5 2 3",
    "DimSize": "4 3 2",
    "ElementType": "MET_SHORT",
    "ElementDataFile": "image.raw",
}
ARRAY = np.arange(24, dtype=np.int16).reshape(4, 3, 2) - 5


def write(folder: Path, content: bytes | None = ARRAY.tobytes("F"), **changes: str | None) -> Path:
    """A header with ``changes`` (None leaves a key out) and its voxels, behind it or in image.raw."""
    keys = {key: value for key, value in {**HEADER, **changes}.items() if value is not None}
    if "ElementDataFile" in keys:
        keys["ElementDataFile"] = keys.pop("ElementDataFile")  # always last
    text = "".join(f"{key} = {value}\n" for key, value in keys.items()).encode()
    path = folder / "image.mhd"
    local = keys.get("ElementDataFile") == "LOCAL"
    path.write_bytes(text + (content or b"" if local else b""))
    if content is not None and not local:
        (folder / "image.raw").write_bytes(content)
    return path


def test_voxels_and_geometry(tmp_path):
    array, affine = read_metaimage(write(tmp_path))
    assert array.dtype == np.int16 and np.array_equal(array, ARRAY)
    # axis 0 runs along +y in LPS, 0.5 mm a step; axis 1 along +z, 2 mm; axis 2 along +x, 3 mm
    for index, lps in (((0, 0, 0), (10, -20, 30)), ((1, 0, 0), (10, -19.5, 30)), ((0, 1, 0), (10, -20, 32))):
        assert (affine @ [*index, 1]).tolist() == [-lps[0], -lps[1], lps[2], 1]
    assert (affine @ [0, 0, 1, 1]).tolist() == [-13, 20, 30, 1]


def test_a_rotation_agrees_with_simpleitk(tmp_path):
    """The numbers were printed by SimpleITK 2.5.7 for a header with this matrix, spacing and offset."""
    matrix = "0.8 0.6 0 -0.48 0.64 0.6 0.36 -0.48 0.8"
    _, affine = read_metaimage(write(tmp_path, TransformMatrix=matrix, Offset="1 -20 33", ElementSpacing="0.5 0.7 3.1"))
    physical = [(1.0, -20.0, 33.0), (1.4, -19.7, 33.0), (0.664, -19.552, 33.42), (2.116, -21.488, 35.48)]
    for index, lps in zip(((0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)), physical, strict=True):
        np.testing.assert_allclose(affine @ [*index, 1], [-lps[0], -lps[1], lps[2], 1], atol=1e-12)


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("CHAR", "i1"),
        ("UCHAR", "u1"),
        ("USHORT", "u2"),
        ("INT", "i4"),
        ("LONG", "i4"),
        ("ULONG", "u4"),
        ("LONG_LONG", "i8"),
        ("FLOAT", "f4"),
        ("DOUBLE", "f8"),
    ],
)
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("local", [False, True])
def test_types_orders_and_places(tmp_path, name, dtype, order, packed, local):
    expected = ARRAY.astype(dtype)
    content = expected.astype(order + dtype).tobytes("F")
    path = write(
        tmp_path,
        zlib.compress(content) if packed else content,
        ElementType=f"MET_{name}",
        BinaryDataByteOrderMSB=str(order == ">"),
        CompressedData=str(packed),
        ElementDataFile="LOCAL" if local else "image.raw",
    )
    array, _ = read_metaimage(path)
    assert array.dtype == np.dtype(dtype) and array.dtype.isnative and np.array_equal(array, expected)


def test_older_names_and_unknown_keys(tmp_path):
    plain = read_metaimage(write(tmp_path))
    changes = {"Offset": None, "Position": HEADER["Offset"], "TransformMatrix": None}
    changes |= {"Orientation": HEADER["TransformMatrix"], "0008|0060": "MR", "Comment": "a = b"}
    changes |= {"BinaryDataByteOrderMSB": None, "ElementByteOrderMSB": "False", "ObjectType": None, "BinaryData": None}
    older = read_metaimage(write(tmp_path, **changes))
    assert np.array_equal(plain[0], older[0]) and np.array_equal(plain[1], older[1])


@pytest.mark.parametrize("skip", ["7", "-1"])
def test_a_header_of_the_raw_file_is_skipped(tmp_path, skip):
    array, _ = read_metaimage(write(tmp_path, b"1234567" + ARRAY.tobytes("F"), HeaderSize=skip))
    assert np.array_equal(array, ARRAY)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"NDims": None}, "no key NDims"),
        ({"DimSize": None}, "no key DimSize"),
        ({"ElementSpacing": None}, "no key ElementSpacing"),
        ({"TransformMatrix": None}, "no key TransformMatrix"),
        ({"Offset": None}, "no key Offset"),
        ({"ElementType": None}, "no key ElementType"),
        ({"ElementDataFile": None}, "no key ElementDataFile"),
        ({"NDims": "2"}, "NDims = 2, expected 3"),
        ({"DimSize": "4 3"}, "DimSize = 4 3, expected 3 finite"),
        ({"DimSize": "4 3 0"}, "DimSize = 4 3 0, expected three lengths above 0"),
        ({"DimSize": "4 3 2.5"}, "DimSize = 4 3 2.5, expected three lengths above 0"),
        ({"DimSize": "4 3 3"}, "announces 72 bytes of pixels, too many for a file of 48 bytes"),
        ({"DimSize": "4 3 1"}, r"image\.raw' holds 25 bytes of voxels, but 'image\.mhd' announces 24 \(4 x 3 x 1"),
        ({"DimSize": "40000 30000 20000"}, "too many for a file of 48 bytes"),
        ({"ElementSpacing": "1 1 0"}, "ElementSpacing = 1 1 0, expected sizes above 0"),
        ({"ElementSpacing": "1 1 nan"}, "ElementSpacing = 1 1 nan, expected 3 finite"),
        ({"Offset": "1 two 3"}, "Offset = 1 two 3, expected 3 finite"),
        ({"TransformMatrix": "1 0 0 1 0 0 0 0 1"}, "expected three directions of length 1"),
        ({"TransformMatrix": "2 0 0 0 1 0 0 0 1"}, "expected three directions of length 1"),
        ({"ElementType": "MET_STRING"}, "ElementType = MET_STRING, expected one of MET_CHAR, "),
        ({"ElementNumberOfChannels": "3"}, "ElementNumberOfChannels = 3, expected 1"),
        ({"ObjectType": "Tube"}, "ObjectType = Tube, expected image"),
        ({"BinaryData": "False"}, "BinaryData = False, expected true"),
        ({"CompressedData": "maybe"}, "CompressedData = maybe, expected True or False"),
        ({"CompressedData": "True"}, r"cannot be read as MetaImage \(corrupt"),
        ({"ElementToIntensityFunctionSlope": "2"}, "scales its values by 2 and 0"),
        ({"ElementDataFile": "LIST"}, "ElementDataFile = LIST, expected LOCAL"),
        ({"ElementDataFile": "slice%03d.raw 1 5 1"}, "expected LOCAL or the name of one file"),
        ({"ElementDataFile": "absent.raw"}, "has its voxels in 'absent.raw', which is not in its folder"),
        ({"ElementDataFile": "../image.raw"}, "which is not in its folder"),
        ({"Position": "1 2 3"}, "has the key Offset twice"),
    ],
)
def test_refusals_are_one_sentence_with_the_file(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message) as caught:
        read_metaimage(write(tmp_path, **changes))
    assert "\n" not in str(caught.value) and ("image.mhd" in str(caught.value) or "image.raw" in str(caught.value))


@pytest.mark.parametrize("packed", [False, True])
def test_truncated_voxels(tmp_path, packed):
    content = zlib.compress(ARRAY.tobytes("F")) if packed else ARRAY.tobytes("F")
    for length in (0, 10, len(content) - 9):
        path = write(tmp_path, content[:length], CompressedData=str(packed))
        with pytest.raises(ValueError, match=r"image\.raw' (holds \d+ bytes|cannot be read)"):
            read_metaimage(path)


def test_other_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="absent.mhd' does not exist"):
        read_metaimage(tmp_path / "absent.mhd")
    (tmp_path / "noise.mhd").write_bytes(bytes(range(256)) * 300)
    with pytest.raises(ValueError, match=r"noise\.mhd' cannot be read as MetaImage"):
        read_metaimage(tmp_path / "noise.mhd")
    (tmp_path / "empty.mhd").touch()
    with pytest.raises(ValueError, match=r"empty\.mhd' cannot be read as MetaImage: it has no key ElementDataFile"):
        read_metaimage(tmp_path / "empty.mhd")
