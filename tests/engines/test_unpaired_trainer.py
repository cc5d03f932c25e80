# SPDX-License-Identifier: Apache-2.0
"""UnpairedTrainer: steps by hand, what is computed and frozen when, and what stops a run."""

from __future__ import annotations

import inspect
import json

import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import AdversarialTrainer
from monai.engines.utils import IterationEvents
from unpaired_recipe import FAKE, L1, REAL, TERMS, Line, data, fool, parameters, term, trainer_of

from monai_labelfx.engines.progress import ProgressBar
from monai_labelfx.engines.run_record import RunRecord
from monai_labelfx.engines.unpaired_trainer import UnpairedTrainer


def by_hand(batches, a=0.5, b=0.2, d=0.7, c=-0.1, lr=0.1):
    """Plain descent by formula: generator a x + b, then discriminator d x + c on the fakes from before the step."""
    for batch in batches:
        low, high = (torch.stack([item[name] for item in batch]) for name in ("low", "high"))
        fake = a * low + b
        slope = 2 * (d * fake + c - 1) * d
        sign = torch.sign(a * high + b - high)
        new_a = a - lr * float((slope * low).mean() + 5 * (sign * high).mean())
        new_b = b - lr * float(slope.mean() + 5 * sign.mean())
        real = 2 * (d * high + c - 1)
        wrong = 2 * (d * fake + c)
        d, c = (
            d - lr * 0.5 * float((real * high).mean() + (wrong * fake).mean()),
            c - lr * 0.5 * float(real.mean() + wrong.mean()),
        )
        a, b = new_a, new_b
    return [a, b, d, c]


@pytest.mark.parametrize("options", [{}, {"optim_set_to_none": True}])
def test_steps_are_those_of_plain_descent(options):
    trainer = trainer_of(**options)
    trainer.run()
    items = data()
    assert parameters(trainer) == pytest.approx(by_hand([items[:2], items[2:]]), abs=1e-12)


def test_only_trained_networks_get_gradients():
    trainer, seen = trainer_of(), []

    def note(engine):
        flags = {name: {p.requires_grad for p in net.parameters()} for name, net in engine.networks.items()}
        grads = {name: net.a.grad is not None and bool(net.a.grad) for name, net in engine.networks.items()}
        seen.append((engine.state.phase, flags, grads))

    trainer.networks["generator"].b.requires_grad_(False)
    trainer.add_event_handler(IterationEvents.BACKWARD_COMPLETED, note)
    trainer.run()
    first, second = seen[:2]
    assert first == (
        "g",
        {"generator": {True, False}, "discriminator": {False}},
        {"generator": True, "discriminator": False},
    )
    assert second[:2] == ("d", {"generator": {False}, "discriminator": {True}})
    before = [float(net.a.grad) for net in trainer.networks.values()]
    assert all(before)
    generator = trainer.networks["generator"]
    assert generator.a.requires_grad and not generator.b.requires_grad, "as it was"
    assert parameters(trainer)[1] == 0.2, "what the user froze stays frozen"
    broken = trainer_of(terms=[*TERMS[:2], term("tell", "d", lambda one: one, REAL)])
    with pytest.raises(ValueError, match=r"'tell' must return a tensor with one number, got a tensor of shape \(2, 1"):
        broken.run()
    assert all(p.requires_grad for net in broken.networks.values() for p in net.parameters()), "also after an error"


def test_each_expression_is_computed_once():
    trainer = trainer_of(items=data(2))
    trainer.run()
    calls = {name: net.calls for name, net in trainer.networks.items()}
    assert calls["generator"] == [("forward", True, False)] * 2, "low and high; no fake is made again"
    assert calls["discriminator"] == [("forward", True, False)] * 3
    last = trainer_of(items=data(2), order="dg")
    last.run()
    assert [grad for _, grad, _ in last.networks["generator"].calls] == [False, True, True]


