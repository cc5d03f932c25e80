# SPDX-License-Identifier: Apache-2.0
"""The DenoiSeg bundle end to end, on every file format, at a size of seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import nibabel
import numpy as np
import pytest
import torch
from samples import AFFINE, write_dataset

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import find_bundle, rivals

BUNDLE = find_bundle("denoiseg")
TINY = {"features": "4", "depth": "2", "batch_size": "2", "max_epochs": "2", "steps_per_epoch": "3", "seed": "5"}
PLANE, VOLUME, THIN = (40, 36), (24, 20, 18), (32, 28, 6)
CASES = {
    "png": ("png", PLANE, ["--preset", "2d"], {"patch_size": "[16, 16]"}),
    "tiff": ("tiff", PLANE, ["--preset", "2d"], {"patch_size": "[16, 16]"}),
    "tiff-volume": ("tiff", VOLUME, ["--preset", "3d"], {"patch_size": "[16, 16, 16]"}),
    "nifti": ("nifti", VOLUME, ["--preset", "3d"], {"patch_size": "[16, 16, 16]"}),
    "dicom": ("dicom", THIN, ["--preset", "3d", "thin_stack"], {"patch_size": "[16, 16, 4]"}),
}


def options(**values: str) -> list[str]:
    return [part for name, value in {**TINY, **values}.items() for part in (f"--{name}", value)]


def run(workflow, out, datalist, presets, extra, **more) -> None:
    arguments = ["run", "denoiseg", workflow, *presets, "--out", str(out), "--no-progress", "--datalist", str(datalist)]
    assert main([*arguments, *options(**extra, **more)]) == 0


def metrics(folder) -> dict[str, float]:
    return json.loads((folder / "metrics.json").read_text())


@pytest.mark.parametrize("case", CASES)
def test_train_evaluate_infer(case, tmp_path):
    kind, shape, presets, extra = CASES[case]
    datalist = write_dataset(tmp_path / "data", kind, shape, clean=True)
    out = tmp_path / "out"
    run("train", out, datalist, presets, extra)
    checkpoint = torch.load(out / "models" / "model.pt", weights_only=True)
    assert checkpoint["thresholds"]["images"] == 2
    history = json.loads((out / "history.json").read_text())
    assert [epoch for epoch, _ in history["val_loss"]] == [1, 2]

    run("evaluate", out, datalist, presets, extra)
    measured = metrics(out)
    assert set(measured) >= {"AP50", "AP50_95", "SEG", "Dice", "PSNR", "PSNR_noisy"}
    assert all(0 <= measured[name] <= 1 for name in ("AP50", "AP50_95", "SEG", "Dice"))
    assert list(out.glob("*.png"))

    inference = tmp_path / "inference"
    arguments = ["run", "denoiseg", "inference", *presets, "--out", str(inference), "--no-progress"]
    network = [part for name in ("features", "depth") for part in (f"--{name}", TINY[name])]
    images = tmp_path / "data" / "images"
    ckpt = str(out / "models" / "model.pt")
    assert main([*arguments, *network, "--dataset_dir", str(images), "--ckpt_path", ckpt]) == 0
    denoised = sorted(inference.glob("*denoised.nii.gz"))
    instances = sorted(inference.glob("*instances.nii.gz"))
    assert len(denoised) == len(instances) == 8
    for path in (*denoised, *instances):
        result = nibabel.load(path)
        assert result.shape == shape
        if kind in ("nifti", "dicom"):
            assert np.allclose(result.affine, AFFINE, atol=1e-4), f"{path.name} lost its geometry"
    source = _reference(tmp_path, kind, shape)
    mean = nibabel.load(denoised[0]).get_fdata().mean()
    assert abs(mean - source.mean()) < source.std(), "the denoised image must be on the scale of its input"
    assert list(inference.glob("*.png"))
    counts = [nibabel.load(path).get_fdata().max() for path in instances]
    assert metrics(inference)["objects_per_image"] == pytest.approx(np.mean(counts))


def _reference(tmp_path, kind, shape) -> np.ndarray:
    from monai.transforms import LoadImage

    first = sorted((tmp_path / "data" / "images").iterdir())[0]
    return LoadImage(reader="monai_labelfx.data.AutoReader")(first).numpy()


def test_resumed_run_equals_an_uninterrupted_one(tmp_path):
    kind, shape, presets, extra = CASES["tiff"]
    datalist = write_dataset(tmp_path / "data", kind, shape)
    run("train", tmp_path / "whole", datalist, presets, extra, max_epochs="3")
    run("train", tmp_path / "parts", datalist, presets, extra, max_epochs="1")
    last = str(tmp_path / "parts" / "models" / "last.pt")
    run("train", tmp_path / "parts", datalist, presets, extra, max_epochs="3", resume_from=last)
    whole, parts = (torch.load(tmp_path / n / "models" / "last.pt", weights_only=True) for n in ("whole", "parts"))
    for part in ("model", "optimizer", "lr_scheduler"):
        assert _equal(whole[part], parts[part]), part
    best = [torch.load(tmp_path / n / "models" / "model.pt", weights_only=True) for n in ("whole", "parts")]
    assert _equal(*(b["model"] for b in best))
    assert _equal(*(b["thresholds"] for b in best))
    histories = [json.loads((tmp_path / n / "history.json").read_text()) for n in ("whole", "parts")]
    assert histories[0] == histories[1]


def _equal(a, b) -> bool:
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(_equal(x, y) for x, y in zip(a, b, strict=True))
    return a == b


def test_all_rivals_run_and_end_in_a_table(tmp_path, capsys):
    kind, shape, presets, extra = CASES["tiff"]
    datalist = write_dataset(tmp_path / "data", kind, shape, clean=True)
    common = [*presets, "--rivals", "all", "--out", str(tmp_path / "out"), "--no-progress", "--datalist", str(datalist)]
    assert main(["run", "denoiseg", "train", *common, *options(**extra, max_epochs="1")]) == 0
    assert main(["run", "denoiseg", "evaluate", *common, *options(**extra)]) == 0
    printed = capsys.readouterr().out
    assert rivals(BUNDLE) == ["baseline", "noise2void", "plain_unet", "sequential"]
    for name in ("denoiseg", *rivals(BUNDLE)):
        assert name in printed
    plain = torch.load(tmp_path / "out" / "plain_unet" / "models" / "model.pt", weights_only=True)["model"]
    assert [k for k in plain if k.startswith("head")] and plain[max(k for k in plain if "head" in k)].shape[0] == 3
    stages = tmp_path / "out" / "sequential"
    first, second = (
        torch.load(stages / name / "models" / "model.pt", weights_only=True)["model"]
        for name in ("01_denoise", "02_segment")
    )
    assert all(torch.equal(value, second[f"denoiser.{name}"]) for name, value in first.items())


@pytest.mark.parametrize("preset", ["n10", "n20", "n2v2", "paper_loss"])
def test_presets_run(preset, tmp_path):
    kind, shape, presets, extra = CASES["png"]
    datalist = write_dataset(tmp_path / "data", kind, shape)
    run("train", tmp_path / "out", datalist, [*presets, preset], extra, max_epochs="1")
    run("evaluate", tmp_path / "out", datalist, [*presets, preset], extra)
    measured = metrics(tmp_path / "out")
    # without a clean file there is a reference only where the preset adds the noise
    assert ("PSNR" in measured) is (preset in ("n10", "n20"))


@pytest.mark.parametrize("labelled", [0, 4])
def test_no_labels_and_all_labels(labelled, tmp_path):
    kind, shape, presets, extra = CASES["tiff"]
    datalist = write_dataset(tmp_path / "data", kind, shape, labelled=labelled)
    run("train", tmp_path / "out", datalist, presets, extra, max_epochs="1")
    assert np.isfinite(metrics(tmp_path / "out")["train_loss"])


def test_inference_without_a_checkpoint_says_how_to_get_one(tmp_path, capsys):
    images = write_dataset(tmp_path / "data", "tiff", PLANE).parent / "images"
    arguments = ["run", "denoiseg", "inference", "--out", str(tmp_path / "out"), "--dataset_dir", str(images)]
    assert main([*arguments, "--no-progress", "--ckpt_path", str(tmp_path / "model.pt")]) == 1
    error = capsys.readouterr().err
    assert "no checkpoint at" in error and "train one with" in error and "Traceback" not in error


def test_two_processes_train_together(tmp_path):
    """torchrun on two CPU processes (gloo): one checkpoint, one record, and both saw different images."""
    kind, shape, _, extra = CASES["tiff"]
    datalist = write_dataset(tmp_path / "data", kind, shape)
    configs = BUNDLE / "configs"
    files = [configs / "train.yaml", configs / "presets" / "2d.yaml", configs / "multi_gpu_train.yaml"]
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m", "monai.bundle"),
        *("run", "--config_file", str([str(f) for f in files]), "--bundle_root", str(BUNDLE)),
        *("--datalist", str(datalist), "--output_dir", str(tmp_path / "out")),
        *options(**extra, max_epochs="1"),
    ]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "out" / "models" / "model.pt").is_file()
    assert np.isfinite(metrics(tmp_path / "out")["train_loss"])
    weights = torch.load(tmp_path / "out" / "models" / "last.pt", weights_only=True)["model"]
    assert not any(name.startswith("module.") for name in weights), "the checkpoint must load without torchrun"


def test_partly_annotated_images_train(tmp_path):
    """Voxels of ignore_label reach the loss as not annotated, through crops and symmetries."""
    import tifffile

    kind, shape, presets, extra = CASES["tiff"]
    datalist = write_dataset(tmp_path / "data", kind, shape)
    for path in (tmp_path / "data" / "labels").glob("training*.tif"):
        label = tifffile.imread(path)
        label[: label.shape[0] // 2] = 65535
        tifffile.imwrite(path, label)
    run("train", tmp_path / "ignored", datalist, presets, extra, max_epochs="1", ignore_label="65535")
    run("train", tmp_path / "object", datalist, presets, extra, max_epochs="1")
    losses = [metrics(tmp_path / name)["train_loss"] for name in ("ignored", "object")]
    assert np.isfinite(losses).all() and losses[0] != losses[1]
