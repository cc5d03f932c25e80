# SPDX-License-Identifier: Apache-2.0
"""The CT denoising bundle and data that are no CT, do not go together, or do not fit its options: one sentence each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from dicom_samples import colour, save, series_slices
from patch_metric_bundle import Denoiser, call, options, predict, run
from PIL import Image
from pydicom.data import get_testdata_file

from monai_labelfx.data import save_datalist

SHAPE = (48, 40, 2)
FEW = {"steps_per_epoch": 1, "level": 2}


def body(seed: int, noise: float = 40.0) -> np.ndarray:
    """Half air, half tissue."""
    image = np.random.default_rng(seed).normal(0, noise, SHAPE)
    image[:20] -= 1000
    return np.rint(image).astype(np.float32)


def slices(seed: int, change: Callable[[pydicom.Dataset], None] = lambda image: None, **more: Any) -> list:
    made = series_slices(body(seed), **more)
    for image in made:
        image.ConvolutionKernel = "B30f"
        change(image)
    return made


def dicom(folder: Path, seed: int, change: Callable[[pydicom.Dataset], None] = lambda image: None, **more: Any) -> Path:
    return save(folder / f"series{seed}", slices(seed, change, **more))


def nifti(folder: Path, seed: int, dtype: str = "float32") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"image{seed}.nii"
    nibabel.save(nibabel.Nifti1Image(body(seed).astype(dtype), np.eye(4)), path)
    return path


def item(image: Path, number: int, domain: str, **more: Any) -> dict[str, Any]:
    return {"image": str(image), "domain": domain, "patient": f"p{number}", **more}


def good(folder: Path, write: Callable[[Path, int], Path] = nifti) -> dict[str, list[dict[str, Any]]]:
    """Two patients in each domain, and one to validate and to test."""
    number = iter(range(6))
    layout = {"training": ["low", "low", "high", "high"], "validation": ["low"], "test": ["low"]}
    return {
        split: [item(write(folder, n), n, domain) for domain, n in zip(domains, number, strict=False)]
        for split, domains in layout.items()
    }


def refused(capsys, status: int, *words: str) -> None:
    """Exit status 1, and a last line that says it all."""
    assert status == 1
    said = capsys.readouterr().err
    line = said.strip().splitlines()[-1]
    assert line.startswith("labelfx run: ") and "Traceback" not in said
    assert all(word in line for word in words), line


def train(folder: Path, splits: dict[str, list[dict[str, Any]]], **values: Any) -> int:
    datalist = save_datalist(folder / "datalist.json", splits, path_keys=("image", "reference"))
    return call("train", folder / "out", "--datalist", datalist, *options("train", **{**FEW, **values}))


def infer(folder: Path, image: Path, *presets: str, **values: Any) -> int:
    checkpoint = folder / "model.pt"
    torch.save(Denoiser(residual=True, preset=presets).network.state_dict(), checkpoint)
    more = [*(part for name in presets for part in ("--preset", name))]
    more += options("inference", residual=True, **{"level": 2, **values})
    return call("inference", folder / "out", "--dataset_dir", image, "--ckpt_path", checkpoint, *more)


def test_good_data_train(tmp_path):
    assert train(tmp_path / "nifti", good(tmp_path / "nifti")) == 0
    assert train(tmp_path / "dicom", good(tmp_path / "dicom", dicom)) == 0


# --- people -----------------------------------------------------------------------------------------------------------
def test_one_patient_in_both_domains(tmp_path, capsys):
    splits = good(tmp_path)
    splits["training"][2]["patient"] = splits["training"][0]["patient"]
    refused(capsys, train(tmp_path, splits), "p0", "low of training", "high of training", "shared_patients")
    assert train(tmp_path, splits, shared_patients=True) == 0


def test_one_patient_in_training_and_test(tmp_path, capsys):
    splits = good(tmp_path)
    splits["test"][0]["patient"] = splits["training"][1]["patient"]
    for accepted in (False, True):
        refused(capsys, train(tmp_path, splits, shared_patients=accepted), "p1", "training", "test")


def test_one_patient_under_two_names(tmp_path, capsys):
    splits = good(tmp_path, dicom)
    first, other = (Path(splits["training"][number]["image"]) for number in (0, 2))
    study = pydicom.dcmread(next(first.iterdir())).StudyInstanceUID
    for file in other.iterdir():
        image = pydicom.dcmread(file)
        image.StudyInstanceUID = study
        image.save_as(file)
    refused(capsys, train(tmp_path, splits), "StudyInstanceUID", "one patient", "series0", "series2")


@pytest.mark.parametrize(("key", "words"), [("domain", ("no domain", "low", "high")), ("patient", ("no patient",))])
def test_an_item_without_a_word(key, words, tmp_path, capsys):
    splits = good(tmp_path)
    del splits["training"][1][key]
    refused(capsys, train(tmp_path, splits), "training[1]", *words)


def test_one_domain_only(tmp_path, capsys):
    splits = good(tmp_path)
    splits["training"] = splits["training"][:2]
    refused(capsys, train(tmp_path, splits), "no items for training_high")


# --- what is no CT ----------------------------------------------------------------------------------------------------
def _other_modality(folder: Path) -> Path:
    return dicom(folder, 9, lambda image: setattr(image, "Modality", "MR"))


def _no_rescale(folder: Path) -> Path:
    return dicom(folder, 9, lambda image: delattr(image, "RescaleSlope"))


def _colour(folder: Path) -> Path:
    picture = colour()
    picture.Modality = "CT"
    return save(folder / "colour", [picture]) / "0000.dcm"


def _picture(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.arange(48 * 40, dtype=np.uint8).reshape(48, 40)).save(folder / "picture.png")
    return folder / "picture.png"


def _bytes(folder: Path) -> Path:
    return nifti(folder, 9, "uint8")


def _sizes(folder: Path) -> Path:
    made = slices(9)
    made[0].Columns //= 2
    made[0].PixelData = made[0].PixelData[: len(made[0].PixelData) // 2]
    return save(folder / "sizes", made)


def _stored_numbers(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(body(9) * 4096, np.eye(4)), folder / "large.nii")
    return folder / "large.nii"


def _normalised(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image((body(9) + 1200) / 4000, np.eye(4)), folder / "normalised.nii")
    return folder / "normalised.nii"


def _not_a_number(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    image = body(9)
    image[3, 4, 1] = np.nan
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), folder / "nan.nii")
    return folder / "nan.nii"


NO_CT: dict[str, tuple[Callable[[Path], Path], tuple[str, ...]]] = {
    "another modality": (_other_modality, ("'MR'", "expected 'CT'")),
    "no rescaling": (_no_rescale, ("RescaleSlope",)),
    "colour": (_colour, ("colour", "one grey value")),
    "a picture of 8 bits": (_picture, ("picture.png", "grey values", "HU")),
    "a volume of 8 bits": (_bytes, ("8 bits", "HU")),
    "slices of different size": (_sizes, ("sizes", "size")),
    "values beyond 16 bits": (_stored_numbers, ("large.nii", "expected HU between")),
    "values from 0 to 1": (_normalised, ("normalised.nii", "normalised")),
    "a value that is none": (_not_a_number, ("nan.nii", "NaN")),
}


@pytest.mark.parametrize("kind", NO_CT)
def test_no_ct_is_refused_by_training(kind, tmp_path, capsys):
    write, words = NO_CT[kind]
    splits = good(tmp_path)
    splits["training"][1]["image"] = str(write(tmp_path / "bad"))
    refused(capsys, train(tmp_path, splits), *words)


@pytest.mark.parametrize("kind", NO_CT)
def test_no_ct_is_refused_by_inference(kind, tmp_path, capsys):
    write, words = NO_CT[kind]
    refused(capsys, infer(tmp_path, write(tmp_path / "bad")), *words)
    assert not list((tmp_path / "out").glob("*_denoised*"))


def test_ct_compressed_with_loss_is_a_warning(tmp_path):
    source = Path(get_testdata_file("693_J2KI.dcm", download=False))
    with pytest.warns(UserWarning, match="compressed with loss"):
        assert infer(tmp_path, source, level=6) == 0
    assert len(list((tmp_path / "out").glob("*_denoised*"))) == 1


# --- what does not go together ----------------------------------------------------------------------------------------
def _kernel(image: pydicom.Dataset) -> None:
    image.ConvolutionKernel = "B70f"


MIXED = {
    "kernels": ({"change": _kernel}, ("2 kernels", "'B30f'", "'B70f'")),
    "pixel spacings": ({"spacing": (0.3, 0.4, 2.5)}, ("2 pixel spacings",)),
    "slice thicknesses": ({"spacing": (0.7, 0.9, 5.0)}, ("2 slice thicknesses", "2.5 mm", "5 mm")),
}


@pytest.mark.parametrize("kind", MIXED)
def test_a_mixed_domain_is_refused_unless_accepted(kind, tmp_path, capsys):
    own, words = MIXED[kind]
    splits = good(tmp_path, dicom)
    splits["training"][1]["image"] = str(dicom(tmp_path, 9, **own))
    refused(capsys, train(tmp_path, splits), "domain 'low' mixes", "expected images of one kind of noise", *words)
    assert train(tmp_path, splits, mixed_acquisition=True) == 0


def test_domains_may_differ_from_each_other(tmp_path):
    splits = good(tmp_path, dicom)
    for number in (2, 3):
        splits["training"][number]["image"] = str(dicom(tmp_path, number + 10, _kernel))
    assert train(tmp_path, splits) == 0


def test_a_reference_of_another_size(tmp_path, capsys):
    splits = good(tmp_path)
    nibabel.save(nibabel.Nifti1Image(body(3)[:-1], np.eye(4)), tmp_path / "reference.nii")
    splits["validation"][0]["reference"] = str(tmp_path / "reference.nii")
    refused(capsys, train(tmp_path, splits), "reference.nii", "(47, 40, 2)", "(48, 40, 2)")


# --- options ----------------------------------------------------------------------------------------------------------


def test_a_level_too_deep_says_how_deep_it_may_be(tmp_path, capsys):
    """db3 has six taps: 48 pixels allow log2(48 / 5) = 3 levels, and two slices none."""
    splits = good(tmp_path)
    words = ("level 4 is too deep", "image0.nii", "size 48", "the maximum for db3 is 3")
    refused(capsys, train(tmp_path, splits, level=4), *words)
    assert train(tmp_path, splits, level=3) == 0
    refused(capsys, infer(tmp_path, nifti(tmp_path, 0), level=4), *words)
    assert infer(tmp_path, nifti(tmp_path, 0), level=3) == 0
    volume = infer(tmp_path, nifti(tmp_path, 0), "3d", level=[3, 3, 1])
    refused(capsys, volume, "level 1 is too deep", "size 2", "the maximum for db3 is 0")


BAD_OPTIONS = {
    "strength": (1.5, ("strength", "0 to 1", "1.5")),
    "wavelet": ("db99", ("db99",)),
    "mode": ("zero", ("'zero'",)),
    "hu_scale": (0.0, ("scale",)),
    "tile_size": ([0, 8], ("tile_size",)),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_out_of_range(name, tmp_path, capsys):
    value, words = BAD_OPTIONS[name]
    refused(capsys, infer(tmp_path, nifti(tmp_path, 0), **{name: value}), *words)


def test_inference_without_a_checkpoint_says_how_to_get_one(tmp_path, capsys):
    arguments = ["--dataset_dir", nifti(tmp_path, 0), "--ckpt_path", tmp_path / "none.pt", *options("inference")]
    refused(capsys, call("inference", tmp_path / "out", *arguments), "no checkpoint at", "train one with")


def test_a_medium_that_no_image_has(tmp_path, capsys):
    splits = good(tmp_path)
    refused(capsys, train(tmp_path, splits, noise_medium=[2000, 2100]), "homogeneous patch")


def test_new_images_need_neither_domain_nor_patient(tmp_path):
    run("train", tmp_path / "out", save_datalist(tmp_path / "datalist.json", good(tmp_path)), **FEW)
    nifti(tmp_path / "new", 7)
    predict(tmp_path / "new", tmp_path / "made", tmp_path / "out" / "models" / "model.pt", level=2)
    assert [path.name for path in (tmp_path / "made").glob("*.nii*")] == ["image7_denoised.nii.gz"]
