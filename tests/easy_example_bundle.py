# SPDX-License-Identifier: Apache-2.0
"""What the tests of the OEEM bundle share: tiny data, options of seconds, how they call it and read what it wrote."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import torch
from monai.bundle import ConfigParser
from monai.transforms import Compose

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import config_file, find_bundle, stage_files, stage_overlays
from monai_labelfx.commands.workflow import config_files, execute, merge_configs
from monai_labelfx.data import load_datalist, save_datalist, synthetic_glands, synthetic_organs
from monai_labelfx.transforms import write_patch_table

BUNDLE = find_bundle("easy_example")
METHOD = "easy_example"
STAGES = ("01_classify", "02_pseudo_masks")
PATH_KEYS = ("image", "label", "patches", "pseudo", "instances")
PRESETS = {2: ["small"], 3: ["3d"]}
STEPS = {"classifier_epochs": 1, "classifier_steps": 2, "max_epochs": 1, "steps_per_epoch": 2}
NETWORK = {"features": [4, 8, 8], "width": 0.03, "pyramid_features": 8, "scales": [1]}
"""Narrow networks, that of the presets and that of the paper, for all workflows."""
QUICK = {
    **STEPS,
    **NETWORK,
    "cam_features": 4,
    "cam_scales": [1],
    "batch_size": 2,
    "images_per_batch": 2,
    "patches_per_image": 2,
    "pictures": 1,
    "warm_up": 0,
}
SIZES: dict[int, dict[str, Any]] = {
    2: {"patch_size": 16, "patch_stride": 8, "input_size": [16, 16], "crop_size": [32, 32]},
    3: {"patch_size": 24, "patch_stride": 24, "input_size": [8, 8, 8], "crop_size": [16, 16, 8]},
}
"""The volumes have voxels of 2 x 2 x 4 mm."""


def glands(folder: Path, **more: Any) -> Path:
    """Pictures of 48 x 48 pixels with patches that hold both classes and patches that hold one."""
    return synthetic_glands(folder, **{"counts": (4, 2, 2), "size": 48, "scale": 0.4, "empty": 0.0, **more})


def organs(folder: Path, **more: Any) -> Path:
    """Volumes of 20 x 20 x 16 voxels."""
    return synthetic_organs(folder, **{"counts": (3, 1, 2), "size": (20, 20, 16), **more})


def arguments(values: dict[str, Any]) -> list[str]:
    """Command line options; ``a__b`` is the nested identifier ``a#b``."""
    return [part for k, v in values.items() for part in (f"--{k.replace('__', '#')}", json.dumps(v))]


def options(spatial_dims: int = 2, *presets: str, **values: Any) -> list[str]:
    """Options of training and evaluation, with changes; ``None`` takes one away."""
    quick = {key: value for key, value in {**QUICK, **SIZES[spatial_dims], **values}.items() if value is not None}
    return ["--preset", *PRESETS[spatial_dims], *presets, *arguments(quick)]


def call(workflow: str, out: Path, *more: Any) -> int:
    """Run a workflow of the bundle; returns the exit status."""
    return main(["run", METHOD, workflow, "--out", str(out), "--no-progress", *map(str, more)])


def run(
    workflow: str, out: Path, datalist: Path, *more: Any, dims: int = 2, presets: Sequence[str] = (), **values: Any
) -> Path:
    """Train or evaluate with narrow networks; returns the run folder."""
    assert call(workflow, out, "--datalist", datalist, *options(dims, *presets, **values), *more) == 0
    return out


def predict(images: Path, out: Path, checkpoint: Path, *more: Any, presets: Sequence[str] = (), **values: Any) -> Path:
    """Segment an image or a folder with the narrow network; returns the folder of the results."""
    own = ["--dataset_dir", images, "--ckpt_path", checkpoint, "--preset", *PRESETS[2], *presets, *more]
    assert call("inference", out, *own, *arguments({**NETWORK, **values})) == 0
    return out


def stage_config(name: str, *more: str) -> list[Path]:
    """The files of one stage, with other files of ``configs`` laid over it."""
    (file,) = [file for file in stage_files(BUNDLE, METHOD) if file.stem == name]
    return [*config_files(BUNDLE, "train", PRESETS[2], stage_overlays(file)), *(config_file(BUNDLE, f) for f in more)]


def run_stage(name: str, out: Path, datalist: Path, **values: Any) -> Path:
    """One stage alone, of 2-D data; returns its folder."""
    files = stage_config(name)
    quick = {key: value for key, value in {**QUICK, **SIZES[2]}.items() if key in merge_configs(files)}
    own = {"datalist": str(datalist), **quick, **{key.replace("__", "#"): value for key, value in values.items()}}
    execute(BUNDLE, "train", files, out, own, progress=False)
    return out


