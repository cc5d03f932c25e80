# SPDX-License-Identifier: Apache-2.0
"""The door to both fields: the window path always, the fully connected one where pydensecrf is installed."""

from __future__ import annotations

import math
import sys

import pytest
import torch

from monai_labelfx.ops.dense_field import refine_by_field
from monai_labelfx.ops.mean_field import windowed_mean_field

OPTIONS = {"spatial_sigma": (6.0, 1.5), "intensity_sigma": 9.0, "weights": (7.0, 2.0), "iterations": 3}
SMOOTH = {"weights": (0.0, 3.0)}


def case(*shape: int, batch: int = 1, classes: int = 2, channels: int = 1, dtype=torch.float32):
    """Noisy logits of a ball, and an image of it."""
    generator = torch.Generator().manual_seed(0)
    grid = torch.stack(torch.meshgrid(*(torch.arange(n) - (n - 1) / 2 for n in shape), indexing="ij"))
    ball = (grid.norm(dim=0) < min(shape) / 3).float()
    image = 100 * ball + 8 * torch.randn(batch, channels, *shape, generator=generator)
    logits = torch.randn(batch, classes, *shape, generator=generator)
    logits[:, 1] += 2 * ball - 1
    return logits.to(dtype), image


@pytest.mark.parametrize("shape", [(12, 11), (7, 6, 8)])
def test_the_window_is_the_windowed_field(shape):
    logits, image = case(*shape, batch=2, classes=3)
    assert torch.equal(refine_by_field(logits, image), windowed_mean_field(logits, image))
    options = {**OPTIONS, "window": 3, "spacing": (1.0, 2.0, 0.5)[: len(shape)]}
    changed = refine_by_field(logits, image, **options)
    assert torch.equal(changed, windowed_mean_field(logits, image, **options))
    assert not torch.equal(changed, windowed_mean_field(logits, image, window=3))


def test_the_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pydensecrf", None)
    logits, image = case(6, 6)
    with pytest.raises(ImportError, match=r'pydensecrf2: pip install "monai-labelfx\[crf\]"'):
        refine_by_field(logits, image, method="dense")


@pytest.mark.parametrize("method", ["window", "dense"])
@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logits": torch.zeros(1, 2)}, "same batch and spatial sizes"),
        ({"logits": torch.full((1, 2, 4, 5), math.nan)}, "without NaN"),
        ({"image": torch.full((1, 1, 4, 5), math.inf)}, "image must be finite"),
        ({"weights": (1.0, -1.0)}, "weights must be two"),
        ({"iterations": 1.5}, "iterations must be a whole number of 0 or more, got 1.5"),
        ({"spacing": (1.0, 0.0)}, "spacing must be"),
    ],
)
def test_bad_input_is_named_before_a_package_is_needed(method, changes, words):
    arguments = {"logits": torch.zeros(1, 2, 4, 5), "image": torch.zeros(1, 1, 4, 5), **changes}
    with pytest.raises(ValueError, match=words):
        refine_by_field(**arguments, method=method)


def test_an_unknown_method_is_named():
    with pytest.raises(ValueError, match="method must be one of 'window', 'dense', got 'lattice'"):
        refine_by_field(*case(4, 4), method="lattice")


@pytest.mark.peer("pydensecrf")
@pytest.mark.parametrize("shape", [(20, 18), (9, 10, 8)])
@pytest.mark.parametrize(
    "options", [{}, OPTIONS, SMOOTH, {**SMOOTH, "spatial_sigma": (9.0, 4.0), "spacing": (4.0, 0.5, 2.0)}], ids=str
)
def test_both_methods_agree_where_the_window_holds_the_image(shape, options):
    logits, image = case(*shape, batch=2)
    options = {name: value[: len(shape)] if name == "spacing" else value for name, value in options.items()}
    dense = refine_by_field(logits, image, method="dense", **options)
    window = refine_by_field(logits, image, window=2 * max(shape) + 1, **options)
    error = (dense - window).abs()  # of the lattice
    assert error.max() < 0.1 and error.mean() < 0.005 and (window - logits.softmax(1)).abs().max() > 0.5


@pytest.mark.peer("pydensecrf")
def test_sigmas_of_channels():
    logits, image = case(14, 13, channels=2)
    image[:, 1] = 90 * torch.rand(1, 14, 13)
    weak = {"method": "dense", "weights": (3.0, 0.0), "iterations": 2}
    one = refine_by_field(logits, image[:, :1], intensity_sigma=20.0, **weak)
    ignored = refine_by_field(logits, image, intensity_sigma=(20.0, 1e6), **weak)  # the second channel is all noise
    heard = refine_by_field(logits, image, intensity_sigma=(20.0, 5.0), **weak)
    assert (ignored - one).abs().max() < 0.05 and (heard - one).abs().max() > 0.2


@pytest.mark.peer("pydensecrf")
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_dense_keeps_types_and_inputs(dtype):
    logits, image = case(9, 8, dtype=dtype)
    logits.requires_grad_()
    before = logits.detach().clone(), image.clone()
    result = refine_by_field(logits, image, method="dense")
    assert result.dtype == dtype and not result.requires_grad and result.shape == logits.shape
    assert torch.equal(logits, before[0]) and torch.equal(image, before[1])
    torch.testing.assert_close(result.sum(1), torch.ones_like(result[:, 0]), rtol=0, atol=2e-3)


@pytest.mark.peer("pydensecrf")
@pytest.mark.parametrize("options", [{"weights": (0.0, 0.0)}, {"iterations": 0}], ids=str)
def test_dense_without_kernels_or_iterations_is_the_softmax(options):
    logits, image = case(9, 8, classes=3)
    result = refine_by_field(logits, image, method="dense", **options)
    torch.testing.assert_close(result, logits.softmax(1), rtol=0, atol=1e-6)


@pytest.mark.peer("pydensecrf")
def test_dense_never_takes_a_forbidden_class():
    logits, image = case(9, 8)
    logits[:, 1, :3] = -math.inf
    result = refine_by_field(logits, image, method="dense")
    assert (result[:, 1, :3] == 0).all() and result.isfinite().all()
