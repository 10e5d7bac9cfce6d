"""Name -> plugin, by scanning folders and entry points. Finding and listing read source text; only `load` imports a plugin."""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from benchmark.base import config
from benchmark.base.errors import UserError, first_line, unknown
from benchmark.base.spec import Spec
from benchmark.registry.identity import code_hash

KINDS = {"attack": ("Attack", "MatchingAttack"), "defense": ("Defense",), "dataset": ("Dataset",)}
"""Kind of plugin -> the base classes in `benchmark.plugins` that mark it."""


@dataclass(frozen=True)
class Plugin:
    """A plugin as its source text describes it, without importing it.

    Attributes:
        kind: `attack`, `defense` or `dataset`.
        name: the file's stem, or the entry point's name.
        path: its source file.
        module: the module to import it as; a file outside of any package has none and is loaded from its path.
        class_name: the class in it.
    """

    kind: str
    name: str
    path: Path
    module: str | None
    class_name: str

    @property
    def code_hash(self) -> str:
        """A hash of its code and of the code that it imports; part of the identity of its cells."""
        return code_hash(self.path, self.module)

    @cached_property
    def summary(self) -> str:
        """The first line of its docstring."""
        return (ast.get_docstring(self._tree) or "").partition("\n")[0]

    @cached_property
    def citation(self) -> str:
        """The rest of the line that begins with `Source:` in its docstring, empty if there is none."""
        lines = (ast.get_docstring(self._tree) or "").splitlines()
        return next((line.removeprefix("Source:").strip() for line in lines if line.startswith("Source:")), "")

    @property
    def control(self) -> bool:
        """For an attack, whether it is a control that ships in every table."""
        value = self._attribute("control")
        return isinstance(value, ast.Constant) and value.value is True

    def capabilities(self, attribute: str) -> tuple[str, ...]:
        """The members of `Capability` that the class attribute `needs` or `hides` names, in lower case."""
        value = self._attribute(attribute)
        nodes = ast.walk(value) if value else ()
        return tuple(sorted(n.attr.lower() for n in nodes if isinstance(n, ast.Attribute)))

    @cached_property
    def _tree(self) -> ast.Module:
        return _parse(self.path)

    def _attribute(self, name: str) -> ast.expr | None:
        for node in _class(self._tree, self.class_name).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value  # type: ignore[attr-defined, no-any-return]
        return None


class Registry:
    """All plugins: the shipped folders, the entry points `gidbench.attacks` and so on, and included folders.

    Raises:
        UserError: a folder is missing, a plugin's source cannot be read, or two plugins share a name.
    """

    def __init__(self, include: Sequence[Path] = ()) -> None:
        self._plugins: dict[tuple[str, str], Plugin] = {}
        for plugin in (*_shipped(), *_installed(), *_included(include)):
            key = (plugin.kind, plugin.name)
            if key in self._plugins:
                other = self._plugins[key].path
                raise UserError(f"two {plugin.kind}s are called '{plugin.name}': {other} and {plugin.path}")
            self._plugins[key] = plugin

    def all(self, kind: str) -> list[Plugin]:
        """Every plugin of a kind, by name."""
        return sorted((p for p in self._plugins.values() if p.kind == kind), key=lambda p: p.name)

    def get(self, kind: str, name: str) -> Plugin:
        """The plugin of that kind and name.

        Raises:
            UserError: there is none.
        """
        try:
            return self._plugins[kind, name]
        except KeyError:
            raise unknown(kind, name, [p.name for p in self.all(kind)]) from None

    def create(self, kind: str, spec: Spec, settings: Mapping[str, object] | None = None) -> tuple[Plugin, Any]:
        """The plugin that `spec` names and its object: fields from `settings`, then from the brackets and after the colon.

        Raises:
            UserError: there is none, or a field is unknown or refused.
        """
        name, colon, argument = spec.name.partition(":")
        plugin = self.get(kind, name)
        cls = load(plugin)
        values = {**(settings or {}), **dict(spec.params)}
        if colon:
            fields = config.field_names(cls)
            if not fields:
                raise UserError(f"{kind} '{name}' takes nothing after a colon, not '{argument}'")
            values[fields[0]] = argument
        return plugin, config.build(cls, values, f"{kind} '{spec}'")

    def find(self, name: str) -> list[Plugin]:
        """Every plugin of that name, of whatever kind.

        Raises:
            UserError: there is none.
        """
        found = [plugin for plugin in self._plugins.values() if plugin.name == name]
        if not found:
            raise unknown("plugin", name, {plugin.name for plugin in self._plugins.values()})
        return found


