# SPDX-License-Identifier: Apache-2.0
"""Evaluation of our detectors beside torchvision's: one architecture, one set of weights, one input, one run.

Needs torchvision, which the package does not: an environment of its own with the full builds, for instance

    pip install "torch===2.13.0" torchvision==0.28.0 && pip install -e . --no-deps
    python benchmarks/detection_eval.py --out detection_eval.md

One thread; processor time, which does not count what other programs take; the two take turns, and medians are compared.
Timed is what follows preprocessing: network, anchors or points, decoding, suppression. torchvision's own resizing is
left out. Weights come from a formula (benchmarks/golden_retinanet.py), so that hundreds of boxes reach the suppression.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from golden_retinanet import formula
from torch import nn

CLASSES = 11
WIDTH = {
    "head.classification_head.cls_logits": 2.0,
    "head.regression_head.bbox_reg": 0.5,
    "rpn.head.cls_logits": 2.0,
    "rpn.head.bbox_pred": 0.3,
    "roi_heads.box_predictor.cls_score": 2.0,
    "roi_heads.box_predictor.bbox_pred": 0.5,
    "roi_heads.mask_predictor.mask_fcn_logits": 2.0,
}  # standard deviation of the last layers
Call = Callable[[], list]


def retinanet() -> tuple[nn.Module, nn.Module]:
    """(torchvision's detector, ours), without weights."""
    from torchvision.models.detection import retinanet_resnet50_fpn

    from monai_labelfx.detectors import RetinaNetFPN

    theirs = retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
    ours = RetinaNetFPN(
        2,
        3,
        CLASSES,
        norm="frozen_batch",
        extra_from="P5",
        anchor_sizes=[[s, int(s * 2 ** (1 / 3)), int(s * 2 ** (2 / 3))] for s in (32, 64, 128, 256, 512)],
        anchor_scales=[1.0],
        anchor_offset=0.0,
        round_anchors=True,
    )
    return theirs, ours


def fcos() -> tuple[nn.Module, nn.Module]:
    """The same for FCOS."""
    from torchvision.models.detection import fcos_resnet50_fpn

    from monai_labelfx.detectors import FCOS

    theirs = fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES)
    return theirs, FCOS(2, 3, CLASSES, norm="frozen_batch", **FCOS.torchvision_settings)


def faster_rcnn() -> tuple[nn.Module, nn.Module]:
    """The same for Faster R-CNN; torchvision counts the background as a class."""
    from torchvision.models.detection import fasterrcnn_resnet50_fpn

    from monai_labelfx.detectors.faster_rcnn import FasterRCNN

    theirs = fasterrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    return theirs, FasterRCNN(2, 3, CLASSES, norm="frozen_batch", **FasterRCNN.torchvision_settings)


def mask_rcnn() -> tuple[nn.Module, nn.Module]:
    """The same for Mask R-CNN."""
    from torchvision.models.detection import maskrcnn_resnet50_fpn

    from monai_labelfx.detectors.mask_rcnn import MaskRCNN

    theirs = maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES + 1)
    return theirs, MaskRCNN(2, 3, CLASSES, norm="frozen_batch", **MaskRCNN.torchvision_settings)


def fill(model: nn.Module, image: torch.Tensor) -> None:
    """Weights from the formula, in float32; outputs as wide as WIDTH says, so that boxes lie all over the image."""
    state = {n: formula(n, v).float() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    model.load_state_dict(state)
    model.eval()

    def narrow(name: str, module: nn.Module) -> None:
        def hook(_: nn.Module, __: tuple, output: torch.Tensor) -> torch.Tensor:
            handle.remove()  # of the levels of a pyramid the first one decides
            factor = WIDTH[name] / output.std()
            for parameter in module.parameters():
                parameter.data *= factor
            # the numbers of FCOS are distances to the four sides, in strides
            shift = 3.0 if name.endswith("bbox_reg") and hasattr(model.head.regression_head, "bbox_ctrness") else 0.0
            module.bias.data += shift
            return output * factor + shift

        handle = module.register_forward_hook(hook)

    for name, module in model.named_modules():
        if name in WIDTH:
            narrow(name, module)
    with torch.no_grad():
        detect(model, image)


def detect(model: nn.Module, image: torch.Tensor) -> list:
    """A detector of torchvision behind its preprocessing."""
    from torchvision.models.detection.image_list import ImageList

    images = ImageList(image, [tuple(image.shape[2:])])
    features = model.backbone(image)
    if hasattr(model, "roi_heads"):
        proposals, _ = model.rpn(images, features)
        found, _ = model.roi_heads(features, proposals, images.image_sizes)
        return [pasted(one, image.shape[2:]) for one in found]
    features = list(features.values())
    head = model.head(features)
    anchors = model.anchor_generator(images, features)
    kinds = len(anchors[0]) // sum(f[0, 0].numel() for f in features)
    counts = [f[0, 0].numel() * kinds for f in features]
    split = {name: list(value.split(counts, dim=1)) for name, value in head.items()}
    return model.postprocess_detections(split, [list(a.split(counts)) for a in anchors], images.image_sizes)


def pasted(found: dict, size: Sequence[int]) -> dict:
    """With masks of the size of the image, as ours are."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image

    if "masks" in found:
        found["masks"] = paste_masks_in_image(found["masks"], found["boxes"], tuple(size)) > 0.5
    return found


def prepared(theirs: nn.Module, ours: nn.Module, size: int) -> tuple[Call, Call]:
    """Calls that detect in one image, with the same weights."""
    from monai_labelfx.networks import load_torchvision_weights

    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    lying = image.transpose(-1, -2).contiguous()  # pictures have x first here
    fill(theirs, image)
    left = load_torchvision_weights(ours.network, theirs.state_dict(), strict=False)
    if any("scale" not in name for name in left):  # of the levels of FCOS; torchvision has none, and they begin as 1
        raise ValueError(f"{type(ours).__name__} has parameters of its own: {', '.join(left)}")
    ours.eval()

    def call_theirs() -> list:
        with torch.no_grad():
            return detect(theirs, image)

    def call_ours() -> list:
        with torch.no_grad():
            return ours(lying)

    return call_theirs, call_ours


def seconds(call: Callable[[], list]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--detectors", nargs="+", choices=DETECTORS, default=list(DETECTORS), metavar="D")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if find_spec("torchvision") is None:
        print("torchvision is not installed: nothing to compare with")
        return
    torch.set_num_threads(1)
    lines = ["| detector | boxes | torchvision ms | ours ms | ours / torchvision |", "|:--|--:|--:|--:|--:|"]
    for name in args.detectors:
        theirs, ours = prepared(*DETECTORS[name](), args.size)
        boxes = len(theirs()[0]["boxes"]), len(ours()[0]["boxes"])
        times = [(seconds(theirs), seconds(ours)) for _ in range(args.rounds)]
        a, b = (1000 * statistics.median(side) for side in zip(*times, strict=True))
        ratio = statistics.median(two / one for one, two in times)
        lines.append(f"| {name}, ResNet-50 | {boxes[0]} / {boxes[1]} | {a:.0f} | {b:.0f} | {ratio:.2f} |")
        print(lines[-1], flush=True)
    text = "\n".join(lines) + "\n"
    print(f"\n{text}")
    if args.out:
        args.out.write_text(text)


DETECTORS = {"RetinaNet": retinanet, "FCOS": fcos, "Faster R-CNN": faster_rcnn, "Mask R-CNN": mask_rcnn}


if __name__ == "__main__":
    main()
