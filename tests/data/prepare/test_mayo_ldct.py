# SPDX-License-Identifier: Apache-2.0
"""prepare.mayo_ldct on tiny folders of the public layouts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from dicom_samples import phantom, series_slices

from monai_labelfx.cli import main
from monai_labelfx.data import load_datalist
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader
from monai_labelfx.data.prepare.mayo_ldct import PATH_KEYS, prepare

PATIENTS = ("L067", "L096", "L109", "L143", "L192", "L506")
WORDS = {"low": ("quarter", "QD", "Low Dose"), "full": ("full", "FD", "Full dose")}


def write(
    folder: Path, patient: str, dose: str, *, thickness=1.0, kernel="B30f", suffix="", slices=3, names=True
) -> Path:
    """A series with the files of the challenge's names, or 1-1.dcm and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    array = phantom((8, 6, slices), seed=sum(map(ord, patient + dose)))
    for number, image in enumerate(series_slices(array), 1):
        image.SliceThickness, image.ConvolutionKernel, image.PatientID = thickness, kernel, "secret"
        name = f"{patient}_{WORDS[dose][1]}_1_1.CT.{number:04d}{suffix}.IMA" if names else f"1-{number}{suffix}.dcm"
        image.save_as(folder / name, enforce_file_format=True)
    return folder


def challenge(root: Path, kind: str = "1mm B30", patients=PATIENTS, **options) -> Path:
    end = kind[:3] + ("_sharp" if "D45" in kind else "")
    options = {"thickness": float(kind[0]), "kernel": f"{kind[4:]}f", **options}
    for patient in patients:
        for dose in WORDS:
            name = f"{WORDS[dose][0]}_{end}"
            write(root / "Training_Image_Data" / kind / name / patient / name, patient, dose, **options)
    return root


def tcia(root: Path, patients=("C002", "L004", "L014", "N005")) -> Path:
    for patient in patients:
        for dose in WORDS:
            study = root / "LDCT-and-Projection-data" / patient / f"08-21-2018-NA-NA-{len(patient)}0971"
            write(study / f"1.000000-{WORDS[dose][2]} images-24362", patient, dose, names=False, kernel="")
            raw = study / f"1.000000-{WORDS[dose][2]} projections-24362"
            raw.mkdir()
            (raw / "1-1.dcm").write_bytes(b"DICOM-CT-PD is not read")
    return root


def splits_of(path: Path) -> dict:
    return load_datalist(path, path_keys=PATH_KEYS)


def patients_of(splits: dict) -> dict[str, list[str]]:
    found = {name: [item["patient"] for item in items] for name, items in splits.items() if name != "training"}
    for domain in ("low", "high"):
        found[domain] = [item["patient"] for item in splits["training"] if item["domain"] == domain]
    return found


def check_images(splits: dict) -> None:
    for name, items in splits.items():
        for item in items:
            pairs = [("image", "full" if item["domain"] == "high" else "low")]
            pairs += [("reference", "full")] if "reference" in item else []
            assert ("reference" in item) == (name != "training")
            for key, dose in pairs:
                array, _ = DicomSeriesReader().get_data(item[key])
                assert np.array_equal(array, phantom((8, 6, 3), seed=sum(map(ord, item["patient"] + dose))))


@pytest.mark.parametrize("layout", ["challenge", "tcia", "by patient", "nested", "flat"])
def test_layouts(tmp_path, layout):
    source = tmp_path / "full set, low res"  # words above the source mean nothing
    if layout == "challenge":
        challenge(source)
        write(source / "ACR_Phantom_Data" / "full_1mm", "P001", "full", names=False)  # nobody's
    elif layout == "tcia":
        tcia(source)
    elif layout == "by patient":
        for patient in PATIENTS:
            for dose in WORDS:
                write(source / patient.lower() / f"{WORDS[dose][0]}_3mm", patient, dose)
    elif layout == "nested":  # the deepest word counts
        for patient in PATIENTS:
            for dose in WORDS:
                folder = source / "low_dose_set" / f"{dose} dose" / "3mm" / patient
                write(folder / f"{WORDS[dose][0]}_3mm_sharp", patient, dose, names=False)
    else:
        for patient in PATIENTS:
            for dose in WORDS:
                write(source, patient, dose)
    splits = splits_of(prepare(source, tmp_path / "out"))
    check_images(splits)
    found = patients_of(splits)
    everyone = [patient for part in found.values() for patient in part]
    assert sorted(everyone) == sorted(PATIENTS if layout != "tcia" else ("C002", "L004", "L014", "N005"))
    assert len(found["low"]) == (len(everyone) - 2 + 1) // 2 and len(found["validation"]) == len(found["test"]) == 1
    assert all(isinstance(i["image"], list) == (layout == "flat") for items in splits.values() for i in items)
    assert "secret" not in (tmp_path / "out" / "datalist.json").read_text()


