# SPDX-License-Identifier: Apache-2.0
"""PNG, JPEG, BMP, TIFF and NumPy files that are broken, lie, or hold what is no plain grey or RGB picture."""

from __future__ import annotations

import io
import os
import struct
import zlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from malformed.case import Case, file

GREY = np.arange(5 * 7, dtype=np.uint8).reshape(5, 7)  # x, y
DEEP = GREY.astype(np.uint16) * 1000 + 7
RGBA = np.arange(5 * 7 * 4, dtype=np.uint8).reshape(5, 7, 4)
BITS = GREY % 3 == 0


def _turned(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(np.swapaxes(array, 0, 1))


def _picture(array: np.ndarray, kind: str = "PNG", mode: str | None = None) -> bytes:
    buffer = io.BytesIO()
    picture = Image.fromarray(_turned(array))
    (picture.convert(mode) if mode else picture).save(buffer, kind)
    return buffer.getvalue()


def _chunk(name: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def _png(width: int, height: int, depth: int, colour: int, rows: bytes) -> bytes:
    """A PNG file of raw rows, for what Pillow does not write."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", head) + _chunk(b"IDAT", zlib.compress(rows)) + _chunk(b"IEND", b"")


def palette() -> bytes:
    picture = Image.fromarray(_turned(GREY), "P")
    picture.putpalette([255 - value for value in range(256) for _ in range(3)])
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return buffer.getvalue()


def _broken_pixels() -> bytes:
    content = bytearray(_picture(RGBA))
    content[content.index(b"IDAT") + 12] ^= 0xFF
    return bytes(content)


def _tiff(array: np.ndarray, **options: Any) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, array, **options)
    return buffer.getvalue()


def _two_pages() -> bytes:
    buffer = io.BytesIO()
    with tifffile.TiffWriter(buffer) as writer:
        writer.write(_turned(GREY), metadata=None)
        writer.write(_turned(GREY)[:3], metadata=None)
    return buffer.getvalue()


def _many_pages() -> bytes:
    """Pages one after the other, each with its header behind its pixels."""
    first, *others = [Image.fromarray(_turned(GREY))] * 5
    buffer = io.BytesIO()
    first.save(buffer, "TIFF", save_all=True, append_images=others)
    return buffer.getvalue()


def _tiff_with(array: np.ndarray, tags: dict[int, int], **options: Any) -> bytes:
    """A TIFF file whose first page has other values in some tags."""
    content = bytearray(_tiff(array, **options))
    start = struct.unpack_from("<I", content, 4)[0]
    for number in range(struct.unpack_from("<H", content, start)[0]):
        place = start + 2 + 12 * number
        tag, kind = struct.unpack_from("<HH", content, place)
        if tag in tags:
            struct.pack_into("<H" if kind == 3 else "<I", content, place + 8, tags[tag])
    return bytes(content)


def lzw_colours() -> bytes:
    """RGB of 16 bits, LZW without a dictionary: tifffile cannot read it without imagecodecs, Pillow keeps 8 bits."""
    colours = np.repeat(_turned(DEEP)[..., None], 3, axis=-1)
    codes = [256, *colours.tobytes(), 257]  # start, values, end; few enough for 9 bits each
    bits = "".join(format(code, "09b") for code in codes)
    bits += "0" * (-len(bits) % 8)
    packed = int(bits, 2).to_bytes(len(bits) // 8, "big")
    plain = _tiff(colours, photometric="rgb", metadata=None)
    return _tiff_with(colours, {259: 5, 273: len(plain), 279: len(packed)}, photometric="rgb", metadata=None) + packed


def _entities() -> bytes:
    """OME-XML whose entities expand to a terabyte."""
    levels = "".join(f'<!ENTITY e{n + 1} "{f"&e{n};" * 10}">' for n in range(9))
    header = f'<?xml version="1.0"?><!DOCTYPE OME [<!ENTITY e0 "{"x" * 1000}">{levels}]>'
    return _tiff(_turned(GREY), description=f"{header}<OME><Image>&e9;</Image></OME>", metadata=None)


def taller_tiff() -> bytes:
    """A packed page of 7 rows in one strip whose header announces 14."""
    return _tiff_with(_turned(GREY), {257: 14}, metadata=None, compression="zlib")


def _tiff_loop() -> bytes:
    content = bytearray(_tiff(_turned(GREY), metadata=None))
    start = struct.unpack_from("<I", content, 4)[0]
    count = struct.unpack_from("<H", content, start)[0]
    struct.pack_into("<I", content, start + 2 + 12 * count, start)
    return bytes(content)


def _npy(array: np.ndarray, replace: tuple[bytes, bytes] = (b"", b"")) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue().replace(*replace) if replace[0] else buffer.getvalue()


def _npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, a=GREY)
    return buffer.getvalue()


def _pipe(folder: Path) -> Path:
    os.mkfifo(folder / "a.png")
    return folder / "a.png"


class Trap:
    """Unpickling it makes the file ``trap`` in the working directory."""

    def __reduce__(self) -> tuple[Callable, tuple]:
        return open, ("trap", "w")


PNG: dict[str, Case] = {
    "png, 16 bits": Case(file("a.png", lambda: _picture(DEEP)), result=DEEP),
    "png, 16 bits per colour": Case(
        file("a.png", lambda: _png(5, 7, 16, 2, (b"\0" + bytes(30)) * 7)), "16 bits per colour.*convert it to TIFF"
    ),
    "png, 16 bits and alpha": Case(file("a.png", lambda: _png(5, 7, 16, 4, (b"\0" + bytes(20)) * 7)), "16 bits"),
    "png, RGBA": Case(file("a.png", lambda: _picture(RGBA)), result=RGBA, channel=-1),
    "png, grey and alpha": Case(file("a.png", lambda: _picture(RGBA[..., :2])), result=RGBA[..., :2], channel=-1),
    "png, palette gives indices": Case(file("a.png", palette), result=GREY),
    "png, 1 bit": Case(file("a.png", lambda: _picture(BITS)), result=BITS),
    "png, broken pixels": Case(file("a.png", _broken_pixels), "cannot be read as PNG"),
    "png, cut": Case(file("a.png", lambda: _picture(RGBA)[:-30]), "cannot be read as PNG"),
    "png, head only": Case(file("a.png", lambda: _picture(RGBA)[:33]), "cannot be read as PNG"),
    "png, empty": Case(file("a.png", b""), "cannot identify image file"),
    "png, bomb": Case(file("a.png", lambda: _png(60000, 60000, 8, 6, bytes(100))), "decompression bomb"),
    "png, large and without pixels": Case(
        file("a.png", lambda: _png(13000, 13000, 8, 6, bytes(100))), "cannot be read as PNG"
    ),
    "png, no width": Case(file("a.png", lambda: _png(0, 7, 8, 0, bytes(7))), "cannot be read as PNG"),
    "png that is a TIFF": Case(file("a.png", lambda: _tiff(_turned(GREY))), "cannot identify image file"),
    "png that is a pipe": Case(_pipe, "is a device or pipe"),
    "jpg, CMYK": Case(file("a.jpg", lambda: _picture(RGBA, "JPEG", "CMYK")), "colour model CMYK, expected grey"),
    "jpg, cut": Case(file("a.jpg", lambda: _picture(RGBA, "JPEG", "RGB")[:-40]), "cannot be read as PNG, JPEG"),
    "bmp, cut": Case(file("a.bmp", lambda: _picture(GREY, "BMP")[:-20]), "cannot be read as PNG, JPEG or BMP"),
}

TIFF: dict[str, Case] = {
    "tif, pages of different size": Case(file("a.tif", _two_pages), "2 image series"),
    "tif, float32": Case(file("a.tif", lambda: _tiff(_turned(GREY / 7).astype("f4"))), result=(GREY / 7).astype("f4")),
    "tif, float64": Case(file("a.tif", lambda: _tiff(_turned(GREY / 7))), result=GREY / 7),
    "tif, RGBA": Case(
        file("a.tif", lambda: _tiff(_turned(RGBA), photometric="rgb", extrasamples=["unassalpha"])),
        result=RGBA,
        channel=-1,
    ),
    "tif, CMYK": Case(file("a.tif", lambda: _tiff(_turned(RGBA), photometric="separated")), "colour model CMYK"),
    "tif, palette gives indices": Case(
        file("a.tif", lambda: _tiff(_turned(GREY), photometric="palette", colormap=np.zeros((3, 256), "u2"))),
        result=GREY,
    ),
    "tif, 1 bit": Case(file("a.tif", lambda: _tiff(_turned(BITS), photometric="minisblack")), result=BITS),
    "tif, complex": Case(file("a.tif", lambda: _tiff(_turned(GREY).astype("c8"))), "type complex64"),
    "tif, packed colours of 16 bits": Case(
        file("a.tif", lzw_colours),
        **(
            {"result": np.repeat(DEEP[..., None], 3, axis=-1), "channel": -1}
            if find_spec("imagecodecs")
            else {"error": "uint16 values.*gives uint8 without"}
        ),
    ),
    "tif, cut": Case(file("a.tif", lambda: _tiff(_turned(DEEP))[:-40]), "cannot be read as TIFF"),
    "tif, empty": Case(file("a.tif", b""), "cannot be read as TIFF"),
    "tif, text": Case(file("a.tif", b"no picture" * 9), "cannot be read as TIFF"),
    "tif, pages in a loop": Case(file("a.tif", _tiff_loop), "pages that lead back"),
    "tif, entities without end": Case(file("a.tif", _entities), "cannot be read as TIFF.*amplification"),
    "tif, a strip that is not there": Case(file("a.tif", taller_tiff), "1 strips or tiles, expected 2"),
    "tif, pages cut": Case(file("a.tif", lambda: _many_pages()[:-300]), "lies beyond the end of the file"),
    "tif, huge": Case(
        file("a.tif", lambda: _tiff_with(_turned(GREY), {256: 10**6, 257: 10**6}, metadata=None)),
        "announces 1000000000000 bytes",
    ),
    "tif, huge and packed": Case(
        file(
            "a.tif",
            lambda: _tiff_with(_turned(GREY), {256: 40000, 257: 40000}, metadata=None, compression="zlib"),
        ),
        "announces 1600000000 bytes",
    ),
}

NPY: dict[str, Case] = {
    "npy, pickle": Case(file("a.npy", lambda: _npy(np.array([Trap()], object))), "Python objects"),
    "npy, longer than the file": Case(
        file("a.npy", lambda: _npy(DEEP, (b"(5, 7), }", b"(5, 8), }"))), "cannot be read as NumPy array"
    ),
    "npy, huge": Case(
        file("a.npy", lambda: _npy(DEEP, (b"(5, 7), }            ", b"(90000, 90000), }    "))),
        "cannot be read as NumPy array",
    ),
    "npy, shorter than the file": Case(
        file("a.npy", lambda: _npy(DEEP, (b"(5, 7), }", b"(5, 6), }"))), "holds more than its header"
    ),
    "npy, complex": Case(file("a.npy", lambda: _npy(GREY.astype("c8"))), "type complex64"),
    "npy, text": Case(file("a.npy", lambda: _npy(np.array([["a", "b"]]))), "type <U1"),
    "npy, fields": Case(file("a.npy", lambda: _npy(np.zeros((3, 3), "i2,f4"))), "values of type"),
    "npy, archive": Case(file("a.npy", _npz), "archive of arrays"),
    "npy, no voxels": Case(file("a.npy", lambda: _npy(np.zeros((0, 3)))), "no voxels"),
    "npy, empty": Case(file("a.npy", b""), "cannot be read as NumPy array"),
    "npy, cut": Case(file("a.npy", lambda: _npy(DEEP)[:90]), "cannot be read as NumPy array"),
    "npy, header is no literal": Case(
        file("a.npy", lambda: _npy(DEEP, (b"False", b"{[(]}"))), "cannot be read as NumPy array"
    ),
    "npy, big endian": Case(file("a.npy", lambda: _npy(DEEP.astype(">u2"))), result=DEEP),
    "npy, Fortran order": Case(file("a.npy", lambda: _npy(np.asfortranarray(DEEP))), result=DEEP),
}
