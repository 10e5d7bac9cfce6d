"""The command line: one module per verb. A verb imports what is heavy only when it runs, so that `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import benchmark
from benchmark.cli import check, compare, info, report, run, train
from benchmark.cli import list as list_
from benchmark.errors import UserError, unknown

VERBS = {"run": run, "train": train, "list": list_, "report": report, "compare": compare, "check": check, "info": info}

EXIT_INTERRUPTED = 130


class _Parser(argparse.ArgumentParser):
    """Turns every mistake into a `UserError`, with the nearest valid name where there is one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{message} (see '{self.prog} --help')")

    def parse_known_args(self, args=None, namespace=None):  # type: ignore[no-untyped-def]
        known, rest = super().parse_known_args(args, namespace)
        for word in rest:
            if word.startswith("-"):
                options = [option for action in self._actions for option in action.option_strings]
                raise unknown("option", word.partition("=")[0], options)
        return known, rest

    def _check_value(self, action: argparse.Action, value: object) -> None:
        if action.choices is not None and value not in action.choices:
            name = action.option_strings[-1] if action.option_strings else str(action.metavar)
            raise unknown(name, str(value), action.choices)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command line and return its exit code: 0 good, 1 some cell or check failed, 2 bad arguments."""
    try:
        options = _parser().parse_args(arguments)
        return int(options.execute(options))
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        sys.stderr.close()
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="python -m benchmark", description=benchmark.__doc__.partition("\n")[0], allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"GIDBench {benchmark.__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="verb", required=True, parser_class=_Parser)
    for name, module in VERBS.items():
        summary = (module.__doc__ or "").partition("\n")[0]
        verb = verbs.add_parser(name, help=summary, description=summary, allow_abbrev=False)
        module.add_arguments(verb)
        verb.set_defaults(execute=module.execute)
    return parser
