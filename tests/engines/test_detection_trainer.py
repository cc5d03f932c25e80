# SPDX-License-Identifier: Apache-2.0
"""DetectionTrainer: one step by hand, the vocabulary of MONAI's trainers, and what stops a run."""

from __future__ import annotations

import inspect

import pytest
import torch
from ignite.engine import Events
from ignite.metrics import Average
from monai.data import DataLoader, Dataset, MetaTensor
from monai.data.utils import no_collation
from monai.engines import SupervisedTrainer
from monai.engines.utils import IterationEvents
from monai.handlers import CheckpointSaver, StatsHandler

from monai_labelfx.engines.detection_trainer import DetectionTrainer
from monai_labelfx.engines.progress import ProgressBar
from monai_labelfx.engines.run_record import RunRecord


class Detector(torch.nn.Module):
    """Regresses the mean of the box coordinates and the number of boxes from the mean of an image."""

    cls_key, box_reg_key = "classification", "box_regression"

    def __init__(self, box_key: str = "boxes", label_key: str = "labels") -> None:
        super().__init__()
        self.network = torch.nn.Linear(1, 2, dtype=torch.float64)
        with torch.no_grad():
            self.network.weight.copy_(torch.tensor([[0.3], [-0.2]]))
            self.network.bias.copy_(torch.tensor([0.1, 0.4]))
        self.target_box_key, self.target_label_key = box_key, label_key
        self.autocast: list[bool] = []

    def forward(self, images, targets=None):
        self.autocast.append(torch.is_autocast_enabled(images[0].device.type))
        assert self.training
        means = torch.stack([image.as_subclass(torch.Tensor).mean() for image in images])[:, None]
        raw = self.network(means.to(self.network.weight.dtype))
        counts = torch.tensor([float(len(target[self.target_label_key])) for target in targets])
        centres = torch.stack([target[self.target_box_key].sum() for target in targets])
        return {
            self.cls_key: (raw[:, 0] - counts).square().mean(),
            self.box_reg_key: (raw[:, 1] - centres).abs().mean(),
        }


def data(count: int = 4) -> list[dict]:
    return [
        {
            "image": MetaTensor(torch.full((1, 8, 8), k + 1.0), meta={"filename_or_obj": f"/home/secret/film{k}.png"}),
            "box": [[0, 0, k + 1, 2]] * (k % 2),
            "box_label": [0] * (k % 2),
        }
        for k in range(count)
    ]


def trainer_of(detector=None, *, items=None, batch=2, lr=0.01, epochs=1, **options):
    detector = Detector() if detector is None else detector
    loader = DataLoader(Dataset(data() if items is None else items), batch_size=batch, collate_fn=no_collation)
    optimizer = torch.optim.SGD(detector.parameters(), lr=lr)
    return DetectionTrainer("cpu", epochs, loader, detector, optimizer, **options)


def by_hand(steps: list[list[list[dict]]], *, weights=(1.0, 1.0), lr=0.01, clip=None, divide=1) -> torch.Tensor:
    """Weights and biases after steps, each over the sum of batches; plain SGD in float64, gradients by formula."""
    w, b = torch.tensor([0.3, -0.2]).double(), torch.tensor([0.1, 0.4]).double()
    for batches in steps:
        grad_w, grad_b = torch.zeros(2).double(), torch.zeros(2).double()
        for batch in batches:
            for item in batch:
                x = float(item["image"].mean())
                count, centre = len(item["box"]), sum(map(sum, item["box"]))
                slope = torch.tensor(
                    [2 * (w[0] * x + b[0] - count) * weights[0], torch.sign(w[1] * x + b[1] - centre) * weights[1]]
                ) / (len(batch) * divide)
                grad_w, grad_b = grad_w + slope * x, grad_b + slope
        norm = torch.cat([grad_w, grad_b]).norm()
        factor = 1.0 if clip is None or norm <= clip else float(clip / norm)
        w, b = w - lr * factor * grad_w, b - lr * factor * grad_b
    return torch.cat([w, b])


def parameters(trainer: DetectionTrainer) -> torch.Tensor:
    return torch.cat([p.detach().reshape(-1) for p in trainer.detector.parameters()])


@pytest.mark.parametrize(
    ("options", "steps", "hand"),
    [
        ({}, [[[0, 1]], [[2, 3]]], {}),
        (
            {"loss_weights": {"classification": 3.0, "box_regression": 0.25}},
            [[[0, 1]], [[2, 3]]],
            {"weights": (3.0, 0.25)},
        ),
        ({"clip_grad_norm": 0.5}, [[[0, 1]], [[2, 3]]], {"clip": 0.5}),
        ({"accumulation_steps": 2}, [[[0, 1], [2, 3]]], {"divide": 2}),
        ({"accumulation_steps": 3, "batch": 1}, [[[0], [1], [2]], [[3]]], {"divide": 3}),  # the epoch ends a step
        ({"optim_set_to_none": True, "epochs": 2}, [[[0, 1]], [[2, 3]]] * 2, {}),
    ],
)
def test_steps_are_those_of_plain_descent(options, steps, hand):
    trainer = trainer_of(**options)
    trainer.run()
    items = data()
    expected = by_hand([[[items[k] for k in batch] for batch in step] for step in steps], **hand)
    assert torch.allclose(parameters(trainer), expected, atol=1e-7)


