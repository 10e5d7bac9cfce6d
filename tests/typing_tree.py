"""Lay out a checkout as it is imported, for mypy: python tests/typing_tree.py DIRECTORY

mypy does not follow the `__path__` by which `attacks/` is imported as `benchmark.attacks`. So this makes a directory of links.
An earlier one is replaced; any other directory is left alone.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

tree = Path(sys.argv[1])
if tree.exists():
    if not all(path.is_symlink() for path in (tree / "gidbench", *(tree / "benchmark").iterdir())):
        sys.exit(f"{tree} holds files of its own")
    shutil.rmtree(tree)
(tree / "benchmark").mkdir(parents=True)
(tree / "gidbench").symlink_to(ROOT / "gidbench")
for path in [*(ROOT / "benchmark").iterdir(), *(ROOT / name for name in ("attacks", "defenses", "datasets"))]:
    (tree / "benchmark" / path.name).symlink_to(path)
