"""Thousands of generated cases: python tests/fuzz/long.py --grids 8000 --specs 2000 --checkpoints 1000 ...

The numbers of cases in tox.ini took 107 minutes on two cores that other programs used as well. Prints progress, then every kind
of fault with its number of cases and the first of them. Exits with 1 if there is any fault.
`--only checkpoints --seed 123` runs one case, and keeps and prints its sandbox.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path[0] = str(Path(__file__).resolve().parents[2])

from benchmark.matching.plans import shared_plans  # noqa: E402
from tests.fuzz.harness import Bad, judge  # noqa: E402
from tests.fuzz.workers import KINDS, bad_cases, preload  # noqa: E402


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what was asked for. 0 if no case is bad, else 1."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    for kind in KINDS:
        parser.add_argument(f"--{kind.replace('_', '-')}", type=int, default=0, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="SEED", help="number of the first case")
    parser.add_argument("--only", choices=KINDS)
    parser.add_argument("--seed", type=int, metavar="N")
    options = parser.parse_args(arguments)
    if options.only and options.seed is not None:
        return _one(options.only, options.seed)
    failed = False
    for kind in KINDS:
        count = getattr(options, kind)
        if count and options.only in (None, kind):
            with tempfile.TemporaryDirectory(prefix="gidbench-fuzz-") as root, shared_plans():
                bad = bad_cases(kind, range(options.first, options.first + count), Path(root), _progress(kind, count))
            _print(kind, count, bad)
            failed |= bool(bad)
    return int(failed)


def _one(kind: str, seed: int) -> int:
    """Run one case here, without a worker, and print all of it."""
    preload()
    root = Path(tempfile.mkdtemp(prefix="gidbench-fuzz-"))
    module = sys.modules.get(f"tests.fuzz.{kind}") or __import__(f"tests.fuzz.{kind}", fromlist=["case"])
    getattr(module, "before", lambda root: None)(root)
    outcomes, bad = judge(kind, seed, root / f"{kind}-{seed}")
    for outcome in outcomes:
        words = " ".join(map(repr, outcome.words))[:2000]
        print(f"$ {words}\n{outcome.out[-2000:]}{outcome.err[-2000:]}exit code {outcome.code}\n")
    print(f"sandbox: {root / f'{kind}-{seed}'}")
    for fault in bad:
        print(f"BAD {fault}")
    return int(bool(bad))


def _progress(kind: str, count: int) -> Callable[[int], None]:
    started = time.monotonic()

    def watch(done: int) -> None:
        if done % max(1, count // 10) == 0 or done == count:
            print(f"{kind}: {done}/{count}, {time.monotonic() - started:.0f} s", flush=True)

    return watch


def _print(kind: str, count: int, bad: Sequence[Bad]) -> None:
    groups: dict[str, list[Bad]] = defaultdict(list)
    for fault in bad:
        groups[fault.reason].append(fault)
    print(f"{kind}: {len({fault.seed for fault in bad})} of {count} cases are bad")
    for reason, faults in sorted(groups.items(), key=lambda item: -len(item[1])):
        seeds = {fault.seed for fault in faults}
        print(f"  {len(seeds)} x {reason}\n      --only {kind} --seed {min(seeds)}: {faults[0].detail}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
