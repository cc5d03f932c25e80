# SPDX-License-Identifier: Apache-2.0
"""ToSingleChannel: one grey channel, never a silent mixture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from testers import check_transform, picture

from monai_labelfx.transforms import ToSingleChannel, ToSingleChanneld


def coloured(spatial_dims: int, channels: int) -> np.ndarray:
    """Equal colour channels, a varying alpha for RGBA, a constant one for grey and alpha."""
    grey = picture(spatial_dims)
    alpha = {2: np.full_like(grey, 255), 4: picture(spatial_dims, seed=1)}.get(channels, grey[:0])
    return np.concatenate([grey] * (1 if channels < 3 else 3) + [alpha])


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_contract_and_value(spatial_dims, channels):
    array = coloured(spatial_dims, channels)
    assert array.shape[0] == channels
    check_transform(ToSingleChannel, ToSingleChanneld, {}, array)
    assert np.array_equal(ToSingleChannel()(array), array[:1])


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_luminance_contract(spatial_dims):
    array = picture(spatial_dims, channels=3)
    check_transform(ToSingleChannel, ToSingleChanneld, {"on_color": "luminance"}, array)
    expected = np.tensordot([0.299, 0.587, 0.114], array.astype(np.float64), axes=1)[None]
    assert np.allclose(ToSingleChannel(on_color="luminance")(array), expected, atol=1e-6)


def test_luminance_agrees_with_pillow_for_bytes():
    array = np.random.default_rng(0).integers(0, 256, (6, 7, 3), dtype=np.uint8)
    ours = ToSingleChannel(on_color="luminance")(np.moveaxis(array, -1, 0))
    assert ours.dtype == torch.uint8
    reference = np.asarray(Image.fromarray(array).convert("L"), dtype=int)
    assert np.abs(ours[0].numpy().astype(int) - reference).max() <= 1


def test_grey_values_and_dtype_are_untouched():
    grey = torch.arange(20, dtype=torch.uint8).reshape(1, 4, 5)
    result = ToSingleChannel(on_color="luminance")(grey.expand(3, 4, 5))
    assert result.dtype == torch.uint8 and torch.equal(result.as_tensor(), grey)


def test_the_result_does_not_share_memory():
    image = torch.zeros(3, 2, 2)
    ToSingleChannel()(image)[0, 0, 0] = 1
    assert image.sum() == 0


def test_refusals():
    with pytest.raises(ValueError, match="in colour.*on_color='luminance'"):
        ToSingleChannel()(picture(2, channels=3))
    with pytest.raises(ValueError, match="two channels and the second is no constant alpha"):
        ToSingleChannel()(picture(2, channels=2))
    with pytest.raises(ValueError, match=r"1 to 4 channels, got shape \(5,"):
        ToSingleChannel()(picture(2, channels=5))
    with pytest.raises(ValueError, match="on_color must be 'error', 'luminance' or 'keep', got 'mean'"):
        ToSingleChannel(on_color="mean")


@pytest.mark.parametrize("spatial", [(4, 5), (4, 5, 3)])
def test_keep_leaves_channels_with_objects_that_overlap(spatial):
    label = torch.zeros(3, *spatial, dtype=torch.int32)
    label[0, :2], label[1, 1:3] = 1, 2
    keep = ToSingleChannel(on_color="keep")
    for channels in (2, 3):
        assert torch.equal(keep(label[:channels]), label[:channels])
    assert torch.equal(keep(label.repeat(2, *[1] * len(spatial))), label.repeat(2, *[1] * len(spatial)))


def test_keep_takes_one_channel_of_a_grey_picture():
    grey = torch.arange(20).reshape(1, 4, 5)
    alpha = torch.full_like(grey, 255)
    for stored in (grey, torch.cat([grey, alpha]), grey.expand(3, 4, 5), torch.cat([grey.expand(3, 4, 5), alpha])):
        assert torch.equal(ToSingleChannel(on_color="keep")(stored), grey)
