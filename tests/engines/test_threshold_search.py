# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
import logging
import os

import numpy as np
import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader

from monai_labelfx.engines import InstanceThresholds, ThresholdSearch
from monai_labelfx.engines.threshold_search import _middle_of_best
from monai_labelfx.metrics import InstanceAveragePrecision, SegScore
from monai_labelfx.ops import decode_instances
from monai_labelfx.transforms import SplitDenoiSegd


def scene(spatial_dims: int, low: float, high: float, seed: int = 0, size: int = 14) -> dict[str, torch.Tensor]:
    """Two boxes at probability ``high`` joined by a bridge at ``low``: good thresholds lie between the two."""
    rng = np.random.default_rng(seed)
    foreground = np.full((size,) * spatial_dims, 0.02)
    label = np.zeros(foreground.shape, dtype=np.int64)
    inner = (slice(3, 9),) * (spatial_dims - 1)
    for number, start in enumerate((2, 8), 1):
        foreground[(*inner, slice(start, start + 4))] = high
        label[(*inner, slice(start, start + 4))] = number
    foreground[(*inner, slice(6, 8))] = low
    foreground = np.clip(foreground + rng.uniform(-0.004, 0.004, foreground.shape), 0, 1)
    probabilities = np.stack([1 - foreground, foreground, np.zeros_like(foreground)])
    return {"pred_probabilities": torch.tensor(probabilities).float(), "label": torch.tensor(label)[None]}


def evaluate(items: list, thresholds: InstanceThresholds, **keywords) -> Engine:
    """One pass over items that already hold probabilities, two per batch."""
    batches = [items[start : start + 2] for start in range(0, len(items), 2)]
    outputs = ("pred_probabilities",)

    def step(engine, batch):
        engine.state.batch = [{k: v for k, v in item.items() if k not in outputs} for item in batch]
        return [{k: v for k, v in item.items() if k in outputs} for item in batch]

    engine = Engine(step)
    ThresholdSearch(thresholds, **keywords).attach(engine)
    engine.run(batches)
    return engine


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_equals_a_search_that_decodes_everything_anew(spatial_dims):
    items = [scene(spatial_dims, 0.3, 0.8, 1), scene(spatial_dims, 0.52, 0.9, 2), scene(spatial_dims, 0.2, 0.62, 3)]
    thresholds = InstanceThresholds(ap=0.9, seg=0.9)
    engine = evaluate(items, thresholds, decode={"growth": 0})
    candidates = np.linspace(0.1, 0.95, 18)
    scores = np.zeros((2, len(candidates)))
    for column, threshold in enumerate(candidates):
        for row, metric in enumerate((InstanceAveragePrecision(), SegScore())):
            for item in items:
                decoded = decode_instances(item["pred_probabilities"], threshold, growth=0)
                metric(y_pred=decoded[None], y=item["label"][None])
            scores[row, column] = float(metric.aggregate())
    for found, score, values in [
        (thresholds.ap, thresholds.ap_score, scores[0]),
        (thresholds.seg, thresholds.seg_score, scores[1]),
    ]:
        assert score == pytest.approx(values.max())
        assert values[np.argmin(abs(candidates - found))] == pytest.approx(values.max())
    assert 0.52 < thresholds.ap < 0.62 and thresholds.images == 3
    assert engine.state.metrics["searched_ap"] == thresholds.ap_score == 1
    assert engine.state.metrics["searched_seg"] == thresholds.seg_score


def test_takes_the_middle_of_a_plateau():
    thresholds = InstanceThresholds()
    evaluate([scene(2, 0.32, 0.88)], thresholds, decode={"growth": 0})
    assert thresholds.ap == 0.6, "0.35 to 0.85 are equally good"
    assert _middle_of_best(np.array([0.1, 0.5, 0.5, 0.5, 0.2])) == 2
    assert _middle_of_best(np.array([0.5, 0.5, 0.5, 0.5])) == 1
    assert _middle_of_best(np.array([0.5, 0.1, 0.5])) == 0, "a best one, not the gap between them"


def test_ap_and_seg_have_their_own_thresholds():
    item = scene(2, 0.3, 0.8)
    rim = (
        item["label"][0].bool()
        & ~torch.nn.functional.max_pool2d(-item["label"].float().clamp(max=1), 3, 1, 1).eq(-1)[0]
    )
    item["pred_probabilities"][1][rim] = 0.4  # lost above 0.4: the objects still match, but SEG falls
    thresholds = InstanceThresholds()
    evaluate([item], thresholds, decode={"growth": 0}, candidates=[0.35, 0.5, 0.7], iou_thresholds=0.1)
    assert thresholds.seg == 0.35 and thresholds.ap == 0.5


def test_only_labelled_items_count():
    good = scene(2, 0.3, 0.8)
    bad = {**scene(2, 0.3, 0.8, 4), "has_label": torch.tensor(False)}
    bad["label"] = torch.zeros_like(bad["label"])
    missing = {"pred_probabilities": good["pred_probabilities"]}
    flagged = {**good, "has_label": torch.tensor(True)}
    thresholds = InstanceThresholds()
    evaluate([good, bad, missing, flagged], thresholds)
    assert thresholds.images == 2 and thresholds.ap_score == 1


