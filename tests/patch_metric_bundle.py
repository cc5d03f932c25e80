# SPDX-License-Identifier: Apache-2.0
"""What the tests of the CT denoising bundle share: how they call it and take it apart, at a size of seconds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigParser
from monai.data import MetaTensor, decollate_batch
from monai.transforms import EnsureChannelFirstd, SaveImaged

from monai_labelfx.cli import main
from monai_labelfx.commands.bundle_folder import config_file, find_bundle
from monai_labelfx.commands.workflow import config_files, merge_configs

BUNDLE = find_bundle("patch_metric")
METHOD = "patch_metric"
CYCLES = ("cyclegan", "wavcyclegan", "gan_circle")
RECIPES = (METHOD, *CYCLES, "invertible")
WAVELET = (METHOD, "wavcyclegan", "invertible")
UNPAIRED_TERMS = {"adversarial", "discriminator"}
CYCLE_TERMS = {
    *("adversarial_high", "adversarial_low", "cycle_low", "cycle_high", "identity_high", "identity_low"),
    *("discriminator_high", "discriminator_low"),
}
TERMS = {
    METHOD: {*UNPAIRED_TERMS, "identity", "metric"},
    "cyclegan": CYCLE_TERMS,
    "wavcyclegan": CYCLE_TERMS,
    "gan_circle": {*CYCLE_TERMS, "variation", "penalty_high", "penalty_low"},
    "invertible": {*UNPAIRED_TERMS, "fidelity"},
    "noise2void": {"denoising"},
}
"""What each of them minimises."""

NETWORK: dict[str, dict[str, Any]] = {
    METHOD: {"features": 8},
    "cyclegan": {"network_def#features": 4, "network_def#blocks": 1},
    "wavcyclegan": {"network_def#features": 4, "network_def#blocks": 1},
    "gan_circle": {"network_def#features": 8, "network_def#min_features": 4, "network_def#layers": 2},
    "invertible": {"network_def#growth": 4, "network_def#blocks": 1},
    "noise2void": {"network_def#features": 4},
    "non_local_means": {"network_def#patch_distance": 2},
}
"""Narrow generators, for all workflows."""

_NARROW = {"features": [4, 8, 8], "strides": [2, 2, 1, 1]}
DISCRIMINATOR: dict[str, dict[str, Any]] = {
    METHOD: {f"discriminator_def#{name}": value for name, value in {**_NARROW, "squeeze_excitation": 2}.items()},
    **dict.fromkeys(CYCLES, {f"cycle#discriminator_def#{name}": value for name, value in _NARROW.items()}),
    "invertible": {"discriminator_def#features": [4, 8, 8]},
}
"""Narrow discriminators, for training and evaluation."""

QUICK = {
    "level": 3,
    "max_epochs": 1,
    "steps_per_epoch": 2,
    "val_interval": 1,
    "batch_size": 2,
    "patch_size": [32, 32],
    "patches": 16,
    "seed": 5,
    # phantoms with noise of 40 HU at 64 pixels
    "noise_medium": [-100, 200],
    "noise_patch": 8,
}
INFERENCE = ("level",)
"""Those of ``QUICK`` that inference knows."""


def rival(name: str) -> list[str]:
    """How to ask for a recipe on the command line."""
    return [] if name == METHOD else ["--rival", name]


def options(workflow: str, name: str = METHOD, **values: Any) -> list[str]:
    """The options of small networks and short runs, with changes; ``network_def__features`` is a nested one."""
    quick = {key: QUICK[key] for key in INFERENCE} if workflow == "inference" else QUICK
    own = NETWORK[name] | ({} if workflow == "inference" else DISCRIMINATOR.get(name, {}))
    given = {key.replace("__", "#"): value for key, value in values.items()}
    found = {**quick, **own, **given}
    return [part for key, value in found.items() for part in (f"--{key}", json.dumps(value))]


def call(workflow: str, out: Path, *arguments: Any) -> int:
    """Run a workflow of the bundle; returns the exit status."""
    return main(["run", METHOD, workflow, "--out", str(out), "--no-progress", *map(str, arguments)])


def run(workflow: str, out: Path, datalist: Path, *arguments: Any, name: str = METHOD, **values: Any) -> None:
    """Train or evaluate a recipe with small networks."""
    more = [*rival(name), *arguments, *options(workflow, name, **values)]
    assert call(workflow, out, "--datalist", datalist, *more) == 0


def predict(images: Path, out: Path, checkpoint: Path, *arguments: Any, name: str = METHOD, **values: Any) -> Path:
    """Denoise an image or a folder with small networks."""
    more = [*rival(name), *arguments, *options("inference", name, **values)]
    assert call("inference", out, "--dataset_dir", images, "--ckpt_path", checkpoint, *more) == 0
    return out


def parser_of(workflow: str, *overlays: str, preset: tuple[str, ...] = (), **values: Any) -> ConfigParser:
    """The bundle's configuration with rivals and presets laid over it, and changes, not yet run."""
    files = config_files(BUNDLE, workflow, preset, [config_file(BUNDLE, name, "rivals") for name in overlays])
    parser = ConfigParser(merge_configs(files))
    parser.update({"bundle_root": str(BUNDLE), "device": "$torch.device('cpu')"})
    parser.update({key.replace("__", "#"): value for key, value in values.items()})
    return parser


