"""List attacks, defenses, datasets, models or grids."""

from __future__ import annotations

import argparse

from benchmark.cli.options import add_include

Row = tuple[str, str, list[str]]
"""Name, summary, and further lines of one entry."""

THINGS = ("attacks", "defenses", "datasets", "models", "grids")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `list`."""
    parser.add_argument("what", choices=THINGS, metavar="KIND", help=", ".join(THINGS))
    add_include(parser)


def execute(options: argparse.Namespace) -> int:
    """Print each entry with name and summary, and return 0.

    A plugin also has its source, and what an attack needs or a defense hides. No plugin is imported.
    """
    if options.what == "grids":
        from benchmark.experiment.grid import titles

        rows: list[Row] = [(name, title, []) for name, title in titles().items()]
    elif options.what == "models":
        rows = _models()
    else:
        rows = _plugins(options)
    width = max(len(name) for name, _, _ in rows)
    for name, summary, details in rows:
        print(f"{name:<{width}}  {summary}")
        for detail in details:
            print(f"{'':<{width}}  {detail}")
    return 0


def _models() -> list[Row]:
    """Return every model with a name, and whether it is on this machine."""
    from benchmark.diffusion.catalogue import HUB_IDS, cached, shipped
    from benchmark.diffusion.presets import PRESETS

    rows: list[Row] = [(name, f"{preset.summary}, random init", []) for name, preset in PRESETS.items()]
    for name in shipped():
        rows.append((name, f"the preset {name.partition(':')[0]}, trained on the public images of photos; ships here", []))
    for name in HUB_IDS:
        here = "in the Hugging Face cache" if cached(name) else f"not on this machine; 'hf download {name}' fetches it"
        rows.append((name, here, []))
    rows.append(("PATH", "any local diffusers U-Net directory with safetensors weights; `train` makes one", []))
    return rows


def _plugins(options: argparse.Namespace) -> list[Row]:
    from benchmark.registry import Registry

    kind = options.what.removesuffix("s")
    verb = {"attack": "needs", "defense": "hides"}.get(kind)
    rows = []
    for plugin in Registry(options.include).all(kind):
        details = [f"source: {plugin.citation}"]
        if verb:
            details.append(f"{verb}: {', '.join(plugin.capabilities(verb)) or 'nothing'}")
        rows.append((plugin.name, plugin.summary, details))
    return rows
