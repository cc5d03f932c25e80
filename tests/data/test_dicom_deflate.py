# SPDX-License-Identifier: Apache-2.0
"""check_deflated: a bomb is refused in bounded memory, everything else passes."""

from __future__ import annotations

import pytest
from dicom_samples import new_slice, phantom
from malformed.dicom import deflate_bomb
from pydicom.uid import DeflatedExplicitVRLittleEndian

from monai_labelfx.data._dicom_deflate import check_deflated
from monai_labelfx.data._reading import ImageFileError


def test_a_bomb_is_refused(tmp_path):
    (tmp_path / "a.dcm").write_bytes(deflate_bomb())
    with pytest.raises(ImageFileError, match=r"a\.dcm' would expand from 3\d{6} to more than \d{9} bytes"):
        check_deflated(str(tmp_path / "a.dcm"))


@pytest.mark.parametrize("deflated", [True, False])
def test_other_files_pass(tmp_path, deflated):
    image = new_slice(phantom((12, 16)).astype("i2"))
    image.ImageComments = "1.2.840.10008.1.2.1.99"  # the words alone are no reason
    if deflated:
        image.file_meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    image.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    check_deflated(str(tmp_path / "a.dcm"))
    (tmp_path / "b.dcm").write_bytes(b"no DICOM")
    check_deflated(str(tmp_path / "b.dcm"))
