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
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import torch
from golden_retinanet import formula

CLASSES = 11
PARTS = {"backbone.body.": "backbone.", "backbone.fpn.": "neck.fpn.", "head.": "head."}


def filled(model: torch.nn.Module) -> torch.nn.Module:
    """The model with weights from the formula, in float32 and evaluation mode."""
    state = {n: formula(n, v).float() if v.is_floating_point() else v for n, v in model.state_dict().items()}
    model.load_state_dict(state)
    # so deep a network returns large numbers: boxes would leave the image
    model.head.regression_head.bbox_reg.weight.data *= 0.01
    return model.eval()


def retinanet(size: int) -> tuple[Callable[[], list], Callable[[], list]]:
    """(torchvision's, ours): calls that detect in one image."""
    from torchvision.models.detection import retinanet_resnet50_fpn
    from torchvision.models.detection.image_list import ImageList

    from monai_labelfx.detectors import RetinaNetFPN
    from monai_labelfx.networks import load_torchvision_weights

    theirs = filled(retinanet_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES))
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
    ).eval()
    load_torchvision_weights(ours.network, theirs.state_dict(), prefix_map=PARTS)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    lying = image.transpose(-1, -2).contiguous()

    def call_theirs() -> list:
        with torch.no_grad():
            features = list(theirs.backbone(image).values())
            head = theirs.head(features)
            anchors = theirs.anchor_generator(ImageList(image, [(size, size)]), features)
            counts = [f.shape[2] * f.shape[3] * 9 for f in features]
            split = {name: list(value.split(counts, dim=1)) for name, value in head.items()}
            return theirs.postprocess_detections(split, [list(a.split(counts)) for a in anchors], [(size, size)])

    def call_ours() -> list:
        with torch.no_grad():
            return ours(lying)

    return call_theirs, call_ours


def fcos(size: int) -> tuple[Callable[[], list], Callable[[], list]]:
    """The same for FCOS."""
    from torchvision.models.detection import fcos_resnet50_fpn
    from torchvision.models.detection.image_list import ImageList

    from monai_labelfx.detectors import FCOS
    from monai_labelfx.networks import load_torchvision_weights

    theirs = filled(fcos_resnet50_fpn(weights=None, weights_backbone=None, num_classes=CLASSES))
    ours = FCOS(2, 3, CLASSES, norm="frozen_batch", **FCOS.torchvision_settings).eval()
    load_torchvision_weights(ours.network, theirs.state_dict(), prefix_map=PARTS, strict=False)
    image = torch.randn(1, 3, size, size, generator=torch.Generator().manual_seed(0))
    lying = image.transpose(-1, -2).contiguous()

    def call_theirs() -> list:
        with torch.no_grad():
            features = list(theirs.backbone(image).values())
            head = theirs.head(features)
            anchors = theirs.anchor_generator(ImageList(image, [(size, size)]), features)
            counts = [f.shape[2] * f.shape[3] for f in features]
            split = {name: list(value.split(counts, dim=1)) for name, value in head.items()}
            return theirs.postprocess_detections(split, [list(a.split(counts)) for a in anchors], [(size, size)])

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
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if find_spec("torchvision") is None:
        print("torchvision is not installed: nothing to compare with")
        return
    torch.set_num_threads(1)
    lines = ["| detector | boxes | torchvision ms | ours ms | ours / torchvision |", "|:--|--:|--:|--:|--:|"]
    for name, make in (("RetinaNet R50", retinanet), ("FCOS R50", fcos)):
        theirs, ours = make(args.size)
        boxes = len(theirs()[0]["boxes"]), len(ours()[0]["boxes"])
        times = [(seconds(theirs), seconds(ours)) for _ in range(args.rounds)]
        a, b = (1000 * statistics.median(side) for side in zip(*times, strict=True))
        ratio = statistics.median(two / one for one, two in times)
        lines.append(f"| {name} | {boxes[0]} / {boxes[1]} | {a:.0f} | {b:.0f} | {ratio:.2f} |")
    text = "\n".join(lines) + "\n"
    print(text)
    if args.out:
        args.out.write_text(text)


if __name__ == "__main__":
    main()
