# SPDX-License-Identifier: Apache-2.0
"""Make tests/detectors/golden_mask_rcnn.json: what torchvision's Mask R-CNN returns with weights from a formula.

Needs torchvision, which the package does not:

    pip install torchvision
    python benchmarks/golden_mask_rcnn.py tests/detectors/golden_mask_rcnn.json

Weights are drawn by parameter name, so that both networks get the same without a file of weights. Everything is in
float64, where rounding turns no order round. Resizing and normalising, which torchvision's detector does inside, are
left out, and so is pasting masks, which it does on whole pixels. All anchors and proposals take part in the losses, so
that none is drawn.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

CLASSES = 3
CHANNELS = 32
HIDDEN = 64
SHAPE = (2, 3, 128, 256)  # whole cells on every level, where torchvision's strides are exact
ALL = 10**6  # samples: more than there are
MASKS = slice(0, 30, 6)  # detections of an image whose masks are kept


def formula(name: str, value: torch.Tensor) -> torch.Tensor:
    """Weights of one parameter: convolutions keep the size of what passes, norms do nearly nothing."""
    random = np.random.RandomState(zlib.crc32(name.encode())).normal(size=tuple(value.shape))
    scale = (2 / np.prod(value.shape[1:])) ** 0.5 if value.ndim > 1 else 0.05
    centre = 1.0 if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")) else 0.0
    if name.endswith(("cls_logits.weight", "cls_score.weight", "mask_fcn_logits.weight")):
        scale *= 0.1  # probabilities are not 0 or 1
    if name.endswith("bbox_pred.weight"):
        scale *= 0.03  # boxes stay near their anchors and proposals
    return torch.as_tensor(centre + scale * random)


def picture() -> torch.Tensor:
    """The input, (2, 3, rows, columns)."""
    return torch.as_tensor(np.random.RandomState(0).normal(size=SHAPE))


def targets() -> list[dict[str, torch.Tensor]]:
    """Boxes (x, y, x, y), labels and masks (n, rows, columns) of the two images: ellipses, and none."""
    boxes = [[3.3, 10.1, 200.7, 120.9], [20.2, 20.4, 61.1, 50.3], [30.5, 25.2, 44.4, 45.8], [150.1, 3.7, 250.3, 60.6]]
    y, x = np.indices(SHAPE[2:]) + 0.5
    masks = [
        ((2 * x - left - right) / (right - left)) ** 2 + ((2 * y - top - bottom) / (bottom - top)) ** 2 <= 1
        for left, top, right, bottom in boxes
    ]
    return [
        {
            "boxes": torch.tensor(boxes, dtype=torch.float64),
            "labels": torch.tensor([0, 1, 2, 1]),
            "masks": torch.as_tensor(np.stack(masks)),
        },
        {
            "boxes": torch.zeros(0, 4, dtype=torch.float64),
            "labels": torch.zeros(0, dtype=torch.long),
            "masks": torch.zeros(0, *SHAPE[2:], dtype=torch.bool),
        },
    ]


def main(path: Path) -> None:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.mask_rcnn import MaskRCNN, MaskRCNNHeads, MaskRCNNPredictor
    from torchvision.models.resnet import BasicBlock, ResNet

    layers = {"layer1": "0", "layer2": "1", "layer3": "2", "layer4": "3"}
    trunk = ResNet(BasicBlock, [1, 1, 1, 1])
    model = MaskRCNN(
        BackboneWithFPN(trunk, layers, [64, 128, 256, 512], CHANNELS),
        rpn_batch_size_per_image=ALL,
        box_batch_size_per_image=ALL,
        box_head=TwoMLPHead(CHANNELS * 7**2, HIDDEN),
        box_predictor=FastRCNNPredictor(HIDDEN, CLASSES + 1),
        mask_head=MaskRCNNHeads(CHANNELS, (CHANNELS,) * 4, 1),
        mask_predictor=MaskRCNNPredictor(CHANNELS, CHANNELS, CLASSES + 1),
    )
    model.double().eval()
    model.load_state_dict({n: formula(n, v) if v.is_floating_point() else v for n, v in model.state_dict().items()})
    images = ImageList(picture(), [SHAPE[2:]] * 2)
    # class 0 is torchvision's background
    wanted = [one | {"labels": one["labels"] + 1, "masks": one["masks"].to(torch.uint8)} for one in targets()]
    with torch.no_grad():
        features = model.backbone(picture())
        proposals, _ = model.rpn(images, features)
        found, _ = model.roi_heads(features, proposals, images.image_sizes)
        model.rpn.train()
        model.roi_heads.train()
        proposals, losses = model.rpn(images, features, wanted)
        _, roi_losses = model.roi_heads(features, proposals, images.image_sizes, wanted)
    losses |= roi_losses
    golden = {
        "detections": [
            {
                "boxes": one["boxes"][:40].numpy().round(6).tolist(),
                "labels": (one["labels"][:40] - 1).tolist(),
                "scores": one["scores"][:40].numpy().round(6).tolist(),
                "masks": one["masks"][MASKS, 0].numpy().round(5).tolist(),
            }
            for one in found
        ],
        "losses": {name: loss.item() for name, loss in losses.items()},
        "parameters": {n: list(v.shape) for n, v in model.state_dict().items() if v.is_floating_point()},
    }
    path.write_text(json.dumps(golden) + "\n")
    print(path, path.stat().st_size, "bytes; losses", {name: loss.item() for name, loss in losses.items()})
    for one in found:
        print(len(one["boxes"]), "detections", one["labels"].bincount().tolist(), one["scores"][:40:8].tolist())
        print("masks", one["masks"].min().item(), one["masks"].median().item(), one["masks"].max().item())
        print(one["boxes"][:3].tolist())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
