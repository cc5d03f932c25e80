# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
import pytest
import torch
from monai.data import MetaTensor
from monai.transforms import Compose
from testers import AFFINE, assert_same, check_transform, picture

from monai_labelfx.ops import blind_spot_mask
from monai_labelfx.transforms import RandBlindSpotMask, RandBlindSpotMaskd

KEYS = ["", "_target", "_blind_spots"]


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize(
    "keywords",
    [{}, {"strategy": "median", "window": 5}, {"strategy": "mean", "fraction": 0.1}, {"structure": "line"}],
    ids=["default", "median", "mean", "structure"],
)
def test_contract(spatial_dims, channels, keywords):
    if "structure" in keywords:
        keywords = {"structure": np.ones((1,) * (spatial_dims - 1) + (3,)).tolist()}
    check_transform(RandBlindSpotMask, RandBlindSpotMaskd, keywords, picture(spatial_dims, channels))


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("strategy", ["uniform", "median", "mean", "identity"])
def test_agrees_with_the_batch_function(spatial_dims, strategy):
    image = torch.from_numpy(picture(spatial_dims, channels=2))
    transform = RandBlindSpotMask(0.05, strategy, seed=7)
    out = transform(image)
    masked, mask = blind_spot_mask(image[None], 0.05, strategy, generator=torch.Generator().manual_seed(7))
    assert list(out) == KEYS
    assert_same(out, {"": masked[0], "_target": image, "_blind_spots": mask[0]})


def test_what_the_twin_writes():
    image = picture(2)
    item = RandBlindSpotMaskd("image", fraction=0.1).set_random_state(0)({"image": image, "label": 3})
    assert set(item) == {"image", "image_target", "image_blind_spots", "label"}
    spots = item["image_blind_spots"]
    assert spots.dtype == torch.bool and spots.sum() == round(0.1 * image.size)
    assert np.array_equal(item["image_target"], image)
    assert torch.equal(item["image"] != item["image_target"], spots)


def test_a_seed_fixes_the_mask():
    image = picture(3)
    fixed = RandBlindSpotMask(seed=5)
    first = fixed(image)
    assert_same(first, fixed(image))
    assert_same(first, RandBlindSpotMask(seed=5).set_random_state(9)(image))
    assert_same(first["_blind_spots"], fixed(image + 1)["_blind_spots"])
    assert not torch.equal(first["_blind_spots"], RandBlindSpotMask(seed=6)(image)["_blind_spots"])
    twin = Compose([RandBlindSpotMaskd("image", seed=5)]).set_random_state(1)
    for _ in range(2):
        assert_same(first["_blind_spots"], twin({"image": image})["image_blind_spots"])


def test_without_a_seed_every_call_differs():
    image, transform = picture(2), RandBlindSpotMask().set_random_state(0)
    first, second = (transform(image)["_blind_spots"] for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(second, transform(image, randomize=False)["_blind_spots"])


def test_keys_of_different_channel_counts_share_the_draw():
    image = picture(2, channels=3)
    twin = RandBlindSpotMaskd(["many", "one"]).set_random_state(0)
    item = twin({"many": image, "one": image[:1]})
    assert torch.equal(item["many_blind_spots"][:1], item["one_blind_spots"])
    assert torch.equal(item["one_blind_spots"].sum((1, 2)), item["many_blind_spots"].sum((1, 2))[:1])


def ramp(*sizes: int) -> MetaTensor:
    """An image whose values are its flat indices, with the spacing 0.9, 0.7, 2.5 mm."""
    return MetaTensor(torch.arange(float(np.prod(sizes))).reshape(1, *sizes), affine=AFFINE)


def offsets(out: dict[str, torch.Tensor]) -> np.ndarray:
    """Offsets (axes, m) from each spot of a ramp to the voxel that it copied."""
    spots = out["_blind_spots"][0].numpy()
    return np.stack(np.unravel_index(out[""][0].numpy()[spots].astype(int), spots.shape)) - np.argwhere(spots).T


@pytest.mark.parametrize(
    "window, reach", [(11, [6, 7, 2]), ((3.6, 1.8, 25.0), [2, 1, 5]), ((0.1, 3.6, 0.1), [0, 2, 0])]
)
def test_window_in_mm_follows_the_spacing(window, reach):
    image = ramp(20, 21, 22)
    found = offsets(RandBlindSpotMask(0.1, window=window, window_unit="mm", seed=1)(image))
    assert abs(found).max(1).tolist() == reach
    voxels = RandBlindSpotMask(0.1, window=[2 * r + 1 for r in reach], seed=1)(image)
    assert np.array_equal(found, offsets(voxels))


def test_window_in_mm_of_a_plane_with_a_volume_affine():
    found = offsets(RandBlindSpotMask(0.1, window=3.6, window_unit="mm", seed=1)(ramp(24, 25)))
    assert abs(found).max(1).tolist() == [2, 2]


@pytest.mark.parametrize("container", [np.asarray, torch.as_tensor])
def test_mm_needs_metadata(container):
    with pytest.raises(ValueError, match="window_unit='mm' needs a MetaTensor.* got (ndarray|Tensor)"):
        RandBlindSpotMask(window_unit="mm")(container(picture(2)))


@pytest.mark.parametrize(
    "keywords, message",
    [
        ({"fraction": 0}, "fraction must be between 0 and 1"),
        ({"strategy": "gauss"}, "strategy must be one of"),
        ({"window_unit": "cm"}, "window_unit must be one of voxel, mm, got 'cm'"),
    ],
)
def test_bad_options_fail_at_construction(keywords, message):
    with pytest.raises(ValueError, match=message):
        RandBlindSpotMask(**keywords)
    with pytest.raises(ValueError, match=message):
        RandBlindSpotMaskd("image", **keywords)


@pytest.mark.parametrize("window, unit", [(4, "voxel"), ((3, 3, 3), "voxel"), ((3.0,), "mm"), (-1.0, "mm")])
def test_bad_windows(window, unit):
    with pytest.raises(ValueError, match="window must be"):
        RandBlindSpotMask(window=window, window_unit=unit)(MetaTensor(picture(2)))


def test_integer_images_are_refused():
    with pytest.raises(TypeError, match="images must be a floating-point tensor, got torch.uint8"):
        RandBlindSpotMask()(np.zeros((1, 9, 9), dtype=np.uint8))
