# SPDX-License-Identifier: Apache-2.0
"""No patient name, id, birth date or free text of an input reaches logs, reports, metrics, pictures or NIfTI files.

Values that nobody could mistake are planted in every input; then everything that was written or printed is searched.
DICOM outputs are the exception: they belong to the patient, so that a PACS can file them.
"""

from __future__ import annotations

import gzip
import importlib
import json
import logging
import struct
import warnings
import zlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_samples import CASES, ORIENTATIONS, phantom, save, series_slices
from monai.transforms import LoadImage
from PIL import Image, PngImagePlugin

from monai_labelfx.cli import main
from monai_labelfx.data import AutoReader

SECRET = "Zzyzx"  # no other text holds it
BIRTH_DATE = "19011203"
ATTRIBUTES = {
    "PatientName": f"{SECRET}^Name",
    "PatientID": f"{SECRET}-id",
    "PatientBirthDate": BIRTH_DATE,
    "OtherPatientNames": f"{SECRET}^Maiden",
    "PatientAddress": f"{SECRET} street",
    "PatientComments": f"{SECRET} comment",
    "ImageComments": f"{SECRET} comment",
    "StudyDescription": f"{SECRET} study",
    "SeriesDescription": f"{SECRET} series",
    "ProtocolName": f"{SECRET} protocol",
    "InstitutionName": f"{SECRET} hospital",
    "ReferringPhysicianName": f"{SECRET}^Doctor",
    "OperatorsName": f"{SECRET}^Operator",
    "AccessionNumber": f"{SECRET}1",
    "StudyID": f"{SECRET}2",
    "DerivationDescription": f"{SECRET} derived",
}


def plant(folder: Path) -> int:
    """Put the values into every DICOM and NIfTI file below a folder; returns how many there were."""
    import pydicom

    files = [path for path in folder.rglob("*") if path.is_file()]
    for path in files:
        if path.suffix == ".dcm":
            image = pydicom.dcmread(path)
            for keyword, value in ATTRIBUTES.items():
                setattr(image, keyword, value)
            image.save_as(path)
        elif path.name.endswith(".nii.gz"):
            image = nibabel.load(path)
            array = np.asarray(image.dataobj)
            image.header["descrip"] = f"{SECRET} descrip".encode()
            image.header["db_name"] = SECRET.encode()
            image.header["aux_file"] = SECRET.encode()
            image.header["intent_name"] = SECRET.encode()
            image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", SECRET.encode()))
            nibabel.save(nibabel.Nifti1Image(array, image.affine, image.header), path)
    return len(files)


def leaks(folder: Path) -> list[str]:
    """Files below a folder that hold a planted value, other than DICOM."""
    found = []
    for path in folder.rglob("*"):
        if not path.is_file() or path.suffix == ".dcm":
            continue
        content = path.read_bytes()
        if path.suffix == ".gz":
            content = gzip.decompress(content)
        if path.suffix == ".png":
            with Image.open(path) as picture:
                content += repr(picture.info).encode()
        if any(_holds(content, text) for text in (SECRET, BIRTH_DATE)):
            found.append(str(path))
    return found


def _holds(content: bytes, text: str) -> bool:
    return text.lower().encode() in content.lower() or text.encode("utf-16-le") in content


@pytest.fixture
def spoken(capsys, caplog):
    """Everything printed, logged or warned so far."""
    caplog.set_level(logging.DEBUG)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def text() -> bytes:
            out = capsys.readouterr()
            lines = [out.out, out.err, caplog.text, *(str(w.message) for w in caught)]
            return "\n".join(lines).encode()

        yield text


def test_the_search_finds_what_is_there(tmp_path):
    """Without this the tests below would prove nothing."""
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", f"{SECRET} text", zip=True)
    Image.new("L", (4, 4)).save(tmp_path / "a.png", pnginfo=info)
    assert SECRET.encode() not in (tmp_path / "a.png").read_bytes()  # compressed
    (tmp_path / "b.json").write_text(json.dumps({"born": BIRTH_DATE}))
    (tmp_path / "c.nii.gz").write_bytes(gzip.compress(SECRET.lower().encode()))
    (tmp_path / "d.txt").write_text("nothing here")
    (tmp_path / "e.pt").write_bytes(zlib.compress(b"nothing here"))
    assert sorted(Path(path).name for path in leaks(tmp_path)) == ["a.png", "b.json", "c.nii.gz"]


