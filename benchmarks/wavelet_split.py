# SPDX-License-Identifier: Apache-2.0
"""Speed, memory and accuracy of the wavelet high-pass beside PyWavelets, ptwt and a plain copy.

    python benchmarks/wavelet_split.py [--out FILE] [--repeats 15]

PyWavelets is a requirement of this project; ptwt is none, and without it its column stays empty. An environment that
has both is made outside the repository and run with the repository on its path::

    python -m venv ENV
    ENV/bin/pip install torch==2.13.0 monai==1.6.1 ptwt==1.0.1
    PYTHONPATH=REPOSITORY ENV/bin/python benchmarks/wavelet_split.py

Each method makes the high band (the peers by a reconstruction without the coarsest approximation) of float32 noise of
deviation 300, db3, symmetric, on one thread. *both bands* is ours with the low band too. Calls are interleaved in one
process, so that caches are as cold for each; medians are taken; ratios are those of processor times, which a busy
machine hardly changes. What a large result costs depends on whether its memory is new or was given back by the call
before, so both are measured (glibc): *fresh*, as where results are kept, and *warm*. Error: the largest difference to
PyWavelets in float64. Memory: growth of the resident high-water mark during one call in a fresh process, beyond the
results (Linux only).
"""

from __future__ import annotations

import argparse
import ctypes
import datetime
import importlib.util
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pywt
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from monai_labelfx.ops.wavelet import high_pass, high_pass_split  # noqa: E402

CASES = {"8x1x512x512": ((8, 1, 512, 512), 6), "1x1x64x256x256": ((1, 1, 64, 256, 256), 3)}
WAVELET, MODE, DEVIATION, SEED, MIB = "db3", "symmetric", 300.0, 0, 2**20
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
LEAST_OF_PYWAVELETS, LEAST_OF_PTWT, MOST_OF_CLONE, MOST_ERROR = 8.0, 15.0, 6.0, 2e-4


def by_pywavelets(x: torch.Tensor, level: int) -> torch.Tensor:
    if x.ndim == 4:
        coefficients = pywt.wavedec2(x.numpy(), WAVELET, mode=MODE, level=level, axes=(-2, -1))
        coefficients[0] = np.zeros_like(coefficients[0])
        return torch.from_numpy(pywt.waverec2(coefficients, WAVELET, mode=MODE, axes=(-2, -1)))
    coefficients = pywt.wavedecn(x.numpy(), WAVELET, mode=MODE, level=level, axes=(-3, -2, -1))
    coefficients[0] = np.zeros_like(coefficients[0])
    return torch.from_numpy(pywt.waverecn(coefficients, WAVELET, mode=MODE, axes=(-3, -2, -1)))


def by_ptwt(x: torch.Tensor, level: int) -> torch.Tensor:
    import ptwt

    to, back = (ptwt.wavedec2, ptwt.waverec2) if x.ndim == 4 else (ptwt.wavedec3, ptwt.waverec3)
    coarsest, *details = to(x, WAVELET, mode=MODE, level=level)
    return back((torch.zeros_like(coarsest), *details), WAVELET)


def methods() -> dict[str, Callable[[torch.Tensor, int], Any]]:
    """Name -> what is timed, called with an image and a level."""
    found: dict[str, Callable[[torch.Tensor, int], Any]] = {
        "clone": lambda x, level: x.clone(),
        "ours": lambda x, level: high_pass(x, wavelet=WAVELET, level=level, mode=MODE),
        "both bands": lambda x, level: high_pass_split(x, wavelet=WAVELET, level=level, mode=MODE),
        "PyWavelets": by_pywavelets,
    }
    if importlib.util.find_spec("ptwt") is not None:
        found["ptwt"] = by_ptwt
    return found


