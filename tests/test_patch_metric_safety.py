# SPDX-License-Identifier: Apache-2.0
"""What the CT denoising bundle promises about CT numbers, whatever its network has learnt."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from patch_metric_bundle import CYCLES, METHOD, RECIPES, WAVELET, Denoiser, run

from monai_labelfx.data import ct_phantom, phantom_ldct
from monai_labelfx.ops import high_pass_split

SIZES = {"slice": (1, 160, 130), "volume": (1, 80, 66, 3)}
ALL = (*RECIPES, "noise2void", "non_local_means")
SHIFTS = (37.0, 1000.0)  # HU


def scan(kind: str = "slice", seed: int = 0) -> torch.Tensor:
    """A noisy phantom without padding, which would stay where it is."""
    _, *size = SIZES[kind]
    depth = size[2] if kind == "volume" else None
    clean = torch.from_numpy(ct_phantom(size[0], depth=depth, seed=seed)[0])[None, :, : size[1]]
    return clean + 40 * torch.randn(clean.shape, generator=torch.Generator().manual_seed(seed))


def moved(denoiser: Denoiser, image: torch.Tensor) -> float:
    """How far the result is from moving with the image, HU."""
    there = denoiser(image)
    return max(float((denoiser(image + shift) - shift - there).abs().max()) for shift in SHIFTS)


@pytest.fixture(scope="module")
def datalist(tmp_path_factory) -> Path:
    return phantom_ldct(tmp_path_factory.mktemp("phantoms"), size=64, counts=(2, 2, 1, 0))


# --- an offset stays what it was --------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", WAVELET)
def test_offsets_pass_unchanged_before_and_after_training(name, datalist, tmp_path):
    run("train", tmp_path, datalist, name=name, steps_per_epoch=10, learning_rate=0.003)
    fresh, trained = Denoiser(name), Denoiser(name).load(tmp_path / "models" / "model.pt")
    for kind in SIZES:
        image = scan(kind)
        changes = [float((one(image) - image).abs().mean()) for one in (fresh, trained)]
        assert changes[1] > 0.01 and changes[0] != changes[1], "a network that does nothing proves nothing"
        for denoiser in (fresh, trained):
            assert moved(denoiser, image) <= 1e-3


@pytest.mark.parametrize("name", ["cyclegan", "gan_circle", "noise2void"])
def test_without_the_split_offsets_change_the_result(name):
    assert moved(Denoiser(name).shake(), scan()) > 10


@pytest.mark.parametrize("level", [[3, 3, 0], [2, 2, 1]])
def test_offsets_pass_a_network_of_volumes(level):
    image = torch.cat([scan("volume", seed) for seed in range(4)], dim=-1)[:, 20:60, 20:60]
    denoiser = Denoiser(preset=("3d",), level=level, features=4)
    assert moved(denoiser.shake(), image) <= 1e-3


# --- tiles ------------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("kind", SIZES)
@pytest.mark.parametrize("name", ALL)
def test_tiles_give_what_the_whole_image_gives(name, kind):
    """In float64, so that the order of sums does not count; non-local means with the noise given (0.02 of 2000 HU)."""
    image = scan(kind).double()
    sigma = {"network_def#sigma": 0.02} if name == "non_local_means" else {}
    tiled, whole = (Denoiser(name, tile_size=[size, size], **sigma).shake() for size in (64, 512))
    tiles: list[tuple[int, ...]] = []
    for denoiser in (tiled, whole):
        denoiser.network.double()
        denoiser.network.register_forward_pre_hook(lambda _, inputs: tiles.append(tuple(inputs[0].shape[2:])))
    halo = max(map(sum, zip(tiled.network.halo, tiled.network.divisor, strict=True)))
    results = [denoiser(image) for denoiser in (tiled, whole)]
    assert len(tiles) == {"slice": 9, "volume": 4}[kind] + 1 and tiles[-1] == tuple(image.shape[1:3])
    assert all(max(size) <= 64 + 2 * halo for size in tiles[:-1])
    assert (results[0] - image).abs().mean() > 1
    # what NonLocalMeans gets was rounded to float32, and it adds up whole images
    assert (results[0] - results[1]).abs().max() <= (1e-4 if name == "non_local_means" else 1e-9)


def test_tiles_of_the_default_network_agree_in_single_precision():
    image = scan()
    tiled, whole = (Denoiser(tile_size=[size, size], features=32, project=None)(image) for size in (64, 512))
    limit = 1e-4 + float(np.spacing(np.float32(image.abs().max())))  # the sum with the image is rounded
    assert 0 < (tiled - image).abs().mean() and (tiled - whole).abs().max() <= limit


def test_a_halo_too_small_shows():
    """Otherwise the network would not look beyond its tile, and equal tiles would mean nothing."""
    image = scan().double()
    results = []
    for size in (64, 512):
        denoiser = Denoiser(tile_size=[size, size]).shake()
        denoiser.network.double().halo = (4, 4)
        results.append(denoiser(image))
    assert (results[0] - results[1]).abs().max() > 1e-3


# --- the low band -----------------------------------------------------------------------------------------------------
def low_band(change: torch.Tensor) -> torch.Tensor:
    """Of each slice."""
    return high_pass_split(change.double(), level=3, mode="orthogonal", axes=(1, 2))[1]


@pytest.mark.parametrize("learnt", ["random", "brighter"])
@pytest.mark.parametrize("kind", [*SIZES, "network of volumes"])
def test_no_network_moves_the_low_band(kind, learnt):
    volumes = kind == "network of volumes"
    image = scan("volume" if volumes else kind)
    preset, level = (("3d",), [3, 3, 0]) if volumes else ((), 3)
    changes = {}
    for project in ("default", None):
        own = {} if project == "default" else {"project": None}
        denoiser = Denoiser(preset=preset, level=level, features=4, tile_size=64, **own).shake()
        if learnt == "brighter":  # 200 HU everywhere
            with torch.no_grad():
                denoiser.network.last.bias += 0.1
        changes[project] = denoiser(image) - image
    safe, free = changes["default"], changes[None]
    assert safe.abs().mean() > 1
    assert low_band(safe).abs().max() <= 1e-2
    assert safe.mean(dim=(1, 2)).abs().max() <= 1e-2  # of each slice
    assert low_band(free).abs().max() > 1
    assert free.mean(dim=(1, 2)).abs().max() > (100 if learnt == "brighter" else 0.1)


# --- how much of it ---------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("name", [METHOD, *CYCLES])
@pytest.mark.parametrize("kind", SIZES)
def test_strength_mixes_input_and_result(name, kind):
    image = scan(kind)
    image[:, :, :9] = -2000  # padding
    none, half, whole = (Denoiser(name, strength=strength).shake()(image) for strength in (0.0, 0.5, 1.0))
    assert torch.equal(none, image)
    assert (whole - image).abs().mean() > 1
    assert torch.allclose(half, (image + whole) / 2, atol=1e-3)
    assert torch.equal(whole[:, :, :9], image[:, :, :9])
