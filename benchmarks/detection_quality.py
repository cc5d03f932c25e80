# SPDX-License-Identifier: Apache-2.0
"""Train and evaluate all detectors of the bundle on one data set and print its tables: labelfx compare with settings.

    python benchmarks/detection_quality.py shapes2d --out runs/shapes2d --seeds 0 1 2
    python benchmarks/detection_quality.py shapes3d --out runs/shapes3d
    LABELFX_DATA=... python benchmarks/detection_quality.py lungs --out runs/lungs
    LABELFX_DATA=... python benchmarks/detection_quality.py findings --out runs/findings

- ``shapes2d``, ``shapes3d``: synthetic, ``monai_labelfx.data.solids_and_shells`` (two classes, 128 x 128 and 48^3).
- ``lungs``: 53 chest X-rays with two lungs each (LABELFX_DATA/cxr), split by patient.
- ``findings``: 31 chest X-rays with one finding or none. It has boxes only, so Mask R-CNN, BlendMask and SOLOv2, which
  learn from masks, are left out.

Networks are narrow, so that a run ends within minutes on one core; settings are the same for all detectors, but for
what follows from an architecture: anchors, which plan_anchors fits to the training boxes of the shapes for RetinaNet,
YOLOv3, Faster and Mask R-CNN, default boxes of SSD512, which follow from the image size, as do the grids of SOLOv2, and
what OWN says. All see the same images with the same augmentation; those that find instances draw their boxes around
masks that were resampled, the others resample boxes. Seeds are those of training (weights, order, augmentation); the
data stay. One thread; the wall time of each run is in <out>/seed_<s>/<detector>/complete_train.json.
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
from monai_labelfx.data import load_datalist, solids_and_shells  # noqa: E402
from monai_labelfx.data.prepare import coco  # noqa: E402
from monai_labelfx.ops import plan_anchors  # noqa: E402

NARROW = {
    "backbone": {"depth": 18, "features": 16},
    "pyramid_channels": 32,
    "head_depth": 2,
    "first_level": 2,
    "extra_levels": 0,
    "vgg": {"features": 12},
    "darknet": {"features": 12},
    "num_workers": 0,
    "learning_rate": 0.001,
    "val_interval": 5,
    "warmup_epochs": 2,
}
SETTINGS = {
    "shapes2d": {
        "num_classes": 2,
        "class_names": ["solid", "shell"],
        "image_size": None,
        "ssd_size": 128,
        "max_epochs": 20,
        "batch_size": 4,
    },
    "shapes3d": {
        "spatial_dims": 3,
        "num_classes": 2,
        "class_names": ["solid", "shell"],
        "image_size": None,
        "ssd_size": 48,
        "vgg": {"features": 8},
        "darknet": {"features": 4, "stage_strides": [1, 2, 2, 2, 2]},  # objects of 10 voxels: strides 4, 8, 16
        "max_epochs": 20,
        "batch_size": 2,
    },
    "lungs": {
        "num_classes": 2,
        "class_names": ["right_lung", "left_lung"],
        "image_size": 192,
        "ssd_size": 192,
        "first_level": 3,
        "extra_levels": 2,
        "max_epochs": 60,
        "batch_size": 4,
        "flip_probability": 0.0,
    },
    "findings": {
        "num_classes": 8,
        "image_size": 192,
        "ssd_size": 192,
        "first_level": 3,
        "extra_levels": 2,
        "max_epochs": 60,
        "batch_size": 4,
    },
}
TWO_STAGES = {"rpn_samples": 64, "roi_samples": 64, "head_channels": 128}
OWN = {
    "faster_rcnn": TWO_STAGES,
    "mask_rcnn": {**TWO_STAGES, "mask_channels": 32},
    "blendmask": {"base_channels": 32},
}
FROM_P2 = {"first_level": 2, "extra_levels": 1}  # as their papers have it
OWN_OF_DATA = {
    "shapes2d": {"solov2": {"solo_size": 128}},
    "shapes3d": {
        "solov2": {"solo_size": 48, "max_epochs": 40, "largest_component": True},
        "yolov3": {"learning_rate": 0.002},
    },
    "lungs": {"faster_rcnn": FROM_P2, "mask_rcnn": FROM_P2, "solov2": {**FROM_P2, "solo_size": 192}},
    "findings": {"faster_rcnn": FROM_P2},
}
"""Of single detectors, over the settings of all."""

BOXES = ("faster_rcnn", "ssd512", "cxr_detection", "yolov3", "fcos")
MASKS = ("mask_rcnn", "blendmask", "solov2")
"""By the names of labelfx compare, in the order of the paper; the latter need masks to learn from."""

ANCHORS = 2  # of each of the three or four levels


def make_data(name: str, folder: Path) -> Path:
    """The datalist, made once."""
    datalist = folder / "datalist.json"
    if datalist.is_file():
        return datalist
    if name.startswith("shapes"):
        dims = int(name[-2])
        counts = (200, 20, 60) if dims == 2 else (160, 10, 40)
        return solids_and_shells(folder, spatial_dims=dims, counts=counts)
    source = Path(os.environ["LABELFX_DATA"]) / "cxr"
    file = {"lungs": "lungs_instances.coco.json", "findings": "findings.coco.json"}[name]
    shares = {"lungs": (0.15, 0.25), "findings": (0.15, 0.35)}[name]
    return coco.prepare(source, folder, annotations=file, validation=shares[0], test=shares[1], masks=name == "lungs")


def planned(datalist: Path, settings: dict) -> dict:
    """Anchors from the boxes of the training split, small ones on fine levels; YOLOv3 has three levels."""
    dims = settings.get("spatial_dims", 2)
    boxes = [torch.tensor(item["box"]).reshape(-1, 2 * dims) for item in load_datalist(datalist)["training"]]
    boxes = torch.cat([one.float() for one in boxes])
    if settings["image_size"]:
        return {}  # boxes are in voxels of the file: published anchors fit films
    fine = plan_anchors(boxes, ANCHORS * 4).shapes.view(4, ANCHORS, dims).tolist()
    coarse = plan_anchors(boxes, ANCHORS * 3).shapes.view(3, ANCHORS, dims).tolist()
    return {"anchor_sizes": fine, "anchor_scales": [1.0], "anchor_ratios": [], "yolo_anchors": coarse}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=SETTINGS)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", nargs="+", default=["0"])
    parser.add_argument("--detectors", nargs="+", default=["all"])
    args, more = parser.parse_known_args()
    torch.set_num_threads(1)
    datalist = make_data(args.data, args.out / "data")
    settings = {**NARROW, **SETTINGS[args.data]}
    settings |= planned(datalist, settings)
    options = [part for key, value in settings.items() for part in (f"--{key}", text(value))]
    known = BOXES if args.data == "findings" else (*BOXES, *MASKS)
    detectors = known if args.detectors == ["all"] else args.detectors
    for name in detectors:
        own = {**OWN.get(name, {}), **OWN_OF_DATA.get(args.data, {}).get(name, {})}
        if own:
            options += ["--for", name, *(f"{key}={text(value)}" for key, value in own.items())]
    command = ["compare", "cxr_detection", "--datalist", str(datalist), "--out", str(args.out), "--no-progress"]
    sys.exit(labelfx([*command, "--seeds", *args.seeds, "--rivals", *detectors, *options, *more]))


def text(value: object) -> str:
    """As the command line takes it."""
    return str(value).replace("None", "null")


if __name__ == "__main__":
    main()