def parser_of(workflow: str, *presets: str, **values: Any) -> ConfigParser:
    """The bundle's configuration with the narrow network, not yet run."""
    parser = ConfigParser(merge_configs(config_files(BUNDLE, workflow, [*PRESETS[2], *presets])))
    parser.update({"bundle_root": str(BUNDLE), "device": "$torch.device('cpu')", **NETWORK})
    parser.update({key.replace("__", "#"): value for key, value in values.items()})
    return parser


def some_network(checkpoint: Path, *presets: str) -> Path:
    """Weights of a narrow network that has learnt nothing, and finds both classes in noise."""
    torch.manual_seed(0)
    parser = parser_of("inference", *presets)
    network = parser.get_parsed_content("network_def").eval()
    with torch.no_grad():
        logits = network(torch.randn(2, parser["in_channels"], 48, 48))
        last = [one for name, one in network.named_parameters() if name.endswith("bias") and len(one) == 2][-1]
        last[1] += (logits[:, 0] - logits[:, 1]).median()
    checkpoint.parent.mkdir(parents=True, exist_ok=True)
    torch.save(network.state_dict(), checkpoint)
    return checkpoint


def read_splits(datalist: Path) -> dict[str, list[dict[str, Any]]]:
    """The items of a datalist, with absolute paths."""
    return load_datalist(datalist, path_keys=PATH_KEYS)


def write_splits(path: Path, splits: dict[str, list[dict[str, Any]]]) -> Path:
    """A datalist of these items."""
    return save_datalist(path, splits, path_keys=PATH_KEYS)


def changed(folder: Path, datalist: Path, change: Callable[[dict[str, list[dict[str, Any]]]], None]) -> Path:
    """The datalist with a change of its items."""
    splits = read_splits(datalist)
    change(splits)
    folder.mkdir(parents=True, exist_ok=True)
    return write_splits(folder / "datalist.json", splits)


def ticks(folder: Path, datalist: Path, dims: int = 2, *, classes: Any = 2, unknown: bool = False) -> Path:
    """The datalist with a table of ticks in place of every mask; the ticks are what stage 1 makes of the masks."""
    quick = {key.replace("__", "#"): value for key, value in {**QUICK, **SIZES[dims]}.items()}
    parser = ConfigParser(merge_configs(config_files(BUNDLE, "train", PRESETS[dims])))
    parser.update(quick)
    parts = [parser.get_parsed_content(name) for name in ("load_transforms", "label_transforms")]
    label = Compose([one for part in parts for one in part])
    splits, rows = read_splits(datalist), []
    for item in (item for items in splits.values() for item in items):
        found = label({key: item[key] for key in ("image", "label")})
        marks = found["patch_labels"].new_full(found["patch_labels"].shape, -1) if unknown else found["patch_labels"]
        rows.append({"image": Path(item["image"]).name, "patches": found["patches"], "patch_labels": marks})
        del item["label"]
        item["patches"] = str(folder / "ticks.csv")
    folder.mkdir(parents=True, exist_ok=True)
    _write_table(folder / "ticks.csv", rows, classes, unknown)
    return write_splits(folder / "datalist.json", splits)


def _write_table(path: Path, rows: list[dict[str, Any]], classes: Any, unknown: bool) -> None:
    write_patch_table(path, rows, classes)
    if unknown:
        path.write_text(path.read_text().replace(",,\n", ",?,?\n"))


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def metrics(folder: Path) -> dict[str, float]:
    """What a run measured."""
    return read_json(folder / "metrics.json")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The network in a checkpoint."""
    content = torch.load(checkpoint, weights_only=True)
    return content.get("model", content)  # the best weights are alone in their file


def same_weights(first: Path, second: Path, name: str = "model.pt") -> bool:
    """Whether the checkpoints of two run folders hold the same numbers."""
    one, other = (weights(folder / "models" / name) for folder in (first, second))
    return list(one) == list(other) and all(torch.equal(value, other[key]) for key, value in one.items())


def pseudo_masks(out: Path) -> dict[str, np.ndarray]:
    """The pseudo masks of a run, by file name."""
    files = sorted((out / "stages" / STAGES[1] / "pseudo").rglob("*_pseudo.nii.gz"))
    return {file.name: np.asarray(nibabel.load(file).dataobj) for file in files}


def equal_runs(first: Path, second: Path) -> bool:
    """Whether two runs of the method have the same classifier, pseudo masks and segmentation network."""
    masks, others = pseudo_masks(first), pseudo_masks(second)
    return (
        all(same_weights(first / part, second / part) for part in (f"stages/{STAGES[0]}", "."))
        and list(masks) == list(others) != []
        and all(np.array_equal(mask, others[name]) for name, mask in masks.items())
    )
