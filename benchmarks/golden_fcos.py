# SPDX-License-Identifier: Apache-2.0
"""Make tests/detectors/golden_fcos.json: what torchvision's FCOS returns with weights from a formula.

Needs torchvision, which the package does not:

    pip install torchvision
    python benchmarks/golden_fcos.py tests/detectors/golden_fcos.json

Weights are drawn by parameter name, so that both networks get the same without a file of weights. Everything is in
float64, where rounding turns no order round. Resizing and normalising, which torchvision's detector does inside, are
left out.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

CLASSES = 3
CHANNELS = 64
SHAPE = (2, 3, 128, 256)  # whole cells on every level, where torchvision's strides are exact
EVERY = 7  # place of the raw output that is kept


def formula(name: str, value: torch.Tensor) -> torch.Tensor:
    """Weights of one parameter: convolutions keep the size of what passes, norms do nearly nothing."""
    random = np.random.RandomState(zlib.crc32(name.encode())).normal(size=tuple(value.shape))
    scale = (2 / np.prod(value.shape[1:])) ** 0.5 if value.ndim > 1 else 0.05
    centre = 1.0 if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")) else 0.0
    if name.endswith("bbox_reg.bias"):
        centre = 2.0  # strides, so that most distances are above 0
    if "cls_logits" in name or "bbox_ctrness" in name:
        scale *= 0.5  # scores between 0 and 1
    return torch.as_tensor(centre + scale * random)


def picture() -> torch.Tensor:
    """The input, (2, 3, rows, columns)."""
    return torch.as_tensor(np.random.RandomState(0).normal(size=SHAPE))


def targets() -> list[dict[str, torch.Tensor]]:
    """Boxes (x, y, x, y) and labels of the two images: large, small, nested, and none."""
    boxes = [[3.3, 10.1, 200.7, 120.9], [20.2, 20.4, 61.1, 50.3], [30.5, 25.2, 44.4, 45.8], [150.1, 3.7, 250.3, 60.6]]
    return [
        {"boxes": torch.tensor(boxes, dtype=torch.float64), "labels": torch.tensor([0, 1, 2, 1])},
        {"boxes": torch.zeros(0, 4, dtype=torch.float64), "labels": torch.zeros(0, dtype=torch.long)},
    ]


def main(path: Path) -> None:
    from torchvision.models.detection.backbone_utils import BackboneWithFPN
    from torchvision.models.detection.fcos import FCOS
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    layers = {"layer2": "0", "layer3": "1", "layer4": "2"}
    trunk = ResNet(BasicBlock, [1, 1, 1, 1])
    extra = LastLevelP6P7(CHANNELS, CHANNELS)
    backbone = BackboneWithFPN(trunk, layers, [128, 256, 512], CHANNELS, extra_blocks=extra)
    model = FCOS(backbone, CLASSES).double().eval()
    model.load_state_dict({n: formula(n, v) if v.is_floating_point() else v for n, v in model.state_dict().items()})
    with torch.no_grad():
        features = list(model.backbone(picture()).values())
        head = model.head(features)
        anchors = model.anchor_generator(ImageList(picture(), [SHAPE[2:]] * 2), features)
        counts = [f.shape[2] * f.shape[3] for f in features]
        split = {name: list(value.split(counts, dim=1)) for name, value in head.items()}
        found = model.postprocess_detections(split, [list(a.split(counts)) for a in anchors], [SHAPE[2:]] * 2)
        losses = model.compute_loss(targets(), head, anchors, counts)
    raw = torch.cat([head["cls_logits"], head["bbox_ctrness"], head["bbox_regression"]], dim=2)
    # torchvision also keeps boxes that the edge of the image has cut to nothing
    solid = [(one["boxes"][:, 2:] > one["boxes"][:, :2]).all(dim=1) for one in found]
    found = [{k: v[kept] for k, v in one.items()} for one, kept in zip(found, solid, strict=True)]
    golden = {
        "raw": raw[:, ::EVERY].numpy().round(6).tolist(),
        "points": ((anchors[0][:, :2] + anchors[0][:, 2:]) / 2)[::EVERY].tolist(),
        "detections": [{k: v[:40].numpy().round(6).tolist() for k, v in one.items()} for one in found],
        "losses": {name: loss.item() for name, loss in losses.items()},
        "parameters": {n: list(v.shape) for n, v in model.state_dict().items() if v.is_floating_point()},
    }
    path.write_text(json.dumps(golden) + "\n")
    print(path, path.stat().st_size, "bytes;", [len(one["boxes"]) for one in found], "detections; losses", losses)
    for part, name in ((raw[..., :CLASSES], "logits"), (raw[..., CLASSES], "centreness"), (raw[..., -4:], "distances")):
        print(name, part.min().item(), part.median().item(), part.max().item())


if __name__ == "__main__":
    main(Path(sys.argv[1]))
