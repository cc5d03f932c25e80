# SPDX-License-Identifier: Apache-2.0
"""labelfx new: copy a bundle out of the package into a folder of your own, to change it there."""

from __future__ import annotations

import argparse
import os
import shutil
import tempfile
from pathlib import Path

from monai_labelfx.commands.bundle_folder import find_bundle


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("bundle", metavar="BUNDLE", help="stem or folder name of a bundle, or a path to one")
    parser.add_argument("folder", metavar="DIR", type=Path, help="folder to make; it must be absent or empty")


def copy_bundle(bundle: str | Path, folder: str | Path) -> Path:
    """Copy a bundle to a new folder: first to a temporary name beside it, then renamed, so it is whole or absent.

    Raises:
        ValueError: when ``folder`` exists and is not an empty folder.
    """
    source, target = find_bundle(bundle), Path(folder).expanduser().absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise ValueError(f"{target} exists and is not an empty folder: give a new name, or empty it first")
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}.", dir=target.parent) as temporary:
        copy = Path(temporary) / "bundle"
        shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"), copy_function=shutil.copyfile)
        for path in (copy, *copy.rglob("*")):
            os.chmod(path, 0o755 if path.is_dir() else 0o644)  # the package may be installed read only
        if target.exists():
            target.rmdir()
        os.replace(copy, target)
    return target


def main(args: argparse.Namespace) -> int:
    """Copy the bundle and say how to go on."""
    folder = copy_bundle(args.bundle, args.folder)
    print(f"made {folder}; run it by:  labelfx run {folder} train --dataset_dir DATA --out runs/{folder.name}")
    return 0
