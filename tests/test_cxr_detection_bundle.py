# SPDX-License-Identifier: Apache-2.0
"""The detection bundle end to end: rivals, options of the method, resuming, learning, comparison, demonstration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from detection_bundle import KEEP_ALL, VOLUMES, compare, heads, metrics, options, read_json, run
from monai.bundle import ConfigParser

from monai_labelfx.commands.bundle_folder import find_bundle, rivals, stem
from monai_labelfx.commands.demo import collect_outputs
from monai_labelfx.commands.plan import load_plan, run_plan
from monai_labelfx.commands.run import comparison_layout
from monai_labelfx.data import load_datalist, load_detections, solids_and_shells
from monai_labelfx.detectors import RetinaNetFPN
from monai_labelfx.networks import ResNetBackbone

BUNDLE = find_bundle("cxr_detection")
BOXES = ["faster_rcnn", "ssd512", "cxr_detection", "yolov3", "fcos"]
INSTANCES = ["mask_rcnn", "blendmask", "solov2"]


@pytest.fixture(scope="module")
def images(tmp_path_factory) -> Path:
    return solids_and_shells(tmp_path_factory.mktemp("images"), counts=(6, 2, 3), size=64, empty=0.0, pictures=True)


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return solids_and_shells(tmp_path_factory.mktemp("volumes"), spatial_dims=3, counts=(4, 2, 2), size=24, empty=0.0)


def _found(folder: Path) -> dict[str, dict]:
    """File name -> the detections in it."""
    return {path.name: load_detections(path) for path in sorted(folder.rglob("*.mrk.json"))}


def _weights(folder: Path, name: str = "model.pt") -> dict[str, torch.Tensor]:
    content = torch.load(folder / "models" / name, weights_only=True)
    return content.get("model", content)  # the best weights are alone in their file


def test_the_tables_have_a_row_for_everything():
    rows = comparison_layout(BUNDLE)["rows"]
    assert list(rows) == BOXES + INSTANCES and sorted(rows) == sorted([stem(BUNDLE), *rivals(BUNDLE)])
    assert len(set(rows.values())) == len(rows)


@pytest.mark.parametrize("preset", ["2d", "3d"])
def test_all_rivals_run_and_end_in_tables(preset, images, volumes, tmp_path, capsys):
    datalist, sizes = (images, {}) if preset == "2d" else (volumes, VOLUMES)
    arguments = ["--preset", preset, "--bootstrap", "100"]
    compare(tmp_path / "out", datalist, ["all"], ["5"], *arguments, **sizes)
    layout, printed = comparison_layout(BUNDLE), capsys.readouterr().out
    tables = {table["title"]: table["rows"] for table in read_json(tmp_path / "out" / "table.json")["tables"]}
    assert list(tables) == [table["title"] for table in layout["tables"]]
    for title, rows in tables.items():
        names = INSTANCES if "masks" in title else BOXES + INSTANCES
        assert [row["run"] for row in rows] == [layout["rows"][name] for name in names], title
        assert all("[" in value for row in rows for head, value in row.items() if head != "run"), title
        assert f"**{title}**" in printed
    losses = set()
    for name in BOXES + INSTANCES:
        folder = tmp_path / "out" / "seed_5" / name
        measured = metrics(folder)
        for key in ("mAP", "AP50", "AR_300", "agnostic_mAP", "agnostic_AP50", "agnostic_AR_300"):
            for kind in ("box", "mask") if name in INSTANCES else ("box",):
                low, value, high = (measured[f"{kind}_{key}{end}"] for end in ("_low", "", "_high"))
                assert 0 <= low <= value <= high <= 1, f"{name} {key}"
        assert 0 <= measured["box_CPM"] <= 1
        assert name in INSTANCES or not [key for key in measured if "mask" in key]
        predictions, count = folder / "predictions", len(load_datalist(datalist)["test"])
        assert len(_found(predictions)) == count and (folder / "overview.png").is_file()
        assert len(list(predictions.glob("*_instances.*"))) == (count if name in INSTANCES else 0)
        for row in read_json(predictions / "detections.coco.json"):
            assert ("segmentation" in row) == (name in INSTANCES)
        losses.add(read_json(folder / "history.json")["train_loss"][-1][1])
    assert len(losses) == len(BOXES + INSTANCES) and all(0 < loss < float("inf") for loss in losses), losses


def test_resumed_run_equals_an_uninterrupted_one(images, tmp_path):
    values = {"max_epochs": "3", "warmup_epochs": "2", "save_last#n_saved": "3"}
    run("train", tmp_path / "whole", images, **values)
    first = str(tmp_path / "whole" / "models" / "checkpoint_epoch=1.pt")
    run("train", tmp_path / "parts", images, resume_from=first, **values)
    whole, parts = (_weights(tmp_path / name, "last.pt") for name in ("whole", "parts"))
    assert whole and all(torch.equal(value, parts[name]) for name, value in whole.items())
    first_weights = _weights(tmp_path / "whole", "checkpoint_epoch=1.pt")
    assert not all(torch.equal(value, first_weights[name]) for name, value in whole.items())


def test_it_learns_to_tell_solid_from_hollow(tmp_path):
    """Unseen pictures; with three seeds 0.71 to 0.78. Every box in both classes would have half the precision."""
    datalist = solids_and_shells(tmp_path / "data", counts=(48, 6, 24), size=64, pictures=True)
    values = {"backbone": "{'depth': 10, 'features': 16}", "pyramid_channels": "16", "affine_probability": "0"}
    scores = {}
    for epochs, rate in (("1", "0.0"), ("30", "0.005")):
        values |= {"max_epochs": epochs, "val_interval": epochs, "learning_rate": rate}
        values |= {"batch_size": "4", "warmup_epochs": "2"}
        run("train", tmp_path / epochs, datalist, **values)
        run("evaluate", tmp_path / epochs, datalist, "--bootstrap", "0", **values)
        scores[epochs] = metrics(tmp_path / epochs)["box_AP50"]
    assert scores["1"] < 0.05 and scores["30"] > 0.5, scores


def test_class_agnostic_mode_learns_one_class(images, tmp_path):
    values = {"class_agnostic": "true", "class_names": "[solid, shell]", "detector_ops": KEEP_ALL}
    run("train", tmp_path / "one", images, **values)
    run("evaluate", tmp_path / "one", images, "--min_score", "0", **values)
    run("train", tmp_path / "two", images)
    found = _found(tmp_path / "one" / "predictions")
    assert all(len(one["labels"]) and not one["labels"].any() for one in found.values())
    assert all(one["names"] == {0: "object"} for one in found.values())
    measured = metrics(tmp_path / "one")
    for key in ("mAP", "AP50", "AR_300"):
        assert measured[f"box_{key}"] == measured[f"box_agnostic_{key}"], "targets are judged without their classes too"
    one, two = (sum(value.numel() for value in _weights(tmp_path / name).values()) for name in ("one", "two"))
    assert one < two


def test_image_gate_closes_empty_films(images, tmp_path):
    run("train", tmp_path / "out", images, image_gate="0.5")
    history = read_json(tmp_path / "out" / "history.json")
    run("train", tmp_path / "plain", images)
    assert history["train_loss"] != read_json(tmp_path / "plain" / "history.json")["train_loss"]
    counts = {}
    for gate in ("0.0", "1.0"):  # always open, never open
        run("evaluate", tmp_path / "out", images, "--min_score", "0", image_gate=gate, detector_ops=KEEP_ALL)
        counts[gate] = sum(len(one["boxes"]) for one in _found(tmp_path / "out" / "predictions").values())
    assert counts == {"0.0": 15, "1.0": 0}


def test_every_backbone_of_the_sweep_can_be_built():
    names = ConfigParser.load_config_file(BUNDLE / "configs" / "sweeps" / "backbone.yaml")["backbone"]
    sizes = {}
    for name in names:
        with torch.device("meta"):
            detector = RetinaNetFPN(2, 1, 8, backbone=name)
        sizes[name] = sum(parameter.numel() for parameter in detector.network.parameters())
    kinds = [name.split("_")[0] for name in names]
    assert kinds == [f"{kind}{depth}" for kind in ("resnet", "resnext") for depth in (50, 101, 152)]
    assert len(set(sizes.values())) == 6 and sizes["resnet50"] < sizes["resnet101"] < sizes["resnet152"]


def test_sweep_runs_and_ends_in_a_table(images, tmp_path, monkeypatch):
    sweep = {"backbone": [{"depth": 10, "features": 4}, {"depth": 18, "features": 4}]}
    load = ConfigParser.load_config_file
    monkeypatch.setattr(ConfigParser, "load_config_file", lambda f, **k: sweep if "sweeps" in str(f) else load(f, **k))
    run("train", tmp_path / "out", images, "--sweep", "backbone")
    assert len(read_json(tmp_path / "out" / "table.json")["rows"]) == 2


def test_weights_of_torchvision_are_the_start(images, tmp_path):
    """Three channels are summed to one, and rows and columns swapped: images here have x first."""
    published = ResNetBackbone(2, 3, depth=10, features=8, norm="batch").state_dict()
    torch.save({**published, "fc.weight": torch.zeros(9, 64), "fc.bias": torch.zeros(9)}, tmp_path / "weights.pt")
    values = {"norm": "frozen_batch", "learning_rate": "0.0"}
    run("train", tmp_path / "out", images, weights=str(tmp_path / "weights.pt"), **values)
    own = _weights(tmp_path / "out")
    assert torch.allclose(own["backbone.conv1.weight"], published["conv1.weight"].sum(1, keepdim=True).mT)
    name = "layer4.0.conv2.weight"
    assert torch.equal(own[f"backbone.{name}"], published[name].mT)


def test_detector_ops_set_up_the_detector(images, tmp_path):
    losses = {}
    for name, ops in {"iou": "[]", "atss": json.dumps(["$@detector.set_atss_matcher(4)"])}.items():
        run("train", tmp_path / name, images, detector_ops=ops)
        losses[name] = metrics(tmp_path / name)["train_loss"]
    assert losses["iou"] != losses["atss"]


def test_compare_gives_mean_and_interval_over_seeds(images, tmp_path, capsys):
    names = ["cxr_detection", "mask_rcnn"]
    compare(tmp_path / "out", images, names, ["0", "1"], "--bootstrap", "100")
    tables = read_json(tmp_path / "out" / "table.json")["tables"]
    assert [[row["run"] for row in table["rows"]] for table in tables] == [["RetinaNet", "Mask R-CNN"]] * 2 + [
        ["Mask R-CNN"]
    ] * 2
    rows = [row for table in tables for row in table["rows"]]
    assert all(list(row) == ["run", "mAP", "AP50", "AR@300"] for row in rows)
    assert all("±" in row["AP50"] and "[" in row["AP50"] for row in rows)
    histories = [read_json(file) for file in (tmp_path / "out").glob("seed_*/*/history.json")]
    assert len({history["train_loss"][-1][1] for history in histories}) == 4, "each seed and detector has its own run"
    assert "over 2 seeds" in capsys.readouterr().out


@pytest.mark.parametrize("choice", [None, "volumes"])
def test_demo_is_complete(choice, tmp_path, capsys):
    """The steps of `labelfx demo`, on less data and for one epoch."""
    plan = load_plan(BUNDLE, choice=choice)
    size = {"counts": [4, 2, 2], "size": 64} if choice is None else {"counts": [2, 1, 1], "size": 24}
    plan["data"] |= {**size, "empty": 0.0}
    tiny = {"backbone": {"depth": 10, "features": 4}, "pyramid_channels": 8, "head_depth": 1, "cache_rate": 0.0}
    plan["overrides"] |= {**tiny, "max_epochs": 1, "val_interval": 1}
    folders = run_plan(BUNDLE, plan, tmp_path / "out", progress=False)
    assert {"retinanet", "mask_rcnn", "retinanet_test", "mask_rcnn_test"} <= set(folders)
    printed = capsys.readouterr().out
    boxes, masks = printed[printed.index("**Boxes**") :].split("**Masks**")
    assert "| RetinaNet " in boxes and "| Mask R-CNN | 0." in boxes and " nan" not in printed
    assert "RetinaNet" not in masks and "| Mask R-CNN | 0." in masks
    assert list((folders["mask_rcnn_test"] / "predictions").glob("*_instances.*"))
    found = collect_outputs(tmp_path / "out", folders)
    assert found["picture"].is_file() and list(found["predictions"].iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("rival", [None, "mask_rcnn", "blendmask", "solov2"])
def test_two_processes_train_together(rival, images, tmp_path):
    """torchrun on two CPU processes (gloo), every parameter in use: one checkpoint that loads without torchrun."""
    configs, names = BUNDLE / "configs", [rival] if rival else []
    files = [configs / "train.yaml", configs / "presets" / "small.yaml"]
    files += [configs / "rivals" / f"{name}.yaml" for name in names] + [configs / "multi_gpu_train.yaml"]
    # MONAI's command line cannot set null; the preset does
    pairs = zip(*[iter(options(**heads(*names)))] * 2, strict=True)
    own = [part for pair in pairs if pair[0] != "--image_size" for part in pair]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"),
        *("run", "--config_file", str([str(f) for f in files]), "--bundle_root", str(BUNDLE)),
        *("--datalist", str(images), "--output_dir", str(tmp_path / "out"), *own),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
    assert 0 < metrics(tmp_path / "out")["train_loss"] < float("inf")
    run("evaluate", tmp_path / "out", images, *(["--rival", rival] if rival else []), **heads(*names))
    assert 0 <= metrics(tmp_path / "out")["box_AP50"] <= 1