def test_taps_cost_nothing_and_functions_cut_the_gradient():
    seen: list[bool] = []

    def places(*images):
        seen.append(torch.is_grad_enabled() or any(image.requires_grad for image in images))
        return images[0].requires_grad_()  # it may do what it likes

    terms = [
        *TERMS,
        term("taps", "g", lambda a, b: L1(a[0], b[0]), "generator.encode(generator(low))", "generator.encode(low)"),
        term("places", "g", L1, "generator(low)", "places(generator(low), high)"),
    ]
    trainer = trainer_of(items=data(2), terms=terms, functions={"places": places})
    trainer.run()
    names = [name for name, _, _ in trainer.networks["generator"].calls]
    assert (names.count("encode"), names.count("decode"), names.count("forward")) == (3, 2, 0)
    assert seen == [False]


def test_a_network_in_a_loss_and_one_that_is_never_trained():
    def slope(network, image):
        image = image.clone().requires_grad_()
        return torch.autograd.grad(network(image).sum(), image, create_graph=True)[0].square().mean()

    judge = torch.nn.Sequential(torch.nn.Dropout(0.5), Line(2.0))
    terms = [
        *TERMS[1:],
        term("judged", "g", fool, "judge(generator(low))"),
        term("slope", "d", slope, "discriminator", "high"),
    ]
    nets = {"generator": Line(0.5), "discriminator": Line(0.7), "judge": judge}
    phases = {
        key: {"train": name, "optimizer": torch.optim.SGD(nets[name].parameters(), 0.1)}
        for key, name in (("g", "generator"), ("d", "discriminator"))
    }
    trainer = UnpairedTrainer("cpu", 1, DataLoader(Dataset(data()), batch_size=2), nets, phases, terms)
    trainer.run()
    assert not judge.training and judge[1].a.item() == 2.0 and judge[1].a.grad is None
    d = nets["discriminator"].a.item()
    assert trainer.state.output["slope"] > 0 and d != 0.7


def test_output_events_and_handlers_of_monai(tmp_path):
    trainer, fired = trainer_of(items=data(2), train_handlers=[RunRecord(tmp_path), ProgressBar(enabled=False)]), []
    for event in IterationEvents:
        if "inner" not in event.value:
            trainer.add_event_handler(event, lambda engine, name: fired.append((engine.state.phase, name)), event.value)
    trainer.networks["generator"].eval()
    trainer.run()
    three = ["forward_completed", "loss_completed", "backward_completed"]
    assert fired == [("g", name) for name in three] + [("d", name) for name in (*three, "model_completed")]
    output = trainer.state.output
    assert set(output) == {"low", "high", "adversarial", "identity", "tell", "g_loss", "d_loss", "loss"}
    assert torch.equal(output["loss"], output["adversarial"] + 5 * output["identity"])
    assert torch.equal(output["loss"], output["g_loss"]) and torch.equal(output["d_loss"], 0.5 * output["tell"])
    assert not any(value.requires_grad for value in output.values()) and output["low"].shape == (2, 1, 3, 3)
    assert trainer.networks["generator"].training
    assert json.loads((tmp_path / "history.json").read_text())["lr"] == [[1, 0.1]]


def test_decollated_for_postprocessing():
    seen = []
    trainer = trainer_of(decollate=True, postprocessing=lambda item: seen.append(sorted(item)) or item)
    trainer.run()
    assert len(seen) == 4 and "loss" in seen[0] and isinstance(trainer.state.output, list)


def test_mixed_precision_keeps_losses_outside():
    types: list[torch.dtype] = []

    def loss(taps):
        types.append(taps[0].dtype)
        assert not torch.is_autocast_enabled("cpu")
        return taps[0].square().mean()

    class Conv(torch.nn.Conv2d):
        def encode(self, x):
            return [self(x)]

    items = [{name: value.float() for name, value in item.items()} for item in data(2)]
    for dtype in (torch.bfloat16, torch.float16):
        generator = Conv(1, 1, 1)
        terms = [term("taps", "g", loss, "generator.encode(low)"), *TERMS[1:]]
        half = {"amp": True, "amp_kwargs": {"dtype": dtype}}
        trainer = trainer_of(generator, torch.nn.Conv2d(1, 1, 1), items=items, terms=terms, **half)
        weight = generator.weight.detach().clone()
        trainer.run()
        assert types.pop() == torch.float32 and bool(trainer.scalers) == (dtype == torch.float16)
        assert not torch.equal(weight, generator.weight) or dtype == torch.float16  # its first scale may overflow
    assert set(trainer.scalers) == {"g", "d"}
    trainer.scalers["d"].update(8.0)
    other = trainer_of(Conv(1, 1, 1), torch.nn.Conv2d(1, 1, 1), items=items, terms=terms, **half)
    other.load_state_dict(trainer.state_dict())
    assert other.scalers["d"].get_scale() == 8.0 and other.state.epoch == 1
    assert "scalers" not in trainer_of().state_dict()


