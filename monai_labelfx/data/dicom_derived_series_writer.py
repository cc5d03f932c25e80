# SPDX-License-Identifier: Apache-2.0
"""Write a processed image back as a derived DICOM series of the series that it was read from."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from monai.config import DtypeLike, NdarrayOrTensor, PathLike
from monai.data import ImageWriter
from monai.utils import convert_data_type

from monai_labelfx._atomic import replacing
from monai_labelfx.data._dicom_derived_header import Derivation, as_displayed, derive, is_derived_here
from monai_labelfx.data._dicom_derived_pixels import display_limits, set_pixels, stored_plane
from monai_labelfx.data._dicom_source import DicomSource, source_array, source_of
from monai_labelfx.data._reading import reading

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["DicomDerivedSeriesWriter"]


class DicomDerivedSeriesWriter(ImageWriter):
    """Writer for ``SaveImage`` that turns a processed image into a derived series of its DICOM source.

    ``SaveImaged(writer="monai_labelfx.data.DicomDerivedSeriesWriter", output_ext=".dcm", resample=True)`` takes an
    image (1, x, y[, z]) that ``DicomSeriesReader`` has read, in the units it was read in (HU, ...). One file for each
    slice goes into a folder with the name of the given file without ``.dcm``; a source of one slice or one multi-frame
    file becomes one file with that name.

    Each file has the header of its source file: the same patient, study, frame of reference, position and rescaling.
    **So it names the patient**: that is what a PACS needs, and no way to anonymise. New are the UIDs, the series
    number and description, dates of creation, ImageType ``DERIVED``, references to the source images, the derivation
    (with this package's version) and the contributing equipment. Private elements, overlays, curves, icons, pixel
    statistics and digital signatures are not copied. Files are uncompressed (Explicit VR Little Endian); a lossy past
    stays on record.

    Pixels are ``rint((value - intercept) / slope)`` with the slope and intercept of each slice, clipped to the range of
    the source's BitsStored. Padded pixels (PixelPaddingValue) stay as in the source, and no other pixel becomes
    padding: a value that would is moved to the next one. An unchanged image gets its source's pixels, bit for bit.

    Projection X-ray that was read for display (``dicom_values`` "display": VOI and MONOCHROME1 applied) cannot be
    turned back into stored values; it becomes a MONOCHROME2 image of the displayed values, rounded and clipped to the
    range of the display, with PresentationLUTShape IDENTITY, the window of the whole range, and no padding value.

    Args:
        output_dtype: of no effect, the source's bit depth is kept; part of MONAI's interface.
        scale: must be None; values are never scaled.
        description: what was done, up to 48 ASCII characters, for DerivationDescription and SeriesDescription.
        series_number: SeriesNumber; default 100 times the source's plus 1.
        series_description: SeriesDescription; default the source's plus ``description``, at most 64 characters.

    Raises:
        ValueError: NaN or infinite values, several channels, an image of unknown or lost source, of another size or
            (without ``resample``) moved, a source read with ``on_irregular="resample"``, or one without whole-number
            grey values or a linear rescaling.

    Notes:
        ``SaveImage`` passes no keywords of its own: give ``writer=functools.partial(DicomDerivedSeriesWriter,
        description="Registered")``. With ``resample=True`` flips, axis swaps, pads and crops are undone exactly, other
        moves by linear interpolation whatever ``mode`` says. Where a crop does not cover the source, the source's
        pixels stay, and DerivationDescription counts them. Files appear all or none: an existing file is replaced by
        one rename, an existing folder is moved aside, replaced and then removed, and only if all files in it are
        derived images of this package.

    Example:
        >>> import functools
        >>> from monai.transforms import SaveImage
        >>> writer = functools.partial(DicomDerivedSeriesWriter, description="Registered", series_number=7)
        >>> save = SaveImage("out", output_ext=".dcm", writer=writer, resample=True)
    """

    def __init__(
        self,
        output_dtype: DtypeLike = None,
        scale: int | None = None,
        *,
        description: str = "Denoised",
        series_number: int | None = None,
        series_description: str | None = None,
    ) -> None:
        super().__init__()
        if scale is not None:
            raise ValueError(f"DicomDerivedSeriesWriter writes values as they are: scale must be None, got {scale}")
        _check_text("description", description, 48)
        if series_description is not None:
            _check_text("series_description", series_description, 64)
        if series_number is not None and not 0 <= series_number < 2**31:
            raise ValueError(f"series_number must be between 0 and 2147483647, got {series_number}")
        self.description = description
        self.series_number = series_number
        self.series_description = series_description
        self.array = np.empty(0)
        self.meta: Mapping[str, Any] = {}
        self.resample = False

    def set_data_array(  # type: ignore[override]
        self, data_array: NdarrayOrTensor, channel_dim: int | None = 0, squeeze_end_dims: bool = True
    ) -> None:
        """Take the image; ``squeeze_end_dims`` of MONAI's interface changes nothing."""
        array = convert_data_type(data_array, np.ndarray)[0]
        array = array[None] if channel_dim is None else np.moveaxis(array, channel_dim, 0)
        if array.shape[0] != 1:
            raise ValueError(f"a derived series has one channel, got an array of shape {tuple(data_array.shape)}")
        bad = 0 if array.dtype.kind in "biu" else int(array.size - np.count_nonzero(np.isfinite(array)))
        if bad:
            raise ValueError(f"the image holds {bad} values that are NaN or infinite, which DICOM pixels cannot hold")
        self.array = array

    def set_metadata(self, meta_dict: Mapping | None = None, resample: bool = True, **options: Any) -> None:
        """Take the source; ``resample`` allows to move the image back to it, other options are of no effect."""
        self.meta = meta_dict or {}
        self.resample = resample

    def write(self, filename: PathLike, verbose: bool = True) -> None:  # type: ignore[override]
        """Write the file or folder (see the class); it appears complete or not at all."""
        from pydicom.uid import generate_uid

        super().write(filename, verbose=verbose)
        source = source_of(self.meta)
        values = np.atleast_3d(source_array(self.array, self.meta, resample=self.resample, nearest=False)[0])
        derivation = Derivation(
            self.description,
            generate_uid(),
            self.series_number,
            self.series_description,
            datetime.now().astimezone(),
        )
        target = Path(filename)
        if source.slices > 1 and source.frames is None:
            target = target.with_suffix("") if target.suffix.lower() == ".dcm" else target
        _check_target(target, source)
        if source.frames is not None or source.slices == 1:
            with replacing(target) as temporary:
                self._write_one(source, 0, values, derivation, temporary)
            return
        digits = max(4, len(str(source.slices)))
        with _replacing_folder(target) as folder:
            for index in range(source.slices):
                path = folder / f"{index + 1:0{digits}d}.dcm"
                self._write_one(source, index, values[:, :, index : index + 1], derivation, path)

    def _write_one(
        self, source: DicomSource, index: int, values: np.ndarray, derivation: Derivation, target: Path
    ) -> None:
        """Write the file derived from file ``index`` of the source; ``values`` (x, y, frames)."""
        from pydicom import dcmread, dcmwrite

        path = source.files[index]
        with reading(path, "DICOM"):
            dataset = dcmread(path)
        _check_source(dataset, source, values, path)
        uncovered = int(np.count_nonzero(np.isnan(values))) if values.dtype.kind == "f" else 0
        frames: Sequence[int | None] = source.frames or [None]
        if source.meta.get("dicom_values") == "display":
            limits = display_limits(dataset)
            if uncovered:
                raise ValueError(
                    f"the image covers only part of its source {path!r}, whose displayed values are not stored in it: "
                    "save the whole image"
                )
            planes = [np.clip(np.rint(values[:, :, n].T.astype(np.float64)), *limits) for n in range(len(frames))]
            derive(dataset, derivation)
            as_displayed(dataset, *limits)
        else:
            planes = [stored_plane(values[:, :, n].T, dataset, frame, path) for n, frame in enumerate(frames)]
            derive(dataset, derivation, uncovered=uncovered)
        if dataset.get("InstanceNumber") is None:
            dataset.InstanceNumber = index + 1
        order = np.argsort([frame or 0 for frame in frames])
        set_pixels(dataset, [planes[n] for n in order])
        dcmwrite(target, dataset, implicit_vr=False, little_endian=True, enforce_file_format=True)


def _check_text(name: str, text: str, longest: int) -> None:
    printable = isinstance(text, str) and text.isascii() and text.isprintable() and "\\" not in text
    if not printable or not 0 < len(text.strip()) <= len(text) <= longest:
        raise ValueError(f"{name} must be 1 to {longest} printable ASCII characters without a backslash, got {text!r}")


def _check_target(target: Path, source: DicomSource) -> None:
    """Never overwrite the source, nor a folder that holds anything but our derived images."""
    place = os.path.realpath(target)
    for name in source.files:
        if os.path.realpath(name) == place or os.path.realpath(name).startswith(place + os.sep):
            raise ValueError(f"{str(target)!r} holds the DICOM source of the image, which is never overwritten")
    if target.is_dir() and not all(entry.is_file() and is_derived_here(str(entry)) for entry in target.iterdir()):
        raise ValueError(
            f"folder {str(target)!r} exists and holds other things than a derived series of this package: "
            "remove it or write elsewhere"
        )


def _check_source(dataset: Dataset, source: DicomSource, values: np.ndarray, path: str) -> None:
    """Whether the file is still what was read, and of a kind whose pixels can be written."""
    series = source.meta.get("dicom_series_instance_uid", "")
    if series and str(dataset.get("SeriesInstanceUID", "")) != series:
        raise ValueError(f"DICOM file {path!r} is of another series than when the image was read: read it again")
    count = int(dataset.get("NumberOfFrames") or 1)
    expected = (int(dataset.Columns), int(dataset.Rows), count)
    if values.shape != expected or (source.frames is not None and sorted(source.frames) != list(range(count))):
        raise ValueError(
            f"DICOM file {path!r} has (columns, rows, frames) {expected}, but its part of the image {values.shape}: "
            "write NIfTI instead"
        )
    if "SOPClassUID" not in dataset or "SOPInstanceUID" not in dataset:
        raise ValueError(f"DICOM file {path!r} has no SOPInstanceUID, so no image can be derived from it")
    if "PixelData" not in dataset or dataset.BitsAllocated not in (8, 16, 32):
        raise ValueError(f"DICOM file {path!r} does not store whole numbers of 8, 16 or 32 bits: write NIfTI instead")
    if dataset.get("PhotometricInterpretation") not in ("MONOCHROME1", "MONOCHROME2"):
        raise ValueError(f"DICOM file {path!r} is a colour image, but a derived series is grey: write NIfTI instead")


@contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """As ``replacing``, for a folder that may exist: it is moved aside, and back if the new one cannot replace it."""
    aside = target.with_name(f".{target.name}.{os.getpid()}.old")
    try:
        with replacing(target) as temporary:
            shutil.rmtree(temporary, ignore_errors=True)  # of a killed process with the same number
            temporary.mkdir()
            yield temporary
            if target.is_dir():
                shutil.rmtree(aside, ignore_errors=True)
                os.replace(target, aside)
    except BaseException:
        if aside.is_dir() and not target.exists():
            os.replace(aside, target)
        raise
    if aside.is_dir():
        shutil.rmtree(aside)
