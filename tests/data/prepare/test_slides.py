# SPDX-License-Identifier: Apache-2.0
"""prepare.slides: tiles, ticks, masks and splits of small slides."""

from __future__ import annotations

import json
import warnings
from pathlib import Path

import numpy as np
import pytest
from monai.transforms import Compose, EnsureChannelFirstd, LoadImaged
from PIL import Image
from slide_samples import tissue_picture, write_slide

from monai_labelfx.cli import main
from monai_labelfx.data import check_datalist, load_datalist
from monai_labelfx.data.auto_reader import AutoReader
from monai_labelfx.data.check_histology import check_histology
from monai_labelfx.data.prepare.slides import prepare
from monai_labelfx.transforms.read_patch_labels import ReadPatchLabelsd

KEYS = ["image", "label", "patches"]
CLASSES = ["stroma", "gland"]
HEAD = "image,x,y,width,height,stroma,gland\n"


@pytest.fixture
def slides(tmp_path) -> Path:
    """Six slides of three patients."""
    for number in range(6):
        picture = tissue_picture(256, 128, seed=number)
        write_slide(tmp_path / "raw" / f"P{number // 2}-{number}.tif", picture, mpp=0.5)
    return tmp_path / "raw"


def masks_of(folder: Path, slides: Path, *, step: int = 1, end: str = "") -> Path:
    for path in slides.glob("*.tif"):
        labels = np.zeros((256, 128), np.uint8)
        labels[40:80, 40:60] = 1
        write_slide(folder / f"{path.stem}{end}.tif", np.ascontiguousarray(labels[::step, ::step]), levels=1)
    return folder


def test_tiles_without_loss_split_by_slide(slides, tmp_path):
    path = prepare(slides, tmp_path / "out", tile=32, validation=0.3, test=0.2)
    splits = load_datalist(path, path_keys=KEYS)
    items = [item for part in splits.values() for item in part]
    assert list(splits) == ["training", "validation", "test"] and len(items) == 6 * 6, "6 tiles with tissue each"
    groups = [{item["slide"] for item in part} for part in splits.values()]
    assert sum(map(len, groups)) == 6 == len(set.union(*groups)) and [len(group) for group in groups] == [3, 2, 1]
    for item in items:
        x, y = item["position"]
        picture = tissue_picture(256, 128, seed=int(item["slide"][-1]))
        found, _ = AutoReader().get_data([item["image"]])
        assert np.array_equal(found, picture[x : x + 32, y : y + 32]) and item["mpp"] == pytest.approx(0.5, rel=1e-3)
        assert Path(item["image"]).name == f"{item['slide']}_x{x}_y{y}.png"
    assert check_datalist(path, spatial_dims=2)["faults"] == []
    check_histology(splits, patch=16)
    assert json.loads(path.read_text())["tile"] == 32
    again = prepare(slides, tmp_path / "again", tile=32, validation=0.3, test=0.2)
    assert json.loads(again.read_text()) == json.loads(path.read_text())


def test_ticks_arrive_on_the_voxels_they_were_put_on(slides, tmp_path):
    rows = {"P0-0.tif": [(40, 40, 16, 16, 1, 0), (58, 60, 16, 10, 0, 1)], "P1-2.tif": [(200, 100, 20, 20, "", 0)]}
    rows["P2-5.tif"] = [(64, 32, 32, 32, 1, 1)]
    ticks = tmp_path / "ticks.csv"
    ticks.write_text(HEAD + "".join(f"{name},{','.join(map(str, r))}\n" for name, own in rows.items() for r in own))
    with pytest.warns(UserWarning, match=r"3 of 6 slides, such as 'P0-1', have neither ticks nor a mask"):
        path = prepare(slides, tmp_path / "out", ticks=ticks, classes=CLASSES, tile=32, validation=0.3)
    splits = load_datalist(path, path_keys=KEYS)
    load = Compose(
        [LoadImaged("image", reader=AutoReader()), EnsureChannelFirstd("image"), ReadPatchLabelsd(classes=CLASSES)]
    )
    found = {}
    for item in (item for part in splits.values() for item in part):
        loaded = load(item)
        picture = tissue_picture(256, 128, seed=int(item["slide"][-1]))
        for (x, y, w, h), labels in zip(loaded["patches"].tolist(), loaded["patch_labels"].tolist(), strict=True):
            left, above = x + item["position"][0], y + item["position"][1]
            own = loaded["image"][:, x : x + w, y : y + h].numpy()
            assert np.array_equal(np.moveaxis(own, 0, -1), picture[left : left + w, above : above + h])
            found.setdefault(f"{item['slide']}.tif", []).append(
                (left, above, w, h, *["" if n < 0 else n for n in labels])
            )
    assert {name: sorted(own) for name, own in found.items()} == {name: sorted(own) for name, own in rows.items()}
    assert json.loads(path.read_text())["slides_left_out"] == 3


@pytest.mark.parametrize(("step", "end"), [(1, ""), (2, "_segmentation")])
def test_masks_of_the_size_of_the_slide_or_smaller(step, end, slides, tmp_path):
    folder = masks_of(tmp_path / "masks", slides, step=step, end=end)
    path = prepare(slides, tmp_path / "out", masks=folder, tile=48, overlap=8, validation=0)
    labels = np.zeros((256, 128), np.uint8)
    labels[40:80, 40:60] = 1
    items = load_datalist(path, path_keys=KEYS)["training"]
    for item in items:
        x, y = item["position"]
        found, _ = AutoReader().get_data([item["label"]])
        assert np.array_equal(found, labels[x : x + 48, y : y + 48])
    assert sum(AutoReader().get_data([item["label"]])[0].any() for item in items) >= 6
    assert check_datalist(path, spatial_dims=2, allowed_labels=[1])["faults"] == []


