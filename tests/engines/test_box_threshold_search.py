# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import os
import socket

import numpy as np
import pytest
import torch
from ignite import distributed as idist
from ignite.engine import Engine
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator
from monai.handlers import CheckpointLoader, CheckpointSaver
from monai.transforms import Activationsd

from monai_labelfx.engines.box_threshold import BoxThreshold
from monai_labelfx.engines.box_threshold_search import BoxThresholdSearch, _middle_of_best
from monai_labelfx.metrics.box_agreement import box_agreement
from monai_labelfx.ops.box_frames import boxes_to_frames


def scene(inside: float, halo: float, spatial_dims: int = 2, size: int = 12, boxes: bool = True):
    """An object of probability ``inside`` with a ring of ``halo`` around it: good thresholds lie between the two."""
    probabilities = torch.full((1, *[size] * spatial_dims), 0.001)
    for low, high, value in ((2, 9, halo), (3, 8, inside)):
        probabilities[(0, *[slice(low, high)] * spatial_dims)] = value
    given = torch.tensor([[3.0] * spatial_dims + [8.0] * spatial_dims])
    labels = torch.tensor([0])
    return {
        "pred": probabilities,
        "label_boxes": given if boxes else given[:0],
        "label_box_labels": labels if boxes else labels[:0],
    }


def evaluate(items, name: str = "box_iou", **keywords):
    """The threshold, and the metrics of one pass, two items per batch; predictions are the output."""
    threshold = keywords.pop("threshold", None) or BoxThreshold()

    def step(engine, batch):
        engine.state.batch = [{k: v for k, v in item.items() if k != "pred"} for item in batch]
        return [{"pred": item["pred"]} for item in batch if "pred" in item]

    engine = Engine(step)
    BoxThresholdSearch(threshold, **keywords).attach(engine, name)
    engine.run([items[start : start + 2] for start in range(0, len(items), 2)])
    return threshold, engine.state.metrics


@pytest.mark.parametrize("spatial_dims", [2, 3])
def test_finds_what_lies_between_object_and_halo(spatial_dims):
    items = [scene(0.38, 0.12, spatial_dims), scene(0.8, 0.22, spatial_dims), scene(0.6, 0.02, spatial_dims)]
    threshold, metrics = evaluate(items)
    assert float(threshold) == 0.3, "0.25, 0.3 and 0.35 are equally good"
    assert metrics["box_iou"] == threshold.score == 1 and threshold.images == 3
    assert metrics["box_iou_at_half"] == threshold.score_at_half == pytest.approx(2 / 3)
    assert metrics["box_iou_threshold"] == 0.3 and set(metrics) == {"box_iou", "box_iou_at_half", "box_iou_threshold"}


@pytest.mark.parametrize("mode", ["per_image", "pooled"])
def test_equals_a_search_by_hand(mode):
    rng = np.random.default_rng(0)
    items = []
    for number in range(5):
        probabilities = torch.nn.functional.avg_pool2d(torch.tensor(rng.normal(size=(2, 20, 18))), 3, 1, 1)
        low = torch.tensor(rng.integers(0, 12, (number, 2)))
        boxes = torch.cat([low, low + torch.tensor(rng.integers(1, 6, (number, 2)))], 1).float()
        labels = torch.tensor(rng.integers(0, 2, number))
        items.append({"pred": torch.sigmoid(4 * probabilities), "label_boxes": boxes, "label_box_labels": labels})
    candidates = [0.2, 0.45, 0.7, 0.9, 0.97]
    counts = torch.stack(
        [
            box_agreement(i["pred"], i["label_boxes"], i["label_box_labels"], thresholds=[*candidates, 0.5], min_size=2)
            for i in items
        ]
    )
    if mode == "per_image":
        expected = torch.where(counts[..., 1:].sum(2) > 0, 2 * counts[..., 0] / counts[..., 1:].sum(2), 1.0).mean(0)
    else:
        expected = 2 * counts[..., 0].sum(0) / counts[..., 1:].sum((0, 2))
    threshold, metrics = evaluate(items, candidates=candidates, min_size=2, mode=mode)
    empty = ((counts[..., 1] > 0) & (counts[..., 2] == 0)).sum(0) / (counts[:, 0, 1] > 0).sum()
    best = int((expected - empty)[:5].argmax())
    assert 0 < best, "the test would prove little"
    assert float(threshold) == candidates[best]
    assert metrics["box_iou"] == pytest.approx(float(expected[best]))
    assert metrics["box_iou_at_half"] == pytest.approx(float(expected[5]))


