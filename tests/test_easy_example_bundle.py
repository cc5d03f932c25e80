# SPDX-License-Identifier: Apache-2.0
"""The OEEM bundle end to end: its stages in order, rivals and what they share, resuming, several processes, results."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from easy_example_bundle import (
    BUNDLE,
    METHOD,
    QUICK,
    SIZES,
    STAGES,
    arguments,
    call,
    equal_runs,
    glands,
    metrics,
    options,
    organs,
    predict,
    pseudo_masks,
    read_json,
    read_splits,
    run,
    run_stage,
    same_weights,
    some_network,
    stage_config,
    weights,
)

from monai_labelfx.commands.bundle_folder import config_file, rivals
from monai_labelfx.commands.run import comparison_layout
from monai_labelfx.commands.workflow import config_files
from monai_labelfx.transforms import PatchPseudoLabel

FULL = ("full_supervision", "kiu_net", "medt", "res_unet", "uctransnet", "unet")
LAST_STAGE = ("confidence_difference", "confidence_max", "cross_entropy", "mixed", "ohem")
"""Rivals that share the classifier and the pseudo masks of the method."""
OWN_MAPS = ("adv_cam", "sc_cam", "seam")
CHEAP = {"climbing_steps": 1, "hard_threshold": 0.3}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    return glands(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def whole(pictures, tmp_path_factory) -> Path:
    """A complete run of the method; tests that change it copy it."""
    return run("train", tmp_path_factory.mktemp("whole") / "out", pictures)


# --- stages -----------------------------------------------------------------------------------------------------------
def test_three_stages_and_where_they_lie(whole, pictures):
    first, second = (whole / "stages" / name for name in STAGES)
    for folder in (first, second, whole):
        assert (folder / "complete_train.json").is_file() and (folder / "config_train.yaml").is_file()
    assert "patch_log_likelihood" in metrics(first) and (first / "patch_labels.json").is_file()
    assert (second / "overview.png").is_file() and not (second / "models").exists()
    assert "mIoU_of_target" in metrics(whole) and (whole / "models" / "model.pt").is_file()
    splits, found = read_splits(pictures), read_splits(second / "datalist.json")
    for split in ("training", "validation"):
        assert [item["image"] for item in found[split]] == [item["image"] for item in splits[split]]
        for item in found[split]:
            mask, image = nibabel.load(item["pseudo"]), np.asarray(nibabel.load(item["pseudo"]).dataobj)
            assert mask.get_data_dtype() == np.uint8 and image.shape[:2] == (48, 48)
            assert set(np.unique(image)) <= {0, 1, 255}
    assert all("pseudo" not in item for item in found["test"])
    assert len(pseudo_masks(whole)) == 6


def test_a_second_call_skips_all_stages(whole, pictures, capsys):
    before = {file: file.stat().st_mtime_ns for file in whole.rglob("*.pt")}
    capsys.readouterr()
    run("train", whole, pictures)
    assert capsys.readouterr().out.count("complete, skipped") == 3
    assert {file: file.stat().st_mtime_ns for file in whole.rglob("*.pt")} == before


def test_what_runs_again(whole, pictures, tmp_path, capsys):
    out = run("train", tmp_path / "out", pictures)
    assert equal_runs(whole, out)

    def again(**changes) -> list[str]:
        capsys.readouterr()
        run("train", out, pictures, **changes)
        lines = capsys.readouterr().out.splitlines()
        return [line.split("]")[0].split()[-1] for line in lines if "] done in" in line]

    shutil.rmtree(out / "models")
    assert again() == [METHOD] and equal_runs(whole, out)
    assert again(warm_up=1, tile_size=[64, 64]) == [METHOD] and not same_weights(whole, out)
    assert again() == [METHOD] and equal_runs(whole, out)
    (out / "stages" / STAGES[1] / "datalist.json").unlink()
    assert again() == [f"stages/{STAGES[1]}"], "its result is the same, so the last stage is complete"
    assert again(cam_scales=[1, 1.5]) == [f"stages/{STAGES[1]}", METHOD]
    assert again(cam_scales=[1, 1.5], balanced=True) == [f"stages/{STAGES[0]}", f"stages/{STAGES[1]}", METHOD]


def test_a_run_that_was_stopped_goes_on_where_it_stopped(whole, pictures, tmp_path, monkeypatch, capsys):
    """In the middle of stage 2, with some of its pseudo masks written."""
    out, masks = tmp_path / "out", []
    label = PatchPseudoLabel.__call__

    def stopping(self, *data):
        masks.append(None)
        if len(masks) > 3:
            raise KeyboardInterrupt
        return label(self, *data)

    with monkeypatch.context() as patch:
        patch.setattr(PatchPseudoLabel, "__call__", stopping)
        assert call("train", out, "--datalist", pictures, *options()) == 130
    assert len(pseudo_masks(out)) == 3 and not (out / "stages" / STAGES[1] / "datalist.json").exists()
    capsys.readouterr()
    run("train", out, pictures)
    printed = capsys.readouterr().out
    assert f"[1/3 stages/{STAGES[0]}] complete, skipped" in printed and printed.count("] done in") == 2
    assert equal_runs(whole, out)


# --- rivals -----------------------------------------------------------------------------------------------------------
def check_rivals(out: Path, datalist: Path, names: list[str], dims: int, capsys, **values) -> None:
    """Train and evaluate rivals in one command each, and read the table."""
    more = ["--rivals", *(["all"] if len(names) == 1 + len(rivals(BUNDLE)) else names)]
    run("train", out, datalist, *more, dims=dims, **values, **({"clusters": 2} if "sc_cam" in names else {}))
    printed = capsys.readouterr().out
    assert printed.count(f"{STAGES[0]}] done") == 1 + ("seam" in names) + ("sc_cam" in names), "a shared stage ran twice"
    shared = out / METHOD / "stages"
    for name in set(LAST_STAGE) & set(names):
        assert not (out / name / "stages").exists()
        assert f"{shared}/{STAGES[1]}" in (out / name / "config_train.yaml").read_text()
    if "adv_cam" in names:
        assert [path.name for path in (out / "adv_cam" / "stages").iterdir()] == [STAGES[1]]
        assert f"{shared}/{STAGES[0]}" in (out / "adv_cam" / "stages" / STAGES[1] / "config_train.yaml").read_text()

    run("evaluate", out, datalist, *more, dims=dims, **values)
    printed = capsys.readouterr().out
    tables = read_json(out / "table.json")["tables"]
    layout = comparison_layout(BUNDLE)["tables"]
    assert [table["title"] for table in tables] == [table["title"] for table in layout]
    order = [name for name in comparison_layout(BUNDLE)["rows"] if name in names]
    for table in tables:
        assert [row["run"] for row in table["rows"]] == order
    heads = layout[1]["columns"]
    for row in tables[1]["rows"]:
        staged = row["run"] not in FULL
        assert all((row[heads[name]] is not None) is staged for name in ("CAM_mIoU", "pseudo_mIoU")), row
        assert 0 <= float(row[heads["mIoU"]]) <= 1
    places = {name: out / name / ("09_segment" if name == "sc_cam" else "") for name in names}
    losses = {name: read_json(place / "history.json")["train_loss"][-1][1] for name, place in places.items()}
    assert np.isfinite(list(losses.values())).all() and len(set(losses.values())) == len(names), losses
    same = [metrics(places[name])["pseudo_mIoU"] for name in (METHOD, *LAST_STAGE) if name in names]
    assert len(set(same)) == 1


def test_rivals_of_each_kind(pictures, tmp_path, capsys):
    names = [METHOD, "ohem", "full_supervision", "adv_cam", "seam", "sc_cam"]
    check_rivals(tmp_path / "out", pictures, names, 2, capsys, **CHEAP)


@pytest.mark.slow
def test_all_rivals_run_and_end_in_a_table(pictures, tmp_path, capsys):
    names = [METHOD, *rivals(BUNDLE)]
    assert sorted(names) == sorted([METHOD, *FULL, *LAST_STAGE, *OWN_MAPS])
    check_rivals(tmp_path / "out", pictures, names, 2, capsys, **CHEAP)


@pytest.mark.slow
def test_rivals_in_three_dimensions(tmp_path, capsys):
    names = [METHOD, "cross_entropy", "seam", "sc_cam"]
    check_rivals(tmp_path / "out", organs(tmp_path / "data"), names, 3, capsys)


def test_a_rival_alone_takes_its_own_options(pictures, tmp_path, capsys):
    out = tmp_path / "out"
    run("train", out, pictures, "--rival", "adv_cam", climbing_steps=1)
    assert capsys.readouterr().out.count("] done in") == 3
    run("evaluate", out, pictures, "--rival", "adv_cam", climbing_steps=1)
    assert 0 <= metrics(out)["CAM_mIoU"] <= 1
    assert call("train", out, "--datalist", pictures, "--rival", "adv_cam", *options(climbing_step=1)) == 1
    assert "climbing_steps" in capsys.readouterr().err.strip().splitlines()[-1]


def test_cross_entropy_is_the_loss_without_weights(pictures, tmp_path):
    """Its rival overlay changes the loss of the last stage alone."""
    from monai.bundle import ConfigParser

    from monai_labelfx.commands.workflow import merge_configs

    logits, target = torch.randn(2, 4, 8, 8), torch.randint(0, 2, (2, 1, 8, 8))
    target[:, :, :2] = 255
    losses = {}
    for name in (METHOD, "cross_entropy"):
        overlays = [] if name == METHOD else [config_file(BUNDLE, name, "rivals")]
        parser = ConfigParser(merge_configs(config_files(BUNDLE, "train", [], overlays)))
        losses[name] = float(parser.get_parsed_content("loss")(logits, target))
    plain = torch.nn.CrossEntropyLoss(ignore_index=255)
    expected = float(plain(logits[:, :2], target[:, 0]) + 0.4 * plain(logits[:, 2:], target[:, 0]))
    assert losses["cross_entropy"] == pytest.approx(expected, rel=1e-5) and losses[METHOD] < expected


def test_networks_of_rivals_do_not_build_the_one_of_the_method(pictures, tmp_path, monkeypatch):
    from monai_labelfx.networks import WideResNet38Backbone

    monkeypatch.setattr(WideResNet38Backbone, "__init__", lambda self, *args, **more: pytest.fail("it was built"))
    run("train", tmp_path / "out", pictures, "--rival", "unet", pictures=None)


def test_volumes(tmp_path):
    datalist = organs(tmp_path / "data")
    out = run("train", tmp_path / "out", datalist, dims=3)
    run("evaluate", out, datalist, dims=3)
    assert {"mIoU", "Dice", "object_F1", "CAM_mIoU", "pseudo_mIoU"} <= set(metrics(out))
    for item, file in zip(
        read_splits(datalist)["test"], sorted((out / "predictions").glob("*_segmentation.nii.gz")), strict=True
    ):
        image, made = nibabel.load(item["image"]), nibabel.load(file)
        assert made.shape == image.shape and np.allclose(made.affine, image.affine)


# --- stopping and going on --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("stage", [STAGES[0], "03_segment"])
def test_resumed_stage_equals_an_uninterrupted_one(stage, whole, pictures, tmp_path):
    values = {"classifier_epochs": 2, "max_epochs": 2, "save_last__n_saved": 2, "warm_up": 3}
    values |= {"stage_dirs": {name: str(whole / "stages" / name) for name in STAGES}}
    run_stage(stage, tmp_path / "whole", pictures, **values)
    middle = tmp_path / "whole" / "models" / "checkpoint_epoch=1.pt"
    (tmp_path / "parts").mkdir()
    history = read_json(tmp_path / "whole" / "history.json")
    begun = {key: [point for point in points if point[0] <= 1] for key, points in history.items()}
    (tmp_path / "parts" / "history.json").write_text(json.dumps(begun))
    run_stage(stage, tmp_path / "parts", pictures, resume_from=str(middle), **values)
    ends = [torch.load(tmp_path / part / "models" / "last.pt", weights_only=True) for part in ("whole", "parts")]
    assert {"model", "optimizer", "lr_scheduler", "trainer", "random_state", "best"} <= set(ends[0])
    assert ("loss" in ends[0]) is (stage == "03_segment"), "the loss counts its warm-up"
    assert ends[0].pop("best") == ends[1].pop("best")
    torch.testing.assert_close(ends[1], ends[0], rtol=0, atol=0)
    assert read_json(tmp_path / "parts" / "history.json") == history
    then = weights(middle)
    assert not all(torch.equal(value, then[key]) for key, value in ends[0]["model"].items())


# --- several processes ------------------------------------------------------------------------------------------------
WORKER = """
    import sys, json, os
    import torch
    from monai.bundle import ConfigWorkflow

    rank, configs, folder, changes = os.environ["RANK"], json.loads(sys.argv[1]), sys.argv[2], json.loads(sys.argv[3])
    flow = ConfigWorkflow(
        config_file=configs, logging_file=False, workflow_type="train", output_dir=f"{folder}/out{rank}", **changes
    )
    flow.initialize()
    flow.run()
    trainer = flow.parser.get_parsed_content("train#trainer")
    state = {"model": trainer.network.module.state_dict(), "image": torch.as_tensor(trainer.state.output["image"])}
    torch.save(state, f"{folder}/rank{rank}.pt")
    flow.finalize()
