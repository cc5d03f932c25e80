# SPDX-License-Identifier: Apache-2.0
"""SOLOv2: the contract, losses, choice of masks and learning."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from detector_tester import SMALL as SHAPES
from detector_tester import DetectorTester, average_precision, objects
from scipy import ndimage

from monai_labelfx.detectors import _solov2_masks
from monai_labelfx.detectors._packed import unpack
from monai_labelfx.detectors._selected_conv import convolution_at
from monai_labelfx.detectors._solov2_masks import squared_dice
from monai_labelfx.detectors._targets import Targets
from monai_labelfx.detectors.solov2 import SOLOv2
from monai_labelfx.ops.matrix_nms import mask_iou

SMALL = {
    "backbone": {"depth": 10, "features": 8},
    "pyramid_channels": 24,
    "extra_levels": 0,
    "head_depth": 1,
    "head_channels": 24,
    "image_size": 80,
}


def some_targets(shape: tuple[int, ...]) -> Targets:
    """Two images: two objects of which one lies in the other, with a row between them that is not valid, and none."""
    axes = len(shape)
    masks = torch.zeros(2, *shape, dtype=torch.bool)
    masks[(0, *[slice(4, 28)] * axes)] = True
    masks[(1, *[slice(12, 20)] * axes)] = True
    boxes = torch.zeros(2, 3, 2 * axes)
    boxes[0, 0] = torch.tensor([4.0] * axes + [28.0] * axes)
    boxes[0, 2] = torch.tensor([12.0] * axes + [20.0] * axes)
    labels = torch.tensor([[1, -1, 0], [-1, -1, -1]])
    return Targets(boxes, labels, labels >= 0, [masks, masks[:0]])


class TestSOLOv2(DetectorTester):
    needs_masks = True
    rate = 0.001
    steps = {2: 90, 3: 60}

    def make(self, spatial_dims, **options):
        return SOLOv2(spatial_dims, 1, 2, **{**SMALL, **options})

    def default(self, spatial_dims):
        return SOLOv2(spatial_dims, 1, 2)

    def run_whole(self, detector, images):
        """The network, and the kernels and masks of as many cells as an image has at most."""
        size, network = tuple(images.shape[2:]), detector.network
        parts = unpack(network(images), network.part_shapes(size))
        cells = torch.zeros(detector.masks_per_image, dtype=torch.int64)
        kernels = convolution_at(network.kernel, parts["features0"], cells, cells)
        maps = parts["masks"][0].flatten(1)
        squared_dice(kernels @ maps, torch.empty(len(cells), maps.shape[1]))

    def check_autocast(self, detector, images):
        """Class probabilities and mask features of a network that ran in bfloat16, beside those of float32."""
        size = tuple(images.shape[2:])
        with torch.no_grad():
            exact = unpack(detector.network(images), detector.network.part_shapes(size))
            with torch.autocast("cpu", torch.bfloat16):
                low = unpack(detector.network(images).float(), detector.network.part_shapes(size))
        for name in exact:
            scale = exact[name].abs().max() if name.startswith("logits") else exact[name].std()
            assert (exact[name] - low[name]).abs().mean() < 0.05 * scale, name

    # --- losses ----------------------------------------------------------------------------------------------------
    def test_losses_of_the_paper(self, dims):
        detector = self.make(dims, alpha=0.4, gamma=1.5, dice_weight=2.0)
        shape = SHAPES[dims]
        targets, network = some_targets(shape), detector.network
        parts = network.part_shapes(shape)
        count = sum(math.prod(part) for part in parts.values())
        raw = torch.randn(2, 1, count, generator=torch.Generator().manual_seed(1))
        losses = detector.compute_losses(raw, shape, targets)
        owners = detector.assign(shape, targets)
        assert {0, 2} <= set(owners[0].tolist()) and set(owners[1].tolist()) == {-1}

        exact = unpack(raw.double(), parts)
        levels = range(len(network.strides))
        logits = torch.cat([exact[f"logits{level}"].flatten(2) for level in levels], dim=2)
        focal = 0.0
        for image, row in enumerate(owners.tolist()):
            for cell, owner in enumerate(row):
                for number in range(2):
                    p = 1 / (1 + math.exp(-logits[image, number, cell].item()))
                    if owner >= 0 and targets.labels[image, owner] == number:
                        focal -= 0.4 * (1 - p) ** 1.5 * math.log(p)
                    else:
                        focal -= 0.6 * p**1.5 * math.log(1 - p)
        kernel = network.kernel.double()
        kernels = torch.cat([kernel(exact[f"features{level}"]).flatten(2) for level in levels], dim=2)
        dice = []
        stride = network.mask_stride
        for cell, owner in enumerate(owners[0].tolist()):
            if owner >= 0:
                found = torch.einsum("e,e...->...", kernels[0, :, cell], exact["masks"][0]).sigmoid()
                true = targets.masks[0][min(owner, 1)].double()
                share = torch.zeros_like(found)
                for place in torch.ones_like(share).nonzero().tolist():
                    block = true[tuple(slice(k * s, (k + 1) * s) for k, s in zip(place, stride, strict=True))]
                    share[tuple(place)] = block.sum() / math.prod(stride)
                low = found.square().sum() + 1e-3 + share.square().sum() + 1e-3
                dice.append((1 - 2 * (found * share).sum() / low).item())
        wanted = {"classification": focal / (len(dice) + 1), "mask": 2 * sum(dice) / len(dice)}
        assert len(dice) > 5
        assert {name: loss.item() for name, loss in losses.items()} == pytest.approx(wanted, rel=1e-4)

    def test_masks_of_few_cells_learn_where_many_have_an_object(self, dims, monkeypatch):
        detector = self.make(dims, masks_per_image=3)
        with torch.no_grad():
            owners = detector.assign(SHAPES[dims], some_targets(SHAPES[dims]))
        assert (owners >= 0).sum() > 3
        everywhere, few = [], []
        kernels_at = _solov2_masks.kernels_at

        def count(convolution, features, image, cell):
            few.append(len(cell))
            return kernels_at(convolution, features, image, cell)

        monkeypatch.setattr("monai_labelfx.detectors.solov2.kernels_at", count)
        detector.network.kernel.register_forward_hook(lambda *call: everywhere.append(call))
        detector(self.images(dims), [self.target(dims), self.empty(dims)])["mask"].backward()
        assert few == [3] and not everywhere
        assert detector.network.kernel.weight.grad.abs().sum() > 0

    def test_losses_of_any_raw_numbers_are_finite(self, dims):
        detector, shape = self.make(dims), SHAPES[dims]
        count = sum(math.prod(part) for part in detector.network.part_shapes(shape).values())
        for size in (0.0, 1e4, -1e4):
            raw = torch.full((2, 1, count), size, requires_grad=True)
            losses = detector.compute_losses(raw, shape, some_targets(shape))
            sum(losses.values()).backward()
            assert raw.grad.isfinite().all() and all(loss.isfinite() for loss in losses.values()), (size, losses)

    # --- evaluation ------------------------------------------------------------------------------------------------
    def test_masks_and_boxes_agree(self, dims):
        detector = self.make(dims, score_threshold=0.0).eval()
        found = detector(self.images(dims, 1))[0]
        masks = found["masks"]
        assert masks.dtype == torch.bool and masks.shape == (len(found["boxes"]), *SHAPES[dims]) and len(masks)
        for mask, box in zip(masks, found["boxes"].tolist(), strict=True):
            places = mask.nonzero()
            assert [*places.amin(0).tolist(), *(places.amax(0) + 1).tolist()] == box

    def test_blocks_are_the_masks(self, dims):
        detector = self.make(dims, score_threshold=0.0).eval()
        images = [torch.randn(1, *SHAPES[dims]), torch.randn(1, *(n - 7 for n in SHAPES[dims]))]
        whole = detector(images)
        detector.crop_masks = True
        for one, two in zip(whole, detector(images), strict=True):
            assert torch.equal(one["boxes"], two["boxes"]) and torch.equal(one["scores"], two["scores"])
            assert isinstance(two["masks"], list) and len(two["masks"]) == len(one["masks"]) > 0
            for mask, block, box in zip(one["masks"], two["masks"], one["boxes"].int().tolist(), strict=True):
                assert torch.equal(mask[tuple(slice(box[a], box[dims + a]) for a in range(dims))], block)

    def test_parts_change_nothing(self, dims, monkeypatch):
        detector = self.make(dims, score_threshold=0.0).eval()
        whole = detector(self.images(dims, 1))[0]
        monkeypatch.setattr(_solov2_masks, "_MOST_NUMBERS", 3000)
        parts = detector(self.images(dims, 1))[0]
        assert torch.equal(whole["masks"], parts["masks"]) and torch.allclose(whole["scores"], parts["scores"])

    def test_many_cells_that_pass_are_cut(self, dims, monkeypatch):
        """All cells score 1, and no comparison is of more than the best of them."""
        detector = self.make(dims, topk_per_level=20, score_threshold=0.05).eval()
        torch.nn.init.constant_(detector.network.cls_logits.bias, 50.0)
        torch.nn.init.zeros_(detector.network.cls_logits.weight)
        seen = []
        compare = _solov2_masks.compare_masks

        def count(kernels, *more):
            seen.append(len(kernels))
            return compare(kernels, *more)

        monkeypatch.setattr("monai_labelfx.detectors.solov2.compare_masks", count)
        found = detector(self.images(dims, 1))[0]
        assert seen == [20] and 0 < len(found["boxes"]) <= 20

    def crafted(self, detector, shape, cells):
        """Raw numbers with chosen scores at cells of level 0, and mask features that are 1 in the first half."""
        parts = detector.network.part_shapes(shape)
        numbers = {name: torch.zeros(1, *part) for name, part in parts.items()}
        for name, values in numbers.items():
            if name.startswith("logits"):
                values -= 20.0
        for (label, *place), logit in cells.items():
            numbers["logits0"][(0, label, *place)] = logit
        numbers["masks"] -= 9.0
        numbers["masks"][:, :, : parts["masks"][1] // 2] = 9.0
        torch.nn.init.zeros_(detector.network.kernel.weight)
        torch.nn.init.constant_(detector.network.kernel.bias, 1.0)
        return torch.cat([values.flatten(1) for values in numbers.values()], dim=1)[:, None]

    def test_the_largest_component_alone_is_kept(self, dims):
        parts = {}
        for largest in (False, True):
            torch.manual_seed(3)
            detector = self.make(dims, score_threshold=0.0, largest_component=largest).eval()
            found = detector(self.images(dims, 1))[0]["masks"]
            parts[largest] = [int(ndimage.label(mask.numpy(), np.ones((3,) * dims))[1]) for mask in found]
        assert max(parts[False]) > 1 and set(parts[True]) == {1}

    @pytest.mark.parametrize("kernel", ["gaussian", "linear"])
    def test_three_equal_masks_leave_one(self, dims, kernel):
        detector, shape = self.make(dims, nms_kernel=kernel), SHAPES[dims]
        cells = {(1, *[k] * dims): 3.0 - 1.5 * k for k in (0, 2, 4)} | {(0, *[3] * dims): 2.5}
        found = detector.detect(self.crafted(detector, shape, cells), shape, [shape])[0]
        assert found["scores"].isfinite().all()
        best = [torch.tensor(logit).sigmoid().item() for logit in (3.0, 2.5)]
        assert found["scores"][:2].tolist() == pytest.approx(best, abs=1e-4)
        assert found["labels"][:2].tolist() == [1, 0], "masks of another class suppress nothing"
        low = math.exp(-2) if kernel == "gaussian" else 0.0
        rest = [low * torch.tensor(logit).sigmoid().item() for logit in (0.0, -3.0)]
        assert found["scores"][2:].tolist() == pytest.approx([r for r in rest if r >= 0.05], abs=1e-4)
        half = detector.network.mask_stride[0] * (detector.network.mask_shape(shape)[0] // 2)
        wanted = torch.zeros(shape, dtype=torch.bool)
        wanted[:half] = True
        assert torch.equal(found["masks"][0], wanted)

    def test_a_cell_beside_a_better_one_does_not_count(self, dims):
        detector, shape = self.make(dims), SHAPES[dims]
        better, after = (1, *[2] * dims), (1, *[3] * dims)
        found = detector.detect(self.crafted(detector, shape, {better: 2.0, after: 1.0}), shape, [shape])[0]
        assert len(found["scores"]) == 1
        apart = (1, 4, *[3] * (dims - 1))
        found = detector.detect(self.crafted(detector, shape, {better: 2.0, apart: 1.9}), shape, [shape])[0]
        assert len(found["scores"]) == 2

    def test_the_score_counts_the_mean_probability(self, dims):
        detector, shape = self.make(dims), SHAPES[dims]
        raw = self.crafted(detector, shape, {(0, *[3] * dims): 2.0})
        torch.nn.init.constant_(detector.network.kernel.bias, 0.5 / 9 / detector.network.counts[2])
        found = detector.detect(raw, shape, [shape])[0]
        wanted = (torch.tensor(2.0).sigmoid() * torch.tensor(0.5).sigmoid()).item()
        assert found["scores"].item() == pytest.approx(wanted, abs=1e-5)
        detector.update_threshold = wanted + 0.01
        assert len(detector.detect(raw, shape, [shape])[0]["scores"]) == 0

    def test_cells_of_low_score_are_not_looked_at(self, dims):
        detector, shape = self.make(dims, update_threshold=0.0), SHAPES[dims]
        raw = self.crafted(detector, shape, {(0, *[3] * dims): 2.0, (1, *[3] * dims): -3.0})
        for threshold, labels in ((0.1, [0]), (0.04, [0, 1])):
            detector.score_threshold = threshold
            assert detector.detect(raw, shape, [shape])[0]["labels"].tolist() == labels

    def test_a_mask_outside_of_its_image_takes_label_and_score_along(self, dims):
        """The best one lies where a smaller image of a batch is padded."""
        detector, shape = self.make(dims), SHAPES[dims]
        cells = {(1, *[1] * dims): 3.0, (0, *[3] * dims): 2.0}
        raw = self.crafted(detector, shape, cells)
        parts = unpack(raw, detector.network.part_shapes(shape))  # views
        kernel = detector.network.kernel
        torch.nn.init.zeros_(kernel.bias)
        torch.nn.init.dirac_(kernel.weight)  # a kernel is what its cell has as features
        parts["masks"][:] = -9.0
        parts["masks"][:, 0, -3:] = parts["masks"][:, 1, :6] = 9.0
        for channel, (_, *place) in enumerate(cells):
            parts["features0"][(0, channel, *place)] = 1.0
        whole = detector.detect(raw, shape, [shape])[0]
        assert whole["labels"].tolist() == [1, 0]
        found = detector.detect(raw, shape, [(16, *shape[1:])])[0]
        assert found["labels"].tolist() == [0] and torch.equal(found["scores"], whole["scores"][1:])
        assert found["boxes"].tolist() == [[0.0] * dims + [12.0, *map(float, shape[1:])]]

    def test_masks_too_small_for_their_level_are_dropped(self, dims):
        detector, shape = self.make(dims), SHAPES[dims]
        raw = self.crafted(detector, shape, {(0, *[3] * dims): 2.0})
        parts = unpack(raw, detector.network.part_shapes(shape))  # views
        parts["masks"][:] = -9.0
        assert len(detector.detect(raw, shape, [shape])[0]["masks"]) == 0
        parts["masks"][(0, slice(None), *[slice(2, 4)] * 2, *[3] * (dims - 2))] = 99.0  # 4 voxels
        assert len(detector.detect(raw, shape, [shape])[0]["masks"]) == 1
        detector.scale_ranges[0] = (100.0, 200.0)
        assert len(detector.detect(raw, shape, [shape])[0]["masks"]) == 0

    # --- learning --------------------------------------------------------------------------------------------------
    def check_learned(self, dims):
        found, target = self.overfit(dims)
        assert average_precision(found, target) == 1.0
        overlap = mask_iou(torch.cat([found["masks"], target["masks"]]))[: len(found["masks"]), -2:]
        overlap = overlap * (found["labels"][:, None] == target["labels"])
        assert sorted(overlap[:2].argmax(dim=1).tolist()) == [0, 1] and (overlap[:2].amax(dim=1) > 0.5).all()

    def test_it_learns_one_image_in_2d(self):
        self.check_learned(2)

    def test_it_learns_one_image_in_3d(self):
        self.check_learned(3)

    # --- options ---------------------------------------------------------------------------------------------------
    def test_levels_of_any_pyramid(self, dims):
        image, target = objects(dims, 64 if dims == 2 else 32)
        target = self.with_masks(target, image.shape[1:])
        for first, extra in ((2, 2), (3, 1), (4, 0)):
            detector = self.make(dims, first_level=first, extra_levels=extra, image_size=None)
            levels = 4 - (first - 2) + extra
            assert len(detector.scale_ranges) == levels == len(detector.network.grids((64,) * dims))
            losses = detector(image[None], [target])
            assert all(loss.isfinite() for loss in losses.values()) and losses["mask"] > 0
            detector.eval()(image[None])

    def test_thick_slices(self, dims):
        flat = {
            "depth": 10,
            "features": 8,
            "stem_stride": (2,) * (dims - 1) + (1,),
            "pool_stride": (2,) * (dims - 1) + (1,),
        }
        detector = self.make(dims, backbone=flat)
        assert detector.network.mask_stride == (2,) * (dims - 1) + (1,)
        shape = (32,) * (dims - 1) + (10,)
        grids = detector.network.grids(shape)
        assert all(grid[-1] < grid[0] * 2 for grid in grids) and detector.network.level_shapes(shape)[0][-1] == 10
        target = self.with_masks(
            {"boxes": torch.tensor([[3.0] * dims + [9.0] * dims]), "labels": torch.tensor([1])}, shape
        )
        losses = detector(torch.randn(1, 1, *shape), [target])
        assert all(loss.isfinite() for loss in losses.values()) and losses["mask"] > 0
        detector.score_threshold = 0.0
        assert detector.eval()(torch.randn(1, 1, *shape))[0]["masks"].shape[1:] == shape

    def test_options_out_of_range(self, dims):
        for options, message in (
            ({"center_share": 0.0}, "center_share must be between 0 and 1"),
            ({"mask_threshold": 1.0}, "mask_threshold must be between 0 and 1"),
            ({"update_threshold": 2.0}, "update_threshold must be 0 to 1"),
            ({"nms_kernel": "hard"}, "nms_kernel of 'gaussian', 'linear'"),
            ({"nms_sigma": 0.0}, "nms_sigma above 0"),
            ({"head_depth": 0}, "head_depth must be 1 or more"),
            ({"mask_channels": 0}, "mask_channels must be 1 or more"),
            ({"masks_per_image": 0}, "masks_per_image must be 1 or more"),
            ({"mask_stride": 0}, "mask_stride must hold whole numbers"),
            ({"image_size": 0}, "image_size must be a number of voxels above 0"),
            ({"cell_sizes": [4.0]}, "cell_sizes must have one entry for each of the 4 levels, got 1"),
        ):
            with pytest.raises(ValueError, match=message):
                self.make(dims, **options)
