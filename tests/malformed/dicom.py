# SPDX-License-Identifier: Apache-2.0
"""DICOM files and folders that are broken, lie, or hold what is no series of slices."""

from __future__ import annotations

import io
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from dicom_samples import CASES, ORIENTATIONS, affine_of, colour, new_slice, phantom, save, series_slices
from pydicom.dataset import Dataset
from pydicom.uid import DeflatedExplicitVRLittleEndian, JPEGBaseline8Bit, generate_uid

from malformed.case import Case, file

PHANTOM = phantom()
_RAW = phantom((16, 12), seed=3)
SEGMENTS = (PHANTOM > 300).astype(np.uint8) + (PHANTOM > 700)  # overlapping nowhere: 0, 1, 2


def _slice() -> Dataset:
    return series_slices(_RAW[:, :, None])[0]


def encoded(image: Dataset) -> bytes:
    """The bytes of the file."""
    buffer = io.BytesIO()
    image.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def _edited(*, number: int | None = None, absent: tuple[str, ...] = (), **values: Any) -> Callable[[Path], Path]:
    """A series of which slice ``number``, or all slices, have other values in some elements, or lack them."""

    def write(folder: Path) -> Path:
        slices = series_slices(PHANTOM)
        for image in slices if number is None else [slices[number]]:
            for keyword, value in values.items():
                setattr(image, keyword, value)
            for keyword in absent:
                delattr(image, keyword)
        return save(folder, slices)

    return write


def _raw(old: bytes = b"", new: bytes = b"", *, size: int | None = None, **values: Any) -> Callable[[Path], Path]:
    """One slice with other values, then other bytes, then only the first (or all but the last) ``size`` bytes."""

    def content() -> bytes:
        image = _slice()
        for keyword, value in values.items():
            setattr(image, keyword, value)
        found = encoded(image)
        assert old in found
        return found.replace(old, new)[:size]

    return file("a.dcm", content)


def _with_text_slope(folder: Path) -> Path:
    image = _slice()
    del image.RescaleSlope
    image.add_new("RescaleSlope", "LO", "abc")
    return save(folder, [image]) / "0000.dcm"


def _without_preamble() -> bytes:
    return encoded(_slice())[132:]


def _without_meta() -> bytes:
    """Preamble and data set, without the group of the file's own elements that names the transfer syntax."""
    found = encoded(_slice())
    length = int.from_bytes(found[140:144], "little")
    return found[:132] + found[144 + length :]


def _mixed_sizes(folder: Path) -> Path:
    slices = series_slices(PHANTOM)
    slices[3].Columns, slices[3].PixelData = 8, slices[3].PixelData[: 8 * 12 * 2]
    return save(folder, slices)


def _copied(folder: Path) -> Path:
    save(folder, series_slices(PHANTOM), shuffled=False)
    shutil.copy(folder / "0002.dcm", folder / "copy.dcm")
    return folder


def _same_place(folder: Path) -> Path:
    slices = series_slices(PHANTOM)
    slices[3].ImagePositionPatient = slices[2].ImagePositionPatient
    return save(folder, slices)


