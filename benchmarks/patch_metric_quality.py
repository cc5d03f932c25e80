# SPDX-License-Identifier: Apache-2.0
"""Train five recipes, Noise2Void and non-local means on simulated pairs and print the tables: labelfx compare.

    LABELFX_DATA=... python benchmarks/patch_metric_quality.py abdomen --out runs/abdomen --seeds 0 1
    LABELFX_DATA=... python benchmarks/patch_metric_quality.py shifted --out runs/shifted
    python benchmarks/patch_metric_quality.py head --out runs/head

- ``abdomen``: 20 real slices (LABELFX_DATA/ct/lungdx_A0001, the smooth kernel) as the noise-free truth; quarter dose
  simulated in the projections for one part of them, full dose for another, pairs for the test
  (``monai_labelfx.data.simulated_abdomen``).
- ``shifted``: the same, but air of the high domain is 120 HU higher, as between the two domains of the paper's Table 2:
  a method that copies the high domain moves CT numbers.
- ``head``: the one 512 x 512 head slice that pydicom ships, the same way (``monai_labelfx.data.head_ct``).

Training is unpaired; only the test scores by pairs. One thread, minutes for each method: networks are narrow, patches
small, and the steps few, so that the tables compare what the methods do to CT numbers and noise under equal effort, not
what days on a GPU would reach. Settings are the same for all, but for what SETTINGS and OWN say. The wall time of each
run is in <out>/seed_<s>/<method>/complete_train.json. Further options go to labelfx compare, such as
``--for patch_metric learning_rate=0.001``.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.cli import main as labelfx  # noqa: E402
from monai_labelfx.data import head_ct, simulated_abdomen  # noqa: E402

COMMON = {
    "hu_scale": 200.0,
    "batch_size": 4,
    "patch_size": [64, 64],
    "patches": 64,
    "max_epochs": 10,
    "steps_per_epoch": 40,
    "val_interval": 1,
    "learning_rate": 0.001,
    "mixed_acquisition": True,
    "pictures": 2,
}
SETTINGS = {
    "abdomen": {"level": 6, "media": {"air": [-1010, -900], "soft_tissue": [-20, 120]}, "media_patch": 24},
    "head": {
        "level": 5,
        "media": {"air": [-1010, -900], "brain": [0, 80]},
        "media_patch": 24,
        "noise_medium": [0, 80],
        "noise_patch": 24,
    },
}
SETTINGS["shifted"] = SETTINGS["abdomen"]
CYCLE = {"network_def#features": 16, "network_def#blocks": 4, "network_def#residual": True}
CRITICS = {"cycle#discriminator_def#features": [16, 32, 64, 128]}
OWN: dict[str, dict] = {
    "patch_metric": {"learning_rate": 0.004},
    "cyclegan": {**CYCLE, **CRITICS},
    "wavcyclegan": {**CYCLE, **CRITICS},
    "gan_circle": {
        "network_def#features": 32,
        "network_def#min_features": 8,
        "learning_rate": 0.0001,
        "hu_scale": 2000.0,
        **CRITICS,
    },
    "invertible": {"network_def#growth": 16, "discriminator_def#features": [32, 64, 128]},
}
"""Of single methods, over the settings of all."""

METHODS = (
    "patch_metric",
    "invertible",
    "gan_circle",
    "wavcyclegan",
    "cyclegan",
    "noise2void",
    "non_local_means",
)


def make_data(name: str, folder: Path) -> Path:
    """The datalist, made once."""
    datalist = folder / "datalist.json"
    if datalist.is_file():
        return datalist
    if name == "head":
        return head_ct(folder)
    return simulated_abdomen(folder, Path(os.environ["LABELFX_DATA"]), high_air=120.0 if name == "shifted" else 0.0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=sorted(SETTINGS))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--rivals", nargs="+", default=list(METHODS), choices=METHODS, help="methods to run")
    options, more = parser.parse_known_args()
    torch.set_num_threads(1)
    datalist = make_data(options.data, options.out / "data")
    settings = {"datalist": str(datalist), **COMMON, **SETTINGS[options.data]}
    arguments = ["compare", "patch_metric", "--out", str(options.out), "--no-progress", "--seeds", *options.seeds]
    arguments += ["--rivals", *options.rivals]
    for name in options.rivals:
        if name in OWN:
            arguments += ["--for", name, *(f"{key}={value}" for key, value in OWN[name].items())]
    for key, value in settings.items():
        arguments += [f"--{key}", str(value)]
    return labelfx([*arguments, *more])


if __name__ == "__main__":
    sys.exit(main())
