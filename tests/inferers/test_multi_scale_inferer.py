# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math
from itertools import combinations, product

import pytest
import torch
from monai.data import MetaTensor
from monai.inferers import sliding_window_inference
from monai.networks.nets import UNet
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from monai_labelfx.inferers import multi_scale_inferer
from monai_labelfx.inferers._windows import WindowGrid
from monai_labelfx.inferers.multi_scale_inferer import PAPER_SCALES, MultiScaleInferer

CONVOLUTIONS = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
POOLINGS = {1: functional.avg_pool1d, 2: functional.avg_pool2d, 3: functional.avg_pool3d}
LINEAR = {1: "linear", 2: "bilinear", 3: "trilinear"}


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def convolve(x: torch.Tensor) -> torch.Tensor:
    """Two channels to three by a kernel without symmetry."""
    dims = x.ndim - 2
    kernel = draw(3, x.shape[1], *(3,) * dims, seed=1).to(x) - 0.4
    return CONVOLUTIONS[dims](x, kernel, padding=1)


def coarse(x: torch.Tensor) -> torch.Tensor:
    """A map at about half the resolution of the window."""
    return POOLINGS[x.ndim - 2](convolve(x), 2, ceil_mode=True)


def resize(x: torch.Tensor, size) -> torch.Tensor:
    return functional.interpolate(x, size=tuple(size), mode=LINEAR[len(size)], align_corners=False)


def naive(
    images, network, roi, scales, *, flips=(), overlap=0.2, mode="constant", activation=None, zoom=1, native=False
):
    """One image, scale, flip and window after the other."""
    shape, dims = images.shape[2:], images.ndim - 2
    axes_of_flips = [tuple(a + 2 for a in c) for k in range(len(flips) + 1) for c in combinations(flips, k)]
    results = []
    for image in images.split(1):
        total = 0
        for scale in scales:
            scaled = [max(1, math.floor(n * scale * zoom + 0.5)) for n in shape]
            tile = [min(r, n) for r, n in zip(roi, scaled, strict=True)]
            if native:
                source, crops = image, []
                for n, r, s in zip(shape, roi, scaled, strict=True):
                    crops.append(n if s <= r else min(n, max(1, math.floor(r / (scale * zoom) + 0.5))))
            else:
                source, crops = resize(image, scaled), tile
            starts = []
            for n, window in zip(source.shape[2:], crops, strict=True):
                line, at = [], 0
                while at < n - window:
                    line.append(at)
                    at += max(1, math.floor(window * (1 - overlap)))
                starts.append([*line, n - window])
            weight = torch.ones(crops, dtype=torch.float64)
            if mode == "gaussian":
                for axis, length in enumerate(crops):
                    at = torch.arange(length, dtype=torch.float64) - (length - 1) / 2
                    line = torch.exp(-(at**2) / (2 * (length / 8) ** 2))
                    weight = weight * line.reshape([-1 if a == axis else 1 for a in range(dims)])
            for axes in axes_of_flips:
                sums, count = 0, torch.zeros(source.shape[2:], dtype=torch.float64)
                for corner in product(*starts):
                    place = tuple(slice(a, a + w) for a, w in zip(corner, crops, strict=True))
                    scores = network(resize(source[:, :, *place], tile).flip(axes)).flip(axes)
                    scores = resize(resize(scores, tile), crops) * weight
                    sums = torch.zeros(1, scores.shape[1], *source.shape[2:], dtype=torch.float64) + sums
                    sums[:, :, *place] += scores
                    count[place] += weight
                scores = resize(sums / count, shape)
                scores = scores.softmax(1) if activation == "softmax" else scores
                total = total + (scores.sigmoid() if activation == "sigmoid" else scores)
        results.append(total / (len(scales) * len(axes_of_flips)))
    return torch.cat(results)


CASES = [
    ((1, 2, 23, 17), (8, 8), {"activation": "softmax"}),
    ((2, 2, 23, 17), (8, 6), {"flips": (0,), "activation": "softmax", "overlap": 0.5}),
    ((1, 2, 14, 19), (9, 7), {"flips": (0, 1), "activation": "sigmoid", "mode": "gaussian"}),
    ((1, 2, 15, 11), (32, 12), {"flips": (1,), "zoom": 2.0}),
    ((1, 2, 9, 7, 5), (6, 8, 4), {"flips": (0, 2), "activation": "softmax"}),
    ((2, 2, 6, 9, 12), (5, 5, 5), {"mode": "gaussian", "overlap": 0.3, "zoom": 0.7}),
    ((1, 2, 40), (16,), {"flips": (0,), "activation": "sigmoid"}),
]


