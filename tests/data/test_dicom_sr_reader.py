# SPDX-License-Identifier: Apache-2.0
"""load_detection_report: what save_detection_report was given comes back, and other files are refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from dicom_frame_samples import xray
from dicom_samples import ORIENTATIONS, enhanced, phantom, save, write_series
from monai.data import MetaTensor
from monai.transforms import LoadImage

from monai_labelfx.data import AutoReader, DicomSegWriter
from monai_labelfx.data.dicom_sr_reader import load_detection_report
from monai_labelfx.data.dicom_sr_writer import save_detection_report

BOXES = [[1.25, 2.5, 1.5, 9.0, 7.75, 5.25], [0.0, 0.0, 0.0, 16.0, 12.0, 8.0], [3.0, 4.0, 5.0, 3.5, 4.5, 5.5]]
FLAT = [[1.25, 2.5, 9.0, 7.75], [0.0, 0.0, 20.0, 12.0], [19.5, 11.5, 20.0, 12.0]]


def read_image(path, **options) -> MetaTensor:
    return LoadImage(AutoReader(**options), ensure_channel_first=True)(path)


def film(folder: Path, pixels=None, **elements) -> Path:
    """A mammogram of 20 columns and 12 rows, inverted (MONOCHROME1)."""
    pixels = np.random.default_rng(0).integers(0, 4096, (12, 20)) if pixels is None else pixels
    return save(folder, [xray(pixels, ImagerPixelSpacing=[0.2, 0.1], **elements)]) / "0000.dcm"


def write(path: Path, image: MetaTensor, boxes, **options) -> pydicom.Dataset:
    options = {"labels": [0] * len(boxes), "scores": [0.5] * len(boxes), **options}
    save_detection_report(path, boxes, meta=image.meta, **options)
    return pydicom.dcmread(path)


def items(parent: pydicom.Dataset, meaning: str) -> list[pydicom.Dataset]:
    return [item for item in parent.ContentSequence if item.ConceptNameCodeSequence[0].CodeMeaning == meaning]


def groups_of(report: pydicom.Dataset) -> list[pydicom.Dataset]:
    return items(items(report, "Imaging Measurements")[0], "Measurement Group")


@pytest.mark.parametrize("kind", ["files", "multi-frame"])
@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_round_trip_in_volumes(tmp_path, orientation, kind):
    if kind == "files":
        path = write_series(tmp_path / "series", phantom(), orientation=orientation)
    else:
        path = save(tmp_path / "series", [enhanced(phantom(), orientation=orientation)]) / "0000.dcm"
    image = read_image(path)
    options = {"labels": [2, 0, -1], "scores": [0.875, 0.0, 1.0], "names": {2: "nodule", "0": "größer als 大: 3 mm"}}
    write(tmp_path / "report.dcm", image, BOXES, **options)
    found = load_detection_report(tmp_path / "report.dcm", meta=image.meta)
    assert np.abs(found["boxes"] - BOXES).max() < 1e-4
    assert found["labels"].tolist() == options["labels"] and np.allclose(found["scores"], options["scores"], atol=1e-12)
    assert found["names"] == {2: "nodule", 0: "größer als 大: 3 mm"}


@pytest.mark.parametrize("as_tensor", [False, True])
def test_round_trip_in_a_film(tmp_path, as_tensor):
    image = read_image(film(tmp_path / "film"))
    boxes = torch.tensor(FLAT) if as_tensor else FLAT
    write(tmp_path / "report.dcm", image, boxes, labels=torch.tensor([1, 1, 0]), scores=torch.tensor([0.25, 0.5, 1.0]))
    for meta in (None, image.meta):
        found = load_detection_report(tmp_path / "report.dcm", meta=meta)
        assert np.abs(found["boxes"] - FLAT).max() < 1e-6
        assert found["labels"].tolist() == [1, 1, 0] and found["scores"].tolist() == [0.25, 0.5, 1.0]
        assert found["names"] == {}


def test_other_files_are_no_reports_of_ours(tmp_path):
    image = read_image(write_series(tmp_path / "series", phantom()))
    other = read_image(write_series(tmp_path / "other", phantom()))
    report = write(tmp_path / "report.dcm", image, BOXES)
    with pytest.raises(ValueError, match="^report .* is about a volume, in mm: the meta of its image is needed$"):
        load_detection_report(tmp_path / "report.dcm")
    with pytest.raises(ValueError, match="^report .* is about another series than that of"):
        load_detection_report(tmp_path / "report.dcm", meta=other.meta)
    one_slice = read_image(tmp_path / "series" / "0000.dcm")
    with pytest.raises(ValueError, match=r"^report .* has boxes of 3 axes, but the image of .* has \(16, 12\)$"):
        load_detection_report(tmp_path / "report.dcm", meta=one_slice.meta)
    items(groups_of(report)[1], "Algorithm Parameters")[0].TextValue = "threshold 3"
    report.save_as(tmp_path / "changed.dcm")
    with pytest.raises(ValueError, match="^report .* does not say the labels"):
        load_detection_report(tmp_path / "changed.dcm", meta=image.meta)
    for kind, message in (("NUM", "cannot be read as DICOM SR"), ("SCOORD3D", "^report .* does not say where")):
        report = pydicom.dcmread(tmp_path / "report.dcm")
        for group in groups_of(report):
            group.ContentSequence = [one for one in group.ContentSequence if one.ValueType != kind]
        report.save_as(tmp_path / "changed.dcm")
        with pytest.raises(ValueError, match=message):
            load_detection_report(tmp_path / "changed.dcm", meta=image.meta)
    writer = DicomSegWriter()
    writer.set_data_array(image > 0)
    writer.set_metadata(image.meta)
    writer.write(tmp_path / "seg.dcm", verbose=False)
    with pytest.raises(ValueError, match="^file .* is no DICOM SR"):
        load_detection_report(tmp_path / "seg.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ValueError, match="cannot be read as DICOM SR"):
        load_detection_report(tmp_path / "text.dcm")
    with pytest.raises(FileNotFoundError, match="does not exist"):
        load_detection_report(tmp_path / "nowhere.dcm")


@pytest.mark.sample_data
def test_real_chest_ct(tmp_path, sample_data):
    series = next(path for path in sorted((sample_data / "ct").rglob("*")) if any(path.glob("*.dcm")))
    image = read_image(series)
    boxes = [[10.25, 400.5, 3.5, 60, 470.75, 7.25], [0, 0, 0, *image.shape[1:]]]
    write(tmp_path / "report.dcm", image, boxes)
    assert np.abs(load_detection_report(tmp_path / "report.dcm", meta=image.meta)["boxes"] - boxes).max() < 1e-3
