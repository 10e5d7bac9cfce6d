"""Options that several verbs share."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_include(parser: argparse.ArgumentParser) -> None:
    """`--include DIR`, as often as wanted."""
    parser.add_argument(
        "--include", metavar="DIR", type=Path, action="append", default=[], help="a folder of plugins of your own"
    )