@pytest.mark.parametrize(("phase", "done"), [("g", 0), ("d", 1)])
def test_a_loss_that_is_not_finite_stops_before_the_step(phase, done):
    bad = iter([1.0, float("nan")])
    terms = list(TERMS)
    terms.append(term("bad", phase, lambda one: one.mean() * next(bad), FAKE))
    items = data()
    for number, item in enumerate(items):
        item["low"] = MetaTensor(item["low"], meta={"filename_or_obj": f"/home/secret/ct{number}.dcm"})
        item["high_file"] = f"/home/secret/full{number}.dcm"
    trainer = trainer_of(items=items, terms=terms)
    states = []
    trainer.add_event_handler(Events.ITERATION_COMPLETED(once=1), lambda: states.append(parameters(trainer)))
    pattern = rf"phase '{phase}' is not finite \(.*bad nan\) in epoch 1, iteration 2, for ct2.dcm, ct3.dcm, full2.dcm"
    with pytest.raises(ValueError, match=pattern) as caught:
        trainer.run()
    assert "secret" not in str(caught.value)
    moved = [now != then for now, then in zip(parameters(trainer), states[0], strict=True)]
    assert moved == [bool(done)] * 2 + [False] * 2, "only phases before the bad one have stepped"


def test_batches_must_fit():
    missing = r"expressions name 'high', which is neither in the batch nor a network: the batch has 'low'; networks are"
    for items, message in (
        ([{"low": torch.ones(1, 2, 2)}], missing),
        ([{**data(1)[0], "generator": torch.ones(1)}], "'generator' is in the batch and also the name of a network"),
        ([{**data(1)[0], "tell": torch.ones(1)}], "tell names an entry of the batch and also a loss"),
    ):
        with pytest.raises(ValueError, match=message):
            trainer_of(items=items).run()
    for batch, error in ((None, ValueError), ([torch.ones(1)], TypeError)):
        trainer = trainer_of()
        trainer.data_loader = [batch]
        with pytest.raises(error, match=r"None instead of a batch|a batch must be a mapping such as \{'low'"):
            trainer.run()


def test_own_prepare_batch_and_types():
    items = [{**item, "mask": torch.ones(1, 3, 3, dtype=torch.bool), "note": "text"} for item in data(2)]
    generator, discriminator = Line(0.5).float(), Line(0.7).float()
    trainer = trainer_of(generator, discriminator, items=items, to_kwargs={"dtype": torch.float32})
    trainer.run()
    output = trainer.state.output
    assert output["low"].dtype == torch.float32 and output["mask"].dtype == torch.bool and "note" not in output

    def swap(batch, device=None, non_blocking=False):
        return {"low": batch["high"], "high": batch["low"]}

    trainer = trainer_of(items=items, prepare_batch=swap)
    trainer.run()
    assert float(trainer.state.output["low"].min()) >= 1


def test_vocabulary_of_the_adversarial_trainer():
    own, theirs = (inspect.signature(kind).parameters for kind in (UnpairedTrainer, AdversarialTrainer))
    renamed = {name for name in theirs if name.startswith(("g_", "d_", "recon_"))}
    assert set(theirs) - set(own) == renamed and set(own) - set(theirs) == {"networks", "phases", "terms", "functions"}
    shared = [name for name in own if name in theirs]
    assert shared == [name for name in theirs if name in own], "the order of MONAI's"
    assert {name for name in shared if own[name].default != theirs[name].default} == {"prepare_batch", "decollate"}
