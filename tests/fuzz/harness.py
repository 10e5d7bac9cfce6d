"""Runs one generated case in a sandbox and says what was bad about it.

A case is a pure function of its kind and its number. A sandbox is the working directory of its case, and holds HOME and
GIDBENCH_DATA as `home` and `data`.
"""

from __future__ import annotations

import contextlib
import importlib
import os
import shutil
import signal
import stat
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

EXIT_CODES = frozenset({0, 1, 2, 129, 130, 143})

HERE = "{here}"
"""Stands for the sandbox in the words of a command line."""

LONGEST_LINE = 600
SECONDS = 30
"""Longest time of one command line."""


@dataclass(frozen=True)
class Outcome:
    """How one command line ended: its exit code, what it printed, and the fault if an exception escaped."""

    words: tuple[str, ...]
    code: object
    out: str
    err: str
    escaped: tuple[str, str] | None = None


@dataclass(frozen=True)
class Bad:
    """One reason why a case is bad: `reason` names the kind of fault, `detail` the instance."""

    seed: int
    reason: str
    detail: str

    def __str__(self) -> str:
        return f"seed {self.seed}: {self.reason}: {self.detail}"


def _nothing(place: Path) -> None:
    """Prepare no file."""


def _no_fault(place: Path, outcomes: Sequence[Outcome]) -> Iterable[tuple[str, str]]:
    return ()


@dataclass(frozen=True)
class Case:
    """What to run.

    Attributes:
        commands: command lines, run one after the other.
        prepare: writes the case's files into its sandbox.
        check: yields (reason, detail) for every wrong result.
        own: names in the sandbox below which the commands may write.
        around: a context in which the commands run.
    """

    commands: Sequence[Sequence[str]]
    prepare: Callable[[Path], None] = _nothing
    check: Callable[[Path, Sequence[Outcome]], Iterable[tuple[str, str]]] = _no_fault
    own: tuple[str, ...] = ("out",)
    around: Callable[[], contextlib.AbstractContextManager[object]] = contextlib.nullcontext


class TooLong(BaseException):
    """A command line ran longer than `SECONDS`. No `except Exception` catches it."""


def judge(kind: str, seed: int, place: Path) -> tuple[list[Outcome], list[Bad]]:
    """Run one case in the folder `place`, which is new."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of our own reading and writing; `_run` shows those of the commands
        return _judge(kind, seed, place)


def _judge(kind: str, seed: int, place: Path) -> tuple[list[Outcome], list[Bad]]:
    case: Case = importlib.import_module(f"tests.fuzz.{kind}").case(seed)
    shutil.rmtree(place, ignore_errors=True)
    for name in ("home", "data"):
        (place / name).mkdir(parents=True)
    before_env, before_cwd = dict(os.environ), Path.cwd()
    os.environ.update(HOME=str(place / "home"), GIDBENCH_DATA=str(place / "data"), HF_HUB_OFFLINE="1")
    os.chdir(place)
    try:
        case.prepare(place)
        before = _snapshot(place, case.own)
        with case.around():
            outcomes = [_run([word.replace(HERE, str(place)) for word in words]) for words in case.commands]
        faults = [fault for outcome in outcomes for fault in _faults(outcome)]
        changed = sorted(path for path, _ in before.items() ^ _snapshot(place, case.own).items())
        faults += [("a file outside of the output was touched", ", ".join(changed)[:200])] if changed else []
        faults += case.check(place, outcomes)
    finally:
        os.chdir(before_cwd)
        os.environ.clear()
        os.environ.update(before_env)
    return outcomes, [Bad(seed, *fault) for fault in faults]


def _run(words: Sequence[str]) -> Outcome:
    from benchmark.cli import main

    escaped = None
    with _captured() as read, _limited(), warnings.catch_warnings():
        warnings.resetwarnings()
        for category in (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning):
            warnings.simplefilter("ignore", category)  # as Python does outside of pytest
        try:
            code: object = main(words)
        except SystemExit as stop:
            code = stop.code or 0
        except BaseException as error:
            code, escaped = None, (f"{type(error).__name__} in {where(error)}", " ".join(str(error).split())[:300])
    return Outcome(tuple(words), code, *read, escaped)


def _faults(outcome: Outcome) -> Iterator[tuple[str, str]]:
    *notes, last = outcome.err.rstrip("\n").split("\n")
    if outcome.escaped:
        yield outcome.escaped
    elif outcome.code not in EXIT_CODES:
        yield "an exit code that is not documented", repr(outcome.code)
    elif "Traceback (most recent call last)" in outcome.err:
        yield "a traceback was printed", outcome.err[-300:]
    elif outcome.code == 2:
        if not last.startswith("error: ") or not all(line.startswith("note: ") for line in notes):
            yield "not one sentence", outcome.err[-400:]
        if len(last) > LONGEST_LINE:
            yield "a message of more than 600 letters", last[:200]


def where(error: BaseException) -> str:
    """Return the innermost function of the checkout that the exception passed."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if Path(f.filename).is_relative_to(ROOT) and "tests/fuzz" not in f.filename]
    frame = (ours or frames)[-1]
    name = Path(frame.filename)
    return f"{name.relative_to(ROOT) if name.is_relative_to(ROOT) else name.name}:{frame.name}"


@contextlib.contextmanager
def _limited() -> Iterator[None]:
    def stop(number: int, frame: object) -> None:
        raise TooLong(f"more than {SECONDS} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@contextlib.contextmanager
def _captured() -> Iterator[list[str]]:
    """Yield a list that receives what was printed on stdout and on stderr, by libraries in C too."""
    read: list[str] = []
    kept = [os.dup(number) for number in (1, 2)]
    with (
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="strict") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8", errors="backslashreplace") as err,
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        files = [os.dup(file.fileno()) for file in (out, err)]  # our own: the command may close its streams
        for number, file in zip((1, 2), files, strict=True):
            os.dup2(file, number)
        try:
            yield read
        finally:
            for stream, file, number, former in zip((out, err), files, (1, 2), kept, strict=True):
                with contextlib.suppress(ValueError):
                    stream.flush()
                os.dup2(former, number)
                os.close(former)
                read.append(os.pread(file, 2**20, 0).decode(errors="replace"))
                os.close(file)


def _snapshot(place: Path, own: Sequence[str]) -> dict[str, tuple[object, ...]]:
    """Return kind, size and time of change of everything in the sandbox that the case must leave alone."""
    found: dict[str, tuple[object, ...]] = {}
    for folder, folders, files in os.walk(place):
        folders[:], files[:] = (
            [name for name in names if folder != str(place) or name not in own] for names in (folders, files)
        )
        for name in (*folders, *files):
            path = Path(folder, name)
            status = path.lstat()
            is_folder = stat.S_ISDIR(status.st_mode)
            found[os.fsencode(path.relative_to(place)).decode(errors="replace")] = (
                (status.st_mode,) if is_folder else (status.st_mode, status.st_size, status.st_mtime_ns, status.st_ino)
            )
    return found
