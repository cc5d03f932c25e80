# SPDX-License-Identifier: Apache-2.0
"""Rivals of the detection bundle that find instances: what they learn from, resuming, crops, windows, classes, gate."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from detection_bundle import KEEP_ALL, call, heads, metrics, options, read_json, run
from PIL import Image
from samples import write_image

from monai_labelfx.cli import main
from monai_labelfx.data import load_datalist, load_detections, save_datalist, solids_and_shells
from monai_labelfx.ops import decode_run_lengths

INSTANCES = ["mask_rcnn", "blendmask", "solov2"]
SHAPE = (40, 36)
GREY = {0: 200, 1: 90}  # of the objects of a class, over a ground of 30


def _picture(folder: Path, name: str, boxes: list[list[int]], classes: list[int]) -> dict:
    """An item with blocks of these boxes, in a picture and in a label map."""
    image = np.random.default_rng(len(name)).normal(30, 4, SHAPE)
    label = np.zeros(SHAPE, np.uint16)
    for number, (box, own) in enumerate(zip(boxes, classes, strict=True), start=1):
        where = slice(box[0], box[2]), slice(box[1], box[3])
        image[where], label[where] = GREY[own], number
    item = {"image": str(write_image(folder / name, image, "png")), "box": boxes, "box_label": classes}
    return item | {"label": str(write_image(folder / f"{name}_label", label, "png"))}


@pytest.fixture
def pictures(tmp_path) -> dict[str, list[dict]]:
    """Two pictures for training, one for validation and one for testing, with two objects each."""
    splits: dict[str, list[dict]] = {}
    for number, split in enumerate(("training", "training", "validation", "test")):
        boxes = [[4 + number, 5, 18, 20], [22, 16, 36, 30 + number]]
        splits.setdefault(split, []).append(_picture(tmp_path / "data", f"film{number}", boxes, [0, 1]))
    return splits


def _without(splits: dict[str, list[dict]], *keys: str) -> dict[str, list[dict]]:
    return {
        split: [{key: value for key, value in item.items() if key not in keys} for item in items]
        for split, items in splits.items()
    }


def _train(rival: str, out: Path, splits: dict, *arguments: str, **values: str) -> float:
    """The last loss of a training."""
    datalist = save_datalist(out.parent / f"{out.name}.json", splits)
    run("train", out, datalist, "--rival", rival, *arguments, **heads(rival), **values)
    return metrics(out)["train_loss"]


def _evaluate(rival: str, out: Path, datalist: Path, *arguments: str, **values: str) -> dict[str, float]:
    """What the detector of a training, sure of nothing, is said to be worth."""
    own = {"detector_ops": KEEP_ALL, **heads(rival), **values}
    run("evaluate", out, datalist, "--rival", rival, "--min_score", "0", "--bootstrap", "0", *arguments, **own)
    return metrics(out)


def _fails(rival: str, folder: Path, splits: dict, capsys, *arguments: str, workflow: str = "train") -> str:
    """The one sentence with which a run refuses the data."""
    datalist = save_datalist(folder / "datalist.json", splits)
    own = ["--datalist", datalist, "--rival", rival, *arguments, *options(**heads(rival))]
    assert call(workflow, folder / "out", *own) == 1
    error = [line for line in capsys.readouterr().err.splitlines() if line.startswith("labelfx ")]
    assert len(error) == 1
    return error[0]


def _maps(folder: Path) -> dict[str, np.ndarray]:
    """Name -> label map, x first."""
    return {
        path.name.removesuffix("_instances.png"): np.asarray(Image.open(path)).T
        for path in sorted(folder.glob("*_instances.png"))
    }


def _losses(out: Path) -> list[float]:
    return [loss for _, loss in read_json(out / "history.json")["train_loss"]]


# --- what they learn from ---------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rival", INSTANCES)
def test_boxes_alone_are_refused_by_what_needs_masks(rival, pictures, tmp_path, capsys):
    boxes = _without(pictures, "label")
    assert "film" in (error := _fails(rival, tmp_path, boxes, capsys)) and "has no label map 'label'" in error
    if rival == "mask_rcnn":
        _train(rival, tmp_path / "out", pictures)
        error = _fails(rival, tmp_path, {**pictures, "test": boxes["test"]}, capsys, workflow="evaluate")
        assert "film3.png" in error and "masks are needed" in error


def test_boxes_come_from_masks(pictures, tmp_path):
    """Detectors of boxes learn the same from boxes alone, from label maps alone and from both."""
    for rival in ("cxr_detection", "faster_rcnn"):
        sources = {"both": (), "boxes": ("label",), "masks": ("box",)}
        losses = [_train(rival, tmp_path / f"{rival}_{k}", _without(pictures, *v)) for k, v in sources.items()]
        assert losses[0] == losses[1] == losses[2]


@pytest.mark.parametrize("rival", INSTANCES)
def test_masks_alone_are_enough(rival, pictures, tmp_path):
    """With boxes, without, as one map of each object, and as a map of classes: the same objects, the same run."""
    losses = [_train(rival, tmp_path / "both", pictures), _train(rival, tmp_path / "masks", _without(pictures, "box"))]
    if rival == "mask_rcnn":
        channels, classes = _without(pictures), _without(pictures, "box", "box_label")
        for item in (item for splits in (channels, classes) for items in splits.values() for item in items):
            array, path = np.asarray(Image.open(item["label"])).T, Path(item["label"]).with_suffix("")
            parts = [(array == number).astype(np.uint16) * 7 for number in (1, 2)]
            item["label"] = [
                str(write_image(path.with_name(f"{path.name}{k}"), part, "png")) for k, part in enumerate(parts)
            ]
        losses.append(_train(rival, tmp_path / "channels", channels))
        for split, items in classes.items():  # object k is of class k - 1, so the map itself is one of classes
            for item, first in zip(items, pictures[split], strict=True):
                item["label"] = first["label"]
        losses.append(_train(rival, tmp_path / "classes", classes, "--label_kind", "classes"))
    assert len(set(losses)) == 1, losses


@pytest.mark.parametrize("rival", INSTANCES)
def test_pictures_without_objects_are_learned_and_judged(rival, pictures, tmp_path):
    """As an empty label map and as an empty list of boxes, in every split and in a whole batch."""
    for split, items in pictures.items():
        empty = _picture(tmp_path / "data", f"empty_{split}", [], [])
        items += [empty, {key: value for key, value in empty.items() if key != "label"}][: 1 if split == "test" else 2]
    pictures["training"] = [pictures["training"][0], *pictures["training"][2:] * 2]
    _train(rival, tmp_path / "out", pictures, max_epochs="2")
    assert all(0 < loss < np.inf for loss in _losses(tmp_path / "out"))
    measured = _evaluate(rival, tmp_path / "out", tmp_path / "out.json")
    assert 0 <= measured["mask_mAP"] <= 1 and 0 <= measured["box_mAP"] <= 1
    maps = _maps(tmp_path / "out" / "predictions")
    assert sorted(maps) == ["empty_test", "film3"] and all(one.shape == SHAPE for one in maps.values())


@pytest.mark.parametrize("rival", INSTANCES)
def test_objects_that_overlap_are_learned(rival, pictures, tmp_path):
    """Both are whole, as two label maps; in one map one of them would be hidden in part."""
    first, second = (np.zeros(SHAPE, np.uint16) for _ in range(2))
    first[5:25, 5:25], second[15:35, 10:30] = 3, 9
    paths = [str(write_image(tmp_path / "data" / f"map{k}", one, "png")) for k, one in enumerate((first, second))]
    item = {"image": pictures["training"][0]["image"], "label": paths, "box_label": [1, 0]}
    item["box"] = [[5, 5, 25, 25], [15, 10, 35, 30]]
    splits = {"training": [item] * 2, "validation": [item], "test": [item]}
    losses = [_train(rival, tmp_path / "out", splits)]
    first[15:25, 10:25] = 0  # as if the second hid it
    hidden = str(write_image(tmp_path / "data" / "hidden", first + second, "png"))
    other = {"image": item["image"], "label": hidden, "box_label": [1, 0]}
    losses.append(_train(rival, tmp_path / "hidden", {split: [other] * len(items) for split, items in splits.items()}))
    assert losses[0] != losses[1] and all(0 < loss < np.inf for loss in losses)
    assert 0 <= _evaluate(rival, tmp_path / "out", tmp_path / "out.json")["mask_mAP"] <= 1


WRONG = {
    "boxes elsewhere": ({"box": [[4, 5, 18, 20], [22, 16, 33, 30]]}, "within 1 voxels of the masks"),
    "fewer boxes": ({"box": [[4, 5, 18, 20]], "box_label": [0, 1]}, "for each of 2 objects"),
    "fewer classes": ({"box_label": [0]}, "a whole number for each of 2 objects of 'label'"),
    "a class too many": ({"box_label": [0, 2]}, "classes 0 to 1, got 2 for object 2"),
}


@pytest.mark.parametrize("name", WRONG)
def test_masks_that_disagree_with_the_list_are_one_sentence(name, pictures, tmp_path, capsys):
    changes, sentence = WRONG[name]
    pictures["training"][0] |= changes
    if "classes" in name:
        del pictures["training"][0]["box"]
    error = _fails("mask_rcnn", tmp_path, pictures, capsys)
    assert sentence in error and "film0.png" in error
    # nobody tells it of num_classes; and a map of objects that is off its boxes may be one of classes
    assert main(["check", str(tmp_path / "datalist.json")]) == ("fewer" in name)
    assert ("training[0]" in capsys.readouterr().out) == (name != "a class too many")


def test_label_maps_on_another_grid_are_one_sentence(pictures, tmp_path, capsys):
    label = write_image(tmp_path / "data" / "small", np.ones((20, 18), np.uint16), "png")
    pictures["training"][1] |= {"label": str(label)}
    assert "grid of the image (40, 36), got (20, 18)" in _fails("blendmask", tmp_path, pictures, capsys)


# --- how they run -----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("rival", INSTANCES)
def test_crops_and_windows(rival, tmp_path):
    """Crops and windows that are smaller than objects: maps of the whole picture, masks in their boxes."""
    datalist = solids_and_shells(tmp_path / "data", counts=(2, 1, 1), size=64, empty=0.0, pictures=True)
    sizes = {"patch_size": "[32, 24]", "window_size": "[32, 24]"}
    _train(rival, tmp_path / "out", load_datalist(datalist), **sizes)
    _evaluate(rival, tmp_path / "out", datalist, **sizes)
    folder = tmp_path / "out" / "predictions"
    (found,) = _maps(folder).values()
    rows = read_json(folder / "detections.coco.json")
    masks = decode_run_lengths([row["segmentation"] for row in rows]).numpy()
    assert found.shape == (64, 64) and masks.shape[1:] == (64, 64) and masks.any()
    assert np.array_equal(found, np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0))
    for mask, row in zip(masks, rows, strict=True):
        low, size, places = np.array(row["bbox"][:2]), np.array(row["bbox"][2:]), np.argwhere(mask)
        assert (places > low - 1).all() and (places < low + size).all()


def test_crops_and_windows_of_volumes(tmp_path):
    datalist = solids_and_shells(tmp_path / "data", spatial_dims=3, counts=(2, 1, 1), size=32, empty=0.0)
    sizes = {"patch_size": "[24, 20, 16]", "window_size": "[24, 20, 16]"}
    _train("mask_rcnn", tmp_path / "out", load_datalist(datalist), "--preset", "3d", **sizes)
    assert 0 <= _evaluate("mask_rcnn", tmp_path / "out", datalist, "--preset", "3d", **sizes)["mask_AP50"] <= 1
    (file,) = (tmp_path / "out" / "predictions").glob("*_instances.nii.gz")
    rows = read_json(tmp_path / "out" / "predictions" / "detections.coco.json")
    assert len(rows) > 0 and rows[0]["segmentation"]["size"] == [32, 32, 32] and file.stat().st_size > 0


def test_resumed_run_equals_an_uninterrupted_one(pictures, tmp_path):
    """The detector draws anchors and proposals too."""
    values = {"max_epochs": "3", "warmup_epochs": "2", "save_last#n_saved": "3", "rpn_samples": "8", "roi_samples": "4"}
    values = {**heads("mask_rcnn"), **values}
    datalist = save_datalist(tmp_path / "datalist.json", pictures)
    run("train", tmp_path / "whole", datalist, "--rival", "mask_rcnn", **values)
    first = tmp_path / "whole" / "models" / "checkpoint_epoch=1.pt"
    run("train", tmp_path / "parts", datalist, "--rival", "mask_rcnn", resume_from=str(first), **values)
    files = [tmp_path / name / "models" / "last.pt" for name in ("whole", "parts")] + [first]
    whole, parts, start = (torch.load(file, weights_only=True)["model"] for file in files)
    assert any("mask_head" in name for name in whole)
    assert all(torch.equal(value, parts[name]) for name, value in whole.items())
    assert not all(torch.equal(value, start[name]) for name, value in whole.items())


@pytest.mark.parametrize("rival", INSTANCES)
def test_class_agnostic_mode_learns_one_class(rival, pictures, tmp_path):
    values = {"class_agnostic": "true", "class_names": "[solid, shell]"}
    _train(rival, tmp_path / "out", pictures, **values)
    measured = _evaluate(rival, tmp_path / "out", tmp_path / "out.json", **values)
    for kind in ("box", "mask"):
        for key in ("mAP", "AP50", "AR_300"):
            assert measured[f"{kind}_{key}"] == measured[f"{kind}_agnostic_{key}"]
    (file,) = (tmp_path / "out" / "predictions").glob("*.mrk.json")
    found = load_detections(file)
    assert len(found["labels"]) and not found["labels"].any() and found["names"] == {0: "object"}


@pytest.mark.parametrize("rival", INSTANCES)
def test_image_gate_closes_empty_films(rival, pictures, tmp_path):
    loss = _train(rival, tmp_path / "out", pictures, image_gate="0.5")
    assert loss != _train(rival, tmp_path / "plain", pictures)
    for gate, count in (("0.0", 5), ("1.0", 0)):  # always open, never open
        _evaluate(rival, tmp_path / "out", tmp_path / "out.json", image_gate=gate)
        predictions = tmp_path / "out" / "predictions"
        assert len(read_json(predictions / "detections.coco.json")) == count
        assert _maps(predictions)["film3"].any() == bool(count)


def test_it_learns_masks(tmp_path):
    """Of unseen pictures; with three seeds 0.61 to 0.77. Walls are two pixels thick, so the masks must be fine."""
    datalist = solids_and_shells(tmp_path / "data", counts=(48, 6, 24), size=64, pictures=True)
    values = {"backbone": "{'depth': 10, 'features': 16}", "pyramid_channels": "16", "affine_probability": "0"}
    values |= {"rpn_samples": "64", "roi_samples": "32", "pool_size": "5", "head_channels": "64", "mask_pool": "10"}
    values |= {"mask_channels": "16", "batch_size": "4", "warmup_epochs": "2"}
    scores = {}
    for epochs, rate in (("1", "0.0"), ("36", "0.005")):
        values |= {"max_epochs": epochs, "val_interval": epochs, "learning_rate": rate}
        for workflow in ("train", "evaluate"):
            own = ["--rival", "mask_rcnn", *(["--bootstrap", "0"] if workflow == "evaluate" else [])]
            run(workflow, tmp_path / epochs, datalist, *own, **values)
        scores[epochs] = metrics(tmp_path / epochs)["mask_AP50"]
    assert scores["1"] < 0.05 and scores["36"] > 0.3, scores
