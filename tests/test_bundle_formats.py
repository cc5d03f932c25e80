# SPDX-License-Identifier: Apache-2.0
"""Every bundle that is found trains, evaluates and predicts on NIfTI and on DICOM, 2-D and 3-D, in every orientation.

A bundle joins by a file ``bundle_cases/<stem>.py`` with its data and options; nothing here names one. Any other file
there, with ``BUNDLE = "<stem>"``, is another way to use that bundle.
"""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from dicom_samples import ORIENTATIONS, affine_of
from samples import discs, write_image

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import list_bundles, stem
from monai_labelfx.data import AutoReader, load_detection_report, load_detections
from monai_labelfx.ops import decode_run_lengths

NAMES = sorted(path.stem for path in (Path(__file__).parent / "bundle_cases").glob("*.py"))
CASES = [(kind, spatial_dims) for kind in ("nifti", "dicom") for spatial_dims in (2, 3)]


@pytest.mark.parametrize(("kind", "spatial_dims"), CASES)
@pytest.mark.parametrize("name", NAMES)
def test_every_format_and_orientation(name, kind, spatial_dims, tmp_path):
    case, bundle = _case(name)
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
        for postfix, output in case.OUTPUTS.items():
            if output == "boxes":
                _boxes_lie_in(predicted / f"{orientation}_{postfix}.mrk.json", array.shape, affine)
                continue
            result, own = _load(_output(predicted / f"{orientation}_{postfix}"))
            assert result.shape == array.shape, f"{orientation} {postfix}"
            assert np.allclose(own, affine, atol=1e-4), f"{orientation} {postfix} lost its geometry"
            if output == "masks":
                _masks_are_those_of_boxes(result, predicted, orientation)

    if kind == "dicom":
        for place in ("patient1/1.2.840.1", "patient2/1.2.840.1", "patient2/1.2.840.2"):
            write_image(tmp_path / "export" / place, np.rint(discs(case.SHAPES[spatial_dims], 9)[0]), kind)
        options = network + case.inference(spatial_dims)
        exported = _predict(bundle, tmp_path / "export", tmp_path / "exported", options)
        for postfix, output in case.OUTPUTS.items():
            end = {"boxes": "mrk.json", "masks": "dcm"}.get(output, "nii.gz")
            assert len(list(exported.rglob(f"*_{postfix}.{end}"))) == 3, "series of two patients ended in one file"
        _new_images(tmp_path / "twins", "nifti", case.SHAPES[spatial_dims])
        _same_as_from_nifti(
            case,
            images,
            predicted,
            _predict(bundle, tmp_path / "twins", tmp_path / "from_nifti", network + case.inference(spatial_dims)),
            _predict(bundle, tmp_path / "new", tmp_path / "dicom", network + case.inference(spatial_dims, "dicom")),
        )


def test_every_case_belongs_to_a_bundle():
    bundles = sorted(stem(bundle) for bundle in list_bundles())
    own = [name for name in NAMES if not hasattr(_case(name)[0], "BUNDLE")]
    assert own == bundles, "one file in bundle_cases for each bundle"
    assert {_case(name)[1] for name in NAMES} == set(bundles)


def _case(name: str) -> tuple[ModuleType, str]:
    """A file in bundle_cases, and its bundle."""
    case = importlib.import_module(f"bundle_cases.{name}")
    return case, getattr(case, "BUNDLE", name)


