"""Say before any search what updates can reveal, and what each attack should reach."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from benchmark.base.paths import printable
from benchmark.cli.options import add_grid, override

if TYPE_CHECKING:
    from benchmark.experiment.cache import Cache
    from benchmark.experiment.cell import Cell
    from benchmark.outlook import Diagnosis, Layer

FEW_TIMESTEPS = 8
"""The most timesteps that a page names."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `diagnose`."""
    add_grid(parser)


def execute(options: argparse.Namespace) -> int:
    """Simulate one round for each data set, scenario, model and defense, and print a page about it. Return 0."""
    from benchmark.base.machine import configure_torch, device_name
    from benchmark.experiment.cache import Cache
    from benchmark.experiment.grid import read_grid
    from benchmark.experiment.job import Job
    from benchmark.experiment.scene import check_inputs

    configure_torch()
    grid = override(read_grid(options.grid), options)
    cells = [cell for cell in Job(grid, options.include, device_name(options.device)).cells() if cell.trial == 0]
    cache, scenes = Cache(), dict[object, list["Cell"]]()
    check_inputs(cells, cache)
    for cell in cells:
        scenes.setdefault((cell.dataset_label, cell.scenario, cell.model.label, cell.defense_label), []).append(cell)
    for same in scenes.values():
        for line in _page(same, cache):
            print(printable(line))
    return 0


def _page(cells: Sequence[Cell], cache: Cache) -> Iterator[str]:
    """Yield the lines about the first update of one round of a scene, which the cells share."""
    from benchmark.diagnosis import diagnose
    from benchmark.experiment.describe import why_skipped
    from benchmark.experiment.scene import Scene

    scene = Scene(dataclasses.replace(cells[0], victims=1), cache)
    diagnosis = diagnose(scene.observations[0])
    yield cells[0].name.partition(" vs ")[2].rpartition(" · trial ")[0]
    yield f"  timesteps   {_timesteps(diagnosis)}"
    if diagnosis.adapted != diagnosis:
        yield f"              to attacks that use the losses that the defense states: {_timesteps(diagnosis.adapted)}"
    yield f"  noise       {'granted' if diagnosis.noise_granted else 'private'}"
    yield f"  images      {diagnosis.images} (granted); {_estimate(diagnosis)}"
    yield f"  disturbance {'; '.join(_disturbances(diagnosis)) or 'none beyond rounding in float32'}"
    yield from _layers(diagnosis)
    yield "  expected"
    for cell in cells:
        if cell.attack is not None and not cell.control:
            if cell.missing:
                yield f"    {cell.attack_label}: skipped, {why_skipped(cell)}"
            else:
                outlook = cell.attack.outlook(diagnosis, cell.success_db)
                yield f"    {cell.attack_label} ({cell.budget} evaluations): {outlook.prediction}, {outlook.reason}"
    yield ""


def _timesteps(diagnosis: Diagnosis) -> str:
    if diagnosis.timesteps is None:
        return diagnosis.problem or f"private and not readable: {diagnosis.unreadable}"
    shown = ", ".join(map(str, diagnosis.timesteps[:FEW_TIMESTEPS])) + ", ..." * (len(diagnosis.timesteps) > FEW_TIMESTEPS)
    return f"{'granted' if diagnosis.timesteps_granted else 'private, read from the update'}: {shown}"


def _estimate(diagnosis: Diagnosis) -> str:
    if diagnosis.estimated_images is None:
        return "the ranks do not show how many"
    return f"the ranks need at least {diagnosis.estimated_images}"


def _disturbances(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield what optimiser, message and defense did. Noise is named only where singular values show more than rounding."""
    if not diagnosis.disturbed:
        return
    if diagnosis.dropout:
        yield "the client's network dropped activations"
    if diagnosis.read is not None:
        yield f"the update is no gradient: {diagnosis.read:.1%} of the gradient's coordinates can be read from it"
    if diagnosis.zeros:
        yield f"{diagnosis.zeros:.1%} of {diagnosis.coordinates} coordinates are zero"
    if diagnosis.levels is not None:
        yield f"the largest tensor has {diagnosis.levels} distinct values"
    if diagnosis.noise_ratio is not None:
        yield f"noise of about {diagnosis.noise_ratio:.2g} times the update, by singular values that no image explains"


def _layers(diagnosis: Diagnosis) -> Iterator[str]:
    """Yield a table of the layers; the time layers follow the convolutions."""
    layers = (*diagnosis.convolutions, *diagnosis.time_layers)
    if not layers:
        return
    width = max(len(layer.name) for layer in layers)
    yield f"  {'layer':<{width}}  patches outputs  width  rank  complete   floor"
    yield from (_row(layer, width) for layer in layers)


def _row(layer: Layer, width: int) -> str:
    floor = "–" if layer.floor is None else f"{layer.floor:.0e}"
    numbers = f"{layer.patches:>7} {layer.outputs:>7} {layer.width:>6} {layer.rank:>5}"
    return f"  {layer.name:<{width}}  {numbers}  {'yes' if layer.complete else 'no':<8} {floor:>7}"
