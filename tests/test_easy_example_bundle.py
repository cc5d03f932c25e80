# SPDX-License-Identifier: Apache-2.0
"""The OEEM bundle end to end: its stages in order, what runs again, resuming, several processes, results."""

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

from monai_labelfx.engines import SeedEpoch
from monai_labelfx.transforms import PatchPseudoLabel


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


# --- volumes ----------------------------------------------------------------------------------------------------------
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


def test_a_stage_that_was_stopped_goes_on_by_command(pictures, tmp_path, monkeypatch, capsys):
    """Its second epoch breaks off; ``--resume_from`` reaches that stage alone, which ends as if nothing had been."""
    whole, out, epochs = run("train", tmp_path / "whole", pictures, max_epochs=2), tmp_path / "out", []
    begin = SeedEpoch.__call__

    def stopping(self, engine):
        if len(epochs) == 2:  # one of the classifier, one of the last stage
            raise KeyboardInterrupt
        epochs.append(None)
        return begin(self, engine)

    with monkeypatch.context() as patch:
        patch.setattr(SeedEpoch, "__call__", stopping)
        assert call("train", out, "--datalist", pictures, *options(max_epochs=2)) == 130
    assert [epoch for epoch, _ in read_json(out / "history.json")["train_loss"]] == [1]
    capsys.readouterr()
    run("train", out, pictures, max_epochs=2, resume_from=str(out / "models" / "checkpoint_epoch=1.pt"))
    assert capsys.readouterr().out.count("complete, skipped") == 2
    assert equal_runs(whole, out) and read_json(out / "history.json") == read_json(whole / "history.json")
    run("train", out, pictures, max_epochs=2)
    assert capsys.readouterr().out.count("complete, skipped") == 3


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
    image = torch.tensor(trainer.state.output["image"].tolist())
    torch.save({"model": trainer.network.module.state_dict(), "image": image}, f"{folder}/rank{rank}.pt")
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
