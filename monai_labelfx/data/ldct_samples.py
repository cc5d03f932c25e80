# SPDX-License-Identifier: Apache-2.0
"""Small data sets of low-dose and high-dose CT in HU, for demonstrations and benchmarks of denoising without pairs.

Each builder writes NIfTI volumes (x, y, z) in HU and a datalist below a folder and returns the path of the datalist.
Its items have ``image``, ``domain`` ("low": noisy; "high") and ``patient``; the parts or slices that one domain trains
on are never those of the other. Items of "validation" and "test" are of the low domain and have a ``reference``, the
same anatomy at full dose, and a ``roi``, a label map of even regions. Noise is simulated once and written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

import numpy as np

from monai_labelfx.data._even_regions import even_classes, largest_discs
from monai_labelfx.data._ldct_writer import LdctWriter, shift
from monai_labelfx.data._simulated_scans import SimulatedScans
from monai_labelfx.data.ct_phantom import ct_phantom
from monai_labelfx.data.dicom_series_reader import DicomSeriesReader

__all__ = ["head_ct", "lung_kernels", "phantom_ldct", "simulated_abdomen"]

_AIR = -1000.0
_LUNG = Path("ct", "lungdx_A0001")
_LAYOUT = "LLLHHHTLLLHHHTVLLHHT"  # one letter per slice: low, high, test, validation, spread from liver to heart


def head_ct(
    destination: str | Path,
    *,
    dose_fraction: float = 0.25,
    photons: float = 2e6,
    angles: int | None = None,
    seed: int = 0,
) -> Path:
    """One real head CT slice that pydicom ships, at the level of the temporal bones, in four parts and two doses.

    The slice (512 x 512, 0.431 mm) is taken as free of noise; padding becomes air. It is scanned twice by simulation,
    at full dose and at ``dose_fraction`` of it, and cut into quarters of 256 x 256, which fit a wavelet split of level
    5. There is **one person** and one slice: ``patient`` names the part, so that a check for disjoint patients passes,
    and results show how a method works, not how well it generalises.

    ======  ====================  ========================================================
    part_a  "training", low       a quarter with one frontal sinus and temporal lobe
    part_b  "training", high      its mirror image, from the other half of the head
    part_c  "validation"          temporal bone and cerebellum, low with reference
    part_d  "test"                its mirror image, low with reference
    whole   "whole"               the uncut slice, low with reference: for pictures only
    ======  ====================  ========================================================

    Args:
        destination: folder to write into.
        dose_fraction: dose of the low domain.
        photons: photons per ray and view at full dose; the default gives about 12 HU of added noise in the brain.
        angles: views; None: 720.
        seed: of the noise.

    Returns:
        Path of ``datalist.json``. Labels of ``roi``: 1 soft tissue, 2 cavity, 3 bone (discs, where there is room).

    Raises:
        FileNotFoundError: if the installed pydicom lacks the file.
    """
    from pydicom.data import get_testdata_file

    file = get_testdata_file("J2K_pixelrep_mismatch.dcm", download=False)
    if file is None:
        raise FileNotFoundError("the installed pydicom does not ship J2K_pixelrep_mismatch.dcm, a head CT slice")
    array, meta = DicomSeriesReader().get_data(str(file))
    clean, affine = _without_padding(array), np.asarray(meta["affine"])
    scan = SimulatedScans(affine, photons=photons, angles=angles, seed=seed)
    low, full = scan(clean, 0, [dose_fraction, 1.0])
    classes = even_classes(clean)
    half = clean.shape[0] // 2, clean.shape[1] // 2
    one, other = slice(0, half[0]), slice(half[0], None)
    front, back = slice(0, half[1]), slice(half[1], None)
    parts = {
        "part_a": ("L", (one, front)),
        "part_b": ("H", (other, front)),
        "part_c": ("V", (one, back)),
        "part_d": ("T", (other, back)),
        "whole": ("W", (slice(None), slice(None))),
    }
    writer = LdctWriter(destination)
    for name, (letter, part) in parts.items():
        arrays = {"image": (full if letter == "H" else low)[part][..., None]}
        if letter not in "LH":
            arrays["reference"] = full[part][..., None]
            arrays["roi"] = largest_discs(classes[:, *part])[..., None]
        writer.add(letter, name, arrays, affine @ shift([part[0].start or 0, part[1].start or 0, 0]))
    return writer.datalist(
        name="head CT of pydicom",
        note="one person and one slice: patient names its parts; noise is simulated",
        dose_fraction=dose_fraction,
        seed=seed,
    )


def lung_kernels(destination: str | Path, source: str | Path | None = None) -> Path:
    """Two real reconstructions of one scan: a sharp, noisy kernel as low domain, a smooth one as high domain.

    Twenty slices from liver to heart (512 x 512, 0.842 mm, 5 mm): eight train the low, eight others the high domain,
    one validates and three test, where the smooth slice is the ``reference``. **One patient**, and a difference of
    kernels, not of dose: noise of about 62 and 10 HU, and other sharpness. In the interior of soft tissue the sharp
    slices are 1 to 3 HU higher; over all pixels of 0 to 100 HU in the smooth ones it is 14 to 35 HU, since these
    include edges, where the sharp kernel overshoots. So a perfect denoiser does not reach the reference.

    Args:
        destination: folder to write into.
        source: the folder of samples; by default the one named by the environment variable ``LABELFX_DATA``.

    Returns:
        Path of ``datalist.json``. Runs of slices are volumes; ``patient`` names them. ``roi`` as in
        :py:func:`head_ct`.

    Raises:
        FileNotFoundError: if the folder of samples is missing.
        ValueError: if a series has not 20 slices.
    """
    (sharp, affine), (smooth, _) = (_series(source, name) for name in ("kernel_L_sharp", "kernel_B_smooth"))
    writer = LdctWriter(destination)
    for letter, numbers in _runs():
        arrays = {"image": (smooth if letter == "H" else sharp)[..., numbers]}
        if letter in "VT":
            arrays["reference"] = smooth[..., numbers]
            arrays["roi"] = _discs(smooth[..., numbers])
        writer.add(letter, _name(numbers), arrays, affine @ shift([0, 0, numbers[0]]))
    return writer.datalist(
        name="Lung-PET-CT-Dx A0001, two kernels",
        note="one patient, two kernels of one scan, not two doses; patient names runs of slices",
    )


def simulated_abdomen(
    destination: str | Path,
    source: str | Path | None = None,
    *,
    dose_fraction: float = 0.25,
    photons: float = 2e6,
    electronic_sigma: float = 3.0,
    high_filter: str = "ramp",
    high_air: float = 0.0,
    crop: int | None = None,
    angles: int | None = None,
    seed: int = 0,
) -> Path:
    """Twenty real CT slices with simulated noise: the benchmark of unpaired denoising with a known answer.

    The smooth reconstruction of :py:func:`lung_kernels` is taken as free of noise (its own 10 HU are part of every
    image). Eight slices at ``dose_fraction`` train the low domain, eight others at full dose the high domain; one
    slice validates and three test, at low dose with the full dose as ``reference``. **One patient**: neighbouring
    slices, 5 mm apart, are in different splits.

    With ``high_filter`` or ``high_air`` the high domain comes from "another scanner": other sharpness and texture, or
    other HU of air. References are not changed. So a method that copies the high domain's HU fails here.

    Args:
        destination: folder to write into.
        source: the folder of samples; by default the one named by the environment variable ``LABELFX_DATA``.
        dose_fraction: dose of the low domain.
        photons: photons per ray and view at full dose; the default gives about 17 HU of added noise in the liver.
        electronic_sigma: electronic noise in photons.
        high_filter: filter of the reconstruction of the high domain, which changes noise and anatomy; see
            :py:class:`monai_labelfx.transforms.SimulateLowDose`.
        high_air: added to air in the high domain; 0 HU stays, what lies between is shifted in proportion.
        crop: side of the middle of the slices that is kept, in pixels; None: all 512.
        angles: views; None: 720.
        seed: of the noise.

    Returns:
        Path of ``datalist.json``. Runs of slices are volumes; ``patient`` names them. ``roi`` as in
        :py:func:`head_ct`.

    Raises:
        FileNotFoundError: if the folder of samples is missing.
        ValueError: if the series has not 20 slices, or an argument is out of range.

    Notes:
        About 2.5 s per slice and 1 s more for each reference, a minute in all on one core.
    """
    clean, affine = _series(source, "kernel_B_smooth")
    size = clean.shape[0]
    if crop is not None and not 1 <= crop <= size:
        raise ValueError(f"crop must be 1 to {size} pixels, got {crop}")
    start = (size - (crop or size)) // 2
    middle = slice(start, start + (crop or size))
    scan = SimulatedScans(affine, photons=photons, electronic_sigma=electronic_sigma, angles=angles, seed=seed)
    writer = LdctWriter(destination)
    for letter, numbers in _runs():
        doses = {"L": [dose_fraction], "H": [1.0]}.get(letter, [dose_fraction, 1.0])
        filter_name = high_filter if letter == "H" else "ramp"
        # (dose, x, y, slice)
        scans = np.stack([scan(clean[..., n], n, doses, filter_name=filter_name) for n in numbers], axis=-1)
        scans = scans[:, middle, middle]
        arrays = {"image": _warmer_air(scans[0], high_air) if letter == "H" else scans[0]}
        if letter in "VT":
            arrays["reference"] = scans[1]
            arrays["roi"] = _discs(clean[..., numbers], middle)
        writer.add(letter, _name(numbers), arrays, affine @ shift([start, start, numbers[0]]))
    return writer.datalist(
        name="Lung-PET-CT-Dx A0001, simulated dose",
        note="one patient: patient names runs of slices; noise is simulated",
        dose_fraction=dose_fraction,
        high_filter=high_filter,
        high_air=high_air,
        seed=seed,
    )


def phantom_ldct(
    destination: str | Path,
    *,
    size: int = 128,
    depth: int = 1,
    counts: Sequence[int] = (4, 4, 1, 2),
    dose_fraction: float = 0.25,
    photons: float = 1e6,
    seed: int = 0,
) -> Path:
    """Analytic phantoms with simulated noise: several "patients", any size, in seconds and from nothing.

    Each patient is a :py:func:`ct_phantom` of another shape in a field of view of 320 mm, scanned at full dose and at
    ``dose_fraction``. For tests, and where no real CT is at hand: there is no anatomy to lose.

    Args:
        destination: folder to write into.
        size: pixels along x and y.
        depth: slices, 5 mm apart.
        counts: patients of the low domain, of the high domain (both "training"), of "validation" and of "test".
        dose_fraction: dose of the low domain.
        photons: photons per ray and view at full dose; at 128 pixels the default gives about 10 HU of noise.
        seed: of the phantoms and the noise.

    Returns:
        Path of ``datalist.json``. Labels of ``roi``: 1 to 5 the inserts, 6 the body, without their edges.

    Raises:
        ValueError: an argument out of range.
    """
    if len(counts) != 4 or min(counts) < 0:
        raise ValueError(f"counts must be the patients of low, high, validation and test, got {tuple(counts)}")
    from scipy.ndimage import grey_dilation, grey_erosion

    affine = np.diag([320 / size, 320 / size, 5.0, 1.0])
    scan = SimulatedScans(affine, photons=photons, seed=seed)
    writer = LdctWriter(destination)
    patients = [letter for letter, count in zip("LHVT", counts, strict=True) for _ in range(count)]
    for number, letter in enumerate(patients):
        clean, labels = ct_phantom(size, depth=depth, seed=seed * 1000 + number)
        doses = {"L": [dose_fraction], "H": [1.0]}.get(letter, [dose_fraction, 1.0])
        scans = np.stack([scan(clean[..., z], number * depth + z, doses) for z in range(depth)], axis=-1)
        arrays = {"image": scans[0]}
        if letter in "VT":
            alike = grey_dilation(labels, (3, 3, 1)) == grey_erosion(labels, (3, 3, 1))
            arrays |= {"reference": scans[1], "roi": labels * alike}
        writer.add(letter, f"phantom_{number:02d}", arrays, affine)
    return writer.datalist(name="CT phantoms", dose_fraction=dose_fraction, seed=seed)


def _runs() -> Iterator[tuple[str, list[int]]]:
    """Runs of slices with one letter, and their numbers."""
    for letter, run in groupby(enumerate(_LAYOUT), key=lambda pair: pair[1]):
        yield letter, [number for number, _ in run]


def _name(numbers: Sequence[int]) -> str:
    return f"slices_{numbers[0]:02d}_{numbers[-1]:02d}"


def _series(source: str | Path | None, name: str) -> tuple[np.ndarray, np.ndarray]:
    root = source or os.environ.get("LABELFX_DATA")
    folder = Path(root or "", _LUNG, name)
    if not root or not folder.is_dir():
        raise FileNotFoundError(f"no folder {(_LUNG / name).as_posix()} of samples: set LABELFX_DATA, or pass source")
    array, meta = DicomSeriesReader().get_data(str(folder))
    if array.ndim != 3 or array.shape[2] != len(_LAYOUT):
        raise ValueError(f"{str(folder)!r} has the shape {array.shape}, expected {len(_LAYOUT)} slices")
    return _without_padding(array), np.asarray(meta["affine"])


def _without_padding(array: np.ndarray) -> np.ndarray:
    return np.where(array < -1100, _AIR, array).astype(np.float32)


def _discs(volume: np.ndarray, part: slice = slice(None)) -> np.ndarray:
    """Label map of the discs of each slice of (x, y, z) within the same part of x and y."""
    slices = np.moveaxis(volume, -1, 0)
    return np.stack([largest_discs(even_classes(one)[:, part, part]) for one in slices], axis=-1)


def _warmer_air(hu: np.ndarray, shift: float) -> np.ndarray:
    return hu + shift * np.clip(-hu / 1000, 0, 1)
