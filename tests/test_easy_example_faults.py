# SPDX-License-Identifier: Apache-2.0
"""Data and options of the OEEM bundle that do not fit: one sentence each, and nothing half-written is left."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from easy_example_bundle import (
    BUNDLE,
    METHOD,
    PRESETS,
    QUICK,
    SIZES,
    STAGES,
    call,
    changed,
    glands,
    options,
    run_stage,
    ticks,
)
from PIL import Image

from monai_labelfx.commands.workflow import config_files, execute


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return glands(tmp_path_factory.mktemp("pictures"))


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
