# SPDX-License-Identifier: Apache-2.0
"""prepare.promise12 on tiny folders of the same layouts."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest

from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.prepare.promise12 import prepare

SHAPE = (6, 5, 4)


def write(path: Path, array: np.ndarray, offset: str = "-10 -20 5") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = {"int16": "MET_SHORT", "int8": "MET_CHAR"}[array.dtype.name]
    path.write_text(
        "ObjectType = Image\nNDims = 3\nBinaryData = True\nBinaryDataByteOrderMSB = False\nCompressedData = False\n"
        f"TransformMatrix = 1 0 0 0 1 0 0 0 1\nOffset = {offset}\nCenterOfRotation = 0 0 0\n"
        "AnatomicalOrientation = RAI\nElementSpacing = 0.625 0.625 3.6\nITK_InputFilterName = MetaImageIO\n"
        f"DimSize = {' '.join(map(str, array.shape))}\nElementType = {kind}\nElementDataFile = {path.stem}.raw\n"
    )
    path.with_suffix(".raw").write_bytes(array.tobytes("F"))


def case(folder: Path, number: int, *, mask: bool = True, patient: int = 0) -> None:
    """Case ``number``, a patient of its own; in the test folders the same number is another ``patient``."""
    generator = np.random.default_rng(number + 100 * patient)
    write(folder / f"Case{number:02d}.mhd", generator.integers(0, 1000, SHAPE, dtype=np.int16))
    if mask:
        inside = np.zeros(SHAPE, np.int8)
        inside[1:4, 2:4, 1 : 2 + number % 3] = 1
        write(folder / f"Case{number:02d}_segmentation.mhd", inside)


@pytest.fixture
def source(tmp_path):
    for number in range(10):
        case(tmp_path / "raw" / f"TrainingData_Part{1 + number // 4}", number)
    return tmp_path / "raw"


def subjects(datalist: Path) -> dict[str, list[str]]:
    return {name: [item["subject"] for item in items] for name, items in load_datalist(datalist).items()}


def test_values_geometry_and_splits(source, tmp_path):
    datalist = prepare(source, tmp_path / "out", validation=0.2, test=0.1)
    assert datalist == tmp_path / "out" / "datalist.json"
    report = check_datalist(datalist, spatial_dims=3, allowed_labels=[1])
    assert report["faults"] == [] and report["warnings"] == []
    splits = load_datalist(datalist)
    assert {name: len(items) for name, items in splits.items()} == {"training": 7, "validation": 2, "test": 1}
    for item in (item for items in splits.values() for item in items):
        image, label = nibabel.load(item["image"]), nibabel.load(item["label"])
        number = int(item["subject"].removeprefix("Case"))
        expected = np.random.default_rng(number).integers(0, 1000, SHAPE, dtype=np.int16)
        assert np.array_equal(image.dataobj, expected) and image.get_data_dtype() == np.int16
        assert np.asarray(label.dataobj).sum() == 6 * (1 + number % 3) and label.get_data_dtype() == np.uint8
        np.testing.assert_allclose(image.affine @ [1, 1, 1, 1], [10 - 0.625, 20 - 0.625, 8.6, 1], rtol=1e-6)


def test_the_seed_decides(source, tmp_path):
    texts = [prepare(source, tmp_path / f"out{n}", seed=seed).read_text() for n, seed in enumerate((0, 0, 1))]
    assert texts[0] == texts[1] and json.loads(texts[1])["training"] != json.loads(texts[2])["training"]


def test_official_test_cases_and_cases_without_segmentation(source, tmp_path):
    for number in range(2):
        case(source / "test_data", number, patient=1)
        case(source / "livechallenge_test_data", number, mask=number == 0, patient=2)
    case(source / "TrainingData_Part3", 10, mask=False)
    datalist = prepare(source, tmp_path / "out", validation=0.2, test=0)
    found = subjects(datalist)
    assert found["test"] == ["livechallenge_Case00", "test_Case00", "test_Case01"]
    assert found["unlabelled"] == ["Case10", "livechallenge_Case01"]
    assert len(found["training"]) == 8 and not any("_" in name for name in found["training"] + found["validation"])
    assert not any("label" in item for item in load_datalist(datalist)["unlabelled"])
    assert check_datalist(datalist)["faults"] == []
    shares = subjects(prepare(source, tmp_path / "shares", validation=0.2, test=0.2))
    assert len(shares["test"]) == 5 and len(shares["training"]) == 6


def test_only_cases_without_segmentation(tmp_path):
    case(tmp_path / "raw", 3, mask=False)
    assert subjects(prepare(tmp_path / "raw", tmp_path / "out")) == {"unlabelled": ["Case03"]}


def test_the_split_of_the_paper(tmp_path):
    for number in range(50):
        case(tmp_path / "raw" / f"TrainingData_Part{1 + number // 20}", number)
    found = subjects(prepare(tmp_path / "raw", tmp_path / "out", paper_split=True))
    # random.seed(0); sorted(random.sample(range(50), 10)), as the code of the paper draws from the sorted cases
    assert [int(name[-2:]) for name in found["validation"]] == [2, 16, 19, 24, 25, 26, 30, 31, 32, 48]
    assert len(found["training"]) == 40 and set(found) == {"training", "validation"}


def test_malformed_input_gives_one_sentence_and_leaves_nothing(source, tmp_path):
    out = tmp_path / "out"

    def refused(match: str, error: type[Exception] = ValueError, **keywords) -> None:
        with pytest.raises(error, match=match) as caught:
            prepare(keywords.pop("source", source), out, **keywords)
        assert "\n" not in str(caught.value)
        assert not out.exists() and sorted(path.name for path in tmp_path.iterdir()) == ["empty", "raw"]

    (tmp_path / "empty").mkdir()
    refused(r"empty' holds no case, expected CaseNN\.mhd", source=tmp_path / "empty")
    (tmp_path / "empty" / "TrainingData_Part1.zip").touch()
    refused(r"holds no case \(but \.zip files: unpack them first\)", source=tmp_path / "empty")
    refused("absent' does not exist", FileNotFoundError, source=tmp_path / "absent")
    refused("validation must be a share", validation=1.0)
    refused("10 images leave none for training", validation=0.5, test=0.5)
    refused("paper_split=True needs the 50 segmented training cases, found 10", paper_split=True)
    part = source / "TrainingData_Part2"
    case(part, 3)
    refused("case Case03 is at .*Part2/Case03.* and at .*Part1/Case03.*, expected one")
    for path in part.glob("Case03*"):
        path.unlink()
    raw = (part / "Case04.raw").read_bytes()
    (part / "Case04.raw").write_bytes(raw[:-1])
    refused(r"Part2/Case04\.raw' .* announces 240 bytes of pixels, too many for a file of 239 bytes")
    (part / "Case04.raw").unlink()
    refused(r"Case04\.mhd' has its voxels in 'Case04\.raw', which is not in its folder")
    (part / "Case04.raw").write_bytes(raw)
    inside = np.ones(SHAPE, np.int8)
    write(part / "Case04_segmentation.mhd", inside, offset="-10 -20 6")
    refused(r"mask '.*Case04_segmentation\.mhd' lies up to 0\.28 voxels away")
    write(part / "Case04_segmentation.mhd", inside[:, :, :3])
    refused(r"Case04_segmentation\.mhd' has shape \(6, 5, 3\), but its image .* has \(6, 5, 4\)")
    write(part / "Case04_segmentation.mhd", 0 * inside)
    refused(r"segmentation '.*Case04_segmentation\.mhd' is empty")
    (part / "Case04.mhd").unlink()
    refused(r"Case04_segmentation\.mhd' has no image Case04\.mhd beside it")


def test_a_full_destination_is_left_alone(source, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    with pytest.raises(FileExistsError, match="out' is not empty"):
        prepare(source, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine"]
