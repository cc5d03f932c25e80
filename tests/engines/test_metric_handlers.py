# SPDX-License-Identifier: Apache-2.0
"""The metric handlers in an ignite engine and in MONAI's evaluator, with and without references."""

from __future__ import annotations

import inspect
import math

import pytest
import torch
from ignite.engine import Engine
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedEvaluator
from monai.metrics import DiceMetric
from monai.transforms import Lambdad

from monai_labelfx import metrics
from monai_labelfx.engines import (
    InstanceAveragePrecisionHandler,
    PairedMetricHandler,
    SegScoreHandler,
    StatedRangePSNRHandler,
    from_instances,
)

HANDLERS = (InstanceAveragePrecisionHandler, SegScoreHandler, StatedRangePSNRHandler)
ONE, TWO, NONE = torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 1, 0, 2]]), torch.zeros(1, 4, dtype=torch.int64)


def run(handler, batches, name: str = "score"):
    """State of an engine that hands its batches through."""
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine, name)
    return engine.run(batches)


@pytest.mark.parametrize("handler", HANDLERS)
def test_keywords_mirror_the_metric(handler):
    own = dict(inspect.signature(handler).parameters)
    assert own.pop("save_details").default is True and own.pop("output_transform")
    metric = getattr(metrics, handler.__name__.removesuffix("Handler"))
    theirs = inspect.signature(metric).parameters
    assert {n: p.default for n, p in own.items()} == {n: p.default for n, p in theirs.items()}


@pytest.mark.parametrize("handler", HANDLERS)
def test_handlers_give_what_the_metric_gives(handler):
    predictions, references = [TWO, ONE, TWO], [ONE, ONE, TWO + 1]
    metric = getattr(metrics, handler.__name__.removesuffix("Handler"))(*((255,) if "PSNR" in handler.__name__ else ()))
    metric(predictions[:1] + predictions[2:], references[:1] + references[2:])
    one = handler(*((255,) if "PSNR" in handler.__name__ else ()))
    state = run(one, [(predictions[:1], references[:1]), (predictions[2:], references[2:])])
    assert state.metrics["score"] == pytest.approx(float(metric.aggregate()))
    assert torch.equal(state.metric_details["score"], metric.get_buffer())
    batch = run(one, [(torch.stack([TWO]), torch.stack([ONE]))])
    assert batch.metrics["score"] == pytest.approx(float(metric.get_buffer()[0])), "reset between runs, batches too"


def test_without_details():
    state = run(SegScoreHandler(save_details=False), [([ONE], [ONE])])
    assert state.metrics == {"score": 1.0} and not hasattr(state, "metric_details")


def test_settings_reach_the_metric():
    state = run(InstanceAveragePrecisionHandler([0.5, 0.9], mode="pooled", strict=True), [([TWO, ONE], [ONE, ONE])])
    assert state.metrics["score"] == pytest.approx(2 / 3)
    assert state.metric_details["score"].shape == (2, 2)
    assert run(SegScoreHandler("pooled"), [([NONE, ONE], [TWO, ONE])]).metrics["score"] == pytest.approx(1 / 3)


FLAGS = [True, torch.tensor(True), torch.tensor([1]), 1]


@pytest.mark.parametrize("flag", FLAGS, ids=str)
def test_items_without_reference_are_dropped(flag):
    items = [
        {"pred": TWO, "label": ONE, "has_label": flag},
        {"pred": TWO, "label": NONE, "has_label": type(flag)(0) if isinstance(flag, (bool, int)) else flag * 0},
        {"pred": TWO, "label": None, "has_label": flag},
        {"pred": TWO, "has_label": flag},
        {"label": ONE, "has_label": flag},
    ]
    predictions, references = from_instances("pred", "label", "has_label")(items)
    assert len(predictions) == len(references) == 1 and references[0] is ONE
    state = run(InstanceAveragePrecisionHandler(output_transform=from_instances("pred", "label", "has_label")), [items])
    assert state.metrics["score"] == 0.5 and len(state.metric_details["score"]) == 1


def test_a_dictionary_of_batches_is_taken_apart():
    output = {"pred": torch.stack([TWO, ONE]), "label": torch.stack([ONE, ONE]), "has_label": torch.tensor([1, 0])}
    predictions, references = from_instances("pred", "label", "has_label")(output)
    assert len(predictions) == 1 and torch.equal(predictions[0], TWO) and torch.equal(references[0], ONE)
    assert from_instances("pred", "label")({"pred": output["pred"], "label": None}) == ([], [])
    assert from_instances("pred", "label")({}) == from_instances("pred", "label")([]) == ([], [])


