# SPDX-License-Identifier: Apache-2.0
"""Refuse deflated DICOM files that expand beyond reason: pydicom inflates a whole file to read its header."""

from __future__ import annotations

import os
import zlib

from monai_labelfx.data._reading import ImageFileError

_DEFLATED = "1.2.840.10008.1.2.1.99"
_LARGE = 2**28  # bytes; below, a file may hold nothing but background
_RATIO = 100
_HEAD = 2**16  # the group that names the transfer syntax is shorter by far
_CHUNK = 2**14


def check_deflated(path: str) -> None:
    """Refuse a file of transfer syntax Deflated Explicit VR Little Endian that looks like a decompression bomb.

    Other files cost one short read.
    """
    from pydicom.filereader import read_file_meta_info

    with open(path, "rb") as file:
        if _DEFLATED.encode() not in file.read(_HEAD):
            return
        meta = read_file_meta_info(path)
        if str(meta.get("TransferSyntaxUID")) != _DEFLATED:
            return
        size, total = os.path.getsize(path), 0
        file.seek(144 + int(meta.FileMetaInformationGroupLength))  # preamble, "DICM", and the length itself
        engine = zlib.decompressobj(-zlib.MAX_WBITS)
        while chunk := file.read(_CHUNK):
            total += len(engine.decompress(chunk))
            if total > max(_LARGE, _RATIO * size):
                raise ImageFileError(
                    f"image file {path!r} would expand from {size} to more than {total} bytes, like a decompression "
                    "bomb: write it without compression if it is genuine"
                )
