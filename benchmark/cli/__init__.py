"""The command line, with one module per verb. Slow imports happen only when a verb runs, so `--help` is quick."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NoReturn

import benchmark
from benchmark.base.errors import UserError, say, unknown, whole_message
from benchmark.base.interrupts import Interrupted, exit_code, record_interrupts
from benchmark.cli import check, compare, diagnose, info, report, run, train
from benchmark.cli import list as list_
from benchmark.cli.output import discard_stdout, prepare_streams

VERBS = {
    "run": run,
    "diagnose": diagnose,
    "train": train,
    "list": list_,
    "report": report,
    "compare": compare,
    "check": check,
    "info": info,
}

EXIT_FAILED = 1
EXIT_MISTAKE = 2


class _Parser(argparse.ArgumentParser):
    """A parser that raises a `UserError` for every mistake, with the most similar valid name if there is one."""

    def error(self, message: str) -> NoReturn:
        raise UserError(f"{whole_message(ValueError(message))} (see '{self.prog} --help')")

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
    """Run a command line and return its exit code.

    Returns:
        0: success.
        1: a cell or a check failed, memory ran out, or the output was closed or full.
        2: the command cannot be carried out as given; one sentence on stderr says why.
        130, 143, 129: the command was ended by Ctrl-C, SIGTERM or SIGHUP.
    """
    prepare_streams()
    try:
        with record_interrupts(patient=False):
            options = _parser().parse_args(arguments)
            code = int(options.execute(options))
            sys.stdout.flush()
            return code
    except UserError as error:
        return _report_error(str(error), EXIT_MISTAKE)
    except Interrupted as error:
        return exit_code(error.number)
    except Exception as error:
        if _out_of_memory(error):
            return _report_error(f"memory ran out: {whole_message(error)}", EXIT_FAILED)
        if isinstance(error, OSError):
            return _report_system_error(error)
        raise


def _report_error(sentence: str, code: int) -> int:
    say(f"error: {sentence}")
    return code


def _report_system_error(error: OSError) -> int:
    """Report an error of the operating system, about a file or about the output, and return the exit code."""
    reason = error.strerror or whole_message(error)
    if error.filename is not None:
        return _report_error(f"{error.filename}: {reason}", EXIT_MISTAKE)
    discard_stdout()
    if isinstance(error, BrokenPipeError):  # the reader of the output, e.g. `head`, has closed it
        return EXIT_FAILED
    return _report_error(f"cannot write to the output: {reason}", EXIT_FAILED)


def _out_of_memory(error: Exception) -> bool:
    if isinstance(error, MemoryError):
        return True
    if "torch" not in sys.modules:
        return False
    from benchmark.base.machine import out_of_memory

    return out_of_memory(error)


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
