# SPDX-License-Identifier: Apache-2.0
"""The commands and the code of the how-to pages run as they stand, in a folder like the one they tell of."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import nibabel
import numpy as np
import pydicom
import torch
from bundle_cases.patch_metric import body
from dicom_samples import affine_of, save, series_slices
from samples import discs

from monai_labelfx.cli import main

HOWTO = Path(__file__).parents[1] / "docs" / "howto"
SHAPE = (32, 28, 6)
TINY = "--features 4 --depth 2 --batch_size 2 --max_epochs 1 --steps_per_epoch 2 --patch_size".split() + ["[16, 16, 4]"]
NETWORK = TINY[:4]


def commands(text: str) -> list[list[str]]:
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    return [shlex.split(line)[1:] for line in blocks.splitlines() if line.startswith("labelfx ")]


def write_export(folder: Path) -> None:
    """Five patients with one CT series each, and labels drawn for the first as NIfTI."""
    for number in range(1, 6):
        array, label = discs(SHAPE, number)
        slices = series_slices(array)
        for image in slices:
            image.PatientID = f"id{number}"
        save(folder / "export" / f"patient{number}" / "series1", slices)
        if number > 1:
            nibabel.save(nibabel.Nifti1Image(label, affine_of("axial")), folder / f"label{number}.nii.gz")
    (folder / "work").mkdir()
    nibabel.save(nibabel.Nifti1Image(discs(SHAPE, 1)[1], affine_of("axial")), folder / "work" / "label.nii.gz")


def test_from_a_dicom_folder_to_a_segmentation(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_export(tmp_path)
    for number in range(2, 6):  # "draw a few labels": here for all, so that any patient can be drawn for validation
        series, seg = f"export/patient{number}/series1", f"export/patient{number}/label.dcm"
        assert main(["convert", f"label{number}.nii.gz", seg, "--like", series]) == 0
    text = (HOWTO / "dicom_folder.md").read_text()
    found = commands(text)
    assert [arguments[0] for arguments in found].count("run") == 3
    for arguments in found:
        extra = []
        if arguments[0] == "run":
            extra = NETWORK if arguments[2] == "inference" else TINY
            extra = [*extra, "--no-progress"]
        assert main([*arguments, *extra]) == 0, arguments
    assert Path("runs/mine/report.html").is_file()
    seg = pydicom.dcmread("runs/predictions/series1_instances.dcm")
    assert seg.Modality == "SEG" and seg.PatientID == "id5"
    derived = [pydicom.dcmread(path) for path in Path("runs/predictions/series1_denoised").iterdir()]
    assert len(derived) == SHAPE[2] and all(image.ImageType[0] == "DERIVED" for image in derived)

    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    names: dict = {}
    exec(compile(code, "dicom_folder.md", "exec"), names)
    item = names["load"]({"image": "export/patient2/series1", "label": "export/patient2/label.dcm"})
    assert item["image"].shape == item["label"].shape == (1, *SHAPE)
    assert np.array_equal(item["label"][0].numpy(), discs(SHAPE, 2)[1])
    names["save"]({"pred": (item["image"] > 60).to(torch.uint8)})
    assert list(Path("out").rglob("*.dcm"))


def test_denoise_ct_without_pairs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(1, 7):
        domain = "low" if number < 4 else "high"
        slices = series_slices(body(3, number, noisy=domain == "low"))
        for image in slices:
            image.PatientID = f"id{number}"
        save(tmp_path / "export" / domain / f"p{number:02d}", slices)
    text = (HOWTO / "denoise_ct.md").read_text()
    sort, pipeline = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    exec(compile(sort, "denoise_ct.md", "exec"), {})
    network = ["--preset", "small", "--features", "8", "--level", "2"]
    training = "--batch_size 2 --max_epochs 1 --steps_per_epoch 2 --val_interval 1 --patches 16 --noise_patch 8".split()
    training += ["--patch_size", "[16, 16]", "--noise_medium", "[-200, 400]"]
    found = commands(text)
    assert [arguments[0] for arguments in found] == ["check", "run", "run", "report", "run", "ct_numbers"]
    for arguments in found:
        extra = []
        if arguments[0] == "run":
            presets = [arguments.pop(index) for index in (3, 3)] if "--preset" in arguments else []
            extra = [*network[:2], *presets[1:], *network[2:], "--no-progress"]
            extra += [] if arguments[2] == "inference" else training
        code = main([*arguments, *extra])
        assert code == 0 or arguments[0] == "ct_numbers", arguments  # of so small a series nothing can be judged
    assert Path("runs/mine/report.html").is_file() and Path("runs/mine/hu_audit.json").is_file()
    assert "noise_ratio" in Path("runs/mine/metrics.json").read_text()
    assert Path("runs/ct_numbers/table.md").is_file()
    derived = [pydicom.dcmread(path) for path in Path("runs/denoised/p02_denoised").iterdir()]
    assert len(derived) == 6 and {image.PatientID for image in derived} == {"id2"}
    assert all(image.ImageType[0] == "DERIVED" for image in derived)

    names: dict = {}
    exec(compile(pipeline, "denoise_ct.md", "exec"), names)
    item = names["before"]({"image": "export/low/p02"})
    assert torch.equal(names["after"]({**item, "pred": item["image"]})["pred"], item["original"])
