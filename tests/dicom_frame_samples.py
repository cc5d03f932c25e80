# SPDX-License-Identifier: Apache-2.0
"""Single DICOM frames of chosen stored values and elements, right and broken."""

from __future__ import annotations

import numpy as np
import pydicom
from dicom_samples import new_slice
from pydicom import Dataset, Sequence
from pydicom.dataelem import RawDataElement
from pydicom.tag import Tag

STORAGE = "1.2.840.10008.5.1.4.1.1."
MAMMOGRAPHY = STORAGE + "1.2"


def ct(values, *, stored=16, slope=None, intercept=None, dtype="u2", **elements) -> Dataset:
    """A CT slice of stored values (rows, columns), or of one row; elements by keyword, None for absent."""
    pixels = np.asarray(values, dtype)
    pixels = pixels if pixels.ndim == 2 else pixels[None]
    image = new_slice(pixels)
    image.BitsAllocated, image.BitsStored, image.HighBit = 8 * pixels.itemsize, stored, stored - 1
    for keyword, value in {"RescaleSlope": slope, "RescaleIntercept": intercept, **elements}.items():
        if value is not None:
            setattr(image, keyword, value)
    return image


def xray(values, *, photometric="MONOCHROME1", stored=12, **elements) -> Dataset:
    """The same as a mammogram of 12 bits."""
    image = ct(values, stored=stored, **elements)
    image.SOPClassUID, image.Modality, image.PhotometricInterpretation = MAMMOGRAPHY, "MG", photometric
    return image


def with_table(image: Dataset, keyword: str, first: int, entries: list[int], bits: int = 16) -> Dataset:
    """``image`` with a sequence of one lookup table."""
    item = Dataset()
    item.LUTDescriptor, item.LUTData = [len(entries), first, bits], entries
    item["LUTData"].VR = "US"
    setattr(image, keyword, Sequence([item]))
    return image


def planted(image: Dataset, keyword: str, vr: str, value: bytes) -> Dataset:
    """A value as it may come from a file, which pydicom would not let us set."""
    tag = Tag(pydicom.datadict.tag_for_keyword(keyword))
    image[tag] = RawDataElement(tag, vr, len(value), value, 0, False, True)
    return image