def load(plugin: Plugin) -> type[Any]:
    """Import a plugin's class.

    Raises:
        UserError: the import fails, or the class is no dataclass or lacks a method.
    """
    try:
        module = importlib.import_module(plugin.module) if plugin.module else _import_file(plugin.path)
        found: type[Any] = getattr(module, plugin.class_name)
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"cannot import {plugin.kind} '{plugin.name}' ({plugin.path}): {first_line(error)}") from error
    if "__dataclass_params__" not in vars(found):
        raise UserError(
            f"{plugin.kind} '{plugin.name}' ({plugin.path}) is not a dataclass: put @dataclass(frozen=True) above it"
        )
    if lacking := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{plugin.kind} '{plugin.name}' ({plugin.path}) lacks {', '.join(lacking)}")
    return found


def _shipped() -> Iterator[Plugin]:
    """The three folders beside `benchmark`, which are its subpackages when installed (see `benchmark.__init__`)."""
    for kind in KINDS:
        package = f"benchmark.{kind}s"
        for folder in importlib.import_module(package).__path__:
            for path in sorted(Path(folder).glob("*.py")):
                yield from _scan(path, f"{package}.{path.stem}", kind)


def _installed() -> Iterator[Plugin]:
    points = entry_points()  # reads every installed package, so once for all kinds
    for kind in KINDS:
        for point in points.select(group=f"gidbench.{kind}s"):
            yield Plugin(kind, point.name, _origin(point), point.module, point.attr)


def _included(folders: Sequence[Path]) -> Iterator[Plugin]:
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--include '{folder}' is not a folder")
        for path in sorted(folder.resolve().glob("*.py")):
            yield from _scan(path, None)


def _scan(path: Path, module: str | None, kind: str | None = None) -> list[Plugin]:
    """The one plugin of a file; none where no class derives from a plugin's base (a helper module).

    Raises:
        UserError: the file has several, or one of another kind than its folder's.
    """
    kinds = {base: kind for kind, bases in KINDS.items() for base in bases}
    found = [
        Plugin(kinds[base], path.stem, path, module, node.name)
        for node in _parse(path).body
        if isinstance(node, ast.ClassDef)
        for base in (ast.unparse(base).rpartition(".")[2] for base in node.bases)
        if base in kinds
    ]
    if len(found) > 1:
        raise UserError(f"{path} holds {len(found)} plugins ({', '.join(p.class_name for p in found)}); one per file")
    if found and kind and found[0].kind != kind:
        raise UserError(f"{path} holds the {found[0].kind} {found[0].class_name}, but lies among the {kind}s")
    return found


def _origin(point: EntryPoint) -> Path:
    try:
        spec = importlib.util.find_spec(point.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"entry point '{point.name}' names the module {point.module}, which is not installed")
    return Path(spec.origin)


def _parse(path: Path) -> ast.Module:
    try:
        return _parsed(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read plugin {path}: {error}") from error


@cache
def _parsed(path: Path, changed: int) -> ast.Module:
    """Return the tree of a file that was last changed at that time; every command reads the same files."""
    return ast.parse(path.read_text(encoding="utf-8"))


def _class(tree: ast.Module, name: str) -> ast.ClassDef:
    for node in tree.body:
        if isinstance(node, ast.ClassDef) and node.name == name:
            return node
    raise UserError(f"there is no class {name} at the top of its module")


def _import_file(path: Path) -> Any:
    name = f"gidbench_included_{hashlib.blake2b(str(path).encode(), digest_size=6).hexdigest()}_{path.stem}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
