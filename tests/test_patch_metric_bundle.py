# SPDX-License-Identifier: Apache-2.0
"""The CT denoising bundle end to end: recipes, rivals, choice of the model, resuming, several processes."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any, NamedTuple

import nibabel
import numpy as np
import pytest
import torch
from ignite.engine import Events
from patch_metric_bundle import (
    BUNDLE,
    METHOD,
    NETWORK,
    QUICK,
    RECIPES,
    TERMS,
    call,
    metrics,
    options,
    predict,
    read_json,
    run,
    weights,
)

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import config_file, rivals, stem
from monai_labelfx.commands.run import comparison_layout
from monai_labelfx.commands.workflow import bundle_workflow, config_files, parse_overrides
from monai_labelfx.data import load_datalist, phantom_ldct, save_datalist

STEPS = 20


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    """Slices of 80 x 80 pixels, one per patient; two for each domain, one to validate and one to test."""
    return phantom_ldct(tmp_path_factory.mktemp("phantoms"), size=80, counts=(2, 2, 1, 1))


class Training(NamedTuple):
    losses: list[dict[str, float]]
    """Of each step, all that the trainer says of it."""
    before: dict[str, dict[str, torch.Tensor]]
    """Weights of all networks."""
    after: dict[str, dict[str, torch.Tensor]]


def train_and_watch(name: str, out: Path, arguments: list[str]) -> Training:
    """The training workflow of a recipe, and what went on in it."""
    overlays = [] if name == METHOD else [config_file(BUNDLE, name, "rivals")]
    pairs = zip(arguments[::2], arguments[1::2], strict=True)
    changes = parse_overrides({key.removeprefix("--"): value for key, value in pairs})
    losses: list[dict[str, float]] = []

    def note(engine):
        found = {key: value for key, value in engine.state.output.items() if torch.is_tensor(value) and not value.ndim}
        losses.append({key: float(value) for key, value in found.items()})

    with bundle_workflow(BUNDLE, "train", config_files(BUNDLE, "train", (), overlays), out, changes) as flow:
        flow.initialize()
        networks = flow.parser.get_parsed_content("networks")
        flow.parser.get_parsed_content("train#trainer").add_event_handler(Events.ITERATION_COMPLETED, note)
        before = parameters(networks)
        flow.run()
        flow.finalize()
    return Training(losses, before, parameters(networks))


def parameters(networks: dict[str, torch.nn.Module]) -> dict[str, dict[str, torch.Tensor]]:
    """A copy; buffers change without learning."""
    return {
        key: {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        for key, network in networks.items()
    }


def check_training(name: str, training: Training) -> None:
    totals = {"generator_loss", "loss"} | ({"discriminator_loss"} if name != "noise2void" else set())
    assert len(training.losses) == STEPS
    for step in training.losses:
        assert set(step) == TERMS[name] | totals
        assert all(math.isfinite(value) for value in step.values()), step
        assert step["loss"] == step["generator_loss"]
    assert len({step["loss"] for step in training.losses}) > STEPS // 2
    for key, before in training.before.items():
        after = training.after[key]
        assert any(not torch.equal(value, after[part]) for part, value in before.items()), f"{key} has not learnt"


@pytest.mark.parametrize("name", [*RECIPES, "noise2void"])
def test_recipe_trains_evaluates_and_predicts(name, phantoms, tmp_path):
    """Twenty steps at 64 pixels; the networks are narrow."""
    out = tmp_path / "out"
    sizes = {"patch_size": [64, 64], "steps_per_epoch": STEPS}
    arguments = options("train", name, **sizes)
    check_training(name, train_and_watch(name, out, [*arguments, "--datalist", json.dumps(str(phantoms))]))
    assert [epoch for epoch, _ in read_json(out / "history.json")["train_loss"]] == [1]
    check_evaluation_and_prediction(name, out, phantoms, tmp_path / "inference")


def check_evaluation_and_prediction(name: str, out: Path, datalist: Path, folder: Path, **values: Any) -> None:
    run("evaluate", out, datalist, name=name, **values)
    (item,) = load_datalist(datalist, path_keys=("image", "reference", "roi"))["test"]
    written = nibabel.load(out / "predictions" / Path(item["image"]).name.replace(".nii", "_denoised.nii"))
    source = nibabel.load(item["image"])
    assert written.shape == source.shape and np.allclose(written.affine, source.affine)
    assert written.get_data_dtype() == source.get_data_dtype()
    measured = metrics(out)
    assert all(math.isfinite(value) for value in measured.values())
    assert {"PSNR_dml_ct", "PSNR_dml_ct_input", "hu_class_shift", "noise_match"} <= set(measured)

    predict(Path(item["image"]), folder, out / "models" / "model.pt", name=name, **values)
    (predicted,) = folder.glob("*_denoised.nii.gz")
    assert np.array_equal(nibabel.load(predicted).get_fdata(), written.get_fdata()), "evaluation and inference differ"
    assert not np.array_equal(written.get_fdata(), source.get_fdata())
    assert read_json(folder / "hu_audit.json")["items"] and (folder / "overview.png").is_file()


def test_non_local_means_writes_its_model_and_learns_nothing(phantoms, tmp_path):
    run("train", tmp_path / "out", phantoms, name="non_local_means")
    assert weights(tmp_path / "out" / "models" / "model.pt") == {}
    assert not (tmp_path / "out" / "models" / "last.pt").exists()
    check_evaluation_and_prediction("non_local_means", tmp_path / "out", phantoms, tmp_path / "inference")
    measured = metrics(tmp_path / "out")
    assert measured["PSNR_range_4096"] > measured["PSNR_range_4096_input"], "it removes noise"


def test_non_local_means_sees_whole_images(tmp_path):
    """Tiles would each estimate the noise of their own part."""
    array = np.random.default_rng(0).normal(0, 10, (560, 32)).astype(np.float32)
    array[:280] *= 8
    nibabel.save(nibabel.Nifti1Image(array, np.eye(4)), tmp_path / "image.nii")
    torch.save({}, tmp_path / "model.pt")
    results = []
    for tiles in ({}, {"tile_size": [1000, 1000]}):
        folder = predict(
            tmp_path / "image.nii",
            tmp_path / f"out{len(tiles)}",
            tmp_path / "model.pt",
            name="non_local_means",
            **tiles,
        )
        results.append(nibabel.load(folder / "image_denoised.nii.gz").get_fdata())
    assert np.array_equal(*results)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*RECIPES, "noise2void"])
def test_recipe_trains_at_full_width(name, phantoms, tmp_path):
    sizes = {key: value for key, value in QUICK.items() if key not in ("batch_size", "patches")}
    sizes |= {"patch_size": [64, 64], "steps_per_epoch": STEPS, "datalist": str(phantoms)}
    arguments = [part for key, value in sizes.items() for part in (f"--{key}", json.dumps(value))]
    check_training(name, train_and_watch(name, tmp_path / "out", arguments))


def test_the_tables_have_a_row_for_everything(phantoms, tmp_path, capsys):
    layout = comparison_layout(BUNDLE)
    assert sorted(layout["rows"]) == sorted([stem(BUNDLE), *rivals(BUNDLE)])
    assert len(set(layout["rows"].values())) == len(layout["rows"])
    small = {**QUICK, "steps_per_epoch": 1, "batch_size": 1, "save_predictions": False, "pictures": 1}
    del small["seed"]
    arguments = [part for key, value in small.items() for part in (f"--{key}", json.dumps(value))]
    asked = ["--rivals", METHOD, "non_local_means", "noise2void", "--seeds", "0", "--datalist", str(phantoms)]
    assert main(["compare", METHOD, *asked, "--out", str(tmp_path / "out"), "--no-progress", *arguments]) == 0
    tables = read_json(tmp_path / "out" / "table.json")["tables"]
    assert [table["title"] for table in tables] == [table["title"] for table in layout["tables"]]
    for table, made in zip(layout["tables"], tables, strict=True):
        assert [row["run"] for row in made["rows"]] == ["Patch metric", "Noise2Void", "Non-local means"]
        for row in made["rows"]:
            assert list(row) == ["run", *table["columns"].values()]
            assert all(value not in ("", "-", "nan") for value in row.values()), row
    assert "non-local means" in capsys.readouterr().out.lower()


# --- which model ------------------------------------------------------------------------------------------------------
def _chosen(out: Path, epochs: int, name: str) -> tuple[int, list[float]]:
    """Epoch whose weights are in model.pt, and the metric by epoch."""
    best = weights(out / "models" / "model.pt")
    equal = []
    for epoch in range(1, epochs + 1):
        then = weights(out / "models" / f"checkpoint_epoch={epoch}.pt")
        if all(torch.equal(value, then[part]) for part, value in best.items()):
            equal.append(epoch)
    (epoch,) = equal
    values = read_json(out / "history.json")[name]
    assert [number for number, _ in values] == list(range(1, epochs + 1))
    return epoch, [value for _, value in values]


EPOCHS = {"max_epochs": 4, "save_last#n_saved": 4, "learning_rate": 0.02, "steps_per_epoch": 3}


def _without_references(datalist: Path, folder: Path) -> Path:
    splits = load_datalist(datalist, path_keys=("image", "reference", "roi"))
    items = {
        split: [{key: item[key] for key in ("image", "domain", "patient")} for item in splits[split]]
        for split in ("training", "validation", "test")
    }
    return save_datalist(folder / "datalist.json", items)


@pytest.mark.parametrize("references", [False, True])
def test_without_choice_the_noise_decides(references, phantoms, tmp_path, capsys):
    datalist = phantoms if references else _without_references(phantoms, tmp_path)
    run("train", tmp_path / "out", datalist, **EPOCHS)
    epoch, values = _chosen(tmp_path / "out", 4, "noise_match")
    assert values[epoch - 1] == min(values) and len(set(values)) == 4
    history = read_json(tmp_path / "out" / "history.json")
    assert ("PSNR_dml_ct" in history) is references
    assert "by pairs" not in capsys.readouterr().out


def test_the_choice_by_pairs_is_said_in_the_log(phantoms, tmp_path, capsys):
    run("train", tmp_path / "out", phantoms, model_choice="PSNR_dml_ct", **EPOCHS)
    epoch, values = _chosen(tmp_path / "out", 4, "PSNR_dml_ct")
    assert values[epoch - 1] == max(values) and len(set(values)) == 4
    assert "models are chosen by pairs: PSNR_dml_ct" in capsys.readouterr().out


def test_the_choice_by_pairs_needs_pairs(phantoms, tmp_path, capsys):
    datalist = _without_references(phantoms, tmp_path)
    arguments = ["--datalist", datalist, *options("train", model_choice="PSNR_dml_ct")]
    assert call("train", tmp_path / "out", *arguments) == 1
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert "the key metric 'PSNR_dml_ct' was not measured" in message


# --- stopping and going on --------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [METHOD, "cyclegan", "noise2void"])
def test_resumed_run_equals_an_uninterrupted_one(name, phantoms, tmp_path):
    values = {"max_epochs": 4, "save_last#n_saved": 4}
    run("train", tmp_path / "whole", phantoms, name=name, **values)
    middle = tmp_path / "whole" / "models" / "checkpoint_epoch=2.pt"
    (tmp_path / "parts").mkdir()
    history = read_json(tmp_path / "whole" / "history.json")
    begun = {key: [point for point in points if point[0] <= 2] for key, points in history.items()}
    (tmp_path / "parts" / "history.json").write_text(json.dumps(begun))
    run("train", tmp_path / "parts", phantoms, name=name, resume_from=str(middle), **values)
    whole, parts = (torch.load(tmp_path / run / "models" / "last.pt", weights_only=True) for run in ("whole", "parts"))
    expected = {"model", "optimizer", "lr_scheduler", "trainer", "random_state", "best"}
    if name != "noise2void":
        expected |= {"partners", "discriminator_optimizer", "discriminator_lr_scheduler"}
    assert expected <= set(whole)
    assert ("pool_high" in whole) is (name == "cyclegan")
    assert parts.pop("best") == whole.pop("best")
    torch.testing.assert_close(parts, whole, rtol=0, atol=0)
    assert read_json(tmp_path / "parts" / "history.json") == history
    then = torch.load(middle, weights_only=True)["model"]
    assert not all(torch.equal(value, then[part]) for part, value in whole["model"].items())


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
    networks = flow.parser.get_parsed_content("networks")
    torch.save({name: network.state_dict() for name, network in networks.items()}, f"{folder}/rank{rank}.pt")
    batch = flow.parser.get_parsed_content("train#trainer").state.output["low"]
    torch.save(batch, f"{folder}/batch{rank}.pt")
    flow.finalize()
"""


