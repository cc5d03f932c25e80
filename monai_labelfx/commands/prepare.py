# SPDX-License-Identifier: Apache-2.0
"""labelfx prepare: turn a public data set, as it is downloaded, into images and a datalist.

Options of the data set follow as --key value; `labelfx prepare` with an unknown name lists the data sets.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monai_labelfx.commands.bundle_folder import PACKAGE
from monai_labelfx.commands.files import read_json

OVERRIDES = True


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("dataset", metavar="DATASET", help=f"one of: {', '.join(dataset_names()) or 'none'}")
    parser.add_argument("source", metavar="SRC", type=Path, help="folder or file of the data set as it was downloaded")
    parser.add_argument("destination", metavar="DST", type=Path, help="folder to write into")


def dataset_names() -> list[str]:
    """The modules of ``monai_labelfx/data/prepare``."""
    return sorted(f.stem for f in (PACKAGE / "data" / "prepare").glob("*.py") if not f.stem.startswith("_"))


def bind_options(function: Callable, pairs: Mapping[str, str]) -> dict[str, Any]:
    """Keyword options of a ``prepare`` function from the command line.

    Raises:
        ValueError: for an option that the function does not have; the sentence lists those it has.
    """
    from monai_labelfx.commands.workflow import parse_overrides

    options = list(inspect.signature(function).parameters)[2:]
    values = parse_overrides({name.replace("-", "_"): text for name, text in pairs.items()})
    for name in values:
        if name not in options:
            raise ValueError(f"no option --{name}: this data set has {', '.join(f'--{o}' for o in options) or 'none'}")
    return values


def main(args: argparse.Namespace) -> int:
    """Prepare the data set and say where its datalist is."""
    if args.dataset not in dataset_names():
        raise ValueError(f"no data set {args.dataset!r}: there are {', '.join(dataset_names()) or 'none'}")
    if not args.source.exists():
        raise ValueError(f"{args.source} does not exist: give the folder or file of the downloaded data set")
    from monai_labelfx.commands.workflow import writable_folder

    prepare = importlib.import_module(f"monai_labelfx.data.prepare.{args.dataset}").prepare
    options = bind_options(prepare, args.overrides)
    datalist = prepare(args.source, writable_folder(args.destination), **options)
    for size, labels in (read_json(datalist, {}).get("patch_labels") or {}).items():
        bits = ", ".join(f"{value:g}" for value in labels["entropy_in_bits"])
        print(f"patches of {size}: {100 * labels['with_both_labels']:.0f} % hold both classes, {bits} bit per label")
    print(f"wrote {datalist}; look at it by:  labelfx check {datalist}")
    return 0
