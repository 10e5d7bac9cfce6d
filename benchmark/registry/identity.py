"""Hashes of source code, which are part of a cell's identity.

A hash covers the syntax trees, without docstrings, comments and layout. A cell depends only on the code that its scene, data
set, defense and attack import.
"""

from __future__ import annotations

import ast
import hashlib
import importlib.util
from functools import cache
from pathlib import Path

from benchmark.registry.imports import reachable

MESSAGE_MODULES = frozenset({"benchmark.base.errors", "benchmark.base.events", "benchmark.outlook"})
"""Modules that only tell the user something: messages, progress and expectations. No image depends on them."""

Tree = str | tuple["Tree", ...]


def code_hash(path: Path, module: str | None) -> str:
    """Return a hash of the code of a file and of everything that it imports from `benchmark` and from its own package.

    Args:
        path: the source file.
        module: the name of its module; None if the file is outside of any package. Its package is then the files in the
            same folder.
    """
    packages = {"benchmark", *([module.partition(".")[0]] if module else [file.stem for file in path.parent.glob("*.py")])}

    def is_covered(name: str) -> bool:
        return name.partition(".")[0] in packages and name not in MESSAGE_MODULES

    imported = dict(reachable(path, module, is_covered))
    digest = hashlib.blake2b(digest_of(path).encode(), digest_size=16)
    for name in sorted(filter(is_covered, imported)):
        digest.update(f"{name}={digest_of(imported[name])};".encode())
    return digest.hexdigest()


def module_hash(module: str) -> str:
    """Return `code_hash` of a module of GIDBench, given by its name."""
    spec = importlib.util.find_spec(module)
    assert spec is not None and spec.origin is not None
    return code_hash(Path(spec.origin), module)


def digest_of(path: Path) -> str:
    """Return a hash of the syntax tree of one file."""
    return _cached_digest(path, path.stat().st_mtime_ns)


@cache
def _cached_digest(path: Path, modified_ns: int) -> str:
    """Return the hash of the syntax tree of one file.

    Results are cached by the time of the last change, because all cells need the hashes of the same files.
    """
    return tree_digest(path.read_text(encoding="utf-8"))


def tree_digest(source: str) -> str:
    """Return a hash of the syntax tree of a source text. The hash does not depend on the Python version."""
    return hashlib.blake2b(repr(_nested_tuples(ast.parse(source))).encode(), digest_size=16).hexdigest()


def _nested_tuples(value: object) -> Tree:
    """Return a syntax tree as nested tuples, without empty fields and without bare strings."""
    if isinstance(value, list):
        return tuple(_nested_tuples(item) for item in value if not _is_bare_string(item))
    if isinstance(value, ast.AST):
        fields = [(name, part) for name, part in ast.iter_fields(value) if part is not None and part != []]
        return (type(value).__name__, *((name, _nested_tuples(part)) for name, part in fields))
    return repr(value)


def _is_bare_string(node: object) -> bool:
    """Return whether a statement is a bare string: a docstring, or the description of the line above it."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
