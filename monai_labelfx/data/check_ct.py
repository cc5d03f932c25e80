# SPDX-License-Identifier: Apache-2.0
"""Is it CT in HU, and do the images of one domain go together? Answers from headers, before anything is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from monai.config import PathLike

from monai_labelfx.data._ct_facts import CTFacts, ct_facts

__all__ = ["CTFacts", "check_ct", "check_ct_domain"]

_LISTED = 5  # groups, in a message
_ROUNDING = 1e-6  # mm
_LOSS = "its noise is no longer that of the scanner, and a denoiser learns or removes the traces of the compression"
_Group = tuple[str, list[CTFacts]]  # what its images have in common, and the images


def check_ct(image: PathLike | Sequence[PathLike] | Mapping[str, Any], *, series: str | None = None) -> CTFacts:
    """Refuse what is no CT in HU, by its headers; no pixels are read.

    Refused are: another modality than CT; localizers; colour and 8-bit pictures (also PNG and JPEG); DICOM without
    RescaleSlope or RescaleIntercept, by a table, or in another unit than HU; NIfTI of several channels; slices of
    different size, pixel spacing or orientation. What the values are is for
    :py:class:`monai_labelfx.transforms.CheckHounsfieldd`, and gaps between slices are for the reader.

    Args:
        image: a NIfTI file; a DICOM file, folder of a series, or list of its files; or an item of a datalist, whose
            "image" is one of these.
        series: the SeriesInstanceUID where a folder holds several.

    Returns:
        The facts, :py:class:`CTFacts`. CT that was compressed with loss is accepted with a warning.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no CT in HU: one sentence with the file, what was found and what was expected.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> facts = check_ct(get_testdata_file("CT_small.dcm", download=False))
        >>> facts.kernel, facts.shape, facts.thickness
        ('STANDARD', (128, 128, 1), 5.0)
    """
    facts = ct_facts(image["image"] if isinstance(image, Mapping) else image, series)
    if facts.lossy:
        warnings.warn(f"{facts.name} was compressed with loss ({facts.lossy}): {_LOSS}", stacklevel=2)
    return facts


def check_ct_domain(
    items: Iterable[PathLike | Sequence[PathLike] | Mapping[str, Any]],
    *,
    name: str = "",
    allow_mixed: bool = False,
    spacing_tolerance: float = 0.5,
    thickness_tolerance: float = 0.1,
) -> list[CTFacts]:
    """:py:func:`check_ct` for all images of one domain, and whether kernel, slice thickness and pixel size are alike.

    A domain is one kind of noise. Its strength and texture depend on the reconstruction kernel and the thickness of
    slices, its size in pixels on the pixel spacing: mixed, a network learns to turn one into the other.

    Args:
        items: as for :py:func:`check_ct`.
        name: of the domain, for messages.
        allow_mixed: accept all mixtures, as where different names stand for one kernel.
        spacing_tolerance: how much larger than the smallest the pixel spacing (geometric mean of the two) of a group
            may be. The default 0.5 accepts fields of view that are fitted to patients (0.6 to 0.9 mm in the body), not
            those of another organ (0.3 mm in the temporal bone).
        thickness_tolerance: the same for the slice thickness.

    Returns:
        The facts of each item, in their order. Images without a named kernel, such as all of NIfTI, fit to any kernel.

    Raises:
        FileNotFoundError: no such file or folder.
        ValueError: no items; as :py:func:`check_ct`; a mixture: the groups are listed.

    Example:
        >>> from pydicom.data import get_testdata_file
        >>> names = ("CT_small.dcm", "J2K_pixelrep_mismatch.dcm")
        >>> check_ct_domain([get_testdata_file(name, download=False) for name in names], name="low")
        Traceback (most recent call last):
        ValueError: domain 'low' mixes 2 kernels ('STANDARD' in 1 image, first DICOM file ...
    """
    for argument, tolerance in (("spacing_tolerance", spacing_tolerance), ("thickness_tolerance", thickness_tolerance)):
        if not tolerance >= 0:
            raise ValueError(f"{argument} must be 0 or above, got {tolerance}")
    domain = f"domain {name!r}" if name else "the domain"
    facts = [ct_facts(item["image"] if isinstance(item, Mapping) else item) for item in items]
    if not facts:
        raise ValueError(f"{domain} has no images, expected at least one CT")
    lossy = [one for one in facts if one.lossy]
    if lossy:
        warnings.warn(
            f"{len(lossy)} of {len(facts)} images of {domain} were compressed with loss (first {lossy[0].name}: "
            f"{lossy[0].lossy}): {_LOSS}",
            stacklevel=2,
        )
    sizes = [((one.spacing[0] * one.spacing[1]) ** 0.5, one) for one in facts]
    groups = (
        ("kernels", _by_text(facts)),
        ("slice thicknesses", _by_number([(one.thickness, one) for one in facts], thickness_tolerance)),
        ("pixel spacings", _by_number(sizes, spacing_tolerance)),
    )
    mixed = [f"{len(found)} {what} ({_listed(found)})" for what, found in groups if len(found) > 1]
    if mixed and not allow_mixed:
        raise ValueError(
            f"{domain} mixes {', '.join(mixed)}, expected images of one kind of noise: leave some out, or accept the "
            "mixture with allow_mixed=True"
        )
    return facts


def _by_text(facts: Sequence[CTFacts]) -> list[_Group]:
    groups: dict[str, list[CTFacts]] = {}
    for one in facts:
        if one.kernel:
            groups.setdefault(repr(one.kernel), []).append(one)
    return list(groups.items())


def _by_number(facts: Iterable[tuple[float, CTFacts]], tolerance: float) -> list[_Group]:
    """Groups from the smallest number on, each up to ``tolerance`` above its own smallest."""
    groups: list[list[tuple[float, CTFacts]]] = []
    for number, one in sorted(facts, key=lambda pair: pair[0]):
        if not groups or number > groups[-1][0][0] * (1 + tolerance) + _ROUNDING:
            groups.append([])
        groups[-1].append((number, one))
    return [(_range(group[0][0], group[-1][0]), [one for _, one in group]) for group in groups]


def _range(low: float, high: float) -> str:
    first, last = f"{low:.4g}", f"{high:.4g}"
    return f"{first} mm" if first == last else f"{first} to {last} mm"


def _listed(groups: Sequence[_Group]) -> str:
    ranked = sorted(groups, key=lambda group: -len(group[1]))
    texts = [f"{text} in {len(of)} image{'s' * (len(of) > 1)}, first {of[0].name}" for text, of in ranked[:_LISTED]]
    more = [f"{len(ranked) - _LISTED} more"] if len(ranked) > _LISTED else []
    return "; ".join(texts + more)
