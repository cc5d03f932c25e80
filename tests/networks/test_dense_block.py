# SPDX-License-Identifier: Apache-2.0
"""The dense block written out."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from monai_labelfx.networks._dense_block import DenseConvolutions


@pytest.mark.parametrize("spatial_dims", [1, 2, 3])
@pytest.mark.parametrize(("replicate", "activate_last"), [(True, True), (False, False)])
def test_equals_five_convolutions_of_all_before(spatial_dims, replicate, activate_last):
    torch.manual_seed(0)
    block = DenseConvolutions(
        spatial_dims, 3, 2, 4, negative_slope=0.3, activate_last=activate_last, replicate=replicate
    ).double()
    convolve = (F.conv1d, F.conv2d, F.conv3d)[spatial_dims - 1]
    x = torch.randn(2, 3, *(5, 6, 4)[:spatial_dims], dtype=torch.float64)
    before, maps = x.clone(), x
    for number, conv in enumerate(block.convs):
        assert conv.weight.shape[:2] == (2 if number == 4 else 4, 3 + 4 * number)
        mode = "replicate" if replicate else "constant"
        y = convolve(F.pad(maps, [1] * 2 * spatial_dims, mode=mode), conv.weight, conv.bias)
        if number < 4 or activate_last:
            y = torch.where(y > 0, y, 0.3 * y)
        maps = torch.cat([maps, y], 1)
    torch.testing.assert_close(block(x), y)
    assert torch.equal(x, before)