def test_a_lone_image_never_ends_empty_although_other_images_gain_by_it():
    """Three images without objects that have specks of 0.4, and one object of 0.3: emptiness would score 3 of 4."""
    speck = scene(0.4, 0.4, boxes=False)
    items = [speck, speck, speck, scene(0.3, 0.05)]
    threshold, metrics = evaluate(items)
    assert 0.05 <= float(threshold) < 0.3 and metrics["box_iou"] == pytest.approx(0.25)
    assert metrics["box_iou_at_half"] == pytest.approx(0.75), "no candidate that empties the prediction was taken"
    pooled, metrics = evaluate(items, mode="pooled", weights="count")
    assert float(pooled) == float(threshold) and metrics["box_iou_at_half"] == 0
    assert metrics["box_iou"] == pytest.approx(2 / (1 + 4))


def test_a_prediction_beside_the_box_is_still_better_than_none():
    item = scene(0.6, 0.001)
    item["label_boxes"] = torch.tensor([[10.0, 10.0, 12.0, 12.0]])
    threshold, metrics = evaluate([item])
    assert float(threshold) < 0.6 and metrics["box_iou"] == 0


def test_one_hopeless_image_does_not_drag_the_threshold_down():
    good = [scene(0.8, 0.3) for _ in range(9)]
    threshold, metrics = evaluate([*good, scene(0.03, 0.001)])
    assert 0.3 <= float(threshold) < 0.8 and metrics["box_iou"] == pytest.approx(0.9)


def test_nothing_to_find_and_nothing_found():
    threshold, metrics = evaluate([scene(0.3, 0.1, boxes=False)])
    assert float(threshold) >= 0.3 and metrics["box_iou"] == 1


def test_a_network_that_predicts_nothing_scores_nothing():
    threshold, metrics = evaluate([scene(0.0, 0.0)])
    assert metrics["box_iou"] == 0 and 0 < float(threshold) < 1


def test_specks_are_left_out_from_min_size_on():
    item = scene(0.8, 0.3)
    item["pred"][0, 11, 11] = 0.9
    assert evaluate([item], weights="count")[1]["box_iou"] == pytest.approx(2 / 3)
    assert 0.9 < evaluate([item])[1]["box_iou"] < 1, "by volume one voxel costs little"
    assert evaluate([item], min_size=2)[1]["box_iou"] == 1


def test_bags_go_before_boxes_and_flags_before_both():
    good = scene(0.8, 0.3)
    frames = boxes_to_frames(good["label_boxes"])
    frames = torch.stack([frames[0, 0] + frames[0, 1], -frames[0, 1], frames[0, 2]])[None]  # the same box, flipped
    moved = {**good, "label_bags": frames, "label_boxes": torch.tensor([[0.0, 0.0, 1.0, 1.0]])}
    padded = {**good, "label_bags": torch.cat([frames, torch.zeros_like(frames)]), "label_box_labels": [0, -1]}
    unseen = [{**scene(0.2, 0.1), "has_boxes": flag} for flag in (False, torch.tensor(False), torch.tensor([0]))]
    bare = {"pred": good["pred"]}
    threshold, metrics = evaluate([moved, padded, *unseen, bare, {**good, "has_boxes": torch.tensor(True)}])
    assert metrics["box_iou"] == 1 and threshold.images == 3


def test_each_pass_starts_anew():
    threshold = BoxThreshold()
    engine = Engine(lambda engine, batch: batch)
    BoxThresholdSearch(threshold).attach(engine, "box_iou")
    for inside, count in ((0.9, 2), (0.3, 1)):
        engine.run([[scene(inside, 0.02)]] * count)
        assert threshold.images == count and float(threshold) < inside
        assert engine.state.metrics["box_iou"] == 1


def test_without_boxes_the_metric_is_left_out_and_the_threshold_stays():
    threshold = BoxThreshold(0.33)
    engine = Engine(lambda engine, batch: batch)
    BoxThresholdSearch(threshold).attach(engine, "box_iou")
    engine.run([[scene(0.8, 0.1)]])
    chosen = float(threshold)
    with pytest.warns(UserWarning, match="'box_iou' is left out: .* no item with boxes under 'label_boxes' or '_bags'"):
        metrics = engine.run([[{"pred": torch.zeros(1, 4, 4)}]]).metrics
    assert metrics == {} and float(threshold) == chosen and threshold.images == 1


class Network(torch.nn.Module):
    """Logits whose level falls from pass to pass."""

    def __init__(self) -> None:
        super().__init__()
        self.level = torch.nn.Parameter(torch.tensor(4.0))

    def forward(self, image):
        return torch.where(image > 0, self.level, torch.where(image < 0, self.level - 1.0, -9.0))


def data(count: int = 3):
    image = torch.zeros(1, 12, 12)
    image[:, 2:9, 2:9] = -1  # a halo
    image[:, 3:8, 3:8] = 1
    boxes = MetaTensor(torch.tensor([[3.0, 3, 8, 8], [0, 0, 0, 0]]))
    given = {"label_boxes": boxes, "label_box_labels": torch.tensor([0, -1])}
    return [{"image": MetaTensor(image.clone()), **given} for _ in range(count)]


