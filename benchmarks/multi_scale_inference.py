# SPDX-License-Identifier: Apache-2.0
"""Time and memory of inference at eight scales, beside a plain loop over MONAI's sliding windows.

    python benchmarks/multi_scale_inference.py [--out FILE] [--repeats 9]

Time: a picture 1x3x512x768, the eight scales of OEEM, windows of 320 with an overlap of 0.2, on one thread. The plain
loop resizes the picture by ``torch.nn.functional.interpolate``, runs ``SlidingWindowInferer(roi_size=(320, 320),
sw_batch_size=..., overlap=0.2)``, resizes the scores back, and averages their softmax; with a flip it does so for the
mirrored picture too. *trivial* gives back two channels times 1.0, so that nothing but the inference is measured;
*convolutions* are 3x3 to 16 channels and 1x1 to 2. Calls are interleaved in one process; medians are taken; ratios are
those of processor times. Where glibc gives large blocks back to the system, they cost their pages in every call, so
both are measured: its *default*, and *kept*, where the process keeps what it has had. Difference: the largest one of
probabilities to the loop.

Memory: growth of the resident high-water mark during one call at one scale, with *trivial*, in a process of its own
(Linux only), and the same relative to scale 1.
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import monai
import torch
from monai.inferers import SlidingWindowInferer
from torch.nn.functional import interpolate

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.inferers.multi_scale_inferer import PAPER_SCALES, MultiScaleInferer  # noqa: E402

SHAPE, ROI, OVERLAP, SEED, MIB = (1, 3, 512, 768), 320, 0.2, 0, 2**20
MEMORY_CASES = {
    "1x3x1024x1536, windows of 320": ((1, 3, 1024, 1536), 320),
    "1x1x96x96x96, windows of 64": ((1, 1, 96, 96, 96), 64),
}
MEMORY_SCALES = (0.75, 1.0, 2.0, 3.0)
LEAST = 1.5
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt

Network = Callable[[torch.Tensor], torch.Tensor]


def trivial(x: torch.Tensor) -> torch.Tensor:
    return x[:, :2] * 1.0


def plain_loop(
    image: torch.Tensor, network: Network, roi: int, scales: Sequence[float], flips: Sequence[int], batch: int
) -> torch.Tensor:
    size = image.shape[2:]
    mode = "bilinear" if len(size) == 2 else "trilinear"
    inferer = SlidingWindowInferer(roi_size=(roi,) * len(size), sw_batch_size=batch, overlap=OVERLAP, mode="constant")
    total = torch.zeros(())
    for scale in scales:
        scaled = interpolate(image, size=tuple(int(n * scale) for n in size), mode=mode, align_corners=False)
        for axes in [(), *[(axis + 2,) for axis in flips]]:
            scores = inferer(scaled.flip(axes) if axes else scaled, network)
            scores = scores.flip(axes) if axes else scores  # type: ignore[union-attr]
            total = total + interpolate(scores, size=size, mode=mode, align_corners=False).softmax(dim=1)
    return total / (len(scales) * (1 + len(flips)))


def ours(
    image: torch.Tensor,
    network: Network,
    roi: int,
    scales: Sequence[float],
    flips: Sequence[int],
    batch: int,
    windows: str,
) -> torch.Tensor:
    inferer = MultiScaleInferer(roi, scales, flips=flips, overlap=OVERLAP, sw_batch_size=batch, windows=windows)
    return inferer(image, network)


def methods() -> dict[str, Callable[..., torch.Tensor]]:
    return {
        "loop over SlidingWindowInferer": plain_loop,
        "ours, image": lambda *given: ours(*given, "image"),
        "ours, native": lambda *given: ours(*given, "native"),
    }


def set_allocator(keep: bool) -> None:
    """Blocks that are freed stay with the process, or (those of a MiB and more) go back to the system; glibc only."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, 2**31 - 1 if keep else MIB)


def draw(shape: Sequence[int]) -> torch.Tensor:
    return torch.rand(tuple(shape), generator=torch.Generator().manual_seed(SEED))


