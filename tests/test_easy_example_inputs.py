# SPDX-License-Identifier: Apache-2.0
"""What people give the OEEM bundle: ticks and pictures of all kinds, which run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_samples import phantom
from easy_example_bundle import (
    STAGES,
    changed,
    glands,
    metrics,
    predict,
    pseudo_masks,
    read_json,
    read_splits,
    run,
    some_network,
    ticks,
)
from PIL import Image
from samples import write_image

NAMES = ["stroma", "gland"]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return glands(tmp_path_factory.mktemp("pictures"))


def save_as(kind: str, image: np.ndarray, path: Path) -> Path:
    """An RGB picture (y, x, 3) of 8 bits as another kind of file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    grey = image.mean(2)
    if kind == "tiff":
        import tifffile

        tifffile.imwrite(path.with_suffix(".tif"), image, photometric="rgb")
        return path.with_suffix(".tif")
    made = {
        "rgb": lambda: Image.fromarray(image),
        "rgba": lambda: Image.fromarray(image).convert("RGBA"),
        "grey": lambda: Image.fromarray(grey.astype(np.uint8)),
        "grey16": lambda: Image.fromarray((grey * 257).astype(np.uint16)),
        "bmp": lambda: Image.fromarray(image),
    }[kind]()
    path = path.with_suffix(".bmp" if kind == "bmp" else ".png")
    made.save(path)
    return path


KINDS = ("rgba", "grey16", "tiff", "bmp", "grey", "rgb")


def as_all_kinds(folder: Path, datalist: Path) -> Path:
    """The datalist with pictures of all kinds in training, validation and test."""

    def change(splits: dict[str, list[dict[str, Any]]]) -> None:
        items = [item for split in splits.values() for item in split]
        for number, item in enumerate(items):
            picture = np.asarray(Image.open(item["image"]))
            item["image"] = str(save_as(KINDS[number % len(KINDS)], picture, folder / Path(item["image"]).stem))

    return changed(folder, datalist, change)


# --- people -----------------------------------------------------------------------------------------------------------
def test_ticks_of_named_classes_in_pictures_of_all_kinds(pictures, tmp_path):
    """A pathologist's table for all pictures; nobody has a mask, but for the test."""
    masks = [item["label"] for item in read_splits(pictures)["test"]]
    datalist = ticks(tmp_path / "data", as_all_kinds(tmp_path / "files", pictures), classes=NAMES)
    table = (tmp_path / "data" / "ticks.csv").read_text()
    assert table.splitlines()[0] == "image,x,y,width,height,stroma,gland" and "grey" not in table
    suffixes = {Path(item["image"]).suffix for item in read_splits(datalist)["training"]}
    assert suffixes == {".png", ".tif", ".bmp"}

    def with_masks(splits):
        for item, mask in zip(splits["test"], masks, strict=True):
            item["label"] = mask

    datalist = changed(tmp_path / "data", datalist, with_masks)
    out = run("train", tmp_path / "out", datalist, class_names=NAMES)
    report = read_json(out / "stages" / STAGES[0] / "patch_labels.json")
    assert report["classes"] == NAMES and report["images"] == 4
    assert "CAM_mIoU" not in metrics(out / "stages" / STAGES[1]) and len(pseudo_masks(out)) == 6
    run("evaluate", out, datalist, class_names=NAMES)
    assert {"mIoU", "Dice", "object_F1"} <= set(metrics(out))
    assert len(list((out / "predictions").glob("*.nii.gz"))) == 2 and (out / "overview.png").is_file()


def test_inference_on_a_folder_of_pictures(tmp_path):
    model, generator = some_network(tmp_path / "model.pt"), np.random.default_rng(0)
    picture = generator.integers(0, 256, (40, 52, 3)).astype(np.uint8)
    for kind in KINDS:
        save_as(kind, picture, tmp_path / "new" / kind)
    out = predict(tmp_path / "new", tmp_path / "out", model)
    found = {kind: nibabel.load(out / f"{kind}_segmentation.nii.gz") for kind in KINDS}
    assert (out / "overview.png").is_file() and len(list(out.glob("*.nii.gz"))) == len(KINDS)
    maps = {kind: np.asarray(file.dataobj).squeeze() for kind, file in found.items()}
    assert {one.shape for one in maps.values()} == {(52, 40)} and 0.1 < maps["rgb"].mean() < 0.9
    for kind in ("rgba", "bmp", "tiff"):
        assert np.array_equal(maps[kind], maps["rgb"]), f"{kind} holds the same colours"
    assert (maps["grey16"] == maps["grey"]).mean() > 0.98, "16 bits differ by the rounding of 8 bits"


def test_inference_on_a_dicom_series(tmp_path):
    model = some_network(tmp_path / "model.pt", "intensity")
    series = write_image(tmp_path / "series", phantom((24, 20, 3)), "dicom")
    nifti = write_image(tmp_path / "volume", phantom((24, 20, 3)), "nifti")
    (made,) = predict(series, tmp_path / "dicom", model, presets=["intensity", "dicom"]).glob("*_segmentation.dcm")
    (volume,) = predict(nifti, tmp_path / "nifti", model, presets=["intensity"]).glob("*_segmentation.nii.gz")
    from monai_labelfx.data import AutoReader

    reader = AutoReader()
    array, meta = reader.get_data(reader.read(made))
    expected = np.asarray(nibabel.load(volume).dataobj)
    assert 0.01 < expected.mean() < 0.99 and np.array_equal(array, expected)
    assert np.allclose(meta["affine"], nibabel.load(volume).affine, atol=1e-4)


def test_an_image_smaller_than_a_patch(pictures, tmp_path):
    """Its one patch is as large as it is, and continued by reflection for the classifier."""

    def change(splits):
        for split in ("training", "validation", "test"):
            for key in ("image", "label"):
                small = np.asarray(Image.open(splits[split][0][key]))[20:32, 10:40]
                splits[split][0][key] = str(tmp_path / key / f"{split}_small.png")
                Path(splits[split][0][key]).parent.mkdir(exist_ok=True)
                Image.fromarray(small).save(splits[split][0][key])

    out = run("train", tmp_path / "out", changed(tmp_path, pictures, change))
    (mask,) = (mask for name, mask in pseudo_masks(out).items() if "training_small" in name)
    assert mask.squeeze().shape == (30, 12)
    run("evaluate", out, tmp_path / "datalist.json")
    (made,) = (out / "predictions").rglob("*test_small_segmentation.nii.gz")
    assert nibabel.load(made).shape[:2] == (30, 12)


def test_colours_of_masks_are_classes(pictures, tmp_path):
    plain = run("train", tmp_path / "plain", pictures)

    def change(splits):
        for item in (item for split in splits.values() for item in split):
            mask = np.asarray(Image.open(item["label"]))
            item["label"] = str(tmp_path / Path(item["label"]).name)
            Image.fromarray(np.stack([0 * mask, 200 * mask, 99 * mask], -1)).save(item["label"])

    datalist = changed(tmp_path, pictures, change)
    palette = {"#000000": 0, "#00c863": 1}
    coloured = run("train", tmp_path / "coloured", datalist, palette=palette)
    for name, mask in pseudo_masks(plain).items():
        assert np.array_equal(mask, pseudo_masks(coloured)[name])
    run("evaluate", coloured, datalist, palette=palette)
    assert metrics(coloured / "stages" / STAGES[1]) == metrics(plain / "stages" / STAGES[1])
