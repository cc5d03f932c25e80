# SPDX-License-Identifier: Apache-2.0
"""Whether a discriminator alone learns to tell low from high dose, by how many HU are one unit of its input.

    LABELFX_DATA=... python benchmarks/discriminator_units.py --out runs/discriminator_units

The default discriminator of the bundle patch_metric_denoising, on 8 crops of 64 x 64 of the high band of each domain of
``simulated_abdomen``; LSGAN, Adam 0.001. A loss of 0.25 is that of a discriminator that knows nothing. One thread.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.data import AutoReader, load_ct_domains, simulated_abdomen  # noqa: E402
from monai_labelfx.losses import GANDiscriminatorLoss  # noqa: E402
from monai_labelfx.networks import PatchGANDiscriminator  # noqa: E402
from monai_labelfx.ops import high_pass  # noqa: E402

EDGE = 90  # pixels at the border of the slices, mostly air


def high_bands(items: list[dict]) -> torch.Tensor:
    """All slices of a domain, (N, 1, X, Y), in HU."""
    volumes = [torch.as_tensor(AutoReader().get_data(item["image"])[0]) for item in items]
    slices = torch.cat([volume.movedim(-1, 0) for volume in volumes])[:, None]
    return high_pass(slices.float())[:, :, EDGE:-EDGE, EDGE:-EDGE]


def crops(slices: torch.Tensor, count: int = 8, size: int = 64) -> torch.Tensor:
    """Random crops of random slices."""
    number = torch.randint(len(slices), (count,)).tolist()
    x, y = (torch.randint(extent - size + 1, (count,)).tolist() for extent in slices.shape[2:])
    return torch.stack([slices[n, :, i : i + size, j : j + size] for n, i, j in zip(number, x, y, strict=True)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800, help="a multiple of 4")
    options = parser.parse_args()
    torch.set_num_threads(1)
    datalist = options.out / "datalist.json"
    if not datalist.is_file():
        simulated_abdomen(options.out, Path(os.environ["LABELFX_DATA"]))
    domains = load_ct_domains(datalist)
    low, high = (high_bands(domains[f"training_{name}"]) for name in ("low", "high"))
    loss = GANDiscriminatorLoss()
    quarter = options.steps // 4
    print(
        "| HU per unit | " + " | ".join(f"loss, steps {n * quarter + 1}-{(n + 1) * quarter}" for n in range(4)) + " |"
    )
    print("|---|---|---|---|---|")
    for unit in (2000.0, 200.0, 50.0):
        torch.manual_seed(0)
        network = PatchGANDiscriminator(2)
        optimizer = torch.optim.Adam(network.parameters(), 0.001, betas=(0.5, 0.999))
        values = []
        for _ in range(options.steps):
            optimizer.zero_grad()
            value = loss(network(crops(high) / unit), network(crops(low) / unit))
            value.backward()
            optimizer.step()
            values.append(value.item())
        means = torch.tensor(values).view(4, -1).mean(dim=1).tolist()
        print(f"| {unit:g} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |", flush=True)


if __name__ == "__main__":
    main()