def set_allocator(memory: str) -> None:
    """Large blocks are new pages in every call ("fresh"), or stay with the process when they are freed ("warm")."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
        libc.mallopt(M_MMAP_THRESHOLD, MIB if memory == "fresh" else 32 * MIB)


def noise(shape: tuple[int, ...]) -> torch.Tensor:
    return DEVIATION * torch.randn(shape, generator=torch.Generator().manual_seed(SEED))


def measure(case: str, memory: str, repeats: int) -> dict[str, Any]:
    shape, level = CASES[case]
    set_allocator(memory)
    x = noise(shape)
    calls = methods()
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for _ in range(repeats + 1):  # the first round warms up
        for name, call in calls.items():
            wall, processor = time.perf_counter(), time.process_time()
            result = call(x, level)
            times[name].append((time.perf_counter() - wall, time.process_time() - processor))
            del result
    reference = by_pywavelets(x.double(), level)
    row: dict[str, Any] = {"case": case, "memory": memory, "level": level, "MiB": x.numel() * x.element_size() / MIB}
    for name, measured in times.items():
        wall, processor = (1e3 * statistics.median(column) for column in zip(*measured[1:], strict=True))
        row[name] = {"wall": wall, "processor": processor}
        if name != "clone":
            result = calls[name](x, level)
            high = result[0] if isinstance(result, tuple) else result
            row[name]["error"] = float((high[tuple(map(slice, shape))] - reference).abs().max())
        if sys.platform == "linux" and memory == "fresh":
            row[name]["extra"] = peak_mib(case, name) - row["MiB"] * (2 if name == "both bands" else 1)
    print(f"  {case}, {memory}", file=sys.stderr, flush=True)
    return row


def peak_mib(case: str, name: str) -> float:
    """Peak growth of memory in one call, in a process of its own."""
    command = [sys.executable, __file__, "--peak", case, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(case: str, name: str) -> None:
    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    set_allocator("fresh")
    shape, level = CASES[case]
    call = methods()[name]
    call(noise((1, *shape[1:])), level)  # what is loaded at the first call, and the matrices, which stay
    x = noise(shape)
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    result = call(x, level)
    print(resident("VmHWM") - before)
    del result


def table(rows: list[dict[str, Any]]) -> str:
    heads = ["case", "memory", "method", "wall / processor ms", "its processor time / ours", "error HU", "extra MiB"]
    lines = [f"| {' | '.join(heads)} |", "|---" * len(heads) + "|"]
    for row in rows:
        own = row["ours"]["processor"]
        for name in ("ours", "both bands", "clone", "PyWavelets", "ptwt"):
            if name not in row:
                continue
            cell = row[name]
            ratio = cell["processor"] / own
            met = {
                "clone": ratio * MOST_OF_CLONE >= 1,
                "PyWavelets": ratio >= LEAST_OF_PYWAVELETS,
                "ptwt": ratio >= LEAST_OF_PTWT,
            }.get(name, True)
            extra = f"{cell['extra']:.1f}" if "extra" in cell else "-"
            error = f"{cell['error']:.1e}" if "error" in cell else "-"
            if name in ("ours", "both bands") and cell["error"] > MOST_ERROR:
                error += " NO"
            lines.append(
                f"| {row['case']}, level {row['level']} ({row['MiB']:.0f} MiB) | {row['memory']} | {name} "
                f"| {cell['wall']:.2f} / {cell['processor']:.2f} | {ratio:.2f}{'' if met else ' NO'} | {error} "
                f"| {extra} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="also write the table to this file, and all numbers to .json beside")
    parser.add_argument("--repeats", type=int, default=15, help="timed rounds of each case (default 15)")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak:
        print_peak(*options.peak)
        return
    rows = [measure(case, memory, options.repeats) for memory in ("fresh", "warm") for case in CASES]
    peer = "ptwt is not installed"
    if importlib.util.find_spec("ptwt") is not None:
        from importlib.metadata import version

        peer = f"ptwt {version('ptwt')}"
    machine = (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), "
        f"PyWavelets {pywt.__version__}, {peer}, seed {SEED}"
    )
    text = (
        f"High band of float32 noise (deviation {DEVIATION:g}), {WAVELET}, {MODE}; medians of {options.repeats} "
        f"interleaved rounds, ratios of processor times. Wanted: PyWavelets at least {LEAST_OF_PYWAVELETS:g}, ptwt at "
        f"least {LEAST_OF_PTWT:g}, clone at least 1/{MOST_OF_CLONE:g} = {1 / MOST_OF_CLONE:.2f} times ours, error at "
        f"most {MOST_ERROR:g} HU, no memory beyond the result but thin buffers. {machine}.\n\n{table(rows)}\n"
    )
    print(text, end="")
    if options.out:
        options.out.write_text(text)
        options.out.with_suffix(".json").write_text(json.dumps({"machine": machine, "rows": rows}, indent=2))


if __name__ == "__main__":
    main()
