# SPDX-License-Identifier: Apache-2.0
"""Datalists of two domains of CT, such as low and high dose, without pairs and without a patient on both sides."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np

from monai_labelfx.data._ct_facts import CTFacts, ct_facts
from monai_labelfx.data.check_ct import check_ct_domain
from monai_labelfx.data.datalist import load_datalist

__all__ = ["load_ct_domains"]

_PATH_KEYS = ("image", "reference", "roi")
_LISTS = {
    ("training", "low"): "training_low",
    ("training", "high"): "training_high",
    ("validation", "low"): "validation",
    ("validation", "high"): "validation_high",
    ("test", "low"): "test",
    ("test", "high"): "test_high",
}
_LISTED = 5  # patients, in a message
_SAME_SIZE = 1e-2  # relative difference of spacings
_Items = list[dict[str, Any]]


def load_ct_domains(
    path: str | os.PathLike,
    *,
    shared_patients: bool = False,
    check: bool = True,
    allow_mixed: bool = False,
    spacing_tolerance: float = 0.5,
    thickness_tolerance: float = 0.1,
    required: Sequence[str] = ("training_low", "training_high"),
) -> dict[str, _Items]:
    """Read a datalist whose items have a domain, check that they can teach something, and sort them.

    ``{"training": [{"image": "a", "domain": "low", "patient": "1"}, {"image": "b.nii.gz", "domain": "high", "patient":
    "2"}], "validation": [{"image": "c", "domain": "low", "patient": "3", "reference": "d", "roi": "e.nii.gz"}]}``:
    "low" is the noisy domain, "high" the one to learn from; "patient" is any text or number that stands for a patient;
    "reference" is the image of high dose that pairs with this one, "roi" a label map. No patient may have images in
    both domains of training, nor in two splits: a network would see the anatomy that it is to be judged on.

    Args:
        path: the JSON file, as for :py:func:`load_datalist`; splits other than training, validation and test are left
            out.
        shared_patients: accept patients in both domains of training, and items without "patient". Patients in two
            splits stay an error.
        check: read the headers of all images (:py:func:`check_ct_domain` for each domain; a reference must be CT of the
            size and spacing of its image) and find, by StudyInstanceUID and FrameOfReferenceUID, images of one patient
            under two names.
        allow_mixed: of :py:func:`check_ct_domain`, like the two that follow.
        spacing_tolerance: between the pixel spacings of one domain.
        thickness_tolerance: between its slice thicknesses.
        required: lists that must hold an item.

    Returns:
        "training_low", "training_high", "validation" (low), "validation_high", "test" (low) and "test_high": the items
        in the order of the file, with absolute paths.

    Raises:
        FileNotFoundError: no such JSON file, or with ``check`` no such image.
        ValueError: what :py:func:`load_datalist` and :py:func:`check_ct_domain` refuse; an item without a domain, or
            of an unknown one; one without "patient"; a required list without items; a patient, a study or a frame of
            reference on both sides; one image in both domains. One sentence.

    Example:
        >>> import tempfile
        >>> from monai_labelfx.data import save_datalist
        >>> items = [{"image": f"{n}.nii", "domain": domain, "patient": n} for n, domain in enumerate(("low", "high"))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = save_datalist(f"{folder}/datalist.json", {"training": items})
        ...     domains = load_ct_domains(file, check=False)
        >>> {name: len(items) for name, items in domains.items() if items}
        {'training_low': 1, 'training_high': 1}
    """
    unknown = sorted(set(required) - set(_LISTS.values()))
    if unknown:
        raise ValueError(f"required must be names of {', '.join(_LISTS.values())}, got {unknown}")
    where = f"datalist {os.fspath(path)!r}"
    splits = load_datalist(path, path_keys=_PATH_KEYS)
    result: dict[str, _Items] = {name: [] for name in _LISTS.values()}
    for split in dict.fromkeys(split for split, _ in _LISTS):
        for index, item in enumerate(splits.get(split, [])):
            domain = item.get("domain")
            if domain not in ("low", "high"):
                found = "no domain" if domain is None else f"the domain {domain!r}"
                raise ValueError(f"{where}: {split}[{index}] ({_first(item)!r}) has {found}, expected 'low' or 'high'")
            if _patient(item) is None and not shared_patients:
                raise ValueError(
                    f"{where}: {split}[{index}] ({_first(item)!r}) has no patient, so nobody can tell whether the "
                    "domains and splits share one: name it, or accept shared patients with shared_patients=True"
                )
            result[_LISTS[split, domain]].append(item)
    for name in required:
        if not result[name]:
            there = (
                ", ".join(f"{len(items)} under {other}" for other, items in result.items() if items) or "none at all"
            )
            raise ValueError(f"{where} has no items for {name}, expected at least one; it has {there}")
    _check_apart(where, result, shared_patients)
    if check:
        domain_facts = partial(
            check_ct_domain,
            allow_mixed=allow_mixed,
            spacing_tolerance=spacing_tolerance,
            thickness_tolerance=thickness_tolerance,
        )
        _check_images(where, result, shared_patients, domain_facts)
    return result


def _first(item: Mapping[str, Any], key: str = "image") -> str:
    value = item[key]
    return str(value[0] if isinstance(value, (list, tuple)) else value)


def _patient(item: Mapping[str, Any]) -> str | None:
    value = item.get("patient")
    return None if value is None or not str(value).strip() else str(value).strip()


def _sides(shared_patients: bool) -> Iterator[tuple[str, list[str], str, list[str]]]:
    """What must not share a patient: a text and the names of lists, twice."""
    if not shared_patients:
        yield "low of training", ["training_low"], "high of training", ["training_high"]
    of_split: dict[str, list[str]] = {}
    for (split, _), name in _LISTS.items():
        of_split.setdefault(split, []).append(name)
    for (first, names), (second, others) in combinations(of_split.items(), 2):
        yield first, names, second, others


def _check_apart(where: str, lists: Mapping[str, _Items], shared_patients: bool) -> None:
    for first, names, second, others in _sides(shared_patients):
        one, two = (
            {_patient(item): None for name in side for item in lists[name] if _patient(item) is not None}
            for side in (names, others)
        )
        both = [patient for patient in one if patient in two]
        if both:
            more = f" and {len(both) - _LISTED} more" if len(both) > _LISTED else ""
            advice = ", or accept it with shared_patients=True" if first == "low of training" else ""
            raise ValueError(
                f"{where}: {len(both)} patient{'s' * (len(both) > 1)} ({', '.join(map(str, both[:_LISTED]))}{more}) "
                f"have images in {first} and in {second}, expected different patients: move their items to one "
                f"side{advice}"
            )
    low, high = (
        {os.path.realpath(_first(item)): None for name in _of_domain(domain) for item in lists[name]}
        for domain in ("low", "high")
    )
    for path in low:
        if path in high:
            raise ValueError(f"{where}: the image {path!r} stands in both domains, expected it in low or in high")


def _of_domain(domain: str) -> list[str]:
    return [name for (_, one), name in _LISTS.items() if one == domain]


def _check_images(
    where: str, lists: Mapping[str, _Items], shared_patients: bool, domain_facts: Callable[..., list[CTFacts]]
) -> None:
    facts: dict[str, list[tuple[dict[str, Any], CTFacts]]] = {name: [] for name in lists}
    for domain in ("low", "high"):
        names = [(name, item) for name in _of_domain(domain) for item in lists[name]]
        if not names:
            continue
        found = domain_facts([item for _, item in names], name=domain)
        for (name, item), one in zip(names, found, strict=True):
            facts[name].append((item, one))
            if "reference" in item:
                _check_reference(where, item["reference"], one)
    _check_series(where, facts)
    for first, names_, second, others in _sides(shared_patients):
        sides = [[pair for name in side for pair in facts[name]] for side in (names_, others)]
        for keyword, field in (("StudyInstanceUID", "study_uid"), ("FrameOfReferenceUID", "frame_of_reference_uid")):
            seen = {getattr(one, field): one for _, one in sides[0] if getattr(one, field)}
            for _, one in sides[1]:
                other = seen.get(getattr(one, field))
                if other is not None:
                    raise ValueError(
                        f"{where}: {other.name} in {first} and {one.name} in {second} have the same {keyword}, so they "
                        "are of one patient, whatever the datalist says, expected different patients"
                    )


def _check_reference(where: str, reference: Any, image: CTFacts) -> None:
    found = ct_facts(reference)
    if found.shape != image.shape or not np.allclose(found.spacing, image.spacing, rtol=_SAME_SIZE):
        raise ValueError(
            f"{where}: the reference {found.name} has shape {found.shape} and spacing {_mm(found.spacing)}, expected "
            f"{image.shape} and {_mm(image.spacing)} as in {image.name}"
        )


def _mm(spacing: Iterable[float]) -> str:
    return f"({', '.join(f'{size:.4g}' for size in spacing)}) mm"


def _check_series(where: str, facts: Mapping[str, Sequence[tuple[dict[str, Any], CTFacts]]]) -> None:
    seen = {one.series_uid: one for name in _of_domain("low") for _, one in facts[name] if one.series_uid}
    for name in _of_domain("high"):
        for _, one in facts[name]:
            if one.series_uid in seen:
                raise ValueError(
                    f"{where}: {seen[one.series_uid].name} in low and {one.name} in high are one series "
                    "(SeriesInstanceUID), expected each in one domain"
                )