def test_the_paths_lead_back_and_the_seed_decides(tmp_path):
    source = challenge(tmp_path / "data")
    texts = [prepare(source, tmp_path / f"o{n}", seed=seed).read_text() for n, seed in enumerate((0, 0, 1))]
    assert texts[0] == texts[1] and texts[0] != texts[2]
    image = json.loads(texts[0])["training"][0]["image"]
    assert image.startswith("../data/Training_Image_Data/1mm B30/quarter_1mm/L")
    assert [path.name for path in (tmp_path / "o0").iterdir()] == ["datalist.json"], "nothing is copied"


def test_shared_patients_and_named_splits(tmp_path):
    source = challenge(tmp_path / "data")
    path = prepare(source, tmp_path / "out", shared_patients=True, test_patients="l506", validation_patients=["L192"])
    found = patients_of(splits_of(path))
    assert found["low"] == found["high"] == ["L067", "L096", "L109", "L143"]
    assert found["test"] == ["L506"] and found["validation"] == ["L192"]
    some = prepare(source, tmp_path / "some", patients=["L067", "L096", "L109"], validation=0, test=0)
    found = patients_of(splits_of(some))
    assert sorted(found["low"] + found["high"]) == ["L067", "L096", "L109"] and set(found) == {"low", "high"}


def test_thickness_and_kernel(tmp_path):
    source = tmp_path / "data"
    for kind in ("1mm B30", "3mm B30", "3mm D45"):
        challenge(source, kind)
    with pytest.raises(
        ValueError, match=r"patient L067 has 3 low-dose series \(1 mm B30f, 3 slices in .*choose by thick"
    ):
        prepare(source, tmp_path / "out")
    with pytest.raises(ValueError, match="patient L067 has 2 low-dose series"):
        prepare(source, tmp_path / "out", thickness=3)
    splits = splits_of(prepare(source, tmp_path / "out", thickness=3, kernel="d45"))
    assert all("/3mm D45/" in item["image"] for items in splits.values() for item in items)
    with pytest.raises(ValueError, match="holds no DICOM series of 2 mm of kernel B30 in folders of the words full"):
        prepare(source, tmp_path / "none", thickness=2, kernel="B30")


def test_copies(tmp_path):
    path = prepare(challenge(tmp_path / "data"), tmp_path / "out", copy=True)
    splits = splits_of(path)
    check_images(splits)
    assert splits["test"][0]["reference"] == str(tmp_path / "out" / "series" / f"{splits['test'][0]['patient']}_full")
    copied = {folder.name for folder in (tmp_path / "out" / "series").iterdir()}
    found = patients_of(splits)
    paired = found["validation"] + found["test"]
    assert copied == {f"{p}_low" for p in found["low"] + paired} | {f"{p}_full" for p in found["high"] + paired}


def test_the_command(tmp_path, capsys):
    source = challenge(tmp_path / "data")
    options = ["--shared_patients", "true", "--test_patients", "['L506', 'L096']", "--thickness", "1"]
    assert main(["prepare", "mayo_ldct", str(source), str(tmp_path / "out"), *options]) == 0
    assert "labelfx check" in capsys.readouterr().out
    found = patients_of(splits_of(tmp_path / "out" / "datalist.json"))
    assert found["test"] == ["L096", "L506"] and len(found["low"]) == len(found["high"]) == 3


def test_what_cannot_be_used_is_said_and_leaves_nothing(tmp_path):
    out = tmp_path / "out"
    source = challenge(tmp_path / "data")

    def refused(match: str, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            prepare(keywords.pop("source", source), out, **keywords)
        assert "\n" not in str(caught.value) and not out.exists()

    refused("absent' does not exist", FileNotFoundError, source=tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    refused("empty' holds no DICOM series in folders of the words full, quarter or low", source=tmp_path / "empty")
    refused("no patient L999 among L067, L096", patients=["L999"])
    refused("no patient L999 among", test_patients="L999")
    refused("patient L067 is named twice", test_patients="L067", validation_patients="L067")
    refused("1 patients are left for training, expected two or more", patients=["L067", "L096", "L109"])
    refused("validation must be a share", validation=1.0)
    part = source / "Training_Image_Data" / "1mm B30" / "full_1mm" / "L109" / "full_1mm"
    next(iter(sorted(part.iterdir()))).unlink()
    refused(r"patient L109 has \(8, 6, 3\) columns, rows and slices at low dose and \(8, 6, 2\) at full dose")
    for file in part.iterdir():
        file.unlink()
    refused(
        r"patient L109 has no full-dose series, expected both doses: complete the download, or leave the patient out"
    )
    assert prepare(source, out, patients=["L067", "L096", "L143", "L192"]).is_file()
    with pytest.raises(FileExistsError, match="is not empty"):
        prepare(source, out)
