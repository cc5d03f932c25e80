# SPDX-License-Identifier: Apache-2.0
"""Run lengths of cropped masks are those of the whole masks."""

from __future__ import annotations

import numpy as np
import pytest

from monai_labelfx.engines._mask_run_lengths import mask_run_lengths
from monai_labelfx.metrics._mask_crops import crop_masks
from monai_labelfx.ops.run_length import decode_run_lengths, encode_run_lengths


@pytest.mark.parametrize("shape", [(7, 5), (4, 5, 6), (3, 2, 2, 3), (9,), (1, 4), (4, 1)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.95])
def test_equals_whole_masks(shape, share):
    masks = np.random.default_rng(0).random((20, *shape)) < share
    masks[3] = True  # one run over all lines
    masks[4] = False
    masks[5] = False
    masks[5][tuple(n - 1 for n in shape)] = True
    masks[6] = True
    masks[6].flat[0] = False
    found = mask_run_lengths(crop_masks(masks))
    assert found == encode_run_lengths(masks)
    assert np.array_equal(decode_run_lengths(found).numpy(), masks)


def test_by_hand_and_none():
    mask = np.zeros((1, 3, 4), bool)
    mask[0, 1] = mask[0, 0, 3] = True  # from voxel 3 to 8 of 12
    assert mask_run_lengths(crop_masks(mask)) == [{"size": [4, 3], "counts": "354"}]
    assert mask_run_lengths(crop_masks(mask[:0])) == []