@pytest.mark.parametrize(("shape", "roi", "options"), CASES)
@pytest.mark.parametrize("network", [convolve, coarse])
@pytest.mark.parametrize("windows", ["image", "native"])
@pytest.mark.parametrize(("sw_batch_size", "band"), [(1, 0), (5, 1000), (2, 2**22)])
def test_equals_a_loop_over_scales_flips_and_windows(
    shape, roi, options, network, windows, sw_batch_size, band, monkeypatch
):
    monkeypatch.setattr(multi_scale_inferer, "_BAND", band)
    images, scales = draw(*shape), (0.6, 1, 1.7)
    options = {"activation": None, **options}
    inferer = MultiScaleInferer(roi, scales, windows=windows, sw_batch_size=sw_batch_size, **options)
    expected = naive(images, network, roi, scales, native=windows == "native", **options)
    found = inferer(images, network)
    assert found.dtype == torch.float64 and torch.allclose(found, expected, atol=1e-10)
    single = inferer(images.float(), network)
    assert single.dtype == torch.float32 and torch.allclose(single.double(), expected, atol=2e-5)
    assert torch.equal(found, inferer(images, network))
    assert all(torch.allclose(found[i : i + 1], inferer(images[i : i + 1], network)) for i in range(shape[0]))


@pytest.mark.parametrize("shape", [(1, 3, 26, 38), (2, 3, 14, 20, 8)])  # windows of 8 every 6: twice at most
@pytest.mark.parametrize("windows", ["image", "native"])
def test_a_pointwise_network_gives_its_own_result_at_scale_one(shape, windows):
    images = draw(*shape).mul(255).round().float()  # their sums are exact
    inferer = MultiScaleInferer(8, 1, flips=(0, 1), overlap=0.25, activation=None, windows=windows)
    assert torch.equal(inferer(images, lambda x: 2 * x), 2 * images)
    assert torch.allclose(inferer(images[:, :, 1:], lambda x: 2 * x), 2 * images[:, :, 1:], rtol=1e-6)
    assert torch.equal(MultiScaleInferer(-1, (1, 1.0), windows=windows)(images, lambda x: x), images.softmax(1))


@pytest.mark.parametrize(("size", "roi"), [((40, 33), (16, 12)), ((20, 18, 12), (9, 10, 8))])
def test_inside_windows_the_result_is_that_of_the_whole_image(size, roi):
    images, radius = draw(1, 2, *size), 1
    found = MultiScaleInferer(roi, 1, activation=None, overlap=0.4)(images, convolve)
    agree = torch.ones(size, dtype=torch.bool)
    for axis, (n, w) in enumerate(zip(size, roi, strict=True)):
        starts = [*range(0, n - w, int(w * 0.6)), n - w]
        line = torch.ones(n, dtype=torch.bool)
        for start in starts:
            line[start : start + radius] &= start == 0
            line[start + w - radius : start + w] &= start + w == n
        agree &= line.reshape([-1 if a == axis else 1 for a in range(len(size))])
    whole = convolve(images)
    assert agree.any() and not agree.all()
    assert torch.allclose(found[..., agree], whole[..., agree], atol=1e-12)
    assert not torch.allclose(found, whole, atol=1e-3)


@pytest.mark.parametrize("mode", ["constant", "gaussian"])
def test_one_scale_is_the_sliding_window_of_monai(mode):
    images, weight = draw(2, 2, 30, 41), WindowGrid((16, 12), (16, 12), (0, 0), mode).weight
    theirs = sliding_window_inference(images, (16, 12), 3, convolve, overlap=0.25, roi_weight_map=weight)
    ours = MultiScaleInferer((16, 12), 1, overlap=0.25, mode=mode, activation=None)(images, convolve)
    assert torch.allclose(ours, theirs, atol=1e-12)


def test_flips_are_taken_back():
    image = torch.zeros(1, 1, 5, 7, dtype=torch.float64)
    image[0, 0, 1, 2] = 1

    def shift(x):  # along axis 0, away from the start
        return functional.pad(x, (0, 0, 1, 0))[:, :, :-1]

    once = MultiScaleInferer(-1, 1, flips=0, activation=None)(image, shift)
    expected = torch.zeros_like(image)
    expected[0, 0, 2, 2] = expected[0, 0, 0, 2] = 0.5
    assert torch.equal(once, expected)
    assert torch.equal(MultiScaleInferer(-1, 1, flips=-2, activation=None)(image, shift), expected)
    assert torch.equal(MultiScaleInferer(-1, 1, flips=(0, 1, 0), activation=None)(image, shift), expected)
    assert torch.equal(MultiScaleInferer(-1, 1, flips=1, activation=None)(image, shift), shift(image))


