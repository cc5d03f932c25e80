# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of blind-spot masking beside a plain copy of the batch and, where installed, CAREamics.

    python benchmarks/masking.py [--careamics-python PATH] [--out FILE]

All operations run interleaved in one process on one thread, so that a busy machine slows all of them alike. Memory is
the growth of the resident high-water mark during one call in a fresh process, results included (Linux only).

CAREamics 0.3.5 does not install beside torch 2.13 in one step; an environment of its own that works is::

    pip install torch==2.13.0 "lightning<=2.6.6" "torchmetrics<1.9" "pydantic<=2.14.1" "bioimageio-core<=0.11.0" \
        "numpy<=2.4.6" "scikit-image<=0.26.0" "tifffile<=2026.3.3" "zarr<4" "matplotlib<=3.11.2" psutil pyyaml pillow
    pip install --no-deps careamics==0.3.5 microssim
"""

from __future__ import annotations

import argparse
import datetime
import importlib.util
import os
import platform
import statistics
import subprocess
import sys
import time
import types
from collections.abc import Callable
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
SHAPES = {"16x1x128x128": (16, 1, 128, 128), "2x1x64x128x128": (2, 1, 64, 128, 128)}
STRATEGIES = ("uniform", "median")
FRACTION = 0.002
SEED = 42  # CAREamics wants one above 0
MIB = 2**20


def import_careamics() -> tuple[type, type]:
    """CAREamics' masking class and its configuration.

    No torchvision matches both this torch and CAREamics, and masking does not use it: empty modules stand in for it,
    after torchmetrics has seen that it is absent.
    """
    import torchmetrics  # noqa: F401

    if "torchvision" not in sys.modules and importlib.util.find_spec("torchvision") is None:
        names = ("torchvision", "torchvision.transforms", "torchvision.transforms.functional")
        empty = {name: types.ModuleType(name) for name in names}
        empty[names[0]].__version__ = "0"  # type: ignore[attr-defined]
        empty[names[0]].transforms = empty[names[1]]  # type: ignore[attr-defined]
        empty[names[1]].functional = empty[names[2]]  # type: ignore[attr-defined]
        sys.modules.update(empty)
    from careamics.config.algorithms.n2v_manipulation import N2VManipulateConfig
    from careamics.lightning.modules.n2v_utils import N2VManipulate

    return N2VManipulate, N2VManipulateConfig


def operations(strategy: str) -> dict[str, Callable[[torch.Tensor], object]]:
    """Name -> what is timed, called with a batch."""
    from monai_labelfx.ops import blind_spot_mask

    generator = torch.Generator().manual_seed(SEED)
    found: dict[str, Callable[[torch.Tensor], object]] = {
        "clone": torch.clone,
        "ours": lambda images: blind_spot_mask(images, FRACTION, strategy, generator=generator),
    }
    if importlib.util.find_spec("careamics") is not None:
        manipulate, config = import_careamics()
        found["CAREamics"] = manipulate(
            config(strategy=strategy, masked_pixel_percentage=100 * FRACTION, seed=SEED), device="cpu"
        )
    return found


def milliseconds(calls: dict[str, Callable], images: torch.Tensor, seconds: float) -> dict[str, list[float]]:
    """Wall times of interleaved calls, for about ``seconds`` and five rounds at least."""
    for call in calls.values():
        call(images)
    times: dict[str, list[float]] = {name: [] for name in calls}
    end = time.perf_counter() + seconds
    while time.perf_counter() < end or len(times["clone"]) < 5:
        for name, call in calls.items():
            start = time.perf_counter()
            call(images)
            times[name].append(1e3 * (time.perf_counter() - start))
    return times


def peak_mib(shape: str, strategy: str, name: str) -> float:
    """Peak extra memory of one call, in a process of its own."""
    command = [sys.executable, __file__, "--peak", shape, strategy, name]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()[-1])


def print_peak(shape: str, strategy: str, name: str) -> None:
    def resident(field: str) -> float:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024

    call = operations(strategy)[name]
    call(torch.randn(2, 1, *(16 for _ in SHAPES[shape][2:])))  # loads what is loaded at the first call
    images = torch.randn(SHAPES[shape])
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    result = call(images)
    print(resident("VmHWM") - before)
    del result


def table(seconds: float) -> str:
    rows = [
        "| batch | strategy | clone ms | ours ms | CAREamics ms | ours / clone | CAREamics / ours "
        "| ours peak MiB | CAREamics peak MiB |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for shape, strategy in ((shape, strategy) for shape in SHAPES for strategy in STRATEGIES):
        images = torch.randn(SHAPES[shape], generator=torch.Generator().manual_seed(SEED))
        times = milliseconds(operations(strategy), images, seconds)
        best = {name: min(values) for name, values in times.items()}
        cells = {name: f"{best[name]:.3f} / {statistics.median(values):.3f}" for name, values in times.items()}
        peaks = {name: peak_mib(shape, strategy, name) for name in times} if sys.platform == "linux" else {}
        ratio = f"{best['CAREamics'] / best['ours']:.2f}" if "CAREamics" in best else "-"
        size = images.numel() * images.element_size() / MIB
        memory = [f"{peaks[name]:.1f}" if name in peaks else "-" for name in ("ours", "CAREamics")]
        rows.append(
            f"| {shape} ({size:.0f} MiB) | {strategy} | {cells['clone']} | {cells['ours']} "
            f"| {cells.get('CAREamics', '-')} | {best['ours'] / best['clone']:.1f} | {ratio} "
            f"| {memory[0]} | {memory[1]} |"
        )
    return "\n".join(rows)


def report(seconds: float) -> str:
    peer = "CAREamics is not installed"
    if importlib.util.find_spec("careamics") is not None:
        from importlib.metadata import version

        peer = f"CAREamics {version('careamics')}"
    return (
        f"Blind-spot masking, {100 * FRACTION} % of the voxels, window 11, float32; min / median wall time of "
        f"interleaved calls; ratios of minima, since other load only adds time; peak: resident growth during one call "
        f"in a fresh process, results included. "
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, torch {torch.__version__} ({torch.backends.cpu.get_cpu_capability()}), {peer}, "
        f"seed {SEED}.\n\n{table(seconds)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--careamics-python", type=Path, help="interpreter with CAREamics: run everything there")
    parser.add_argument("--out", type=Path, help="also write the table to this file")
    parser.add_argument("--seconds", type=float, default=8, help="time per row (default 8)")
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)
    if options.peak:
        print_peak(*options.peak)
        return
    if options.careamics_python:
        command = [str(options.careamics_python), __file__, "--seconds", str(options.seconds)]
        text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        text = text[text.index("Blind-spot masking") :]
    else:
        text = report(options.seconds)
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
