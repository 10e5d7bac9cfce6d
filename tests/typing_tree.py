"""Lay out a checkout as it is imported, for mypy: python tests/typing_tree.py DIRECTORY

mypy does not follow the `__path__` by which `attacks/` is imported as `benchmark.attacks`. So this makes a directory of links.
"""

import shutil
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

tree = Path(sys.argv[1])
shutil.rmtree(tree, ignore_errors=True)
(tree / "benchmark").mkdir(parents=True)
(tree / "gidbench").symlink_to(ROOT / "gidbench")
for path in [*(ROOT / "benchmark").iterdir(), *(ROOT / name for name in ("attacks", "defenses", "datasets"))]:
    (tree / "benchmark" / path.name).symlink_to(path)
