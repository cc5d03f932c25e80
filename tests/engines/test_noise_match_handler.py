# SPDX-License-Identifier: Apache-2.0
"""Which of several images does the score without pairs prefer?"""

from __future__ import annotations

import logging
import os
import socket

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointSaver
from monai.transforms import Lambdad
from noise_samples import as_image, ct_noise, ct_slice
from scipy.ndimage import gaussian_filter

from monai_labelfx.engines.noise_match_handler import NoiseMatchHandler

NAMES = {"noise_match", "noise_ratio", "nps_distance", "hu_penalty"}


def high_images(count=3, size=128) -> list[torch.Tensor]:
    """Of other patients: noise that has nothing to do with that of the pairs."""
    return [as_image(ct_slice(size) + ct_noise(size, 15, 100 + seed)) for seed in range(count)]


def pair(seed=0, size=128) -> tuple[np.ndarray, np.ndarray]:
    """High dose and quarter dose of one image: noise of 15 and 30 HU."""
    high = ct_slice(size) + ct_noise(size, 15, seed)
    return high, high + ct_noise(size, 15 * 3**0.5, 50 + seed)


def scores(pred, source, high=None, **keywords) -> dict[str, float]:
    engine = Engine(lambda engine, batch: batch)
    NoiseMatchHandler(high_images() if high is None else high, **keywords).attach(engine)
    return engine.run([[{"pred": as_image(pred), "hu": as_image(source)}]]).metrics


@pytest.mark.parametrize("seed", range(3))
def test_it_prefers_the_true_high_dose_image(seed):
    high, low = pair(seed)
    rivals = {
        "the low dose": low,
        "too little noise removed": 0.3 * high + 0.7 * low,
        "too smooth": gaussian_filter(low, 1.0),
        "much too smooth": gaussian_filter(low, 2.5),
        "without noise": ct_slice(),
        "noise of another texture": ct_slice() + ct_noise(128, 15, seed, peak=0.08),
        "moved by 10 HU": high + 10,
        "moved by -10 HU": high - 10,
        "air moved": np.where(high < -700, high - 122, high),
        "drift": high + np.linspace(-15, 15, 128)[:, None],
    }
    best = scores(high, low)
    assert set(best) == NAMES
    assert best["hu_penalty"] == 0 and best["noise_ratio"] == pytest.approx(1, abs=0.15)
    assert best["noise_match"] < 0.4
    for name, rival in rivals.items():
        worse = scores(rival, low)
        assert worse["noise_match"] > best["noise_match"] + 0.1, (name, worse, best)


def test_what_each_number_tells():
    high, low = pair()
    assert scores(low, low)["noise_ratio"] == pytest.approx(2, rel=0.15)
    assert scores(low, low)["hu_penalty"] == 0
    smooth = scores(gaussian_filter(low, 2.5), low)
    assert smooth["noise_ratio"] < 0.5 and smooth["nps_distance"] > 0.5
    moved, further = (scores(high + shift, low) for shift in (10, 20))
    assert moved["noise_ratio"] == pytest.approx(scores(high, low)["noise_ratio"], rel=1e-4)
    assert moved["hu_penalty"] > 3 and further["hu_penalty"] > moved["hu_penalty"] + 5
    for one in (moved, smooth):
        first = abs(np.log(one["noise_ratio"]))
        assert one["noise_match"] == pytest.approx(first + one["nps_distance"] + one["hu_penalty"])


def test_pairs_play_no_part():
    """The score of an image with fresh noise, which is no pair of anything, is as good."""
    high, low = pair()
    fresh = ct_slice() + ct_noise(128, 15, 77)
    assert scores(fresh, low)["noise_match"] == pytest.approx(scores(high, low)["noise_match"], abs=0.2)


def test_means_over_images_and_volumes():
    items = [dict(zip(("pred", "hu"), map(as_image, pair(seed)), strict=True)) for seed in range(4)]
    each = []
    for item in items:
        engine = Engine(lambda engine, batch: batch)
        NoiseMatchHandler(high_images()).attach(engine)
        each.append(dict(engine.run([[item]]).metrics))
    engine = Engine(lambda engine, batch: batch)
    NoiseMatchHandler(high_images()).attach(engine)
    for _ in range(2):  # a second run forgets the first
        metrics = dict(engine.run([items[:3], items[3:]]).metrics)
    for name in ("noise_match", "nps_distance", "hu_penalty"):
        assert metrics[name] == pytest.approx(np.mean([one[name] for one in each]))
    assert metrics["noise_ratio"] == pytest.approx(np.exp(np.mean([np.log(one["noise_ratio"]) for one in each])))
    volume = {key: torch.stack([item[key] for item in items], dim=-1) for key in ("pred", "hu")}
    deep = engine.run([[volume]]).metrics
    assert deep["noise_ratio"] == pytest.approx(metrics["noise_ratio"], rel=0.15) and deep["hu_penalty"] == 0


def test_high_images_are_read_once_and_not_before_the_run(caplog):
    class Images:
        reads: list[int] = []

        def __len__(self):
            return 9

        def __getitem__(self, number):
            self.reads.append(number)
            return {"image": torch.zeros(1, 4, 4), "hu": high_images(1)[0]}

    images = Images()
    engine = Engine(lambda engine, batch: batch)
    NoiseMatchHandler(images, max_high_images=3).attach(engine)
    assert images.reads == []
    high, low = pair()
    with caplog.at_level(logging.INFO):
        for _ in range(2):
            engine.run([[{"pred": as_image(high), "hu": as_image(low)}]])
    assert images.reads == [0, 4, 8], "evenly spaced"
    lines = [record.getMessage() for record in caplog.records if "high-dose" in record.getMessage()]
    assert len(lines) == 1 and lines[0].startswith("NoiseMatchHandler: 3 of 3 high-dose images")


