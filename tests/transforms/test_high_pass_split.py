# SPDX-License-Identifier: Apache-2.0
"""HighPassSplit: bands of whole slices and volumes, offsets, the way back, and what it refuses."""

from __future__ import annotations

import numpy as np
import pytest
import pywt
import torch
from monai.data import DataLoader, Dataset, MetaTensor, set_track_meta
from monai.transforms import CenterSpatialCropd, Compose, Flipd, Invertd, ScaleIntensityRanged
from testers import AFFINE, check_transform, picture

from monai_labelfx.ops.wavelet import high_pass_split
from monai_labelfx.transforms.high_pass_split import HighPassSplit, HighPassSplitd


class AsMapping(HighPassSplit):
    """The pair under the suffixes of the twin, as the contract of transforms wants it."""

    def __call__(self, img):
        high, low = super().__call__(img)
        return {"": high, "_low": low}


def slab(*spatial: int) -> np.ndarray:
    """HU of air and tissue with noise, (1, *spatial) float32."""
    image = np.random.default_rng(1).normal(scale=30, size=(1, *spatial))
    image[:, : spatial[0] // 2] -= 1000
    return image.astype(np.float32)


@pytest.mark.parametrize("spatial_dims", [2, 3])
@pytest.mark.parametrize("keywords", [{}, {"mode": "orthogonal"}, {"spatial_dims": 2}, {"pad": True}])
def test_contract(spatial_dims, keywords):
    keywords = {"wavelet": "db2", "level": 2, **keywords}
    check_transform(AsMapping, HighPassSplitd, keywords, 300 * picture(spatial_dims, channels=2))


def test_the_high_band_is_that_of_pywavelets():
    x = slab(96, 101)
    coefficients = pywt.wavedec2(x.astype(np.float64), "db3", "symmetric", 4)
    coefficients[0][:] = 0
    high, low = HighPassSplit(level=4)(x)
    assert np.abs(high.numpy() - pywt.waverec2(coefficients, "db3", "symmetric")[:, :96, :101]).max() < 1e-4
    assert high.dtype == low.dtype == torch.float32 and np.abs((high + low).numpy() - x).max() <= 1.3e-4
    assert float(high[0, :20].mean()) == pytest.approx(0, abs=20) and float(low[0, 4:20].mean()) < -900


def test_the_padded_form_is_that_of_the_published_code():
    x = torch.from_numpy(slab(64, 60))
    high, _ = HighPassSplit(level=3, pad=True)(x)
    wanted = high_pass_split(x[None].double(), level=3, pad=True)[0][0]
    assert float((high - wanted).abs().max()) < 1e-4
    assert float((high - HighPassSplit(level=3)(x)[0]).abs().max()) > 1


def test_the_default_is_that_of_the_paper():
    x = torch.from_numpy(slab(512, 512))
    high, low = HighPassSplit()(x)
    wanted = high_pass_split(x[None].double(), wavelet="db3", level=6, mode="symmetric")
    assert float((high - wanted[0][0]).abs().max()) < 1e-4 and float((low - wanted[1][0]).abs().max()) < 2e-4


@pytest.mark.parametrize("mode", ["symmetric", "orthogonal", "periodization", "reflect"])
def test_an_offset_stays_in_the_low_band(mode):
    x = slab(256, 250)
    high, low = HighPassSplit(level=5, mode=mode)(x)
    moved_high, moved_low = HighPassSplit(level=5, mode=mode)(x + 1000)
    assert float((moved_high - high).abs().max()) < 5e-4  # what float32 makes of x + 1000, at most 6e-5, and borders
    assert float((moved_low - low - 1000).abs().max()) < 1e-3


def test_two_of_three_axes_split_each_slice():
    volume = slab(64, 60, 5)
    high, low = HighPassSplit(level=(3, 2), spatial_dims=2)(volume)
    for depth in range(5):
        one, rest = HighPassSplit(level=(3, 2))(volume[..., depth])
        assert torch.allclose(high[..., depth], one, rtol=0, atol=2e-4)
        assert torch.allclose(low[..., depth], rest, rtol=0, atol=2e-4)
    assert torch.allclose(HighPassSplit(level=(3, 2, 0))(volume)[0], high, rtol=0, atol=2e-4)


def test_arrays_as_readers_lay_them_out():
    volume = slab(40, 44, 12)
    laid = np.asfortranarray(volume)
    split = HighPassSplit(level=(2, 2, 1))
    assert all(torch.allclose(a, b, rtol=0, atol=1e-4) for a, b in zip(split(volume), split(laid), strict=True))


@pytest.mark.parametrize("kind", [np.int16, np.uint8, np.float16, np.float32, np.float64])
def test_number_types(kind):
    x = (slab(64, 64) / 10 + 120).astype(kind)
    high, low = HighPassSplit(level=3)(x)
    wanted = np.float64 if kind is np.float64 else np.float32
    assert high.numpy().dtype == low.numpy().dtype == wanted
    assert np.abs((high + low).numpy() - x.astype(np.float64)).max() <= 2e-5


def test_meta_and_the_way_back():
    x = slab(64, 60)
    image = MetaTensor(torch.from_numpy(x), affine=AFFINE, meta={"filename_or_obj": "a.nii"})
    split = HighPassSplitd(keys="image", level=3)
    item = split({"image": image, "other": 1})
    assert set(item) == {"image", "image_low", "other"} and not image.applied_operations
    for key in ("image", "image_low"):
        assert torch.equal(item[key].affine, image.affine) and item[key].meta["filename_or_obj"] == "a.nii"
    assert [step["class"] for step in item["image"].applied_operations] == ["HighPassSplit"]
    assert not item["image_low"].applied_operations
    back = split.inverse(item)
    assert set(back) == {"image", "other"} and isinstance(back["image"], MetaTensor)
    assert not back["image"].applied_operations and torch.equal(back["image"].affine, image.affine)
    assert np.abs(back["image"].numpy() - x).max() <= 1.3e-4
    assert set(item) == {"image", "image_low", "other"} and item["image"].applied_operations, "left as it was"


def test_plain_tensors_go_back_too():
    x = torch.from_numpy(slab(64, 60))
    set_track_meta(False)
    try:
        split = HighPassSplitd(keys=["a", "b"], level=3)
        item = split({"a": x, "b": x + 1})
        assert type(item["a"]) is type(item["b_low"]) is torch.Tensor
        back = split.inverse(item)
    finally:
        set_track_meta(True)
    assert set(back) == {"a", "b"} and float((back["b"] - x - 1).abs().max()) <= 1.3e-4


def test_a_chain_goes_back_through_the_split():
    x = slab(64, 60)
    both = ["image", "image_low"]
    chain = Compose(
        [
            Flipd("image", 0),
            HighPassSplitd(keys="image", level=3),
            Flipd(both, 1),
        ]
    )
    item = chain({"image": torch.from_numpy(x)})
    back = chain.inverse(item)
    assert np.abs(back["image"].numpy() - x).max() <= 1.3e-4 and "image_low" not in back


def test_the_network_alone_is_tiled():
    """Split, then crop is what a network gets; crop, then split is something else."""
    x = slab(128, 128)
    crop = CenterSpatialCropd(["image", "image_low"], 80, allow_missing_keys=True)
    split = HighPassSplitd("image", level=4)
    first = Compose([split, crop, ScaleIntensityRanged("image", -1000, 1000, 0, 1)])({"image": x})
    other = Compose([crop, split])({"image": x})
    assert first["image"].shape == first["image_low"].shape == other["image"].shape == (1, 80, 80)
    assert float((first["image_low"] - other["image_low"]).abs().max()) > 20


def test_bands_collate():
    data = Dataset([{"image": slab(32, 32)} for _ in range(2)], HighPassSplitd("image", level=2))
    batch = next(iter(DataLoader(data, batch_size=2)))
    assert batch["image"].shape == batch["image_low"].shape == (2, 1, 32, 32)


def test_a_high_band_alone_is_no_image():
    split = HighPassSplitd("image", level=3)
    item = split({"image": slab(64, 60)})
    with pytest.raises(ValueError, match=r"the item has 'image' but no 'image_low' \(keys \['image'\]\)"):
        split.inverse({"image": item["image"]})
    item["pred"] = item["image"].clone()
    with pytest.raises(ValueError, match="without its low band"):
        Invertd("pred", split, "image")(item)
    item["image"] = item["image"][:, :32]
    with pytest.raises(ValueError, match=r"high band of shape \(1, 32, 60\) and a low band of shape \(1, 64, 60\)"):
        split.inverse(item)
    plain = HighPassSplitd("image", level=3, allow_missing_keys=True)
    assert plain.inverse({"other": 1}) == {"other": 1}


@pytest.mark.parametrize("mode", ["zero", "antisymmetric"])
def test_modes_that_move_ct_numbers_are_refused(mode):
    with pytest.raises(ValueError, match=f"^mode '{mode}' puts part of a constant into the high band, .*\\.$"):
        HighPassSplit(mode=mode)
    with pytest.raises(ValueError, match="would move"):
        HighPassSplitd("image", mode=mode)


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"wavelet": "db99"}, "wavelet must be"),
        ({"mode": "mirror"}, "mode must be"),
        ({"level": -1}, "got -1"),
        ({"level": 0}, "no high band is left"),
        ({"level": (0, 0)}, "no high band is left"),
        ({"level": 2.5}, "got 2.5"),
        ({"level": (1, 2, 3), "spatial_dims": 2}, r"each of the 2 split axes, got \(1, 2, 3\)"),
        ({"spatial_dims": 0}, "spatial_dims must be 1 or more, or None for all axes, got 0"),
        ({"mode": "orthogonal", "pad": True}, "pad must be False"),
    ],
)
def test_bad_keywords(keywords, message):
    with pytest.raises(ValueError, match=message):
        HighPassSplit(**keywords)


def test_bad_images_are_named():
    image = MetaTensor(torch.zeros(1, 512, 512, 20), meta={"filename_or_obj": "ct/a.nii"})
    with pytest.raises(ValueError, match=r"level 6 is too deep for axis 3 of ct/a\.nii, .* size 20: .* db3 is 2"):
        HighPassSplit()(image)
    with pytest.raises(ValueError, match=r"each of the 3 split axes, got \(6, 6\)"):
        HighPassSplit(level=(6, 6))(image)
    with pytest.raises(ValueError, match=r"the image of shape \(1, 64, 64\) has too few axes"):
        HighPassSplit(level=3, spatial_dims=3)(np.zeros((1, 64, 64), np.float32))
    broken = slab(64, 64)
    broken[0, 3, 4] = np.nan
    with pytest.raises(ValueError, match="the image has NaN or infinite values"):
        HighPassSplit(level=3)(broken)
