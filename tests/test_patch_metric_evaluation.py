# SPDX-License-Identifier: Apache-2.0
"""What evaluation and inference of the CT denoising bundle write, with pairs and without."""

from __future__ import annotations

from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from patch_metric_bundle import Denoiser, metrics, options, predict, read_json, run
from PIL import Image

from monai_labelfx.cli import main
from monai_labelfx.data import load_datalist, phantom_ldct, save_datalist
from monai_labelfx.metrics import HUAudit

CONVENTIONS = ("dml_ct", "range_4096", "ldct_benchmark_abdomen")
PATHS = ("image", "reference", "roi")


@pytest.fixture(scope="module")
def phantoms(tmp_path_factory) -> Path:
    return phantom_ldct(tmp_path_factory.mktemp("phantoms"), size=96, counts=(1, 2, 1, 3))


@pytest.fixture(scope="module")
def evaluated(phantoms, tmp_path_factory) -> Path:
    """The run folder of a network that was drawn and not trained."""
    out = tmp_path_factory.mktemp("run")
    (out / "models").mkdir()
    torch.save(Denoiser().shake().network.state_dict(), out / "models" / "model.pt")
    run("evaluate", out, phantoms)
    return out


def _images(evaluated: Path, phantoms: Path) -> list[dict[str, np.ndarray]]:
    """What was written, and what it is compared with."""
    found = []
    for item in load_datalist(phantoms, path_keys=PATHS)["test"]:
        written = evaluated / "predictions" / Path(item["image"]).name.replace(".nii", "_denoised.nii")
        images = {key: item[key] for key in PATHS} | {"pred": written}
        found.append({key: nibabel.load(path).get_fdata(dtype=np.float32) for key, path in images.items()})
    return found


def test_every_number_names_its_convention(evaluated, phantoms):
    measured = metrics(evaluated)
    for name in CONVENTIONS:
        for end in ("", "_input"):
            assert {f"PSNR_{name}{end}", f"SSIM_{name}{end}"} <= set(measured)
    assert not {"PSNR", "SSIM"} & set(measured)
    images = _images(evaluated, phantoms)
    for key, end in (("pred", ""), ("image", "_input")):
        errors = [np.square(one[key].astype(float) - one["reference"]).mean() for one in images]
        own = np.mean([10 * np.log10(4096**2 / error) for error in errors])
        assert abs(measured[f"PSNR_range_4096{end}"] - own) < 0.01, key
    values = {round(measured[f"PSNR_{name}"], 3) for name in CONVENTIONS}
    assert len(values) == 3, "conventions differ"


def test_the_audit_has_a_report_of_every_image(evaluated, phantoms):
    content, measured = read_json(evaluated / "hu_audit.json"), metrics(evaluated)
    items = load_datalist(phantoms, path_keys=PATHS)["test"]
    assert [one["name"] for one in content["items"]] == [Path(item["image"]).name.split(".")[0] for item in items]
    for one, images in zip(content["items"], _images(evaluated, phantoms), strict=True):
        report = HUAudit()(images["pred"][None], images["image"][None], roi=images["roi"][None]).as_dict()
        assert one["passed"] == report["passed"] and set(one["rois"]) == set(report["rois"])
        for name, region in report["classes"].items():
            assert one["classes"][name]["shift"] == pytest.approx(region["shift"], abs=1e-2), name
    assert {name: measured[name] for name in content["summary"]} == content["summary"]
    assert measured["hu_failures"] == sum(not one["passed"] for one in content["items"])


def test_the_noise_is_compared_with_that_of_high_dose(evaluated):
    measured = metrics(evaluated)
    parts = ("noise_match", "noise_ratio", "nps_distance", "hu_penalty")
    assert all(np.isfinite(measured[name]) for name in parts)
    assert measured["noise_match"] >= measured["nps_distance"] + measured["hu_penalty"]


def test_pictures(evaluated):
    picture = np.asarray(Image.open(evaluated / "overview.png").convert("L"))
    assert picture.shape[0] > 360 and picture.std() > 10


def test_table_2_of_the_paper(phantoms, evaluated):
    media = {"body": [-60, 140], "gold": [5000, 6000]}
    run("evaluate", evaluated, phantoms, media=media, media_patch=12, media_count=20, save_predictions=False)
    measured = metrics(evaluated)
    assert abs(measured["body_input_mean"] - 40) < 10 and measured["body_input_std"] > 5
    assert measured["body_shift"] == pytest.approx(measured["body_mean"] - measured["body_input_mean"])
    assert not [name for name in measured if name.startswith("gold")], "no image has such a medium"


def test_without_references_all_else_is_there(phantoms, evaluated, tmp_path):
    splits = load_datalist(phantoms, path_keys=PATHS)
    items = {
        split: [{key: item[key] for key in ("image", "domain", "patient")} for item in splits[split]]
        for split in ("training", "validation", "test")
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "model.pt").write_bytes((evaluated / "models" / "model.pt").read_bytes())
    run("evaluate", tmp_path, save_datalist(tmp_path / "datalist.json", items))
    measured, before = metrics(tmp_path), metrics(evaluated)
    assert not [name for name in measured if name.startswith(("PSNR", "SSIM"))]
    kept = {name for name in before if not name.startswith(("PSNR", "SSIM", "body"))}
    assert {name for name in kept if "roi" not in name} == set(measured)
    assert measured["noise_match"] == pytest.approx(before["noise_match"])
    assert (tmp_path / "hu_audit.json").is_file() and (tmp_path / "overview.png").is_file()
    assert len(list((tmp_path / "predictions").iterdir())) == 3


def test_inference_writes_the_audit_unless_told_not_to(phantoms, evaluated, tmp_path):
    images = Path(load_datalist(phantoms)["test"][0]["image"]).parent
    checkpoint = evaluated / "models" / "model.pt"
    whole = predict(images, tmp_path / "whole", checkpoint)
    assert len(read_json(whole / "hu_audit.json")["items"]) == len(list(whole.glob("*_denoised.nii.gz"))) == 7
    assert (whole / "overview.png").is_file() and (whole / "run.json").is_file()
    bare = predict(images, tmp_path / "bare", checkpoint, audit=False, pictures=0)
    assert not (bare / "hu_audit.json").exists()
    for path in whole.glob("*_denoised.nii.gz"):
        assert np.array_equal(nibabel.load(path).get_fdata(), nibabel.load(bare / path.name).get_fdata())


def test_the_command_says_where_things_are(phantoms, evaluated, capsys):
    arguments = ["--datalist", str(phantoms), "--no-progress", *options("evaluate", save_predictions=False)]
    assert main(["run", "patch_metric", "evaluate", "--out", str(evaluated), *arguments]) == 0
    assert f"output is in {evaluated}" in capsys.readouterr().out
