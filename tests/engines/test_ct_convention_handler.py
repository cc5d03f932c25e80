# SPDX-License-Identifier: Apache-2.0
"""PSNR and SSIM of an evaluator, with the convention in every name."""

from __future__ import annotations

import json
import logging
import os
import socket

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointSaver
from monai.transforms import Lambdad

from monai_labelfx.engines.ct_convention_handler import CTConventionHandler
from monai_labelfx.metrics.ct_conventions import CONVENTIONS, ct_psnr, ct_ssim


def item(seed: int, noise: float = 10.0, reference: bool = True) -> dict:
    generator = torch.Generator().manual_seed(seed)
    clean = 300 * torch.randn(1, 12, 12, generator=generator)
    found = {"hu": clean + 2 * noise * torch.randn(clean.shape, generator=generator)}
    found["pred"] = MetaTensor(
        clean + noise * torch.randn(clean.shape, generator=generator), meta={"filename_or_obj": f"{seed}.nii"}
    )
    return found | ({"reference": clean} if reference else {})


def run(items, *arguments, batch: int = 2, **keywords) -> dict[str, float]:
    engine = Engine(lambda engine, batch: batch)
    CTConventionHandler(*arguments, **keywords).attach(engine)
    return engine.run([items[k : k + batch] for k in range(0, len(items), batch)]).metrics


@pytest.mark.parametrize("batch", [1, 3])
def test_results_and_their_names(batch):
    items = [item(seed) for seed in range(5)]
    metrics = run(items, ["dml_ct", "range_4096"], batch=batch)
    expected = {}
    for end, key in (("", "pred"), ("_input", "hu")):
        for name in ("dml_ct", "range_4096"):
            for kind, score in (("PSNR", ct_psnr), ("SSIM", ct_ssim)):
                each = [float(score(one[key], one["reference"], convention=name)) for one in items]
                expected[f"{kind}_{name}{end}"] = pytest.approx(np.mean(each))
    assert metrics == expected
    assert metrics["PSNR_dml_ct_input"] < metrics["PSNR_dml_ct"], "twice the noise"


def test_items_without_reference_are_skipped(caplog):
    items = [item(0), item(1, reference=False), item(2) | {"reference": None}]
    assert run(items, ["dml_ct"]) == run(items[:1], ["dml_ct"])
    without = [{key: value for key, value in items[0].items() if key != "hu"}]
    assert list(run(without, ["dml_ct"], kinds=["SSIM"])) == ["SSIM_dml_ct"]
    assert list(run(items, ["dml_ct"], kinds=["SSIM"], input_key=None)) == ["SSIM_dml_ct"]
    with caplog.at_level(logging.INFO):
        assert run(items[1:], ["dml_ct"]) == {}
    lines = [record.getMessage() for record in caplog.records if "CTConventionHandler" in record.getMessage()]
    assert lines == ["CTConventionHandler: no image to score, so no metric is written."]


def test_a_second_run_starts_anew():
    engine = Engine(lambda engine, batch: batch)
    CTConventionHandler(["dml_ct"]).attach(engine)
    engine.run([[item(0, noise=50.0)]])
    assert engine.run([[item(0)]]).metrics == run([item(0)], ["dml_ct"])
    assert engine.run([[item(0, reference=False)]]).metrics == {}


def test_the_file_defines_its_numbers(tmp_path):
    items = [item(0), item(1) | {"pred": item(1)["reference"]}, item(2, reference=False)]
    metrics = run(items, ["red_cnn", "kwon_ye"], output_dir=tmp_path / "new")
    content = json.loads((tmp_path / "new" / "ct_conventions.json").read_text())
    assert content["metrics"] == pytest.approx(metrics)
    assert content["conventions"]["red_cnn"]["window"] == [-160, 240]
    assert content["conventions"]["kwon_ye"]["window"] == [-1000, None]
    assert content["conventions"]["kwon_ye"]["source"] == CONVENTIONS["kwon_ye"].source
    assert [row["image"] for row in content["images"]] == ["0.nii", None]
    assert content["images"][1]["PSNR_red_cnn"] is None and content["images"][1]["SSIM_red_cnn"] == 1
    assert content["images"][0]["PSNR_red_cnn_input"] < content["images"][0]["PSNR_red_cnn"]


def test_results_that_no_image_has_are_left_out():
    dark = {key: torch.full((1, 8, 8), -500.0) + k for k, key in enumerate(("pred", "reference", "hu"))}
    assert set(run([dark], ["kwon_ye", "range_4096"], kinds=["PSNR"])) == {"PSNR_range_4096", "PSNR_range_4096_input"}


def test_key_metric_of_a_monai_evaluator(tmp_path):
    data = [{key: value.numpy() for key, value in item(seed).items() if key != "pred"} for seed in range(3)]
    network = torch.nn.Conv2d(1, 1, 1, bias=False)
    torch.nn.init.ones_(network.weight)
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{**one, "image": one["hu"]} for one in data]), batch_size=2),
        network=network,
        postprocessing=Lambdad("pred", lambda x: x),
        key_val_metric={"PSNR_dml_ct": CTConventionHandler(["dml_ct"])},
        val_handlers=[CheckpointSaver(tmp_path, {"network": network}, save_key_metric=True)],
    )
    evaluator.run()
    assert evaluator.state.best_metric == evaluator.state.metrics["PSNR_dml_ct"]
    assert evaluator.state.metrics["PSNR_dml_ct"] == pytest.approx(evaluator.state.metrics["PSNR_dml_ct_input"])
    assert list(tmp_path.glob("*.pt"))


def test_refusals():
    with pytest.raises(ValueError, match="convention must be one of .* got 'psnr'"):
        CTConventionHandler(["psnr"])
    for bad in ([], "dml_ct"):
        with pytest.raises(ValueError, match="conventions and kinds must be lists of names"):
            CTConventionHandler(bad)
    engine = Engine(lambda engine, batch: batch)
    CTConventionHandler().attach(engine)
    with pytest.raises(ValueError, match="CTConventionHandler needs decollated items"):
        engine.run([{"pred": torch.zeros(2, 1, 8, 8)}])
    for name, items, words in (
        ("PSNR_dml_ct", [item(0, reference=False)], "must be a result of CTConventionHandler, but there are none"),
        ("PSNR", [item(0)], "but there are PSNR_dml_ct, SSIM_dml_ct"),
        ("PSNR_dml_ct", [item(0) | {"pred": item(0)["reference"]}], "but PSNR_dml_ct is inf"),
    ):
        engine = Engine(lambda engine, batch: batch)
        engine.state.key_metric_name = name
        CTConventionHandler().attach(engine, name)
        with pytest.raises(ValueError, match=words):
            engine.run([items])


def _run_in(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        items = [item(seed) for seed in range(3)]
        expected = {"PSNR_dml_ct", "PSNR_dml_ct_input"}
        metrics = run(items if rank == 0 else [item(9, reference=False)], kinds=["PSNR"])
        assert set(metrics) == expected
        each = [float(ct_psnr(one["pred"], one["reference"], convention="dml_ct")) for one in items]
        assert abs(metrics["PSNR_dml_ct"] - np.mean(each)) < 1e-9


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_reference():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_run_in, args=(port,), nprocs=2)
