# SPDX-License-Identifier: Apache-2.0
"""Read one scalar 3-D MetaImage (.mhd with its .raw, or .mha), strictly: nothing is guessed."""

from __future__ import annotations

import math
import os
import zlib

import numpy as np

from monai_labelfx.data._reading import ImageFileError, check_size, reading

_TYPES = {  # bytes and signs as MetaIO defines them: its LONG has four bytes on every machine
    "MET_CHAR": "i1",
    "MET_UCHAR": "u1",
    "MET_SHORT": "i2",
    "MET_USHORT": "u2",
    "MET_INT": "i4",
    "MET_UINT": "u4",
    "MET_LONG": "i4",
    "MET_ULONG": "u4",
    "MET_LONG_LONG": "i8",
    "MET_ULONG_LONG": "u8",
    "MET_FLOAT": "f4",
    "MET_DOUBLE": "f8",
}
_SYNONYMS = {  # older names of one key
    "Position": "Offset",
    "Origin": "Offset",
    "Orientation": "TransformMatrix",
    "Rotation": "TransformMatrix",
    "ElementByteOrderMSB": "BinaryDataByteOrderMSB",
}
_DEFAULTS = {  # of keys that say nothing about the place and the size of the voxels
    "ObjectType": "Image",
    "BinaryData": "True",
    "BinaryDataByteOrderMSB": "False",
    "CompressedData": "False",
    "ElementNumberOfChannels": "1",
    "HeaderSize": "0",
}
_LAST = "ElementDataFile"  # the header ends here
_SLOPE, _SHIFT = "ElementToIntensityFunctionSlope", "ElementToIntensityFunctionOffset"
_USED = {*_DEFAULTS, _LAST, _SLOPE, _SHIFT, "NDims", "DimSize", "ElementSpacing", "ElementType", "Offset"}
_USED |= {"TransformMatrix"}
_LONGEST = 65536  # bytes of a header
_DEFLATE = 1032  # to 1, at most


def read_metaimage(path: str | os.PathLike) -> tuple[np.ndarray, np.ndarray]:
    r"""Array (x, y, z) of a MetaImage in native byte order and its affine, 4 x 4, to RAS+ millimetres as in NIfTI.

    Voxel (i, j, k) lies at ``Offset + sum_a index_a * ElementSpacing_a * row_a(TransformMatrix)`` in LPS+: the rows of
    the matrix in the file are the directions of the axes. The first two coordinates change sign to RAS+.

    Args:
        path: the ``.mhd`` or ``.mha`` file. Voxels may follow the header (``ElementDataFile = LOCAL``) or stand in one
            other file of the same folder, plain or compressed by zlib, in either byte order.

    Raises:
        FileNotFoundError: no such file.
        ImageFileError: a key that is missing, stands twice or has an unusable value; other than three axes or one
            number per voxel; text, several files or a rescaling; voxels that are missing, too few or too many: one
            sentence with the file.

    Notes:
        ITK takes the identity where ``TransformMatrix`` is missing and 0 for ``Offset``; here they are required, under
        any of their older names. ``CenterOfRotation`` and ``AnatomicalOrientation`` repeat or name what the matrix
        says and are not read, as in ITK.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> header = "NDims = 3\nDimSize = 2 1 1\nElementSpacing = 2 1 1\nOffset = 5 0 0\nElementType = MET_UCHAR\n"
        >>> header += "TransformMatrix = 1 0 0 0 1 0 0 0 1\nElementDataFile = LOCAL\n"
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(folder, "image.mha").write_bytes(header.encode() + bytes([7, 9]))
        ...     array, affine = read_metaimage(f"{folder}/image.mha")
        >>> array[:, 0, 0].tolist(), (affine @ [1, 0, 0, 1]).tolist()
        ([7, 9], [-7.0, 0.0, 0.0, 1.0])
    """
    file = os.fspath(path)
    with reading(file, "MetaImage"):
        keys, start = _header(file)
        return _voxels(file, keys, start), _affine(file, keys)


def _header(file: str) -> tuple[dict[str, str], int]:
    """Key -> text, and the byte at which local voxels begin."""
    keys: dict[str, str] = {}
    with open(file, "rb") as stream:
        while _LAST not in keys:
            line = stream.readline(_LONGEST)
            name, equals, value = line.decode("latin-1").partition("=")
            if not line or stream.tell() > _LONGEST:
                raise ImageFileError(f"image file {file!r} cannot be read as MetaImage: it has no key {_LAST}")
            if not line.strip():
                continue
            name = _SYNONYMS.get(name.strip(), name.strip())
            if not equals:
                found = line.strip()[:40].decode("latin-1")
                raise ImageFileError(f"image file {file!r} cannot be read as MetaImage: no 'key = value' in {found!r}")
            if name not in _USED:
                continue
            if name in keys:
                raise ImageFileError(f"image file {file!r} has the key {name} twice")
            keys[name] = value.strip()
        return _DEFAULTS | keys, stream.tell()