@pytest.mark.parametrize("kind", ["nifti", "dicom"])
@pytest.mark.parametrize("name", sorted(path.stem for path in (Path(__file__).parent / "bundle_cases").glob("*.py")))
def test_a_bundle_tells_nothing(name, kind, tmp_path, spoken):
    case = importlib.import_module(f"bundle_cases.{name}")
    bundle = getattr(case, "BUNDLE", name)
    datalist = case.make_data(tmp_path / "data", kind, 3)
    assert plant(tmp_path / "data") > 10
    out = tmp_path / "out"
    common = ["--datalist", str(datalist), *case.training(3)]
    assert main(["check", str(datalist)]) == 0
    assert main(["check", str(datalist), "--json"]) == 0
    assert main(["check", str(datalist.parent / "images")]) == 0
    for workflow in ("train", "evaluate"):
        assert main(["run", bundle, workflow, "--out", str(out / "run"), *common]) == 0
    network = ["--ckpt_path", str(out / "run" / "models" / "model.pt"), "--dataset_dir", str(tmp_path / "data/images")]
    for number, presets in enumerate([(), ("dicom",)] if kind == "dicom" else [()]):
        options = ["--out", str(out / f"predicted{number}"), *network, *case.inference(3, *presets)]
        assert main(["run", bundle, "inference", *options]) == 0
    assert main(["report", str(out / "run")]) == 0
    assert len([path for path in out.rglob("*") if path.is_file()]) > 10
    assert not leaks(out)
    words = spoken()
    assert b"labelfx" in words or b"output is in" in words
    assert not _holds(words, SECRET) and not _holds(words, BIRTH_DATE)


@pytest.mark.parametrize("name", [n for n in CASES if n not in ("RGB ultrasound", "two series in one folder")])
def test_errors_and_warnings_of_the_reader_tell_nothing(name, tmp_path, spoken):
    """Where a series must be chosen, descriptions are listed: see the next test."""
    where = CASES[name](tmp_path / "data")
    plant(tmp_path / "data")
    _without_descriptions(tmp_path / "data")
    messages = []
    for policy in ("error", "warn", "resample"):
        try:
            image = LoadImage(reader=AutoReader(on_irregular=policy))(where)
            messages.append(repr(image.meta))
        except ValueError as error:
            messages.append(str(error))
    words = spoken() + "\n".join(messages).encode()
    assert not _holds(words, SECRET) and not _holds(words, BIRTH_DATE)


@pytest.mark.parametrize(
    "keyword",
    [
        *("PatientID", "PatientName", "PatientBirthDate", "PatientAge", "SeriesDescription", "Modality", "StudyDate"),
        *("SeriesInstanceUID", "InstanceNumber", "RescaleSlope", "PixelSpacing", "SliceThickness", "WindowCenter"),
    ],
)
def test_values_that_break_the_rules_are_not_quoted(keyword, tmp_path, spoken):
    """pydicom warns about a value that its type does not allow, and quotes it."""
    import pydicom

    series = save(tmp_path / "data", series_slices(phantom()))
    value = f"{SECRET}\x07 ".encode() * 12
    tag = pydicom.tag.Tag(keyword)
    start = struct.pack("<HH", tag.group, tag.element) + pydicom.datadict.dictionary_VR(keyword).encode()
    for path in series.iterdir():
        image = pydicom.dcmread(path)
        if keyword not in image:
            setattr(image, keyword, {"WindowCenter": 40, "PatientAge": "030Y"}.get(keyword, ""))
            image.save_as(path)
        before, found, after = path.read_bytes().partition(start)
        assert found
        rest = after[2 + int.from_bytes(after[:2], "little") :]
        path.write_bytes(before + start + len(value).to_bytes(2, "little") + value + rest)
    main(["check", str(series)])
    main(["convert", str(series), str(tmp_path / "a.nii.gz")])
    words = spoken()
    assert b"labelfx convert" in words or b"wrote" in words
    assert not _holds(words, SECRET)


def _without_descriptions(folder: Path) -> None:
    import pydicom

    for path in folder.glob("*.dcm"):
        image = pydicom.dcmread(path)
        image.SeriesDescription = "thorax 2 mm"
        image.save_as(path)


def test_only_the_series_description_is_named_where_one_must_choose(tmp_path, capsys):
    save(tmp_path / "data", series_slices(phantom()), prefix="a")
    save(tmp_path / "data", series_slices(phantom(), orientation=next(iter(ORIENTATIONS))), prefix="b")
    plant(tmp_path / "data")
    assert main(["convert", str(tmp_path / "data"), str(tmp_path / "a.nii.gz")]) == 1
    message = capsys.readouterr().err
    assert message.count(SECRET) == message.count(f"{SECRET} series") == 2 and BIRTH_DATE not in message


def test_convert_tells_nothing(tmp_path, spoken):
    series = save(tmp_path / "data", series_slices(phantom()))
    plant(series)
    out = tmp_path / "out"
    assert main(["convert", str(series), str(out / "a.nii.gz")]) == 0
    assert main(["convert", str(out / "a.nii.gz"), str(out / "derived"), "--like", str(series)]) == 0
    assert len(list((out / "derived").iterdir())) == 8
    words = spoken()
    assert not leaks(out) and b"wrote" in words and not _holds(words, SECRET)