"""


@pytest.mark.parametrize("stage", [STAGES[0], pytest.param("03_segment", marks=pytest.mark.slow)])
def test_two_processes_train_together(stage, whole, pictures, tmp_path):
    """Two CPU processes (gloo): other images, the same weights, and rank 1 writes nothing."""
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    files = [str(file) for file in stage_config(stage, "multi_gpu_train")]
    changes = {**QUICK, **SIZES[2], "datalist": str(pictures), "bundle_root": str(BUNDLE), "max_epochs": 2}
    changes |= {"classifier_epochs": 2, "stage_dirs": {name: str(whole / "stages" / name) for name in STAGES}}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)),
        *(json.dumps(files), str(tmp_path), json.dumps(changes)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first["model"], second["model"], rtol=0, atol=0)
    assert not torch.equal(first["image"], second["image"]), "both processes saw the same images"
    torch.testing.assert_close(weights(tmp_path / "out0" / "models" / "last.pt"), first["model"], rtol=0, atol=0)
    assert [epoch for epoch, _ in read_json(tmp_path / "out0" / "history.json")["train_loss"]] == [1, 2]
    assert (tmp_path / "out0" / "patch_labels.json").is_file() is (stage == STAGES[0]), "checked before the first step"
    assert not [path for path in (tmp_path / "out1").rglob("*") if path.is_file()]


# --- results ----------------------------------------------------------------------------------------------------------
def test_evaluation_and_inference_give_the_same_maps(pictures, tmp_path):
    model, images = some_network(tmp_path / "models" / "model.pt"), tmp_path / "images"
    images.mkdir()
    for item in read_splits(pictures)["test"]:
        shutil.copy(item["image"], images)
    several = {"scales": [1, 1.5], "flips": [1], "tile_size": [32, 32]}
    evaluated = run("evaluate", tmp_path / "out", pictures, ckpt_dir=str(model.parent), **several) / "predictions"
    inferred = predict(images, tmp_path / "made", model, **several)
    native = predict(images, tmp_path / "native", model, windows="native", **several)
    for image in images.iterdir():
        name = f"{image.stem}_segmentation.nii.gz"
        first, second, third = (np.asarray(nibabel.load(f / name).dataobj) for f in (evaluated, inferred, native))
        assert 0.1 < first.mean() < 0.9 and first.shape[:2] == (48, 48) and np.array_equal(first, second)
        assert 0.8 < (third == second).mean(), "windows of the whole image and of each scale differ at their seams"


def test_the_runner_of_monai_runs_stage_one(pictures, whole, tmp_path):
    from monai.bundle import run as monai_run

    values = {**QUICK, **SIZES[2], "datalist": str(pictures), "bundle_root": str(BUNDLE)}
    files = [str(file) for file in stage_config(STAGES[0])]
    monai_run(config_file=files, output_dir=str(tmp_path / "out"), logging_file=False, **values)
    assert same_weights(tmp_path / "out", whole / "stages" / STAGES[0])


def test_stages_as_a_plan_are_the_same(pictures, whole, tmp_path):
    """``--stages easy_example`` writes the last stage beside the others."""
    run("train", tmp_path / "out", pictures, "--stages", METHOD, *arguments({}))
    assert same_weights(tmp_path / "out" / METHOD / "03_segment", whole)
