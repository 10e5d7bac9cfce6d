"""Make a checkout import like the installed wheel: `attacks/`, `defenses/`, `datasets/` are subpackages of `benchmark` only.

A process that starts at the checkout root has the root on `sys.path`. There our folder `datasets/` would look like a
namespace package called `datasets`. Hugging Face's libraries would then assume that their own `datasets` is installed.
Therefore the path finder of the root does not find these three names at the top level.
"""

import sys
from collections.abc import Sequence
from importlib.machinery import (
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    SourceFileLoader,
)
from pathlib import Path
from types import ModuleType

PLUGIN_FOLDERS = frozenset({"attacks", "defenses", "datasets"})


class _RootFinder(FileFinder):
    """A finder for the checkout root that does not find the three folders as top-level names."""

    def find_spec(self, fullname: str, target: ModuleType | Sequence[str] | None = None) -> ModuleSpec | None:
        if fullname in PLUGIN_FOLDERS:
            return None
        return super().find_spec(fullname, target)  # type: ignore[arg-type]


def hide_plugin_folders(root: Path) -> None:
    """Hide the names in `PLUGIN_FOLDERS` from the import system's finder for `root`. All other names are found as before."""

    def hook(path: str) -> FileFinder:
        if Path(path).resolve() != root:
            raise ImportError("only for the checkout root", path=path)
        return _RootFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceFileLoader, SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, hook)
    for path in list(sys.path_importer_cache):
        if Path(path).resolve() == root:
            del sys.path_importer_cache[path]
