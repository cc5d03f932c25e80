# SPDX-License-Identifier: Apache-2.0
"""The reach of chains of convolutions, against the gradient through them."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.networks._reach import Layer, reach


@pytest.mark.parametrize(
    ("layers", "divisor"),
    [
        ([Layer(1, padding=0)], 1),
        ([Layer(3), Layer(7, padding=3)], 1),
        ([Layer(3, 2), Layer(3), Layer(3, 2, transposed=True)], 2),
        ([Layer(3, 2), Layer(3, 2), Layer(4, 2, transposed=True), Layer(3, 2, transposed=True)], 4),
        ([Layer(7, padding=3), Layer(4, 2), Layer(5, padding=2), Layer(4, 2, transposed=True), Layer(3)], 2),
        ([Layer(3, 3), Layer(3, 3, 0, transposed=True)], 3),
    ],
)
def test_reach_is_how_far_the_gradient_goes(layers, divisor):
    net = torch.nn.Sequential()
    for kernel, stride, padding, transposed in layers:
        if transposed:
            extra = stride - (kernel - 2 * padding)  # so that the size is multiplied
            net.append(torch.nn.ConvTranspose1d(1, 1, kernel, stride, padding, output_padding=extra))
        else:
            net.append(torch.nn.Conv1d(1, 1, kernel, stride, padding))
    for parameter in net.parameters():
        parameter.data.fill_(1.0)
    x = torch.zeros(1, 1, 20 * divisor, requires_grad=True)
    first = 10 * divisor
    net(x)[..., first : first + divisor].sum().backward()
    seen = x.grad[0, 0].nonzero()[:, 0]
    assert reach(layers, divisor) == max(first - seen[0], seen[-1] - (first + divisor - 1), 0)
