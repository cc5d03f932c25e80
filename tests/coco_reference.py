# SPDX-License-Identifier: Apache-2.0
"""Detections made by chance, what COCO's tools say about them, and the golden numbers of both.

The golden file was made once with pycocotools 2.0.11 in an environment that holds it beside this package's needs:

    python tests/coco_reference.py tests/metrics/coco_golden.json
"""

from __future__ import annotations

import contextlib
import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "metrics" / "coco_golden.json"
CAPS = (1, 10, 100, 300)
AREAS = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}


def detections(
    images: int, classes: int, *, seed: int = 0, objects: float = 5.6, extra: float = 12.0, dims: int = 2, crowd=0.0
) -> tuple[list[dict], list[dict]]:
    """Predictions and targets with corners on a grid of quarters; all scores differ, in float32 too."""
    rng = np.random.default_rng(seed)
    predictions, targets = [], []
    for image in range(images):
        number = int(rng.poisson(objects))
        low = np.round(rng.uniform(0, 400, (number, dims)) * 4) / 4
        size = np.round(np.exp(rng.uniform(np.log(8), np.log(160), (number, dims))) * 4) / 4
        labels = rng.integers(0, classes, number)
        copies = np.repeat(np.arange(number), rng.integers(0, 6, number)) if number else np.zeros(0, int)
        moved = np.concatenate([low, low + size], 1)[copies]
        moved += rng.normal(0, 0.12, moved.shape) * np.tile(size[copies], 2)
        wrong = rng.random(len(copies)) < 0.1
        told = np.where(wrong, rng.integers(0, classes, len(copies)), labels[copies])
        noise_low = rng.uniform(0, 400, (int(rng.poisson(objects * extra / 5.6)), dims))
        noise = np.concatenate([noise_low, noise_low + rng.uniform(8, 160, noise_low.shape)], 1)
        boxes = np.round(np.concatenate([moved, noise]) * 4) / 4
        boxes = np.concatenate([np.minimum(boxes[:, :dims], boxes[:, dims:] - 1), boxes[:, dims:]], 1)
        predictions.append(
            {
                "boxes": torch.tensor(boxes, dtype=torch.float32).reshape(-1, 2 * dims),
                "labels": torch.tensor(np.concatenate([told, rng.integers(0, classes, len(noise))])),
            }
        )
        targets.append(
            {
                "boxes": torch.tensor(np.concatenate([low, low + size], 1), dtype=torch.float32),
                "labels": torch.tensor(labels),
                "iscrowd": torch.tensor(rng.random(number) < crowd),
                "image_id": image,
            }
        )
    total = sum(len(prediction["labels"]) for prediction in predictions)
    scores = torch.tensor((rng.permutation(total) + 1) / (total + 1), dtype=torch.float32)
    for prediction, own in zip(predictions, scores.split([len(p["labels"]) for p in predictions]), strict=True):
        prediction["scores"] = own
    return predictions, targets


def with_masks(items: list[dict], shape: tuple[int, ...]) -> list[dict]:
    """The items with the ellipsoids in their boxes as masks (N, *shape)."""
    grid = np.stack(np.meshgrid(*(np.arange(n) + 0.5 for n in shape), indexing="ij"), -1)
    found = []
    for item in items:
        boxes = item["boxes"].double().numpy()
        low, high = boxes[:, : len(shape)], boxes[:, len(shape) :]
        offsets = [(grid - (a + b) / 2) / ((b - a) / 2) for a, b in zip(low, high, strict=True)]
        masks = np.stack([(o**2).sum(-1) <= 1 for o in offsets]) if offsets else np.zeros((0, *shape), bool)
        found.append({**item, "masks": torch.tensor(masks)})
    return found


def naive_iou(first: list[float], second: list[float]) -> float:
    """Intersection over union of two boxes, from the definition."""
    dims = len(first) // 2
    shared = math.prod(max(0.0, min(first[a + dims], second[a + dims]) - max(first[a], second[a])) for a in range(dims))
    volumes = [math.prod(box[a + dims] - box[a] for a in range(dims)) for box in (first, second)]
    return shared / (sum(volumes) - shared) if shared else 0.0


