# SPDX-License-Identifier: Apache-2.0
"""Through SaveImage: a derived series in the place of its source, whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pydicom
import pytest
import torch
from dicom_derived_samples import by_position, read, series, write
from dicom_samples import CASES, ORIENTATIONS, affine_of, colour, enhanced, phantom, save, series_slices
from monai.data import PydicomReader
from monai.transforms import (
    CenterSpatialCrop,
    Compose,
    Flip,
    Flipd,
    LoadImaged,
    Orientation,
    Orientationd,
    SaveImage,
    SaveImaged,
    Spacing,
    SpatialPad,
)

from monai_labelfx.data import _dicom_derived_pixels, dicom_derived_series_writer

WRITER = "monai_labelfx.data.dicom_derived_series_writer.DicomDerivedSeriesWriter"


@pytest.mark.parametrize("orientation", ORIENTATIONS)
def test_through_the_dictionary_transforms_and_back(tmp_path, orientation):
    source = series(tmp_path / "source", orientation=orientation)
    chain = Compose(
        [
            LoadImaged("image", reader="monai_labelfx.data.dicom_series_reader.DicomSeriesReader"),
            lambda data: {"image": data["image"][None]},
            Orientationd("image", axcodes="PIR", labels=None),
            Flipd("image", spatial_axis=1),
            SaveImaged(
                "image", output_dir=tmp_path / "out", output_ext=".dcm", writer=WRITER, resample=True, print_log=False
            ),
        ]
    )
    chain({"image": str(source)})
    folder = tmp_path / "out/source/source_trans"
    for old, new in zip(by_position(source), by_position(folder), strict=True):
        assert new.PixelData == old.PixelData
    again = read(folder)
    assert np.array_equal(again.numpy()[0], phantom()) and np.allclose(again.affine, affine_of(orientation), atol=1e-6)
    monai = PydicomReader()
    array, meta = monai.get_data(monai.read(str(folder)))
    assert np.array_equal(array, phantom()) and np.allclose(meta["affine"], affine_of(orientation), atol=1e-6)


@pytest.mark.parametrize("case", [name for name in CASES if name.startswith(("regular", "Inst", "no ", "list"))])
def test_every_case_that_can_be_read_can_be_written(tmp_path, case):
    source = CASES[case](tmp_path / "source")
    made = write(read(source), tmp_path / "made")
    assert np.array_equal(read(made).numpy()[0], phantom())
    assert all(image.InstanceNumber is not None for image in by_position(made))


@pytest.mark.parametrize("orientation", ORIENTATIONS)
@pytest.mark.parametrize("per_frame", [False, True])
def test_enhanced_multi_frame(tmp_path, orientation, per_frame):
    image = enhanced(phantom(), orientation=orientation)
    image.ImageType[0] = "ORIGINAL"
    image.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType[0] = "ORIGINAL"
    if per_frame:
        transforms = image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
        del image.SharedFunctionalGroupsSequence[0].PixelValueTransformationSequence
        for index, group in enumerate(image.PerFrameFunctionalGroupsSequence):
            transform = pydicom.Dataset()
            transform.RescaleSlope, transform.RescaleIntercept = 0.3 + index, -index
            transform.RescaleType = transforms[0].RescaleType
            group.PixelValueTransformationSequence = [transform]
    save(tmp_path / "source", [image])
    loaded = read(tmp_path / "source/0000.dcm")
    made = pydicom.dcmread(write(Flip(2)(loaded), tmp_path / "made"))
    assert made.PixelData == image.PixelData and made.NumberOfFrames == 8
    frame_type = made.SharedFunctionalGroupsSequence[0].CTImageFrameTypeSequence[0].FrameType
    assert made.ImageType == frame_type == ["DERIVED", "PRIMARY", "AXIAL", "NONE"]
    referred = made.ReferencedSeriesSequence[-1]
    assert referred.SeriesInstanceUID == image.SeriesInstanceUID
    assert referred.ReferencedInstanceSequence[0].ReferencedSOPInstanceUID == image.SOPInstanceUID
    for keyword in ("SOPClassUID", "Rows", "Columns", "FrameOfReferenceUID", "StudyInstanceUID", "PatientID"):
        assert made[keyword] == image[keyword]
    for number, (old, new) in enumerate(
        zip(image.PerFrameFunctionalGroupsSequence, made.PerFrameFunctionalGroupsSequence, strict=True), start=1
    ):
        for keyword in ("FrameContentSequence", "PlanePositionSequence", "PixelValueTransformationSequence"):
            assert new.get(keyword) == old.get(keyword)
        (derivation,) = new.DerivationImageSequence
        (reference,) = derivation.SourceImageSequence
        assert reference.ReferencedSOPInstanceUID == image.SOPInstanceUID and reference.ReferencedFrameNumber == number
        assert derivation.DerivationCodeSequence[0].CodeValue == "113087"
    again = read(tmp_path / "made.dcm")
    assert np.array_equal(again.numpy(), loaded.numpy()) and np.array_equal(again.affine, loaded.affine)


def test_a_crop_leaves_the_rest_as_in_the_source_and_says_so(tmp_path):
    source = series(tmp_path / "source")
    crop = CenterSpatialCrop((6, 6, 4))(Flip(1)(read(source)))
    folder = write(crop + 100, tmp_path / "made")
    changed = read(folder).numpy()[0] - phantom()
    assert np.count_nonzero(changed) == 6 * 6 * 4 and set(np.unique(changed)) == {0, 100}
    texts = [image.DerivationDescription for image in by_position(folder)]
    assert texts[0].endswith("(192 pixels outside the processed region hold the source's values)")
    assert texts[3].endswith("(156 pixels outside the processed region hold the source's values)")


def test_interpolated_images_come_back_to_the_slices(tmp_path):
    source = series(tmp_path / "source")
    image = read(source)
    image[0] = torch.arange(16.0)[:, None, None] * 10 + torch.arange(12.0)[:, None] * 3 + torch.arange(8.0) * 50
    fine = Spacing((0.35, 0.45, 1.25))(SpatialPad((20, 16, 12), mode="edge")(image))
    assert fine.shape[1] > 30
    again = read(write(fine, tmp_path / "made")).numpy()
    inner = (slice(None), slice(1, -1), slice(1, -1), slice(1, -1))
    assert np.abs(again - image.numpy())[inner].max() <= 1


def test_one_slice_becomes_one_file(tmp_path):
    source = save(tmp_path / "source", series_slices(phantom()[:, :, :1], orientation="sagittal"))
    image = read(source)
    assert image.ndim == 3
    made = write(Flip(0)(image), tmp_path / "made")
    assert made.is_file() and made.suffix == ".dcm"
    assert pydicom.dcmread(made).PixelData == pydicom.dcmread(source / "0000.dcm").PixelData


def test_refusals(tmp_path):
    source = series(tmp_path / "source")
    image = read(source)
    target = tmp_path / "made"
    for bad, count in ((torch.nan, 7), (torch.inf, 7)):
        broken = image.clone()
        broken[0, :7, 2, 3] = bad
        with pytest.raises(ValueError, match=f"holds {count} values that are NaN or infinite"):
            write(broken, target)
    with pytest.raises(ValueError, match="one channel, got an array of shape"):
        write(torch.cat([image, image]), target)
    with pytest.raises(ValueError, match="moved.*resample=True"):
        write(Flip(0)(image), target, resample=False)
    with pytest.raises(ValueError, match="spatial shape .*its DICOM source has"):
        cut = image[:, 1:]
        cut.affine = image.affine
        write(cut, target)
    unknown = image.clone()
    del unknown.meta["dicom_source"]
    with pytest.raises(ValueError, match="does not know its DICOM files"):
        write(unknown, target)
    other = image.clone()
    other.meta["dicom_series_instance_uid"] = "1.2.3"
    with pytest.raises(ValueError, match="another series than when the image was read"):
        write(other, target)
    (source / "0003.dcm").unlink()
    with pytest.raises(ValueError, match=r"1 of the 8 DICOM files.*0003\.dcm"):
        write(image, target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["source"]


def test_sources_that_cannot_be_derived_from(tmp_path):
    resampled = read(CASES["triple gap"](tmp_path / "gap"), on_irregular="resample")
    with pytest.raises(ValueError, match="resampled to a regular grid.*NIfTI"):
        write(resampled, tmp_path / "made")
    table = pydicom.Dataset()
    table.LUTDescriptor, table.LUTData, table.ModalityLUTType = [256, 0, 16], list(range(256)), "HU"
    table["LUTDescriptor"].VR = table["LUTData"].VR = "US"
    slices = series_slices(np.full((4, 4, 2), -1000.0))
    for one in slices:
        one.ModalityLUTSequence = [table]
        del one.RescaleSlope, one.RescaleIntercept
    with pytest.raises(ValueError, match="by a table.*NIfTI"):
        write(read(save(tmp_path / "table", slices)), tmp_path / "made")
    picture = read(save(tmp_path / "colour", [colour()]))
    with pytest.raises(ValueError, match="one channel"):
        write(picture, tmp_path / "made")
    with pytest.raises(ValueError, match="colour image"):
        write(picture[:1], tmp_path / "made")
    floats = series_slices(phantom()[:, :, :2])
    for index, one in enumerate(floats):
        del one.PixelData, one.PixelRepresentation, one.BitsStored, one.HighBit
        one.BitsAllocated, one.FloatPixelData = 32, phantom()[:, :, index].T.tobytes()
    with pytest.raises(ValueError, match="does not store whole numbers"):
        write(read(save(tmp_path / "floats", floats)), tmp_path / "made")
    assert not (tmp_path / "made").exists() and not (tmp_path / "made.dcm").exists()


def _fail_at(number: int):
    calls = []

    def fail(dataset, planes):
        calls.append(1)
        if len(calls) == number:
            raise OSError("disk full")
        _dicom_derived_pixels.set_pixels(dataset, planes)

    return fail


def test_nothing_half_written_stays(tmp_path, monkeypatch):
    image = read(series(tmp_path / "source"))
    made = write(image, tmp_path / "made")
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    for target, number in (("made", 5), ("new", 8)):
        monkeypatch.setattr(dicom_derived_series_writer, "set_pixels", _fail_at(number))
        with pytest.raises(OSError, match="disk full"):
            write(image, tmp_path / target)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "source"]
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_the_old_folder_comes_back_if_the_new_one_cannot_take_its_place(tmp_path, monkeypatch):
    image = read(series(tmp_path / "source"))
    made = write(image, tmp_path / "made")
    before = {path.name: path.read_bytes() for path in made.iterdir()}
    rename = os.replace

    def fail(source, target):
        if str(source).endswith(".part"):
            raise OSError("no rename")
        rename(source, target)

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no rename"):
        write(image, tmp_path / "made")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["made", "source"]
    assert {path.name: path.read_bytes() for path in made.iterdir()} == before


def test_an_older_derived_series_is_replaced_but_nothing_else_is(tmp_path):
    image = read(series(tmp_path / "source"))
    made = write(image, tmp_path / "made")
    first = {image.SeriesInstanceUID for image in by_position(made)}
    write(image, tmp_path / "made")
    second = {image.SeriesInstanceUID for image in by_position(made)}
    assert len(second) == 1 and first != second and len(list(made.iterdir())) == 8
    (made / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"made.*holds other things"):
        write(image, tmp_path / "made")
    assert len(list(made.iterdir())) == 9
    with pytest.raises(ValueError, match="never overwritten"):
        write(image, tmp_path / "source")
    (tmp_path / "link").symlink_to(tmp_path / "source")
    with pytest.raises(ValueError, match="never overwritten"):
        write(image, tmp_path / "link")
    assert len(list((tmp_path / "source").iterdir())) == 8
    single = read(tmp_path / "source/0000.dcm")
    with pytest.raises(ValueError, match="never overwritten"):
        write(single, tmp_path / "source/0000")
    assert pydicom.dcmread(tmp_path / "source/0000.dcm").ImageType[0] == "ORIGINAL"


def test_an_output_dtype_that_save_image_chooses_is_ignored(tmp_path):
    """SaveImage asks for uint8 for the suffix .dcm, which would leave nothing of a CT."""
    source = series(tmp_path / "source")
    save_image = SaveImage(tmp_path, output_ext=".dcm", writer=WRITER, print_log=False)
    assert save_image.init_kwargs["output_dtype"] == np.uint8
    save_image(read(source), filename=tmp_path / "made")
    for old, new in zip(by_position(source), by_position(tmp_path / "made"), strict=True):
        assert new.PixelData == old.PixelData


@pytest.mark.sample_data
@pytest.mark.parametrize("kernel", ["kernel_B_smooth", "kernel_L_sharp"])
def test_real_ct_comes_back_bit_for_bit(tmp_path, kernel):
    source = Path(os.environ["LABELFX_DATA"], "ct/lungdx_A0001", kernel)
    image = read(source)
    assert image.shape == (1, 512, 512, 20)
    made = by_position(write(Orientation("RAS", labels=None)(image), tmp_path / "made"))
    for old, new in zip(by_position(source), made, strict=True):
        assert np.array_equal(new.pixel_array, old.pixel_array) and new.PixelData == old.PixelData
        assert new.ImagePositionPatient == old.ImagePositionPatient and new.PatientID == old.PatientID
    shorter = write((image + 10).clamp(-1000, 1000), tmp_path / "other")
    assert torch.equal(read(shorter).as_tensor(), (image + 10).clamp(-1000, 1000).as_tensor())
