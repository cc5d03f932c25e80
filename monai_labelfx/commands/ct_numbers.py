# SPDX-License-Identifier: Apache-2.0
"""labelfx ct_numbers: compare CT images with what they were made from, and tell whether CT numbers moved.

  labelfx ct_numbers scan/ denoised/                                    two DICOM series
  labelfx ct_numbers low.nii.gz a.nii.gz b.nii.gz --out runs/ct_numbers
  labelfx ct_numbers low.nii.gz a.nii.gz --media air=-1010:-900 brain=0:80 --circle bone=210,180,12,4

Prints mean (shift) / standard deviation of homogeneous media, in patches that are found in BEFORE, and of circles, as
Table 2 of the patch-metric paper; then the shifts of intensity classes and blocks, with PASS or FAIL and the reasons.
The exit code is 1 when an image fails.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_labelfx.commands.table import format_table

MEDIA = ("air=-1010:-900", "brain=0:80")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("before", metavar="BEFORE", type=Path, help="CT image: NIfTI file, DICOM file or series folder")
    parser.add_argument("after", metavar="AFTER", nargs="+", type=Path, help="images made from it, on the same grid")
    parser.add_argument(
        "--media",
        nargs="+",
        default=MEDIA,
        metavar="NAME=LOW:HIGH",
        help=f"HU ranges of homogeneous media; default: {' '.join(MEDIA)}",
    )
    parser.add_argument("--patch", type=int, default=60, metavar="N", help="side of the patches in voxels; default: 60")
    parser.add_argument("--count", type=int, default=300, metavar="N", help="number of patches at most; default: 300")
    parser.add_argument(
        "--circle",
        nargs="+",
        default=[],
        metavar="NAME=X,Y,SLICE,RADIUS",
        help="circles: centre in voxels (without SLICE in a 2-D image), radius in mm",
    )
    parser.add_argument("--roi", type=Path, metavar="LABELS", help="label map of regions that must not move")
    parser.add_argument("--region-limit", type=float, default=2.0, metavar="HU", help="of classes; default: 2")
    parser.add_argument("--block-limit", type=float, default=5.0, metavar="HU", help="of 16 x 16 blocks; default: 5")
    parser.add_argument("--strict", action="store_true", help="make no allowance for the noise that was removed")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write table.md and ct_numbers.json there")


def parse_media(texts: Sequence[str]) -> dict[str, tuple[float, float]]:
    """``["air=-1010:-900"]`` as a mapping.

    Example:
        >>> parse_media(["air=-1010:-900", "brain=0:80"])
        {'air': (-1010.0, -900.0), 'brain': (0.0, 80.0)}
    """
    media = {}
    for text in texts:
        name, _, ends = text.partition("=")
        numbers = _numbers(ends.split(":"))
        if not name or len(numbers) != 2 or not numbers[0] < numbers[1]:
            raise ValueError(f"--media is {text!r}, expected a name and a range of HU: air=-1010:-900")
        media[name] = (numbers[0], numbers[1])
    return media


def parse_circles(texts: Sequence[str]) -> dict[str, tuple[list[float], float]]:
    """``["bone=210,180,12,4"]`` as name -> (centre, radius).

    Example:
        >>> parse_circles(["bone=210,180,12,4"])
        {'bone': ([210.0, 180.0, 12.0], 4.0)}
    """
    circles = {}
    for text in texts:
        name, _, parts = text.partition("=")
        numbers = _numbers(parts.split(","))
        if not name or len(numbers) not in (3, 4) or not numbers[-1] > 0:
            raise ValueError(f"--circle is {text!r}, expected centre and radius: bone=210,180,12,4")
        circles[name] = (numbers[:-1], numbers[-1])
    return circles


def _numbers(parts: Sequence[str]) -> list[float]:
    try:
        numbers = [float(part) for part in parts]
    except ValueError:
        return []
    return numbers if all(map(math.isfinite, numbers)) else []


def main(args: argparse.Namespace) -> int:
    """Read, measure, print; 1 when an image fails the audit."""
    media, circles = parse_media(args.media), parse_circles(args.circle)
    twice = [name for name in media if name in circles]
    if twice:
        raise ValueError(f"{twice[0]!r} is a medium and a circle: give them different names")
    from monai_labelfx.commands.quiet import quiet_bundle_runs

    quiet_bundle_runs()
    from monai_labelfx.data.check_ct import check_ct
    from monai_labelfx.metrics.ct_number import HUAudit
    from monai_labelfx.transforms.replace_padding import ReplacePadding

    paths = [args.before, *args.after]
    for path in paths:
        check_ct(path)
    audit = HUAudit(region_limit=args.region_limit, block_limit=args.block_limit, strict=args.strict)
    before = _read(args.before)
    padding = ReplacePadding()(before)["_padding"]
    roi = None if args.roi is None else _read(args.roi, before)
    measure = _Measure(before, padding, media, circles, args.patch, args.count)
    first, *others = labels_of(paths)
    images: dict[str, dict[str, Any]] = {first: measure.before}
    reports: dict[str, Any] = {}
    for label, path in zip(others, args.after, strict=True):
        image = _read(path, before)
        images[label] = measure(image)
        reports[label] = audit(image, before, roi=roi, exclude=padding)
    names = [*media, *circles]
    rows = [[label, *(_cell(found, measure.before, name) for name in names)] for label, found in images.items()]
    text = (
        f"{format_table(['image', *names], rows)}\n\n{_note(measure.before, media, args.patch)}\n\n{_audits(reports)}"
    )
    print(text)
    if args.out is not None:
        from monai_labelfx.commands.files import write_json, write_text

        write_text(args.out / "table.md", f"{text}\n")
        write_json(args.out / "ct_numbers.json", _content(images, reports, args))
        print(f"output is in {args.out}")
    return int(not all(report.passed for report in reports.values()))


class _Measure:
    """Statistics of the media and circles of an image, at the places that ``before`` tells."""

    def __init__(
        self,
        before: Any,
        padding: Any,
        media: Mapping[str, tuple[float, float]],
        circles: Mapping[str, tuple[list[float], float]],
        size: int,
        count: int,
    ) -> None:
        from monai_labelfx.metrics.homogeneous_patches import find_homogeneous_patches

        self.size, self.circles = size, circles
        self.places = {
            name: find_homogeneous_patches(before, low=low, high=high, size=size, count=count, exclude=padding)
            for name, (low, high) in media.items()
        }
        self.spacing = before.pixdim.tolist()
        self.before = self(before)

    def __call__(self, image: Any) -> dict[str, Any]:
        from monai_labelfx.metrics.homogeneous_patches import circle_statistics, patch_statistics

        found = {name: patch_statistics(image, places, self.size) for name, places in self.places.items()}
        for name, (centre, radius) in self.circles.items():
            try:
                found[name] = circle_statistics(image, centre, radius, spacing=self.spacing)
            except ValueError as error:
                raise ValueError(f"--circle {name}: {error}") from error
        return found


def labels_of(paths: Sequence[Path]) -> list[str]:
    """What images are called: by the name of the file, with its folders or a number where two have one name.

    Example:
        >>> labels_of([Path("x/low.nii"), Path("x/a.nii"), Path("y/a.nii"), Path("x/low.nii")])
        ['x/low.nii', 'x/a.nii', 'y/a.nii', 'x/low.nii (2)']
    """
    names = [path.name for path in paths]
    labels = [str(path) if names.count(path.name) > 1 else path.name for path in paths]
    times = [labels[:number].count(label) + 1 for number, label in enumerate(labels)]
    return [label if time == 1 else f"{label} ({time})" for label, time in zip(labels, times, strict=True)]


def _read(path: Path, before: Any = None) -> Any:
    """The image (1, *spatial); turned and flipped to the axes of ``before``, whose voxels it must have.

    Raises:
        ValueError: for colours or several channels, and an image on another grid than ``before``.
    """
    from monai_labelfx.commands.convert import read_grey

    image = read_grey(path, series=None, on_irregular="error")
    if before is None:
        return image
    import nibabel
    import torch
    from monai.data.utils import to_affine_nd
    from monai.transforms import Orientation

    if image.ndim == before.ndim == 4:
        codes = "".join(map(str, nibabel.aff2axcodes(before.affine.numpy())))
        image = Orientation(axcodes=codes, labels=None)(image)
    reach = torch.tensor([*before.shape[1:], 1, 1, 1][:3] + [1], dtype=torch.float64)
    if image.shape == before.shape and image.affine.shape == before.affine.shape:
        target, own = (to_affine_nd(3, one.affine.double()) for one in (before, image))
        voxels = torch.linalg.solve(target, own) - torch.eye(4)
        if float((voxels @ reach).abs().max()) <= 0.1:
            return image
    raise ValueError(
        f"{path} has shape {tuple(image.shape[1:])} and affine {image.affine.tolist()}, but BEFORE has "
        f"{tuple(before.shape[1:])} and {before.affine.tolist()}: expected the same voxels"
    )


def _cell(found: Mapping[str, Any], before: Mapping[str, Any], name: str) -> str | None:
    if not found[name].number:
        return None
    shift = "" if found is before else f" ({found[name].mean - before[name].mean:+.2f})"
    return f"{found[name].mean:.2f}{shift} / {found[name].std:.2f}"


def _note(before: Mapping[str, Any], media: Mapping[str, tuple[float, float]], size: int) -> str:
    """What the table holds, and which media were not found."""
    lines = ["Mean (shift) / standard deviation, HU."]
    for name, (low, high) in media.items():
        number = before[name].number
        patches = f"{number or 'no'} homogeneous patch{'es' * (number != 1)} of {size} x {size} voxels"
        lines.append(f"{name}: {patches} from {low:g} to {high:g} HU.")
    return "\n".join(lines)


def _audits(reports: Mapping[str, Any]) -> str:
    """A table of shifts, then a line with PASS or FAIL for each image and its sentences."""
    names = list(dict.fromkeys(n for r in reports.values() for n in (*r.classes, *r.rois)))
    rows, lines = [], []
    for label, report in reports.items():
        regions = {**report.classes, **report.rois}
        shifts = [f"{regions[name].shift:+.2f}" if name in regions else None for name in names]
        block = report.blocks[16]
        line = [f"{block.worst:+.2f}" if block.number else None, f"{report.low_band:.2f}"]
        rows.append([label, *shifts, *line, report.slope, report.structure])
        lines.append(f"{'PASS' if report.passed else 'FAIL'} {label}")
        lines += [f"  {sentence}" for sentence in report.failures]
        lines += [f"  warning: {sentence}" for sentence in report.warnings]
    head = ["shift, HU", *names, "worst 16 x 16 block", "low band", "slope", "structure"]
    return f"{format_table(head, rows)}\n\n" + "\n".join(lines)


def _content(images: Mapping[str, Any], reports: Mapping[str, Any], args: argparse.Namespace) -> dict[str, Any]:
    """Everything for ``ct_numbers.json``."""
    rows = {
        label: {
            name: {key: value if math.isfinite(value) else None for key, value in statistics._asdict().items()}
            for name, statistics in found.items()
        }
        for label, found in images.items()
    }
    settings = {"patch": args.patch, "count": args.count, "media": parse_media(args.media)}
    limits = {"region_limit": args.region_limit, "block_limit": args.block_limit, "strict": args.strict}
    audits = {label: report.as_dict() for label, report in reports.items()}
    return {**settings, **limits, "statistics": rows, "audits": audits}
