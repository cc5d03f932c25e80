# SPDX-License-Identifier: Apache-2.0
"""What the README shows runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from monai.data import DataLoader, Dataset
from monai.engines import SupervisedTrainer
from samples import write_dataset

from monai_labelfx.data import load_datalist

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()


def test_the_pipeline_of_the_readme_trains(tmp_path):
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert len([line for line in code.splitlines() if line.strip()]) <= 13
    names: dict = {}
    exec(compile(code, "README.md", "exec"), names)
    data = load_datalist(write_dataset(tmp_path, "nifti", (16, 16, 16), counts=(4, 1, 1), labelled=2))["training"]
    network = names["network"]
    before = [p.detach().clone() for p in network.parameters()]
    trainer = SupervisedTrainer(
        device=torch.device("cpu"),
        max_epochs=1,
        train_data_loader=DataLoader(Dataset(data, names["transform"]), batch_size=2),
        optimizer=torch.optim.Adam(network.parameters()),
        decollate=False,
        **names["parts"],
    )
    trainer.run()
    assert torch.isfinite(torch.as_tensor(trainer.state.output["loss"]))
    assert any(not torch.equal(a, b) for a, b in zip(before, network.parameters(), strict=True))


@pytest.mark.parametrize("target", re.findall(r"\]\(([^)#:]+)\)", README))
def test_links_lead_somewhere(target):
    assert (ROOT / target).exists(), target


@pytest.mark.parametrize("command", sorted(set(re.findall(r"^make ([a-z-]+)", README, re.MULTILINE))))
def test_commands_exist(command):
    assert re.search(rf"^{command}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
