# SPDX-License-Identifier: Apache-2.0
"""labelfx check: open every image of a datalist or folder before any work, and report each fault on one line.

A datalist is checked with its labels, boxes and splits; of a folder, such as a PACS export, every image and every DICOM
series is opened.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from monai_labelfx.commands.table import format_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("path", metavar="PATH", type=Path, help="datalist (.json), folder of images, or one image")
    parser.add_argument("--spatial-dims", type=int, metavar="N", help="number of spatial axes that images must have")
    parser.add_argument("--labels", metavar="0,1,2", help="values that labels may have; default: any instance map")
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")


def parse_labels(text: str | None) -> list[int] | None:
    """``"0,1,2"`` as numbers.

    Example:
        >>> parse_labels("0, 1,2")
        [0, 1, 2]
    """
    try:
        return None if text is None else [int(part) for part in text.split(",")]
    except ValueError as error:
        raise ValueError(f"--labels is {text!r}, expected whole numbers with commas between them: 0,1,2") from error


def main(args: argparse.Namespace) -> int:
    """Print the table of items, then one line per fault; 1 when there is any."""
    from monai_labelfx.commands.quiet import quiet_bundle_runs

    labels = parse_labels(args.labels)
    quiet_bundle_runs()
    from monai_labelfx.data import check_datalist, check_images

    if args.path.suffix.lower() == ".json":
        report = check_datalist(args.path, spatial_dims=args.spatial_dims, allowed_labels=labels)
    elif labels is None:
        report = check_images(args.path, spatial_dims=args.spatial_dims)
    else:
        raise ValueError("--labels needs a datalist (.json): a folder does not tell which of its images are labels")
    if args.json:
        print(json.dumps(report, indent=2))
        return int(bool(report["faults"]))
    rows = []
    for row in report["rows"]:
        shape = "x".join(map(str, row["shape"])) if row["shape"] else None
        spacing = "x".join(f"{size:.4g}" for size in row["spacing"]) if row["spacing"] else None
        state = "FAULT" if row["faults"] else "warning" if row["warnings"] else "ok"
        rows.append([row["split"], row["index"], row["item"], shape, spacing, row["dtype"], row["labels"], state])
    if rows:
        print(
            format_table(["split", "no.", "image", "shape", "spacing mm", "type", "labels", "state"], rows), end="\n\n"
        )
    for kind in ("fault", "warning"):
        for line in report[f"{kind}s"]:  # type: ignore[literal-required]
            print(f"{kind}: {line}")
    print(f"{len(rows)} items, {len(report['faults'])} faults, {len(report['warnings'])} warnings in {args.path}")
    return int(bool(report["faults"]))
