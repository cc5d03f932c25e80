# SPDX-License-Identifier: Apache-2.0
"""BlendMask: the contract, its losses by formula, hand-made masks, and masks that it learns."""

from __future__ import annotations

import math

import pytest
import torch
from detector_tester import SMALL as SHAPES
from detector_tester import DetectorTester, average_precision
from torch.nn.functional import binary_cross_entropy_with_logits, grid_sample, interpolate

from monai_labelfx.detectors import blendmask
from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors._selected_conv import convolution_at
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.blendmask import BlendMask
from monai_labelfx.ops.blend import blend
from monai_labelfx.ops.roi_align import roi_align

SMALL = {
    "backbone": {"depth": 10, "features": 8},
    "pyramid_channels": 24,
    "first_level": 2,
    "extra_levels": 0,
    "head_depth": 1,
    "base_channels": 16,
    "attention_size": 4,
    "base_size": 12,
}


def hooks(spatial_dims: int, size: int) -> tuple[torch.Tensor, dict]:
    """A bright and a dark hook that fill less than half of their boxes: a full box is no mask of them."""
    image = 0.1 * torch.randn(1, *(size,) * spatial_dims, generator=torch.Generator().manual_seed(0))
    masks = torch.zeros(2, *image.shape[1:], dtype=torch.bool)
    lengths, lows, boxes = (size * 7 // 16, size * 3 // 8), (size // 16, size // 2), []
    for number, (length, low) in enumerate(zip(lengths, lows, strict=True)):
        thick, block = length // 4, (slice(low, low + length),) * (spatial_dims - 2)
        thin, long = slice(low, low + thick), slice(low, low + length)
        masks[(number, thin, long, *block)] = True
        masks[(number, long, thin if number == 0 else slice(low + length - thick, low + length), *block)] = True
        boxes.append([low] * spatial_dims + [low + length] * spatial_dims)
        image[0, masks[number]] += 2.0 if number == 0 else -2.0
    return image, {"boxes": torch.tensor(boxes).float(), "labels": torch.arange(2), "masks": masks}


def some_targets(sizes: list[tuple[int, ...]], counts: list[int]) -> list[dict]:
    generator = torch.Generator().manual_seed(3)
    targets = []
    for size, count in zip(sizes, counts, strict=True):
        corners = torch.rand(count, 2, len(size), generator=generator).sort(dim=1).values
        boxes = (corners * torch.tensor(size)).flatten(1)
        boxes[:, len(size) :] = torch.minimum(boxes[:, len(size) :] + 8, torch.tensor(size))
        masks = torch.rand(count, *size, generator=generator) < 0.6
        targets.append({"boxes": boxes, "labels": torch.arange(count) % 2, "masks": masks})
    return targets


def mask_overlap(found: dict, target: dict) -> torch.Tensor:
    pair = found["masks"][:, None], target["masks"][None]
    return (pair[0] & pair[1]).flatten(2).sum(2) / (pair[0] | pair[1]).flatten(2).sum(2)


class TestBlendMask(DetectorTester):
    needs_masks = True
    rate = 0.003
    steps = {2: 90, 3: 90}

    def make(self, spatial_dims, **options):
        return BlendMask(spatial_dims, 1, 2, **{**SMALL, **options})

    def default(self, spatial_dims):
        return BlendMask(spatial_dims, 1, 2)

    def check_autocast(self, detector, images):
        """As for FCOS: what bfloat16 costs the network is a share of a stride."""
        shapes = detector.network.part_shapes(images.shape[2:])
        with torch.no_grad():
            raw = unpack(detector.network(images), shapes)["places"]
            with torch.autocast("cpu", torch.bfloat16):
                low = unpack(detector.network(images), shapes)["places"].float()
        assert (raw - low)[:, 3:].abs().max() < 0.0125

    def run_whole(self, detector, images):
        """The masks of as many places as learn; which ones does not matter to what is kept."""
        network = detector.network
        parts = unpack(network(images), network.part_shapes(images.shape[2:]))
        place = torch.zeros(detector.masks_per_image, dtype=torch.long)
        attention = convolution_at(network.attention, parts["features 0"], place, place)
        bases = parts["bases"].sum() * torch.empty(len(place), network.bases, *detector.base_size)
        logits = blend(attention.unflatten(1, (network.bases, *network.attention_size)), bases)
        binary_cross_entropy_with_logits(logits, torch.empty_like(logits))

    # --- losses ----------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("least", [1000, 3])
    def test_the_mask_loss_is_that_of_the_paper(self, dims, least, monkeypatch):
        """From the attention of all places, one place at a time, bases sampled by PyTorch."""
        detector, sizes = self.make(dims, masks_per_image=least), [SHAPES[dims], tuple(n - 7 for n in SHAPES[dims])]
        targets = some_targets(sizes, [4, 3])
        images = [torch.randn(1, *size) for size in sizes]
        drawn = []
        sample = blendmask.balanced_sample
        monkeypatch.setattr(blendmask, "balanced_sample", lambda *a: drawn.append((a[0], *sample(*a))) or drawn[-1][1:])
        loss = detector(images, targets)[detector.mask_key].item()
        matches, learned, _ = drawn[0]
        positives = (matches >= 0).sum(1)
        assert learned.sum(1).tolist() == positives.clamp(max=least).tolist() and (positives > 3).all()
        assert not (learned & (matches < 0)).any()
        network, points = detector.network, torch.cat(detector.places(SHAPES[dims], torch.device("cpu")))
        padded = torch.zeros(2, 1, *SHAPES[dims])
        for row, image in zip(padded, images, strict=True):
            row[(0, *map(slice, image.shape[1:]))] = image[0]
        parts = unpack(network(padded), network.part_shapes(SHAPES[dims]))
        attention = torch.cat([network.attention(parts[f"features {k}"]).flatten(2) for k in range(4)], dim=2)
        total = weight = 0.0
        for image, place in learned.nonzero().tolist():
            target, match = targets[image], matches[image, place]
            box, point = target["boxes"][match], points[place]
            low, high = point - box[:dims], box[dims:] - point
            central = (torch.minimum(low, high) / torch.maximum(low, high)).prod().item() ** (1 / dims)
            lines = [box[a] + (torch.arange(12) + 0.5) / 12 * (box[dims + a] - box[a]) for a in range(dims)]
            spots = torch.stack(torch.meshgrid(*lines, indexing="ij"), dim=-1)
            fine = parts["bases"].shape[2:]
            places = (2 * (spots / 2) / torch.tensor(fine) - 1).flip(-1)  # bases have stride 2
            bases = grid_sample(
                parts["bases"][image : image + 1], places[None], align_corners=False, padding_mode="border"
            )[0]
            mode = {2: "bilinear", 3: "trilinear"}[dims]
            shares = interpolate(attention[image, :, place].view(1, 4, *[4] * dims), (12,) * dims, mode=mode)[0]
            logits = (shares.softmax(0) * bases).sum(0)
            share = roi_align(target["masks"][match][None, None].double(), box[None], torch.tensor([0]), 12)[0, 0]
            wanted = (share >= 0.5 - 1e-9).float()
            total += central * binary_cross_entropy_with_logits(logits, wanted).item()
            weight += central
        assert loss == pytest.approx(total / weight, rel=1e-4)

    def test_the_generator_of_torch_draws(self, dims):
        detector, targets = self.make(dims, masks_per_image=2), some_targets([SHAPES[dims]] * 2, [4, 3])
        losses = []
        for seed in (0, 0, 1):
            torch.manual_seed(seed)
            losses.append(detector(self.images(dims), targets)["mask"].item())
        assert losses[0] == losses[1] != losses[2]

    def test_the_semantic_loss(self, dims):
        detector, size = self.make(dims), SHAPES[dims]
        targets, images = some_targets([size] * 2, [2, 0]), self.images(dims)
        logits = unpack(detector.network(images), detector.network.part_shapes(size))["semantic"]
        wanted = torch.zeros_like(logits)
        cells = torch.nn.functional.avg_pool2d if dims == 2 else torch.nn.functional.avg_pool3d
        wanted[0] = cells(targets[0]["masks"].float()[:, None], 4)[:, 0]  # one object of each class
        probability = logits.sigmoid()
        terms = -(wanted * probability.log() + (1 - wanted) * (1 - probability).log())
        assert detector(images, targets)["semantic"].item() == pytest.approx(0.3 * terms.mean().item(), rel=1e-4)
        double = self.make(dims, semantic_weight=0.6)
        double.load_state_dict(detector.state_dict())
        assert double(images, targets)["semantic"].item() == pytest.approx(0.6 * terms.mean().item(), rel=1e-4)
        assert "semantic" not in self.make(dims, semantic_weight=None)(images, targets)

    def test_shares_of_classes(self):
        masks = torch.zeros(3, 6, 4, dtype=torch.bool)
        masks[0, :3], masks[1, 2:, :2], masks[2, 2:] = True, True, True
        labels, valid = torch.tensor([[0, 0, 1, -1], [-1] * 4]), torch.tensor([[1, 1, 1, 0], [0] * 4]).bool()
        targets = Targets(torch.zeros(2, 4, 4), labels, valid, [masks, torch.zeros(0, 2, 9, dtype=torch.bool)])
        found = blendmask.class_shares(targets, 2, (4, 4), (2, 3))
        assert found[0, 0, :, 0].tolist() == [1.0, 0.25], "12 + 4 of 16 voxels, and 4 of a cell that is half outside"
        assert found[0, 1, :, 0].tolist() == [0.5, 0.5] and found[0, :, :, 1:].sum() == 0 == found[1].sum()
        labels[0, 1], masks[2] = 1, True
        assert blendmask.class_shares(targets, 2, (4, 4), (2, 3))[0, 1, :, 0].tolist() == [1.0, 0.75]

    def test_without_objects_masks_cost_nothing(self, dims):
        losses = self.make(dims)(self.images(dims), [self.empty(dims), self.empty(dims)])
        assert losses["mask"] == 0 and losses["box_regression"] == 0 and losses["semantic"] > 0

    # --- masks -----------------------------------------------------------------------------------------------------
    def test_bases_without_pattern_fill_the_box_or_nothing(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=9).eval()
        last = detector.network.bottom.last[-1]
        torch.nn.init.zeros_(last.weight)
        torch.nn.init.constant_(last.bias, 5.0)
        full = detector(self.images(dims, 1))[0]
        centres = torch.stack(torch.meshgrid(*(torch.arange(n) + 0.5 for n in SHAPES[dims]), indexing="ij"), -1)
        for mask, box in zip(full["masks"], full["boxes"], strict=True):
            assert torch.equal(mask, ((centres >= box[:dims]) & (centres < box[dims:])).all(-1))
        assert full["masks"].any() and full["masks"].dtype == torch.bool
        torch.nn.init.constant_(last.bias, -5.0)
        assert not detector(self.images(dims, 1))[0]["masks"].any()
        detector.mask_threshold = 0.001
        assert torch.equal(detector(self.images(dims, 1))[0]["masks"], full["masks"])

    def test_masks_are_cut_from_the_bases(self, dims):
        """One base that is positive at the high half of the image, attention to all alike: so are all masks."""
        detector = self.make(dims, score_threshold=0.0, detections_per_image=30, bases=1, base_size=24).eval()
        size, images = SHAPES[dims], self.images(dims, 1)
        raw, shapes = detector.network(images), detector.network.part_shapes(size)
        parts = unpack(raw.detach().clone(), shapes)
        parts["bases"][:] = -4.0
        parts["bases"][:, :, size[0] // 4 :] = 4.0  # bases have stride 2
        changed = torch.cat([part.flatten(1) for part in parts.values()], dim=1)[:, None]
        found = detector.detect(changed, size, [size])[0]
        long = (found["boxes"][:, dims:] - found["boxes"][:, :dims]).amin(1) > 12
        masks, boxes = found["masks"][long], found["boxes"][long].round().int().tolist()
        crossing = [k for k, box in enumerate(boxes) if box[0] < size[0] // 2 - 4 and box[dims] > size[0] // 2 + 4]
        assert crossing
        for k in crossing:
            inside = tuple(slice(boxes[k][a] + 1, boxes[k][dims + a] - 1) for a in range(1, dims))
            line = masks[k][(slice(None), *inside)].flatten(1)
            assert not line[: size[0] // 2 - 2].any()
            assert line[size[0] // 2 + 2 : boxes[k][dims] - 1].all()

    def test_attention_is_asked_for_detections_only(self, dims, monkeypatch):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=5).eval()
        network, asked = detector.network, []
        original = network.attention_at
        monkeypatch.setattr(network, "attention_at", lambda f, i, p: asked.append(p) or original(f, i, p))
        monkeypatch.setattr(network.attention, "forward", None)
        found = detector(self.images(dims))
        assert [len(place) for place in asked] == [len(one["boxes"]) for one in found]
        every, shape = detector.places(SHAPES[dims], torch.device("cpu")), torch.tensor(SHAPES[dims])
        points = torch.cat(every)
        raw = network(self.images(dims))
        places = unpack(raw, network.part_shapes(SHAPES[dims]))["places"]
        for place, one, dense in zip(asked, found, places, strict=True):
            strides = detector._strides(every)[place].repeat(1, 2)
            low, high = (dense[-2 * dims :, place].T.clamp(min=0) * strides).chunk(2, dim=1)
            boxes = torch.cat([points[place] - low, points[place] + high], dim=1)
            boxes = torch.minimum(boxes.clamp(min=0), torch.cat([shape, shape]))
            assert torch.allclose(boxes, one["boxes"], atol=1e-4)

    def test_parts_change_nothing(self, dims, monkeypatch):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=7).eval()
        together = detector(self.images(dims))
        monkeypatch.setattr(blendmask, "_TOGETHER", 2 * 4 * 12**dims)
        for one, other in zip(together, detector(self.images(dims)), strict=True):
            assert len(one["masks"]) == 7 and torch.equal(one["masks"], other["masks"])

    def test_cropped_masks_are_the_blocks_of_full_ones(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=6).eval()
        torch.nn.init.normal_(detector.network.bottom.last[-1].weight)
        full = detector(self.images(dims))
        detector.crop_masks = True
        for one, crops in zip(full, detector(self.images(dims)), strict=True):
            assert isinstance(crops["masks"], list) and len(crops["masks"]) == len(one["masks"]) == 6
            assert one["masks"].any()
            for mask, crop, box in zip(one["masks"], crops["masks"], one["boxes"], strict=True):
                low, high = box[:dims].floor().int().tolist(), box[dims:].ceil().int().tolist()
                assert torch.equal(mask[tuple(map(slice, low, high))], crop) and mask.sum() == crop.sum()

    def test_masks_of_an_image_are_its_own(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=6).eval()
        torch.nn.init.normal_(detector.network.bottom.last[-1].weight)
        images = self.images(dims)
        for number, together in enumerate(detector(images)):
            alone = detector(images[number : number + 1])[0]["masks"]
            assert alone.any() and (alone != together["masks"]).float().mean() < 1e-3

    def test_no_detection_no_mask(self, dims):
        detector = self.make(dims, score_threshold=1.0).eval()
        assert detector(self.images(dims, 1))[0]["masks"].shape == (0, *SHAPES[dims])
        detector.crop_masks = True
        assert detector(self.images(dims, 1))[0]["masks"] == []

    # --- learning --------------------------------------------------------------------------------------------------
    def learn_hooks(self, spatial_dims: int, size: int, steps: int) -> None:
        torch.manual_seed(0)
        detector = self.make(spatial_dims)
        image, target = hooks(spatial_dims, size)
        optimizer = torch.optim.Adam(detector.network.parameters(), self.rate)
        for _ in range(steps):
            optimizer.zero_grad()
            sum(detector(image[None], [target]).values()).backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
        found = detector.eval()(image[None])[0]
        assert average_precision(found, target) == 1.0
        overlap = mask_overlap(found, target)
        best = overlap[:2].argmax(1)
        assert sorted(best.tolist()) == [0, 1] and torch.equal(found["labels"][:2], target["labels"][best])
        assert (overlap[:2].amax(1) > 0.5).all(), "mask AP at an IoU of 0.5 is 1"

    def test_it_learns_masks_of_one_image_in_2d(self):
        self.learn_hooks(2, 64, 80)

    @pytest.mark.slow
    def test_it_learns_masks_of_one_image_in_3d(self):
        self.learn_hooks(3, 32, 80)

    # --- options ---------------------------------------------------------------------------------------------------
    def test_sizes_for_each_axis(self, dims):
        attention, bins = (2, 4, 3)[:dims], (6, 10, 8)[:dims]
        detector = self.make(dims, attention_size=attention, base_size=bins)
        assert detector.network.attention.weight.shape[0] == 4 * math.prod(attention)
        assert detector(self.images(dims), [self.target(dims), self.empty(dims)])["mask"] > 0
        assert detector.eval()(self.images(dims))[0]["masks"].shape[1:] == SHAPES[dims]

    def test_defaults(self, dims):
        with torch.device("meta"):
            detector = self.default(dims)
        values = {2: (14, 56, 500), 3: (7, 28, 128)}[dims]
        found = detector.network.attention_size, detector.base_size, detector.masks_per_image
        assert found == ((values[0],) * dims, (values[1],) * dims, values[2])
        assert detector.network.strides[0] == (8,) * dims and detector.network.base_scale == (0.25,) * dims
        assert len(detector.network.bottom.refine) == 3 and len(detector.network.strides) == 5

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"bases": 0}, "bases must be 1 or more, got 0"),
            ({"masks_per_image": 0}, "masks_per_image must be 1 or more, got 0"),
            ({"attention_size": 0}, "attention_size must hold whole numbers of 1 or more, got 0"),
            ({"base_size": (12,)}, r"base_size must be one number or 2, one per axis, got \(12,\)"),
            ({"mask_threshold": 1.0}, "mask_threshold must be between 0 and 1, got 1.0"),
            ({"semantic_weight": 0.0}, "semantic_weight must be above 0, or None"),
            ({"attention_size": (2, 2, 2)}, "attention_size must be one number or 2"),
            ({"reach": -1}, "reach must be a positive number"),
        ],
    )
    def test_options_out_of_range(self, options, message):
        with pytest.raises(ValueError, match=message):
            self.make(2, **options)
        with pytest.raises(ValueError, match="spatial_dims must be 2 or 3, got 1"):
            self.make(1)

    def test_masks_are_needed(self, dims):
        target = self.target(dims)
        del target["masks"]
        with pytest.raises(ValueError, match="has no 'masks'"):
            self.make(dims)(self.images(dims, 1), [target])
