"""Find plugins by name, in folders and in entry points.

Finding and listing plugins only reads their source text. Only `load` imports a plugin.
"""

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
"""For each kind of plugin, the base classes in `benchmark.plugins` that mark it."""


@dataclass(frozen=True)
class Plugin:
    """A plugin as described by its source text. The plugin is not imported.

    Attributes:
        kind: `attack`, `defense` or `dataset`.
        name: the file's stem, or the entry point's name.
        path: its source file.
        module: the name under which it is imported; None for a file outside of any package, which is loaded from its path.
        class_name: the name of its class.
    """

    kind: str
    name: str
    path: Path
    module: str | None
    class_name: str

    @property
    def code_hash(self) -> str:
        """Return a hash of its code and of the code that it imports, which is part of the identity of its cells."""
        return code_hash(self.path, self.module)

    @cached_property
    def summary(self) -> str:
        """Return the first line of its docstring."""
        return (ast.get_docstring(self._tree) or "").partition("\n")[0]

    @cached_property
    def citation(self) -> str:
        """Return the rest of the line that starts with `Source:` in its docstring, or an empty text."""
        lines = (ast.get_docstring(self._tree) or "").splitlines()
        return next((line.removeprefix("Source:").strip() for line in lines if line.startswith("Source:")), "")

    @property
    def control(self) -> bool:
        """Return whether this is an attack that is a control, which is part of every table."""
        value = self._class_attribute("control")
        return isinstance(value, ast.Constant) and value.value is True

    def capabilities(self, attribute: str) -> tuple[str, ...]:
        """Return the members of `Capability` in a class attribute (`needs` or `hides`), in lower case and sorted."""
        value = self._class_attribute(attribute)
        nodes = ast.walk(value) if value else ()
        return tuple(sorted(n.attr.lower() for n in nodes if isinstance(n, ast.Attribute)))

    @cached_property
    def _tree(self) -> ast.Module:
        return _parse(self.path)

    def _class_attribute(self, name: str) -> ast.expr | None:
        for node in _class_definition(self._tree, self.class_name).body:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
            if any(isinstance(target, ast.Name) and target.id == name for target in targets):
                return node.value  # type: ignore[attr-defined, no-any-return]
        return None


class Registry:
    """All plugins, from the shipped folders, from entry points such as `gidbench.attacks`, and from included folders.

    Raises:
        UserError: a folder is missing, a plugin's source cannot be read, or two plugins share a name.
    """

    def __init__(self, include: Sequence[Path] = ()) -> None:
        self._plugins: dict[tuple[str, str], Plugin] = {}
        for plugin in (*_shipped_plugins(), *_installed_plugins(), *_included_plugins(include)):
            key = (plugin.kind, plugin.name)
            if key in self._plugins:
                other = self._plugins[key].path
                raise UserError(f"two {plugin.kind}s are called '{plugin.name}': {other} and {plugin.path}")
            self._plugins[key] = plugin

    def all(self, kind: str) -> list[Plugin]:
        """Return every plugin of a kind, sorted by name."""
        return sorted((p for p in self._plugins.values() if p.kind == kind), key=lambda p: p.name)

    def get(self, kind: str, name: str) -> Plugin:
        """Return the plugin of that kind and name.

        Raises:
            UserError: there is none.
        """
        try:
            return self._plugins[kind, name]
        except KeyError:
            raise unknown(kind, name, [p.name for p in self.all(kind)]) from None

    def create(self, kind: str, spec: Spec, settings: Mapping[str, object] | None = None) -> tuple[Plugin, Any]:
        """Return the plugin that `spec` names, and an object of its class.

        The fields come from `settings`. Values in the brackets of `spec` replace them. A value after the colon of its name
        sets the first field.

        Raises:
            UserError: there is no such plugin, or a field is unknown or rejected.
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
        """Return every plugin of that name, of any kind.

        Raises:
            UserError: there is none.
        """
        found = [plugin for plugin in self._plugins.values() if plugin.name == name]
        if not found:
            raise unknown("plugin", name, {plugin.name for plugin in self._plugins.values()})
        return found


def load(plugin: Plugin) -> type[Any]:
    """Import a plugin and return its class.

    Raises:
        UserError: the import fails, the class is not a dataclass, or a method is missing.
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
    if missing := sorted(getattr(found, "__abstractmethods__", ())):
        raise UserError(f"{plugin.kind} '{plugin.name}' ({plugin.path}) lacks {', '.join(missing)}")
    return found


def _shipped_plugins() -> Iterator[Plugin]:
    """Yield the plugins of the three shipped folders, which are imported as subpackages (see `benchmark._checkout`)."""
    for kind in KINDS:
        package = f"benchmark.{kind}s"
        for folder in importlib.import_module(package).__path__:
            for path in sorted(Path(folder).glob("*.py")):
                yield from _plugins_in(path, f"{package}.{path.stem}", kind)


def _installed_plugins() -> Iterator[Plugin]:
    points = entry_points()  # reads the metadata of every installed package, so it is called only once
    for kind in KINDS:
        for point in points.select(group=f"gidbench.{kind}s"):
            yield Plugin(kind, point.name, _source_file(point), point.module, point.attr)


def _included_plugins(folders: Sequence[Path]) -> Iterator[Plugin]:
    for folder in folders:
        if not folder.is_dir():
            raise UserError(f"--include '{folder}' is not a folder")
        for path in sorted(folder.resolve().glob("*.py")):
            yield from _plugins_in(path, None)


def _plugins_in(path: Path, module: str | None, kind: str | None = None) -> list[Plugin]:
    """Return a list with the plugin of a file. It is empty for a helper module, which has no plugin class.

    Raises:
        UserError: the file has several plugins, or a plugin of another kind than its folder.
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
        raise UserError(f"{path} holds the {found[0].kind} {found[0].class_name}, but lies in the folder of the {kind}s")
    return found


def _source_file(point: EntryPoint) -> Path:
    try:
        spec = importlib.util.find_spec(point.module)
    except ImportError:
        spec = None
    if spec is None or spec.origin is None:
        raise UserError(f"entry point '{point.name}' names the module {point.module}, which is not installed")
    return Path(spec.origin)


def _parse(path: Path) -> ast.Module:
    try:
        return _cached_parse(path, path.stat().st_mtime_ns)
    except (OSError, SyntaxError, ValueError) as error:
        raise UserError(f"cannot read plugin {path}: {error}") from error


@cache
def _cached_parse(path: Path, modified_ns: int) -> ast.Module:
    """Return the syntax tree of a file.

    Results are cached by the time of the last change, because a command reads the same files many times.
    """
    return ast.parse(path.read_text(encoding="utf-8"))


def _class_definition(tree: ast.Module, name: str) -> ast.ClassDef:
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
        sys.modules[name] = module  # dataclasses look up their module there
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name]
            raise
    return sys.modules[name]
