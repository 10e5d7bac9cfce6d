"""A report's files put in their places: drawn aside in whole first, and nobody else's file is lost.

RUN/.report.json names each file that a report wrote, with the checksums by which it is known again: only such a file is
replaced or deleted. Any other file of a name that a report needs is kept under a backup name. The manifest holds the old and
the new checksums while files are replaced, so that a report which is killed at any moment is mended by the next one.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from benchmark.base.errors import UserError, remark
from benchmark.base.files import digest, file_digest, remove, set_aside, sync, write_new
from benchmark.base.parsing import parse_json, read_text

MANIFEST = ".report.json"

FIGURES = "figures"

_ASIDE = ".report-"
_ASIDE_DIGITS = 16
_OWN = re.compile(rf"leaderboard\.(csv|md|tex)|{FIGURES}/[^/\0.][^/\0]*\.(png|pdf)")
"""Names of files that a report writes, relative to the run directory."""
_DIGEST = re.compile(r"[0-9a-f]{32}")

Manifest = Mapping[str, frozenset[str]]
"""The checksums that a file of a report may have, by its name relative to the run directory."""


@contextmanager
def publishing(run: Path) -> Iterator[Path]:
    """Give a directory to write a report into, and put its files in their places afterwards.

    Raises:
        OSError: the disk does not take it.
    """
    with _alone(run):
        for leftover in run.glob(f"{_ASIDE}{'[0-9a-f]' * _ASIDE_DIGITS}"):
            remove(leftover)
        aside = run / f"{_ASIDE}{secrets.token_hex(_ASIDE_DIGITS // 2)}"
        aside.mkdir()
        try:
            (aside / FIGURES).mkdir()
            yield aside
            _publish(aside, run)
        finally:
            remove(aside)


def _publish(aside: Path, run: Path) -> None:
    files = [path for folder in (aside, aside / FIGURES) for path in sorted(folder.iterdir()) if path.is_file()]
    new = {path.relative_to(aside).as_posix(): frozenset([digest(path.read_bytes())]) for path in files}
    old = read_manifest(run)
    standing = {name: frozenset([file_digest(run / name) or ""]) & old[name] for name in old}
    both = {name: new.get(name, frozenset()) | standing.get(name, frozenset()) for name in {*old, *new}}
    for path in files:
        sync(path)
    (run / FIGURES).mkdir(exist_ok=True)
    _write_manifest(aside, run, both)
    kept = [_place(aside, run, name, both[name]) for name in new]
    for name in old.keys() - new.keys():
        if standing[name]:
            (run / name).unlink()
    _write_manifest(aside, run, new)
    backups = [path.relative_to(run).as_posix() for path in kept if path]
    if backups:
        more = f" and {len(backups) - 1} more" if len(backups) > 1 else ""
        remark(f"a report on {run} needed file names that were in use; the old files are kept as {backups[0]}{more}")


def _place(aside: Path, run: Path, name: str, known: frozenset[str]) -> Path | None:
    """Rename a file of the report to its place. Return the backup of what stood there, where no report wrote that."""
    target = run / name
    backup = set_aside(target) if os.path.lexists(target) and file_digest(target) not in known else None
    (aside / name).replace(target)
    return backup


def read_manifest(run: Path) -> Manifest:
    """Return what earlier reports wrote; a manifest that is a link or cannot be read names nothing."""
    path = run / MANIFEST
    try:
        values = parse_json(read_text(path, "manifest"), "manifest") if not path.is_symlink() else {}
    except (UserError, OSError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {name: frozenset(digests) for name, digests in values.items() if _OWN.fullmatch(name) and _are_digests(digests)}


def _are_digests(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and _DIGEST.fullmatch(item) for item in value)


def _write_manifest(aside: Path, run: Path, files: Manifest) -> None:
    text = json.dumps({name: sorted(files[name]) for name in sorted(files)}, indent=1)
    written = aside / secrets.token_hex(8)
    write_new(written, text.encode())
    written.replace(run / MANIFEST)
    sync(run)


@contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Wait for another report on the same directory, where the file system has locks."""
    handle = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