def test_native_windows_equal_image_windows_where_one_takes_all():
    images = draw(1, 2, 13, 9)
    for roi, scales, zoom in ((64, (0.7, 1.9), 1), (8, (0.5,), 2), (-1, (0.6, 2.2), 1)):
        pair = (MultiScaleInferer(roi, scales, zoom=zoom, windows=w)(images, coarse) for w in ("image", "native"))
        assert torch.allclose(*pair, atol=1e-12)


def test_scores_are_averaged_before_the_activation_within_a_scale_and_after_it_between():
    def first_half(x):  # one where the window starts, a hundred in its other half
        scores = torch.zeros_like(x)
        scores[..., x.shape[-1] // 2 :] = 100
        return torch.cat((scores, torch.full_like(x, 50)), dim=1)

    probability = MultiScaleInferer((4, 4), 1, overlap=0.5)(torch.zeros(1, 1, 4, 8), first_half)
    assert torch.allclose(probability[0, 0, 0, 2:4], torch.tensor(0.5))  # (100 + 0) / 2 against 50
    flipped = MultiScaleInferer((4, 4), 1, flips=1)(torch.zeros(1, 1, 4, 4), first_half)
    assert torch.allclose(flipped, torch.tensor(0.5))


def test_sizes_are_rounded_and_at_least_one():
    seen = []

    def network(x, scale=1.0, offset=0.0):
        seen.append(tuple(x.shape[2:]))
        return x * scale + offset

    images = draw(1, 2, 5, 10, 1)
    MultiScaleInferer(-1, PAPER_SCALES, activation=None)(images, network)
    assert seen == [(4, 8, 1), (5, 10, 1), (6, 13, 1), (8, 15, 2), (9, 18, 2), (10, 20, 2), (13, 25, 3), (15, 30, 3)]
    seen.clear()
    found = MultiScaleInferer(4, (0.05, (2, 0.01, 1)), activation=None)(images, network, 2.0, offset=1.0)
    assert set(seen) == {(1, 1, 1), (4, 1, 1)} and found.shape == images.shape and found.min() >= 1


def test_a_volume_of_one_slice_is_an_image():
    image = draw(1, 2, 17, 12)

    def flat(x):
        return convolve(x[..., 0])[..., None]

    volume = MultiScaleInferer((8, 8, 1), ((0.75, 0.75, 1), 1, (1.5, 1.5, 1)), flips=1)(image[..., None], flat)
    assert torch.allclose(volume[..., 0], MultiScaleInferer(8, (0.75, 1, 1.5), flips=1)(image, convolve), atol=1e-12)


@pytest.mark.parametrize("windows", ["image", "native"])
def test_any_network_by_its_divisor(windows):
    network = UNet(2, 1, 2, channels=(4, 4, 4), strides=(2, 2)).eval()
    sizes = set()
    network.register_forward_pre_hook(lambda module, given: sizes.add(tuple(given[0].shape[2:])))
    with torch.no_grad():
        found = MultiScaleInferer(32, (0.7, 1, 2), divisor=4, windows=windows)(draw(1, 1, 21, 37).float(), network)
    assert found.shape == (1, 2, 21, 37) and torch.allclose(found.sum(1), torch.ones(21, 37))
    assert all(side % 4 == 0 and side <= 32 for size in sizes for side in size) and len(sizes) == 3


def test_metadata_device_and_data_type_are_kept():
    affine = torch.diag(torch.tensor([2.0, 3.0, 4.0, 1.0], dtype=torch.float64))
    image = MetaTensor(draw(1, 2, 12, 9).float(), affine=affine)
    kinds = []
    found = MultiScaleInferer(8, (1, 1.5))(image, lambda x: kinds.append(type(x)) or convolve(x))
    assert isinstance(found, MetaTensor) and torch.equal(found.affine, affine) and set(kinds) == {torch.Tensor}
    plain = MultiScaleInferer(8, (1, 1.5))(image.as_tensor(), convolve)
    assert type(plain) is torch.Tensor and torch.equal(plain, found.as_tensor())
    for kind in (torch.float16, torch.bfloat16):
        half = MultiScaleInferer(8, (1, 1.5), flips=0)(image.as_tensor().to(kind), convolve)
        whole = MultiScaleInferer(8, (1, 1.5), flips=0)(image.as_tensor(), convolve)
        assert half.dtype == kind and torch.allclose(half.float(), whole, atol=0.02)
    pixels = (255 * image.as_tensor()).to(torch.uint8)
    found = MultiScaleInferer(8, (1, 1.5))(pixels, convolve)
    assert found.dtype == torch.float32 and torch.equal(found, MultiScaleInferer(8, (1, 1.5))(pixels.float(), convolve))


def test_many_half_precision_scores_are_summed_in_single_precision():
    found = MultiScaleInferer((4, 4), 1, overlap=0.9, activation=None)(
        torch.ones(1, 1, 30, 30), lambda x: (x / 3).half()
    )
    assert torch.allclose(found, torch.tensor(1 / 3).half().float(), atol=1e-6)


def test_windows_go_where_the_network_is():
    class ReachedError(Exception):
        pass

    def network(x):
        raise ReachedError(x.device.type)

    with pytest.raises(ReachedError, match="meta"):
        MultiScaleInferer(8, sw_device="meta")(torch.zeros(1, 1, 9, 9), network)


def test_gradients_pass():
    images = draw(1, 2, 7, 6).requires_grad_()
    inferer = MultiScaleInferer(5, (0.8, 1.3), flips=0, mode="gaussian")
    assert torch.autograd.gradcheck(lambda x: inferer(x, convolve), images)


class Largest(TorchDispatchMode):
    """The largest tensor that any operation makes."""

    def __init__(self) -> None:
        super().__init__()
        self.numbers = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        if isinstance(made, torch.Tensor):
            self.numbers = max(self.numbers, made.numel())
        return made


@pytest.mark.parametrize(("shape", "roi"), [((1, 2, 64, 40), 16), ((1, 2, 40, 16, 12), 10)])
def test_memory(shape, roi, monkeypatch):
    images = draw(*shape)
    monkeypatch.setattr(multi_scale_inferer, "_BAND", 0)

    def largest(windows, scale):
        with Largest() as tensors:
            MultiScaleInferer(roi, scale, windows=windows, overlap=0)(images, lambda x: x[:, :2])
        return tensors.numbers

    assert {scale: largest("native", scale) for scale in (1, 2, 3)} == dict.fromkeys((1, 2, 3), images.numel())
    band = 2 * (roi + 1) * math.prod(3 * n for n in shape[3:])  # never the whole of a resized image
    assert largest("image", 3) == max(images.numel(), band) < 2 * math.prod(3 * n for n in shape[2:]) / 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"scales": ()}, "scales must hold at least one number"),
        ({"scales": (1, 0)}, "scales must be numbers above 0"),
        ({"scales": (1, (1, -2))}, "scales must be numbers above 0"),
        ({"scales": float("nan")}, "scales must be numbers above 0"),
        ({"zoom": 0}, "zoom must be above 0"),
        ({"roi_size": 0}, "roi_size must be 1 or above, or -1"),
        ({"roi_size": (8, 7.5)}, "roi_size must be 1 or above, or -1"),
        ({"overlap": 1}, "overlap must be 0 or above and below 1"),
        ({"overlap": (0.2, -0.1)}, "overlap must be 0 or above and below 1"),
        ({"divisor": 0}, "divisor must be 1 or above"),
        ({"flips": (0.5,)}, "flips must be numbers of spatial axes"),
        ({"sw_batch_size": 0}, "sw_batch_size must be 1 or above"),
        ({"mode": "hann"}, "mode must be one of"),
        ({"activation": "relu"}, "activation must be one of"),
        ({"windows": "tile"}, "windows must be one of"),
    ],
)
def test_settings_are_checked(options, message):
    with pytest.raises(ValueError, match=message):
        MultiScaleInferer(**{"roi_size": 8, **options})


