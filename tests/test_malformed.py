# SPDX-License-Identifier: Apache-2.0
"""The corpus: every malformed input ends in one sentence or a known result, within 10 s and 2 GiB."""

from __future__ import annotations

import os
import re
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from malformed.bounded import run_bounded
from malformed.case import Case
from malformed.dicom import DICOM
from malformed.lists import CHECKPOINTS, DATALISTS, ListCase, network
from malformed.nifti import NIFTI
from malformed.pictures import NPY, PNG, TIFF
from monai.handlers import CheckpointLoader
from monai.transforms import LoadImaged

from monai_labelfx.data import AutoReader, check_datalist, load_datalist
from monai_labelfx.engines import require_checkpoint

IMAGES: dict[str, Case] = {
    f"{kind}: {name}": case
    for kind, cases in {"nifti": NIFTI, "png": PNG, "tiff": TIFF, "npy": NPY, "dicom": DICOM}.items()
    for name, case in cases.items()
}


def check_sentence(error: BaseException, pattern: str, folder: Path) -> None:
    text = str(error)
    assert re.search(pattern, text), text
    assert isinstance(error, (ValueError, FileNotFoundError)), repr(error)
    assert str(folder) in text, f"the sentence does not name the file: {text}"
    assert "\n" not in text and len(text.replace(str(folder), "")) < 600, text
    while error is not None:  # of a memory error only the limit of this test would be the reason
        assert not isinstance(error, MemoryError), "it took the memory"
        error = error.__cause__ or error.__context__


def check_image(case: Case, source: object, folder: Path) -> None:
    first = np.asarray(case.result)

    def own() -> tuple[np.ndarray, dict]:
        reader = AutoReader()
        return reader.get_data(reader.read(source))

    def monai() -> torch.Tensor:
        load = LoadImaged("image", reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)
        return load({"image": source})["image"]

    for read in (own, monai):
        if case.error is not None:
            try:
                result = read()
            except Exception as error:
                check_sentence(error, case.error, folder)
            else:
                raise AssertionError(f"{read.__name__} gave {type(result)}, expected an error about {case.error!r}")
    if case.error is None:
        array, meta = own()
        assert array.dtype == first.dtype and array.dtype.isnative, array.dtype
        assert np.array_equal(array, first, equal_nan=first.dtype.kind == "f")
        assert case.affine is None or np.allclose(meta["affine"], case.affine, atol=1e-5), meta["affine"]
        image = monai()
        expected = first[None] if case.channel is None else np.moveaxis(first, case.channel, 0)
        assert np.array_equal(image.numpy(), expected.astype(np.float32), equal_nan=True), image.shape
        assert case.affine is None or np.allclose(image.affine, case.affine, atol=1e-5), image.affine


def check_list(case: ListCase, source: Path, folder: Path) -> None:
    try:
        splits = load_datalist(source)
    except Exception as error:
        assert case.error is not None, repr(error)
        check_sentence(error, case.error, folder)
    else:
        assert case.error is None, splits
    report = check_datalist(source)
    for found, expected in ((report["faults"], case.faults), (report["warnings"], case.warnings)):
        assert bool(found) == bool(expected), found
        assert all("\n" not in line and len(line.replace(str(folder), "")) < 600 for line in found)
        for pattern in expected:
            assert any(re.search(pattern, line) for line in found), found


def check_checkpoint(pattern: str | None, source: Path, folder: Path) -> None:
    try:
        path = require_checkpoint(source)
    except Exception as error:
        assert pattern is not None, repr(error)
        check_sentence(error, pattern, folder)
    else:
        assert pattern is None
        target = network()
        CheckpointLoader(path, {"network": target}, map_location="cpu")(Engine(lambda engine, batch: None))
        saved = torch.load(path, weights_only=True)["network"]
        assert all(torch.equal(saved[name], value) for name, value in target.state_dict().items())
    assert not Path("trap").exists(), "code of the file was run"


def bounded(check, case, source, folder: Path) -> None:
    def run() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            check(case, source, folder)

    failure = run_bounded(run)
    assert not failure, failure


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder below the working directory, where code of a trap would leave its mark."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    return tmp_path / "corpus"


@pytest.mark.parametrize("name", IMAGES)
def test_image(folder, name):
    bounded(check_image, IMAGES[name], IMAGES[name].write(folder), folder)


@pytest.mark.parametrize("name", DATALISTS)
def test_datalist(folder, name):
    bounded(check_list, DATALISTS[name], DATALISTS[name].write(folder), folder)


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_checkpoint(folder, name):
    write, pattern = CHECKPOINTS[name]
    bounded(check_checkpoint, pattern, write(folder), folder)


def test_weights_of_another_network_are_refused(folder):
    torch.save({"network": torch.nn.Linear(2, 2).state_dict()}, folder / "model.pt")
    loader = CheckpointLoader(require_checkpoint(folder / "model.pt"), {"network": network()}, map_location="cpu")
    with pytest.raises(RuntimeError, match="loading state_dict"):
        loader(Engine(lambda engine, batch: None))


def test_the_corpus_is_large():
    assert len(IMAGES) + len(DATALISTS) + len(CHECKPOINTS) >= 150


def _too_slow() -> None:
    while True:
        pass


def _too_much() -> None:
    np.empty(3 * 2**30, np.uint8)  # reserved, never touched


def _used() -> None:
    np.ones(2**28, np.uint8)


def _dead() -> None:
    os._exit(3)


@pytest.mark.parametrize(("check", "text"), [(_too_much, "MemoryError"), (_dead, "exit code 3")])
def test_the_bounds_hold(check, text):
    assert text in run_bounded(check)


def test_memory_that_is_reserved_counts_apart_from_memory_that_is_used(monkeypatch):
    monkeypatch.setattr("malformed.bounded.MEMORY", 2**27)
    assert "it used 2" in run_bounded(_used, reserved=2**33)
    assert run_bounded(_too_much, reserved=2**33) == ""


def test_the_time_is_bounded():
    assert run_bounded(_too_slow, 0.2) == "did not end within 0.2 s"
