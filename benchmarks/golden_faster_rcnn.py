# SPDX-License-Identifier: Apache-2.0
"""Make tests/detectors/golden_faster_rcnn.json: what torchvision's Faster R-CNN returns with weights from a formula.

Needs torchvision, which the package does not:

    pip install torchvision
    python benchmarks/golden_faster_rcnn.py tests/detectors/golden_faster_rcnn.json

Weights are drawn by parameter name, so that both networks get the same without a file of weights. Everything is in
float64, where rounding turns no order round. Resizing and normalising, which torchvision's detector does inside, are
left out. Losses are of all anchors and all proposals, so that no drawing of samples is in them.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

CLASSES = 4  # without the background
CHANNELS = 32
HIDDEN = 64
SHAPE = (2, 3, 128, 256)  # whole cells on every level, where torchvision's strides are exact
ALL = 1_000_000  # samples: more than there are
EVERY = 211  # anchor whose raw output is kept
SOME = 40  # proposals and detections of an image that are kept


def formula(name: str, value: torch.Tensor) -> torch.Tensor:
    """Weights of one parameter: convolutions keep the size of what passes, norms do nearly nothing."""
    random = np.random.RandomState(zlib.crc32(name.encode())).normal(size=tuple(value.shape))
    scale = (2 / np.prod(value.shape[1:])) ** 0.5 if value.ndim > 1 else 0.05
    centre = 1.0 if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")) else 0.0
    if name.endswith(("cls_logits.weight", "cls_score.weight")):
        scale *= 0.05 if name.startswith("rpn") else 0.1  # probabilities are not 0 or 1
    if name.endswith("bbox_pred.weight"):
        scale *= 0.01 if name.startswith("rpn") else 0.1  # boxes stay near their anchors and proposals
    return torch.as_tensor(centre + scale * random)


def picture() -> torch.Tensor:
    """The input, (2, 3, rows, columns)."""
    return torch.as_tensor(np.random.RandomState(0).normal(size=SHAPE))


def targets() -> list[dict[str, torch.Tensor]]:
    """Boxes (x, y, x, y) and labels from 0 of the two images: large, small, nested, and none."""
    boxes = [[3.3, 10.1, 200.7, 120.9], [20.2, 20.4, 61.1, 50.3], [30.5, 25.2, 44.4, 45.8], [150.1, 3.7, 250.3, 60.6]]
    return [
        {"boxes": torch.tensor(boxes, dtype=torch.float64), "labels": torch.tensor([0, 1, 3, 1])},
        {"boxes": torch.zeros(0, 4, dtype=torch.float64), "labels": torch.zeros(0, dtype=torch.long)},
    ]


def rounded(values: torch.Tensor) -> list:
    return values.detach().numpy().round(6).tolist()


def main(path: Path) -> None:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FasterRCNN, FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.rpn import concat_box_prediction_layers
    from torchvision.models.resnet import BasicBlock, ResNet

    layers = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
    backbone = BackboneWithFPN(ResNet(BasicBlock, [1, 1, 1, 1]), layers, [64, 128, 256, 512], CHANNELS)
    model = FasterRCNN(
        backbone,
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_head=TwoMLPHead(CHANNELS * 7**2, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, CLASSES + 1),
    )
    model.double().eval()
    model.load_state_dict({n: formula(n, v) if v.is_floating_point() else v for n, v in model.state_dict().items()})
    images = ImageList(picture(), [SHAPE[2:]] * 2)
    with torch.no_grad():
        features = model.backbone(picture())
        logits, deltas = concat_box_prediction_layers(*model.rpn.head(list(features.values())))
        anchors = model.rpn.anchor_generator(images, list(features.values()))[0]
        proposals, _ = model.rpn(images, features)
        heads = model.roi_heads
        head = heads.box_predictor(heads.box_head(heads.box_roi_pool(features, proposals, images.image_sizes)))
        found, _ = heads(features, proposals, images.image_sizes)
        model.rpn.train()
        model.roi_heads.train()
        wanted = [one | {"labels": one["labels"] + 1} for one in targets()]  # class 0 is torchvision's background
        drawn, losses = model.rpn(images, features, wanted)
        losses |= model.roi_heads(features, drawn, images.image_sizes, wanted)[1]
    counts = [len(boxes) for boxes in proposals]
    golden = {
        "logits": rounded(logits.view(2, -1)[:, ::EVERY]),
        "deltas": rounded(deltas.view(2, -1, 4)[:, ::EVERY]),
        "anchors": anchors[::EVERY].tolist(),
        "proposals": [{"count": len(boxes), "boxes": rounded(boxes[:SOME])} for boxes in proposals],
        "training_proposals": [len(boxes) for boxes in drawn],
        "class_logits": [rounded(part[:SOME]) for part in head[0].split(counts)],
        "box_numbers": [rounded(part[:SOME]) for part in head[1].view(-1, CLASSES + 1, 4).split(counts)],
        "detections": [
            {
                "boxes": rounded(one["boxes"][:SOME]),
                "labels": (one["labels"][:SOME] - 1).tolist(),
                "scores": rounded(one["scores"][:SOME]),
            }
            for one in found
        ],
        "losses": {name: loss.item() for name, loss in losses.items()},
        "parameters": {n: list(v.shape) for n, v in model.state_dict().items() if v.is_floating_point()},
    }
    path.write_text(json.dumps(golden) + "\n")
    print(path, path.stat().st_size, "bytes; losses", golden["losses"])
    print("proposals", counts, "in training", golden["training_proposals"], "logits", logits.min(), logits.max())
    for one in found:
        print(
            len(one["boxes"]), "detections of classes", one["labels"].bincount().tolist(), one["scores"][::12].tolist()
        )
        print("smallest difference of two scores", -one["scores"].diff().max().item())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
