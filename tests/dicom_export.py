# SPDX-License-Identifier: Apache-2.0
"""A tiny export as a PACS gives it: patients, studies, series, scouts and SEGs."""

from __future__ import annotations

from pathlib import Path

from dicom_samples import phantom, save, series_slices
from monai.data import MetaTensor
from monai.transforms import LoadImage

from monai_labelfx.data import DicomSegWriter


def write_export(folder: Path, patients: int = 5) -> Path:
    """Two CT series of each patient, the first with a SEG, and a scout, below folders of PACS names."""
    for patient in range(patients):
        for number in range(2):
            slices = series_slices(phantom(seed=10 * patient + number))
            for image in slices:
                image.PatientID, image.PatientName = f"Zzyzx{patient}", f"Zzyzx^{patient}"
            save(folder / f"{patient}" / "study" / f"{number}", slices)
        scout = series_slices(phantom((16, 12, 1)), orientation="coronal")
        scout[0].PatientID = f"Zzyzx{patient}"
        save(folder / f"{patient}" / "study" / "1", scout, prefix="scout")
        write_seg(folder / f"{patient}" / "study" / "0", folder / f"{patient}" / "study" / "seg.dcm")
    return folder


def write_seg(series: Path, path: Path) -> None:
    image = LoadImage(reader="monai_labelfx.data.AutoReader", ensure_channel_first=True)(series)
    writer = DicomSegWriter()
    writer.set_data_array(MetaTensor((image > 500).to(dtype=image.dtype), meta=image.meta), channel_dim=0)
    writer.set_metadata(image.meta)
    writer.write(path, verbose=False)
