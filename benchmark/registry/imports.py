"""Find the imports of a source file from its text. The knowledge wall and the code hashes of plugins use this."""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path


def reachable(path: Path, module: str | None, follow: Callable[[str], bool]) -> Iterator[tuple[str, Path]]:
    """Yield every module that a file imports, directly or indirectly. Imports for type hints count too.

    Args:
        path: the file.
        module: the name of its module; None if the file is outside of any package. Relative imports are resolved against it.
        follow: whether to look for further imports in the module of that name.

    Yields:
        Name and source file of each module, once.
    """
    found: set[str] = set()
    pending = [(path, module)]
    while pending:
        for name, origin in _direct_imports(*pending.pop()):
            if name not in found:
                found.add(name)
                yield name, origin
                if follow(name):
                    pending.append((origin, name))


def _direct_imports(path: Path, module: str | None) -> tuple[tuple[str, Path], ...]:
    return _cached_imports(path, module, path.stat().st_mtime_ns)


@cache
def _cached_imports(path: Path, module: str | None, modified_ns: int) -> tuple[tuple[str, Path], ...]:
    """Return the direct imports of a file.

    Results are cached by the time of the last change, because a plan reads the same files many times.
    """
    return tuple(_read_imports(path, module))


def _read_imports(path: Path, module: str | None) -> Iterator[tuple[str, Path]]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute_name(node, module)
            names = [base, *(f"{base}.{alias.name}" for alias in node.names)] if base else []
        else:
            continue
        for name in names:
            if origin := _source_file(name):
                yield name, origin


def _absolute_name(node: ast.ImportFrom, module: str | None) -> str | None:
    if not node.level:
        return node.module
    if module is None:
        return None
    package = module.split(".")[: -node.level]
    return ".".join([*package, *([node.module] if node.module else [])])


def _source_file(name: str) -> Path | None:
    """Return the source file of a module; None if there is no such module or it has no source file."""
    try:
        spec = importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None
    return Path(spec.origin) if spec and spec.origin and spec.origin.endswith(".py") else None
