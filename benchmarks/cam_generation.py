# SPDX-License-Identifier: Apache-2.0
"""Class activation maps of a picture: the many crops of OEEM's authors beside our passes over the whole picture.

    python benchmarks/cam_generation.py [--out FILE] [--repeats 3] [--patches 13]

The authors' way, written anew from its description: a picture of 522x775 pixels (the size of GlaS) is cut into patches
of 112 every 56 pixels, 117 of them; each patch is resized by 1, 1.25, 1.5, 1.75 and 2 and cut into crops of 112 every
56 pixels, 27 in all; each crop is resized to 224 and run, its map resized to 112, crops averaged, and the result
resized to the patch. Patches are averaged here as scores (the authors average labels). That makes 3159 forwards.

Ours: ``MultiScaleInferer(roi_size, (1, 1.25, 1.5, 1.75, 2), zoom=2, activation=None)`` over the whole picture, in one
window (-1), or in windows of 512 with an overlap of 0.125.

*Pixels* are those the network is given, and always counted. *Time* is that of one thread, the median of interleaved
rounds; the crops of some of the patches are timed (``--patches``) and multiplied. *Difference* is the largest one at
one scale, in units of the standard deviation of the map, where all crops and windows that cover a pixel end so far from
it that a network of cells of 4x4 pixels sees the same in both ways; it is taken from a picture of 560x784, in which all
of them lie on one grid of cells. The authors resize pictures and maps twice, by the scale and by two, and we once: so
*resized once* compares with crops that are too, at all scales, and *twice* with theirs, at the scales above 1.
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
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from torch.nn.functional import avg_pool2d, interpolate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.inferers.multi_scale_inferer import MultiScaleInferer  # noqa: E402
from monai_labelfx.networks.cam_network import CAMNetwork  # noqa: E402
from monai_labelfx.networks.resnet_backbone import ResNetBackbone  # noqa: E402
from monai_labelfx.ops.patch_grid import patch_grid  # noqa: E402

SIZE, ON_GRID, PATCH, STRIDE, INPUT, CLASSES, SEED = (522, 775), (560, 784), 112, 56, 224, 2, 0
SCALES = (1.0, 1.25, 1.5, 1.75, 2.0)
WINDOWS = {"ours, whole": -1, "ours, windows of 512": 512}
CELL, OVERLAP, LEAST, MOST = 4, 0.125, 5.0, 1e-4
KINDS = (", resized once", ", twice")
Network = Callable[[torch.Tensor], torch.Tensor]


class Counted:
    """A network that counts what it is given."""

    def __init__(self, network: Network) -> None:
        self.network, self.pixels, self.forwards = network, 0, 0

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        self.pixels += x.shape[0] * x.shape[2:].numel()
        self.forwards += x.shape[0]
        return self.network(x)


def resize(x: torch.Tensor, size: Sequence[int]) -> torch.Tensor:
    return interpolate(x, size=tuple(size), mode="bilinear", align_corners=False)


def crops_of(size: int, crop: int = PATCH) -> list[tuple[slice, slice]]:
    corners = patch_grid((size, size), crop, crop // 2).tolist()
    return [(slice(a, a + crop), slice(b, b + crop)) for a, b in corners]


def by_crops(
    image: torch.Tensor, network: Network, scales: Sequence[float], corners: torch.Tensor, once: bool = False
) -> torch.Tensor:
    """(1, K, *spatial) the mean scores of the patches at some corners; nan where there is none."""
    total, count = torch.zeros(1, CLASSES, *image.shape[2:]), torch.zeros(image.shape[2:])
    side = INPUT if once else PATCH  # of crops before they are resized to INPUT
    for a, b in corners.tolist():
        place = (slice(a, a + PATCH), slice(b, b + PATCH))
        for scale in scales:
            size = (int(side * scale),) * 2
            scaled, sums, hits = resize(image[:, :, *place], size), torch.zeros(1, CLASSES, *size), torch.zeros(size)
            for crop in crops_of(size[0], side):
                sums[:, :, *crop] += resize(network(resize(scaled[:, :, *crop], (INPUT, INPUT))), (side, side))
                hits[crop] += 1
            total[:, :, *place] += resize(sums / hits, (PATCH, PATCH)) / len(scales)
        count[place] += 1
    return total / count


def by_passes(image: torch.Tensor, network: Network, scales: Sequence[float], roi: int) -> torch.Tensor:
    return MultiScaleInferer(roi, scales, zoom=INPUT / PATCH, overlap=OVERLAP, activation=None)(image, network)


def inside(size: Sequence[int], scale: float) -> torch.Tensor:
    """Pixels that no crop, and no window of ours, begins or ends near to."""
    margin = CELL * 1.5 * PATCH / (INPUT * scale) + 2  # a cell and a half to interpolate maps, and the picture
    ends = {end / scale for rows, _ in crops_of(int(PATCH * scale)) for end in (rows.start, rows.stop)}
    kept = []
    for length in size:
        lines = [start + end for start in patch_grid((length,), PATCH, STRIDE).flatten().tolist() for end in ends]
        factor = scale * INPUT / PATCH
        resized = int(length * factor + 0.5)
        for roi in WINDOWS.values():
            window = min(roi, resized) if roi > 0 else resized
            starts = patch_grid((resized,), window, int(window * (1 - OVERLAP))).flatten().tolist()
            lines += [end / factor for start in starts for end in (start, start + window)]
        at = torch.arange(length) + 0.5
        kept.append(((at[:, None] - torch.tensor(lines)).abs() > margin).all(dim=1))
    return kept[0][:, None] & kept[1]


def picture(shape: Sequence[int]) -> torch.Tensor:
    """Smooth noise of several sizes in three colours."""
    generator = torch.Generator().manual_seed(SEED)
    parts = []
    for size in (3, 9, 27):
        noise = torch.rand(1, 3, *(n + size - 1 for n in shape), generator=generator)
        parts.append((avg_pool2d(noise, size, stride=1) - 0.5) * size)
    return torch.stack(parts).sum(0)


def small_network() -> torch.nn.Module:
    """Cells of 4x4 voxels that see nothing beyond themselves: the grids of all scales fall onto each other."""
    return torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, CELL, stride=CELL), torch.nn.ReLU(), torch.nn.Conv2d(16, CLASSES, 1)
    )


def differences(network: Network) -> dict[str, list[float]]:
    """For each way of ours the difference at each scale, and "compared", the share of the picture it is taken over."""
    image, corners = picture(ON_GRID), patch_grid(ON_GRID, PATCH, STRIDE)
    found: dict[str, list[float]] = {name: [] for name in ("compared", *(f"{m}{k}" for m in WINDOWS for k in KINDS))}
    for scale in SCALES:
        mask = inside(ON_GRID, scale)
        found["compared"].append(float(mask.double().mean()))
        passes = {method: by_passes(image, network, (scale,), roi) for method, roi in WINDOWS.items()}
        for kind in KINDS:
            crops = by_crops(image, network, (scale,), corners, once=kind == KINDS[0])
            for method, ours in passes.items():
                error = (ours - crops)[..., mask].abs().max() / crops[..., mask].std()
                found[f"{method}{kind}"].append(float(error))
    return found


def measure(name: str, network: Network, image: torch.Tensor, patches: int, repeats: int) -> dict[str, Any]:
    corners = patch_grid(SIZE, PATCH, STRIDE)
    timed = corners[:: max(1, len(corners) // patches)]
    calls: dict[str, Callable[[Network], torch.Tensor]] = {
        "authors' crops": lambda run: by_crops(image, run, SCALES, timed),
        **{method: lambda run, roi=roi: by_passes(image, run, SCALES, roi) for method, roi in WINDOWS.items()},
    }
    times: dict[str, list[float]] = {method: [] for method in calls}
    row: dict[str, Any] = {"network": name, "timed patches": len(timed), "patches": len(corners)}
    for _ in range(repeats + 1):  # the first round warms up
        for method, call in calls.items():
            counted, start = Counted(network), time.process_time()
            call(counted)
            times[method].append(time.process_time() - start)
            factor = len(corners) / len(timed) if method == "authors' crops" else 1
            row[method] = {"pixels": counted.pixels * factor, "forwards": round(counted.forwards * factor)}
            row[method]["seconds"] = statistics.median(times[method][1:] or times[method]) * factor
    print(f"  {name}", file=sys.stderr, flush=True)
    return row


def table(rows: list[dict[str, Any]], errors: dict[str, list[float]]) -> str:
    heads = [
        "network",
        "method",
        "forwards",
        "Mpx",
        "fewer",
        "s",
        "faster",
        "difference, resized once",
        "twice",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        base = row["authors' crops"]
        for method in ("authors' crops", *WINDOWS):
            cell = row[method]
            fewer, faster = base["pixels"] / cell["pixels"], base["seconds"] / cell["seconds"]
            missed = " NO" if method != "authors' crops" and fewer < LEAST else ""
            once = twice = "-"
            if row is rows[0] and method in WINDOWS:
                worst, other = (max(errors[method + kind][start:]) for start, kind in enumerate(KINDS))
                once, twice = f"{worst:.1e}{' NO' if worst > MOST else ''}", f"{other:.1e}"
            lines.append(
                f"| {row['network']} | {method} | {cell['forwards']} | {cell['pixels'] / 1e6:.1f} "
                f"| {fewer:.1f}{missed} | {cell['seconds']:.2f} | {faster:.1f} | {once} | {twice} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file, and all numbers to .json beside")
    parser.add_argument("--repeats", type=int, default=3, help="timed rounds (default 3)")
    parser.add_argument("--patches", type=int, default=13, help="patches whose crops are timed, of 117 (default 13)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    torch.manual_seed(SEED)
    image, small = picture(SIZE), small_network().eval()
    residual = CAMNetwork(ResNetBackbone(2, 3, depth=10, features=8), CLASSES).eval()
    rows = [
        measure("cells of 4x4", small, image, options.patches, options.repeats),
        measure("CAMNetwork, ResNet-10 of width 8", residual.cam, image, options.patches, options.repeats),
    ]
    errors = differences(small)
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"MONAI {monai.__version__}, seed {SEED}"
    )
    text = (
        f"Class activation maps of {SIZE[0]}x{SIZE[1]} at {len(SCALES)} scales and zoom {INPUT // PATCH}; processor "
        f"times, medians of {options.repeats} interleaved rounds, crops of {rows[0]['timed patches']} of "
        f"{rows[0]['patches']} patches timed. Difference in standard deviations of the map, where windows agree "
        f"({errors['compared'][0]:.0%} of the picture at scale 1, {min(errors['compared']):.0%} or more at others). "
        f"Wanted: at least {LEAST:g} times fewer pixels, difference to crops resized once at most {MOST:g}. "
        f"{machine}.\n\n{table(rows, errors)}\n"
    )
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        numbers = {"machine": machine, "rows": rows, "differences": errors}
        options.out.with_suffix(".json").write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
