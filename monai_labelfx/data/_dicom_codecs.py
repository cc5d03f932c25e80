# SPDX-License-Identifier: Apache-2.0
"""Decoders of compressed DICOM pixels: which there are, what to install, and checks that codecs leave out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from monai_labelfx.data._reading import ImageFileError

if TYPE_CHECKING:
    from pydicom import Dataset
    from pydicom.pixels.decoders.base import Decoder, DecodeRunner
    from pydicom.uid import UID

CODECS = 'pip install "monai-labelfx[codecs]"'
_SYNTAXES = "1.2.840.10008.1.2.4."
_JPEG_12_BIT = _SYNTAXES + "51"
_JPEG = (_JPEG_12_BIT, _SYNTAXES + "57", _SYNTAXES + "70")  # the others are lossless
_JPEG_2000 = tuple(_SYNTAXES + end for end in ("90", "91", "201", "202", "203"))  # 201 to 203 are HTJ2K
DECODER_DEPENDENCIES = {syntax: ("imagecodecs",) for syntax in (*_JPEG, *_JPEG_2000)}  # pydicom asks for it
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}  # JPEG and JPEG-LS markers that carry the size


def transfer_syntax(dataset: Dataset) -> UID:
    """As named in the meta header; where there is none, by the encoding that pydicom found."""
    from pydicom.uid import ExplicitVRBigEndian, ExplicitVRLittleEndian, ImplicitVRLittleEndian

    syntax = getattr(dataset, "file_meta", {}).get("TransferSyntaxUID")
    if syntax:
        return syntax
    implicit, little_endian = dataset.original_encoding
    if little_endian is False:
        return ExplicitVRBigEndian
    return ExplicitVRLittleEndian if implicit is False else ImplicitVRLittleEndian


def syntax_name(syntax: UID) -> str:
    """For messages: the name, never a text that a broken file has in its place."""
    return syntax.name if syntax.is_valid else "an invalid transfer syntax"


def check_decodable(dataset: Dataset, path: str) -> None:
    """Refuse a transfer syntax that the installed packages cannot decode; needs no pixels.

    Raises:
        ImageFileError: it names the transfer syntax and what to do.
    """
    syntax = transfer_syntax(dataset)
    start = f"image file {path!r} is compressed as {syntax_name(syntax)}"
    try:
        decoder = decoder_of(syntax)
    except NotImplementedError:
        raise ImageFileError(
            f"{start}, which pydicom cannot decode; convert it to Explicit VR Little Endian first"
        ) from None
    deep = syntax == _JPEG_12_BIT and dataset.get("BitsStored") != 8  # pillow and gdcm refuse 12 bits
    if not decoder.is_available or (deep and not {"imagecodecs", "pylibjpeg"} & set(decoder.available_plugins)):
        what = f"{start} with {dataset.get('BitsStored')} bits" if deep else start
        raise ImageFileError(f"{what}, which the installed packages cannot decode; {CODECS}")


def decoder_of(syntax: UID) -> Decoder:
    """pydicom's decoder, or one with imagecodecs, where that is installed and good for the syntax.

    Raises:
        NotImplementedError: pydicom knows no pixels in this syntax.
    """
    from pydicom.pixels import get_decoder
    from pydicom.pixels.decoders.base import Decoder

    if not can_decode(syntax):
        return get_decoder(syntax)
    decoder = Decoder(syntax)  # our own, so that pydicom behaves elsewhere in the process as if we were not here
    decoder.add_plugin("imagecodecs", (__name__, "decode_frame"))
    return decoder


def can_decode(uid: str) -> bool:
    """Whether imagecodecs is installed and decodes the transfer syntax."""
    try:
        import imagecodecs
    except ImportError:
        return False
    return uid in DECODER_DEPENDENCIES and hasattr(imagecodecs, "jpeg8_decode")


is_available = partial(can_decode)  # pydicom's plugin interface asks for this name; MONAI has a function of that name


def decode_frame(src: bytes, runner: DecodeRunner) -> bytes:
    """The decoded frame (part of pydicom's plugin interface)."""
    import imagecodecs
    from pydicom.pixels.common import PhotometricInterpretation

    syntax, colour = runner.transfer_syntax, runner.samples_per_pixel == 3
    if syntax in _JPEG:
        spaces: dict[str, Any] = {"colorspace": "RGB", "outcolorspace": "RGB"} if colour else {}  # pydicom converts
        array = imagecodecs.jpeg8_decode(src, **spaces)
    else:
        array = imagecodecs.jpeg2k_decode(src, planar=False)  # also HTJ2K, whose own function mixes up plain RGB
        if runner.photometric_interpretation in ("YBR_ICT", "YBR_RCT"):
            runner.set_option("photometric_interpretation", PhotometricInterpretation.RGB)
    expected = (runner.rows, runner.columns, 3) if colour else (runner.rows, runner.columns)
    if array.shape != expected:
        raise ValueError(f"decoded to the shape {array.shape}, expected {expected}")
    runner.set_option("bits_allocated", 8 * array.dtype.itemsize)
    if colour:
        runner.set_option("planar_configuration", 0)
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def check_codestream(dataset: Dataset, frame: int, frames: int, shape: tuple[int, int], path: str) -> None:
    """Refuse what codecs accept or hang on: cut off, or of another (rows, columns) than the header names."""
    from pydicom.encaps import get_frame

    try:
        data = get_frame(dataset.PixelData, frame, number_of_frames=frames)
        found = _size_of_jpeg_2000(data) if transfer_syntax(dataset) in _JPEG_2000 else _size_of_jpeg(data)
    except Exception:  # all sorts on corrupt bytes
        raise ImageFileError(
            f"image file {path!r} has compressed pixels without a readable frame {frame} (counted from 0)"
        ) from None
    if found is not None and found != shape:
        raise ImageFileError(
            f"image file {path!r} has compressed pixels of {found[0]} rows and {found[1]} columns, but its header "
            f"names {shape[0]} and {shape[1]}"
        )
    if found is not None and b"\xff\xd9" not in data:  # CharLS searches on, libjpeg fills up with grey
        raise ImageFileError(f"image file {path!r} has compressed pixels without an end (truncated?)")


def _size_of_jpeg_2000(data: bytes) -> tuple[int, int]:
    """Rows and columns of a codestream, perhaps inside the boxes of a .jp2 file."""
    at = 0
    if data.startswith(b"\0\0\0\x0cjP"):
        at = 12
        while data[at + 4 : at + 8] != b"jp2c":
            length = int.from_bytes(data[at : at + 4], "big")
            if length < 8:  # also at the end of the data; pydicom would go round for ever
                raise ValueError("no codestream")
            at += length
        at += 8
    if data[at : at + 4] != b"\xff\x4f\xff\x51":
        raise ValueError("no codestream")
    right, bottom, left, top = (int.from_bytes(data[at + k : at + k + 4], "big") for k in (8, 12, 16, 20))
    return bottom - top, right - left


def _size_of_jpeg(data: bytes) -> tuple[int, int] | None:
    """Rows and columns of JPEG and JPEG-LS; None where they are not in the header (also of run lengths)."""
    at = 2 if data.startswith(b"\xff\xd8") else len(data)
    while at + 9 <= len(data) and data[at] == 0xFF:
        if data[at + 1] in _START_OF_FRAME:
            rows, columns = (int.from_bytes(data[at + k : at + k + 2], "big") for k in (5, 7))
            return (rows, columns) if rows else None
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return None
