# SPDX-License-Identifier: Apache-2.0
"""Read one NIfTI file after its raw header was checked: nibabel mends or believes what is not true."""

from __future__ import annotations

import gzip
import math
import os
from typing import IO, Any

import nibabel as nib
import numpy as np
from monai.data import NibabelReader
from monai.utils import MetaKeys
from nibabel.arrayproxy import ArrayProxy

from monai_labelfx.data._reading import ImageFileError
from monai_labelfx.data._stored_type import STORED_KEY, StoredType

_STARTS = {  # the first four bytes, which are the length of the header -> kind of file, byte order
    length.to_bytes(4, order): (kind, sign)  # type: ignore[arg-type]
    for length, kind in ((348, nib.Nifti1Image), (540, nib.Nifti2Image))
    for order, sign in (("little", "<"), ("big", ">"))
}
_NUMBERS = {2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280}  # NIfTI codes of integers up to 64 bit, float32 and float64
_CODES = range(6)  # of sform and qform
_QFORM = ("quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z")
_LARGE = 2**31  # bytes; below, a file may hold nothing but background
_PADDING = 512  # bytes that may follow the voxels, such as a block filled up


def read_nifti(path: str) -> tuple[np.ndarray, dict]:
    """Array (x, y[, z][, channel]) in native byte order and the meta of MONAI's reader, with the affine of the file.

    The affine is the sform if its code is above 0, else the qform if its code is, else it comes from pixdim, as the
    standard says. (MONAI's reader takes an unset qform where the sform and pixdim differ by a rounding.) The meta has
    the stored type, slope and intercept on top, which nibabel forgets, for :py:class:`NiftiWriter` to write back.
    """
    packed = _is_packed(path)
    with _opened(path) as file:
        kind, header, start, end = _begin(path, file)
        # a plain file is mapped into memory; a packed one is read from this very stream, so that its checksum is tested
        values = ArrayProxy(file if packed else path, header)
        reader = NibabelReader()
        reader.filenames = (path,)  # its read() would change the affine
        array, meta = reader.get_data(kind(values, header.get_best_affine(), header))
        file.seek(end)
        if len(file.read(_PADDING + 1)) > _PADDING:
            raise ImageFileError(
                f"image file {path!r} cannot be read as NIfTI: its header announces {end - start} bytes of voxels, but "
                "there are more"
            )
    if array.ndim > 4:  # one of the axes 4 to 7 is longer than 1, at most
        array = array.reshape(*array.shape[:3], -1)
    meta[str(MetaKeys.ORIGINAL_CHANNEL_DIM)] = -1 if array.ndim == 4 else math.nan
    meta[STORED_KEY] = StoredType(header.get_data_dtype(), float(values.slope), float(values.inter)).text
    return array.astype(array.dtype.newbyteorder("="), copy=False), meta


def nifti_header(path: str) -> Any:
    """nibabel's header of a file, checked as in :py:func:`read_nifti`, without its voxels."""
    with _opened(path) as file:
        return _begin(path, file)[1]


def _is_packed(path: str) -> bool:
    return path.lower().endswith(".gz")


def _opened(path: str) -> IO[bytes]:
    return gzip.open(path) if _is_packed(path) else open(path, "rb")  # type: ignore[return-value]


def _begin(path: str, file: IO[bytes]) -> tuple[Any, Any, int, int]:
    """The image class, the checked header, the first and last byte of the voxels."""
    block = file.read(540)
    kind, order = _STARTS.get(block[:4], (nib.Nifti1Image, "<"))
    start, end = _check_header(path, block, kind.header_class, order, _is_packed(path))
    # nibabel's own checks on top; extensions are not read
    return kind, kind.header_class(block[: kind.header_class.sizeof_hdr], endianness=order), start, end