def _frames(count: int, stored: int) -> Callable[[Path], Path]:
    """A multi-frame file without any position."""

    def write(folder: Path) -> Path:
        image = new_slice(np.zeros((12, 16), np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.3.1", modality="US")
        image.NumberOfFrames, image.PixelData = count, bytes(12 * 16 * 2 * stored)
        return save(folder, [image]) / "0000.dcm"

    return write


def _packed(syntax: str, content: bytes) -> Callable[[Path], Path]:
    from pydicom.encaps import encapsulate

    def write(folder: Path) -> Path:
        image = _slice()
        image.file_meta.TransferSyntaxUID = syntax
        image.PixelData = encapsulate([content])
        image["PixelData"].VR = "OB"
        return save(folder, [image]) / "0000.dcm"

    return write


def deflate_bomb() -> bytes:
    """A deflated data set of 3 GiB in 3 MB."""
    image = _slice()
    image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.PixelData = b""
    found = encoded(image)
    start = 144 + int.from_bytes(found[140:144], "little")
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    head = packer.compress(zlib.decompress(found[start:], -15)) + packer.flush(zlib.Z_FULL_FLUSH)
    block = packer.compress(bytes(2**20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return found[:start] + head + block * 3072 + packer.flush()


def _other(sop_class: str, modality: str) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        image = _slice()
        image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
        image.Modality = modality
        for keyword in ("Rows", "Columns", "PixelData", "PixelSpacing", "BitsAllocated", "BitsStored", "HighBit"):
            delattr(image, keyword)
        return save(folder, [image]) / "0000.dcm"

    return write


def segmentation() -> Dataset:
    """A binary DICOM SEG of two segments over the whole phantom."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.seg import Segmentation, SegmentDescription
    from pydicom.sr.codedict import codes

    slices = series_slices(PHANTOM)
    for image in slices:
        image.PatientName = "phantom^"
    by = AlgorithmIdentificationSequence("test", codes.cid7162.ArtificialIntelligence, "1")
    kind = (
        codes.cid7150.AnatomicalStructure,
        codes.cid7166.Organ if hasattr(codes.cid7166, "Organ") else codes.SCT.Organ,
    )
    described = [SegmentDescription(n, f"s{n}", *kind, "AUTOMATIC", by) for n in (1, 2)]
    labels = SEGMENTS.transpose(2, 1, 0)
    return Segmentation(
        slices,
        labels,
        "BINARY",
        described,
        generate_uid(),
        9,
        generate_uid(),
        1,
        "none",
        "none",
        "1",
        "1",
        omit_empty_frames=False,
    )


def _with_segmentation(folder: Path) -> Path:
    save(folder, [segmentation()], prefix="segmentation")
    return save(folder, series_slices(PHANTOM))


def _text_files(folder: Path) -> Path:
    for number in range(3):
        (folder / f"{number}.txt").write_text("no image")
    return folder


def _two_kinds(folder: Path) -> list[Path]:
    save(folder, [_slice()])
    (folder / "a.png").write_bytes(b"any")
    return [folder / "0000.dcm", folder / "a.png"]


def _good(write: Callable[[Path], Any], orientation: str = "axial") -> Case:
    return Case(write, result=PHANTOM, affine=affine_of(orientation))


def _one(write: Callable[[Path], Any]) -> Case:
    return Case(write, result=_RAW, affine=affine_of("axial"))


_GEOMETRY: dict[str, Case] = {
    **{f"regular, {name}": _good(CASES[f"regular, {name}"], name) for name in ORIENTATIONS},
    **{
        name: _good(CASES[name])
        for name in (
            *("InstanceNumber reversed", "no InstanceNumber", "constant InstanceNumber"),
            *("Enhanced multi-frame", "list of files"),
        )
    },
    "one slice missing": Case(CASES["one slice missing"], "gap"),
    "triple gap": Case(CASES["triple gap"], "gap"),
    "two series in one folder": Case(
        CASES["two series in one folder"], "holds 2 DICOM series.*choose one with series="
    ),
    "localizer of another size in the folder": Case(
        CASES["localizer of another size in the folder"], "holds 2 DICOM series.*choose one with series="
    ),
    "RGB ultrasound": Case(
        CASES["RGB ultrasound"],
        result=np.frombuffer(colour().PixelData, np.uint8).reshape(16, 20, 3).swapaxes(0, 1),
        channel=-1,
    ),
}

DICOM: dict[str, Case] = {
    **_GEOMETRY,
    "Rows absent": Case(_edited(absent=("Rows",)), "no usable Rows"),
    "Rows absent in one slice": Case(_edited(number=2, absent=("Rows",)), "no usable Rows"),
    "Rows 65535": Case(_edited(number=2, Rows=65535), "announces 2097120 bytes"),
    "PixelSpacing absent": Case(_edited(absent=("PixelSpacing",)), "PixelSpacing"),
    "PixelSpacing 0": Case(_edited(PixelSpacing=[0, 0.7]), "PixelSpacing"),
    "PixelSpacing negative in one slice": Case(_edited(number=1, PixelSpacing=[-0.9, 0.7]), "PixelSpacing"),
    "PixelSpacing of one number": Case(_edited(PixelSpacing=[0.7]), "no usable PixelSpacing, expected 2 numbers"),
    "PixelData absent": Case(_edited(number=2, absent=("PixelData",)), "pixel"),
    "position absent in one slice": Case(_edited(number=2, absent=("ImagePositionPatient",)), "osition"),
    "position NaN": Case(_raw(b"-30.0", b"nan  "), "osition"),
    "orientation of zeros": Case(_edited(ImageOrientationPatient=[0] * 6), "rientation"),
    "orientation of two equal axes": Case(_edited(ImageOrientationPatient=[1, 0, 0, 1, 0, 0]), "rientation"),
    "orientation turned in one slice": Case(
        _edited(number=4, ImageOrientationPatient=[0, 1, 0, 1, 0, 0]), "rientation"
    ),
    "slope is text": Case(_with_text_slope, "RescaleSlope|rescale"),
    "slope is text in a DS": Case(_raw(b"1.2345678", b"abcdefghi", RescaleSlope=1.2345678), "RescaleSlope|rescale"),
    "slope NaN": Case(_raw(b"1.2345678", b"nan      ", RescaleSlope=1.2345678), "RescaleSlope|rescale"),
    "odd length": _one(_raw(b"\x28\x00\x53\x10DS\x04\x001.0 ", b"\x28\x00\x53\x10DS\x03\x001.0")),
    "length beyond the file": Case(_raw(b"\x28\x00\x53\x10DS\x04\x00", b"\x28\x00\x53\x10UT\x04\x00"), "DICOM|pixel"),
    "length that takes in what follows": Case(
        _raw(b"\x08\x00\x16\x00UI\x1a\x00", b"\x08\x00\x16\x00UI\xb4\x00"), "no usable SOPClassUID"
    ),
    "bits 12 of 16 but 20 stored": Case(_edited(number=0, BitsStored=20, HighBit=19), "BitsStored 20"),
    "bits 0": Case(_edited(number=0, BitsAllocated=0), "BitsAllocated|announces|bits"),
    "three samples announced": Case(_edited(number=0, SamplesPerPixel=3), "sizes differ"),
    "mixed sizes": Case(_mixed_sizes, "size"),
    "a slice twice": Case(_copied, "1 of 9 slices lie where another one does"),
    "two slices in one place": Case(_same_place, "1 of 8 slices lie where another one does"),
    "pixels cut": Case(_raw(size=-100), "announces|pixel"),
    "pixels cut to nothing": Case(_raw(size=-16 * 12 * 2), "pixel|announces"),
    "header cut": Case(_raw(size=900), "cut off|no usable|DICOM"),
    "meta cut": Case(_raw(size=200), "cut off|cannot be read as DICOM"),
    "empty": Case(file("a.dcm", b""), "no DICOM file, or cut off"),
    "text": Case(file("a.dcm", b"This is no image.\n" * 40), "no DICOM file|cannot be read as DICOM"),
    "no preamble": _one(file("a.dcm", _without_preamble)),
    "no file meta": _one(file("a.dcm", _without_meta)),
    "frames without positions": Case(_frames(3, 3), "3 frames have no ImagePositionPatient"),
    "NumberOfFrames lies": Case(_frames(1000, 3), "announces 384000 bytes"),
    "NumberOfFrames 0": Case(_frames(0, 1), result=np.zeros((16, 12), np.float32)),
    "syntax that nobody decodes": Case(_packed("1.2.840.10008.1.2.4.107", b"\0" * 64), "HEVC"),
    "unknown syntax": Case(
        _raw(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0"), "1.2.840.10008.9.9.9|value in its header"
    ),
    "broken JPEG": Case(_packed(JPEGBaseline8Bit, b"\xff\xd8\xff\xe0" + b"\0" * 64), "JPEG"),
    "deflate bomb": Case(file("a.dcm", deflate_bomb), "decompression bomb"),
    "SEG": Case(
        lambda folder: save(folder, [segmentation()]) / "0000.dcm",
        result=SEGMENTS.astype(np.uint16),
        affine=affine_of("axial"),
    ),
    "SEG cut": Case(file("a.dcm", lambda: encoded(segmentation())[:-100]), "cut off"),
    "SEG beside its series": Case(_with_segmentation, result=PHANTOM, affine=affine_of("axial")),
    "structured report": Case(_other("1.2.840.10008.5.1.4.1.1.88.33", "SR"), "no image but 'Comprehensive SR"),
    "RTSTRUCT": Case(_other("1.2.840.10008.5.1.4.1.1.481.3", "RTSTRUCT"), "no image but 'RT Structure Set"),
    "folder of text files": Case(_text_files, "holds no DICOM file"),
    "DICOM and PNG as channels": Case(_two_kinds, "must be of one kind"),
}
