# SPDX-License-Identifier: Apache-2.0
"""Make tests/detectors/golden_retinanet.json: what torchvision's RetinaNet returns with weights from a formula.

Needs torchvision, which the package does not:

    pip install torchvision
    python benchmarks/golden_retinanet.py tests/detectors/golden_retinanet.json

Weights are drawn by parameter name, so that both networks get the same without a file of weights; in float64, where
rounding turns no order round. The input is a picture as torchvision has it, rows first; resizing and normalising, which
torchvision's detector does inside, are left out.
"""

from __future__ import annotations

import json
import sys
import zlib
from pathlib import Path

import numpy as np
import torch

CLASSES = 3
SHAPE = (2, 3, 128, 256)  # whole cells on every level, where both lay anchors alike
EVERY = 97  # place of the raw output that is kept


def formula(name: str, value: torch.Tensor) -> torch.Tensor:
    """Weights of one parameter: convolutions keep the size of what passes, norms do nearly nothing."""
    random = np.random.RandomState(zlib.crc32(name.encode())).normal(size=tuple(value.shape))
    if value.ndim > 1:
        scale = (2 / np.prod(value.shape[1:])) ** 0.5
    else:
        scale = 0.05
    if "cls_logits" in name or "bbox_reg" in name:
        scale *= 0.03  # scores between 0 and 1, boxes near their anchors
    centre = 1.0 if name.endswith("running_var") or (value.ndim == 1 and name.endswith("weight")) else 0.0
    return torch.as_tensor(centre + scale * random)


def picture() -> torch.Tensor:
    """The input, (2, 3, rows, columns)."""
    return torch.as_tensor(np.random.RandomState(0).normal(size=SHAPE))


def main(path: Path) -> None:
    from torchvision.models.detection.anchor_utils import AnchorGenerator
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.models.detection.image_list import ImageList
    from torchvision.models.detection.retinanet import RetinaNet
    from torchvision.models.resnet import BasicBlock, ResNet
    from torchvision.ops.feature_pyramid_network import LastLevelP6P7

    trunk = ResNet(BasicBlock, [1, 1, 1, 1])
    backbone = _resnet_fpn_extractor(trunk, 5, returned_layers=[2, 3, 4], extra_blocks=LastLevelP6P7(256, 256))
    sizes = tuple((s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))) for s in (32, 64, 128, 256, 512))
    model = (
        RetinaNet(backbone, CLASSES, anchor_generator=AnchorGenerator(sizes, ((0.5, 1.0, 2.0),) * 5)).double().eval()
    )
    model.load_state_dict({n: formula(n, v) if v.is_floating_point() else v for n, v in model.state_dict().items()})
    images = picture()
    with torch.no_grad():
        features = list(model.backbone(images).values())
        head = model.head(features)
        anchors = model.anchor_generator(ImageList(images, [SHAPE[2:]] * 2), features)
        counts = [f.shape[2] * f.shape[3] * 9 for f in features]
        split = {name: list(value.split(counts, dim=1)) for name, value in head.items()}
        found = model.postprocess_detections(split, [list(a.split(counts)) for a in anchors], [SHAPE[2:]] * 2)
    raw = torch.cat([head["cls_logits"], head["bbox_regression"]], dim=2)
    # torchvision also keeps boxes that the edge of the image has cut to nothing
    solid = [(one["boxes"][:, 2:] > one["boxes"][:, :2]).all(dim=1) for one in found]
    found = [{k: v[kept] for k, v in one.items()} for one, kept in zip(found, solid, strict=True)]
    golden = {
        "raw": raw[:, ::EVERY].double().numpy().round(6).tolist(),
        "anchors": anchors[0][::EVERY].tolist(),
        "detections": [{k: v[:40].double().numpy().round(6).tolist() for k, v in one.items()} for one in found],
        "parameters": {n: list(v.shape) for n, v in model.state_dict().items() if v.is_floating_point()},
    }
    path.write_text(json.dumps(golden) + "\n")
    print(
        path,
        path.stat().st_size,
        "bytes;",
        [len(one["boxes"]) for one in found],
        "detections; logits",
        raw[..., :3].min(),
        raw[..., :3].max(),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
