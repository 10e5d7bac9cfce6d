"""Make a bare checkout import like the wheel: `attacks/`, `defenses/`, `datasets/` live under `benchmark` and nowhere else.

A process that starts at the checkout root has the root on `sys.path`, where our `datasets/` would look like a namespace
package of that name: Hugging Face's libraries would then believe that their `datasets` is installed. So the root's path
finder declines the three names at top level.
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

ROOMS = frozenset({"attacks", "defenses", "datasets"})


class _RootFinder(FileFinder):
    """The finder of the checkout root, blind to the three rooms as top-level names."""

    def find_spec(self, fullname: str, target: ModuleType | Sequence[str] | None = None) -> ModuleSpec | None:
        if fullname in ROOMS:
            return None
        return super().find_spec(fullname, target)  # type: ignore[arg-type]


def hide_rooms(root: Path) -> None:
    """Let the import system's finder for `root` decline `ROOMS`; every other name is found as before."""

    def hook(path: str) -> FileFinder:
        if Path(path).resolve() != root:
            raise ImportError("only for the checkout root", path=path)
        return _RootFinder(path, (ExtensionFileLoader, EXTENSION_SUFFIXES), (SourceFileLoader, SOURCE_SUFFIXES))

    sys.path_hooks.insert(0, hook)
    for path in list(sys.path_importer_cache):
        if Path(path).resolve() == root:
            del sys.path_importer_cache[path]
