# SPDX-License-Identifier: Apache-2.0
"""From names of label values, as users write them into a configuration, to DICOM segment descriptions."""

from __future__ import annotations

import colorsys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from monai_labelfx._version import __version__

if TYPE_CHECKING:
    from highdicom.seg import SegmentDescription

PROGRAM = "monai_labelfx"
MOST_SEGMENTS = 65535
_TISSUE = ("85756007", "SCT", "Tissue")
_HUE_STEP = 0.618034  # the golden ratio: neighbouring numbers get unlike hues, for any count
_LONGEST = 64  # characters of a DICOM name


@dataclass(frozen=True, slots=True)
class Segment:
    """What the user said about a label value."""

    name: str
    colour: tuple[int, int, int] | None = None
    category: tuple[str, str, str] = _TISSUE
    type: tuple[str, str, str] = _TISSUE


def segments_of(segments: Mapping[Any, Any] | None) -> dict[int, Segment]:
    """Label value -> what is known about it; the keyword ``segments`` of the writer, checked. 0 is left out.

    Raises:
        ValueError: one sentence about the first entry that cannot be used.
    """
    found: dict[int, Segment] = {}
    for key, entry in (segments or {}).items():
        if not str(key).isdecimal() or isinstance(key, bool) or int(key) > MOST_SEGMENTS:
            raise ValueError(f"segments: {key!r} is no label value, expected a whole number from 0 to {MOST_SEGMENTS}")
        if int(key) in found:
            raise ValueError(f"segments: the label value {int(key)} is named twice")
        if int(key) > 0:
            found[int(key)] = _segment(int(key), entry)
    return found


def _segment(number: int, entry: Any) -> Segment:
    facts = dict(entry) if isinstance(entry, Mapping) else {"name": entry}
    unknown = set(facts) - {"name", "colour", "category", "type"}
    if unknown or not _is_text(facts.get("name")):
        raise ValueError(
            f"segments[{number}] is {entry!r}, expected a name of at most {_LONGEST} characters without backslash, or "
            "a mapping with name and, if wanted, colour, category and type"
        )
    colour = facts.get("colour")
    if colour is not None and not (
        _is_list(colour) and len(colour) == 3 and all(type(part) is int and 0 <= part <= 255 for part in colour)
    ):
        raise ValueError(f"segments[{number}] has the colour {colour!r}, expected [red, green, blue] from 0 to 255")
    codes = {}
    for name in ("category", "type"):
        code = facts.get(name, _TISSUE)
        if not _is_list(code) or len(code) != 3 or not all(_is_text(part) for part in code):
            raise ValueError(f"segments[{number}] has the {name} {code!r}, expected [code, scheme, meaning]")
        codes[name] = tuple(code)
    return Segment(facts["name"], None if colour is None else tuple(colour), **codes)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and 0 < len(value.strip()) <= _LONGEST and value.isprintable() and "\\" not in value


def describe(numbers: Iterable[int], named: Mapping[int, Segment]) -> list[SegmentDescription]:
    """Descriptions of the segments ``numbers``: as named, else "label N", or "object N" where nothing is named."""
    from highdicom import AlgorithmIdentificationSequence
    from highdicom.color import CIELabColor
    from highdicom.seg import SegmentDescription
    from highdicom.sr import CodedConcept
    from pydicom.sr.codedict import codes

    algorithm = AlgorithmIdentificationSequence(
        name=PROGRAM, family=codes.DCM.ArtificialIntelligence, version=__version__
    )
    kind = "label" if named else "object"
    found = []
    for number in numbers:
        segment = named.get(number) or Segment(f"{kind} {number}")
        found.append(
            SegmentDescription(
                segment_number=number,
                segment_label=segment.name,
                segmented_property_category=CodedConcept(*segment.category),
                segmented_property_type=CodedConcept(*segment.type),
                algorithm_type="AUTOMATIC",
                algorithm_identification=algorithm,
                display_color=CIELabColor.from_rgb(*(segment.colour or _colour(number))),
            )
        )
    return found


def _colour(number: int) -> tuple[int, ...]:
    return tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number * _HUE_STEP % 1, 0.65, 0.95))