def test_calls_are_checked():
    images = torch.rand(1, 1, 9, 9)

    def call(message, network=lambda x: x.expand(-1, 2, -1, -1), given=images, kind=ValueError, **options):
        with pytest.raises(kind, match=message):
            MultiScaleInferer(**{"roi_size": 8, **options})(given, network)

    call("flips must be spatial axes of 2, from -2 to 1", flips=2)
    call("roi_size must be one number or 2", roi_size=(8, 8, 8))
    call("each of scales must be one number or 2", scales=((1, 1, 1),))
    call("zoom must be one number or 2", zoom=(1, 1, 1))
    call("overlap must be one number or 2", overlap=(0, 0, 0))
    call("roi_size must be a multiple of the divisor 3", divisor=3)
    call(r"inputs must have shape \(B, C, \*spatial\)", given=torch.rand(2, 3))
    call(r"inputs must have shape .* got \(0, 1, 9, 9\)", given=images[:0])
    call("must return one tensor of scores, got tuple", network=lambda x: (x, x), kind=TypeError)
    call(
        r"must return maps \(N, K, \*map\) for windows \(1, 1, 7, 7\), got \(1, 2\)", network=lambda x: x[..., 0, :2, 0]
    )
    call("activation must be 'sigmoid' or None for one channel", network=lambda x: x)