def test_without_labels_the_thresholds_stay(caplog):
    thresholds = InstanceThresholds(ap=0.33, seg=0.44)
    with caplog.at_level(logging.WARNING):
        evaluate([{"pred_probabilities": scene(2, 0.3, 0.8)["pred_probabilities"]}] * 3, thresholds)
    assert (thresholds.ap, thresholds.seg, thresholds.images) == (0.33, 0.44, 0)
    assert [record.message for record in caplog.records if "no labelled image" in record.message][1:] == []
    assert "ap=0.33" in caplog.text


def test_empty_labelled_images_count():
    item = scene(2, 0.3, 0.8)
    item["label"] = torch.zeros_like(item["label"])
    thresholds = InstanceThresholds()
    evaluate([item], thresholds)
    assert thresholds.ap > 0.8 and thresholds.seg > 0.8, "above all probabilities nothing is found, as it should be"
    assert thresholds.ap_score == thresholds.seg_score == 1


def test_each_pass_starts_anew():
    thresholds = InstanceThresholds()
    search = ThresholdSearch(thresholds)
    engine = Engine(lambda engine, batch: batch)
    search.attach(engine)
    for number in (1, 2):
        engine.run([[scene(2, 0.3, 0.8)]] * number)
        assert thresholds.images == number and search._cache == []


def test_the_cache_is_half_precision_on_the_cpu():
    search = ThresholdSearch(InstanceThresholds())
    engine = Engine(lambda engine, batch: batch)
    engine.state.batch = engine.state.output = [
        {k: MetaTensor(v.requires_grad_() if v.is_floating_point() else v) for k, v in scene(2, 0.3, 0.8).items()}
    ]
    search._keep(engine)
    ((probabilities, label),) = search._cache
    assert probabilities.dtype == torch.float16 and not isinstance(probabilities, MetaTensor)
    assert not probabilities.requires_grad and not isinstance(label, MetaTensor)


def test_in_monais_evaluator_with_a_network():
    item = scene(2, 0.3, 0.8)
    logits = item["pred_probabilities"].clamp(min=1e-6).log()

    class Network(torch.nn.Module):
        def forward(self, image):
            return torch.cat([image, logits.expand(len(image), -1, -1, -1)], 1)

    data = [{"image": MetaTensor(torch.rand(1, 14, 14)), "label": item["label"], "has_label": n < 2} for n in range(3)]
    thresholds = InstanceThresholds()
    evaluator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=DataLoader(Dataset(data), batch_size=2),
        network=Network(),
        postprocessing=SplitDenoiSegd("pred"),
        val_handlers=[ThresholdSearch(thresholds)],
    )
    evaluator.run()
    assert thresholds.images == 2 and thresholds.ap_score == 1 and 0.3 < thresholds.ap < 0.8


def test_rewrites_checkpoints(tmp_path):
    network = torch.nn.Linear(1, 1)
    paths = [tmp_path / "model.pt", tmp_path / "last.pt"]
    for path in paths:
        torch.save({"model": network.state_dict(), "epoch": 3}, path)
    evaluate([scene(2, 0.3, 0.8)], InstanceThresholds(), checkpoints=[str(paths[0]), paths[1]])
    for path in paths:
        loaded, fresh = InstanceThresholds(), torch.nn.Linear(1, 1)
        CheckpointLoader(str(path), {"model": fresh, "thresholds": loaded})(Engine(lambda engine, batch: None))
        assert loaded.images == 1 and loaded.ap_score == 1 and torch.equal(fresh.weight, network.weight)
        assert torch.load(path, weights_only=True)["epoch"] == 3
    assert sorted(p.name for p in tmp_path.iterdir()) == ["last.pt", "model.pt"]


def test_a_rewrite_that_breaks_off_keeps_the_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "model.pt"
    torch.save({"model": {}}, path)
    before = path.read_bytes()
    monkeypatch.setattr(os, "replace", lambda *names: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        evaluate([scene(2, 0.3, 0.8)], InstanceThresholds(), checkpoints=path)
    assert path.read_bytes() == before and [p.name for p in tmp_path.iterdir()] == ["model.pt"]


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"candidates": []}, "candidates must be thresholds"),
        ({"candidates": [0.5, 1.1]}, "candidates must be thresholds"),
    ],
)
def test_refuses_keywords(keywords, words):
    with pytest.raises(ValueError, match=words):
        ThresholdSearch(InstanceThresholds(), **keywords)


def test_refuses_what_it_cannot_use(tmp_path):
    with pytest.raises(ValueError, match="no 'pred_probabilities'"):
        evaluate([{"label": torch.zeros(1, 4, 4)}], InstanceThresholds())
    item = scene(2, 0.3, 0.8)
    with pytest.raises(ValueError, match="does not fit"):
        evaluate([{**item, "label": torch.zeros(1, 4, 4)}], InstanceThresholds())
    engine = Engine(lambda engine, batch: {})
    ThresholdSearch(InstanceThresholds()).attach(engine)
    with pytest.raises(ValueError, match="decollate=True"):
        engine.run([{}])
    with pytest.raises(FileNotFoundError, match="there is no such file"):
        evaluate([item], InstanceThresholds(), checkpoints=tmp_path / "none.pt")
    torch.save(torch.nn.Linear(1, 1).state_dict(), tmp_path / "bare.pt")
    with pytest.raises(ValueError, match="bare state dict"):
        evaluate([item], InstanceThresholds(), checkpoints=tmp_path / "bare.pt")


def test_thresholds_are_plain_numbers():
    thresholds = InstanceThresholds()
    evaluate([scene(2, 0.3, 0.8)], thresholds)
    assert json.loads(json.dumps(thresholds.state_dict())) == thresholds.state_dict()
