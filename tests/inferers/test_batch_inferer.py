# SPDX-License-Identifier: Apache-2.0
"""Batches in parts."""

from __future__ import annotations

import pytest
import torch

from monai_labelfx.inferers.batch_inferer import BatchInferer


@pytest.mark.parametrize("shape", [(7, 2, 5, 4), (3, 2, 3, 4, 5)])
def test_parts_are_joined_in_order_and_none_is_larger(shape):
    seen = []

    def network(images, factor):
        seen.append(len(images))
        return images.flatten(1).mean(dim=1) * factor

    images = torch.rand(shape)
    result = BatchInferer(3)(images, network, factor=2)
    assert torch.equal(result, images.flatten(1).mean(dim=1) * 2)
    assert max(seen) == 3 and sum(seen) == len(images)


def test_bad_size():
    with pytest.raises(ValueError, match="batch_size must be 1 or above, got 0"):
        BatchInferer(0)