class Denoiser:
    """What inference does between a loaded image and the file of the result, with the content of the bundle."""

    def __init__(self, name: str = METHOD, *, preset: tuple[str, ...] = (), **values: Any) -> None:
        overlays = () if name == METHOD else (name,)
        changes = {"dataset#data": [], **{key: QUICK[key] for key in INFERENCE}, **NETWORK[name], **values}
        self.parser = parser_of("inference", *overlays, preset=preset, **changes)
        torch.manual_seed(0)
        self.network = self.parser.get_parsed_content("network").eval()
        self.inferer = self.parser.get_parsed_content("inferer")
        before = self.parser.get_parsed_content("preprocessing").transforms
        loaded = next(number for number, one in enumerate(before) if isinstance(one, EnsureChannelFirstd))
        self.before = before[loaded + 1 :]
        after = self.parser.get_parsed_content("postprocessing").transforms
        self.after = [one for one in after if not isinstance(one, SaveImaged)]

    def __call__(self, image: torch.Tensor) -> torch.Tensor:
        """Denoise an image of CT in HU (1, *spatial)."""
        item: dict[str, Any] = {"image": MetaTensor(image)}
        for transform in self.before:
            item = transform(item)
        kind = next((parameter.dtype for parameter in self.network.parameters()), item["image"].dtype)
        with torch.no_grad():
            (pred,) = decollate_batch(self.inferer(item["image"][None].to(kind), self.network))
        item["pred"] = pred
        for transform in self.after:
            item = transform(item)
        return item["pred"].as_subclass(torch.Tensor)

    def shake(self, amount: float = 0.05) -> Denoiser:
        """Make the weights those of some network that changes images a lot."""
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in self.network.parameters():
                parameter += amount * torch.randn_like(parameter)
            noise = 0.1 * torch.randn((4, 1, *[16] * self.parser["spatial_dims"]))
            self.network.train()
            for _ in range(20):  # norms of weights and of features get to know the new ones
                self.network(noise)
        self.network.eval()
        return self

    def load(self, checkpoint: Path) -> Denoiser:
        """Take the weights of a training."""
        self.network.load_state_dict(weights(checkpoint))
        return self


def read_json(path: Path) -> Any:
    """The content of a JSON file."""
    return json.loads(path.read_text())


def metrics(folder: Path) -> dict[str, float]:
    """What a run measured."""
    return read_json(folder / "metrics.json")


def weights(checkpoint: Path) -> dict[str, torch.Tensor]:
    """The network in a checkpoint."""
    content = torch.load(checkpoint, weights_only=True)
    return content.get("model", content)  # the best weights are alone in their file
