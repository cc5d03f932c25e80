# SPDX-License-Identifier: Apache-2.0
"""The contract of a detector, written once: a test of a detector subclasses this and adds what its paper says."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from monai.data import MetaTensor

SMALL = {2: (48, 40), 3: (32, 40, 36)}


def objects(spatial_dims: int, size: int, *, seed: int = 0, classes: int = 2) -> tuple[torch.Tensor, dict]:
    """A noisy image (1, *spatial) with one bright and one dark block, and its target."""
    generator = torch.Generator().manual_seed(seed)
    shape = (size,) * spatial_dims
    image = 0.1 * torch.randn(1, *shape, generator=generator)
    quarter = size // 4
    boxes = []
    for number, (start, length) in enumerate([(2, 2 * quarter - 3), (2 * quarter + 1, quarter + 3)][:classes]):
        low = [start + (axis if number == 0 else 0) for axis in range(spatial_dims)]
        high = [value + length for value in low]
        image[(0, *(slice(a, b) for a, b in zip(low, high, strict=True)))] += 2.0 if number == 0 else -2.0
        boxes.append([*low, *high])
    return image, {"boxes": torch.tensor(boxes, dtype=torch.float32), "labels": torch.arange(len(boxes))}


def nothing(spatial_dims: int) -> dict:
    """The target of an image without objects."""
    return {"boxes": torch.zeros(0, 2 * spatial_dims), "labels": torch.zeros(0, dtype=torch.long)}


def average_precision(found: dict, target: dict, iou: float = 0.5) -> float:
    """1 when every object is found by the first detections and no box outscores them, of one image, all classes."""
    from monai.data.box_utils import box_iou

    overlap = box_iou(found["boxes"], target["boxes"]) * (found["labels"][:, None] == target["labels"][None])
    taken, precision, correct = set(), [], 0
    for rank, row in enumerate(overlap):
        best = max((o.item(), i) for i, o in enumerate(row) if i not in taken) if len(taken) < len(row) else (0.0, -1)
        if best[0] >= iou:
            taken.add(best[1])
            correct += 1
            precision.append(correct / (rank + 1))
    return sum(precision) / len(target["boxes"])


class DetectorTester:
    """What every detector promises. A subclass gives ``make`` and may override the numbers below."""

    needs_masks = False
    rate = 0.01
    steps = {2: 120, 3: 120}
    size = {2: 64, 3: 32}
    gibibytes = 8.0

    def make(self, spatial_dims: int, **options) -> torch.nn.Module:
        """A small detector of two classes on one channel."""
        raise NotImplementedError

    def default(self, spatial_dims: int) -> torch.nn.Module:
        """The detector with the defaults of its constructor."""
        raise NotImplementedError

    def target(self, spatial_dims: int, shape: tuple[int, ...] | None = None) -> dict:
        target = {"boxes": torch.tensor([[3.0] * spatial_dims + [25.0] * spatial_dims]), "labels": torch.tensor([1])}
        return self.with_masks(target, shape or SMALL[spatial_dims])

    def empty(self, spatial_dims: int, shape: tuple[int, ...] | None = None) -> dict:
        return self.with_masks(nothing(spatial_dims), shape or SMALL[spatial_dims])

    def with_masks(self, target: dict, shape: tuple[int, ...]) -> dict:
        if self.needs_masks:
            masks = torch.zeros(len(target["boxes"]), *shape, dtype=torch.bool)
            axes = len(shape)
            for mask, box in zip(masks, target["boxes"].int().tolist(), strict=True):
                mask[tuple(slice(box[a], box[axes + a]) for a in range(axes))] = True
            target["masks"] = masks
        return target

    def images(self, spatial_dims: int, number: int = 2) -> torch.Tensor:
        return torch.randn(number, 1, *SMALL[spatial_dims], generator=torch.Generator().manual_seed(1))

    @pytest.fixture(params=[2, 3], ids=["2d", "3d"])
    def dims(self, request):
        torch.manual_seed(0)
        return request.param

    # --- the network -----------------------------------------------------------------------------------------------
    def test_the_network_returns_one_tensor(self, dims):
        detector = self.make(dims)
        raw = detector.network(self.images(dims))
        assert isinstance(raw, torch.Tensor) and raw.ndim == 3 and len(raw) == 2
        assert {id(p) for p in detector.parameters()} == {id(p) for p in detector.network.parameters()}

    def test_the_network_is_exported(self, dims):
        network, images = self.make(dims).network.eval(), self.images(dims, 1)
        exported = torch.export.export(network, (images,)).module()
        assert torch.allclose(exported(images), network(images), atol=1e-5)

    @pytest.mark.slow
    def test_the_network_runs_in_onnxruntime(self, dims, tmp_path):
        import onnxruntime

        network, images = self.make(dims).network.eval(), self.images(dims, 1)
        torch.onnx.export(network, (images,), str(tmp_path / "network.onnx"), dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(str(tmp_path / "network.onnx"), providers=["CPUExecutionProvider"])
        found = session.run(None, {session.get_inputs()[0].name: images.numpy()})[0]
        assert torch.allclose(torch.as_tensor(found), network(images), atol=1e-4)

    # --- training --------------------------------------------------------------------------------------------------
    @pytest.mark.parametrize("full", ["all", "some", "none"])
    def test_losses_reach_every_parameter(self, dims, full):
        detector = self.make(dims)
        targets = [self.target(dims) if full != "none" else self.empty(dims)]
        targets.append(self.target(dims) if full == "all" else self.empty(dims))
        losses = detector(self.images(dims), targets)
        assert {detector.cls_key, detector.box_reg_key} <= set(losses)
        for name, loss in losses.items():
            assert loss.ndim == 0 and loss.isfinite() and loss.requires_grad, name
        sum(losses.values()).backward()
        missing = [name for name, p in detector.named_parameters() if p.grad is None or not p.grad.isfinite().all()]
        assert not missing
        assert losses[detector.cls_key] > 0
        if full == "none":
            assert losses[detector.box_reg_key] == 0

    def test_targets_are_left_alone_and_meta_tensors_are_plain_inside(self, dims):
        detector = self.make(dims)
        image = MetaTensor(self.images(dims, 1)[0], affine=torch.eye(4))
        target = self.target(dims)
        target["boxes"] = MetaTensor(target["boxes"], affine=torch.eye(4))
        before = copy.deepcopy(target)
        losses = detector([image], [target])
        assert all(type(loss) is torch.Tensor for loss in losses.values())
        assert target.keys() == before.keys() and all(torch.equal(target[k], before[k]) for k in before)
        assert all(type(value) is torch.Tensor for value in detector.eval()([image])[0].values())

    def test_images_of_several_sizes_make_a_batch(self, dims):
        shapes = [(32,) * dims, tuple(33 + 5 * axis for axis in range(dims))]
        images = [torch.randn(1, *shape) for shape in shapes]
        detector = self.make(dims)
        targets = [self.with_masks(self.target(dims, shape), shape) for shape in shapes]
        assert all(loss.isfinite() for loss in detector(images, targets).values())
        for found, shape in zip(detector.eval()(images), shapes, strict=True):
            boxes = found["boxes"]
            assert boxes.shape == (len(found["scores"]), 2 * dims)
            assert (boxes >= 0).all() and (boxes[:, dims:] <= boxes.new_tensor(shape)).all()
            if self.needs_masks:
                assert found["masks"].shape == (len(boxes), *shape)

    def test_boxes_that_cover_nothing_are_dropped_with_one_warning(self, dims):
        detector = self.make(dims)
        target = nothing(dims)
        good = [3.0] * dims + [25.0] * dims
        flat = [3.0] * dims + [3.0] + [9.0] * (dims - 1)
        inverted = [9.0] * dims + [4.0] * dims
        outside = [500.0] * dims + [510.0] * dims
        target = {"boxes": torch.tensor([flat, good, inverted, outside]), "labels": torch.tensor([0, 1, 0, 1])}
        if self.needs_masks:
            target["masks"] = self.target(dims)["masks"].expand(4, *SMALL[dims])
        image = MetaTensor(self.images(dims, 1)[0], meta={"filename_or_obj": "/somewhere/film.png"})
        torch.manual_seed(5)
        with pytest.warns(UserWarning, match=r"3 of 4 boxes of film.png") as caught:
            losses = detector([image], [target])
        assert len([w for w in caught if "boxes of" in str(w.message)]) == 1
        torch.manual_seed(5)
        clean = detector([image], [self.target(dims)])
        assert all(torch.equal(losses[name], clean[name]) for name in losses)

    def test_bad_targets_are_named(self, dims):
        detector, images = self.make(dims), self.images(dims, 1)
        with pytest.raises(ValueError, match="needs targets"):
            detector(images)
        with pytest.raises(ValueError, match="one entry for each of the 1 images, got 0"):
            detector(images, [])
        with pytest.raises(ValueError, match="has no 'labels'"):
            detector(images, [{"boxes": torch.zeros(0, 2 * dims)}])
        beyond = self.target(dims) | {"labels": torch.tensor([2])}
        with pytest.raises(ValueError, match="image 0 of the batch must be class numbers 0 to 1, got 2 to 2"):
            detector(images, [beyond])
        with pytest.raises(ValueError, match="not finite"):
            detector(images, [self.target(dims) | {"boxes": torch.full((1, 2 * dims), torch.nan)}])
        with pytest.raises(ValueError, match="must have boxes"):
            detector(images, [self.target(dims) | {"boxes": torch.zeros(1, 3)}])
        with pytest.raises(ValueError, match="must have shape"):
            detector(images[:, :, 0], [self.target(dims)])

    # --- evaluation ------------------------------------------------------------------------------------------------
    def test_detections_are_plain_sorted_and_inside(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=7).eval()
        found = detector(self.images(dims))
        assert len(found) == 2
        for one in found:
            assert 0 < len(one["boxes"]) <= 7 and one["boxes"].dtype == torch.float32 == one["scores"].dtype
            assert one["labels"].dtype == torch.int64 and set(one["labels"].tolist()) <= {0, 1}
            assert (one["scores"].diff() <= 0).all() and (0 <= one["scores"]).all() and (one["scores"] <= 1).all()
            assert (one["boxes"][:, dims:] > one["boxes"][:, :dims]).all()

    def test_an_image_is_judged_alone(self, dims):
        detector = self.make(dims, score_threshold=0.0, detections_per_image=5).eval()
        images = self.images(dims)
        for alone, together in zip([detector(images[i : i + 1])[0] for i in (0, 1)], detector(images), strict=True):
            assert torch.allclose(alone["scores"], together["scores"], atol=1e-5)
            assert torch.allclose(alone["boxes"], together["boxes"], atol=1e-2)

    def test_autocast_moves_no_box(self, dims):
        detector = self.make(dims, score_threshold=0.0).eval()
        images = self.images(dims)
        raw = detector.network(images)
        shape = tuple(images.shape[2:])
        plain = detector.detect(raw, shape, [shape] * 2)
        with torch.autocast("cpu", torch.bfloat16):
            mixed = detector.detect(raw, shape, [shape] * 2)
            whole = detector(images)
        for first, second, third in zip(plain, mixed, whole, strict=True):
            assert torch.equal(first["boxes"], second["boxes"]) and third["boxes"].dtype == torch.float32
        self.check_autocast(detector, images)

    def check_autocast(self, detector, images) -> None:
        """Boxes of all places, decoded from a network that ran in bfloat16, beside those of float32."""
        shape = tuple(images.shape[2:])
        with torch.no_grad():
            raw = detector.network(images)
            with torch.autocast("cpu", torch.bfloat16):
                low = detector.network(images).float()
        places = detector.places(shape, images.device)
        counts = [len(level) for level in places]
        first = [detector.decode(r, p, i) for i, (r, p) in enumerate(zip(raw[0].split(counts, 1), places, strict=True))]
        second = [
            detector.decode(r, p, i) for i, (r, p) in enumerate(zip(low[0].split(counts, 1), places, strict=True))
        ]
        assert (torch.cat(first) - torch.cat(second)).abs().max() < 0.05

    def test_a_network_in_half_precision(self, dims):
        detector = self.make(dims, score_threshold=0.0)
        detector.network.bfloat16()
        images = self.images(dims).bfloat16()
        losses = detector(images, [self.target(dims), self.empty(dims)])
        assert all(loss.isfinite() and loss.dtype == torch.float32 for loss in losses.values())
        found = detector.eval()(images)[0]
        assert len(found["boxes"]) and found["boxes"].dtype == found["scores"].dtype == torch.float32

    def test_evaluation_with_gradients_enabled(self, dims):
        found = self.make(dims, score_threshold=0.0).eval()(self.images(dims, 1))[0]
        assert not found["boxes"].requires_grad and not found["scores"].requires_grad

    # --- learning --------------------------------------------------------------------------------------------------
    def overfit(self, spatial_dims: int, **options) -> tuple[dict, dict]:
        torch.manual_seed(0)
        detector = self.make(spatial_dims, **options)
        image, target = objects(spatial_dims, self.size[spatial_dims])
        target = self.with_masks(target, image.shape[1:])
        optimizer = torch.optim.Adam(detector.network.parameters(), self.rate)
        for _ in range(self.steps[spatial_dims]):
            optimizer.zero_grad()
            sum(detector(image[None], [target]).values()).backward()
            torch.nn.utils.clip_grad_norm_(detector.parameters(), 10.0)
            optimizer.step()
        return detector.eval()(image[None])[0], target

    def test_it_learns_one_image_in_2d(self):
        found, target = self.overfit(2)
        assert average_precision(found, target) == 1.0

    @pytest.mark.slow
    def test_it_learns_one_image_in_3d(self):
        found, target = self.overfit(3)
        assert average_precision(found, target) == 1.0

    # --- options that all have -------------------------------------------------------------------------------------
    def test_class_agnostic(self, dims):
        detector = self.make(dims, class_agnostic=True, score_threshold=0.0)
        losses = detector(self.images(dims), [self.target(dims) | {"labels": torch.tensor([9])}, self.empty(dims)])
        assert all(loss.isfinite() for loss in losses.values())
        assert set(detector.eval()(self.images(dims))[0]["labels"].tolist()) == {0}

    def test_the_image_gate_closes(self, dims):
        detector = self.make(dims, image_gate=0.5, score_threshold=0.0)
        losses = detector(self.images(dims), [self.target(dims), self.empty(dims)])
        losses[detector.gate_key].backward()
        assert detector.network.gate.weight.grad.abs().sum() > 0
        detector.eval()
        torch.nn.init.constant_(detector.network.gate.bias, 50.0)
        assert len(detector(self.images(dims))[0]["boxes"]) > 0
        torch.nn.init.constant_(detector.network.gate.bias, -50.0)
        assert all(len(value) == 0 for found in detector(self.images(dims)) for value in found.values())

    def test_code_written_for_monai_runs(self, dims):
        detector = self.make(dims)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".* changes nothing")
            detector.set_atss_matcher(num_candidates=4, center_in_gt=False)
            detector.set_hard_negative_sampler(batch_size_per_image=16, positive_fraction=0.5, pool_size=20, min_neg=4)
            detector.set_box_coder_weights([1.0] * (2 * dims))
        detector.set_target_keys(box_key="box", label_key="label")
        detector.set_box_selector_parameters(
            score_thresh=0.0, topk_candidates_per_level=50, nms_thresh=0.22, detections_per_img=9
        )
        detector.set_sliding_window_inferer(
            roi_size=[32] * dims, overlap=0.25, sw_batch_size=1, mode="constant", device="cpu"
        )
        target = self.target(dims)
        renamed = {"box": target.pop("boxes"), "label": target.pop("labels"), **target}
        outputs = detector([self.images(dims)[0]], [renamed])
        (outputs[detector.cls_key] + outputs[detector.box_reg_key]).backward()
        detector.eval()
        for use_inferer in (False, True):
            found = detector([self.images(dims)[0]], use_inferer=use_inferer)[0]
            assert {"box", "label", "label_scores"} <= set(found) and 0 < len(found["box"]) <= 9

    def test_settings_out_of_range(self, dims):
        detector = self.make(dims)
        with pytest.raises(ValueError, match="score_thresh must be 0 to 1, got 2"):
            detector.set_box_selector_parameters(score_thresh=2)
        with pytest.raises(ValueError, match="return logits"):
            detector.set_box_selector_parameters(apply_sigmoid=False)
        with pytest.raises(ValueError, match="needs set_sliding_window_inferer"):
            detector.eval()(self.images(dims), use_inferer=True)
        with pytest.raises(ValueError, match="num_classes must be 1 or more"):
            type(detector)(dims, 1, 0)

    # --- cost ------------------------------------------------------------------------------------------------------
    def run_whole(self, detector, images) -> None:
        """Everything of the network that a step of training runs, on "meta"; heads for chosen places are added here."""
        detector.network(images)

    def test_the_memory_of_the_3d_defaults_is_bounded(self):
        """Parameters, gradients, Adam's moments and all that the backward pass of a 96^3 patch keeps."""
        with torch.device("meta"):
            detector = self.default(3)
            kept = {}  # by address, and alive: a number of a dead one would come again

            def remember(tensor: torch.Tensor) -> torch.Tensor:
                storage = tensor.untyped_storage()
                kept[storage._cdata] = storage
                return tensor

            with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
                self.run_whole(detector, torch.empty(1, 1, 96, 96, 96))
        parameters = sum(4 * p.numel() for p in detector.parameters())
        backward = sum(storage.nbytes() for storage in kept.values())
        assert backward > 2**24, "the maps of a patch are kept"
        assert (4 * parameters + backward) / 2**30 < self.gibibytes
