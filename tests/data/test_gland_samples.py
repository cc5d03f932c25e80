# SPDX-License-Identifier: Apache-2.0
"""Data sets of glands: files, datalists, splits by patient."""

from __future__ import annotations

import json
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import LoadImage
from PIL import Image

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.gland_samples import PATH_KEYS, histology_glands, synthetic_glands

CLASSES = ("adenocarcinoma", "normal", "polyp")


def load(path: str):
    return LoadImage(reader="monai_labelfx.data.AutoReader", image_only=True, ensure_channel_first=True)(path)


@pytest.mark.parametrize(("ndim", "size"), [(2, (64, 96)), (3, (32, 40, 33))])
def test_pictures_masks_and_datalist(tmp_path, ndim, size):
    path = synthetic_glands(
        tmp_path / "a", spatial_dims=ndim, size=size, counts=(5, 2, 3), per_patient=2, empty=0, scale=0.5
    )
    report = check_datalist(path, spatial_dims=ndim, allowed_labels=[1])
    assert report["faults"] == []
    splits = load_datalist(path, path_keys=PATH_KEYS)
    assert {name: len(items) for name, items in splits.items()} == {"training": 5, "validation": 2, "test": 3}
    assert [item["grade"] for item in splits["training"]] == ["benign"] * 2 + ["malignant"] * 2 + ["benign"]
    patients = [{item["patient"] for item in items} for items in splits.values()]
    assert [len(one) for one in patients] == [3, 1, 2] and len(set.union(*patients)) == 6
    counts = []
    for item in (item for items in splits.values() for item in items):
        image, label, glands = (load(item[key]) for key in PATH_KEYS)
        assert tuple(image.shape) == (3, *size) and tuple(label.shape) == tuple(glands.shape) == (1, *size)
        assert ((glands > 0) == label).all()
        counts.append(int(glands.max()))
    assert sum(counts) > 10 and max(counts) > 1


def test_seeds_counts_and_the_share_of_empty_pictures(tmp_path):
    def pixels(name: str, **keywords) -> dict[str, list[bytes]]:
        options = {"counts": (3, 1, 2), "size": 40, "scale": 0.5} | keywords
        splits = load_datalist(synthetic_glands(tmp_path / name, **options))
        return {split: [Path(item["image"]).read_bytes() for item in items] for split, items in splits.items()}

    first = pixels("a")
    assert pixels("b") == first
    more = pixels("c", counts=(4, 1, 3))
    assert more["training"][:3] == first["training"] and more["test"][:2] == first["test"]
    other = pixels("d", seed=1)
    assert other["test"] == first["test"] and other["training"] != first["training"]
    assert other["validation"] != first["validation"]
    assert pixels("e", test_seed=1)["test"] != first["test"]
    assert list(pixels("f", counts=(1, 0, 0))) == ["training"]
    report = check_datalist(synthetic_glands(tmp_path / "g", counts=(12, 0, 0), size=64, empty=0.5))
    assert 2 < sum("label is empty" in text for text in report["warnings"]) < 10
    report = check_datalist(synthetic_glands(tmp_path / "h", counts=(3, 0, 0), size=32, empty=1))
    assert sum("label is empty" in text for text in report["warnings"]) == 3


def test_dozens_of_pictures_take_seconds_and_carry_their_pixel_size(tmp_path):
    start = time.process_time()
    splits = load_datalist(synthetic_glands(tmp_path, counts=(10, 0, 0), scale=2.0))
    assert time.process_time() - start < 10
    with Image.open(splits["training"][0]["image"]) as image:
        assert image.size == (256, 256) and image.mode == "RGB"
        assert image.info["dpi"][0] == pytest.approx(25400 / 0.31, rel=1e-3)


