# SPDX-License-Identifier: Apache-2.0
"""The command ``labelfx``: argument parsing only; each command imports what it needs when it runs."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

from monai_labelfx._version import __version__

COMMANDS = {
    "list": "list_bundles",
    "new": "new",
    "check": "check",
    "convert": "convert",
    "prepare": "prepare",
    "run": "run",
    "compare": "compare",
    "ct_numbers": "ct_numbers",
    "demo": "demo",
    "report": "report",
    "verify": "verify",
}
"""Command name to the module of ``monai_labelfx.commands`` that holds it, in the order of a user's work."""


class OverrideParser(argparse.ArgumentParser):
    """Argument parser that keeps options it does not know, ``--id value`` or ``--id=value``, as ``overrides``."""

    def parse_known_args(self, args=None, namespace=None):
        arguments = list(sys.argv[1:] if args is None else args)
        namespace = argparse.Namespace() if namespace is None else namespace
        known, overrides = [], {}
        while arguments:
            argument = arguments.pop(0)
            option, equals, value = argument.partition("=")
            if not option.startswith("--") or len(option) == 2 or option in self._option_string_actions:
                known.append(argument)
                continue
            if not equals:
                if not arguments or arguments[0].startswith("--"):
                    self.error(f"{option} needs a value: {option} VALUE")
                value = arguments.pop(0)
            overrides[option[2:]] = value
        namespace.overrides = overrides
        return super().parse_known_args(known, namespace)


def build_parser() -> argparse.ArgumentParser:
    """The parser with all sub-commands; imports neither torch nor MONAI."""
    parser = argparse.ArgumentParser(
        prog="labelfx",
        description="MONAI bundles for learning from few, weak or no labels, in 2-D and 3-D.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=OverrideParser)
    for name, module_name in COMMANDS.items():
        module = importlib.import_module(f"monai_labelfx.commands.{module_name}")
        text = (module.__doc__ or "").strip()
        command = commands.add_parser(
            name,
            help=text.splitlines()[0].partition(": ")[2],
            description=text.partition(": ")[2],
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        command.add_argument("--debug", action="store_true", help="show the full traceback of an error")
        module.add_arguments(command)
        command.set_defaults(main=module.main, takes_overrides=getattr(module, "OVERRIDES", False), error=command.error)
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code, 1 with one sentence on standard error when it fails."""
    args = build_parser().parse_args(arguments)
    if args.overrides and not args.takes_overrides:
        args.error(f"unrecognized arguments: {' '.join(f'--{name}' for name in args.overrides)}")
    try:
        return args.main(args)
    except KeyboardInterrupt:
        print(f"labelfx {args.command}: interrupted", file=sys.stderr)
        return 130
    except Exception as error:
        if args.debug:
            raise
        from monai_labelfx.commands.root_cause import root_cause

        print(f"labelfx {args.command}: {root_cause(error)}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
