# SPDX-License-Identifier: Apache-2.0
"""HUAuditHandler: its metrics, its file, several processes, and what it says about bad items."""

from __future__ import annotations

import json
import logging
import math

import ignite.distributed as idist
import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import MetaTensor

from monai_labelfx.engines.hu_audit_handler import HUAuditHandler
from monai_labelfx.metrics.ct_number import HUAudit
from monai_labelfx.metrics.homogeneous_patches import find_homogeneous_patches, patch_statistics


def image_of(hu: float = 40.0, *, name: str = "", seed: int = 0, shape=(1, 64, 64)) -> MetaTensor:
    """A body in air, with a little noise."""
    values = torch.full(shape, -1000.0)
    values[:, :, 24:] = hu
    values += torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    return MetaTensor(values, meta={"filename_or_obj": name} if name else {})


def run(handler: HUAuditHandler, items: list[dict]) -> dict:
    """Each item is a batch; ``pred`` comes with the output, all else with the batch."""
    outputs = iter([[{"pred": item["pred"]}] if "pred" in item else [{}] for item in items])
    engine = Engine(lambda engine, batch: next(outputs))
    handler.attach(engine)
    return engine.run([[{k: v for k, v in item.items() if k != "pred"}] for item in items]).metrics


def test_metrics_are_those_of_the_reports(tmp_path):
    first, second = image_of(), image_of(hu=0.0, seed=1, shape=(1, 64, 64, 2))
    items = [{"hu": first, "pred": first + 1}, {"hu": second, "pred": torch.where(second < -500, second - 4, second)}]
    metrics = run(HUAuditHandler(tmp_path), items)
    reports = [HUAudit()(item["pred"], item["hu"]) for item in items]
    assert metrics["hu_failures"] == 1 and metrics["hu_class_shift"] == pytest.approx(4, abs=1e-4)
    assert metrics["hu_block_shift"] == pytest.approx(max(abs(r.blocks[16].worst) for r in reports))
    assert metrics["hu_low_band"] == pytest.approx(max(r.low_band for r in reports))
    for name in ("slope", "intercept", "structure"):
        assert metrics[f"hu_{name}"] == pytest.approx(np.mean([getattr(r, name) for r in reports]))
    airs = [r.classes["air"] for r in reports]
    weighted = (airs[0].voxels - 4 * airs[1].voxels) / (airs[0].voxels + airs[1].voxels)
    assert metrics["hu_shift_air"] == pytest.approx(weighted, abs=1e-3)
    assert metrics["hu_shift_soft_tissue"] == pytest.approx(1, abs=1e-3) and metrics["hu_shift_water"] == 0
    content = json.loads((tmp_path / "hu_audit.json").read_text())
    assert content["summary"] == metrics and content["region_limit"] == 2
    assert [item["name"] for item in content["items"]] == ["item 1", "item 2"]
    assert [item["passed"] for item in content["items"]] == [True, False]
    assert content["items"][1]["failures"] == list(reports[1].failures)


def test_nothing_but_the_stem_of_a_file_is_written(tmp_path, caplog):
    image = image_of(name="/secret/DOE_JANE/scan01.nii.gz")
    image.meta["patient_name"] = "DOE"
    with caplog.at_level(logging.WARNING):
        run(HUAuditHandler(tmp_path), [{"hu": image, "pred": image + 9}])
    text = (tmp_path / "hu_audit.json").read_text() + caplog.text
    assert "scan01" in text and "DOE" not in text and "secret" not in text
    assert "CT numbers of scan01 moved: air shifts by +9.00 HU" in caplog.text


def test_media_are_the_best_patches_of_all_images():
    generator = np.random.default_rng(0)
    images = [torch.as_tensor(40 + step * generator.normal(size=(1, 48, 40))) for step in (3, 1)]
    items = [{"hu": image, "pred": image / 2 + 30} for image in images]
    handler = HUAuditHandler(media={"brain": (0, 80), "bone": [300, 900]}, patch_size=8, patch_count=60)
    metrics = run(handler, items)
    places = find_homogeneous_patches(images[1], low=0, high=80, size=8, count=60)
    assert len(places) == 60, "all come from the image without much texture"
    for name, image in (("brain_input", images[1]), ("brain", images[1] / 2 + 30)):
        mean, std, _ = patch_statistics(image, places, 8)
        assert metrics[f"{name}_mean"] == pytest.approx(mean) and metrics[f"{name}_std"] == pytest.approx(std)
    assert metrics["brain_shift"] == pytest.approx(metrics["brain_mean"] - metrics["brain_input_mean"])
    assert not any(name.startswith("bone_") for name in metrics)


