# SPDX-License-Identifier: Apache-2.0
"""Regions of a whole slide: only the tiles of the file that a region touches are read and decoded."""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np

from monai_labelfx.data._reading import ImageFileError, reading
from monai_labelfx.data.tiff_reader import _check_pages

_SEGMENT_BYTES = 2**28  # a slide in tiles has some 10^6; a level that is one compressed strip cannot be read in parts
_OPEN = 8  # slides kept open per process
_AXES = ("YX", "YXS", "SYX")
_PHOTOMETRIC = (1, 2, 6)  # black is zero, RGB, YCbCr (which decoders of JPEG turn into RGB)
_PIECE = 2048  # voxels of the file along an axis that are resampled at once


class SlideFile:
    """A TIFF or SVS file, its levels (finest first), and regions of them.

    A slide has 8 bits, colours (W, H, 3): grey is repeated and alpha laid on white; what lies outside the slide, or was
    never scanned, is white. A ``mask`` has the class number of each voxel, (W, H), and 0 outside.

    The file is opened once in each process, so that one object can be used before and behind a fork.
    """

    def __init__(self, path: str | os.PathLike, *, mask: bool = False) -> None:
        self.path, self.mask = os.fspath(path), mask
        self._tif: Any = None
        self._process = 0
        with reading(self.path, "TIFF"):
            _check_pages(self.path)
            levels = self._levels()
            self.shapes = [(level.keyframe.imagewidth, level.keyframe.imagelength) for level in levels]
            self._check(levels[0])
            self._check_ends(levels)

    def __reduce__(self) -> Any:
        return _reopened, (self.path, self.mask)

    def close(self) -> None:
        """Close the file of this process; the next region opens it again."""
        if self._tif is not None:
            self._tif.close()
        self._tif, self._process = None, 0

    def region(self, start: tuple[int, int], size: tuple[int, int], level: int = 0) -> np.ndarray:
        """Voxels ``start`` to ``start + size`` of a level, x first: (W, H, 3), of a mask (W, H)."""
        limits = self.shapes[level]
        low = [min(max(s, 0), limit) for s, limit in zip(start, limits, strict=True)]
        high = [max(min(s + n, limit), a) for s, n, limit, a in zip(start, size, limits, low, strict=True)]
        inside = tuple(slice(a - s, b - s) for a, b, s in zip(low, high, start, strict=True))
        with reading(self.path, "TIFF"):
            found = self._region(level, low, high) if all(b > a for a, b in zip(low, high, strict=True)) else None
        if found is not None and found.shape[:2] == tuple(size):
            return found
        result = np.zeros(size, self.dtype) if self.mask else np.full((*size, 3), 255, self.dtype)
        if found is not None:
            result[inside] = found
        return result

    def resampled(
        self, start: tuple[int, int], size: tuple[int, int], shape: tuple[int, int], level: int
    ) -> np.ndarray:
        """A region of the slide as if a level had ``shape`` voxels: colours are averaged, of a mask the nearest.

        ``level`` is the one that is read. Voxels are taken in pieces, so that memory does not grow with the reduction.
        """
        if shape == self.shapes[level]:
            return self.region(start, size, level)
        zoom = [own / wanted for own, wanted in zip(self.shapes[level], shape, strict=True)]
        result = np.empty(size if self.mask else (*size, 3), self.dtype)
        step = max(1, int(_PIECE / max(zoom)))
        for x, y in product(*(range(0, n, step) for n in size)):
            part = (slice(x, min(x + step, size[0])), slice(y, min(y + step, size[1])))
            first = tuple(s + one.start for s, one in zip(start, part, strict=True))
            count = tuple(one.stop - one.start for one in part)
            result[part] = (self._nearest if self.mask else self._mean)(first, count, shape, level)
        return result

    def _mean(self, start: Any, size: Any, shape: tuple[int, int], level: int) -> np.ndarray:
        from PIL import Image

        zoom = [own / wanted for own, wanted in zip(self.shapes[level], shape, strict=True)]
        around = [max(s - 1, 0) for s in start]  # one voxel more on each side, so that pieces meet without a seam
        ends = [min(s + n + 1, limit) for s, n, limit in zip(start, size, shape, strict=True)]
        low = [int(a * z) for a, z in zip(around, zoom, strict=True)]
        high = [math.ceil(b * z - 1e-6) for b, z in zip(ends, zoom, strict=True)]
        found = self.region((low[0], low[1]), (high[0] - low[0], high[1] - low[1]), level)
        box = [min(n * z, b) - a for side in (around, ends) for n, z, a, b in zip(side, zoom, low, high, strict=True)]
        count = (ends[0] - around[0], ends[1] - around[1])
        picture = Image.fromarray(np.ascontiguousarray(found.swapaxes(0, 1)))
        reduced = np.asarray(picture.resize(count, Image.Resampling.BILINEAR, box=tuple(box))).swapaxes(0, 1)
        inner = tuple(slice(s - a, s - a + n) for s, a, n in zip(start, around, size, strict=True))
        return reduced[inner]

    def _nearest(self, start: Any, size: Any, shape: tuple[int, int], level: int) -> np.ndarray:
        places = [
            np.minimum(((s + np.arange(n) + 0.5) * limit / wanted).astype(np.int64), limit - 1)
            for s, n, wanted, limit in zip(start, size, shape, self.shapes[level], strict=True)
        ]
        low = (int(places[0][0]), int(places[1][0]))
        count = (int(places[0][-1]) + 1 - low[0], int(places[1][-1]) + 1 - low[1])
        return self.region(low, count, level)[np.ix_(places[0] - low[0], places[1] - low[1])]

    def _levels(self) -> list[Any]:
        import tifffile

        if self._process != os.getpid():  # a file opened before a fork shares its position with the other process
            self.close()
            tif = tifffile.TiffFile(self.path)
            if not tif.series:
                tif.close()
                raise ImageFileError(f"slide {self.path!r} has no TIFF page with an image")
            tif.filehandle.set_lock(True)
            self._tif, self._process = tif, os.getpid()
        return self._tif.series[0].levels

    def _check(self, level: Any) -> None:
        page = level.keyframe
        wanted = "expected 8-bit grey or RGB"
        if self.mask:
            wanted = "expected one class number at each voxel, of 8 or 16 bits"
        samples = 1 if self.mask else 4
        kinds = ("uint8", "uint16") if self.mask else ("uint8",)
        if level.axes not in _AXES or len(level.pages) != 1:
            raise ImageFileError(f"slide {self.path!r} has axes {level.axes} of lengths {level.shape}, {wanted}")
        if page.samplesperpixel > samples or int(page.photometric) not in _PHOTOMETRIC:
            raise ImageFileError(
                f"slide {self.path!r} has {page.samplesperpixel} samples per pixel ({page.photometric.name}), {wanted}"
            )
        if str(page.dtype) not in kinds:
            raise ImageFileError(f"slide {self.path!r} holds {page.dtype} values, {wanted}")
        self.dtype = np.dtype(page.dtype.name)

    def _check_ends(self, levels: list[Any]) -> None:
        """A copy that broke off has its headers, and lacks tiles only where nobody looks at first."""
        size = os.path.getsize(self.path)
        for level in levels:
            page = level.pages[0]
            ends = [begin + count for begin, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
            if max(ends, default=0) > size:
                raise ImageFileError(
                    f"slide {self.path!r} cannot be read as TIFF: tiles reach to byte {max(ends)} of {size} (cut off?)"
                )

    def _region(self, number: int, low: list[int], high: list[int]) -> np.ndarray:
        """Voxels inside the level."""
        level = self._levels()[number]
        page, frame = level.pages[0], level.keyframe
        rows, columns = slice(low[1], high[1]), slice(low[0], high[0])
        if not frame.is_tiled and page.is_memmappable:
            stored = page.asarray(out="memmap").reshape(frame.shaped)[:, 0, rows, columns]
        else:
            stored = np.empty((frame.shaped[0], high[1] - low[1], high[0] - low[0], frame.shaped[4]), self.dtype)
            for place, block in self._segments(page, frame, rows, columns):
                stored[place] = block
        values = stored[0] if len(stored) == 1 else np.moveaxis(stored[..., 0], 0, -1)
        values = values.swapaxes(0, 1)
        return np.array(values[..., 0]) if self.mask else _colours(values)

    def _segments(self, page: Any, frame: Any, rows: slice, columns: slice) -> Iterator[tuple[Any, Any]]:
        """The tiles or strips that touch the region: place in the region and their voxels there."""
        tall, wide = (frame.tilelength, frame.tilewidth) if frame.is_tiled else (frame.rowsperstrip, frame.imagewidth)
        tall = min(tall, frame.imagelength) if not frame.is_tiled else tall
        planes, across = frame.shaped[0], math.ceil(frame.imagewidth / wide)
        down = math.ceil(frame.imagelength / tall)
        if tall * wide * frame.shaped[4] * self.dtype.itemsize > _SEGMENT_BYTES:
            raise ImageFileError(
                f"slide {self.path!r} holds {wide} x {tall} voxels in one compressed piece, which cannot be read in "
                "parts: save it as a tiled TIFF"
            )
        if len(page.dataoffsets) < planes * across * down:
            raise ImageFileError(
                f"slide {self.path!r} lists {len(page.dataoffsets)} tiles or strips of a level of {frame.imagewidth} x "
                f"{frame.imagelength} voxels, expected {planes * across * down}"
            )
        touched = product(
            range(planes),
            range(rows.start // tall, (rows.stop - 1) // tall + 1),
            range(columns.start // wide, (columns.stop - 1) // wide + 1),
        )
        numbers = [(plane * down + row) * across + column for plane, row, column in touched]
        tables = {}
        if int(frame.compression) in (6, 7, 33007, 34892):  # kinds of JPEG: tables that all tiles share
            tables = {"jpegtables": page.jpegtables, "jpegheader": frame.jpegheader}
        found = page.parent.filehandle.read_segments(
            [page.dataoffsets[n] for n in numbers], [page.databytecounts[n] for n in numbers], indices=numbers
        )
        for data, number in found:
            try:
                block, (plane, _, top, left, _), shape = frame.decode(data, number, **tables)
            except ValueError as error:
                if "imagecodecs" not in str(error):
                    raise
                raise ImageFileError(
                    f"slide {self.path!r} is compressed by {frame.compression.name}, which tifffile decodes with the "
                    "package imagecodecs: pip install 'monai-labelfx[codecs]'"
                ) from error
            y = slice(max(top, rows.start), min(top + shape[1], rows.stop))
            x = slice(max(left, columns.start), min(left + shape[2], columns.stop))
            across_region = slice(x.start - columns.start, x.stop - columns.start)
            place = (plane, slice(y.start - rows.start, y.stop - rows.start), across_region)
            if block is None:  # scanners leave out tiles of glass
                yield place, 0 if self.mask else 255
            else:
                yield place, block[0, y.start - top : y.stop - top, x.start - left : x.stop - left]


def _colours(values: np.ndarray) -> np.ndarray:
    """(..., 3) uint8 of grey, grey and alpha, RGB or RGBA."""
    colours = values
    if values.shape[-1] in (2, 4):
        colours, alpha = values[..., :-1].astype(np.uint32), values[..., -1:].astype(np.uint32)
        colours = ((colours * alpha + 255 * (255 - alpha) + 127) // 255).astype(np.uint8)
    return np.repeat(colours, 3, axis=-1) if colours.shape[-1] == 1 else np.array(colours)


def _reopened(path: str, mask: bool) -> SlideFile:
    return SlideFile(path, mask=mask)


_SLIDES: OrderedDict[tuple, SlideFile] = OrderedDict()


def open_slide(path: str | os.PathLike, *, mask: bool = False) -> SlideFile:
    """The slide of a file, kept open: the headers of a large one take longer to read than a tile."""
    name = os.path.abspath(path)
    if not os.path.isfile(name):
        raise FileNotFoundError(f"slide {os.fspath(path)!r} does not exist, or is no file")
    facts = os.stat(name)
    key = (name, mask, facts.st_mtime_ns, facts.st_size)
    slide = _SLIDES.pop(key, None) or SlideFile(name, mask=mask)
    _SLIDES[key] = slide
    while len(_SLIDES) > _OPEN:
        _SLIDES.popitem(last=False)[1].close()
    return slide
