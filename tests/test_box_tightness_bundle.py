# SPDX-License-Identifier: Apache-2.0
"""The box-tightness bundle end to end: rivals, stages, kinds of supervision, box files, resuming, learning."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from samples import discs, write_image

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import find_bundle, rivals
from monai_labelfx.data import add_boxes_to_datalist, blobs, brain_slices, load_boxes, load_datalist, save_datalist

BUNDLE = find_bundle("box_tightness")
TINY = {"features": "4", "depth": "2", "batch_size": "2", "max_epochs": "1", "steps_per_epoch": "3", "seed": "5"}
VOLUMES = {"patch_size": "[16, 16, 16]", "tile_size": "32"}


def run(workflow: str, out: Path, datalist: Path, *arguments: str, **values: str) -> None:
    options = [part for name, value in {**TINY, **values}.items() for part in (f"--{name}", value)]
    command = ["run", "box_tightness", workflow, "--out", str(out), "--no-progress", "--datalist", str(datalist)]
    assert main([*command, *arguments, *options]) == 0


def metrics(folder: Path) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return blobs(tmp_path_factory.mktemp("images"), counts=(6, 2, 2), size=32)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return blobs(tmp_path_factory.mktemp("volumes"), spatial_dims=3, counts=(4, 2, 2), size=16)


@pytest.mark.parametrize("preset", ["2d", "3d", "slices"])
def test_all_rivals_run_and_end_in_a_table(preset, images, volumes, tmp_path, capsys):
    datalist = images if preset == "2d" else volumes
    sizes = VOLUMES if preset == "3d" else {"patch_size": "[32, 32]" if preset == "2d" else "[16, 16]"}
    common = [tmp_path / "out", datalist, "--preset", preset, "--rivals", "all"]
    run("train", *common, **sizes)
    run("evaluate", *common, **sizes)
    printed = capsys.readouterr().out
    assert rivals(BUNDLE) == [
        *("box_as_label", "deepcut", "full_supervision", "global_constraints", "mil_baseline", "paper", "released_code")
    ]
    for name in ("box_tightness", *rivals(BUNDLE)):
        assert f"| {name} " in printed
    histories = {f.parent.name: json.loads(f.read_text()) for f in (tmp_path / "out").glob("*/history.json")}
    losses = {name: history["train_loss"][-1][1] for name, history in histories.items()}
    assert len(set(losses.values())) == len(losses) > 6, "two methods have the same loss"
    assert all(np.isfinite(list(losses.values())))
    for kind in ("Dice", "Dice_box"):
        assert 0 <= metrics(tmp_path / "out" / "paper")[kind] <= 1


def test_deepcut_trains_on_what_its_updates_leave_in_the_boxes(images, tmp_path):
    run("train", tmp_path / "out", images, "--preset", "2d", "--stages", "deepcut", patch_size="[32, 32]")
    first, second = (
        load_datalist(tmp_path / "out" / "deepcut" / stage / "datalist.json", path_keys=["image", "label", "pseudo"])
        for stage in ("02_update", "04_update")
    )
    assert len(first["training"]) == len(second["training"]) == 6
    for item in (*first["training"], *second["training"]):
        pseudo, label = (nibabel.load(item[key]).get_fdata() for key in ("pseudo", "label"))
        places = np.argwhere(label > 0)
        box = np.zeros_like(label)
        box[tuple(slice(low, high + 1) for low, high in zip(places.min(0), places.max(0), strict=True))] = 1
        assert pseudo.any() and not (pseudo * (1 - box)).any()


def test_network_learns_the_brain_from_boxes(tmp_path):
    """Real data: a few steps on boxes alone bring the Dice of the other half of the head far above the start."""
    datalist = brain_slices(tmp_path / "data")
    sizes = {"patch_size": "[48, 96]", "batch_size": "4", "features": "8"}
    scores = {}
    for steps, rate in (("1", "0.0"), ("40", "0.003")):
        values = {**sizes, "steps_per_epoch": steps, "learning_rate": rate}
        run("train", tmp_path / steps, datalist, "--preset", "2d", **values)
        run("evaluate", tmp_path / steps, datalist, "--preset", "2d", **values)
        scores[steps] = metrics(tmp_path / steps)
    assert scores["40"]["Dice_box"] > scores["1"]["Dice_box"] + 0.1 and scores["40"]["Dice_box"] > 0.7
    assert scores["40"]["distance_box_not_computed"] == 0
    assert list((tmp_path / "40").glob("*.png")) and list((tmp_path / "40" / "predictions").glob("*.nii.gz"))


def _box_files(folder: Path, spatial_dims: int) -> Path:
    """Images with a box file and no label at all for training; COCO in 2-D, our own file in 3-D."""
    shape = (32, 28) if spatial_dims == 2 else (20, 18, 16)
    splits: dict[str, list[dict]] = {"training": [], "validation": [], "test": []}
    pictures, boxes = [], []
    for number, split in enumerate(["training"] * 4 + ["validation"] * 2 + ["test"]):
        image, _ = discs(shape, number)
        path = write_image(folder / f"image{number}", image, "nifti")
        splits[split].append({"image": str(path)})
        pictures.append(path.name)
        boxes.append([4, 5, 12, 11] if spatial_dims == 2 else [4, 5, 3, 12, 11, 9])
    file = folder / "boxes.json"
    if spatial_dims == 2:
        document = {
            "images": [{"id": i, "file_name": name, "width": 32, "height": 28} for i, name in enumerate(pictures)],
            "categories": [{"id": 1, "name": "cell"}],
            "annotations": [
                {"image_id": i, "category_id": 1, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]]}
                for i, b in enumerate(boxes)
            ],
        }
    else:
        entries = [
            {"file_name": name, "boxes": [{"label": 0, "box": box}]} for name, box in zip(pictures, boxes, strict=True)
        ]
        document = {"labelfx": {"version": 1, "spatial_dims": 3, "names": {"0": "cell"}, "images": entries}}
    file.write_text(json.dumps(document))
    found = load_boxes(file)
    splits = {split: add_boxes_to_datalist(items, found, classes=["cell"]) for split, items in splits.items()}
    return save_datalist(folder / "datalist.json", splits)


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_box_files_train_without_any_label(spatial_dims, tmp_path):
    datalist = _box_files(tmp_path / "data", spatial_dims)
    sizes = VOLUMES if spatial_dims == 3 else {"patch_size": "[32, 32]"}
    run("train", tmp_path / "out", datalist, "--preset", f"{spatial_dims}d", max_epochs="2", **sizes)
    checkpoint = torch.load(tmp_path / "out" / "models" / "model.pt", weights_only=True)
    assert checkpoint["threshold"]["images"] == 2
    assert np.isfinite(metrics(tmp_path / "out")["train_loss"])


def test_mixed_supervision(images, tmp_path):
    """Two images with masks, two with boxes, one nobody looked at, in one training."""
    splits = load_datalist(images)
    training = splits["training"]
    for number, item in enumerate(training):
        if number > 1:
            del item["label"]
        if number in (2, 3):
            item |= {"box": [[8, 8, 20, 22]], "box_label": [0]}
    datalist = save_datalist(tmp_path / "datalist.json", splits)
    losses = {}
    for supervision in ("none", "labelled"):
        out, options = tmp_path / supervision, {"patch_size": "[32, 32]", "steps_per_epoch": "6"}
        run("train", out, datalist, "--preset", "2d", supervision=supervision, **options)
        losses[supervision] = metrics(out)["train_loss"]
    assert np.isfinite(list(losses.values())).all() and losses["none"] != losses["labelled"]


@pytest.mark.parametrize("rival", ["box_as_label", "paper"])
def test_images_that_nobody_looked_at_teach_nothing(rival, images, tmp_path):
    splits = load_datalist(images)
    for item in splits["training"]:
        del item["label"]
    datalist = save_datalist(tmp_path / "datalist.json", splits)
    run("train", tmp_path / "out", datalist, "--preset", "2d", "--rival", rival, patch_size="[32, 32]")
    assert metrics(tmp_path / "out")["train_loss"] == 0


def test_rotations_carry_the_boxes(images, tmp_path):
    run("train", tmp_path / "out", images, "--preset", "2d", patch_size="[32, 32]", rotate="0.785", steps_per_epoch="6")
    assert np.isfinite(metrics(tmp_path / "out")["train_loss"])


@pytest.mark.parametrize("sweep", ["angles", "smooth_maximum"])
def test_sweeps_of_the_paper_run(sweep, images, tmp_path, capsys):
    rival = "paper" if sweep == "angles" else "mil_baseline"
    options = ["--preset", "2d", "--rival", rival, "--sweep", sweep]
    run("train", tmp_path / "out", images, *options, patch_size="[32, 32]", steps_per_epoch="2")
    finished = [folder for folder in (tmp_path / "out").iterdir() if (folder / "metrics.json").is_file()]
    assert len(finished) == {"angles": 3, "smooth_maximum": 6}[sweep]


def test_enet_preset(images, tmp_path):
    sizes = {"patch_size": "[32, 32]", "batch_size": "2"}
    run("train", tmp_path / "out", images, "--preset", "2d", "enet", **sizes)
    weights = torch.load(tmp_path / "out" / "models" / "model.pt", weights_only=True)["model"]
    assert sum(value.numel() for name, value in weights.items() if "running" not in name) > 400_000


def test_resumed_run_equals_an_uninterrupted_one(images, tmp_path):
    options = {"patch_size": "[24, 24]", "rotate": "0.3", "max_epochs": "3", "save_last#n_saved": "3"}
    run("train", tmp_path / "whole", images, "--preset", "2d", **options)
    first = str(tmp_path / "whole" / "models" / "checkpoint_epoch=1.pt")
    run("train", tmp_path / "parts", images, "--preset", "2d", resume_from=first, **options)
    whole, parts = (
        torch.load(tmp_path / name / "models" / "last.pt", weights_only=True) for name in ("whole", "parts")
    )
    assert all(torch.equal(value, parts["model"][name]) for name, value in whole["model"].items())
    assert whole["threshold"] == parts["threshold"] and whole["lr_scheduler"] == parts["lr_scheduler"]


def test_two_processes_train_together(images, tmp_path):
    """torchrun on two CPU processes (gloo): one checkpoint with a threshold from all boxes."""
    configs = BUNDLE / "configs"
    files = [configs / "train.yaml", configs / "presets" / "2d.yaml", configs / "multi_gpu_train.yaml"]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"),
        *("run", "--config_file", str([str(f) for f in files]), "--bundle_root", str(BUNDLE)),
        *("--datalist", str(images), "--output_dir", str(tmp_path / "out"), "--patch_size", "[32, 32]"),
        *[part for name, value in TINY.items() for part in (f"--{name}", value)],
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    checkpoint = torch.load(tmp_path / "out" / "models" / "model.pt", weights_only=True)
    assert checkpoint["threshold"]["images"] >= 2
    assert not any(name.startswith("module.") for name in checkpoint["model"])
