# SPDX-License-Identifier: Apache-2.0
"""Detection of instances in the table of formats: Mask R-CNN, trained by label maps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
from bundle_cases import cxr_detection as boxes
from detection_bundle import heads
from dicom_samples import ORIENTATIONS
from monai.data import MetaTensor
from monai.transforms import LoadImage
from samples import write_dataset

from monai_labelfx.data import AutoReader, DicomSegWriter, load_datalist, save_datalist

BUNDLE = "cxr_detection"
SHAPES = boxes.SHAPES
OUTPUTS = {"detections": "boxes", "instances": "masks"}
"""File name postfix of each prediction -> what it is."""
_RIVAL = ["--rival", "mask_rcnn", *(part for key, value in heads("mask_rcnn").items() for part in (f"--{key}", value))]


def make_data(folder: Path, kind: str, spatial_dims: int) -> Path:
    """A datalist whose images take turns with all orientations; label maps are NIfTI, of DICOM series DICOM SEG."""
    datalist = write_dataset(folder, kind, SHAPES[spatial_dims], labelled=4, orientations=list(ORIENTATIONS))
    if kind == "nifti":
        return datalist
    splits = load_datalist(datalist)
    for item in (item for items in splits.values() for item in items):
        item["label"] = str(_as_seg(item["image"], Path(item["label"])))
    return save_datalist(datalist, splits)


def _as_seg(series: Any, label: Path) -> Path:
    image = LoadImage(reader=AutoReader(), ensure_channel_first=True)(series)
    array = nibabel.load(label).get_fdata().reshape(image.shape)
    writer = DicomSegWriter()
    writer.set_data_array(MetaTensor(array, meta=image.meta), channel_dim=0)
    writer.set_metadata(image.meta)
    seg = label.with_name(label.name.replace(".nii.gz", ".dcm"))
    writer.write(seg, verbose=False)
    label.unlink()
    return seg


def training(spatial_dims: int) -> list[str]:
    """Options of training and evaluation."""
    return [*boxes.training(spatial_dims), *_RIVAL]


def inference(spatial_dims: int, *presets: str) -> list[str]:
    """Options of inference with the network that :py:func:`training` made."""
    return [*boxes.inference(spatial_dims, *presets), *_RIVAL]
