# SPDX-License-Identifier: Apache-2.0
"""Whole slides through the bundle of OEEM: tiles for training, and maps of whole slides."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser
from slide_samples import tissue_picture, write_slide

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import find_bundle
from monai_labelfx.commands.workflow import config_files, merge_configs
from monai_labelfx.data import AutoReader, TiffReader

PRESETS = ["small", "slides"]
CUT = {"slide_tile_size": "64", "slide_overlap": "16", "tile_size": "[48, 48]", "pictures": "2"}


def segment(slides: Path, out: Path, checkpoint: Path, **options: str) -> dict[str, np.ndarray]:
    """The maps that `labelfx run easy_example inference --preset small slides` writes, x first."""
    values = {"dataset_dir": str(slides), "ckpt_path": str(checkpoint), **CUT, **options}
    arguments = [part for name, value in values.items() for part in (f"--{name}", value)]
    command = ["run", "easy_example", "inference", "--preset", *PRESETS, "--out", str(out), "--no-progress"]
    assert main([*command, *arguments]) == 0
    return {path.name: AutoReader().get_data([str(path)])[0] for path in sorted(out.glob("*.tif"))}


def checkpoint_of(network: torch.nn.Module, path: Path) -> Path:
    torch.save({"model": network.state_dict()}, path)
    return path


@pytest.fixture
def slides(tmp_path) -> Path:
    for number, size in enumerate([(200, 120), (50, 40)]):
        write_slide(tmp_path / "slides" / f"{'ab'[number]}.tif", tissue_picture(*size, seed=number), mpp=0.5)
    return tmp_path / "slides"


def test_an_untrained_network_on_slides(slides, tmp_path):
    bundle = find_bundle("easy_example")
    config = merge_configs(config_files(bundle, "inference", PRESETS)) | {
        "width": 0.0625,
        "device": torch.device("cpu"),
    }
    network = ConfigParser(config).get_parsed_content("network")
    checkpoint = checkpoint_of(network, tmp_path / "model.pt")
    maps = segment(slides, tmp_path / "out", checkpoint, width="0.0625", scales="[1]")
    assert {name: found.shape for name, found in maps.items()} == {
        "a_segmentation.tif": (200, 120),
        "b_segmentation.tif": (50, 40),
    }
    assert all(found.dtype == np.uint8 and found.max() <= 1 for found in maps.values())
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert "voxels_per_tile" in metrics
    assert len(list((tmp_path / "out").glob("*.png"))) == 1
    assert not list((tmp_path / "out").glob(".*"))


def pointwise(path: Path) -> tuple[Path, dict[str, str]]:
    """A network that sees single voxels: class 1 where green is below 160."""
    network = torch.nn.Conv2d(3, 2, 1)
    with torch.no_grad():
        network.weight.zero_()
        network.bias.zero_()
        network.weight[1, 1], network.bias[1] = -1.0, 160.0
    target = "{_target_: torch.nn.Conv2d, in_channels: 3, out_channels: 2, kernel_size: 1}"
    options = {
        "network_def": target,
        "size_divisor": "1",
        "scales": "[1]",
        "intensity_mean": "[0, 0, 0]",
        "intensity_std": "[1, 1, 1]",
    }
    return checkpoint_of(network, path), options


def test_the_map_is_that_of_the_whole_slide_right_side_up(slides, tmp_path):
    checkpoint, options = pointwise(tmp_path / "model.pt")
    maps = segment(slides, tmp_path / "out", checkpoint, **options)
    for number, size in enumerate([(200, 120), (50, 40)]):
        wanted = tissue_picture(*size, seed=number)[..., 1] < 160
        assert not any(np.array_equal(wanted, np.flip(wanted, axes)) for axes in (0, 1, (0, 1)))
        assert np.array_equal(maps[f"{'ab'[number]}_segmentation.tif"], wanted)


def test_another_size_of_pixels_and_one_slide(slides, tmp_path):
    checkpoint, options = pointwise(tmp_path / "model.pt")
    maps = segment(slides / "a.tif", tmp_path / "out", checkpoint, slide_mpp="1.25", slide_tissue="null", **options)
    found = maps["a_segmentation.tif"]
    assert found.shape == (80, 48)
    assert found[24:38, 14:34].all() and not found[12:18, 14:18].any() and not found[:9].any() and not found[42:].any()
    _, meta = TiffReader().get_data([str(tmp_path / "out" / "a_segmentation.tif")])
    assert meta["affine"].diagonal()[:2] == pytest.approx([0.00125] * 2, rel=1e-3)


def test_tiles_of_ticked_slides_train_the_classifier(tmp_path):
    """The way of a pathologist: slides and a table of ticks, tiles, and the first stage."""
    rows = ["image,x,y,width,height,class_0,class_1"]
    for number in range(4):
        write_slide(tmp_path / "raw" / f"s{number}.tif", tissue_picture(160, 128, seed=number), mpp=0.5)
        rows += [
            f"s{number}.tif,{x},{y},32,32,{0 if inside else 1},{inside}" for x, y, inside in [(30, 50, 1), (110, 5, 0)]
        ]
    (tmp_path / "ticks.csv").write_text("\n".join(rows) + "\n")
    data = tmp_path / "data"
    options = ["--ticks", str(tmp_path / "ticks.csv"), "--tile", "64", "--validation", "0.25"]
    assert main(["prepare", "slides", str(tmp_path / "raw"), str(data), *options]) == 0
    values = {"datalist": data / "datalist.json", "patch_size": 32, "patch_stride": 16, "input_size": "[32, 32]"}
    values |= {"classifier_epochs": 1, "classifier_steps": 2, "images_per_batch": 2, "patches_per_image": 2}
    values |= {"cam_features": 4, "device": "$torch.device('cpu')"}
    files = config_files(find_bundle("easy_example"), "train", ["small"])
    stage = find_bundle("easy_example") / "configs" / "stages" / "easy_example" / "01_classify.yaml"
    config = merge_configs([*files, stage]) | {name: str(v) if isinstance(v, Path) else v for name, v in values.items()}
    config |= {"input_size": [32, 32], "output_dir": str(tmp_path / "out"), "bundle_root": str(tmp_path)}
    trainer = ConfigParser(config).get_parsed_content("train#trainer")
    trainer.run()
    assert trainer.state.epoch == 1 and (tmp_path / "out" / "models" / "model.pt").is_file()
