# SPDX-License-Identifier: Apache-2.0
"""RoIAlign against plain loops over samples, torchvision's numbers, and what must not change it.

``golden_roi_align.json`` was made with torchvision 0.28 in float64, for ``features()`` of (2, 2, 6, 7), the boxes
``GOLDEN_BOXES`` with columns 1, 0, 3, 2 after the image ``GOLDEN_INDEX``, and each row of its options:
``torchvision.ops.roi_align(features, rois, output_size, spatial_scale, sampling_ratio, aligned)``, and every second row
of the gradient of its sum weighted by ``linspace(-1, 1)``.
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
from pathlib import Path

import pytest
import torch

from monai_labelfx.ops.roi_align import roi_align

module = importlib.import_module("monai_labelfx.ops.roi_align")  # its name is also that of the function

GOLDEN = json.loads((Path(__file__).parent / "golden_roi_align.json").read_text())
GOLDEN_BOXES = torch.tensor(
    [[1, 2, 9.5, 7], [-3, 4.25, 5, 20], [6, 0.5, 6.5, 0.75], [3, 1, 14, 13], [30, 30, 40, 41]], dtype=torch.float64
)
GOLDEN_INDEX = torch.tensor([0, 1, 1, 0, 0])


def features(*shape: int) -> torch.Tensor:
    number = torch.arange(math.prod(shape), dtype=torch.float64)
    return ((number * number * 7 + number * 13) % 31 - 15).div(16).view(shape)


def random_boxes(number: int, ndim: int, reach: float, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    """Boxes that lie inside, reach beyond and lie outside a map of about ``reach`` voxels, and one without extent."""
    generator = torch.Generator().manual_seed(seed)
    low = (torch.rand(number, ndim, generator=generator, dtype=torch.float64) * 1.6 - 0.4) * reach
    size = torch.rand(number, ndim, generator=generator, dtype=torch.float64) ** 2 * 1.5 * reach
    size[0] = 0
    return torch.cat((low, low + size), 1), torch.randint(0, 2, (number,), generator=generator)


def interpolated(image: torch.Tensor, place: list[float]) -> torch.Tensor:
    """(C,) of (C, *spatial) at one place."""
    corners = []
    for x, size in zip(place, image.shape[1:], strict=True):
        if not -1 <= x <= size:
            return torch.zeros_like(image.flatten(1)[:, 0])
        x = min(max(x, 0.0), size - 1.0)
        low = int(x)
        corners.append([(low, 1 - (x - low)), (min(low + 1, size - 1), x - low)])
    result = torch.zeros_like(image.flatten(1)[:, 0])
    for corner in itertools.product(*corners):
        result = result + image[(slice(None), *[p for p, _ in corner])] * math.prod(w for _, w in corner)
    return result


def naive(image, boxes, index, output_size, scales, sampling_ratio, aligned) -> torch.Tensor:
    ndim, result = len(output_size), []
    for box, number in zip(boxes.tolist(), index.tolist(), strict=True):
        shift = 0.5 * aligned
        starts = [box[d] * scales[d] - shift for d in range(ndim)]
        sizes = [max(box[d + ndim] * scales[d] - shift - starts[d], 0 if aligned else 1) for d in range(ndim)]
        steps = [size / bins for size, bins in zip(sizes, output_size, strict=True)]
        samples = [sampling_ratio or math.ceil(step) for step in steps]
        for place in itertools.product(*map(range, output_size)):
            total = torch.zeros(image.shape[1], dtype=image.dtype)
            for sample in itertools.product(*map(range, samples)):
                parts = zip(starts, steps, samples, place, sample, strict=True)
                point = [start + step * (o + (s + 0.5) / n) for start, step, n, o, s in parts]
                total = total + interpolated(image[number], point)
            result.append(total / max(math.prod(samples), 1))
    return torch.stack(result).view(len(boxes), *output_size, -1).movedim(-1, 1)


def gradient(result: torch.Tensor, leaf: torch.Tensor) -> torch.Tensor:
    weight = torch.linspace(-1, 1, result.numel(), dtype=result.dtype).view(result.shape)
    return torch.autograd.grad((weight * result).sum(), leaf, create_graph=True)[0]


@pytest.mark.parametrize("case", GOLDEN, ids=lambda case: f"{case['sampling_ratio']}-{case['aligned']}")
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-5)])
def test_numbers_of_torchvision(case, dtype, tolerance):
    image = features(2, 2, 6, 7).to(dtype).requires_grad_()
    options = {name: case[name] for name in ("spatial_scale", "sampling_ratio", "aligned")}
    found = roi_align(image, GOLDEN_BOXES.to(dtype), GOLDEN_INDEX, case["output_size"], **options)
    expected = torch.tensor(case["result"], dtype=dtype).view(found.shape)
    assert (expected != 0).any(0).all() and found.dtype == dtype
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)
    expected = torch.tensor(case["gradient"], dtype=dtype).view(2, 2, 3, 7)
    torch.testing.assert_close(gradient(found, image)[:, :, ::2], expected, rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize(("shape", "output_size"), [((9,), (4,)), ((7, 10), (3, 2)), ((5, 6, 1), (2, 1, 3))])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 3])
@pytest.mark.parametrize("aligned", [False, True])
def test_equals_plain_loops(shape, output_size, sampling_ratio, aligned, monkeypatch):
    ndim = len(shape)
    image = features(2, 3, *shape).requires_grad_()
    boxes, index = random_boxes(9, ndim, 8.0)
    scales = [1.0, 0.5, 1.7][:ndim]
    expected = naive(image, boxes, index, output_size, scales, sampling_ratio, aligned)
    slope = gradient(expected, image)
    for most in (1 << 26, 1, 60):  # all boxes together, each alone, a few
        monkeypatch.setattr(module, "_MOST_NUMBERS", most)
        how = {"spatial_scale": scales, "sampling_ratio": sampling_ratio, "aligned": aligned}
        found = roi_align(image, boxes, index, output_size, **how)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
        torch.testing.assert_close(gradient(found, image), slope, rtol=0, atol=1e-12)


def test_boxes_are_taken_a_few_at_a_time(monkeypatch):
    """Between the axes the two boxes have 2 * 6 and 2 * 5 rows of 4 channels."""
    parts, pooled = [], module._pooled
    monkeypatch.setattr(module, "_pooled", lambda *args: parts.append(args[-1]) or pooled(*args))
    boxes = torch.tensor([[0.0, 0, 6, 6], [1, 1, 4, 4]])
    for most in (88, 87, 48):
        monkeypatch.setattr(module, "_MOST_NUMBERS", most)
        roi_align(features(1, 4, 6, 6), boxes, torch.tensor([0, 0]), 2)
    assert parts == [slice(0, 2), slice(0, 1), slice(1, 2), slice(0, 1), slice(1, 2)]


def test_large_boxes_and_many_samples():
    """Bins of many voxels, adaptive: the samples that reach a voxel are found among many."""
    image = features(1, 1, 23, 31)
    boxes = torch.tensor([[0, 0, 23, 31], [-40, 3, 60, 30.2], [1.3, -200, 22, 300]], dtype=torch.float64)
    for output_size in ((1, 1), (2, 3)):
        found = roi_align(image, boxes, torch.zeros(3, dtype=torch.int64), output_size)
        expected = naive(image, boxes, torch.zeros(3, dtype=torch.int64), output_size, (1, 1), 0, True)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)


def test_a_box_of_whole_voxels_is_a_crop():
    image = features(1, 2, 5, 6, 7)
    found = roi_align(image, torch.tensor([[1.0, 0, 3, 4, 5, 7]]), torch.tensor([0]), (3, 5, 4))
    torch.testing.assert_close(found[0], image[0, :, 1:4, 0:5, 3:7])


@pytest.mark.parametrize("ndim", [2, 3])
def test_permuted_and_flipped_axes_and_boxes(ndim):
    image = features(2, 2, *[6, 8, 5][:ndim])
    boxes, index = random_boxes(8, ndim, 6.0, 3)
    sizes, scales = (3, 4, 2)[:ndim], (0.9, 0.7, 1.1)[:ndim]
    found = roi_align(image, boxes, index, sizes, spatial_scale=scales)
    order = list(reversed(range(ndim)))
    columns = [*order, *(d + ndim for d in order)]
    axes = [0, 1, *(d + 2 for d in order)]
    turned = roi_align(
        image.permute(axes), boxes[:, columns], index, sizes[::-1], spatial_scale=[scales[d] for d in order]
    )
    torch.testing.assert_close(turned.permute(axes), found)
    width = image.shape[2] / scales[0]
    mirrored = boxes.clone()
    mirrored[:, 0], mirrored[:, ndim] = width - boxes[:, ndim], width - boxes[:, 0]
    flipped = roi_align(image.flip(2), mirrored, index, sizes, spatial_scale=scales)
    torch.testing.assert_close(flipped.flip(2), found)
    shuffled = torch.tensor([3, 0, 7, 1, 2, 6, 5, 4])
    again = roi_align(image, boxes[shuffled], index[shuffled], sizes, spatial_scale=scales)
    assert torch.equal(again, found[shuffled])
    images = roi_align(image.flip(0), boxes, 1 - index, sizes, spatial_scale=scales)
    assert torch.equal(images, found)


def test_thin_volume_equals_image():
    image, (boxes, index) = features(2, 2, 6, 8), random_boxes(6, 2, 6.0, 1)
    slab = torch.stack((torch.zeros(6), boxes[:, 0], boxes[:, 1], torch.ones(6), boxes[:, 2], boxes[:, 3]), 1)
    found = roi_align(image[:, :, None], slab, index, (1, 3, 3))
    torch.testing.assert_close(found[:, :, 0], roi_align(image, boxes, index, 3))


def test_gradients_of_any_order():
    image, (boxes, index) = features(2, 1, 4, 5).requires_grad_(), random_boxes(5, 2, 4.0, 2)
    boxes = boxes.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: roi_align(x, boxes.detach(), index, 2), image)
    assert torch.autograd.gradgradcheck(lambda x: roi_align(x, boxes.detach(), index, 2), image)
    roi_align(image, boxes, index, 2).sum().backward()
    assert boxes.grad is None and image.grad.any()


def test_same_gradient_in_every_run():
    image, (boxes, index) = torch.rand(2, 4, 12, 9, requires_grad=True), random_boxes(40, 2, 10.0)
    torch.use_deterministic_algorithms(True)
    try:
        runs = [gradient(roi_align(image, boxes.float(), index, 7), image) for _ in range(3)]
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(runs[0], runs[1]) and torch.equal(runs[0], runs[2])


def test_no_boxes():
    for ndim in (2, 3):
        image = torch.rand(2, 3, *[5] * ndim, requires_grad=True)
        found = roi_align(image, torch.zeros(0, 2 * ndim), torch.zeros(0, dtype=torch.int64), 7)
        assert found.shape == (0, 3, *[7] * ndim)
        found.sum().backward()
        assert not image.grad.any()


def test_boxes_without_extent_and_numbers_that_are_none():
    image, huge = features(1, 1, 6, 6).float().requires_grad_(), 1e30
    rows = [[2.5, 2.5, 2.5, 2.5], [3, 4, 1, 2], [math.nan, 0, 4, 4], [0, 0, math.inf, 4], [-huge, -huge, huge, huge]]
    boxes, index = torch.tensor(rows), torch.zeros(len(rows), dtype=torch.int64)
    adaptive = roi_align(image, boxes, index, 2)
    assert adaptive.isfinite().all() and not adaptive[:3].any()
    fixed = roi_align(image, boxes, index, 2, sampling_ratio=2)
    assert fixed.isfinite().all() and not fixed[2].any()
    assert fixed[0].flatten().tolist() == [image[0, 0, 2, 2].item()] * 4
    corner = roi_align(image, torch.tensor([[3.0, 4, 3, 4]]), index[:1], 2, sampling_ratio=2)
    assert torch.equal(fixed[1:2], corner)
    assert gradient(adaptive + fixed, image).isfinite().all()


def test_precision_and_layout():
    image, (boxes, index) = torch.rand(2, 4, 9, 8), random_boxes(6, 2, 8.0, 4)
    boxes = boxes.float()
    expected = roi_align(image, boxes, index, 3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(roi_align(image, boxes, index, 3), expected)
    half = image.bfloat16().requires_grad_()
    found = roi_align(half, boxes, index, 3)
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, roi_align(half.float(), boxes, index, 3).bfloat16())
    found.sum().backward()
    assert half.grad.dtype == torch.bfloat16
    channels_last = image.contiguous(memory_format=torch.channels_last)
    assert torch.equal(roi_align(channels_last, boxes, index.int(), 3), expected)
    strided = torch.rand(2, 4, 18, 8)[:, :, ::2].copy_(image)
    assert torch.equal(roi_align(strided, boxes, index, 3), expected)
    assert roi_align(image.double(), boxes, index, 3).dtype == torch.float64


def test_bad_input():
    image, boxes, index = torch.rand(2, 3, 5, 5), torch.zeros(2, 4), torch.tensor([0, 1])
    with pytest.raises(TypeError, match="features must be floating point, got torch.int64"):
        roi_align(image.long(), boxes, index, 7)
    with pytest.raises(ValueError, match=r"boxes must have the shape \(R, 4\) for 2 axes, got \(2, 6\)"):
        roi_align(image, torch.zeros(2, 6), index, 7)
    with pytest.raises(ValueError, match=r"features must have the shape .* got \(2, 3, 0, 5\)"):
        roi_align(image[:, :, :0], boxes, index, 7)
    with pytest.raises(TypeError, match="batch_index must be whole numbers, got torch.float32"):
        roi_align(image, boxes, index.float(), 7)
    for wrong in (torch.tensor([0, 2]), torch.tensor([-1, 0]), torch.tensor([0])):
        with pytest.raises(ValueError, match="batch_index must be 0 to 1 for each of 2 boxes"):
            roi_align(image, boxes, wrong, 7)
    for size in (0, (7, 7, 7), (3, 2.5)):
        with pytest.raises(ValueError, match="output_size must be at least 1, one number or 2"):
            roi_align(image, boxes, index, size)
    for scale in (0, (1, 1, 1), math.nan):
        with pytest.raises(ValueError, match="spatial_scale must be above 0, one number or 2"):
            roi_align(image, boxes, index, 7, spatial_scale=scale)
    with pytest.raises(ValueError, match="sampling_ratio must be 0 or a number of samples, got -1"):
        roi_align(image, boxes, index, 7, sampling_ratio=-1)