def test_tiles_of_another_size_of_pixels(slides, tmp_path):
    write_slide(slides / "P3-6.tif", tissue_picture(128, 64, seed=6), mpp=1.0)
    with pytest.raises(ValueError, match="more than 10% apart, expected one magnification"):
        prepare(slides, tmp_path / "out", tile=32)
    assert not (tmp_path / "out").exists()
    splits = load_datalist(prepare(slides, tmp_path / "out", mpp=1.0, tile=32, validation=0.2))
    items = [item for part in splits.values() for item in part]
    assert {round(item["mpp"], 3) for item in items} == {1.0} and {item["slide"] for item in items} > {"P3-6", "P0-0"}
    check_histology(splits)


def test_patients_stay_together(slides, tmp_path):
    table = tmp_path / "patients.csv"
    table.write_text("Slide;Patient\n" + "".join(f"P{n // 2}-{n}{'.tif' * (n % 2)};p{n // 2}\n" for n in range(6)))
    found = [
        load_datalist(prepare(slides, tmp_path / "a", patients=table, tile=64)),
        load_datalist(prepare(slides, tmp_path / "b", patient_pattern=r"^(P\d)-", tile=64)),
        load_datalist(prepare(slides, tmp_path / "c", patient_pattern=r"P\d", tile=64)),
    ]
    for splits in found:
        groups = [{item["patient"] for item in part} for part in splits.values()]
        assert [len(group) for group in groups] == [2, 1] and not groups[0] & groups[1]
        assert all(item["patient"][1] == item["slide"][1] for part in splits.values() for item in part)


def test_folders_and_small_slides(tmp_path):
    for name in ("x/a.tif", "y/a.tif", "y/b.svs", "y/b.tif"):
        write_slide(tmp_path / "raw" / name, tissue_picture(40, 24), levels=1)
    items = load_datalist(prepare(tmp_path / "raw", tmp_path / "out", validation=0))["training"]
    assert [item["slide"] for item in items] == ["x/a", "y/a", "y/b.svs", "y/b.tif"]
    assert len({item["image"] for item in items}) == 4 and Image.open(items[0]["image"]).size == (40, 24)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ticks": "far.csv"}, r"far\.csv', line 2: the tick x=250 y=0 20 x 20 reaches out of slide"),
        ({"ticks": "none.csv"}, "there is no table of patch labels"),
        ({"masks": "nowhere"}, "masks 'nowhere' does not exist"),
        ({"masks": "empty"}, r"holds no mask of a slide, expected <slide>\.tif, such as P0-0\.tif"),
        ({"masks": "other"}, r"mask '.*' has \(256, 100\) pixels, which is not the shape of slide"),
        ({"masks": "twice"}, "slide 'P0-0' has 2 masks below"),
        ({"patients": "far.csv"}, r"has the columns .*, expected 'slide' and 'patient', each once"),
        ({"patients": "some.csv"}, r"slide 'P0-1' has 0 patients, expected one in .*some\.csv"),
        ({"patients": "two.csv"}, "gives slide 'P0-0' two patients"),
        ({"patients": "short.csv"}, "expected a slide and its patient in each row"),
        ({"patient_pattern": "X"}, "slide 'P0-0' has 0 patients, expected one match of patient_pattern 'X'"),
        ({"patient_pattern": "("}, "is no regular expression"),
        ({"patients": "some.csv", "patient_pattern": "P"}, "exclude each other"),
        ({"validation": 0.5, "test": 0.5}, "leave none for training"),
        ({"level": 7}, "has no level 7"),
    ],
)
def test_bad_input_is_one_sentence_and_leaves_nothing(options, message, slides, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("far.csv").write_text(HEAD.replace("stroma,gland", "class_0,class_1") + "P0-0.tif,250,0,20,20,1,0\n")
    Path("some.csv").write_text("slide,patient\nP0-0,1\n")
    Path("two.csv").write_text("slide,patient\nP0-0,1\nP0-0,2\n")
    Path("short.csv").write_text("slide,patient\nP0-0\n")
    Path("empty").mkdir()
    for name in ("other/P0-0.tif", "twice/P0-0_a.tif", "twice/P0-0_b.tif"):
        write_slide(Path(name), np.zeros((256, 100 if "other" in name else 128), np.uint8), levels=1)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        prepare(slides, "out", tile=32, **options)
    assert "\n" not in str(error.value) and not Path("out").exists()


def test_destination_and_source(slides, tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").touch()
    with pytest.raises(FileExistsError, match="is not empty"):
        prepare(slides, tmp_path / "full")
    (tmp_path / "none").mkdir()
    with pytest.raises(FileNotFoundError, match="holds no slide"):
        prepare(tmp_path / "none", tmp_path / "out")
    (slides / "P0-0.tif").write_bytes(b"no TIFF at all")
    with pytest.raises(ValueError, match=r"P0-0\.tif' cannot be read as TIFF"):
        prepare(slides, tmp_path / "out")


def test_from_the_command_line(slides, tmp_path, capsys):
    arguments = ["--tile", "64", "--patient_pattern", r"^P\d", "--mpp", "1.0"]
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        assert main(["prepare", "slides", str(slides), str(tmp_path / "out"), *arguments]) == 0
    assert "datalist.json" in capsys.readouterr().out
    assert main(["check", str(tmp_path / "out" / "datalist.json")]) == 0
