# SPDX-License-Identifier: Apache-2.0
"""Speed and memory of DICOM reading and writing, ours beside MONAI's readers and highdicom.

    python benchmarks/dicom_io.py [--itk-python PATH] [--out FILE]

One synthetic CT (smooth structures and noise, 16 bit) in four encodings. All readers are called in turn, on one thread
and with warm file caches; ITKReader waits in a process of its own (the interpreter --itk-python, an environment with
itk that sees the packages of this one). Ratios are those of processor times, which a busy machine hardly changes; where
nothing else runs they are the wall times. What each reader returns is compared with the truth. Peak memory is the
growth of the resident high-water mark during one call in a fresh process, results included (Linux only).
"""

from __future__ import annotations

import argparse
import datetime
import functools
import importlib.util
import logging
import os
import platform
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

OURS = "monai_labelfx.data.DicomSeriesReader"
DERIVED = "monai_labelfx.data.DicomDerivedSeriesWriter"
SEG_READER = "monai_labelfx.data.DicomSegReader"
READERS = ("ours", "PydicomReader", "ITKReader", "highdicom")
SEED = 0
MIB = 2**20
SERIES = ("uncompressed", "Enhanced multi-frame", "RLE", "JPEG-LS")


def volume(slices: int, size: int) -> np.ndarray:
    """Whole HU values (x, y, z): smooth structures and noise of sigma 20."""
    generator = np.random.default_rng(SEED)
    x, y = np.meshgrid(*[np.linspace(0, 3 * np.pi, size, dtype=np.float32)] * 2, indexing="ij")
    smooth = 400 * np.sin(x) * np.cos(1.3 * y)
    array = np.empty((size, size, slices), np.float32)
    for number in range(slices):
        noise = generator.standard_normal((size, size), np.float32)
        array[:, :, number] = np.rint(smooth * np.cos(0.05 * number) + 20 * noise)
    return array


def write(folder: Path, kind: str, array: np.ndarray) -> Path:
    """One encoding of the series; what to hand to a reader."""
    from dicom_samples import enhanced, save, series_slices
    from pydicom.uid import JPEGLSLossless, RLELossless

    if kind == "Enhanced multi-frame":
        return save(folder, [enhanced(array)]) / "0000.dcm"
    slices = series_slices(array)
    for image in slices if kind in ("RLE", "JPEG-LS") else ():
        image.compress(RLELossless if kind == "RLE" else JPEGLSLossless)
    return save(folder, slices)


@functools.cache
def loader(reader: str) -> Callable:
    from monai.transforms import LoadImage

    return LoadImage(reader)


def read(reader: str, source: Path) -> np.ndarray | torch.Tensor:
    """The image as (x, y, z), float32, in this order in memory too."""
    if reader == "highdicom":
        return read_with_highdicom(source)
    return loader(OURS if reader == "ours" else reader)(source)


def read_with_highdicom(source: Path) -> np.ndarray:
    import highdicom
    from pydicom import dcmread

    if source.is_dir():
        found = highdicom.get_volume_from_series([dcmread(path) for path in source.iterdir()], dtype=np.float32)
    else:
        found = highdicom.imread(source).get_volume(dtype=np.float32)
    return np.ascontiguousarray(found.array.transpose(2, 1, 0))


def verdict(image: np.ndarray | torch.Tensor, truth: np.ndarray) -> str:
    """An empty text where all values are right, z flipped or not."""
    array = np.asarray(image)
    if array.shape != truth.shape:
        return f"wrong shape {'x'.join(map(str, array.shape))}"
    return "" if any(np.array_equal(array[:, :, ::step], truth) for step in (1, -1)) else "wrong values"


