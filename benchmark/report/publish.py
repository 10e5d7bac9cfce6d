"""Put the files of a report in place. All are first written to a temporary directory, and no other file is lost.

RUN/.report.json, the manifest, lists each file that a report wrote, with checksums that identify it. Only such a file is
replaced or deleted. If a report needs a name that any other file has, that file is kept under a backup name. While files are
replaced, the manifest holds both old and new checksums. So if a report is killed at any moment, the next report repairs the
directory.
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

_TEMP_PREFIX = ".report-"
_TEMP_DIGITS = 16
_REPORT_FILE = re.compile(rf"leaderboard\.(csv|md|tex)|{FIGURES}/[^/\0.][^/\0]*\.(png|pdf)")
"""Names of the files that a report writes, relative to the run directory."""
_DIGEST = re.compile(r"[0-9a-f]{32}")

Manifest = Mapping[str, frozenset[str]]
"""The possible checksums of each file of a report, by its name relative to the run directory."""


@contextmanager
def publishing(run: Path) -> Iterator[Path]:
    """Yield a directory for a new report, and put its files in place afterwards.

    Raises:
        OSError: the files cannot be written.
    """
    with _locked(run):
        for leftover in run.glob(f"{_TEMP_PREFIX}{'[0-9a-f]' * _TEMP_DIGITS}"):
            remove(leftover)
        temp = run / f"{_TEMP_PREFIX}{secrets.token_hex(_TEMP_DIGITS // 2)}"
        temp.mkdir()
        try:
            (temp / FIGURES).mkdir()
            yield temp
            _publish(temp, run)
        finally:
            remove(temp)


def _publish(temp: Path, run: Path) -> None:
    files = [path for folder in (temp, temp / FIGURES) for path in sorted(folder.iterdir()) if path.is_file()]
    new = {path.relative_to(temp).as_posix(): frozenset([digest(path.read_bytes())]) for path in files}
    old = read_manifest(run)
    unchanged = {name: frozenset([file_digest(run / name) or ""]) & old[name] for name in old}
    old_and_new = {name: new.get(name, frozenset()) | unchanged.get(name, frozenset()) for name in {*old, *new}}
    for path in files:
        sync(path)
    (run / FIGURES).mkdir(exist_ok=True)
    _write_manifest(temp, run, old_and_new)
    kept = [_place(temp, run, name, old_and_new[name]) for name in new]
    for name in old.keys() - new.keys():
        if unchanged[name]:
            (run / name).unlink()
    _write_manifest(temp, run, new)
    backups = [path.relative_to(run).as_posix() for path in kept if path]
    if backups:
        more = f" and {len(backups) - 1} more" if len(backups) > 1 else ""
        remark(f"a report on {run} needed file names that were in use; the old files are kept as {backups[0]}{more}")


def _place(temp: Path, run: Path, name: str, known: frozenset[str]) -> Path | None:
    """Rename a file of the report to its place. Return the backup of a file there that no report wrote, else None."""
    target = run / name
    backup = set_aside(target) if os.path.lexists(target) and file_digest(target) not in known else None
    (temp / name).replace(target)
    return backup


def read_manifest(run: Path) -> Manifest:
    """Return the files that earlier reports wrote. A manifest that is a link or cannot be read counts as empty."""
    path = run / MANIFEST
    try:
        values = parse_json(read_text(path, "manifest"), "manifest") if not path.is_symlink() else {}
    except (UserError, OSError):
        return {}
    if not isinstance(values, dict):
        return {}
    return {
        name: frozenset(digests) for name, digests in values.items() if _REPORT_FILE.fullmatch(name) and _are_digests(digests)
    }


def _are_digests(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) and _DIGEST.fullmatch(item) for item in value)


def _write_manifest(temp: Path, run: Path, files: Manifest) -> None:
    text = json.dumps({name: sorted(files[name]) for name in sorted(files)}, indent=1)
    written = temp / secrets.token_hex(8)
    write_new(written, text.encode())
    written.replace(run / MANIFEST)
    sync(run)


@contextmanager
def _locked(run: Path) -> Iterator[None]:
    """Wait until no other report writes into the directory, if the file system supports locks."""
    handle = os.open(run, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
