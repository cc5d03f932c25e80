# SPDX-License-Identifier: Apache-2.0
"""Damaged files of every kind: an array, or one sentence; never another error, a hang or gigabytes."""

from __future__ import annotations

import gzip
import io
import json
import tempfile
import warnings
from collections.abc import Callable
from datetime import timedelta
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tifffile
from dicom_samples import enhanced, phantom, series_slices
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from malformed import nifti, pictures
from malformed.bounded import run_bounded
from malformed.dicom import encoded, segmentation
from PIL import Image
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from monai_labelfx.data import AutoReader, check_datalist, load_datalist

GREY = np.random.default_rng(0).integers(0, 256, (9, 7), dtype=np.uint8)


def _saved(kind: str) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.stack([GREY] * 3, axis=-1)).save(buffer, kind)
    return buffer.getvalue()


def _tiff(**options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, np.stack([GREY] * 3), **options)
    return buffer.getvalue()


def _npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, GREY)
    return buffer.getvalue()


def _slice(syntax: str | None = None) -> bytes:
    image = series_slices(phantom((16, 12, 1)))[0]
    if syntax == RLELossless:
        image.compress(RLELossless)
    elif syntax == ImplicitVRLittleEndian or syntax == DeflatedExplicitVRLittleEndian:
        image.file_meta.TransferSyntaxUID = syntax
    elif syntax == ExplicitVRBigEndian:
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = np.frombuffer(image.PixelData, "<u2").astype(">u2").tobytes()
    return encoded(image)


def _list() -> bytes:
    entry = {"image": ["a.png", "b.png"], "label": "c.png", "subject": "s", "box": [[0, 0, 3, 4]]}
    return json.dumps({"name": "x", "training": [entry, "a.png"], "test": [{"image": "../d.tif"}]}).encode()


SAMPLES: dict[str, Callable[[], bytes]] = {
    "a.nii": nifti.stored,
    "b.nii.gz": lambda: gzip.compress(nifti.stored()),
    "a.png": lambda: _saved("PNG"),
    "b.png": pictures.palette,
    "a.jpg": lambda: _saved("JPEG"),
    "a.bmp": lambda: _saved("BMP"),
    "a.tif": lambda: _tiff(imagej=True, metadata={"axes": "ZYX", "unit": "um", "spacing": 2}),
    "b.tif": lambda: _tiff(compression="zlib", ome=True, metadata={"axes": "ZYX", "PhysicalSizeX": 2}),
    "a.npy": _npy,
    "a.dcm": _slice,
    "implicit.dcm": lambda: _slice(ImplicitVRLittleEndian),
    "big.dcm": lambda: _slice(ExplicitVRBigEndian),
    "deflated.dcm": lambda: _slice(DeflatedExplicitVRLittleEndian),
    "rle.dcm": lambda: _slice(RLELossless),
    "enhanced.dcm": lambda: encoded(enhanced(phantom((8, 6, 3)))),
    "seg.dcm": lambda: encoded(segmentation()),
    "list.json": _list,
}
_sample = cache(lambda name: SAMPLES[name]())


@st.composite
def damaged(draw: st.DrawFn, name: str) -> bytes:
    """The bytes of a good file, cut, or with bytes changed, put in, taken out or repeated."""
    data = bytearray(_sample(name))
    if draw(st.integers(0, 9)) == 0:
        return bytes(data[: draw(st.integers(0, len(data) - 1))])
    for _ in range(draw(st.integers(1, 4))):
        # half of the places are in the header, where damage does most harm
        place = draw(st.integers(0, len(data) - 1) | st.integers(0, min(400, len(data) - 1)))
        action = draw(st.sampled_from(["byte", "bit", "number", "insert", "remove", "repeat"]))
        if action == "byte":
            data[place] = draw(st.integers(0, 255))
        elif action == "bit":
            data[place] ^= 1 << draw(st.integers(0, 7))
        elif action == "number":
            data[place : place + 4] = draw(
                st.sampled_from([b"\xff" * 4, b"\0" * 4, b"\0\0\0\x80", b"\xff\xff\xff\x7f"])
            )
        elif action == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=8))
        elif action == "remove":
            del data[place : place + draw(st.integers(1, 8))]
        else:
            data[place:place] = data[place : place + draw(st.integers(1, 64))]
        if not data:
            break
    return bytes(data)


def _check(name: str, content: bytes) -> None:
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = Path(folder, name)
        path.write_bytes(content)
        try:
            if name.endswith(".json"):
                check_datalist(path)
                assert all(load_datalist(path).values())
                return
            array, meta = AutoReader().get_data(path)
        except (ValueError, FileNotFoundError) as error:
            text = str(error)
            assert "\n" not in text and len(text) < 600 and folder in text, text
            cause: BaseException | None = error
            while cause is not None:
                assert not isinstance(cause, MemoryError), "it took the memory"
                cause = cause.__cause__ or cause.__context__
            return
        assert array.dtype.kind in "buif" and array.size and array.dtype.isnative
        assert np.isfinite(np.asarray(meta.get("affine", 0.0), dtype=float)).all()


def _fuzz(name: str, examples: int) -> str:
    _sample(name)

    @settings(
        max_examples=examples,
        derandomize=True,
        database=None,
        deadline=timedelta(seconds=10),
        suppress_health_check=list(HealthCheck),
    )
    @given(damaged(name))
    def run(content: bytes) -> None:
        _check(name, content)

    return run_bounded(run, 60 + examples, 8 * 2**30)  # pydicom reads as many bytes as an element announces


@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files(name):
    failure = _fuzz(name, 150)
    assert not failure, failure


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLES)
def test_damaged_files_at_length(name):
    failure = _fuzz(name, 3000)
    assert not failure, failure


@pytest.mark.parametrize("name", SAMPLES)
def test_the_samples_are_good(name, tmp_path):
    (tmp_path / name).write_bytes(_sample(name))
    if name.endswith(".json"):
        assert len(load_datalist(tmp_path / name)["training"]) == 2
    else:
        assert AutoReader().get_data(tmp_path / name)[0].size