def _check_header(path: str, block: bytes, kind: Any, order: str, packed: bool) -> tuple[int, int]:
    """Refuse what is wrong with the header as stored; the first and last byte of the voxels."""
    size = kind.sizeof_hdr
    if block[:4] not in _STARTS or len(block) < size:
        raise ImageFileError(
            f"image file {path!r} cannot be read as NIfTI: expected a header of 348 or 540 bytes, "
            f"found {len(block)} bytes that begin with {block[:4]!r}"
        )
    header = kind(block[:size], endianness=order, check=False)
    magic = bytes(header["magic"].tobytes()[:3])
    if magic != kind.single_magic[:3]:
        raise ImageFileError(
            f"image file {path!r} cannot be read as NIfTI: its magic is {magic!r}, expected {kind.single_magic[:3]!r} "
            "(header and voxels in one file)"
        )
    rank = int(header["dim"][0])
    shape = header["dim"][1 : rank + 1].tolist()
    if not 1 <= rank <= 7 or min(shape) < 1:
        raise ImageFileError(f"image file {path!r} has {rank} axes {shape}, expected 1 to 7 of length 1 or more")
    code = int(header["datatype"])
    if code not in _NUMBERS:
        codes = nib.nifti1.data_type_codes
        name = codes.label[code] if code in codes.label else f"code {code}"
        raise ImageFileError(f"image file {path!r} holds values of type {name}, expected one real number per voxel")
    if np.isinf(header["scl_slope"]) or (np.isfinite(header["scl_slope"]) and not np.isfinite(header["scl_inter"])):
        slope, inter = float(header["scl_slope"]), float(header["scl_inter"])
        raise ImageFileError(f"image file {path!r} scales its values by {slope} and {inter}, expected finite numbers")
    _check_axes(path, shape)
    _check_geometry(path, header, rank)
    return _check_size(path, header, shape, packed)


def _check_axes(path: str, shape: list[int]) -> None:
    """One axis after the third holds channels; its unit says nothing, programs write seconds into every file."""
    longer = [length for length in shape[3:] if length > 1]
    if len(longer) > 1:
        raise ImageFileError(
            f"image file {path!r} has the shape {shape}, expected three axes of space and at most one of channels"
        )


def _check_geometry(path: str, header: Any, rank: int) -> None:
    """Every transform that the header declares valid must be usable, not only the one that is used."""
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if sform not in _CODES or qform not in _CODES:
        raise ImageFileError(f"image file {path!r} has sform code {sform} and qform code {qform}, expected 0 to 5")
    matrix = header.get_sform()
    lengths = np.linalg.norm(matrix[:3, :3], axis=0)
    if sform and not (
        np.isfinite(matrix).all() and lengths.all() and abs(np.linalg.det(matrix[:3, :3] / lengths)) > 1e-6
    ):
        raise ImageFileError(
            f"image file {path!r} has an unusable affine: its sform is {matrix[:3].tolist()}, not finite or flat"
        )
    sizes = header["pixdim"][1 : 1 + min(rank, 3)]
    if (qform or not sform) and not (np.isfinite(sizes).all() and sizes.all()):
        raise ImageFileError(
            f"image file {path!r} has an unusable affine: its voxel size is {sizes.tolist()}, expected lengths above 0"
        )
    values = [float(header[name]) for name in _QFORM]
    if qform and not (np.isfinite(values).all() and sum(value**2 for value in values[:3]) <= 1.001):
        raise ImageFileError(
            f"image file {path!r} has an unusable affine: quaternion and offset of its qform are {values}"
        )


def _check_size(path: str, header: Any, shape: list[int], packed: bool) -> tuple[int, int]:
    """The place of the voxels in the file, which the file must be able to hold."""
    start = float(header["vox_offset"])
    if not 0 <= start <= 2**26 or start != int(start):
        raise ImageFileError(f"image file {path!r} has its voxels at byte {start}, expected a place after the header")
    start = int(start) or header.single_vox_offset
    end = start + math.prod(shape) * header.get_data_dtype().itemsize
    size = os.path.getsize(path)
    if end > size * (1032 if packed else 1):  # deflate reaches 1032 : 1
        raise ImageFileError(
            f"image file {path!r} cannot be read as NIfTI: its header announces {end - start} bytes of voxels from "
            f"byte {start} on, too many for a file of {size} bytes"
        )
    if packed and end > _LARGE and end > 200 * size:
        raise ImageFileError(
            f"image file {path!r} would expand from {size} to {end} bytes, like a decompression bomb: expand it with "
            "gunzip if it is genuine"
        )
    return start, end