def test_a_missing_flag_is_an_error():
    with pytest.raises(KeyError, match=r"an item has no flag 'has_labl'; its keys are \['label', 'pred'\]"):
        from_instances("pred", "label", "has_labl")([{"pred": ONE, "label": ONE}])


@pytest.mark.parametrize("handler", HANDLERS)
def test_iterations_and_runs_without_reference(handler):
    unlabelled = [{"pred": TWO, "label": NONE, "has_label": False}]
    labelled = [{"pred": ONE, "label": ONE + ONE, "has_label": True}]
    one = handler(output_transform=from_instances("pred", "label", "has_label"))
    some = run(one, [unlabelled, labelled, unlabelled])
    assert "score" in some.metrics
    engine = Engine(lambda engine, batch: batch)
    one.attach(engine, "score")
    assert "score" in engine.run([labelled]).metrics
    with pytest.warns(UserWarning, match="metric 'score' is left out: no item had a prediction and a reference"):
        state = engine.run([unlabelled])
    assert "score" not in state.metric_details
    assert "score" not in state.metrics, "the score of the run before must not stay"


def evaluator(items, key, additional=None, **keywords) -> SupervisedEvaluator:
    """MONAI's evaluator with a network that returns its input, and a copy of it as the decoded prediction."""
    return SupervisedEvaluator(
        device=torch.device("cpu"),
        val_data_loader=DataLoader(Dataset(items), batch_size=2),
        network=torch.nn.Identity(),
        postprocessing=Lambdad("pred", lambda x: x.round().long()),
        key_val_metric=key,
        additional_metrics=additional,
        **keywords,
    )


def items(flags):
    """Network input, label, a clean image and flags that MONAI leaves in the batch."""
    return [
        {
            "image": TWO.float(),
            "label": ONE if flag else NONE,
            "clean": TWO.float() + 0.5 * ONE,
            "has_label": torch.tensor(flag),
        }
        for flag in flags
    ]


def test_in_monais_evaluator_flags_and_clean_images_come_from_the_batch():
    pick = from_instances("pred", "label", "has_label")
    engine = evaluator(
        items([True, False, False, False, True]),
        {"AP50": InstanceAveragePrecisionHandler(output_transform=pick)},
        {
            "SEG": SegScoreHandler(output_transform=pick),
            "PSNR": StatedRangePSNRHandler(output_transform=from_instances("pred", "clean")),
        },
    )
    engine.run()
    assert engine.state.metrics["AP50"] == 0.5 and engine.state.metrics["SEG"] == 1.0
    assert engine.state.metrics["PSNR"] == pytest.approx(10 * math.log10(2.0**2 / 0.125))
    assert {n: len(d) for n, d in engine.state.metric_details.items()} == {"AP50": 2, "SEG": 2, "PSNR": 5}
    assert engine.state.best_metric == 0.5


def test_in_monais_evaluator_without_any_label():
    pick = from_instances("pred", "label", "has_label")
    psnr = {"PSNR": StatedRangePSNRHandler(output_transform=from_instances("pred", "clean"))}
    engine = evaluator(items([False] * 3), psnr, {"SEG": SegScoreHandler(output_transform=pick)})
    with pytest.warns(UserWarning, match="'SEG' is left out"):
        engine.run()
    assert set(engine.state.metrics) == {"PSNR"}
    key = evaluator(items([False] * 3), {"AP50": InstanceAveragePrecisionHandler(output_transform=pick)})
    with pytest.raises(ValueError, match="InstanceAveragePrecision has no image to aggregate"):
        key.run()


def test_without_decollation():
    pick = from_instances("pred", "label", "has_label")
    engine = evaluator(
        items([True, False, True]), {"AP50": InstanceAveragePrecisionHandler(output_transform=pick)}, decollate=False
    )
    engine.run()
    assert engine.state.metrics["AP50"] == 0.5 and len(engine.state.metric_details["AP50"]) == 2


def test_binary_pairs_are_foreground_masks():
    items = [{"pred": torch.tensor([[0, 3, 7]]), "label": torch.tensor([[0, 0, 2]])}]
    predictions, references = from_instances("pred", "label", binary=True)(items)
    assert predictions[0].tolist() == [[0.0, 1.0, 1.0]] and references[0].tolist() == [[0.0, 0.0, 1.0]]
    handler = PairedMetricHandler(DiceMetric(), output_transform=from_instances("pred", "label", binary=True))
    engine = Engine(lambda engine, batch: batch)
    handler.attach(engine, "Dice")
    assert engine.run([items]).metrics["Dice"] == pytest.approx(2 / 3)
