# SPDX-License-Identifier: Apache-2.0
"""What people give the OEEM bundle: ticks and pictures of all kinds, which run, and faults, one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from dicom_samples import phantom
from easy_example_bundle import (
    BUNDLE,
    METHOD,
    PRESETS,
    QUICK,
    SIZES,
    STAGES,
    call,
    glands,
    metrics,
    options,
    predict,
    pseudo_masks,
    read_json,
    read_splits,
    run,
    run_stage,
    some_network,
    stage_config,
    ticks,
    write_splits,
)
from PIL import Image
from samples import write_image

from monai_labelfx.commands.workflow import config_files, execute

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


def changed(folder: Path, datalist: Path, change: Callable[[dict[str, list[dict[str, Any]]]], None]) -> Path:
    """The datalist with a change of its items."""
    splits = read_splits(datalist)
    change(splits)
    folder.mkdir(parents=True, exist_ok=True)
    return write_splits(folder / "datalist.json", splits)


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


# --- faults -----------------------------------------------------------------------------------------------------------
def refused(capsys, status: int, *words: str) -> str:
    """Exit status 1, and a last line that says it all."""
    assert status == 1
    said = capsys.readouterr().err
    line = said.strip().splitlines()[-1]
    assert line.startswith("labelfx run: ") and "Traceback" not in said
    assert all(word in line for word in words), line
    return line


def train(out: Path, datalist: Path, *more: Any, **values: Any) -> int:
    return call("train", out, "--datalist", datalist, *options(**values), *more)


def nothing_is_left(folder: Path) -> None:
    """No checkpoint, no pseudo mask, no half a file, and nothing that says a stage is complete."""
    left = [path.name for path in folder.rglob("*") if path.is_file()]
    assert set(left) <= {"config_train.yaml", "run.json"}, left


def _no_known_label(folder: Path, datalist: Path) -> Path:
    return ticks(folder, datalist, unknown=True)


def _class_that_never_occurs(folder: Path, datalist: Path) -> Path:
    def change(splits):
        for item in splits["training"]:
            mask = np.asarray(Image.open(item["label"]))
            item["label"] = str(folder / Path(item["label"]).name)
            Image.fromarray(0 * mask).save(item["label"])

    return changed(folder, datalist, change)


def _strange_value(folder: Path, datalist: Path) -> Path:
    def change(splits):
        mask = np.asarray(Image.open(splits["training"][1]["label"])).copy()
        mask[3:5, 7] = 7
        splits["training"][1]["label"] = str(folder / "strange.png")
        Image.fromarray(mask).save(folder / "strange.png")

    return changed(folder, datalist, change)


def _colours_without_palette(folder: Path, datalist: Path) -> Path:
    def change(splits):
        mask = np.asarray(Image.open(splits["validation"][0]["label"]))
        splits["validation"][0]["label"] = str(folder / "coloured.png")
        Image.fromarray(np.stack([mask, 0 * mask, 255 * mask], -1)).save(folder / "coloured.png")

    return changed(folder, datalist, change)


def _other_magnification(folder: Path, datalist: Path) -> Path:
    def change(splits):
        splits["validation"][1]["mpp"] = 0.25

    return changed(folder, datalist, change)


def _shared_patient(folder: Path, datalist: Path) -> Path:
    def change(splits):
        splits["validation"][0]["patient"] = splits["training"][0]["patient"]

    return changed(folder, datalist, change)


def _no_labels(folder: Path, datalist: Path) -> Path:
    def change(splits):
        del splits["training"][2]["label"]

    return changed(folder, datalist, change)


def _all_absent(folder: Path, datalist: Path) -> Path:
    made = ticks(folder, datalist)
    lines = (folder / "ticks.csv").read_text().splitlines()
    lines[1] = ",".join([*lines[1].split(",")[:5], "0", "0"])
    (folder / "ticks.csv").write_text("\n".join(lines) + "\n")
    return made


def _three_channels_and_one(folder: Path, datalist: Path) -> Path:
    def change(splits):
        generator = np.random.default_rng(0)
        image = generator.integers(0, 256, (48, 48, 5)).astype(np.float32)
        nibabel.save(nibabel.Nifti1Image(image[:, :, None], np.eye(4)), folder / "five.nii")
        splits["training"][0]["image"] = str(folder / "five.nii")

    return changed(folder, datalist, change)


FAULTS: dict[str, tuple[Callable[[Path, Path], Path], tuple[str, ...]]] = {
    "patches without any known label": (_no_known_label, ("ticks.csv", "no known label")),
    "a class that never occurs": (_class_that_never_occurs, ("'class_1' is never present", "100 patches")),
    "a mask with an unknown value": (_strange_value, ("strange.png", "7", "0, 1")),
    "a mask of colours without a palette": (_colours_without_palette, ("coloured.png", "palette")),
    "mixed magnifications": (_other_magnification, ("um per pixel", "0.25", "one magnification")),
    "a patient in training and validation": (_shared_patient, ("patient 'training_00'", "validation")),
    "an item without labels": (_no_labels, ("patch_labels",)),
    "an image of five channels": (_three_channels_and_one, ("five.nii",)),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_a_fault_is_one_sentence(kind, pictures, tmp_path, capsys):
    make, words = FAULTS[kind]
    (tmp_path / "data").mkdir()
    datalist = make(tmp_path / "data", pictures)
    capsys.readouterr()
    print(refused(capsys, train(tmp_path / "out", datalist), *words))
    nothing_is_left(tmp_path / "out")


def test_a_patch_that_holds_no_class_at_all(pictures, tmp_path, capsys):
    datalist = _all_absent(tmp_path / "data", pictures)
    capsys.readouterr()
    refused(capsys, train(tmp_path / "out", datalist), "absent", "background is a class")
    nothing_is_left(tmp_path / "out" / "stages" / STAGES[1])


def test_a_colour_that_the_palette_lacks(pictures, tmp_path, capsys):
    status = train(tmp_path / "out", pictures, palette={"#000000": 0, "#ffffff": 1})
    refused(capsys, status, "#010101", "palette", "training_000.png")
    nothing_is_left(tmp_path / "out")


def test_training_without_pseudo_masks_says_how_to_make_them(pictures, tmp_path):
    """train.yaml alone is the last stage."""
    files = config_files(BUNDLE, "train", PRESETS[2])
    values = {key: value for key, value in {**QUICK, **SIZES[2]}.items() if key != "pictures"}
    with pytest.raises(Exception) as raised:
        execute(BUNDLE, "train", files, tmp_path / "out", {"datalist": str(pictures), **values}, progress=False)
    told = " ".join(_chain(raised.value))
    assert "pseudo" in told and "labelfx run" in told and METHOD in told, told
    nothing_is_left(tmp_path / "out")


def test_pseudo_masks_without_a_classifier_say_how_to_train_it(pictures, tmp_path):
    with pytest.raises(Exception) as raised:
        run_stage(STAGES[1], tmp_path / "out", pictures, stages_dir=str(tmp_path / "stages"))
    told = " ".join(_chain(raised.value))
    assert "no checkpoint at" in told and STAGES[0] in told, told
    nothing_is_left(tmp_path / "out")
    assert stage_config(STAGES[1])


def _chain(error: BaseException | None) -> list[str]:
    return [] if error is None else [str(error), *_chain(error.__cause__)]


def test_full_supervision_without_masks(pictures, tmp_path, capsys):
    datalist = ticks(tmp_path / "data", pictures)
    capsys.readouterr()
    status = train(tmp_path / "out", datalist, "--rival", "full_supervision", pictures=None)
    refused(capsys, status, "label", "target")
    nothing_is_left(tmp_path / "out")


def test_evaluation_before_training(pictures, tmp_path, capsys):
    status = call("evaluate", tmp_path / "out", "--datalist", pictures, *options())
    refused(capsys, status, "no checkpoint at", "train one with")


BAD_OPTIONS = {
    "weighting": ("easiest", ("weighting", "'easiest'", "normalized_loss")),
    "scoring": ("argmax", ("'argmax'", "competing")),
    "present": (1.5, ("present", "1.5")),
    "patch_unit": ("px", ("unit", "'px'", "mm")),
    "target": ("masks", ("masks",)),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_out_of_range(name, pictures, tmp_path, capsys):
    value, words = BAD_OPTIONS[name]
    print(refused(capsys, train(tmp_path / "out", pictures, **{name: value}), *words))
