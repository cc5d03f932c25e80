# SPDX-License-Identifier: Apache-2.0
"""The CT denoising bundle's presets and options: values of the papers, sizes of networks, slices and volumes."""

from __future__ import annotations

import math
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from patch_metric_bundle import (
    BUNDLE,
    METHOD,
    QUICK,
    Denoiser,
    metrics,
    parser_of,
    predict,
    read_json,
    run,
    weights,
)

from monai_labelfx.commands.bundle_folder import config_names, rivals
from monai_labelfx.commands.workflow import bundle_workflow, config_files
from monai_labelfx.data import load_datalist, phantom_ldct, save_datalist

BOUNDED = {"aapm": 0.15, "temporal_bone": 0.12}  # tau


def count(network: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# --- values -----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("preset", "expected"),
    {
        "aapm": {"level": 6, "temperature": 0.15, "pool": 0, "batch_size": 8, "max_epochs": 200},
        "temporal_bone": {"level": 5, "temperature": 0.12, "pool": 1, "batch_size": 4, "max_epochs": 100},
    }.items(),
)
def test_both_data_sets_of_the_paper(preset, expected):
    parser = parser_of("train", preset=(preset,))
    shared = {"wavelet": "db3", "mode": "symmetric", "patches": 128, "identity_weight": 5.0, "learning_rate": 0.0002}
    for key, value in {**shared, **expected}.items():
        assert parser.get_parsed_content(key) == value, key
    # lambda_m 0.1 of the released loss, whose scale is exp(1 / tau) / 128
    weight = 0.1 * math.exp(1 / BOUNDED[preset]) / 128
    assert parser.get_parsed_content("metric_weight") == pytest.approx(weight, rel=1e-3)
    assert parser.get_parsed_content("patch_size") == [128, 128]
    assert parser.get_parsed_content("project") == {"wavelet": "db3", "level": expected["level"], "mode": "orthogonal"}
    heads = parser.get_parsed_content("heads_def")
    assert heads.stride == (2 ** expected["pool"],) * 2 and count(heads) == 2 * 20_736
    assert parser.get_parsed_content("functions")["positions"].stride == 2 ** expected["pool"]
    (metric,) = [term for term in parser.get_parsed_content("terms") if term["name"] == "metric"]
    assert metric["weight"] == parser.get_parsed_content("metric_weight") and metric["loss"].tau == BOUNDED[preset]
    assert metric["loss"].reference is False
    assert count(parser.get_parsed_content("network")) == 95_169
    assert count(parser.get_parsed_content("discriminator_def")) == 401_373


def test_the_defaults_are_those_of_the_first_data_set():
    default, aapm = parser_of("train").get(), parser_of("train", preset=("aapm",)).get()
    assert {key for key in aapm if aapm[key] != default[key]} == {"margin"}


def test_released_code():
    parser = parser_of("train", preset=("released_code",))
    assert count(parser.get_parsed_content("network")) == 32_833
    expected = {"pad": True, "project": None, "margin": 30, "metric_weight": 0.1, "shared_patients": True}
    for key, value in expected.items():
        assert parser.get_parsed_content(key) == value, key
    (metric,) = [term for term in parser.get_parsed_content("terms") if term["name"] == "metric"]
    assert metric["loss"].reference is True and metric["weight"] == 0.1
    denoiser = Denoiser(preset=("released_code",), features=32)
    assert denoiser.after[0].project is None and denoiser.before[-3].transform.pad is True