@pytest.mark.parametrize("decollate", [True, False])
def test_is_a_key_metric_that_checkpoints_its_threshold(tmp_path, decollate):
    threshold, network = BoxThreshold(), Network()
    saver = CheckpointSaver(
        save_dir=str(tmp_path),
        save_dict={"model": network, "threshold": threshold},
        save_key_metric=True,
        key_metric_filename="model.pt",
    )
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(data()), batch_size=2),
        network=network,
        postprocessing=Activationsd("pred", sigmoid=True),
        key_val_metric={"box_iou": BoxThresholdSearch(threshold, candidates=[0.05, 0.4, 0.6, 0.95])},
        val_handlers=[saver],
        decollate=decollate,
    )
    scores, values = [], []
    for epoch, level in enumerate((-4.0, 0.8, 5.0), 1):
        network.level.data.fill_(level)
        evaluator.run(epoch)
        scores.append(evaluator.state.metrics["box_iou"])
        values.append(float(threshold))
    assert values == [0.4, 0.6, 0.4], "the middle of four, the exact one, the middle of four"
    assert scores[1] == 1 and scores[0] == 0 and scores[2] < 1
    assert evaluator.state.best_metric == 1 and evaluator.state.best_metric_epoch == 2
    loaded, best = BoxThreshold(), Network()
    CheckpointLoader(str(tmp_path / "model.pt"), {"model": best, "threshold": loaded})(Engine(lambda e, b: None))
    assert float(loaded) == 0.6 and loaded.images == 3 and best.level.item() == pytest.approx(0.8)


def test_as_key_metric_it_must_have_boxes():
    evaluator = SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset([{"image": torch.zeros(1, 4, 4)}]), batch_size=1),
        network=Network(),
        postprocessing=Activationsd("pred", sigmoid=True),
        key_val_metric={"box_iou": BoxThresholdSearch(BoxThreshold())},
    )
    with pytest.raises(ValueError, match="found no item with boxes"):
        evaluator.run()


def test_middle_of_the_longest_best_row():
    assert _middle_of_best(np.array([0.1, 0.5, 0.5, 0.5, 0.2])) == 2
    assert _middle_of_best(np.array([0.5, 0.5, 0.5, 0.5])) == 1
    assert _middle_of_best(np.array([0.5, 0.1, 0.5, 0.5, 0.5])) == 3, "not in the gap, nor the lone one"
    assert _middle_of_best(np.array([0.5, 0.1, 0.5])) == 0


@pytest.mark.parametrize(
    ("keywords", "words"),
    [
        ({"candidates": []}, "candidates must be thresholds"),
        ({"candidates": [0.5, 1.1]}, "candidates must be thresholds"),
        ({"mode": "mean"}, "mode must be one of"),
    ],
)
def test_refuses_keywords(keywords, words):
    with pytest.raises(ValueError, match=words):
        BoxThresholdSearch(BoxThreshold(), **keywords)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"pred": torch.full((1, 4, 4), 2.5)}, "must hold probabilities from 0 to 1, got 2.5 to 2.5; put a sigmoid"),
        ({"pred": torch.full((1, 4, 4), torch.nan)}, "must hold probabilities"),
        ({"pred": torch.zeros(1, 4, 4, 4)}, "boxes must be"),
        ({"label_box_labels": None}, "no label_box_labels"),
        ({"label_box_labels": torch.tensor([3])}, "labels must be class channels from 0 to 0"),
    ],
)
def test_refuses_items(changes, words):
    item = {k: v for k, v in {**scene(0.8, 0.1), **changes}.items() if v is not None}
    with pytest.raises(ValueError, match=words):
        evaluate([item])


def test_refuses_items_without_prediction():
    with pytest.raises(ValueError, match="an item has no 'probabilities', its keys are"):
        evaluate([scene(0.8, 0.1)], pred_key="probabilities")


def _search_in(rank: int, port: int) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK="0")
    torch.set_num_threads(1)
    with idist.Parallel(backend="gloo"):
        items = [scene(0.38, 0.12), scene(0.8, 0.22), scene(0.6, 0.02)]
        threshold, metrics = evaluate(items if rank == 0 else [{"pred": torch.zeros(1, 4, 4)}])
        assert float(threshold) == 0.3 and threshold.images == 3 and metrics["box_iou"] == 1


@pytest.mark.slow
def test_two_processes_of_which_one_has_no_boxes():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_search_in, args=(port,), nprocs=2)


def test_sums_of_other_processes_count(monkeypatch):
    """As if a second process had seen the same images."""
    monkeypatch.setattr(idist, "all_reduce", lambda sums: 2 * sums)
    threshold, metrics = evaluate([scene(0.38, 0.12), scene(0.8, 0.22)])
    assert threshold.images == 4 and metrics["box_iou"] == 1
