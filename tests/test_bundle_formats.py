# SPDX-License-Identifier: Apache-2.0
"""Every bundle that is found trains, evaluates and predicts on NIfTI and on DICOM, 2-D and 3-D, in every orientation.

A bundle joins by a file ``bundle_cases/<stem>.py`` with its data and options; nothing here names one.
"""

from __future__ import annotations

import importlib
from pathlib import Path

import nibabel
import numpy as np
import pytest
from dicom_samples import ORIENTATIONS, affine_of
from samples import discs, write_image

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import list_bundles, stem
from monai_labelfx.data import AutoReader

BUNDLES = [stem(bundle) for bundle in list_bundles()]
CASES = [(kind, spatial_dims) for kind in ("nifti", "dicom") for spatial_dims in (2, 3)]


@pytest.mark.parametrize(("kind", "spatial_dims"), CASES)
@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_format_and_orientation(bundle, kind, spatial_dims, tmp_path):
    case = importlib.import_module(f"bundle_cases.{bundle}")
    datalist = case.make_data(tmp_path / "data", kind, spatial_dims)
    run = tmp_path / "run"
    common = ["--out", str(run), "--no-progress", "--datalist", str(datalist), *case.training(spatial_dims)]
    assert main(["run", bundle, "train", *common]) == 0
    assert main(["run", bundle, "evaluate", *common]) == 0

    images = _new_images(tmp_path / "new", kind, case.SHAPES[spatial_dims])
    network = ["--ckpt_path", str(run / "models" / "model.pt")]
    predicted = _predict(bundle, tmp_path / "new", tmp_path / "predicted", network + case.inference(spatial_dims))
    for orientation, image in images.items():
        array, affine = _load(image)
        assert np.allclose(affine[:3, [0, 1, 3]], affine_of(orientation)[:3, [0, 1, 3]], atol=1e-4)
        for postfix in case.OUTPUTS:
            result = nibabel.load(predicted / f"{orientation}_{postfix}.nii.gz")
            assert result.shape == array.shape, f"{orientation} {postfix}"
            assert np.allclose(result.affine, affine, atol=1e-4), f"{orientation} {postfix} lost its geometry"

    if kind == "dicom":
        for place in ("patient1/1.2.840.1", "patient2/1.2.840.1", "patient2/1.2.840.2"):
            write_image(tmp_path / "export" / place, np.rint(discs(case.SHAPES[spatial_dims], 9)[0]), kind)
        options = network + case.inference(spatial_dims)
        exported = _predict(bundle, tmp_path / "export", tmp_path / "exported", options)
        for postfix in case.OUTPUTS:
            assert len(list(exported.rglob(f"*_{postfix}.nii.gz"))) == 3, "series of two patients ended in one file"
        _new_images(tmp_path / "twins", "nifti", case.SHAPES[spatial_dims])
        _same_as_from_nifti(
            case,
            predicted,
            _predict(bundle, tmp_path / "twins", tmp_path / "from_nifti", network + case.inference(spatial_dims)),
            _predict(bundle, tmp_path / "new", tmp_path / "dicom", network + case.inference(spatial_dims, "dicom")),
        )


def test_every_case_belongs_to_a_bundle():
    names = sorted(path.stem for path in (Path(__file__).parent / "bundle_cases").glob("*.py"))
    assert names == sorted(BUNDLES), "one file in bundle_cases for each bundle"


def _new_images(folder: Path, kind: str, shape: tuple[int, ...]) -> dict[str, Path]:
    """One image in each orientation, named after it."""
    return {
        name: write_image(folder / name, np.rint(discs(shape, seed)[0]), kind, name)
        for seed, name in enumerate(ORIENTATIONS)
    }


def _predict(bundle: str, images: Path, out: Path, options: list[str]) -> Path:
    arguments = ["run", bundle, "inference", "--out", str(out), "--no-progress", "--dataset_dir", str(images)]
    assert main([*arguments, *options]) == 0
    return out


def _load(path: Path) -> tuple[np.ndarray, np.ndarray]:
    reader = AutoReader()
    array, meta = reader.get_data(reader.read(path))
    return array, np.asarray(meta["affine"])


def _same_as_from_nifti(case, predicted: Path, from_nifti: Path, dicom: Path) -> None:
    """The same picture gives the same answer, whatever file it came from and whatever file the answer is."""
    for orientation in ORIENTATIONS:
        for postfix, kind in case.OUTPUTS.items():
            name = f"{orientation}_{postfix}"
            first, second = (nibabel.load(folder / f"{name}.nii.gz").get_fdata() for folder in (predicted, from_nifti))
            assert np.array_equal(first, second), name
            folder = dicom / name
            array, affine = _load(folder if folder.is_dir() else dicom / f"{name}.dcm")
            array = array.reshape(first.shape)
            assert np.allclose(affine, nibabel.load(predicted / f"{name}.nii.gz").affine, atol=1e-4), name
            if kind == "seg":
                assert np.array_equal(array, first), name
            else:
                assert np.abs(array - first).max() <= 0.5 + 1e-3, name  # one stored step is 1 HU
