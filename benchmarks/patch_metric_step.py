# SPDX-License-Identifier: Apache-2.0
"""One training step of the patch metric recipe: our trainer beside the order of computations of the released code.

    python benchmarks/patch_metric_step.py [--out FILE] [--rounds 3]

8 crops of 128 x 128 with the published generator (one dense block used three times), discriminator and heads, on one
thread. Both sides start from the same weights, images and patch positions and take turns. The order of the released
code differs in three points: it computes features of the input, of its fake and of the identity image by runs of the
encoder of their own and throws those of the identity image away, and it projects whole feature maps before it takes
the patches out of them.

A third row has that order with heads that take the patches first, which tells the two savings apart.

Weights with spectral norm move with every forward pass in training mode, as the estimate of the norm gets better. More
passes would therefore give other losses, so the estimates converge first, and losses and gradients are compared in the
first step.
"""

from __future__ import annotations

import argparse
import copy
import datetime
import json
import os
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import torch

from monai_labelfx.engines.unpaired_trainer import UnpairedTrainer
from monai_labelfx.losses.gan import GANDiscriminatorLoss, GANGeneratorLoss
from monai_labelfx.losses.patch_metric import PatchMetricLoss, PatchPositions
from monai_labelfx.networks.patch_gan_discriminator import PatchGANDiscriminator
from monai_labelfx.networks.patch_projection_heads import PatchProjectionHeads
from monai_labelfx.networks.rrdb_generator import RRDBGenerator

SHAPE = (8, 1, 128, 128)
GOAL, TOLERANCE = 1.2, 1e-5
SEED = 0
METRIC, IDENTITY = 0.1, 5.0  # the released weights
WARM_UP = 200
RELEASED = "released order"


def parts() -> dict[str, torch.nn.Module]:
    """Networks of the released code, with converged spectral norms."""
    torch.manual_seed(SEED)
    networks = {
        "generator": RRDBGenerator(2, share_weights=True),
        "discriminator": PatchGANDiscriminator(2),
        "heads": PatchProjectionHeads(2),
    }
    with torch.no_grad():
        for name in ("generator", "discriminator"):
            for _ in range(WARM_UP):
                networks[name](torch.zeros(1, 1, 16, 16))
    return networks


def optimizers(networks: dict[str, torch.nn.Module]) -> dict[str, torch.optim.Optimizer]:
    sides = {"generator": ("generator", "heads"), "discriminator": ("discriminator",)}
    return {
        side: torch.optim.Adam([p for name in names for p in networks[name].parameters()], 2e-4, betas=(0.5, 0.999))
        for side, names in sides.items()
    }


class Ours:
    """UnpairedTrainer, with all that an iteration of it costs."""

    def __init__(self, networks: dict[str, torch.nn.Module], batch: dict[str, torch.Tensor]) -> None:
        steps = optimizers(networks)
        self.trainer = UnpairedTrainer(
            "cpu",
            0,
            [batch],
            networks=networks,
            functions={"positions": PatchPositions()},
            phases={
                "generator": {"train": ["generator", "heads"], "optimizer": steps["generator"]},
                "discriminator": {"train": ["discriminator"], "optimizer": steps["discriminator"]},
            },
            terms=[
                {
                    "name": "adversarial",
                    "phase": "generator",
                    "loss": GANGeneratorLoss(),
                    "inputs": ["discriminator(generator(low))"],
                },
                {
                    "name": "identity",
                    "phase": "generator",
                    "weight": IDENTITY,
                    "loss": torch.nn.L1Loss(),
                    "inputs": ["generator(high)", "high"],
                },
                {
                    "name": "metric",
                    "phase": "generator",
                    "weight": METRIC,
                    "loss": PatchMetricLoss(reference=True),
                    "inputs": [
                        "heads(generator.encode(generator(low)), positions(low))",
                        "heads(generator.encode(low), positions(low))",
                    ],
                },
                {
                    "name": "tell",
                    "phase": "discriminator",
                    "loss": GANDiscriminatorLoss(),
                    "inputs": ["discriminator(high)", "discriminator(generator(low))"],
                },
            ],
        )

    def __call__(self) -> dict[str, float]:
        self.trainer.state.max_epochs += 1
        self.trainer.run()
        output = self.trainer.state.output
        return {name: float(output[name]) for name in ("adversarial", "identity", "metric", "tell")}


