"""Options that several verbs share."""

from __future__ import annotations

import argparse

from benchmark.base.paths import user_path


def add_include(parser: argparse.ArgumentParser) -> None:
    """Add `--include DIR`, which may be given several times."""
    parser.add_argument(
        "--include", metavar="DIR", type=user_path, action="append", default=[], help="a folder of plugins of your own"
    )
