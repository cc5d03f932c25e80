# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import nibabel
import numpy as np
import pytest

from monai_labelfx.data import brain_mr, check_datalist, load_datalist, nuclei


def test_brain_mr_halves_meet_at_the_midline_and_noise_is_what_was_asked(tmp_path):
    splits = load_datalist(brain_mr(tmp_path, sigma=50.0, labelled=2))
    assert [len(splits[s]) for s in ("training", "validation", "test")] == [5, 1, 1]
    assert ["label" in item for item in splits["training"]] == [True, True, False, False, False]
    noise, used = [], 0
    for item in (*splits["training"], *splits["validation"], *splits["test"]):
        image, clean = nibabel.load(item["image"]), nibabel.load(item["clean"])
        assert np.array_equal(image.affine, clean.affine)
        noise.append((image.get_fdata() - clean.get_fdata()).ravel())
        used += image.get_fdata().size
    assert used == 68 * 96 * 18, "the blocks tile the volume: no voxel is used twice"
    assert np.concatenate(noise).std() == pytest.approx(50, rel=0.01)
    train, test = nibabel.load(splits["training"][0]["image"]), nibabel.load(splits["test"][0]["image"])
    midline = test.affine[:3, :3] @ np.array([-0.5, 0, 0]) + test.affine[:3, 3]
    last = train.affine[:3, :3] @ np.array([train.shape[0] - 0.5, 0, 0]) + train.affine[:3, 3]
    assert midline[0] == pytest.approx(last[0])
    label = nibabel.load(splits["test"][0]["label"]).get_fdata() > 0
    clean = nibabel.load(splits["test"][0]["clean"]).get_fdata()
    assert 0.1 < label.mean() < 0.4 and clean[label].mean() < clean[~label & (clean > 250)].mean(), "dark tissue"


def test_brain_mr_is_seeded_and_checked(tmp_path):
    again = [nibabel.load(load_datalist(brain_mr(tmp_path / n))["test"][0]["image"]).get_fdata() for n in "ab"]
    assert np.array_equal(*again)
    other = nibabel.load(load_datalist(brain_mr(tmp_path / "c", seed=1))["test"][0]["image"]).get_fdata()
    assert not np.array_equal(again[0], other)
    assert not check_datalist(tmp_path / "a" / "datalist.json")["faults"]
    with pytest.raises(ValueError, match="labelled must be 0 to 5"):
        brain_mr(tmp_path / "d", labelled=6)


def _pictures(root, number=8):
    from PIL import Image

    generator = np.random.default_rng(0)
    for folder in ("images", "masks"):
        (root / "nuclei2d" / folder).mkdir(parents=True)
    for n in range(number):
        grey = generator.integers(0, 255, (260, 270), dtype=np.uint8)
        Image.fromarray(grey).convert("RGBA").save(root / "nuclei2d" / "images" / f"{n}.png")
        Image.fromarray((grey // 100).astype(np.uint16)).save(root / "nuclei2d" / "masks" / f"{n}.png")


def test_nuclei_share_test_images_between_draws(tmp_path):
    _pictures(tmp_path, 12)
    draws = [
        load_datalist(nuclei(tmp_path / f"s{s}", source=tmp_path, counts=(5, 1, 3), labelled=2, seed=s)) for s in (0, 1)
    ]
    tests = [[item["image"].rsplit("/", 1)[1] for item in draw["test"]] for draw in draws]
    assert tests[0] == tests[1]
    training = [{item["image"].rsplit("/", 1)[1] for item in draw["training"]} for draw in draws]
    assert training[0] != training[1]
    assert all(sum("label" in item for item in draw["training"]) == 2 for draw in draws)
    import tifffile

    a, b = (tifffile.imread(draw["test"][0]["image"]) for draw in draws)
    assert a.shape == (256, 256) and np.array_equal(a, b)
    clean = tifffile.imread(draws[0]["test"][0]["clean"])
    assert (a - clean).std() == pytest.approx(20, rel=0.02)


def test_nuclei_say_what_is_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("LABELFX_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="set LABELFX_DATA"):
        nuclei(tmp_path / "out")
    with pytest.raises(ValueError, match="collection must be"):
        nuclei(tmp_path / "out", source=tmp_path, collection="cells")
    _pictures(tmp_path, 3)
    with pytest.raises(ValueError, match="holds 3 images of at least 256 x 256, 54 were asked for"):
        nuclei(tmp_path / "out", source=tmp_path)


@pytest.mark.sample_data
def test_real_nuclei_in_three_dimensions(tmp_path, sample_data):
    splits = load_datalist(nuclei(tmp_path, source=sample_data, collection="nuclei3d", labelled=1))
    assert [len(splits[s]) for s in ("training", "validation", "test")] == [3, 1, 1]
    assert not check_datalist(tmp_path / "datalist.json", spatial_dims=3)["faults"]


@pytest.mark.sample_data
def test_real_nuclei_in_two_dimensions(tmp_path, sample_data):
    splits = load_datalist(nuclei(tmp_path, source=sample_data, counts=(3, 1, 2), labelled=1))
    assert sum("label" in item for item in splits["training"]) == 1
    assert not check_datalist(tmp_path / "datalist.json", spatial_dims=2)["faults"]
