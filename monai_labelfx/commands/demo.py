# SPDX-License-Identifier: Apache-2.0
"""labelfx demo: a bundle on small data, from raw images to predictions, a picture and a table; needs no network."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Mapping
from pathlib import Path

from monai_labelfx.commands.bundle_folder import find_bundle, stem

PREDICTIONS = (".nii", ".nii.gz", ".tif", ".tiff", ".dcm", ".npz", ".mrk.json")
NOT_PREDICTIONS = {"data", "models"}
"""Sub-folders whose files are input or weights."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("bundle", metavar="NAME", help="stem or folder name of a bundle, or a path to one")
    parser.add_argument("--out", type=Path, metavar="DIR", help="folder to write into; default: runs/demo/NAME")
    parser.add_argument("--data", metavar="CHOICE", help="one of the demo's other data sets")
    parser.add_argument("--no-progress", action="store_true", help="show no progress bar")


def main(args: argparse.Namespace) -> int:
    """Run the demo, write its report, and say where everything is."""
    from monai_labelfx.commands.plan import load_plan, run_plan
    from monai_labelfx.commands.report import write_report

    bundle = find_bundle(args.bundle)
    out = (args.out or Path("runs") / "demo" / stem(bundle)).expanduser()
    plan = load_plan(bundle, choice=args.data)
    folders = run_plan(bundle, plan, out, progress=not args.no_progress)
    found = collect_outputs(out, folders)
    found["report"] = write_report(out)
    print()
    for what, path in found.items():
        print(f"{what:<12}{path}")
    return 0


def collect_outputs(out: Path, folders: Mapping[str, Path]) -> dict[str, Path]:
    """Make sure that a demo left metrics, a picture and a prediction.

    ``metrics.json`` of the folder holds the numbers of all steps as ``<step>/<metric>``; the first picture is copied
    to ``overview.png`` when none lies in the folder itself.

    Raises:
        ValueError: naming what is missing.
    """
    from monai_labelfx.commands.files import write_json
    from monai_labelfx.commands.table import read_metrics

    metrics = {f"{name}/{k}": v for name, folder in folders.items() for k, v in read_metrics(folder).items()}
    if not metrics:
        raise ValueError(f"no step of the demo wrote metrics.json below {out}")
    write_json(out / "metrics.json", metrics)
    found = {"metrics": out / "metrics.json"}
    if (out / "table.md").is_file():
        found["table"] = out / "table.md"
    places = [*folders.values(), out]
    files = [f for place in places for f in sorted(place.rglob("*")) if f.is_file()]
    files = [f for f in files if not NOT_PREDICTIONS & {*f.parts[len(out.parts) :]}]
    pictures = sorted(
        (f for f in files if f.suffix == ".png"), key=lambda f: (f.parent != out, f.name != "overview.png")
    )
    predictions = [f for f in files if f.name.lower().endswith(PREDICTIONS)]
    for what, paths in {"picture (*.png)": pictures, f"prediction ({', '.join(PREDICTIONS)})": predictions}.items():
        if not paths:
            raise ValueError(f"the demo left no {what} below {out}")
    found["picture"] = pictures[0]
    if pictures[0].parent != out:
        found["picture"] = Path(shutil.copyfile(pictures[0], out / "overview.png"))
    return found | {"predictions": predictions[0].parent}