def test_output_events_and_modes():
    trainer, fired = trainer_of(loss_weights={"box_regression": 2.0}), []
    for event in IterationEvents:
        if "inner" not in event.value:
            trainer.add_event_handler(
                event, lambda engine, name: fired.append((name, sorted(engine.state.output))), event.value
            )
    trainer.detector.eval()
    trainer.run()
    before, after = ["image", "label"], ["box_regression", "classification", "image", "label", "loss"]
    assert (
        fired
        == [
            ("forward_completed", before),
            ("loss_completed", after),
            ("backward_completed", after),
            ("model_completed", after),
        ]
        * 2
    )
    output = trainer.state.output
    assert torch.equal(output["loss"], output["classification"] + 2 * output["box_regression"])
    assert len(output["image"]) == 2 and output["label"][1]["boxes"].tolist() == [[0.0, 0.0, 4.0, 2.0]]
    assert trainer.detector.training


def test_handlers_and_metrics_of_monai(tmp_path, caplog):
    detector = Detector()
    handlers = [
        StatsHandler(name="train", tag_name="loss", output_transform=lambda output: output["loss"]),
        CheckpointSaver(str(tmp_path), {"model": detector}, save_final=True),
        RunRecord(tmp_path / "record"),
        ProgressBar(enabled=True),
    ]
    metric = {"mean_loss": Average(output_transform=lambda output: output["loss"].detach())}
    trainer = trainer_of(detector, epochs=30, lr=0.02, train_handlers=handlers, key_train_metric=metric)
    seen = []
    trainer.add_event_handler(Events.EPOCH_COMPLETED, lambda engine: seen.append(engine.state.metrics["mean_loss"]))
    trainer.run()
    assert seen[-1] < seen[0] and trainer.state.key_metric_name == "mean_loss"
    assert {path.suffix for path in tmp_path.iterdir()} == {".pt", ""}


def test_decollated_for_postprocessing():
    seen = []
    trainer = trainer_of(decollate=True, postprocessing=lambda item: seen.append(sorted(item)) or item)
    trainer.run()
    assert seen == [["box", "box_label", "box_regression", "classification", "image", "label", "loss"]] * 4
    assert isinstance(trainer.state.batch, list) and isinstance(trainer.state.output[0]["loss"], float)


def test_mixed_precision_and_its_scaler():
    for options, on, scaled in (({}, False, False), ({"amp": True}, True, False)):
        trainer = trainer_of(**options)
        trainer.run()
        assert trainer.detector.autocast == [on] * 2 and (trainer.scaler is not None) == scaled
    half = {"amp": True, "amp_kwargs": {"dtype": torch.float16}}
    small = dict.fromkeys(("classification", "box_regression"), 1e-3)  # so that the first scale does not overflow
    trainer = trainer_of(Detector().float(), lr=1.0, loss_weights=small, clip_grad_norm=0.005, **half)
    trainer.run()  # clipping sees gradients that are not scaled
    assert trainer.scaler is not None and trainer.scaler.get_scale() > 1
    items = data()
    expected = by_hand([[items[:2]], [items[2:]]], weights=(1e-3, 1e-3), lr=1.0, clip=0.005)
    assert torch.allclose(parameters(trainer).double(), expected, atol=1e-5)


def test_the_detector_gets_its_own_names():
    trainer = trainer_of(Detector("box", "label"))
    trainer.run()
    plain = trainer_of()
    plain.run()
    assert torch.equal(parameters(trainer), parameters(plain)) and "boxes" in trainer.state.output["label"][0]


def test_images_that_nobody_annotated_stop_the_run():
    items = data()
    del items[1]["box"]
    with pytest.raises(ValueError, match=r"no boxes are known of film1.png: .* empty list of boxes") as caught:
        trainer_of(items=items).run()
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_stops_before_the_step(bad):
    items = data()
    items[3]["image"] = items[3]["image"] * bad
    items[3]["image"].meta["filename_or_obj"] = "/home/secret/film3.png"
    trainer = trainer_of(items=items)
    with pytest.raises(
        ValueError, match=r"\(classification \w+, .*\) in epoch 1, iteration 2, for film2.png, film3"
    ) as caught:
        trainer.run()
    assert "secret" not in str(caught.value)
    assert torch.allclose(parameters(trainer), by_hand([[data()[:2]]]), atol=1e-7), "only the first step was done"


def test_losses_and_weights_must_fit():
    with pytest.raises(ValueError, match=r"names in loss_weights \(centreness\).* it returned classification, box_reg"):
        trainer_of(loss_weights={"centreness": 1.0}).run()
    named = Detector()
    named.cls_key = "label"
    with pytest.raises(ValueError, match="none called image, label or loss; it returned label, box_regression"):
        trainer_of(named).run()
    with pytest.raises(ValueError, match="accumulation_steps must be 1 or above, got 0"):
        trainer_of(accumulation_steps=0)
    with pytest.raises(ValueError, match="clip_grad_norm must be above 0 or None, got 0"):
        trainer_of(clip_grad_norm=0)
    with pytest.raises(ValueError, match="None instead of a batch"):
        DetectionTrainer("cpu", 1, [None], Detector(), torch.optim.SGD(Detector().parameters(), 1.0)).run()


def test_vocabulary_of_the_supervised_trainer():
    own, theirs = (inspect.signature(kind).parameters for kind in (DetectionTrainer, SupervisedTrainer))
    renamed = {"network", "loss_function", "inferer", "compile", "compile_kwargs"}
    assert set(theirs) - set(own) == renamed and set(own) - set(theirs) == {
        "detector",
        "loss_weights",
        "clip_grad_norm",
    }
    differ = {name for name in set(own) & set(theirs) if own[name].default != theirs[name].default}
    assert differ == {"prepare_batch", "decollate"}