@pytest.mark.parametrize("kind", ["generator", "dataset", "other key"])
def test_kinds_of_high_images(kind):
    high, low = pair()
    expected = scores(high, low)
    given = {
        "generator": (image for image in high_images()),
        "dataset": Dataset([{"hu": image} for image in high_images()]),
        "other key": [{"ct": image.numpy()} for image in high_images()],
    }[kind]
    keywords = {"high_key": "ct"} if kind == "other key" else {}
    assert scores(high, low, given, **keywords) == pytest.approx(expected)


def test_padding_is_no_shift():
    high, low = (as_image(image) for image in pair())
    padded = high.clone()
    mask = torch.zeros_like(high, dtype=torch.bool)
    mask[:, :, :20] = True
    padded[mask] = -2000
    engine = Engine(lambda engine, batch: batch)
    NoiseMatchHandler(high_images()).attach(engine)
    assert engine.run([[{"pred": padded, "hu": low}]]).metrics["hu_penalty"] > 10
    assert engine.run([[{"pred": padded, "hu": low, "image_padding": mask}]]).metrics["hu_penalty"] == 0


def test_images_without_the_medium(caplog):
    air = torch.full((1, 128, 128), -1000.0)
    high, low = (as_image(image) for image in pair())
    engine = Engine(lambda engine, batch: batch)
    NoiseMatchHandler(high_images()).attach(engine)
    alone = dict(engine.run([[{"pred": high, "hu": low}]]).metrics)
    moved = dict(engine.run([[{"pred": high, "hu": low}, {"pred": air + 6, "hu": air}]]).metrics)
    assert moved["noise_ratio"] == alone["noise_ratio"] and moved["nps_distance"] == alone["nps_distance"]
    assert moved["hu_penalty"] == pytest.approx((2 + 0.2) / 2)
    with caplog.at_level(logging.INFO):
        assert engine.run([[{"pred": air, "hu": air}]]).metrics == {}
    assert "NoiseMatchHandler: no image to score, so no metric is written." in caplog.text


@pytest.mark.parametrize("as_key_metric", [True, False])
def test_a_monai_evaluator_keeps_the_best_model(tmp_path, as_key_metric):
    """Of networks that scale the noise by 1, 0.5 and 0.1, the one that makes it that of the high dose."""
    scale = torch.nn.Conv2d(1, 1, 1, bias=False)
    clean = as_image(ct_slice())
    items = [{"image": as_image(pair(seed)[1]) - clean, "hu": as_image(pair(seed)[1])} for seed in range(2)]
    saver = CheckpointSaver(
        tmp_path,
        {"network": scale},
        save_key_metric=True,
        key_metric_name="noise_match",
        key_metric_filename="best.pt",
        key_metric_negative_sign=True,
    )
    handler = NoiseMatchHandler(high_images())
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=scale,
        postprocessing=Lambdad("pred", lambda noise: noise + clean),
        key_val_metric={"noise_match": handler} if as_key_metric else None,
        metric_cmp_fn=lambda now, best: now < best,
        val_handlers=[saver] if as_key_metric else [handler, saver],
    )
    for epoch, factor in enumerate((1.0, 0.5, 0.1), start=1):
        torch.nn.init.constant_(scale.weight, factor)
        evaluator.run(epoch)
    assert torch.load(tmp_path / "best.pt")["weight"].item() == 0.5
    if as_key_metric:
        assert evaluator.state.best_metric_epoch == 2


def test_refusals():
    with pytest.raises(TypeError, match="a DataLoader gives batches: hand over its dataset"):
        NoiseMatchHandler(DataLoader(Dataset([1])))
    with pytest.raises(ValueError, match="max_high_images must be 1 or above"):
        NoiseMatchHandler([], max_high_images=0)
    with pytest.raises(ValueError, match="medium must be a range"):
        NoiseMatchHandler([], medium=[3])
    high, low = pair()
    for given, words in (
        ([], "no high-dose image has a homogeneous patch of -20 to 120 HU with a side of 32"),
        ([torch.full((1, 64, 64), -1000.0)], "no high-dose image has a homogeneous patch"),
        ([{"image": 1}], "high-dose item 0 has no 'hu', its keys are \\['image'\\]"),
    ):
        with pytest.raises(ValueError, match=words):
            scores(high, low, given)
    engine = Engine(lambda engine, batch: batch)
    NoiseMatchHandler(high_images()).attach(engine)
    with pytest.raises(ValueError, match="an item has no 'hu', its keys are \\['pred'\\]"):
        engine.run([[{"pred": as_image(high)}]])
    with pytest.raises(ValueError, match="pred must have as many voxels"):
        scores(high[1:], low)


def _run_in(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        items = [dict(zip(("pred", "hu"), map(as_image, pair(seed)), strict=True)) for seed in range(3)]
        air = torch.full((1, 128, 128), -1000.0)
        engine = Engine(lambda engine, batch: batch)
        handler = NoiseMatchHandler(high_images())
        handler.attach(engine)
        metrics = engine.run([items] if rank == 0 else [[{"pred": air, "hu": air}]]).metrics
        each = [handler.target.compare(item["pred"], item["hu"]) for item in items]
        assert abs(metrics["nps_distance"] - np.mean([one.nps_distance for one in each])) < 1e-9
        assert set(metrics) == NAMES


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_patch():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_run_in, args=(port,), nprocs=2)