@pytest.mark.parametrize("name", [METHOD, pytest.param("cyclegan", marks=pytest.mark.slow)])
def test_two_processes_train_together(name, phantoms, tmp_path):
    """Two CPU processes (gloo): other images, the same weights, and rank 1 writes nothing."""
    script = tmp_path / "worker.py"
    script.write_text(textwrap.dedent(WORKER))
    overlays = [] if name == METHOD else [config_file(BUNDLE, name, "rivals")]
    files = [*config_files(BUNDLE, "train", (), overlays), BUNDLE / "configs" / "multi_gpu_train.yaml"]
    arguments = options("train", name, max_epochs=2)
    changes = {key.removeprefix("--"): json.loads(value) for key, value in zip(*[iter(arguments)] * 2, strict=True)}
    changes |= {"datalist": str(phantoms), "bundle_root": str(BUNDLE)}
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", str(script)),
        *(json.dumps([str(file) for file in files]), str(tmp_path), json.dumps(changes)),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in range(2))
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    batches = [torch.load(tmp_path / f"batch{rank}.pt", weights_only=True) for rank in range(2)]
    assert not torch.equal(*batches), "both processes saw the same images"
    saved = weights(tmp_path / "out0" / "models" / "last.pt")
    torch.testing.assert_close(saved, first["generator"], rtol=0, atol=0)
    assert [epoch for epoch, _ in read_json(tmp_path / "out0" / "history.json")["train_loss"]] == [1, 2]
    assert not (tmp_path / "out1").exists() or not [p for p in (tmp_path / "out1").rglob("*") if p.is_file()]
    run("evaluate", tmp_path / "out0", phantoms, name=name)


def test_every_recipe_has_small_networks():
    assert sorted(NETWORK) == sorted([METHOD, *rivals(BUNDLE)])
