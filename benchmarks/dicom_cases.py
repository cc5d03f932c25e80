# SPDX-License-Identifier: Apache-2.0
"""The ten DICOM cases that readers get wrong: ours beside MONAI's two readers, each judged against the truth.

    python benchmarks/dicom_cases.py [--itk-python PATH] [--out FILE]

The cases are those of tests/dicom_samples.py: synthetic series of known voxels and positions, so every slice that a
reader returns can be compared with what lies at its place in the world. Exits with 1 unless ours is right, or refuses
what makes no one regular volume. ITKReader needs the package itk (1.5 GB): it runs here where that is installed, else
with the interpreter --itk-python, else its column says so. That is an environment which sees the packages of this one::

    python3 -m venv ITK
    .venv/bin/python -c "import site; print(*site.getsitepackages())" > ITK/lib/python3.11/site-packages/ours.pth
    ITK/bin/pip install itk==5.4.7
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

import dicom_samples  # noqa: E402
from dicom_samples import CASES, ORIENTATIONS, affine_of, colour, phantom  # noqa: E402

OURS = "monai_labelfx.data.DicomSeriesReader"
READERS = (OURS, "PydicomReader", "ITKReader")
TITLES = {OURS: "ours", "PydicomReader": "MONAI PydicomReader", "ITKReader": "MONAI ITKReader"}
GAPS = ("one slice missing", "triple gap")
FEW = 1e-3  # mm and HU: what counts as the same
REFUSED = (*GAPS, "two series in one folder", "localizer of another size in the folder")  # what ours must not read
NOISE = {r"\b\d+(\.\d+){5,}\b": "UID", r"0x[0-9a-f]+": "0x...", r"/\S+/(\w+\.hxx)": r"\1"}


@dataclass(frozen=True)
class Truth:
    """Slices (x, y, z), where they are (index along z of ``affine``), and what a reader of this alone has left out."""

    volume: np.ndarray
    affine: np.ndarray = field(default_factory=lambda: affine_of("axial"))
    present: tuple[int, ...] = tuple(range(8))
    name: str = ""

    def at(self, index: float) -> np.ndarray:
        """The slice at an index along z, linear between the slices that are there."""
        after = min(max(int(np.searchsorted(self.present, index - FEW)), 1), len(self.present) - 1)
        if len(self.present) == 1:
            return self.volume[:, :, 0]
        low, high = self.present[after - 1], self.present[after]
        weight = (index - low) / (high - low)
        return (1 - weight) * self.volume[:, :, low] + weight * self.volume[:, :, high]


def truths(case: str) -> list[Truth]:
    """The volumes that a reader may rightly give; more than one where a folder holds several series."""
    kind, _, orientation = case.partition(", ")
    if kind == "regular":
        return [Truth(phantom(), affine_of(orientation))]
    absent = {"one slice missing": (3,), "triple gap": (3, 4)}.get(case, ())
    first = Truth(phantom(), present=tuple(n for n in range(8) if n not in absent))
    if case == "two series in one folder":
        others = Truth(phantom(seed=1)[:, :, :5], present=tuple(range(5)), name="the second series alone")
        return [Truth(first.volume, name="the first series alone"), others]
    if case.startswith("localizer"):
        scout = Truth(phantom((24, 20, 1), seed=2), affine_of("coronal"), (0,), name="the localizer alone")
        return [Truth(first.volume, name="the series without the localizer"), scout]
    return [first]


def judge(array: np.ndarray, affine: np.ndarray, truth: Truth) -> str:
    """What is right or wrong with one volume (channel, x, y, z)."""
    shape = truth.volume.shape[:2]
    if array.ndim != 4 or array.shape[0] != 1 or array.shape[1:3] != shape:
        size = "x".join(map(str, array.shape[1:] if array.shape[0] == 1 else array.shape))
        return f"WRONG: shape {size} instead of {'x'.join(map(str, shape))}x{len(truth.present)}"
    corners = np.array([[i, j, 0, 1] for i in (0, shape[0] - 1) for j in (0, shape[1] - 1)]).T
    size_z = np.linalg.norm(truth.affine[:3, 2])
    far, values, interpolated, order = 0.0, 0.0, 0, []
    for number in range(array.shape[3]):
        plane = array[0, :, :, number]
        world = affine @ (corners + np.array([[0], [0], [number], [0]]))
        where = np.linalg.inv(truth.affine) @ world
        index = float(where[2, 0])
        same = [n for n in truth.present if np.abs(truth.volume[:, :, n] - plane).max() < FEW]
        if same:
            order.append(same[0])
            right = truth.affine @ (corners + np.array([[0], [0], [same[0]], [0]]))
            far = max(far, float(np.linalg.norm((world - right)[:3], axis=0).max()))
            continue
        interpolated += 1
        values = max(values, float(np.abs(truth.at(index) - plane).max()))
        off_plane = np.abs(where - corners)[[0, 1, 3]].max(), np.ptp(where[2])
        far = max(far, float(max(off_plane)) * size_z)
    gap = truth.present[-1] >= len(truth.present)
    if array.shape[3] != len(truth.present) and not (gap and interpolated):
        return f"WRONG: {array.shape[3]} slices instead of {len(truth.present)}"
    steps = np.sign(np.diff(order))
    if len(set(steps)) > 1:
        return f"WRONG: slices in scrambled order, up to {far:.1f} mm from their place"
    if far > 10 * FEW:
        return f"WRONG: slices up to {far:.1f} mm from their place"
    if values > 0.5:
        return f"WRONG: values off by up to {values:.0f} HU"
    found = "right" if all(steps > 0) else "right, z flipped"
    return f"{found}, {interpolated} of {array.shape[3]} slices interpolated" if interpolated else found


def judge_colour(array: np.ndarray) -> str:
    pixels = np.frombuffer(colour().PixelData, np.uint8).reshape(16, 20, 3).T  # C, x, y
    found = f"{array.shape[0]} channels, spatial {'x'.join(map(str, array.shape[1:]))}"
    if array.shape[:3] == pixels.shape and array.size == pixels.size:
        same = np.array_equal(array.reshape(pixels.shape), pixels)
        return f"right ({found})" if same else f"WRONG: values ({found})"
    return f"WRONG: {found}" + (", colour as a third spatial axis" if array.shape == (1, 20, 16, 3) else "")


@contextmanager
def standard_error(lines: list[str]) -> Iterator[None]:
    """Collect what C++ code writes to the file descriptor 2."""
    with tempfile.TemporaryFile("w+") as file:
        kept = os.dup(2)
        os.dup2(file.fileno(), 2)
        try:
            yield
        finally:
            os.dup2(kept, 2)
            os.close(kept)
            file.seek(0)
            lines += [line for line in file.read().splitlines() if line.strip()]


def write(case: str, folder: Path) -> Path | list[Path]:
    """The files of a case, with the same UIDs each time: they decide which of several series ITKReader takes."""
    numbers = itertools.count()
    with warnings.catch_warnings(action="ignore"):  # highdicom's about the phantom's name
        with mock.patch.object(dicom_samples, "generate_uid", lambda: f"1.2.826.0.1.3680043.8.498.{next(numbers) + 1}"):
            return CASES[case](folder)


def run(case: str, reader: str, **options: object) -> tuple[str, str]:
    """The verdict on one reader in one case, and what the reader said (error, warnings, standard error)."""
    from monai.transforms import LoadImage

    from monai_labelfx.data import quiet_monai

    said: list[str] = []
    with tempfile.TemporaryDirectory() as folder:
        source = write(case, Path(folder, "series"))
        with warnings.catch_warnings(record=True) as caught, standard_error(said):
            warnings.simplefilter("always")
            quiet_monai()
            try:
                image = LoadImage(reader, ensure_channel_first=True, **options)(source)
            except Exception as error:  # whatever a reader raises is its answer
                answer = "refused" if isinstance(error, ValueError | OSError | RuntimeError) else "crashed"
                return answer, _clean(_sentence(error), folder)
        messages = [_clean(str(warning.message), folder) for warning in caught]
    array, affine = image.numpy(), np.asarray(image.affine, dtype=np.float64)
    if case == "RGB ultrasound":
        verdict = judge_colour(array)
    else:
        found = [(judge(array, affine, truth), truth.name) for truth in truths(case)]
        verdict, name = next((f for f in found if f[0].startswith("right")), found[0])
        verdict = f"{verdict}, but {name}" if name and verdict.startswith("right") else verdict
    if messages:
        verdict = f"warned; {verdict}"
    elif said:
        verdict = f"a line on standard error; {verdict}"
    elif "WRONG" in verdict or "but " in verdict:
        verdict = f"silent; {verdict}"
    return verdict, " / ".join([*messages, *(_clean(line, folder) for line in said)])


def _sentence(error: Exception) -> str:
    # LoadImage wraps what a reader's read() raises into a message with tracebacks
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1] if "Traceback" in str(error) else lines[0]


def _clean(text: str, folder: str) -> str:
    text = text.replace(folder, "FOLDER").replace("|", "/")
    for pattern, word in NOISE.items():
        text = re.sub(pattern, word, text)
    return " ".join(text.split())[:600]


def answers(reader: str) -> dict[str, tuple[str, str]]:
    run("regular, axial", reader)  # what is loaded at the first use may write to standard error
    return {case: run(case, reader) for case in CASES}


def fold(rows: dict[str, dict[str, tuple[str, str]]]) -> dict[str, dict[str, tuple[str, str]]]:
    """The regular orientations in as few rows as there are different verdicts."""
    together: dict[tuple, list[str]] = {}
    for name in ORIENTATIONS:
        together.setdefault(tuple(answer[0] for answer in rows[f"regular, {name}"].values()), []).append(name)
    folded = {f"regular: {', '.join(names)}": rows[f"regular, {names[0]}"] for names in together.values()}
    return folded | {case: row for case, row in rows.items() if not case.startswith("regular")}


def report(itk_python: Path | None) -> tuple[str, bool]:
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for reader in READERS:
        if reader != "ITKReader" or importlib.util.find_spec("itk"):
            found[reader] = answers(reader)
        elif itk_python:
            command = [str(itk_python), __file__, "--json"]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            found[reader] = json.loads(done.stdout.splitlines()[-1])
        else:
            found[reader] = dict.fromkeys(CASES, ("not installed", ""))
    rows = fold({case: {reader: found[reader][case] for reader in READERS} for case in CASES})
    lines = ["| case | " + " | ".join(TITLES.values()) + " |", "|---|" + "---|" * len(READERS)]
    lines += [f"| {case} | " + " | ".join(row[reader][0] for reader in READERS) + " |" for case, row in rows.items()]
    lines += ["", "Gaps under the other two settings of ours:", ""]
    lines += ['| case | `on_irregular="warn"` | `on_irregular="resample"` |', "|---|---|---|"]
    gaps = {case: [run(case, OURS, on_irregular=choice) for choice in ("warn", "resample")] for case in GAPS}
    lines += [f"| {case} | {warned[0]} | {resampled[0]} |" for case, (warned, resampled) in gaps.items()]
    lines += ["", "What the readers said (UIDs and the folder replaced):", ""]
    for reader in READERS:
        said_by = {case: row[reader][1] for case, row in rows.items() if row[reader][1]}
        lines += [f"- {TITLES[reader]}, {case}: `{text}`" for case, text in said_by.items()]
    lines += [f"- ours, {case}, warn: `{warned[1]}`" for case, (warned, _) in gaps.items() if warned[1]]
    good = all(found[OURS][case][0].startswith("refused" if case in REFUSED else "right") for case in CASES)
    return "\n".join(lines) + "\n", good


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--itk-python", type=Path, help="interpreter of an environment with itk, for that column")
    parser.add_argument("--out", type=Path, help="also write the tables to this file")
    parser.add_argument("--json", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.json:
        print(json.dumps(answers("ITKReader")))
        return 0
    text, good = report(options.itk_python)
    print(text, end="")
    if options.out:
        options.out.write_text(text)
    return int(not good)


if __name__ == "__main__":
    sys.exit(main())
