# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
import torch

from monai_labelfx.ops.components import component_boxes
from monai_labelfx.ops.label_objects import label_objects


@pytest.mark.parametrize("shape", [(60,), (13, 12), (7, 6, 8)])
@pytest.mark.parametrize("connectivity", [None, 1])
def test_objects_are_the_components(shape, connectivity):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.5 / len(shape) ** 1.5
    labels = label_objects(mask, connectivity=connectivity, min_size=2)
    whole = label_objects(mask, connectivity=connectivity)
    assert labels.dtype == torch.int32 and torch.equal(whole > 0, mask)
    sizes = whole.flatten().bincount()[1:]
    kept = labels.flatten().bincount()[1:]
    assert torch.equal(kept, sizes[sizes >= 2]) and len(kept) < len(sizes)
    boxes, _ = component_boxes(mask, connectivity=connectivity, min_size=2)
    assert torch.equal(component_boxes(labels, instances=True)[0], boxes)


def test_holes():
    mask = torch.ones(5, 5)
    mask[2, 2] = 0
    assert label_objects(mask, fill_holes=True).eq(1).all() and label_objects(mask)[2, 2] == 0
    assert not label_objects(torch.zeros(3, 3)).any()


def test_bad_input():
    mask = torch.ones(3, 3)
    with pytest.raises(ValueError, match="between 1 and the number of spatial axes 2, got 3"):
        label_objects(mask, connectivity=3)
    with pytest.raises(ValueError, match="min_size must be a number of voxels, 0 or above, got -1"):
        label_objects(mask, min_size=-1)
    with pytest.raises(ValueError, match="got a single number"):
        label_objects(torch.tensor(1))