def measure(name: str, network: Network, flips: Sequence[int], batch: int, memory: str, repeats: int) -> dict[str, Any]:
    if memory == "kept":
        set_allocator(keep=True)
    image, calls = draw(SHAPE), methods()
    times: dict[str, list[tuple[float, float]]] = {method: [] for method in calls}
    results = {}
    for _ in range(repeats + 1):  # the first round warms up
        for method, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            results[method] = call(image, network, ROI, PAPER_SCALES, flips, batch)
            times[method].append((time.perf_counter() - wall, time.process_time() - processor))
    row: dict[str, Any] = {"network": name, "flips": len(flips), "sw_batch_size": batch, "memory": memory}
    reference = results["loop over SlidingWindowInferer"]
    for method, measured in times.items():
        wall, processor = (1e3 * statistics.median(column) for column in zip(*measured[1:], strict=True))
        difference = float((results[method] - reference).abs().max())
        row[method] = {"wall": wall, "processor": processor, "difference": difference}
    print(f"  {name}, {len(flips)} flips, sw_batch_size {batch}, {memory}", file=sys.stderr, flush=True)
    return row


def peaks(case: str, method: str) -> list[float]:
    """Peak growth of memory in MiB at each scale, in a process of its own."""
    command = [sys.executable, __file__, "--peak", case, method]
    return json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def print_peaks(case: str, method: str) -> None:
    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    set_allocator(keep=False)
    shape, roi = MEMORY_CASES[case]
    call, image = methods()[method], draw(shape)

    def network(x: torch.Tensor) -> torch.Tensor:
        return x[:, :2] * 1.0 if x.shape[1] > 1 else x.expand(-1, 2, *x.shape[2:]) * 1.0

    call(image[:, :, :64, :64], network, roi, (1.0,), (), 1)  # what is loaded at the first call
    found = []
    for scale in MEMORY_SCALES:
        before = resident("VmRSS")
        Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
        result = call(image, network, roi, (scale,), (), 1)
        found.append(resident("VmHWM") - before)
        del result
    print(json.dumps(found))


def time_table(rows: list[dict[str, Any]]) -> str:
    heads = [
        "network",
        "flips",
        "sw_batch_size",
        "memory",
        "method",
        "wall / processor ms",
        "loop's time / its",
        "difference",
    ]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        loop = row["loop over SlidingWindowInferer"]["processor"]
        for method in methods():
            cell = row[method]
            ratio = loop / cell["processor"]
            missed = method == "ours, image" and row["network"] == "trivial" and not row["flips"] and ratio < LEAST
            lines.append(
                f"| {row['network']} | {row['flips']} | {row['sw_batch_size']} | {row['memory']} | {method} "
                f"| {cell['wall']:.1f} / {cell['processor']:.1f} | {ratio:.2f}{' NO' if missed else ''} "
                f"| {cell['difference']:.1e} |"
            )
    return "\n".join(lines)


def memory_table(rows: list[dict[str, Any]]) -> str:
    heads = ["case", "method", *(f"{scale:g}x: MiB (to 1x)" for scale in MEMORY_SCALES)]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        one = row["MiB"][MEMORY_SCALES.index(1.0)]
        cells = [f"{value:.1f} ({value / one:.1f})" for value in row["MiB"]]
        lines.append(f"| {row['case']} | {row['method']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the tables to this file, and all numbers to .json beside")
    parser.add_argument("--repeats", type=int, default=9, help="timed rounds of each case (default 9)")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.set_grad_enabled(False)
    if options.peak:
        print_peaks(*options.peak)
        return
    torch.manual_seed(SEED)
    convolutions = torch.nn.Sequential(
        torch.nn.Conv2d(3, 16, 3, padding=1), torch.nn.ReLU(inplace=True), torch.nn.Conv2d(16, 2, 1)
    )
    cases: list[tuple[str, Network, tuple[int, ...], int]] = [
        ("trivial", trivial, (), 1),
        ("trivial", trivial, (), 4),
        ("trivial", trivial, (0,), 1),
        ("convolutions", convolutions, (), 1),
    ]
    times = [measure(*case, memory, options.repeats) for memory in ("default", "kept") for case in cases]
    memory = []
    if sys.platform == "linux":
        memory = [{"case": c, "method": m, "MiB": peaks(c, m)} for c in MEMORY_CASES for m in methods()]
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"MONAI {monai.__version__}, seed {SEED}"
    )
    text = (
        f"Eight scales of {'x'.join(map(str, SHAPE))}, windows of {ROI}, overlap {OVERLAP:g}; medians of "
        f"{options.repeats} interleaved rounds, ratios of processor times. Wanted: image windows at least {LEAST:g} "
        f"times as fast as the loop (trivial network, no flip), memory of native windows that does not "
        f"grow with the scale. {machine}.\n\n{time_table(times)}\n\n"
        f"Peak memory of one scale, beyond the image:\n\n{memory_table(memory)}\n"
    )
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        numbers = {"machine": machine, "times": times, "memory": memory}
        options.out.with_suffix(".json").write_text(json.dumps(numbers, indent=2))


if __name__ == "__main__":
    main()