class Reading:
    """A reader that answers how long one read takes; ``python`` is the interpreter of a process of its own."""

    def __init__(self, reader: str, source: Path, truth: np.ndarray, python: Path | None = None) -> None:
        self.reader, self.source, self.process = reader, source, None
        if python:
            environment = {**os.environ, "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
            command = [str(python), __file__, "--serve", reader, str(source), *map(str, truth.shape[1:])]
            pipe = subprocess.PIPE
            self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment)
            self.verdict = self._answer()
        else:
            self.verdict = verdict(read(reader, source), truth)

    def _answer(self) -> str:
        return next(line for line in self.process.stdout if line.startswith("answer:"))[7:].strip()

    def seconds(self) -> tuple[float, ...]:
        if self.process:
            print("read", file=self.process.stdin, flush=True)
            return tuple(map(float, self._answer().split()))
        return timed(lambda: read(self.reader, self.source))

    def close(self) -> None:
        if self.process:
            self.process.communicate("")


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Wall and processor seconds."""
    wall, processor = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - wall, time.process_time() - processor


def minima(times: Iterable[tuple[float, ...]], slices: int) -> tuple[float, ...]:
    """Wall and processor time in ms per slice."""
    return tuple(1e3 * min(column) / slices for column in zip(*times, strict=True))


def serve(reader: str, source: Path, size: int, slices: int) -> None:
    """Answer each line on standard input with the seconds of one read."""
    print("answer:", verdict(read(reader, source), volume(slices, size)), flush=True)
    for _ in sys.stdin:
        print("answer:", *timed(lambda: read(reader, source)), flush=True)


def peers(itk_python: Path | None) -> dict[str, Path | None]:
    """The readers that can run here, each with its interpreter (None: this process)."""
    other = None if importlib.util.find_spec("itk") else itk_python
    runs = importlib.util.find_spec("itk") or itk_python
    return {name: other if name == "ITKReader" else None for name in READERS if runs or name != "ITKReader"}


def reading_table(options: argparse.Namespace) -> str:
    others = READERS[1:]
    titles = ["series", *(f"{name} ms" for name in READERS), *(f"{name} / ours" for name in others)]
    rows = [f"| {' | '.join(titles)} |", "|---" * len(titles) + "|"]
    truth = volume(options.slices, options.size)
    for kind in SERIES:
        with tempfile.TemporaryDirectory() as folder:
            source = write(Path(folder, "series"), kind, truth)
            calls = {name: Reading(name, source, truth, python) for name, python in peers(options.itk_python).items()}
            times: dict[str, list[tuple[float, ...]]] = {name: [] for name in calls}
            for _ in range(options.rounds):
                for name, call in calls.items():
                    times[name].append(call.seconds())
            for call in calls.values():
                call.close()
        best = {name: minima(values, options.slices) for name, values in times.items()}
        cells = ["{:.2f} / {:.2f}".format(*best[n]) if n in best else "-" for n in READERS]
        wrong = {name: call.verdict for name, call in calls.items() if call.verdict}
        cells = [f"{cell} ({wrong[n]})" if n in wrong else cell for n, cell in zip(READERS, cells, strict=True)]
        ratios = [f"{best[n][1] / best['ours'][1]:.2f}" if n in best and n not in wrong else "-" for n in others]
        rows.append(f"| {kind} | {' | '.join([*cells, *ratios])} |")
    return "\n".join(rows)


def resident(field: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 1024


def print_peak(reader: str, small: Path, source: Path) -> None:
    read(reader, small)  # loads what is loaded at the first call
    Path("/proc/self/clear_refs").write_text("5")  # resets the high-water mark
    before = resident("VmRSS")
    result = read(reader, source)
    print("answer:", resident("VmHWM") - before, resident("VmRSS") - before, len(result))


def memory_table(options: argparse.Namespace) -> str:
    if sys.platform != "linux":
        return "Memory is measured on Linux only."
    size = options.memory_slices * options.size**2 * 4 / MIB
    rows = ["| reader | peak MiB | peak / array | kept MiB |", "|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as folder:
        small = write(Path(folder, "small"), "uncompressed", volume(4, 32))
        source = write(Path(folder, "series"), "uncompressed", volume(options.memory_slices, options.size))
        for name, python in peers(options.itk_python).items():
            command = [str(python or sys.executable), __file__, "--peak", name, str(small), str(source)]
            text = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
            peak, kept = map(float, text[text.index("answer:") :].split()[1:3])
            rows.append(f"| {name} | {peak:.0f} | {peak / size:.2f} | {kept:.0f} |")
    return "\n".join(rows) + f"\n\nThe array itself is {size:.0f} MiB."


def labels_like(image: torch.Tensor) -> torch.Tensor:
    """Three ellipsoids, values 1 to 3, with the metadata of ``image`` (1, x, y, z)."""
    grid = torch.meshgrid(*[torch.linspace(-1, 1, size) for size in image.shape[1:]], indexing="ij")
    labels = torch.zeros_like(image)
    for value, centre in enumerate((-0.6, 0.0, 0.6), 1):
        labels[0][(grid[0] - centre) ** 2 / 0.06 + grid[1] ** 2 / 0.3 + grid[2] ** 2 / 0.7 < 1] = value
    return labels


def writing_row(image: torch.Tensor, folder: Path, save_options: dict, reader: str, rounds: int) -> str:
    """Write and read again a few times; the result must be the same, voxels and affine."""
    from monai.transforms import LoadImage, SaveImage

    folder.mkdir()
    save = SaveImage(folder, "", separate_folder=False, resample=False, print_log=False, **save_options)
    load = LoadImage(reader, ensure_channel_first=True)
    writes = [timed(lambda: save(image, filename=folder / "result")) for _ in range(rounds)]
    files = [path for path in folder.rglob("*") if path.is_file()]
    source = files[0] if len(files) == 1 else files[0].parent
    reads = [timed(lambda: load(source)) for _ in range(rounds)]
    same = torch.equal(load(source), image) and torch.allclose(load(source).affine, image.affine, atol=1e-4)
    slices, size = image.shape[-1], sum(path.stat().st_size for path in files) / MIB
    cells = " | ".join("{:.1f} / {:.1f}".format(*minima(times, slices)) for times in (writes, reads))
    return f"| {folder.name} | {slices} | {cells} | {size:.2f} | {'yes' if same else 'NO'} |"


def writing_table(options: argparse.Namespace) -> str:
    from monai_labelfx.data import DicomSegWriter

    seg = {kind: functools.partial(DicomSegWriter, kind=kind) for kind in ("binary", "labelmap")}
    rows = ["| file | slices | write ms per slice | read ms per slice | MiB | same again |", "|---" * 6 + "|"]
    for slices in options.write_slices:
        with tempfile.TemporaryDirectory() as folder:
            image = loader(OURS)(write(Path(folder, "series"), "uncompressed", volume(slices, options.size)))[None]
            labels = labels_like(image)
            files = {f"SEG, {kind}": (labels, {"writer": seg[kind], "output_ext": ".dcm"}, SEG_READER) for kind in seg}
            files["labels as .nii.gz"] = labels, {"output_ext": ".nii.gz", "output_dtype": np.uint8}, "NibabelReader"
            files["derived series"] = image, {"writer": DERIVED, "output_ext": ".dcm"}, OURS
            for title, (data, save_options, reader) in files.items():
                rows.append(writing_row(data, Path(folder, title), save_options, reader, options.rounds))
    return "\n".join(rows)


def report(options: argparse.Namespace) -> str:
    names = ("torch", "monai", "pydicom", "highdicom", "pyjpegls")
    packages = ", ".join(f"{name} {version(name)}" for name in names)
    python = peers(options.itk_python).get("ITKReader") or sys.executable
    ask = "from importlib.metadata import distributions as d; print(*{x.version for x in d(name='itk')} or ['absent'])"
    itk = subprocess.run([str(python), "-c", ask], check=True, stdout=subprocess.PIPE, text=True).stdout.strip()
    return (
        f"{datetime.date.today()}, {platform.machine()}, {os.cpu_count()} cores, 1 thread, Python "
        f"{platform.python_version()}, {packages}, itk {itk}, seed {SEED}.\n\n"
        f"Reading {options.slices} slices of {options.size} x {options.size} through LoadImage, ms per slice, wall / "
        f"processor time, each the minimum of {options.rounds} interleaved reads; ratios of processor times.\n\n"
        f"{reading_table(options)}\n\n"
        f"Memory of reading {options.memory_slices} slices of {options.size} x {options.size}.\n\n"
        f"{memory_table(options)}\n\n"
        f"Writing and reading through SaveImage and LoadImage, slices of {options.size} x {options.size}, three "
        f"segments that cover a sixth of the image; wall / processor time, minimum of {options.rounds} calls.\n\n"
        f"{writing_table(options)}\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--itk-python", type=Path, help="interpreter of an environment with itk, for ITKReader")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--slices", type=int, default=40)
    parser.add_argument("--size", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--memory-slices", type=int, default=600)
    parser.add_argument("--write-slices", type=int, nargs="*", default=[40, 200])
    parser.add_argument("--serve", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--peak", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # what readers warn of is the matter of dicom_cases.py
    logging.disable(logging.WARNING)
    if options.serve:
        return serve(options.serve[0], Path(options.serve[1]), *map(int, options.serve[2:]))
    if options.peak:
        return print_peak(options.peak[0], *map(Path, options.peak[1:]))
    text = report(options)
    print(text, end="")
    if options.out:
        options.out.write_text(text)


if __name__ == "__main__":
    main()
