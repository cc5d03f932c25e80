# SPDX-License-Identifier: Apache-2.0
"""Detections in the voxels of the file: which ones, in which order, and with their masks."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from instance_samples import blocks_of, found_in
from monai.data import MetaTensor
from monai.transforms import Flip, SpatialCrop, SpatialPad

from monai_labelfx.engines._as_read import collected, found_as_read, path_of


def image_of(shape, **meta) -> MetaTensor:
    return MetaTensor(torch.zeros(1, *shape), meta={"filename_or_obj": "a.png", **meta})


def test_batch_and_output_together():
    engine = SimpleNamespace(state=SimpleNamespace(batch=[{"image": 1, "pred": 0}], output=[{"pred": 2}]))
    assert list(collected(engine, "Saver")) == [{"image": 1, "pred": 2}]
    engine.state.batch = {"image": 1}
    assert list(collected(engine, "Saver")) == [{"pred": 2}]
    engine.state.output = {}
    with pytest.raises(ValueError, match="Saver needs decollated items"):
        list(collected(engine, "Saver"))


def test_path():
    assert path_of({"x": image_of((2, 2))}, "x", "Saver") == os.path.abspath("a.png")
    with pytest.raises(ValueError, match="Saver needs 'x' with meta data"):
        path_of({"x": torch.zeros(1, 2, 2)}, "x", "Saver")


@pytest.mark.parametrize("shape", [(8, 6), (8, 6, 5)])
@pytest.mark.parametrize("form", [torch.as_tensor, blocks_of])
def test_order_and_choice(shape, form):
    image = SpatialPad([n + 4 for n in shape], method="end")(Flip(0)(image_of(shape, spatial_shape=shape)))
    masks = np.zeros((4, *image.shape[1:]), bool)
    masks[0, 1:3, 1:4] = masks[1, 9:, 0:2] = masks[2, 0:6, 2:7] = masks[3, 5:7, 0:2] = True
    pred = found_in(masks, scores=[0.5, 0.9, 0.7, 0.5], labels=[0, 1, 2, 3], form=form)
    found = found_as_read(image, pred, name="a", min_score=0.5, masks=True)
    assert found.labels.tolist() == [2, 0, 3], "the best first, of equal ones the first; not what is in padding only"
    assert found.boxes[:, [0, len(shape)]].tolist() == [[2, 8], [5, 7], [1, 3]]
    expected = np.flip(masks[[2, 0, 3], :8], 1)[:, :, :6]
    expected = expected if len(shape) == 2 else expected[..., :5]
    assert found.masks.shape == shape and found.masks.volumes.tolist() == expected.reshape(3, -1).sum(1).tolist()
    for low, high, crop, mask in zip(*found.masks[:2], found.masks.crops, expected, strict=True):
        assert np.array_equal(mask[tuple(map(slice, low, high))], crop)
    assert found_as_read(image, pred, name="a", min_score=0.6, masks=False).masks is None


def test_masks_need_the_size_of_the_file_where_the_image_moved():
    pred = found_in(np.ones((1, 4, 6), bool))
    still = found_as_read(image_of((4, 6)), pred, name="a", min_score=0, masks=True)
    assert still.masks.shape == (4, 6) and still.masks.crops[0].all()
    cropped = SpatialCrop(roi_start=(1, 0), roi_end=(5, 6))(image_of((8, 6)))
    assert len(found_as_read(cropped, pred, name="a", min_score=0, masks=False).boxes) == 1
    with pytest.raises(ValueError, match="meta data of 'a' have no 'spatial_shape'"):
        found_as_read(cropped, pred, name="a", min_score=0, masks=True)
    cropped.meta["spatial_shape"] = (8, 6)
    found = found_as_read(cropped, pred, name="a", min_score=0, masks=True)
    assert found.masks.low.tolist() == [[1, 0]] and found.masks.high.tolist() == [[5, 6]]


def test_refused():
    pred = {**found_in(np.ones((2, 4, 6), bool)), "scores": torch.ones(3)}
    with pytest.raises(ValueError, match="the 2 boxes of 'a' need as many labels and scores, got 2 and 3"):
        found_as_read(image_of((4, 6)), pred, name="a", min_score=0, masks=False)
    with pytest.raises(ValueError, match=r"the boxes of 'a' must have the shape \(N, 6\), got \(2, 4\)"):
        found_as_read(image_of((4, 6, 3)), pred, name="a", min_score=0, masks=False)
