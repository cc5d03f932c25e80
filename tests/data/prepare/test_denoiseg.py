# SPDX-License-Identifier: Apache-2.0
"""prepare.denoiseg on tiny archives of the same layout."""

from __future__ import annotations

import numpy as np
import pytest

from monai_labelfx.data import AutoReader, check_datalist, load_datalist
from monai_labelfx.data.prepare.denoiseg import prepare


def ragged(arrays: list[np.ndarray]) -> np.ndarray:
    """An object array, as the releases store test images of several sizes."""
    result = np.empty(len(arrays), object)
    result[:] = arrays
    return result


@pytest.fixture
def source(tmp_path):
    draw = np.random.default_rng(0)
    images, labels = draw.normal(100, 20, (6, 10, 8)), draw.integers(0, 4, (6, 10, 8))
    (tmp_path / "raw" / "train").mkdir(parents=True)
    (tmp_path / "raw" / "test").mkdir()
    np.savez(
        tmp_path / "raw/train/train_data.npz",
        X_train=images[:4],
        Y_train=labels[:4].astype("uint16"),
        X_val=images[4:],
        Y_val=labels[4:].astype("float32"),
    )
    X_test = ragged([draw.normal(size=(9, 7)).astype("float32"), draw.normal(size=(5, 6)).astype("float32")])
    Y_test = ragged([np.ones((9, 7), "uint16"), np.ones((5, 6), "uint16")])
    np.savez(tmp_path / "raw/test/test_data.npz", X_test=X_test, Y_test=Y_test, other=np.zeros(3))
    return tmp_path / "raw"


def read(path) -> np.ndarray:
    return AutoReader().get_data(path)[0]


def test_layout_and_values(source, tmp_path):
    datalist = prepare(source, tmp_path / "out", labelled=1)
    splits = load_datalist(datalist)
    assert {name: len(items) for name, items in splits.items()} == {"training": 4, "validation": 2, "test": 2}
    assert sum("label" in item for item in splits["training"]) == 1
    report = check_datalist(datalist, spatial_dims=2)
    assert report["faults"] == [] and {row["dtype"] for row in report["rows"]} == {"float32"}
    with np.load(source / "train/train_data.npz") as stored:
        for number in range(4):
            assert np.array_equal(
                read(splits["training"][number]["image"]), stored["X_train"][number].T.astype("float32")
            )
            label = read(tmp_path / "out" / "labels" / f"train_{number}.tif")
            assert label.dtype == np.uint16 and np.array_equal(label, stored["Y_train"][number].T)
    assert [read(item["image"]).shape for item in splits["test"]] == [(7, 9), (6, 5)]


def test_one_archive_without_labels_and_volumes(tmp_path):
    np.savez_compressed(tmp_path / "volumes.npz", X_train=np.arange(2 * 3 * 4 * 5, dtype="uint8").reshape(2, 3, 4, 5))
    splits = load_datalist(prepare(tmp_path / "volumes.npz", tmp_path / "out"))
    assert [set(item) for item in splits["training"]] == [{"image"}] * 2
    assert read(splits["training"][1]["image"]).shape == (5, 4, 3)


class Evil:
    def __reduce__(self):
        return print, ("this must never be printed",)


def test_pickles_that_hold_more_than_arrays_are_refused(tmp_path, capsys):
    np.savez(tmp_path / "evil.npz", X_train=ragged([Evil()]))
    with pytest.raises(ValueError, match=r"evil\.npz' cannot be read.*wants to load builtins\.print"):
        prepare(tmp_path / "evil.npz", tmp_path / "out")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("arrays", "match"),
    [
        ({"images": np.zeros((2, 4, 4))}, r"no array X_train in 1 npz files, found \[\]"),
        ({"X_train": np.zeros((2, 4, 4)), "Y_train": np.zeros((3, 4, 4))}, "X_train holds 2 images, but Y_train 3"),
        ({"X_train": np.zeros((2, 4, 4)), "Y_train": np.zeros((2, 4, 5))}, r"Y_train\[0\] has shape \(4, 5\)"),
        ({"X_train": np.zeros((2, 4, 4)), "Y_train": np.full((2, 4, 4), 0.5)}, "no instance numbers"),
        ({"X_train": np.zeros((2, 4, 4)), "Y_train": np.full((2, 4, 4), -1)}, "no instance numbers"),
        ({"X_train": np.zeros((2, 4))}, r"X_train\[0\] has shape \(4,\)"),
        ({"X_train": np.zeros((2, 4, 4), complex)}, "type complex128"),
    ],
)
def test_malformed_archives(tmp_path, arrays, match):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(ValueError, match=match) as caught:
        prepare(tmp_path, tmp_path / "out")
    assert "a.npz" in str(caught.value) or str(tmp_path) in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["a.npz"]


def test_other_refusals(source, tmp_path):
    out = tmp_path / "out"
    with pytest.raises(FileNotFoundError, match="absent' does not exist"):
        prepare(tmp_path / "absent", out)
    with pytest.raises(ValueError, match="labelled must be 0 to 4"):
        prepare(source, out, labelled=5)
    np.savez(source / "again.npz", X_train=np.zeros((1, 4, 4)))
    with pytest.raises(ValueError, match=r"array X_train is in .*again\.npz|array X_train is in .*train_data\.npz"):
        prepare(source, out)
    (source / "again.npz").write_bytes(b"no archive")
    with pytest.raises(ValueError, match=r"again\.npz' cannot be read as npz archive"):
        prepare(source, out)
    assert not out.exists()
    with pytest.raises(FileExistsError, match="raw' is not empty"):
        prepare(source, source)
