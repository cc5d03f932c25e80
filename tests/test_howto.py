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