class Naive:
    """The same step in the order of the released code."""

    def __init__(
        self, networks: dict[str, torch.nn.Module], batch: dict[str, torch.Tensor], *, whole_maps: bool = True
    ) -> None:
        self.networks, self.batch, self.steps = networks, batch, optimizers(networks)
        self.project = self.project_maps if whole_maps else networks["heads"]
        self.positions, self.metric = PatchPositions(), PatchMetricLoss(reference=True)
        self.fool, self.tell, self.distance = GANGeneratorLoss(), GANDiscriminatorLoss(), torch.nn.L1Loss()

    def project_maps(self, taps: list[torch.Tensor], positions: torch.Tensor) -> list[torch.Tensor]:
        """Embeddings of the patches, out of the projection of whole maps by the weights of the heads."""
        heads, found = self.networks["heads"], []
        rows = torch.arange(len(positions))[:, None]
        for tap, first, second in zip(taps, heads.first, heads.second, strict=True):
            hidden = torch.relu(torch.nn.functional.conv2d(tap, first.weight[..., None, None], first.bias))
            whole = torch.nn.functional.conv2d(hidden, second.weight[..., None, None], second.bias)
            patches = whole[rows, :, positions[..., 0], positions[..., 1]]
            found.append(patches / torch.linalg.vector_norm(patches, dim=-1, keepdim=True))
        return found

    def __call__(self) -> dict[str, float]:
        generator, discriminator = self.networks["generator"], self.networks["discriminator"]
        low, high = self.batch["low"], self.batch["high"]
        positions = self.positions(low)
        fake, same = generator(low), generator(high)
        discriminator.requires_grad_(False)
        self.steps["generator"].zero_grad()
        losses = {"adversarial": self.fool(discriminator(fake)), "identity": self.distance(same, high)}
        of_fake, of_input, _ = (generator.encode(image) for image in (fake, low, same))
        losses["metric"] = self.metric(self.project(of_fake, positions), self.project(of_input, positions))
        (losses["adversarial"] + IDENTITY * losses["identity"] + METRIC * losses["metric"]).backward()
        self.steps["generator"].step()
        discriminator.requires_grad_(True)
        self.steps["discriminator"].zero_grad()
        losses["tell"] = self.tell(discriminator(high), discriminator(fake.detach()))
        losses["tell"].backward()
        self.steps["discriminator"].step()
        return {name: float(value.detach()) for name, value in losses.items()}


def measure(rounds: int) -> dict[str, Any]:
    """Seconds of each step, and losses of the first one."""
    networks = parts()
    draw = torch.Generator().manual_seed(SEED)
    batch = {name: 0.02 * torch.randn(SHAPE, generator=draw) for name in ("low", "high")}  # noise of 40 HU
    copies = [copy.deepcopy(networks) for _ in range(3)]
    sides = {
        "ours": Ours(copies[0], batch),
        RELEASED: Naive(copies[1], batch),
        "released order, patches before projection": Naive(copies[2], batch, whole_maps=False),
    }
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
    losses: dict[str, dict[str, float]] = {}
    for number in range(rounds):
        for name, step in sides.items():
            torch.manual_seed(SEED + number)  # the positions of the patches
            wall, processor = time.perf_counter(), time.process_time()
            found = step()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - processor))
            losses.setdefault(name, found)
        if number == 0:
            gradients = [
                [torch.cat([p.grad.ravel() for p in network.parameters()]) for network in own.values()]
                for own in copies[:2]
            ]
    distances = [float((ours - theirs).norm() / theirs.norm()) for ours, theirs in zip(*gradients, strict=True)]
    return {"seconds": seconds, "losses": losses, "gradients": dict(zip(networks, distances, strict=True))}


def report(found: dict[str, Any]) -> str:
    """Table of the medians, and whether the goals are met."""
    medians = {
        name: [statistics.median(column) for column in zip(*times, strict=True)]
        for name, times in found["seconds"].items()
    }
    rows = ["| step | wall s | processor s | ours is faster by |", "|---|---|---|---|"]
    for name, (wall, processor) in medians.items():
        rows.append(f"| {name} | {wall:.2f} | {processor:.2f} | {processor / medians['ours'][1]:.2f} |")
    ours, theirs = found["losses"]["ours"], found["losses"][RELEASED]
    difference = max(abs(ours[name] - theirs[name]) for name in ours)
    ratio = medians[RELEASED][1] / medians["ours"][1]
    met = ratio >= GOAL and difference <= TOLERANCE
    rows += [
        "",
        f"Goals: {GOAL} in processor time, losses equal to {TOLERANCE:.0e}: {'yes' if met else 'NO'}. Losses differ by "
        f"{difference:.1e} at most ({', '.join(f'{name} {value:.6f}' for name, value in ours.items())}), gradients by "
        f"{', '.join(f'{value:.0e} ({name})' for name, value in found['gradients'].items())} of their norm.",
    ]
    return "\n".join(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file, and all numbers to .json beside")
    parser.add_argument("--rounds", type=int, default=3, help="timed steps of each side (default 3)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(options.rounds)
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()})"
    )
    shape = "x".join(map(str, SHAPE))
    text = (
        f"A training step of the patch metric recipe at {shape}, float32, medians of {options.rounds} interleaved "
        f"steps. {machine}.\n\n{report(found)}\n"
    )
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, **found}, indent=2))


if __name__ == "__main__":
    main()
