# SPDX-License-Identifier: Apache-2.0
"""labelfx list: the bundles that are installed, with their presets and rivals."""

from __future__ import annotations

import argparse
import json
import textwrap
from pathlib import Path

from monai_labelfx.commands.bundle_folder import BUNDLES, describe_bundle, list_bundles


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("--json", action="store_true", help="print a JSON list")
    parser.add_argument(
        "--bundle-dir", type=Path, default=BUNDLES, help="look for bundles in this folder instead of the package"
    )


def main(args: argparse.Namespace) -> int:
    """List bundles."""
    bundles = [describe_bundle(folder) for folder in list_bundles(args.bundle_dir)]
    if args.json:
        print(json.dumps(bundles, indent=2))
        return 0
    for bundle in bundles:
        print(f"{bundle['name']}  (folder {bundle['folder']}, version {bundle['version']})")
        for line in (bundle["task"], bundle["description"]):
            print(textwrap.fill(line, 100, initial_indent="    ", subsequent_indent="    "))
        for kind in ("presets", "rivals", "sweeps"):
            print(f"    {kind}: {', '.join(bundle[kind]) or 'none'}")
    if not bundles:
        print(f"no bundles in {args.bundle_dir}")
    return 0