def _new_images(folder: Path, kind: str, shape: tuple[int, ...]) -> dict[str, Path]:
    """One image in each orientation, named after it."""
    return {
        name: write_image(folder / name, np.rint(discs(shape, seed)[0]).astype(np.int16), kind, name)
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


def _output(name: Path, *ends: str) -> Path:
    """The one file or folder that a prediction became."""
    found = [path for path in (name, *(Path(f"{name}{end}") for end in ends or (".nii.gz", ".dcm"))) if path.exists()]
    assert len(found) == 1, f"{name}: {found}"
    return found[0]


def _same_as_from_nifti(case, images: dict[str, Path], predicted: Path, from_nifti: Path, dicom: Path) -> None:
    """The same picture gives the same answer, whatever file it came from and whatever file the answer is."""
    for orientation in ORIENTATIONS:
        for postfix, kind in case.OUTPUTS.items():
            name = f"{orientation}_{postfix}"
            if kind == "boxes":
                _same_boxes([folder / f"{name}.mrk.json" for folder in (predicted, from_nifti, dicom)])
                _report_of(dicom / f"{name}.dcm", images[orientation], load_detections(predicted / f"{name}.mrk.json"))
                continue
            first, place = _load(_output(predicted / name))
            assert np.array_equal(first, _load(_output(from_nifti / name))[0].reshape(first.shape)), name
            array, affine = _load(_output(dicom / name, ".dcm"))
            array = array.reshape(first.shape)
            assert np.allclose(affine, place, atol=1e-4), name
            if kind in ("seg", "masks"):
                assert np.array_equal(array, first), name
            else:
                assert np.abs(array - first).max() <= 0.5 + 1e-3, name  # one stored step is 1 HU


def _boxes_lie_in(file: Path, shape: tuple[int, ...], affine: np.ndarray) -> None:
    """Boxes of an image, in its voxels and in mm; the corners in mm go back through the affine of the image itself."""
    found = load_detections(file)
    assert np.allclose(found["affine"], affine, atol=1e-4), f"{file.name} lost its geometry"
    axes = found["boxes"].shape[1] // 2
    assert len(found["boxes"]) > 1 and axes == (3 if len(shape) == 3 and shape[2] > 1 else 2), file.name
    for box, entry in zip(found["boxes"], json.loads(file.read_text())["labelfx"]["detections"], strict=True):
        ras = np.array(entry["corners_lps"]) * [-1, -1, 1]
        voxels = np.linalg.solve(affine[:3, :3], (ras - affine[:3, 3]).T).T[:, :axes] + 0.5
        assert (voxels > -1e-3).all() and (voxels < np.array(shape[:axes]) + 1e-3).all(), f"{file.name}: {box}"
        assert np.allclose([*voxels.min(axis=0), *voxels.max(axis=0)], box, atol=1e-3), f"{file.name}: {box}"


def _masks_are_those_of_boxes(numbers: np.ndarray, folder: Path, name: str) -> None:
    """Number k of the map is detection k, and where masks overlap that of the better score."""
    found = load_detections(folder / f"{name}_detections.mrk.json")
    rows = [row for row in json.loads((folder / "detections.coco.json").read_text()) if row["file_name"] == name]
    assert [row["score"] for row in rows] == found["scores"].tolist()
    masks = decode_run_lengths([row["segmentation"] for row in rows]).numpy()
    expected = np.where(masks.any(axis=0), masks.argmax(axis=0) + 1, 0)
    assert expected.any() and np.array_equal(numbers.reshape(expected.shape), expected), name
    for mask, box in zip(masks, found["boxes"], strict=True):
        places, (low, high) = np.argwhere(mask), np.split(np.asarray(box), 2)
        assert (places > low - 1).all() and (places < high).all(), f"{name}: a mask reaches out of its box"


def _same_boxes(files: list[Path]) -> None:
    first, *others = (load_detections(file) for file in files)
    for file, other in zip(files[1:], others, strict=True):
        assert np.array_equal(first["labels"], other["labels"]), file
        assert np.allclose(first["boxes"], other["boxes"], atol=1e-3), file
        assert np.allclose(first["scores"], other["scores"], atol=1e-4), file


def _report_of(file: Path, image: Path, expected: dict) -> None:
    """A DICOM structured report of the image holds the same boxes."""
    meta = AutoReader().get_data(AutoReader().read(image))[1]
    found = load_detection_report(file, meta=meta)
    order = [np.argsort(-one["scores"], kind="stable") for one in (found, expected)]
    for key, tolerance in {"boxes": 1e-2, "labels": 0, "scores": 1e-4}.items():
        first, second = (one[key][rows] for one, rows in zip((found, expected), order, strict=True))
        assert np.allclose(first, second, atol=tolerance), f"{file.name}: {key}"
