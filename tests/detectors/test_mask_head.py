# SPDX-License-Identifier: Apache-2.0
"""The mask head: its layers by torchvision's names, and the channel of a class."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.detectors._mask_head import MaskHead, of_classes


@pytest.mark.parametrize("dims", [2, 3])
def test_layers(dims):
    head = MaskHead(dims, 6, 8, 2, 3)
    kernel, double = (3,) * dims, (2,) * dims
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "0.0.weight": (8, 6, *kernel),
        "0.0.bias": (8,),
        "1.0.weight": (8, 8, *kernel),
        "1.0.bias": (8,),
        "conv5_mask.weight": (8, 8, *double),
        "conv5_mask.bias": (8,),
        "mask_fcn_logits.weight": (4, 8, *(1,) * dims),
        "mask_fcn_logits.bias": (4,),
    }
    bins = (3, 4, 5)[:dims]
    assert head(torch.rand(7, 6, *bins)).shape == (7, 4, *(2 * n for n in bins))
    assert MaskHead(dims, 6, 8, 0, 3)(torch.rand(1, 6, *bins)).shape == (1, 4, *(2 * n for n in bins))


def test_weights_at_the_start():
    torch.manual_seed(0)
    head = MaskHead(2, 64, 64, 1, 20)
    assert head[0][0].weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.05)
    assert head.conv5_mask.weight.std().item() == pytest.approx((2 / (64 * 4)) ** 0.5, rel=0.05)
    assert head.mask_fcn_logits.weight.std().item() == pytest.approx(0.001, rel=0.1)
    assert not any(value.any() for name, value in head.state_dict().items() if name.endswith("bias"))


def test_every_layer_takes_part():
    head, pooled = MaskHead(2, 4, 4, 2, 1).double(), torch.rand(2, 4, 3, 3, dtype=torch.float64)
    found = head(pooled)
    hidden = head[1][0](head[0][0](pooled).clamp(min=0)).clamp(min=0)
    torch.testing.assert_close(found, head.mask_fcn_logits(head.conv5_mask(hidden).clamp(min=0)))


def test_channel_of_a_class():
    logits = torch.arange(4.0)[None, :, None].expand(3, 4, 5)
    assert of_classes(logits, torch.tensor([2, 0, 1])).tolist() == [[3.0] * 5, [1.0] * 5, [2.0] * 5]
    assert of_classes(logits[:0], torch.zeros(0, dtype=torch.long)).shape == (0, 5)
