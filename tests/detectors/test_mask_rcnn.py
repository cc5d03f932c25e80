# SPDX-License-Identifier: Apache-2.0
"""Mask R-CNN: the contract, the mask loss, masks on images, and torchvision's outputs."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from detector_tester import SMALL as SHAPES
from detector_tester import DetectorTester, objects

from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.mask_rcnn import MaskRCNN
from monai_labelfx.networks.torchvision_weights import load_torchvision_weights
from monai_labelfx.ops.paste_masks import paste_masks
from monai_labelfx.ops.roi_align import roi_align

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from golden_mask_rcnn import ALL, CHANNELS, CLASSES, HIDDEN, MASKS, formula, picture, targets

from monai_labelfx.metrics.coco_detection import CocoDetectionMetric

SMALL = {
    "backbone": {"depth": 18, "features": 8},
    "pyramid_channels": 16,
    "head_channels": 32,
    "pool_size": 3,
    "roi_samples": 64,
    "anchor_sizes": [[12], [16], [24], [32], [48]],
    "mask_channels": 16,
    "mask_depth": 2,
}


def ellipsoids(spatial_dims: int, size: int) -> tuple[torch.Tensor, dict]:
    """The image and target of ``objects``, with the ellipsoids in its blocks."""
    image, target = objects(spatial_dims, size)
    grid = torch.stack(torch.meshgrid(*[torch.arange(size) + 0.5] * spatial_dims, indexing="ij"))
    low, high = (part[(..., *[None] * spatial_dims)] for part in target["boxes"].split(spatial_dims, dim=1))
    masks = ((2 * grid - low - high) / (high - low)).square().sum(dim=1) <= 1
    noise = 0.1 * torch.randn(image.shape, generator=torch.Generator().manual_seed(3))
    return noise + 2.0 * masks[0] - 2.0 * masks[1], target | {"masks": masks}


class TestMaskRCNN(DetectorTester):
    needs_masks = True
    rate = 0.003
    steps = {2: 200, 3: 200}

    def make(self, spatial_dims, **options):
        pool = {"mask_pool": 7 if spatial_dims == 2 else 4}
        return MaskRCNN(spatial_dims, 1, 2, **SMALL | pool | options)

    def default(self, spatial_dims):
        return MaskRCNN(spatial_dims, 1, 2)

    def run_whole(self, detector, images):
        super().run_whole(detector, images)
        detector.network.box_head(torch.empty(detector.roi_samples, 256, *detector.pooling.output_size))
        positive = int(detector.roi_samples * detector.roi_positive)
        detector.network.mask_head(torch.empty(positive, 256, *detector.mask_pooling.output_size))

    def check_autocast(self, detector, images):
        """Box numbers of all anchors, from a network that ran in bfloat16, beside those of float32."""
        shape = tuple(images.shape[2:])
        with torch.no_grad():
            raw = detector.network(images)
            with torch.autocast("cpu", torch.bfloat16):
                low = detector.network(images).float()
        first, second = (detector._parts(one, shape)[1] for one in (raw, low))
        assert (first - second).abs().max() < 0.01

    def overfit(self, spatial_dims, **options):
        torch.manual_seed(0)
        detector = self.make(spatial_dims, **options)
        image, target = ellipsoids(spatial_dims, self.size[spatial_dims])
        optimizer = torch.optim.Adam(detector.network.parameters(), self.rate)
        for _ in range(self.steps[spatial_dims]):
            optimizer.zero_grad()
            sum(detector(image[None], [target]).values()).backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
        found = detector.eval()(image[None])[0]
        metric = CocoDetectionMetric("mask", area_ranges={})
        metric([found], [target])
        assert metric.aggregate()["mask_AP50"] == 1.0
        return found, target

    # --- masks on images -------------------------------------------------------------------------------------------
    def test_blocks_are_what_the_masks_have_in_their_boxes(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=20).eval()
        images = [torch.randn(1, *shape) for shape in ((32,) * dims, tuple(33 + 5 * axis for axis in range(dims)))]
        whole = detector(images)
        detector.crop_masks = True
        some = False
        for full, cut, image in zip(whole, detector(images), images, strict=True):
            assert isinstance(cut["masks"], list) and len(cut["masks"]) == len(cut["boxes"]) == 20
            assert full["masks"].dtype == torch.bool and full["masks"].shape == (20, *image.shape[1:])
            for mask, block, box in zip(full["masks"], cut["masks"], cut["boxes"], strict=True):
                low, high = box[:dims].floor().int().tolist(), box[dims:].ceil().int().tolist()
                window = tuple(map(slice, low, high))
                assert torch.equal(block, mask[window]) and mask.sum() == block.sum()
                some |= bool(block.any() and not block.all())
        assert some

    def test_masks_are_those_of_the_detected_class(self, dims):
        detector = self.make(dims, score_threshold=0.0).eval()
        torch.nn.init.zeros_(detector.network.mask_head.mask_fcn_logits.weight)
        detector.network.mask_head.mask_fcn_logits.bias.data = torch.tensor([50.0, -50.0, 50.0])
        found = detector(self.images(dims, 1))[0]
        assert set(found["labels"].tolist()) == {0, 1}
        for mask, label, box in zip(found["masks"], found["labels"], found["boxes"], strict=True):
            inside = (box[dims:] - 0.5).ceil() - (box[:dims] - 0.5).ceil()  # centres of voxels in the box
            assert mask.sum() == (inside.prod() if label == 1 else 0)

    def test_masks_of_each_image_are_its_own(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=9, mask_threshold=0.7).eval()
        images, shape = self.images(dims), SHAPES[dims]
        for image, found in zip(images, detector(images), strict=True):
            maps, first = detector._parts(detector.network(image[None]), shape)[2], torch.zeros(9, dtype=torch.long)
            masks = detector.mask_probabilities(maps, found["boxes"], first, found["labels"])
            expected = paste_masks(masks, found["boxes"], shape, threshold=None) > 0.7
            assert (found["masks"] != expected).sum() < 3
            assert (expected != paste_masks(masks, found["boxes"], shape)).sum() > 100

    def test_a_few_boxes_at_a_time(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=9).eval()
        together = detector(self.images(dims))
        assert detector.masks_together > 9
        detector.masks_together = 2
        for first, second in zip(together, detector(self.images(dims)), strict=True):
            assert torch.equal(first["boxes"], second["boxes"])
            assert (first["masks"] != second["masks"]).sum() < 3 < first["masks"].sum()

    @pytest.mark.parametrize("crop", [False, True])
    def test_no_detections(self, dims, crop):
        detector = self.make(dims, score_threshold=1.0, crop_masks=crop, image_gate=0.5).eval()
        for gate in (50.0, -50.0):
            torch.nn.init.constant_(detector.network.gate.bias, gate)
            detector.score_threshold = 1.0 if gate > 0 else 0.0
            found = detector(self.images(dims, 1))[0]
            assert found["boxes"].shape == (0, 2 * dims)
            if crop:
                assert found["masks"] == []
            else:
                assert found["masks"].shape == (0, *SHAPES[dims]) and found["masks"].dtype == torch.bool

    # --- the loss --------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("threshold", [None, 0.5])
    def test_loss_of_masks(self, dims, threshold):
        """The mean over bins of the proposals with an object, one proposal and one bin at a time."""
        detector = self.make(dims, mask_target_threshold=threshold, mask_pool=2).double()
        shape = (16, 24, 20)[:dims]
        draw = torch.Generator().manual_seed(7)
        masks = [torch.rand(2, *shape, generator=draw) < 0.5, torch.rand(1, *shape, generator=draw) < 0.5]
        boxes = torch.tensor([[[0, 4, 0, 8, 12, 16], [8, 8, 4, 16, 20, 20]], [[1, 2, 3, 13, 22, 19], [0] * 6]])
        boxes = torch.cat([boxes[..., :dims], boxes[..., 3 : 3 + dims]], dim=-1).double()
        labels = torch.tensor([[1, 0], [1, -1]])
        targets = Targets(boxes, labels, labels >= 0, masks)
        levels = [tuple(-(-n // s) for n, s in zip(shape, stride, strict=True)) for stride in detector.network.strides]
        maps = [torch.rand(2, 16, *level, generator=draw).double() for level in levels[:4]]
        rois = torch.cat([boxes[0, :1], boxes[1, :1], boxes[0]])  # the third stands for background
        image, matches = torch.tensor([0, 1, 0, 0]), torch.tensor([0, 0, -1, 1])
        losses = detector.roi_losses(maps, rois, image, matches, targets)
        terms = []
        for roi, owner, match in zip(rois, image.tolist(), matches.tolist(), strict=True):
            if match < 0:
                continue
            alone = torch.tensor([owner])
            logits = detector.network.mask_head(detector.mask_pooling(maps, roi[None], alone))
            object_mask = masks[owner][match][None, None].double()
            share = roi_align(object_mask, roi[None], torch.tensor([0]), 4)[0, 0]
            wanted = share if threshold is None else (share > 0.5 - 1e-9).double()
            x = logits[0, labels[owner, match] + 1]
            terms.append((x.clamp(min=0) - x * wanted + (-x.abs()).exp().log1p()).mean())
        assert len(terms) == 3
        torch.testing.assert_close(losses["mask"], sum(terms) / 3)
        losses["mask"].backward()
        gradient = detector.network.mask_head.mask_fcn_logits.weight.grad
        assert not gradient[0].any() and gradient[1].any() and gradient[2].any()

    def test_without_objects_the_loss_is_zero_for_all_parameters(self, dims):
        detector = self.make(dims)
        loss = detector(self.images(dims), [self.empty(dims), self.empty(dims)])["mask"]
        assert loss == 0
        loss.backward()
        assert all(p.grad is not None and not p.grad.any() for p in detector.network.mask_head.parameters())

    def test_class_agnostic_masks(self, dims):
        detector = self.make(dims, class_agnostic=True)
        assert len(detector.network.mask_head.mask_fcn_logits.weight) == 2  # torchvision's background, and "object"
        assert detector(self.images(dims, 1), [self.target(dims) | {"labels": torch.tensor([7])}])["mask"] > 0

    # --- options ---------------------------------------------------------------------------------------------------
    def test_bins_of_each_axis(self, dims):
        detector = self.make(dims, mask_pool=(4, 3, 2)[:dims], mask_depth=0, mask_channels=5).eval()
        maps, image = detector._parts(detector.network(self.images(dims)), SHAPES[dims])[2], torch.tensor([0])
        found = detector.mask_probabilities(maps, self.target(dims)["boxes"], image, image)
        assert found.shape == (1, *(8, 6, 4)[:dims]) and (0 < found).all() and (found < 1).all()

    def test_pooling_is_as_that_of_boxes(self, dims):
        detector = self.make(dims, pool_sampling=3, pool_aligned=False)
        assert (detector.mask_pooling.sampling_ratio, detector.mask_pooling.aligned) == (3, False)

    def test_bad_options(self, dims):
        with pytest.raises(ValueError, match="mask_pool must be 1 or more, one number or one for each"):
            self.make(dims, mask_pool=0)
        with pytest.raises(ValueError, match="mask_channels must be 1 or more, got 0"):
            self.make(dims, mask_channels=0)
        with pytest.raises(ValueError, match="mask_depth must be 0 or more, got -1"):
            self.make(dims, mask_depth=-1)
        for name in ("mask_threshold", "mask_target_threshold"):
            with pytest.raises(ValueError, match=f"{name} must be between 0 and 1, got 1"):
                self.make(dims, **{name: 1})

    def test_bad_masks(self, dims):
        detector, images = self.make(dims), self.images(dims, 1)
        target = self.target(dims)
        masks = target.pop("masks")
        with pytest.raises(ValueError, match="the target of image 0 of the batch has no 'masks'"):
            detector(images, [target])
        with pytest.raises(ValueError, match="masks of image 0 of the batch must have shape"):
            detector(images, [target | {"masks": masks[:, 1:]}])


def test_torchvision():
    """See benchmarks/golden_mask_rcnn.py for how the golden file was made."""
    golden = json.loads((Path(__file__).parent / "golden_mask_rcnn.json").read_text())
    small = {"backbone": {"depth": 10}, "norm": "batch", "pyramid_channels": CHANNELS, "head_channels": HIDDEN}
    samples = {"rpn_samples": ALL, "roi_samples": ALL, "mask_channels": CHANNELS}
    detector = MaskRCNN(2, 3, CLASSES, **small, **samples, **MaskRCNN.torchvision_settings).double().eval()
    published = {name: formula(name, torch.empty(shape)) for name, shape in golden["parameters"].items()}
    assert load_torchvision_weights(detector.network, published) == []
    images = picture().transpose(-1, -2)  # MONAI has x first, as boxes have in both; kernels are turned on loading
    size = tuple(images.shape[2:])
    with torch.no_grad():
        raw = detector.network(images)
        maps = detector._parts(raw, size)[2]
        for number, (found, wanted) in enumerate(zip(detector(images), golden["detections"], strict=True)):
            assert len(found["boxes"]) == 100 and len(wanted["boxes"]) == 40
            for key in ("boxes", "labels", "scores"):
                expected = torch.tensor(wanted[key])
                assert torch.allclose(found[key][: len(expected)], expected.to(found[key]), atol=1e-4), key
            boxes, labels = found["boxes"][MASKS], found["labels"][MASKS]
            masks = detector.mask_probabilities(maps, boxes, torch.full_like(labels, number), labels)
            assert torch.allclose(masks.transpose(-1, -2), torch.tensor(wanted["masks"]).double(), atol=1e-4)
    full, empty = targets()
    boxes = torch.stack([full["boxes"], torch.zeros(4, 4, dtype=torch.double)])
    labels = torch.stack([full["labels"], torch.full((4,), -1)])
    given = Targets(boxes, labels, labels >= 0, [one["masks"].transpose(-1, -2) for one in (full, empty)])
    losses = {name: loss.item() for name, loss in detector.compute_losses(raw, size, given).items()}
    names = {
        "rpn_classification": "loss_objectness",
        "rpn_box_regression": "loss_rpn_box_reg",
        "classification": "loss_classifier",
        "box_regression": "loss_box_reg",
        "mask": "loss_mask",
    }
    assert losses == pytest.approx({name: golden["losses"][theirs] for name, theirs in names.items()}, rel=1e-4)
