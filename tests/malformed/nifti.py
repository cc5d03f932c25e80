# SPDX-License-Identifier: Apache-2.0
"""NIfTI files that are broken, lie, or mean something that readers get wrong."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np

from malformed.case import Case, file

ARRAY = np.arange(4 * 5 * 6, dtype=np.int16).reshape(4, 5, 6)
_TURN = np.array([[np.cos(0.3), -np.sin(0.3), 0], [np.sin(0.3), np.cos(0.3), 0], [0, 0, 1.0]])
AFFINE = np.eye(4)
AFFINE[:3, :3], AFFINE[:3, 3] = _TURN * [2.0, 3.0, 4.0], [-10.0, 20.0, -30.0]


def stored(edit: Callable[[Any], None] = lambda header: None, array: np.ndarray = ARRAY, kind: Any = None) -> bytes:
    """The bytes of a plain file with sform and qform, after ``edit`` changed its header."""
    header = (kind or nib.Nifti1Image)(array, AFFINE, dtype=array.dtype).header
    header.set_sform(AFFINE, 1)
    header.set_qform(AFFINE, 1)
    header["vox_offset"] = header.single_vox_offset
    edit(header)
    return header.binaryblock + bytes(4) + array.tobytes(order="F")


def _set(**values: Any) -> Callable[[Any], None]:
    """Header fields; ``pixdim_1`` or ``dim_0`` is an entry of a field."""

    def edit(header: Any) -> None:
        for name, value in values.items():
            field, _, index = name.rpartition("_")
            if field in ("pixdim", "dim"):
                header[field][int(index)] = value
            else:
                header[name] = value

    return edit


def _plain(error: str | None = None, array: np.ndarray = ARRAY, **values: Any) -> Case:
    """A case that differs from a good file in header fields only; without ``error`` it must be read as if good."""
    write = file("a.nii", lambda: stored(_set(**values), array))
    return Case(write, error) if error else Case(write, result=array, affine=AFFINE)


def _big_endian(folder: Path) -> Path:
    header = nib.Nifti1Image(ARRAY, AFFINE, dtype=ARRAY.dtype).header.as_byteswapped(">")
    header["vox_offset"] = 352
    (folder / "a.nii").write_bytes(header.binaryblock + bytes(4) + ARRAY.astype(">i2").tobytes(order="F"))
    return folder / "a.nii"


def _wrong_checksum() -> bytes:
    packed = bytearray(gzip.compress(stored()))
    packed[-5] ^= 1
    packed[-8] ^= 1
    return bytes(packed)


def _zeros(start: bytes, blocks: int) -> bytes:
    """A gzip file of ``start`` and then 2**20 zeros ``blocks`` times, in the time of packing one such block."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(start) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    check, zeros = zlib.crc32(start), bytes(2**20)
    for _ in range(blocks):
        check = zlib.crc32(zeros, check)
    tail = check.to_bytes(4, "little") + ((len(start) + blocks * 2**20) % 2**32).to_bytes(4, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + head + block * blocks + packer.flush() + tail


def _bomb() -> bytes:
    start = stored(_set(dim_1=1024, dim_2=1024, dim_3=3072, datatype=2, bitpix=8))
    return _zeros(start[:352], 3072)


def _extension() -> bytes:
    """A header extension of "-8" bytes, for which a reader would read on to the end of the file."""
    start = stored(_set(vox_offset=2**25))
    return _zeros(start[:348] + b"\1\0\0\0" + np.array([0, 6], "<i4").tobytes(), 32) + b""


def _numbers(array: np.ndarray) -> Case:
    return Case(file("a.nii", lambda: stored(array=array)), "values of type .*expected one real number per voxel")


_NAN_SFORM = {"srow_x": [np.nan] * 4}
_NO_FORM = {"sform_code": 0, "qform_code": 0}
_SERIES = np.arange(4 * 5 * 6 * 3, dtype=np.int16).reshape(4, 5, 6, 3)
_RGB = np.zeros((4, 5, 6), [("R", "u1"), ("G", "u1"), ("B", "u1")])

NIFTI: dict[str, Case] = {
    "empty": Case(file("a.nii", b""), "expected a header of 348 or 540 bytes, found 0 bytes"),
    "empty, gz": Case(file("a.nii.gz", b""), "found 0 bytes"),
    "text": Case(file("a.nii", b"This is no image.\n" * 40), "expected a header of 348 or 540 bytes"),
    "header cut": Case(file("a.nii", lambda: stored()[:200]), "expected a header.*found 200 bytes"),
    "header without voxels": Case(file("a.nii", lambda: stored()[:352]), "announces 240 bytes"),
    "voxels cut": Case(
        file("a.nii", lambda: stored()[:-1]), "announces 240 bytes of voxels from byte 352 on.*591 bytes"
    ),
    "gz cut": Case(file("a.nii.gz", lambda: gzip.compress(stored())[:-20]), "cannot be read as NIfTI"),
    "gz without its trailer": Case(file("a.nii.gz", lambda: gzip.compress(stored())[:-8]), "end-of-stream"),
    "gz with a wrong checksum": Case(file("a.nii.gz", _wrong_checksum), "CRC check failed"),
    "gz that is none": Case(file("a.nii.gz", stored), "Not a gzipped file"),
    "gz without the suffix": Case(file("a.nii", lambda: gzip.compress(stored())), "expected a header"),
    "gz of more than the header says": Case(
        file("a.nii.gz", lambda: _zeros(stored(), 200)), "announces 240 bytes of voxels, but there are more"
    ),
    "gzip bomb": Case(file("a.nii.gz", _bomb), "decompression bomb"),
    "gz with an endless extension": Case(file("a.nii.gz", _extension), result=np.zeros_like(ARRAY), affine=AFFINE),
    "more voxels than the header says": _plain("there are more", dim_3=2, array=np.zeros((64, 64, 4), np.int16)),
    "wrong magic": _plain("magic is b'abc'", magic=b"abc"),
    "half of a pair": _plain("magic is b'ni1'.*in one file", magic=b"ni1"),
    "NaN sform": _plain("affine: its sform is .*nan", **_NAN_SFORM, qform_code=0),
    "NaN sform beside a good qform": _plain("affine: its sform is .*nan", **_NAN_SFORM),
    "NaN qform": _plain("affine: quaternion.*nan", quatern_b=np.nan, sform_code=0),
    "NaN qform beside a good sform": _plain("affine: quaternion.*nan", quatern_b=np.nan),
    "NaN offset": _plain("affine: quaternion and offset.*nan", qoffset_x=np.nan, sform_code=0),
    "quaternion longer than 1": _plain("affine: quaternion", quatern_b=0.9, quatern_c=0.9, sform_code=0),
    "flat sform": _plain("affine: its sform", srow_z=[0.0, 0.0, 0.0, 1.0]),
    "parallel axes": _plain("affine: its sform", srow_x=[1.0, 1, 0, 0], srow_y=[1.0, 1, 0, 0]),
    "unknown sform code": _plain("sform code 9", sform_code=9),
    "no voxel size": _plain("affine: its voxel size is \\[0.0", **_NO_FORM, pixdim_1=0),
    "NaN voxel size": _plain("affine: its voxel size is \\[nan", **_NO_FORM, pixdim_1=np.nan),
    "no voxel size beside a good sform": _plain(pixdim_1=0, pixdim_2=0, pixdim_3=0, qform_code=0),
    "negative voxel size": _plain(pixdim_1=-2, sform_code=0),
    "rounded voxel size and no qform": _plain(pixdim_1=1.999, quatern_d=0.0, qform_code=0),
    "huge axes": _plain("announces 54000000000000 bytes", dim_1=30000, dim_2=30000, dim_3=30000),
    "huge axes, gz": Case(
        file("a.nii.gz", lambda: gzip.compress(stored(_set(dim_1=30000, dim_2=30000, dim_3=30000)))),
        "announces 54000000000000 bytes",
    ),
    "negative axis": _plain("3 axes \\[-4, 5, 6\\]", dim_1=-4),
    "axis of length 0": _plain("3 axes \\[4, 0, 6\\]", dim_2=0),
    "nine axes": _plain("9 axes", dim_0=9),
    "voxels at byte 1e12": _plain("voxels at byte", vox_offset=1e12),
    "voxels at byte NaN": _plain("voxels at byte nan", vox_offset=np.nan),
    "voxels inside the header": _plain("too low", vox_offset=16),
    "four axes, the last in seconds": Case(
        file("a.nii", lambda: stored(_set(xyzt_units=10, pixdim_4=2.0), _SERIES)),
        result=_SERIES,
        affine=AFFINE,
        channel=-1,
    ),
    "four axes without a unit": Case(
        file("a.nii", lambda: stored(array=_SERIES)), result=_SERIES, affine=AFFINE, channel=-1
    ),
    "vector": Case(
        file("a.nii", lambda: stored(_set(intent_code=1007, xyzt_units=10), _SERIES[:, :, :, None])),
        result=_SERIES,
        affine=AFFINE,
        channel=-1,
    ),
    "five long axes": _plain("at most one of channels", np.zeros((4, 5, 6, 2, 3), np.int16)),
    "complex": _numbers(ARRAY.astype(np.complex64)),
    "colour": _numbers(_RGB),
    "float128": _plain("type float128", datatype=1536, bitpix=128),
    "unknown type": _plain("type code 77", datatype=77),
    "one bit per voxel": _plain("type binary", datatype=1, bitpix=1),
    "big endian": Case(_big_endian, result=ARRAY, affine=AFFINE),
    "NIfTI-2": Case(file("a.nii", lambda: stored(kind=nib.Nifti2Image)), result=ARRAY, affine=AFFINE),
    "slope 0": _plain(scl_slope=0.0, scl_inter=7.0),
    "slope NaN": _plain(scl_slope=np.nan, scl_inter=np.nan),
    "slope infinite": _plain("scales its values by inf", scl_slope=np.inf, scl_inter=0.0),
    "intercept NaN": _plain("scales its values by 2.0 and nan", scl_slope=2.0, scl_inter=np.nan),
    "slope and intercept": Case(
        file("a.nii", lambda: stored(_set(scl_slope=2.0, scl_inter=-1024.0))),
        result=ARRAY * 2.0 - 1024.0,
        affine=AFFINE,
    ),
    "labels as float": _plain(array=(ARRAY % 3).astype(np.float32), intent_code=1002),
    "NaN among the values": _plain(array=np.where(ARRAY == 7, np.nan, ARRAY).astype(np.float32)),
}
