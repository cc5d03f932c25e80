# SPDX-License-Identifier: Apache-2.0
"""Train OEEM and its rivals on patch labels, and the fully supervised networks, and print the tables: labelfx compare.

    python benchmarks/easy_example_quality.py glands --out runs/glands --seeds 0 1 2
    LABELFX_DATA=... python benchmarks/easy_example_quality.py histology --out runs/histology --seeds 0 1 2
    LABELFX_DATA=... python benchmarks/easy_example_quality.py hippocampus --out runs/hippocampus --seeds 0 1 2
    python benchmarks/easy_example_quality.py organs --out runs/organs --seeds 0 1 2

- ``glands``: pictures of a seeded generator (``monai_labelfx.data.synthetic_glands``), 24 for training.
- ``histology``: real colon biopsies (LABELFX_DATA/histology/ebhi_seg), 23 for training.
- ``hippocampus``: real MR volumes (LABELFX_DATA/volume3d), 16 for training; "organ in this block", of 12 mm.
- ``organs``: seeded synthetic volumes, 8 for training; blocks of 32 mm.

Patch labels are made from masks, as in the paper. One thread, one or two minutes for each training: networks are small
and steps few, so that the tables compare methods under equal effort, not with what days on a GPU would reach. Settings
are those of all, but for what OWN says. The wall time of each run is in <out>/seed_<s>/<method>/complete_train.json.
Further options go to labelfx compare, such as ``--for ohem hard_fraction=0.5``.

A last table, <out>/same_images.md, follows the training and validation images through the three stages: patch labels
have a part in their pseudo masks and none in the predictions of test images, so that only there the stages compare.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.cli import main as labelfx  # noqa: E402
from monai_labelfx.commands.bundle_folder import find_bundle  # noqa: E402
from monai_labelfx.commands.compare import summary  # noqa: E402
from monai_labelfx.commands.run import comparison_layout  # noqa: E402
from monai_labelfx.commands.workflow import execute  # noqa: E402
from monai_labelfx.data import histology_glands, organ_blocks, synthetic_glands, synthetic_organs  # noqa: E402

PICTURES = {"input_size": [48, 48], "min_object": 30}
BLOCKS = {"min_object": 30, "batch_size": 4, "images_per_batch": 5, "classifier_epochs": 15, "val_interval": 5}
SETTINGS: dict[str, dict] = {
    "glands": {**PICTURES, "patch_size": 16, "patch_stride": 8, "cam_zoom": 3.0, "crop_size": [96, 96]},
    "histology": {
        **PICTURES,
        "patch_size": 24,
        "patch_stride": 12,
        "cam_zoom": 2.0,
        "crop_size": [96, 96],
        "classifier_epochs": 20,
        "max_epochs": 30,
    },
    "hippocampus": {
        **BLOCKS,
        "patch_size": 12,
        "patch_stride": 6,
        "input_size": [12, 12, 12],
        "crop_size": [32, 32, 32],
    },
    "organs": {
        **BLOCKS,
        "patch_size": 32,
        "patch_stride": 16,
        "input_size": [16, 16, 8],
        "picture_range": [-200, 300],
        "crop_size": [48, 48, 24],
    },
}
PRESETS = {"glands": ["small"], "histology": ["small", "intensity", "psp_net"], "hippocampus": ["3d"], "organs": ["3d"]}
NARROW = {"width": 0.125, "norm": "group", "pyramid_features": 32, "batch_size": 4}
LARGE = {"max_epochs": 6, "batch_size": 4}  # many times the time of a U-Net for each step
OWN: dict[str, dict] = {
    "adv_cam": {"climbing_steps": 4, "cam_scales": [1]},
    "sc_cam": {"classifier_epochs": 5},
    "full_supervision": {**LARGE, **NARROW, "learning_rate": 0.001},
    "unet": {"features": [16, 32, 64, 128, 256]},  # volumes: without the last level
    "res_unet": {"features": [16, 32, 64, 128, 256]},
    "medt": {**LARGE, "network_def#features": 4, "network_def#heads": 2},
    "kiu_net": {**LARGE, "network_def#features": 4, "network_def#depth": 2, "batch_size": 2},
    "uctransnet": {**LARGE, "network_def#features": 8, "network_def#layers": 2},
}
"""Of single methods, over the settings of all."""
LOSSES = ("easy_example", "mixed", "confidence_difference", "confidence_max", "ohem", "cross_entropy")
CAMS = ("seam", "adv_cam", "sc_cam")
FULL = ("full_supervision", "unet", "res_unet", "medt", "kiu_net", "uctransnet")
METHODS = {
    "glands": LOSSES + CAMS + FULL,
    "histology": LOSSES + CAMS + FULL,
    "hippocampus": ("easy_example", "ohem", "cross_entropy", "unet"),
    "organs": ("easy_example", "ohem", "cross_entropy", "unet"),
}


def make_data(name: str, folder: Path) -> Path:
    """The datalist, made once."""
    datalist = folder / "datalist.json"
    if datalist.is_file():
        return datalist
    if name == "glands":
        return synthetic_glands(folder, counts=(24, 6, 24), size=128, scale=0.6)
    if name == "histology":
        return histology_glands(folder)
    return organ_blocks(folder) if name == "hippocampus" else synthetic_organs(folder)


def same_images(out: Path, seeds: Sequence[str], names: Sequence[str]) -> str:
    """Table of the stages on training and validation images, whose pseudo masks have been measured too."""
    bundle = find_bundle("easy_example")
    values: dict[str, list[list[float]]] = {name: [] for name in names}
    for seed in seeds:
        for name in names:
            run = out / f"seed_{seed}" / name
            place = out / f"seed_{seed}" / "training_images" / name
            if not (place / "metrics.json").is_file():
                changes = {"ckpt_dir": str(run / "models"), "save_predictions": False, "pictures": 0}
                changes["validate#dataset#data"] = "$@splits['training'] + @splits['validation']"
                execute(bundle, "evaluate", [run / "config_evaluate.yaml"], place, changes, progress=False)
            found = [json.loads((folder / "metrics.json").read_text()) for folder in (run, place)]
            values[name].append([found[0]["CAM_mIoU"], found[0]["pseudo_mIoU"], found[1]["mIoU"], found[0]["mIoU"]])
    lines = [
        "| mIoU | CAM | pseudo mask | prediction, same images | prediction, test images |",
        "|---|---|---|---|---|",
    ]
    for name, runs in values.items():
        cells = [str(summary(column)) for column in zip(*runs, strict=True)]
        lines.append("| " + " | ".join([comparison_layout(bundle)["rows"][name], *cells]) + " |")
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(SETTINGS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--rivals", nargs="+", help="methods to run; default: all that make sense for the data")
    options, more = parser.parse_known_args()
    torch.set_num_threads(1)
    rivals = options.rivals or METHODS[options.data]
    settings = {"datalist": str(make_data(options.data, options.out / "data")), **SETTINGS[options.data]}
    arguments = ["compare", "easy_example", "--preset", *PRESETS[options.data], "--out", str(options.out)]
    arguments += ["--no-progress", "--seeds", *options.seeds, "--rivals", *rivals]
    for name in rivals:
        own = dict(OWN.get(name, {}))
        if "3d" in PRESETS[options.data] and "features" in own:
            own["features"] = own["features"][:4]
        if own:
            arguments += ["--for", name, *(f"{key}={value}" for key, value in own.items())]
    for key, value in settings.items():
        arguments += [f"--{key}", str(value)]
    if status := labelfx([*arguments, *more]):
        return status
    followed = [name for name in ("easy_example", "cross_entropy") if name in rivals]
    table = same_images(options.out, options.seeds, followed)
    (options.out / "same_images.md").write_text(table + "\n", encoding="utf-8")
    print(f"\n**Training and validation images through the stages**\n\n{table}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
