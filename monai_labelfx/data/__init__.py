# SPDX-License-Identifier: Apache-2.0
"""Readers, writers, datalist checks and sample builders."""

from __future__ import annotations

from monai_labelfx.data.auto_reader import AutoReader
from monai_labelfx.data.box_datalist import add_boxes_to_datalist
from monai_labelfx.data.box_files import load_boxes
from monai_labelfx.data.box_samples import blobs, brain_slices, mr_volumes
from monai_labelfx.data.check_ct import CTFacts, check_ct, check_ct_domain
from monai_labelfx.data.check_datalist import CheckReport, CheckRow, check_datalist
from monai_labelfx.data.check_histology import check_histology
from monai_labelfx.data.check_images import check_images
from monai_labelfx.data.class_names import load_class_names
from monai_labelfx.data.coco_json import CocoItems, load_coco
from monai_labelfx.data.coco_writer import save_coco_dataset, save_coco_detections
from monai_labelfx.data.ct_domains import load_ct_domains
from monai_labelfx.data.ct_phantom import ct_phantom
from monai_labelfx.data.datalist import load_datalist, require_key, save_datalist
from monai_labelfx.data.denoiseg_samples import brain_mr, nuclei
from monai_labelfx.data.detection_samples import solids_and_shells
from monai_labelfx.data.detections import load_detections, save_detections
from monai_labelfx.data.dicom_derived_series_writer import DicomDerivedSeriesWriter
from monai_labelfx.data.dicom_seg_reader import DicomSegReader
from monai_labelfx.data.dicom_seg_writer import DicomSegWriter
from monai_labelfx.data.dicom_series import DicomSeries, find_dicom_series
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader
from monai_labelfx.data.dicom_sr_reader import load_detection_report
from monai_labelfx.data.dicom_sr_writer import save_detection_report
from monai_labelfx.data.find_images import find_images
from monai_labelfx.data.gland_samples import histology_glands, synthetic_glands
from monai_labelfx.data.ldct_samples import head_ct, lung_kernels, phantom_ldct, simulated_abdomen
from monai_labelfx.data.load_slide_tile import LoadSlideTiled
from monai_labelfx.data.nifti_writer import NiftiWriter
from monai_labelfx.data.organ_samples import organ_blocks, synthetic_organs
from monai_labelfx.data.output_layout import OutputLayout
from monai_labelfx.data.polygon_masks import polygons_to_mask
from monai_labelfx.data.quiet_monai import quiet_monai
from monai_labelfx.data.safe_globals import allow_safe_globals
from monai_labelfx.data.save_slide_tiles import SaveSlideTilesd
from monai_labelfx.data.slide_reader import SlideReader
from monai_labelfx.data.slide_tiles import slide_tiles
from monai_labelfx.data.tiff_reader import TiffReader
from monai_labelfx.data.tiff_writer import TiffWriter
from monai_labelfx.data.unpaired_dataset import UnpairedDataset

__all__ = [
    "AutoReader",
    "CTFacts",
    "CheckReport",
    "CheckRow",
    "CocoItems",
    "DicomDerivedSeriesWriter",
    "DicomSegReader",
    "DicomSegWriter",
    "DicomSeries",
    "DicomSeriesReader",
    "LoadSlideTiled",
    "NiftiWriter",
    "OutputLayout",
    "SaveSlideTilesd",
    "SlideReader",
    "TiffReader",
    "TiffWriter",
    "UnpairedDataset",
    "add_boxes_to_datalist",
    "allow_safe_globals",
    "blobs",
    "brain_mr",
    "brain_slices",
    "check_ct",
    "check_ct_domain",
    "check_datalist",
    "check_histology",
    "check_images",
    "ct_phantom",
    "find_dicom_series",
    "find_images",
    "head_ct",
    "histology_glands",
    "load_boxes",
    "load_class_names",
    "load_coco",
    "load_ct_domains",
    "load_datalist",
    "load_detection_report",
    "load_detections",
    "lung_kernels",
    "mr_volumes",
    "nuclei",
    "organ_blocks",
    "phantom_ldct",
    "polygons_to_mask",
    "quiet_monai",
    "require_key",
    "save_coco_dataset",
    "save_coco_detections",
    "save_datalist",
    "save_detection_report",
    "save_detections",
    "simulated_abdomen",
    "slide_tiles",
    "solids_and_shells",
    "synthetic_glands",
    "synthetic_organs",
]
