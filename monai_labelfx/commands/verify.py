# SPDX-License-Identifier: Apache-2.0
"""labelfx verify: all checks that a bundle must pass, offline and on the CPU; exit code 0 only when every one does."""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from monai_labelfx.commands.bundle_folder import find_bundle
from monai_labelfx.commands.root_cause import root_cause


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of this command."""
    parser.add_argument("bundle", metavar="NAME", help="stem or folder name of a bundle, or a path to one")


def main(args: argparse.Namespace) -> int:
    """Print a line per check; 1 when any failed."""
    from monai_labelfx.commands.quiet import quiet_bundle_runs

    bundle = find_bundle(args.bundle)
    quiet_bundle_runs()
    failed = 0
    with tempfile.TemporaryDirectory(prefix="labelfx-verify-") as scratch:
        for name, check in bundle_checks(bundle, Path(scratch)).items():
            failed += not run_check(name, check, debug=args.debug)
    print(f"{bundle.name}: {f'{failed} checks failed' if failed else 'all checks passed'}")
    return int(failed > 0)


def bundle_checks(bundle: Path, scratch: Path) -> dict[str, Callable[[], None]]:
    """Name to check, in the order in which they are run; a check raises when it fails."""
    from monai_labelfx.commands import bundle_checks as reading
    from monai_labelfx.commands.bundle_trials import BundleTrials

    trials = BundleTrials(bundle, scratch)
    return {
        "files": partial(reading.check_files, bundle),
        "metadata schema": partial(reading.check_schema, bundle),
        "metadata by MONAI": trials.metadata_by_monai,
        "changelog": partial(reading.check_changelog, bundle),
        "versions": partial(reading.check_versions, bundle),
        "components": partial(reading.check_components, bundle),
        **{f"properties of {w}": partial(trials.properties, w) for w in ("train", "evaluate", "inference")},
        "network in and out": trials.net_in_out,
        "ckpt_export": trials.ckpt_export,
        "onnx_export": trials.onnx_export,
        "torch.export": trials.torch_export,
    }


def run_check(name: str, check: Callable[[], None], *, debug: bool = False) -> bool:
    """Run one check and print its line, with one sentence when it failed."""
    start, fault = time.monotonic(), ""
    try:
        check()
    except Exception as error:
        if debug:
            raise
        fault = root_cause(error)
    seconds = time.monotonic() - start
    print(f"{'FAIL' if fault else 'ok':<5}{name:<24}{seconds:6.1f} s{f'  {fault}' if fault else ''}", flush=True)
    return not fault
