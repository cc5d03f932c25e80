# SPDX-License-Identifier: Apache-2.0
"""A generator and a discriminator of two numbers each, whose steps can be computed by hand."""

from __future__ import annotations

import torch
from monai.data import DataLoader, Dataset

from monai_labelfx.engines.unpaired_trainer import UnpairedTrainer

L1 = torch.nn.L1Loss()
FAKE, REAL = "discriminator(generator(low))", "discriminator(high)"


def fool(fake):
    return (fake - 1).square().mean()


def tell(real, fake):
    return (real - 1).square().mean() + fake.square().mean()


class Line(torch.nn.Module):
    """a x + b, in two halves; it notes its calls and whether autocast and gradients were on."""

    def __init__(self, a: float, b: float = 0.0) -> None:
        super().__init__()
        self.a = torch.nn.Parameter(torch.tensor(a, dtype=torch.float64))
        self.b = torch.nn.Parameter(torch.tensor(b, dtype=torch.float64))
        self.calls: list[tuple[str, bool, bool]] = []

    def _note(self, name):
        self.calls.append((name, torch.is_grad_enabled(), torch.is_autocast_enabled("cpu")))

    def forward(self, x):
        self._note("forward")
        return self.a * x + self.b

    def encode(self, x):
        self._note("encode")
        return [self.a * x]

    def decode(self, taps):
        self._note("decode")
        return taps[0] + self.b


def data(count: int = 4) -> list[dict]:
    draw = torch.Generator().manual_seed(3)
    return [
        {
            "low": torch.rand(1, 3, 3, generator=draw, dtype=torch.float64),
            "high": 1 + torch.rand(1, 3, 3, generator=draw, dtype=torch.float64),
        }
        for _ in range(count)
    ]


def term(name, phase, loss, *inputs, **more):
    return {"name": name, "phase": phase, "loss": loss, "inputs": list(inputs), **more}


TERMS = (
    term("adversarial", "g", fool, FAKE),
    term("identity", "g", L1, "generator(high)", "high", weight=5),
    term("tell", "d", tell, REAL, FAKE, weight=0.5),
)


def trainer_of(
    generator=None,
    discriminator=None,
    *,
    items=None,
    loader=None,
    terms=TERMS,
    kind=torch.optim.SGD,
    lr=0.1,
    epochs=1,
    order="gd",
    **options,
):
    nets = {
        "generator": Line(0.5, 0.2) if generator is None else generator,
        "discriminator": Line(0.7, -0.1) if discriminator is None else discriminator,
    }
    phases = {
        name[0]: {"train": [name], "optimizer": kind(nets[name].parameters(), lr=lr)}
        for name in sorted(nets, key=lambda one: order.index(one[0]))
    }
    loader = DataLoader(Dataset(data() if items is None else items), batch_size=2) if loader is None else loader
    return UnpairedTrainer("cpu", epochs, loader, nets, phases, list(terms), **options)


def parameters(trainer) -> list[float]:
    return [float(p.detach()) for network in trainer.networks.values() for p in network.parameters()]