def test_regions_and_padding():
    hu = image_of()
    padding, roi = torch.zeros_like(hu, dtype=torch.bool), torch.zeros_like(hu, dtype=torch.uint8)
    padding[:, :8], roi[:, 20:60, 30:60] = True, 2
    item = {"hu": hu, "pred": torch.where(padding, -2000.0, hu), "image_padding": padding, "roi": roi}
    metrics = run(HUAuditHandler(), [item])
    assert metrics["hu_class_shift"] == 0 == metrics["hu_failures"] == metrics["hu_shift_roi_2"]
    assert run(HUAuditHandler(padding_key="other", roi_key="none"), [item])["hu_failures"] == 1


def test_a_second_run_starts_anew_and_undefined_numbers_are_left_out():
    engine = Engine(lambda engine, batch: batch)
    HUAuditHandler(media={"body": (0, 80)}, patch_size=16).attach(engine)
    hu = image_of()
    first = dict(engine.run([[{"hu": hu, "pred": hu}]]).metrics)
    assert first["body_shift"] == 0
    flat = torch.full((1, 64, 64), 300.0)
    second = engine.run([[{"hu": flat, "pred": flat + 1}]]).metrics
    assert "hu_slope" not in second and "body_shift" not in second and "hu_shift_air" not in second
    assert second["hu_shift_bone"] == 1 and all(math.isfinite(value) for value in second.values())


def test_ranks_are_joined_and_what_two_ranks_have_counts_once(monkeypatch, tmp_path):
    images = [image_of(seed=seed, name=f"/data/{seed}.nii.gz") for seed in range(3)]
    items = [{"hu": image, "pred": image + shift} for image, shift in zip(images, (1, 2, 9), strict=True)]
    gathered: list = []
    monkeypatch.setattr(idist, "all_gather", lambda own: gathered.append(own) or [own])
    for part in (items[:2], [items[2], items[0]]):
        run(HUAuditHandler(media={"body": (0, 80)}, patch_size=16), part)
    monkeypatch.setattr(idist, "all_gather", lambda own: list(gathered))
    joined = run(HUAuditHandler(tmp_path, media={"body": (0, 80)}, patch_size=16), items[:2])
    monkeypatch.setattr(idist, "all_gather", lambda own: [own])
    assert joined == run(HUAuditHandler(media={"body": (0, 80)}, patch_size=16), items)
    assert len(json.loads((tmp_path / "hu_audit.json").read_text())["items"]) == 3
    monkeypatch.setattr(idist, "get_rank", lambda: 1)
    run(HUAuditHandler(tmp_path / "other"), items[:1])
    assert not (tmp_path / "other").exists(), "only rank 0 writes"


def test_slices_of_one_file_all_count():
    image = image_of(name="/data/volume.nii.gz")
    items = [{"hu": image, "pred": image}, {"hu": image, "pred": image}]
    handler = HUAuditHandler(media={"body": (0, 80)}, patch_size=16, patch_count=10**6)
    handler.attach(engine := Engine(lambda engine, batch: batch))
    reports = []
    handler._media, media = lambda items: reports.extend(items) or {}, handler._media
    engine.run([[item] for item in items])
    assert len(reports) == 2 and media(reports)


def test_bad_items_are_named():
    with pytest.raises(ValueError, match=r"media\['a'\] must be a range"):
        HUAuditHandler(media={"a": (1, 0)})
    hu = image_of(name="/data/one.nii.gz")
    with pytest.raises(ValueError, match="one must have an image under 'pred', its keys are"):
        run(HUAuditHandler(), [{"hu": hu}])
    with pytest.raises(ValueError, match="the CT numbers of one cannot be compared: output holds NaN"):
        run(HUAuditHandler(), [{"hu": hu, "pred": hu * math.nan}])
    with pytest.raises(ValueError, match="HUAuditHandler needs decollated items"):
        engine = Engine(lambda engine, batch: {"pred": hu})
        HUAuditHandler().attach(engine)
        engine.run([{"hu": hu}])
