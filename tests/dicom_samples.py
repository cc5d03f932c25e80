# SPDX-License-Identifier: Apache-2.0
"""Synthetic DICOM series of known geometry: every orientation, and the ten cases that readers get wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

SPACING = (0.7, 0.9, 2.5)  # mm along x (a row), y (a column) and from slice to slice
ORIGIN = (-10.0, -20.0, -30.0)  # LPS, mm
_ANGLE = np.deg2rad(20.0)
ORIENTATIONS: dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]] = {
    # direction of a row, of a column, and from slice to slice; ascending along the normal (row x column)
    "axial": (np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, 0, 1.0])),
    "sagittal": (np.array([0, 1.0, 0]), np.array([0, 0, -1.0]), np.array([-1.0, 0, 0])),
    "coronal": (np.array([1.0, 0, 0]), np.array([0, 0, -1.0]), np.array([0, 1.0, 0])),
    "oblique": (
        np.array([np.cos(_ANGLE), np.sin(_ANGLE), 0]),
        np.array([-np.sin(_ANGLE) * np.cos(0.3), np.cos(_ANGLE) * np.cos(0.3), np.sin(0.3)]),
        np.array([np.sin(_ANGLE) * np.sin(0.3), -np.cos(_ANGLE) * np.sin(0.3), np.cos(0.3)]),
    ),
    # gantry tilt: the slices are shifted along y as the table moves
    "tilted": (np.array([1.0, 0, 0]), np.array([0, 1.0, 0]), np.array([0, np.sin(0.2), np.cos(0.2)])),
}


def affine_of(orientation: str, spacing: tuple[float, ...] = SPACING) -> np.ndarray:
    """The affine (RAS, mm) that a reader must give for a series that :py:func:`write_series` wrote."""
    affine = np.eye(4)
    for axis, (direction, size) in enumerate(zip(ORIENTATIONS[orientation], spacing, strict=True)):
        affine[:3, axis] = direction * size
    affine[:3, 3] = ORIGIN
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def phantom(shape: tuple[int, ...] = (16, 12, 8), seed: int = 0) -> np.ndarray:
    """Whole HU values of no symmetry, (x, y[, z]), between -1000 and 1000, exact in every format."""
    return np.random.default_rng(seed).integers(-1000, 1001, shape).astype(np.float32)


def new_slice(pixels: np.ndarray, *, sop_class: str = CTImageStorage, modality: str = "CT") -> Dataset:
    """A minimal single-frame image of stored values (rows, columns), without geometry; 16 bit, MONOCHROME2."""
    image = Dataset()
    image.file_meta = FileMetaDataset()
    image.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    image.SOPClassUID = image.file_meta.MediaStorageSOPClassUID = sop_class
    image.SOPInstanceUID = image.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    image.StudyInstanceUID, image.SeriesInstanceUID = generate_uid(), generate_uid()
    image.FrameOfReferenceUID = generate_uid()
    image.Modality, image.PatientID, image.PatientName = modality, "phantom", "phantom"
    image.PatientBirthDate = image.PatientSex = image.StudyID = image.AccessionNumber = ""
    image.StudyDate = image.StudyTime = image.ReferringPhysicianName = image.PositionReferenceIndicator = ""
    image.SeriesNumber = image.InstanceNumber = 1
    image.Manufacturer, image.ImageType = "", ["ORIGINAL", "PRIMARY", "AXIAL"]
    image.PhotometricInterpretation, image.SamplesPerPixel = "MONOCHROME2", 1
    image.BitsAllocated, image.BitsStored, image.HighBit = 16, 16, 15
    image.PixelRepresentation = int(pixels.dtype.kind == "i")
    image.Rows, image.Columns = pixels.shape
    image.PixelData = np.ascontiguousarray(pixels).tobytes()
    return image


def series_slices(
    array: np.ndarray,
    *,
    orientation: str = "axial",
    spacing: tuple[float, ...] = SPACING,
    slope: float = 1.0,
    intercept: float = -1024.0,
) -> list[Dataset]:
    """The slices, in the order of their positions, of a regular CT series of HU values (x, y, z)."""
    row, column, step = ORIENTATIONS[orientation]
    study, series, frame = generate_uid(), generate_uid(), generate_uid()
    slices = []
    for number in range(array.shape[2]):
        image = new_slice(np.rint((array[:, :, number].T - intercept) / slope).astype(np.uint16))
        image.StudyInstanceUID, image.SeriesInstanceUID, image.FrameOfReferenceUID = study, series, frame
        image.InstanceNumber = number + 1
        image.ImageOrientationPatient = [float(f"{v:.10f}") for v in (*row, *column)]
        image.ImagePositionPatient = [float(f"{v:.9f}") for v in np.array(ORIGIN) + step * spacing[2] * number]
        image.PixelSpacing = [spacing[1], spacing[0]]
        image.SliceThickness = spacing[2]
        image.RescaleSlope, image.RescaleIntercept = slope, intercept
        slices.append(image)
    return slices


def save(folder: Path, slices: list[Dataset], *, prefix: str = "", shuffled: bool = True) -> Path:
    """Write slices as files; their names are in no useful order unless ``shuffled`` is false."""
    folder.mkdir(parents=True, exist_ok=True)
    order = np.random.default_rng(1).permutation(len(slices)) if shuffled else np.arange(len(slices))
    for name, image in zip(order, slices, strict=True):
        image.save_as(folder / f"{prefix}{name:04d}.dcm", enforce_file_format=True)
    return folder


def write_series(folder: Path, array: np.ndarray, **options) -> Path:
    """A regular CT series of HU values (x, y, z) as a folder of files; options of :py:func:`series_slices`."""
    return save(folder, series_slices(array, **options))


def enhanced(array: np.ndarray, *, orientation: str = "axial") -> Dataset:
    """The same series as one Enhanced CT multi-frame image, made by highdicom from the single slices."""
    from highdicom.legacy import LegacyConvertedEnhancedCTImage

    return LegacyConvertedEnhancedCTImage(
        series_slices(array, orientation=orientation),
        series_instance_uid=generate_uid(),
        series_number=2,
        sop_instance_uid=generate_uid(),
        instance_number=1,
    )


def colour(shape: tuple[int, int] = (20, 16)) -> Dataset:
    """An RGB ultrasound still image of (columns, rows), without geometry."""
    pixels = np.random.default_rng(0).integers(0, 256, (shape[1], shape[0], 3)).astype(np.uint8)
    image = new_slice(pixels[..., 0].astype(np.uint16), sop_class="1.2.840.10008.5.1.4.1.1.6.1", modality="US")
    image.PhotometricInterpretation, image.SamplesPerPixel, image.PlanarConfiguration = "RGB", 3, 0
    image.BitsAllocated, image.BitsStored, image.HighBit, image.PixelRepresentation = 8, 8, 7, 0
    image.PixelData = pixels.tobytes()
    return image


def _numbered(number: Callable[[int], int | None]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        slices = series_slices(phantom())
        for index, image in enumerate(slices):
            image.InstanceNumber = number(index)
            if image.InstanceNumber is None:
                del image.InstanceNumber
        return save(folder, slices)

    return write


def _without(*absent: int) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return save(folder, [s for n, s in enumerate(series_slices(phantom())) if n not in absent])

    return write


def _two_series(folder: Path) -> Path:
    save(folder, series_slices(phantom()), prefix="a")
    return save(folder, series_slices(phantom(seed=1)[:, :, :5]), prefix="b")


def _with_localizer(folder: Path) -> Path:
    slices = series_slices(phantom())
    scout = series_slices(phantom((24, 20, 1), seed=2), orientation="coronal")[0]
    scout.StudyInstanceUID = slices[0].StudyInstanceUID
    scout.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
    save(folder, [scout], prefix="scout")
    return save(folder, slices)


def _one_file(make: Callable[[], Dataset]) -> Callable[[Path], Path]:
    def write(folder: Path) -> Path:
        return save(folder, [make()]) / "0000.dcm"

    return write


def _list_of_files(folder: Path) -> list[Path]:
    return sorted(write_series(folder, phantom()).iterdir())


CASES: dict[str, Callable[[Path], Path | list[Path]]] = {
    **{
        f"regular, {name}": (lambda folder, name=name: write_series(folder, phantom(), orientation=name))
        for name in ORIENTATIONS
    },
    "InstanceNumber reversed": _numbered(lambda index: 100 - index),
    "one slice missing": _without(3),
    "triple gap": _without(3, 4),
    "two series in one folder": _two_series,
    "localizer of another size in the folder": _with_localizer,
    "no InstanceNumber": _numbered(lambda index: None),
    "constant InstanceNumber": _numbered(lambda index: 1),
    "Enhanced multi-frame": _one_file(lambda: enhanced(phantom())),
    "RGB ultrasound": _one_file(colour),
    "list of files": _list_of_files,
}
"""Name -> a function that writes the case into an empty folder and returns what a user would hand to the reader.

The pixels are those of ``phantom()`` (for the second series ``phantom(seed=1)[:, :, :5]``), axial unless named.
"""