def test_synthetic_glands_refuse_bad_arguments(tmp_path):
    for match, keywords in (
        ("spatial_dims must be 2 or 3, got 4", {"spatial_dims": 4}),
        ("size must be one number of pixels of at least 32, or 2 of them, got 16", {"size": 16}),
        (r"or 2 of them, got \(64, 64, 64\)", {"size": (64, 64, 64)}),
        ("three counts of at least 0 and per_patient of at least 1, got .1, 2., 3", {"counts": (1, 2)}),
        ("per_patient of at least 1", {"per_patient": 0}),
        ("a share empty of 0 to 1 and a scale of 0.2 to 4, got 2 and 1", {"empty": 2}),
        ("a scale of 0.2 to 4, got 0.1 and 9", {"scale": 9}),
    ):
        with pytest.raises(ValueError, match=match):
            synthetic_glands(tmp_path / "out", **keywords)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def samples(tmp_path) -> Path:
    """The layout of the folder of samples, with 24 tiny pictures."""
    root = tmp_path / "samples" / "histology" / "ebhi_seg"
    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for number in range(24):
        kind = CLASSES[number % 3]
        case = "GTxc7-1" if number == 3 else "GTXC7-2" if number == 4 else f"GT{number}-1"
        name = f"{kind}__{case}-400-00{number % 10}.png"
        Image.fromarray(generator.integers(0, 255, (20, 30, 3), dtype=np.uint8)).save(root / "images" / name)
        Image.fromarray(generator.integers(0, 2, (20, 30), dtype=np.uint8) * 255).save(root / "masks" / name)
    return tmp_path / "samples"


def test_histology_is_split_by_case_and_class(samples, tmp_path, monkeypatch):
    monkeypatch.setenv("LABELFX_DATA", str(samples))
    path = histology_glands(tmp_path / "out")
    report = check_datalist(path, spatial_dims=2, allowed_labels=[1])
    assert report["faults"] == [] and json.loads(path.read_text())["licence"] == "CC BY 4.0"
    splits = load_datalist(path)
    assert 3 <= len(splits["validation"]) <= 6 and 6 <= len(splits["test"]) <= 9
    for items in splits.values():
        assert set(Counter(item["grade"] for item in items)) == set(CLASSES)
        for item in items:
            mask = samples / "histology" / "ebhi_seg" / "masks" / Path(item["image"]).name
            assert Path(item["image"]).parent == mask.parent.parent / "images" and item["magnification"] == 400
            assert (np.asarray(Image.open(item["label"])) * 255 == np.asarray(Image.open(mask))).all()
    patients = [{item["patient"] for item in items} for items in splits.values()]
    assert sum(map(len, patients)) == len(set.union(*patients)) == 23  # GTxc7 and GTXC7 are one
    seeds = [load_datalist(histology_glands(tmp_path / f"{seed}", samples, seed=seed)) for seed in (0, 1)]
    names = [[Path(item["image"]).name for item in one["test"]] for one in seeds]
    assert names[0] == [Path(item["image"]).name for item in splits["test"]] != names[1]


def test_histology_says_what_is_wrong(samples, tmp_path, monkeypatch):
    monkeypatch.delenv("LABELFX_DATA", raising=False)
    for options in ({}, {"source": tmp_path}):
        with pytest.raises(FileNotFoundError, match="no folder histology/ebhi_seg of samples: set LABELFX_DATA, or"):
            histology_glands(tmp_path / "out", **options)
    with pytest.raises(ValueError, match="test must be a share of at least 0 and below 1, got 1.5"):
        histology_glands(tmp_path / "out", samples, test=1.5)
    mask = next((samples / "histology" / "ebhi_seg" / "masks").glob("adeno*"))
    pixels = np.asarray(Image.open(mask))
    for array, match in (
        (pixels // 2, r"has \[0, 127\], expected grey values of 0 and 255"),
        (pixels[1:], "has .30, 19"),
    ):
        Image.fromarray(array).save(mask)
        with pytest.raises(ValueError, match=match):
            histology_glands(tmp_path / "out", samples)
    mask.unlink()
    with pytest.raises(FileNotFoundError, match=mask.name):
        histology_glands(tmp_path / "out", samples)


@pytest.mark.sample_data
def test_real_histology(sample_data, tmp_path):
    path = histology_glands(tmp_path, sample_data)
    splits = load_datalist(path)
    assert sum(map(len, splits.values())) == 42 and check_datalist(path, allowed_labels=[1])["faults"] == []
    for name, number in (("validation", 6), ("test", 13)):
        assert len(splits[name]) == pytest.approx(number, abs=2)
        assert len({item["grade"] for item in splits[name]}) == 6
