# SPDX-License-Identifier: Apache-2.0
"""Time of RoIAlign, beside torchvision's in 2-D and a form by grid_sample in 3-D.

    python benchmarks/detection_roi_align.py [--out FILE] [--repeats 9]

Without torchvision only ours is timed in 2-D. One thread, float32, forward alone and forward with backward to the
features. Steps are interleaved, medians taken; ratios are of processor times, which a busy machine changes little.

The form by grid_sample reads every sample of every bin of a box, and takes their mean. It has no adaptive sampling, and
its boxes must lie inside the map, as they do here.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import avg_pool3d, grid_sample

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.ops.roi_align import roi_align  # noqa: E402

try:
    from torchvision import __version__ as torchvision_version
    from torchvision.ops import roi_align as torchvision_roi_align
except ImportError:
    torchvision_version = None

SEED = 0
STRIDE = 8
SLOWER, FASTER = 3.0, 2.0  # goals: torchvision times this at most, grid_sample divided by this


class Boxes:
    """Random boxes inside an image, and the features of its map."""

    def __init__(self, channels: int, shape: tuple[int, ...], number: int, sides: tuple[float, float]) -> None:
        generator = torch.Generator().manual_seed(SEED)
        extent = torch.tensor([float(size * STRIDE) for size in shape])
        size = sides[0] + (sides[1] - sides[0]) * torch.rand(number, len(shape), generator=generator)
        size = torch.minimum(size, extent)
        low = torch.rand(number, len(shape), generator=generator) * (extent - size)
        self.boxes = torch.cat((low, low + size), 1)
        self.index = torch.zeros(number, dtype=torch.int64)
        self.features = torch.randn(1, channels, *shape, generator=generator).requires_grad_()

    def ours(self, sampling_ratio: int) -> torch.Tensor:
        how: dict[str, Any] = {"spatial_scale": 1 / STRIDE, "sampling_ratio": sampling_ratio}
        return roi_align(self.features, self.boxes, self.index, 7, **how)

    def torchvision(self, sampling_ratio: int) -> torch.Tensor:
        """Its boxes are (image, x, y, x, y), the last axis first."""
        boxes = torch.cat((self.index[:, None].float(), self.boxes[:, [1, 0, 3, 2]]), 1)
        return torchvision_roi_align(self.features, boxes, 7, 1 / STRIDE, sampling_ratio, True)

    def grid_sample(self, sampling_ratio: int) -> torch.Tensor:
        """3-D; the coordinates of grid_sample are -1 to 1 from edge to edge, the last axis first."""
        low, high = (self.boxes / STRIDE).chunk(2, 1)
        steps = (torch.arange(7 * sampling_ratio) + 0.5) / (7 * sampling_ratio)
        places = [
            (low[:, axis, None] + steps * (high - low)[:, axis, None]) * 2 / size - 1
            for axis, size in enumerate(self.features.shape[2:])
        ]
        shape = (len(low), *[len(steps)] * 3)
        views = [
            place.view(len(low), *[-1 if a == axis else 1 for a in range(3)]).expand(shape)
            for axis, place in enumerate(places)
        ]
        grid = torch.stack(views[::-1], -1)
        features = self.features.expand(len(low), *self.features.shape[1:])
        found = grid_sample(features, grid, align_corners=False, padding_mode="border")
        return avg_pool3d(found, sampling_ratio)


def timed(step: Callable[[], torch.Tensor], features: torch.Tensor, backward: bool) -> tuple[float, float]:
    """Wall and processor time in milliseconds."""
    features.grad = None
    wall, processor = time.perf_counter(), time.process_time()
    if backward:
        step().sum().backward()
    else:
        with torch.no_grad():
            step()
    return 1e3 * (time.perf_counter() - wall), 1e3 * (time.process_time() - processor)


def measure(
    title: str, data: Boxes, sampling: int, peer_name: str | None, goal: float | None, repeats: int
) -> list[dict[str, Any]]:
    """Run ours and the peer in turn, forward and with backward; medians without the first round."""
    steps = {"ours": lambda: data.ours(sampling)}
    if peer_name:
        steps["peer"] = lambda: getattr(data, peer_name)(sampling)
    rows = []
    for backward in (False, True):
        row: dict[str, Any] = {"case": title, "sampling": sampling, "backward": backward, "peer_name": peer_name}
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for _ in range(repeats + 1):
            for name, step in steps.items():
                times[name].append(timed(step, data.features, backward))
        for name, found in times.items():
            wall, processor = (statistics.median(column) for column in zip(*found[1:], strict=True))
            row[name] = {"wall": wall, "processor": processor}
        if peer_name:
            row["goal"] = goal
            row["ratio"] = row["ours"]["processor"] / row["peer"]["processor"]
            row["difference"] = difference(steps, data.features, backward)
        rows.append(row)
    print(f"  {title}, sampling {sampling}", file=sys.stderr, flush=True)
    return rows


def difference(steps: dict[str, Callable[[], torch.Tensor]], features: torch.Tensor, backward: bool) -> float:
    """Largest difference of the results, or of the gradients of a random weighted sum."""
    found = [step() for step in steps.values()]
    if backward:
        weight = torch.randn(found[0].shape, generator=torch.Generator().manual_seed(SEED))
        found = [torch.autograd.grad((weight * result).sum(), features)[0] for result in found]
    return (found[0] - found[1]).abs().max().item()


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| case | sampling | step | ours ms | peer ms | ours / peer | goal | largest difference |",
        "|---" * 8 + "|",
    ]
    for row in rows:
        cells = [row["case"], str(row["sampling"] or "adaptive"), "forward" + " + backward" * row["backward"]]
        cells += ["{wall:.0f} / {processor:.0f}".format(**row[n]) if n in row else "-" for n in ("ours", "peer")]
        if "peer" in row:
            goal = f"{row['goal']:.1f}: {'yes' if row['ratio'] <= row['goal'] else 'NO'}" if row["goal"] else "-"
            cells += [f"{row['ratio']:.2f} ({row['peer_name']})", goal, f"{row['difference']:.1e}"]
        else:
            cells += ["-"] * 3
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file, and all numbers to .json beside")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds of each row (default 9)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    peer = "torchvision" if torchvision_version else None
    image = Boxes(256, (64, 64), 512, (16, 256))
    for sampling in (2, 0):
        title = "512 boxes of 16 to 256 px, 7 x 7, features 256 x 64 x 64"
        rows += measure(title, image, sampling, peer, SLOWER, options.repeats)
    large = Boxes(256, (160, 160), 512, (56, 112))
    rows += measure("512 boxes of 56 to 112 px, 7 x 7, features 256 x 160 x 160", large, 2, peer, None, options.repeats)
    volume = Boxes(64, (32, 32, 32), 64, (16, 128))
    title = "64 boxes of 16 to 128 voxels, 7 x 7 x 7, features 64 x 32 x 32 x 32"
    rows += measure(title, volume, 2, "grid_sample", 1 / FASTER, options.repeats)
    rows += measure(title, volume, 0, None, None, options.repeats)
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"torchvision {torchvision_version or 'not installed'}, seed {SEED}"
    )
    text = (
        f"RoIAlign, stride {STRIDE}, float32, medians of {options.repeats} interleaved rounds, wall / processor time; "
        f"ratios of processor times. {machine}.\n\n{table(rows)}\n"
    )
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