def coco_json(predictions: list[dict], targets: list[dict], kind: str, classes: int) -> tuple[dict, list]:
    """Ground truth and results in COCO's form. Identifiers begin at 1: 0 would mean unmatched."""
    if kind == "mask":
        from pycocotools import mask as encoder

    def annotations(items: list[dict], scored: bool) -> list[dict]:
        found = []
        for image, item in enumerate(items, 1):
            boxes, labels = item["boxes"].double().numpy(), item["labels"].tolist()
            rows = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1).tolist()
            for i, (row, label) in enumerate(zip(rows, labels, strict=True)):
                one = {"id": len(found) + 1, "image_id": image, "category_id": label + 1}
                if kind == "mask":
                    one["segmentation"] = encoder.encode(np.asfortranarray(item["masks"][i].numpy().astype(np.uint8)))
                    one["area"] = float(encoder.area(one["segmentation"]))
                else:
                    one |= {"bbox": row, "area": row[2] * row[3]}
                if scored:
                    one["score"] = float(item["scores"][i])
                else:
                    one["iscrowd"] = int(item["iscrowd"][i]) if "iscrowd" in item else 0
                    one.setdefault("bbox", row)
                found.append(one)
        return found

    size = tuple(targets[0]["masks"].shape[1:]) if kind == "mask" else (10**5, 10**5)
    truth = {
        "info": {},
        "images": [{"id": i, "height": size[0], "width": size[1]} for i in range(1, len(targets) + 1)],
        "categories": [{"id": k, "name": str(k)} for k in range(1, classes + 1)],
        "annotations": annotations(targets, False),
    }
    return truth, annotations(predictions, True)


def peer_results(
    truth: dict, results: list[dict], kind: str, *, class_agnostic: bool = False, module: str = "pycocotools"
) -> dict[str, float]:
    """What pycocotools (or faster_coco_eval) makes of it, under this package's names."""
    with contextlib.redirect_stdout(io.StringIO()):
        if module == "pycocotools":
            from pycocotools.coco import COCO
            from pycocotools.cocoeval import COCOeval as Evaluation
        else:
            from faster_coco_eval import COCO
            from faster_coco_eval import COCOeval_faster as Evaluation
        gt = COCO()
        gt.dataset = truth
        gt.createIndex()
        run = Evaluation(gt, gt.loadRes(results), "bbox" if kind == "box" else "segm")
        run.params.useCats = int(not class_agnostic)
        run.params.maxDets = list(CAPS)
        run.params.areaRng = [[0, 1e10], *map(list, AREAS.values())]
        run.params.areaRngLbl = ["all", *AREAS]
        run.evaluate()
        run.accumulate()
    precision, recall = run.eval["precision"], run.eval["recall"]  # (T, R, K, A, caps), (T, K, A, caps)

    def mean(values: np.ndarray) -> float:
        return float(values[values > -1].mean()) if (values > -1).any() else float("nan")

    start = f"{kind}_agnostic_" if class_agnostic else f"{kind}_"
    found = {f"{start}mAP": mean(precision[..., 0, 2])}
    found |= {f"{start}AP50": mean(precision[0, ..., 0, 2]), f"{start}AP75": mean(precision[5, ..., 0, 2])}
    found |= {f"{start}AR_{cap}": mean(recall[..., 0, m]) for m, cap in enumerate(CAPS)}
    for a, name in enumerate(AREAS, 1):
        found[f"{start}mAP_{name}"] = mean(precision[..., a, 2])
        found[f"{start}AR_300_{name}"] = mean(recall[..., a, 3])
    return found


GOLDEN_CLASSES, GOLDEN_SHAPE = 3, (240, 280)


def golden_items(stored: dict) -> tuple[list[dict], list[dict]]:
    """Predictions and targets of the golden file, with masks."""
    made = []
    for items in (stored["predictions"], stored["targets"]):
        tensors = [
            {
                "boxes": torch.tensor(item["boxes"], dtype=torch.float32).reshape(-1, 4),
                "labels": torch.tensor(item["labels"], dtype=torch.int64),
                **{key: torch.tensor(item[key]) for key in ("scores", "iscrowd") if key in item},
            }
            for item in items
        ]
        made.append(with_masks(tensors, GOLDEN_SHAPE))
    return made[0], made[1]


def make_golden() -> dict:
    predictions, targets = detections(8, GOLDEN_CLASSES, seed=5, objects=4, extra=5, crowd=0.15)
    stored = {
        "made with": "pycocotools 2.0.11, tests/coco_reference.py",
        # Half of the size: most boxes lie within the masks' picture.
        "predictions": [
            {"boxes": (p["boxes"] / 2).tolist(), "labels": p["labels"].tolist(), "scores": p["scores"].tolist()}
            for p in predictions
        ],
        "targets": [
            {"boxes": (t["boxes"] / 2).tolist(), "labels": t["labels"].tolist(), "iscrowd": t["iscrowd"].tolist()}
            for t in targets
        ],
    }
    found, true = golden_items(stored)
    expected: dict[str, float] = {}
    for kind in ("box", "mask"):
        for agnostic in (False, True):
            made = coco_json(found, true, kind, GOLDEN_CLASSES)
            expected |= peer_results(*made, kind, class_agnostic=agnostic)
    return {**stored, "expected": {k: None if np.isnan(v) else v for k, v in expected.items()}}


if __name__ == "__main__":
    text = json.dumps(make_golden(), separators=(",", ":"))
    Path(sys.argv[1]).write_text(text + "\n")
