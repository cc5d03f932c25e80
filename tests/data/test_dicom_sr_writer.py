# SPDX-License-Identifier: Apache-2.0
"""save_detection_report: what plain pydicom and highdicom read from its files is each box, its class and its source."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

import highdicom
import numpy as np
import pydicom
import pytest
import torch
from dicom_frame_samples import xray
from dicom_samples import ORIENTATIONS, enhanced, phantom, save, series_slices, write_series
from monai.data import MetaTensor
from monai.transforms import Flip, LoadImage

from monai_labelfx.data import AutoReader
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


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_rectangle_frames_the_object_in_the_stored_pixels(tmp_path, photometric):
    pixels = np.full((12, 20), 100)
    pixels[3:5, 11:18] = 3000  # rows, columns
    image = read_image(film(tmp_path / "film", pixels, photometric=photometric))
    found = np.argwhere(image[0].numpy() != image[0, 0, 0].item())
    box = [*found.min(0), *(found.max(0) + 1)]
    report = write(tmp_path / "report.dcm", image, [box])
    assert report.SOPClassUID.name == "Comprehensive SR Storage"
    region = items(groups_of(report)[0], "Image Region")[0]
    assert (region.ValueType, region.GraphicType) == ("SCOORD", "POLYLINE")
    points = np.reshape(region.GraphicData, (-1, 2))
    assert points.tolist() == [[11, 3], [18, 3], [18, 5], [11, 5], [11, 3]]  # column, row; closed
    reference = region.ContentSequence[0]
    assert reference.RelationshipType == "SELECTED FROM" and reference.ValueType == "IMAGE"
    source = pydicom.dcmread(tmp_path / "film" / "0000.dcm")
    assert reference.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert "ReferencedFrameNumber" not in reference.ReferencedSOPSequence[0]


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_contours_frame_the_object_in_the_stored_slices(tmp_path, orientation):
    array = np.full((16, 12, 8), -1000.0, dtype=np.float32)
    array[3:9, 2:4, 1:5] = 500
    series = write_series(tmp_path / "series", array, orientation=orientation)
    image = read_image(series)
    found = np.argwhere(image[0].numpy() > 0)
    report = write(tmp_path / "report.dcm", image, [[*found.min(0), *(found.max(0) + 1)]])
    assert report.SOPClassUID.name == "Comprehensive 3D SR Storage"
    contours = items(groups_of(report)[0], "Volume Surface")
    assert {(one.ValueType, one.GraphicType) for one in contours} == {("SCOORD3D", "POLYGON")}
    drawn = 0
    for file in map(pydicom.dcmread, series.iterdir()):
        row, column = np.reshape(file.ImageOrientationPatient, (2, 3)).astype(float)
        inside = np.zeros((file.Rows, file.Columns), dtype=bool)
        for contour in contours:
            assert contour.ReferencedFrameOfReferenceUID == file.FrameOfReferenceUID
            points = np.reshape(contour.GraphicData, (5, 3)) - np.array(file.ImagePositionPatient, dtype=float)
            assert (points[0] == points[4]).all()
            if np.abs(points @ np.cross(row, column)).max() > 0.1:
                continue  # not in this slice
            drawn += 1
            x, y = points @ row / file.PixelSpacing[1], points @ column / file.PixelSpacing[0]
            for r, c in np.ndindex(inside.shape):
                inside[r, c] |= x.min() < c < x.max() and y.min() < r < y.max()
        assert np.array_equal(inside, file.pixel_array == 1524)
    assert drawn == 4 and len(contours) == 6


def test_the_ends_of_a_box_are_exact_in_mm(tmp_path):
    image = read_image(write_series(tmp_path / "series", phantom()))  # 0.7, 0.9, 2.5 mm from (-10, -20, -30), axial
    report = write(tmp_path / "report.dcm", image, [[2, 3, 2.2, 4, 6, 2.9]])
    points = np.concatenate(
        [np.reshape(one.GraphicData, (-1, 3)) for one in items(groups_of(report)[0], "Volume Surface")]
    )
    assert np.allclose(points.min(0), [-10 + 1.5 * 0.7, -20 + 2.5 * 0.9, -30 + 1.7 * 2.5], atol=1e-5)
    assert np.allclose(points.max(0), [-10 + 3.5 * 0.7, -20 + 5.5 * 0.9, -30 + 2.4 * 2.5], atol=1e-5)


def test_one_slice_of_a_multi_frame_file_is_named_with_its_frame(tmp_path):
    image = read_image(save(tmp_path / "series", [enhanced(phantom((16, 12, 1)))]) / "0000.dcm")
    report = write(tmp_path / "report.dcm", image, [[1, 2, 9, 7]])
    reference = items(groups_of(report)[0], "Image Region")[0].ContentSequence[0].ReferencedSOPSequence[0]
    assert reference.ReferencedFrameNumber == 1
    assert load_detection_report(tmp_path / "report.dcm")["boxes"].tolist() == [[1, 2, 9, 7]]


def test_contours_lie_in_slices_that_are_not_evenly_apart(tmp_path):
    slices = [one for n, one in enumerate(series_slices(phantom(), orientation="oblique")) if n != 3]
    series = save(tmp_path / "series", slices)
    with pytest.warns(UserWarning, match="irregular"):
        image = read_image(series, on_irregular="warn")
    report = write(tmp_path / "report.dcm", image, [[1, 2, 0, 9, 7, 7]])
    contours = [np.reshape(one.GraphicData, (5, 3)) for one in items(groups_of(report)[0], "Volume Surface")]
    normal = ORIENTATIONS["oblique"][2]
    heights = {round(float(np.array(one.ImagePositionPatient, float) @ normal), 3) for one in slices}
    assert {round(float(one[0] @ normal), 3) for one in contours[1:-1]} == heights and len(contours) == 9
    boxes = [[1, 2, 1.25, 9, 7, 3.25], [0, 0, 0, 16, 12, 7]]
    write(tmp_path / "report.dcm", image, boxes)
    assert np.abs(load_detection_report(tmp_path / "report.dcm", meta=image.meta)["boxes"] - boxes).max() < 1e-4


def test_an_image_that_was_resampled_as_it_was_read(tmp_path):
    series = save(tmp_path / "series", [one for n, one in enumerate(series_slices(phantom())) if n != 3])
    with pytest.warns(UserWarning, match="irregular"):
        image = read_image(series, on_irregular="resample")
    assert image.shape[-1] == 8
    report = write(tmp_path / "report.dcm", image, BOXES)
    assert np.abs(load_detection_report(tmp_path / "report.dcm", meta=image.meta)["boxes"] - BOXES).max() < 1e-4
    points = np.concatenate(
        [np.reshape(one.GraphicData, (-1, 3)) for one in items(groups_of(report)[0], "Volume Surface")]
    )
    assert np.allclose([points[:, 2].min(), points[:, 2].max()], [-30 + 1.0 * 2.5, -30 + 4.75 * 2.5], atol=1e-4)


def test_boxes_count_in_the_image_as_it_was_read(tmp_path):
    image = read_image(write_series(tmp_path / "series", phantom()))
    write(tmp_path / "a.dcm", image, BOXES)
    write(tmp_path / "b.dcm", Flip([0, 2])(image), BOXES)
    both = [load_detection_report(tmp_path / name, meta=image.meta)["boxes"] for name in ("a.dcm", "b.dcm")]
    assert np.array_equal(*both)


def test_boxes_are_cut_at_the_border(tmp_path):
    image = read_image(film(tmp_path / "film"))
    write(tmp_path / "report.dcm", image, [[-3.0, 2, 4, 99]])
    assert load_detection_report(tmp_path / "report.dcm")["boxes"].tolist() == [[0, 2, 4, 12]]


def test_highdicom_reads_the_groups(tmp_path):
    names, codes = {0: "nodule", 1: "a name of more than 16 letters"}, {"0": ["27925004", "SCT", "Nodule"]}
    options = {"labels": [0, 1, 2], "scores": [0.9, 0.5, 0.25], "names": names, "codes": codes}
    for image, boxes in (
        (read_image(film(tmp_path / "film")), FLAT),
        (read_image(write_series(tmp_path / "series", phantom())), BOXES),
    ):
        write(tmp_path / "report.dcm", image, boxes, algorithm=("RetinaNet, chest", "7"), **options)
        content = highdicom.sr.srread(tmp_path / "report.dcm").content
        planar, volumetric = (
            content.get_planar_roi_measurement_groups(),
            content.get_volumetric_roi_measurement_groups(),
        )
        groups = planar if len(boxes[0]) == 4 else volumetric
        assert len(groups) == 3
        concepts = [(one.finding_type.value, one.finding_type.scheme_designator) for one in groups]
        assert concepts[0] == ("27925004", "SCT") and concepts[2] == ("label 2", "99LABELFX")
        assert concepts[1][1] == "99LABELFX" and len(concepts[1][0]) == 16
        assert [one.finding_type.meaning for one in groups] == ["Nodule", names[1], "label 2"]
        assert [one.tracking_identifier for one in groups] == ["Nodule 1", f"{names[1]} 2", "label 2 3"]
        assert len({one.tracking_uid for one in groups}) == 3
        measured = [one.get_measurements()[0] for one in groups]
        assert [one.name.value for one in measured] == ["111012"] * 3 and measured[0].unit.value == "%"
        assert np.allclose([one.value for one in measured], [90, 50, 25])
        observer = content.get_observer_contexts()[0]
        assert observer.observer_type.meaning == "Device"
        assert observer.observer_identifying_attributes.name == "monai_labelfx"
        parts = groups_of(pydicom.dcmread(tmp_path / "report.dcm"))[0]
        assert items(parts, "Algorithm Name")[0].TextValue == "RetinaNet, chest"
        assert items(parts, "Algorithm Version")[0].TextValue == "7"


@pytest.mark.parametrize("kind", ["film", "volume"])
def test_a_report_of_nothing(tmp_path, kind):
    path = film(tmp_path / "film") if kind == "film" else write_series(tmp_path / "series", phantom())
    image = read_image(path)
    axes = 2 if kind == "film" else 3
    for boxes in ([], np.empty((0, 2 * axes)), torch.empty(0, 2 * axes)):
        report = write(tmp_path / "report.dcm", image, boxes, algorithm=["net", "7"])
        assert not items(report, "Imaging Measurements")
        said, *algorithm = items(report, "Qualitative Evaluations")[0].ContentSequence
        assert [one.TextValue for one in algorithm] == ["net", "7"]
        assert said.ConceptNameCodeSequence[0].CodeValue == "111017"
        assert said.ConceptCodeSequence[0].CodeMeaning == "All algorithms succeeded; without findings"
        content = highdicom.sr.srread(tmp_path / "report.dcm").content
        assert content.get_planar_roi_measurement_groups() == content.get_volumetric_roi_measurement_groups() == []
        found = load_detection_report(tmp_path / "report.dcm", meta=image.meta)
        assert found["boxes"].shape == (0, 2 * axes) and len(found["labels"]) == len(found["scores"]) == 0


def test_all_images_are_named_and_the_document_is_preliminary(tmp_path):
    series = write_series(tmp_path / "series", phantom())
    files = [pydicom.dcmread(path) for path in series.iterdir()]
    report = write(tmp_path / "report.dcm", read_image(series), BOXES)
    (study,) = report.CurrentRequestedProcedureEvidenceSequence
    (referenced,) = study.ReferencedSeriesSequence
    uids = {file.SOPInstanceUID for file in files}
    assert study.StudyInstanceUID == report.StudyInstanceUID == files[0].StudyInstanceUID
    assert referenced.SeriesInstanceUID == files[0].SeriesInstanceUID != report.SeriesInstanceUID
    assert {one.ReferencedSOPInstanceUID for one in referenced.ReferencedSOPSequence} == uids
    library = items(items(report, "Image Library")[0], "Image Library Group")[0].ContentSequence
    assert {one.ReferencedSOPSequence[0].ReferencedSOPInstanceUID for one in library} == uids
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")
    assert report.Modality == "SR" and report.ContentTemplateSequence[0].TemplateIdentifier == "1500"
    assert items(report, "Procedure reported")[0].ConceptCodeSequence[0].CodeMeaning == "CT unspecified body region"
    assert report.CodingSchemeIdentificationSequence[0].CodingSchemeDesignator == "99LABELFX"
    assert "VerifyingObserverSequence" not in report


def test_only_patient_and_study_are_taken_over_and_nothing_is_said(tmp_path, caplog, capfd):
    slices = series_slices(phantom((6, 5, 2)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for one in slices:
            one.PatientName, one.PatientID, one.PatientSex = "KeptName", "KeptId" * 20, "KeptSex"
            one.StudyDate, one.AccessionNumber = "KeptDate", "KeptAccession" * 5
            one.OtherPatientNames = one.PatientAddress = one.PatientComments = "Secret"
            one.InstitutionName = one.OperatorsName = one.SeriesDescription = one.ImageComments = "Secret"
            one.SeriesNumber = 7
    series = save(tmp_path / "series", slices)
    for path in series.iterdir():
        path.write_bytes(path.read_bytes().replace(b"IS\x02\x007 ", b"IS\x06\x00Secret"))
    image = read_image(series)
    caplog.clear()
    with warnings.catch_warnings(record=True) as caught, caplog.at_level(logging.DEBUG):
        warnings.simplefilter("always")
        report = write(tmp_path / "report.dcm", image, [[1, 2, 0, 3, 4, 2]])
        load_detection_report(tmp_path / "report.dcm", meta=image.meta)
    said = caplog.text + "".join(str(one.message) for one in caught) + "".join(capfd.readouterr())
    assert "Secret" not in said and "Kept" not in said
    assert report.PatientName == "KeptName" and report.PatientSex == "KeptSex" and report.SeriesNumber == 2000
    assert b"Secret" not in (tmp_path / "report.dcm").read_bytes()


def test_poor_source_headers_give_a_complete_file(tmp_path):
    slices = series_slices(phantom())
    gone = """PatientName PatientID PatientBirthDate PatientSex StudyDate StudyTime StudyID AccessionNumber
        ReferringPhysicianName PositionReferenceIndicator Manufacturer SeriesNumber InstanceNumber FrameOfReferenceUID
        SliceThickness""".split()
    for one in slices:
        for keyword in gone:
            delattr(one, keyword)
    image = read_image(save(tmp_path / "series", slices))
    report = write(tmp_path / "report.dcm", image, BOXES)
    assert all(keyword in report for keyword in gone[:9]) and report.SeriesNumber == 2000
    assert np.abs(load_detection_report(tmp_path / "report.dcm", meta=image.meta)["boxes"] - BOXES).max() < 1e-4


def test_two_files_differ_in_uids_and_times_only(tmp_path):
    image = read_image(write_series(tmp_path / "series", phantom()))
    varying = (" UI: ", " DA: ", " TM: ", " DT: ", "(0002,0000)")
    texts = []
    for name in "ab":
        lines = str(write(tmp_path / f"{name}.dcm", image, BOXES)).splitlines()
        texts.append([line for line in lines if not any(part in line for part in varying)])
    assert texts[0] == texts[1]


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    def fail(self, path, **_):
        Path(path).write_bytes(b"half")
        raise OSError("disk full")

    image = read_image(film(tmp_path / "film"))
    monkeypatch.setattr(pydicom.Dataset, "save_as", fail)
    with pytest.raises(OSError, match="disk full"):
        write(tmp_path / "out" / "report.dcm", image, FLAT)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("boxes", "options", "message"),
    [
        (BOXES, {}, r"^boxes must have the shape \(N, 4\) in an image of one plane, got \(3, 6\)$"),
        ([1.0, 2, 3, 4], {}, r"^boxes must have the shape \(N, 4\) .*got \(4,\)$"),
        ([[5, 2, 5, 3]], {}, "^box 0 is empty"),
        ([*FLAT, [20, 0, 21, 5]], {}, r"^box 3 lies outside the image of size \(20, 12\): \[20"),
        ([[0, 0, float("nan"), 3]], {}, "^boxes and scores must be finite$"),
        (FLAT, {"labels": [0]}, "^3 boxes need as many labels and scores"),
        (FLAT, {"scores": [0.5, 0.5, 1.5]}, "^scores must lie between 0 and 1 in a report, got 0.5 to 1.5$"),
        (FLAT, {"scores": [-0.5, 0.5, 1.0]}, "^scores must lie between 0 and 1 in a report, got -0.5 to 1$"),
        (FLAT, {"names": {0: ""}}, r"^names\[0\] is '', expected a text"),
        (FLAT, {"codes": {0: ["1", "SCT"]}}, r"^codes\[0\] is .*, expected \[code, scheme, meaning\]"),
        (FLAT, {"algorithm": "net"}, "^algorithm must be its name and its version, got 'net'$"),
        (FLAT, {"algorithm": ["net", ""]}, "^algorithm must have 1 to 64 printable characters"),
        (FLAT, {"series_description": "two\nlines"}, "^series_description must have 1 to 64"),
    ],
)
def test_bad_arguments(tmp_path, boxes, options, message):
    image = read_image(film(tmp_path / "film"))
    with pytest.raises(ValueError, match=message) as error:
        write(tmp_path / "report.dcm", image, boxes, **options)
    assert "\n" not in str(error.value) and not (tmp_path / "report.dcm").exists()


def test_boxes_of_a_volume_and_slices_in_one_place(tmp_path):
    slices = series_slices(phantom())
    twice = pydicom.Dataset.from_json(slices[2].to_json())
    twice.file_meta, twice.SOPInstanceUID = slices[2].file_meta, "1.2.3"
    with pytest.warns(UserWarning, match="irregular"):
        image = read_image(save(tmp_path / "series", [*slices, twice]), on_irregular="warn")
    with pytest.raises(ValueError, match=r"^boxes must have the shape \(N, 6\) in a volume, got \(3, 4\)$"):
        write(tmp_path / "report.dcm", image, FLAT)
    with pytest.raises(ValueError, match="^slices of the series of .* lie in one place, so boxes have none in mm$"):
        write(tmp_path / "report.dcm", image, BOXES)


def test_images_that_a_report_cannot_refer_to(tmp_path):
    image = read_image(film(tmp_path / "film"))
    for meta in (None, {}, {"affine": np.eye(4)}):
        with pytest.raises(ValueError, match="DicomSeriesReader"):
            save_detection_report(tmp_path / "report.dcm", FLAT, labels=[0] * 3, scores=[1] * 3, meta=meta)
    bare = {key: value for key, value in image.meta.items() if key != "original_affine"}
    with pytest.raises(ValueError, match="no original_affine"):
        save_detection_report(tmp_path / "report.dcm", FLAT, labels=[0] * 3, scores=[1] * 3, meta=bare)
    (tmp_path / "film" / "0000.dcm").unlink()
    with pytest.raises(ValueError, match="are gone"):
        write(tmp_path / "report.dcm", image, FLAT)
