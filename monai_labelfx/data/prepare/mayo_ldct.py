# SPDX-License-Identifier: Apache-2.0
"""Mayo's low-dose CT: the AAPM challenge of 2016 (full and quarter dose) and LDCT-and-Projection-data of TCIA."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from monai_labelfx._atomic import replacing
from monai_labelfx.data.datalist import save_datalist
from monai_labelfx.data.dicom_series import DicomSeries, find_dicom_series
from monai_labelfx.data.prepare._splits import check_destination, split_by_image

__all__ = ["prepare"]

PATH_KEYS = ("image", "reference")

_DOSE = re.compile(r"(?<![a-z])(?:(full)|(quarter|low))(?![a-z])", re.IGNORECASE)
_DOSE_OF_FILE = re.compile(r"[LCN]\d{3}_(?:(FD)|(QD|LD))_", re.IGNORECASE)
_RAW = re.compile(r"projection|ct-pd|sinogram", re.IGNORECASE)  # DICOM-CT-PD: files of projections, not of slices
_PATIENT = re.compile(r"(?<![a-z0-9])([LCN]\d{3})(?![0-9])", re.IGNORECASE)


@dataclass(frozen=True)
class _Scan:
    """One series of one dose of a patient."""

    patient: str
    dose: str  # "low" or "full"
    series: DicomSeries
    thickness: float
    kernel: str

    def __str__(self) -> str:
        return f"{self.thickness:g} mm {self.kernel}, {len(self.series.frames)} slices in {_folder(self.series)!r}"


def prepare(
    source: str | os.PathLike,
    destination: str | os.PathLike,
    *,
    thickness: float | None = None,
    kernel: str | None = None,
    patients: str | Sequence[str] | None = None,
    validation: float = 0.1,
    test: float = 0.1,
    validation_patients: str | Sequence[str] = (),
    test_patients: str | Sequence[str] = (),
    shared_patients: bool = False,
    copy: bool = False,
    seed: int = 0,
) -> Path:
    """Write a datalist of Mayo's full-dose and low-dose series, split by patient; nothing is copied or converted.

    Found anywhere below ``source``, by the words of the folders: the deepest one with "full", "quarter" or "low" gives
    the dose, the deepest one with L, C or N and three digits the patient. Files of the challenge's names, such as
    ``L067_QD_3_1.CT.0001.....IMA``, say their dose themselves. So both public layouts, and the usual rearrangements of
    them, are read as they are. Folders of projections are left out.

    ============================  =================================================================================
    AAPM challenge, 10 patients   ``Training_Image_Data/1mm B30/{full,quarter}_1mm/L067/{full,quarter}_1mm/*.IMA``,
                                  also ``3mm B30``, ``1mm D45`` and ``3mm D45`` (``full_3mm_sharp``)
    TCIA LDCT-and-Projection      ``L004/08-21-2018-84608/1.000000-Full dose images-59704/*.dcm`` and
                                  ``Low Dose Images``; a tenth of the dose in chests (C), a quarter otherwise
    ============================  =================================================================================

    Written: items of ``image`` (the folder of a series, or its files), ``domain`` ("low" or "high") and ``patient``.

    ==============  ===============================================================================================
    "training"      Low dose of one half of the patients and full dose of the others: unpaired for certain. With
                    ``shared_patients`` both doses of all, as in the paper, whose training mixes slices of the same
                    patients.
    "validation"    low dose, with the full dose as ``reference``
    "test"          low dose, with the full dose as ``reference``
    ==============  ===============================================================================================

    Args:
        source: folder with the unpacked data.
        destination: new or empty folder for the datalist, whose paths lead back to ``source``.
        thickness: only series of this slice thickness in mm. Needed where there are several.
        kernel: only series whose convolution kernel begins so, such as "B30" or "D45". Needed where there are several.
        patients: only these, such as ["L067", "L096"]; None: all.
        validation: share of the patients for validation, drawn by ``seed``; at least one where above 0.
        test: share of the patients for the test.
        validation_patients: these very patients instead of a drawn share.
        test_patients: these very patients instead of a drawn share; L506 is the usual one of the challenge.
        shared_patients: train both domains on the same patients.
        copy: copy the series below the destination, to ``series/L067_low`` and so on.
        seed: of the draws.

    Returns:
        The path of ``datalist.json``.

    Raises:
        FileNotFoundError: ``source`` does not exist.
        FileExistsError: ``destination`` is not empty.
        ValueError: no series of these words, a patient without one of the doses, with several series of one dose or
            with doses of different numbers of slices, an unknown patient, or too few patients: one sentence.

    Notes:
        The paper trains on 3,112 and tests on 421 slices and does not say which patients, slice thickness or kernel
        these are; no split of patients gives its numbers for certain, so there is no ``paper_split``. Its code reads
        converted files.

    Example:
        >>> prepare("nowhere", "data")
        Traceback (most recent call last):
        FileNotFoundError: source 'nowhere' does not exist
    """
    folder, target = Path(source), Path(destination).absolute()
    check_destination(target)
    if not folder.exists():
        raise FileNotFoundError(f"source {str(folder)!r} does not exist")
    found = [scan for scan in _scans(folder) if _wanted(scan, thickness, kernel)]
    if not found:
        wanted = "".join(f" of {v}" for v in (thickness and f"{thickness:g} mm", kernel and f"kernel {kernel}") if v)
        raise ValueError(
            f"source {str(folder)!r} holds no DICOM series{wanted} in folders of the words full, quarter or low and of "
            "a patient such as L067"
        )
    pairs = _pairs(found, _ids(patients))
    named = {"validation": _ids(validation_patients), "test": _ids(test_patients)}
    splits = _split(list(pairs), named, validation=validation, test=test, seed=seed)
    low, high = _domains(splits.pop("training"), shared=shared_patients, seed=seed)
    with replacing(target) as temporary:
        temporary.mkdir()

        def image(patient: str, dose: str) -> str | list[str]:
            one = pairs[patient][dose].series
            return _copy(one, temporary, f"{patient}_{dose}") if copy else _paths(one)

        items = {
            "training": [
                *({"image": image(p, "low"), "domain": "low", "patient": p} for p in low),
                *({"image": image(p, "full"), "domain": "high", "patient": p} for p in high),
            ]
        }
        for name, members in splits.items():
            items[name] = [
                {"image": image(p, "low"), "domain": "low", "patient": p, "reference": image(p, "full")}
                for p in members
            ]
        notes = {"name": "Mayo low-dose CT", "shared_patients": shared_patients, "seed": seed}
        save_datalist(temporary / "datalist.json", items, notes=notes, path_keys=PATH_KEYS)
    return target / "datalist.json"


def _scans(folder: Path) -> Iterator[_Scan]:
    """The image series of each folder that names a dose and a patient."""
    from pydicom import dcmread

    for place, below, names in os.walk(folder):
        below[:] = sorted(one for one in below if not one.startswith("."))
        parts = Path(place).relative_to(folder).parts
        words = next((part for part in reversed(parts) if _DOSE.search(part)), "")
        if _RAW.search(words):
            below.clear()
            continue
        if not (words or any(_DOSE_OF_FILE.match(name) for name in names)):
            continue
        for series in find_dicom_series(place):
            name = os.path.basename(min(series.paths))
            dose = _DOSE_OF_FILE.match(name) or _DOSE.search(words)
            patient = next((found for found in map(_PATIENT.search, (*reversed(parts), name)) if found), None)
            if dose is None or patient is None:
                continue
            tags = ["SliceThickness", "ConvolutionKernel"]
            header = dcmread(series.paths[0], stop_before_pixels=True, specific_tags=tags)
            kernel = header.get("ConvolutionKernel") or ""
            yield _Scan(
                patient=patient[1].upper(),
                dose="full" if dose[1] else "low",
                series=series,
                thickness=float(header.get("SliceThickness") or 0),
                kernel=kernel if isinstance(kernel, str) else "/".join(kernel),
            )


def _wanted(scan: _Scan, thickness: float | None, kernel: str | None) -> bool:
    right = thickness is None or abs(scan.thickness - thickness) < 0.05
    return right and (kernel is None or scan.kernel.lower().startswith(kernel.lower()))


def _pairs(scans: Sequence[_Scan], patients: Sequence[str]) -> dict[str, dict[str, _Scan]]:
    """Patient -> dose -> its one series, in the order of the patients."""
    known = sorted({scan.patient for scan in scans})
    _check_known(patients, known)
    pairs: dict[str, dict[str, _Scan]] = {}
    for patient in [one for one in known if not patients or one in patients]:
        pairs[patient] = {}
        for dose in ("low", "full"):
            found = [scan for scan in scans if (scan.patient, scan.dose) == (patient, dose)]
            if not found:
                raise ValueError(
                    f"patient {patient} has no {dose}-dose series, expected both doses: complete the download, or "
                    "leave the patient out by patients=[...]"
                )
            if len(found) > 1:
                listed = "; ".join(map(str, found))
                raise ValueError(
                    f"patient {patient} has {len(found)} {dose}-dose series ({listed}): choose by thickness and kernel"
                )
            pairs[patient][dose] = found[0]
        sizes = [pairs[patient][dose].series.size for dose in ("low", "full")]
        if sizes[0] != sizes[1]:
            raise ValueError(
                f"patient {patient} has {sizes[0]} columns, rows and slices at low dose and {sizes[1]} at full dose, "
                "expected the same"
            )
    return pairs


def _split(
    patients: list[str], named: dict[str, list[str]], *, validation: float, test: float, seed: int
) -> dict[str, list[str]]:
    """Named patients, and a share of the others where none is named; a split of nobody is left out."""
    taken = [patient for part in named.values() for patient in part]
    _check_known(taken, patients)
    if len(set(taken)) < len(taken):
        raise ValueError(f"patient {max(taken, key=taken.count)} is named twice in validation_patients, test_patients")
    rest = [{"image": patient} for patient in patients if patient not in taken]
    shares = {"validation": 0 if named["validation"] else validation, "test": 0 if named["test"] else test}
    drawn = split_by_image(rest, **shares, seed=seed)
    splits = {name: [item["image"] for item in items] for name, items in drawn.items()}
    return splits | {name: sorted(part) for name, part in named.items() if part}


def _domains(training: list[str], *, shared: bool, seed: int) -> tuple[list[str], list[str]]:
    """Patients of the low and of the high domain."""
    if shared:
        return training, training
    if len(training) < 2:
        raise ValueError(
            f"{len(training)} patients are left for training, expected two or more: low and high dose are of different "
            "patients unless shared_patients=true"
        )
    order = [training[index] for index in np.random.RandomState(seed).permutation(len(training))]
    middle = (len(order) + 1) // 2
    return sorted(order[:middle]), sorted(order[middle:])


def _ids(patients: str | Sequence[str] | None) -> list[str]:
    return [one.upper() for one in ([patients] if isinstance(patients, str) else patients or ())]


def _check_known(patients: Sequence[str], known: Sequence[str]) -> None:
    unknown = sorted(set(patients) - set(known))
    if unknown:
        raise ValueError(f"no patient {unknown[0]} among {', '.join(known)}")


def _folder(series: DicomSeries) -> str:
    return os.path.dirname(series.paths[0])


def _paths(series: DicomSeries) -> str | list[str]:
    """The folder of a series, or its files where the folder holds other DICOM images too."""
    files = sorted(os.path.abspath(path) for path in series.paths)
    folder = os.path.dirname(files[0])
    return folder if len(files) > 1 and len(find_dicom_series(folder)) == 1 else files if len(files) > 1 else files[0]


def _copy(series: DicomSeries, folder: Path, name: str) -> str:
    """Copy the files of a series below ``folder``; the path as the datalist there gives it."""
    place = folder / "series" / name
    if not place.exists():
        place.mkdir(parents=True)
        for path in series.paths:
            shutil.copyfile(path, place / os.path.basename(path))
    return f"series/{name}"