def _voxels(file: str, keys: dict[str, str], start: int) -> np.ndarray:
    for key, wanted in (("ObjectType", "image"), ("BinaryData", "true"), ("ElementNumberOfChannels", "1")):
        if keys[key].lower() != wanted:
            raise ImageFileError(f"image file {file!r} has {key} = {keys[key]}, expected {wanted}")
    slope, shift = keys.get(_SLOPE, "1"), keys.get(_SHIFT, "0")
    if float(slope) != 1 or float(shift) != 0:
        raise ImageFileError(f"image file {file!r} scales its values by {slope} and {shift}, expected values as stored")
    (axes,) = _numbers(file, keys, "NDims", 1)
    if axes != 3:
        raise ImageFileError(f"image file {file!r} has NDims = {axes:g}, expected 3")
    shape = [int(size) for size in _numbers(file, keys, "DimSize", 3)]
    if min(shape) < 1 or shape != _numbers(file, keys, "DimSize", 3):
        raise ImageFileError(f"image file {file!r} has DimSize = {keys['DimSize']}, expected three lengths above 0")
    kind = _text(file, keys, "ElementType")
    if kind not in _TYPES:
        raise ImageFileError(f"image file {file!r} has ElementType = {kind}, expected one of {', '.join(_TYPES)}")
    dtype = np.dtype(("<", ">")[_flag(file, keys, "BinaryDataByteOrderMSB")] + _TYPES[kind])
    packed = _flag(file, keys, "CompressedData")
    data, start = _data_file(file, keys, start)
    needed = math.prod(shape) * dtype.itemsize
    check_size(data, "MetaImage", needed, _DEFLATE if packed else 1)
    content = _content(data, start, needed, packed)
    if len(content) != needed:
        raise ImageFileError(
            f"image file {data!r} holds {len(content)} bytes of voxels, but {os.path.basename(file)!r} announces "
            f"{needed} ({' x '.join(map(str, shape))} of type {kind})"
        )
    array = np.frombuffer(content, dtype).reshape(shape, order="F")
    return array.astype(dtype.newbyteorder("="))


def _data_file(file: str, keys: dict[str, str], start: int) -> tuple[str, int]:
    """The file of the voxels, and the byte at which they begin; -1 for those at the end of the file."""
    name = _text(file, keys, _LAST)
    if name.upper() == "LOCAL":
        return file, start
    if name.split()[0].upper() == "LIST" or "%" in name:
        raise ImageFileError(f"image file {file!r} has {_LAST} = {name}, expected LOCAL or the name of one file")
    data = os.path.join(os.path.dirname(file), name)
    if os.path.basename(name) != name or not os.path.exists(data):
        # a name with folders could lead anywhere, also out of the data set
        raise ImageFileError(f"image file {file!r} has its voxels in {name!r}, which is not in its folder")
    (skip,) = _numbers(file, keys, "HeaderSize", 1)
    return data, int(skip)


def _content(data: str, start: int, needed: int, packed: bool) -> bytes:
    """The bytes of the voxels; one more than needed where the file has more."""
    with open(data, "rb") as stream:
        if start < 0 and not packed:
            start = os.path.getsize(data) - needed
        stream.seek(start)
        if not packed:
            return stream.read(needed + 1)
        # 47: zlib or gzip, as MetaIO; bounded, so that a small file cannot fill the memory
        return zlib.decompressobj(47).decompress(stream.read(), needed + 1)


def _affine(file: str, keys: dict[str, str]) -> np.ndarray:
    spacing = _numbers(file, keys, "ElementSpacing", 3)
    directions = np.reshape(_numbers(file, keys, "TransformMatrix", 9), (3, 3)).T  # columns, one per axis
    lengths = np.linalg.norm(directions, axis=0)
    if min(spacing) <= 0:
        raise ImageFileError(
            f"image file {file!r} has ElementSpacing = {keys['ElementSpacing']}, expected sizes above 0"
        )
    if np.abs(lengths - 1).max() > 1e-3 or abs(np.linalg.det(directions)) < 1e-3:
        found = keys["TransformMatrix"]
        raise ImageFileError(
            f"image file {file!r} has TransformMatrix = {found}, expected three directions of length 1"
        )
    affine = np.eye(4)
    affine[:3, :3] = directions * spacing
    affine[:3, 3] = _numbers(file, keys, "Offset", 3)
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def _text(file: str, keys: dict[str, str], key: str) -> str:
    if not keys.get(key):
        raise ImageFileError(f"image file {file!r} cannot be read as MetaImage: it has no key {key}")
    return keys[key]


def _numbers(file: str, keys: dict[str, str], key: str, count: int) -> list[float]:
    text = _text(file, keys, key)
    try:
        numbers = [float(word) for word in text.split()]
    except ValueError:
        numbers = []
    if len(numbers) != count or not np.isfinite(numbers).all():
        raise ImageFileError(f"image file {file!r} has {key} = {text}, expected {count} finite number(s)")
    return numbers


def _flag(file: str, keys: dict[str, str], key: str) -> bool:
    if keys[key].lower() not in ("true", "false", "1", "0"):
        raise ImageFileError(f"image file {file!r} has {key} = {keys[key]}, expected True or False")
    return keys[key].lower() in ("true", "1")