def test_learning_rate_falls_in_the_second_half():
    for preset, epochs in (("aapm", 200), ("temporal_bone", 100)):
        decay = parser_of("train", preset=(preset,)).get_parsed_content("decay")
        rates = [decay(epoch) for epoch in range(epochs)]
        assert rates[: epochs // 2] == [1.0] * (epochs // 2)
        assert np.allclose(np.diff(rates[epochs // 2 - 1 :]), -1 / (epochs / 2 + 1))
        assert rates[-1] == pytest.approx(1 / (epochs / 2 + 1))  # the released code ends there, not at 0


@pytest.mark.parametrize("rival", [METHOD, "cyclegan", "invertible"])
def test_network_of_volumes(rival):
    parser = parser_of("train", *([] if rival == METHOD else [rival]), preset=("3d",))
    assert parser.get_parsed_content("spatial_dims") == 3 and parser.get_parsed_content("level") == [5, 5, 2]
    if rival == METHOD:
        assert count(parser.get_parsed_content("heads_def")) == 2 * (16 * 128 + 128 + 128 * 128 + 128)
    key = "cycle#discriminator_def" if rival == "cyclegan" else "discriminator_def"
    discriminator = parser.get_parsed_content(key)
    patch = torch.zeros(2, 1, *parser.get_parsed_content("patch_size"))
    assert discriminator(patch).shape[:2] == (2, 1)
    with torch.device("meta"):
        network = parser.get_parsed_content("network_def")
    assert network.spatial_dims == 3


@pytest.mark.parametrize("preset", sorted(config_names(BUNDLE, "presets")))
@pytest.mark.parametrize("rival", [METHOD, *rivals(BUNDLE)])
def test_inference_does_what_training_had_in_mind(rival, preset):
    """What both configurations say is the same, with any rival and preset."""
    parsers = [
        parser_of(workflow, *([] if rival == METHOD else [rival]), preset=(preset,))
        for workflow in ("train", "inference")
    ]
    shared = [key for key in parsers[1].get() if key in parsers[0].get()]
    own = {
        *("imports", "dataset_dir", "output_dir", "device", "amp", "num_workers", "run", "bundle_root"),
        *("preprocessing", "postprocessing", "dataset", "dataloader", "evaluator", "handlers", "network"),
    }
    chosen = set(shared) - own
    assert {"level", "wavelet", "mode", "split", "hu_zero", "hu_scale", "project", "network_def"} <= chosen
    for key in chosen:
        assert parsers[0].get()[key] == parsers[1].get()[key], key


OF_IMAGES = ("keys", "allow_missing_keys")  # evaluation has also references and regions


def test_evaluation_and_inference_preprocess_as_training_does():
    train, evaluate, inference = (parser_of(workflow).get() for workflow in ("train", "evaluate", "inference"))
    for key in ("load_transforms", "split_transforms", "restore_transforms"):
        assert train[key] == evaluate[key], key
    expected = [*train["load_transforms"], *train["split_transforms"]]
    found = inference["preprocessing"]["transforms"]
    start = next(n for n, one in enumerate(expected) if one["_target_"] == "EnsureChannelFirstd")
    expected, found = expected[start:], found[len(found) - len(expected) + start :]
    for one, other in zip(found, expected, strict=True):
        mine, theirs = ({k: v for k, v in each.items() if k not in OF_IMAGES} for each in (one, other))
        assert mine == theirs and one["keys"] in ("image", other["keys"])


# --- slices and volumes -----------------------------------------------------------------------------------------------
def _flat(datalist: Path, folder: Path, splits: tuple[str, ...]) -> Path:
    """The same images with one slice each, as files of two axes."""
    items = load_datalist(datalist, path_keys=("image", "reference", "roi"))
    made: dict[str, list] = {}
    for split in ("training", "validation", "test"):
        made[split] = []
        for item in items[split]:
            new = dict(item)
            for key in ("image", "reference", "roi") if split in splits else ():
                if key in item:
                    source = nibabel.load(item[key])
                    array = np.asarray(source.dataobj)[:, :, 0]
                    path = folder / f"{key}_{Path(item[key]).name}"
                    nibabel.save(nibabel.Nifti1Image(array, source.affine), path)
                    new[key] = str(path)
            made[split].append(new)
    return save_datalist(folder / "datalist.json", made, path_keys=("image", "reference", "roi"))


@pytest.fixture(scope="module")
def volumes(tmp_path_factory) -> Path:
    return phantom_ldct(tmp_path_factory.mktemp("volumes"), size=48, depth=12, counts=(2, 1, 1, 1))


@pytest.mark.parametrize("flat", [(), ("training",), ("validation", "test"), ("training", "validation", "test")])
def test_a_network_of_slices_takes_slices_and_volumes(flat, volumes, tmp_path):
    datalist = _flat(volumes, tmp_path, flat)
    run("train", tmp_path / "out", datalist)
    run("evaluate", tmp_path / "out", datalist)
    (item,) = load_datalist(datalist)["test"]
    (written,) = (tmp_path / "out" / "predictions").iterdir()
    source, result = nibabel.load(item["image"]), nibabel.load(written)
    assert result.shape == source.shape and len(result.shape) == (2 if "test" in flat else 3)
    assert np.isfinite(list(metrics(tmp_path / "out").values())).all()


def test_slices_of_a_volume_are_denoised_one_by_one(volumes, tmp_path):
    denoiser = Denoiser(slices_at_once=5).shake()
    volume = torch.from_numpy(nibabel.load(load_datalist(volumes)["test"][0]["image"]).get_fdata(dtype=np.float32))[
        None
    ]
    whole = denoiser(volume)
    for number in range(volume.shape[-1]):
        assert torch.allclose(denoiser(volume[..., number]), whole[..., number], atol=1e-3)


def test_a_network_of_volumes_takes_volumes(volumes, tmp_path):
    values = {"level": [2, 2, 1], "patch_size": [24, 24, 8], "features": 4}
    run("train", tmp_path / "out", volumes, "--preset", "3d", **values)
    run("evaluate", tmp_path / "out", volumes, "--preset", "3d", **values)
    source = Path(load_datalist(volumes)["test"][0]["image"])
    checkpoint = tmp_path / "out" / "models" / "model.pt"
    own = {"level": values["level"], "features": values["features"]}
    for tiles in ([128, 128, 32], [24, 24, 6]):
        folder = predict(source, tmp_path / str(tiles[0]), checkpoint, "--preset", "3d", tile_size=tiles, **own)
        (written,) = folder.glob("*_denoised.nii.gz")
        (evaluated,) = (tmp_path / "out" / "predictions").iterdir()
        results = [nibabel.load(path).get_fdata() for path in (written, evaluated)]
        assert results[0].shape == (48, 48, 12) and np.allclose(*results, atol=1e-2)
    assert weights(checkpoint)["last.bias"].shape == (1,)


# --- patches inside the body ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("above", [None, -500.0])
def test_patches_are_drawn_where_the_image_is_bright(above, tmp_path):
    datalist = phantom_ldct(tmp_path / "data", size=64, counts=(2, 2, 1, 0))
    changes = {**QUICK, "patch_size": [48, 48], "steps_per_epoch": 3, "datalist": str(datalist)}
    changes |= {"foreground_above": above, "features": 4, "discriminator_def#features": [4, 4, 4, 4]}
    changes |= {"discriminator_def#squeeze_excitation": 2, "split": False}
    shares: list[float] = []

    def note(_, inputs):  # without the split, 1 unit is 2000 HU and 0 is -1000
        low, positions = trainer.state.output["low"], inputs[1]
        bright = low[:, 0] * 2000 - 1000 > -500
        picked = [bright[n, x, y] for n in range(len(low)) for x, y in positions[n].tolist()]
        shares.append(float(torch.stack(picked).float().mean()))

    with bundle_workflow(BUNDLE, "train", config_files(BUNDLE, "train"), tmp_path / "out", changes) as flow:
        flow.initialize()
        trainer = flow.parser.get_parsed_content("train#trainer")
        flow.parser.get_parsed_content("networks")["heads"].register_forward_pre_hook(note)
        flow.run()
    assert len(shares) == 6  # output and input of three steps
    assert min(shares) == 1.0 if above is not None else max(shares) < 0.9


def test_foreground_needs_no_other_option(tmp_path):
    datalist = phantom_ldct(tmp_path / "data", size=64, counts=(2, 2, 1, 0))
    run("train", tmp_path / "out", datalist, foreground_above=-500.0)
    assert np.isfinite(read_json(tmp_path / "out" / "history.json")["train_loss"][0][1])
