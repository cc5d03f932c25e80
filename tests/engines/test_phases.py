# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import copy

import pytest
import torch

from monai_labelfx.engines._phases import read_recipe

FAKE = "discriminator(generator(low))"


def recipe() -> dict:
    networks = {"generator": torch.nn.Conv2d(1, 1, 1), "discriminator": torch.nn.Conv2d(1, 1, 1)}
    return {
        "networks": networks,
        "functions": {"pool": torch.clone},
        "phases": {
            "g": {"train": ["generator"], "optimizer": torch.optim.Adam(networks["generator"].parameters())},
            "d": {"train": "discriminator", "optimizer": torch.optim.Adam(networks["discriminator"].parameters())},
        },
        "terms": [
            {"name": "fool", "phase": "g", "loss": torch.mean, "inputs": FAKE, "weight": 2},
            {"name": "tell", "phase": "d", "loss": torch.nn.L1Loss(), "inputs": ["discriminator(high)", FAKE]},
        ],
    }


def test_reads_phases_in_order():
    given = recipe()
    vocabulary, (first, second) = read_recipe(**given)
    assert (first.name, first.train, first.total) == ("g", ("generator",), "g_loss")
    assert (second.train, second.terms[0].weight, len(second.terms[0].inputs)) == (("discriminator",), 1.0, 2)
    assert [str(one) for one in first.keep] == ["generator(low)"] and not second.keep
    assert vocabulary.batch_names == {"low", "high"}
    assert len(first.parameters) == 2 and first.optimizer is given["phases"]["g"]["optimizer"]
    assert float(first.weighted_sum({"fool": torch.tensor(3.0)})) == 6.0
    given["phases"] = dict(reversed(given["phases"].items()))
    assert [phase.name for phase in read_recipe(**given)[1]] == ["d", "g"]


def test_alone_freezes_all_others_and_restores_them_after_an_error():
    given = recipe()
    networks = given["networks"].values()
    given["networks"]["discriminator"].bias.requires_grad_(False)
    phase = read_recipe(**given)[1][0]
    with pytest.raises(KeyError), phase.alone(networks):
        assert [[p.requires_grad for p in net.parameters()] for net in networks] == [[True, True], [False, False]]
        raise KeyError
    assert [[p.requires_grad for p in net.parameters()] for net in networks] == [[True, True], [True, False]]


def test_parameters_that_the_optimiser_does_not_hold_are_frozen():
    given = recipe()
    generator = given["networks"]["generator"]
    given["phases"]["g"]["optimizer"] = torch.optim.SGD([generator.weight], 0.1)
    phase = read_recipe(**given)[1][0]
    with phase.alone(given["networks"].values()):
        assert generator.weight.requires_grad and not generator.bias.requires_grad
    assert generator.bias.requires_grad


def test_value_of_a_term():
    given = recipe()
    given["terms"][0]["loss"] = lambda image: (image.dtype == torch.float32) * image.sum()[None]
    term = read_recipe(**given)[1][0].terms[0]
    assert term.value([torch.ones(2, dtype=torch.float16)]).shape == () and term.value([torch.ones(2).half()]) == 2
    for wrong, message in ((torch.clone, r"a tensor of shape \(2,\)"), (lambda image: 1.0, "<class 'float'>")):
        with pytest.raises(ValueError, match=f"term 'fool' must return a tensor with one number, got {message}"):
            term._replace(loss=wrong).value([torch.ones(2)])


def _set(path, value):
    def change(given):
        for key in path[:-1]:
            given = given[key]
        given[path[-1]] = value

    return change


def _share(given):
    given["networks"]["discriminator"].weight = given["networks"]["generator"].weight


def _foreign(given):
    given["phases"]["g"]["optimizer"].add_param_group({"params": given["networks"]["discriminator"].parameters()})


TERM = {"name": "more", "phase": "g", "loss": torch.mean, "inputs": [FAKE]}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (_set(["networks"], []), TypeError, "networks must map names to their values, got list"),
        (_set(["phases"], []), TypeError, "phases must map names"),
        (_set(["networks", "pool"], torch.nn.Identity()), ValueError, "'pool' names a network and also a function"),
        (_set(["networks", "my-net"], torch.nn.Identity()), ValueError, "'my-net' cannot be the name of a network"),
        (_set(["networks", "other"], torch.clone), TypeError, "network 'other' is a builtin_function"),
        (
            _set(["networks", "other"], torch.nn.DataParallel(torch.nn.Conv2d(1, 1, 1))),
            TypeError,
            "network 'other' is a DataParallel, expected a torch.nn.Module as it is: this trainer averages",
        ),
        (_share, ValueError, "networks 'generator' and 'discriminator' share parameters"),
        (_set(["phases", "g", "steps"], 2), ValueError, "phase 'g' must hold 'optimizer', 'train'; it holds .*'steps'"),
        (_set(["phases", "g", "train"], ["heads"]), ValueError, "phase 'g' must train networks out of .* got 'heads'"),
        (_set(["phases", "g", "train"], []), ValueError, "phase 'g' must train networks .* got none"),
        (
            _set(["phases", "g", "optimizer"], None),
            TypeError,
            "optimizer of phase 'g' must be one of torch.optim, got N",
        ),
        (
            _set(["phases", "g", "train"], ["generator", "discriminator"]),
            ValueError,
            "the optimizer of phase 'g' holds no parameter of 'discriminator', which it is to train",
        ),
        (_foreign, ValueError, "optimizer of phase 'g' holds 2 parameters that belong to none of 'generator'"),
        (_set(["phases"], {}), ValueError, "phases is empty"),
        (_set(["terms"], [TERM]), ValueError, "phase 'd' has no term; terms belong to 'g'"),
        (lambda given: given["terms"][1].pop("loss"), ValueError, "term 'tell' must hold .*, and may hold 'weight'"),
        (lambda given: given["terms"][1].pop("name"), ValueError, "term 1 must hold 'inputs', 'loss', 'name'"),
        (
            _set(["terms", 0, "weight"], float("nan")),
            ValueError,
            "weight of term 'fool' must be a finite number, got n",
        ),
        (_set(["terms", 0, "weight"], "2"), ValueError, "weight of term 'fool' must be a finite number, got '2'"),
        (_set(["terms", 0, "loss"], 1), TypeError, "loss of term 'fool' must be callable, got int"),
        (_set(["terms", 0, "phase"], "x"), ValueError, "term 'fool' belongs to phase 'x'; phases are 'd', 'g'"),
        (_set(["terms", 0, "name"], "tell"), ValueError, "'tell' would name two numbers of the output"),
        (_set(["terms", 0, "name"], "d_loss"), ValueError, "'d_loss' would name two numbers"),
        (_set(["terms", 0, "name"], "loss"), ValueError, "'loss' would name two numbers"),
        (
            _set(["terms", 0, "inputs"], ["pool(generator(low))", "discriminator(high)"]),
            ValueError,
            r"term 'fool' of phase 'g' gives no gradient to 'generator': its inputs are pool\(generator\(low",
        ),
        (_set(["terms", 0, "inputs"], ["generator(low) + 1"]), ValueError, "is not an expression of this trainer"),
    ],
)
def test_recipes_that_do_not_fit_are_refused(change, error, message):
    given = recipe()
    given["terms"] = copy.copy(given["terms"])
    change(given)
    with pytest.raises(error, match=message):
        read_recipe(**given)
