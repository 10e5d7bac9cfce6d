"""Compare two attacks of a run by the paired difference of their PSNR, with its interval."""

from __future__ import annotations

import argparse

from benchmark.base.paths import user_path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `compare`."""
    parser.add_argument("run_dir", type=user_path, metavar="RUN_DIR")
    parser.add_argument("first", metavar="ATTACK")
    parser.add_argument("second", metavar="ATTACK")


def execute(options: argparse.Namespace) -> int:
    """Print one line for each defense under which both attacks have finished. Return 0."""
    from benchmark.base.errors import UserError, remark, unknown
    from benchmark.experiment.store import Store
    from benchmark.report.compare import paired_difference
    from benchmark.report.escape import plain
    from benchmark.report.results import read_results

    results = read_results(Store(options.run_dir))
    for note in results.damage:
        remark(plain(note))
    names = set(results.samples.attack) if len(results.samples) else set()
    for attack in (options.first, options.second):
        if attack not in names:
            raise unknown("attack in this run", attack, names)
    rows = paired_difference(results, options.first, options.second)
    if rows.empty:
        raise UserError(f"'{options.first}' and '{options.second}' share no defense under which both have finished")
    print(plain(results.title))
    print(f"PSNR of {options.first} minus {options.second}, median of paired differences in dB [95% interval]:")
    for row in rows.itertuples():
        interval = f" [{row.ci_low:+.2f}, {row.ci_high:+.2f}]" if row.ci_low == row.ci_low else ""
        scene = f"{row.dataset} · {row.scenario} · {row.model}"
        print("  " + plain(f"{row.defense} ({scene}): {row.difference:+.2f}{interval}, n = {row.n} of {row.n_total}"))
    for note in results.notes[len(results.damage) :]:
        print(plain(note))
    return 0
