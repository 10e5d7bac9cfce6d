"""List attacks, defenses, datasets, models or grids."""

from __future__ import annotations

import argparse

from benchmark.cli.options import add_include

Row = tuple[str, str, list[str]]
"""Name, summary, and further lines of one entry."""

LISTABLE = ("attacks", "defenses", "datasets", "models", "grids")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of `list`."""
    parser.add_argument("what", choices=LISTABLE, metavar="KIND", help=", ".join(LISTABLE))
    add_include(parser)


def execute(options: argparse.Namespace) -> int:
    """Print each entry with name and summary, and return 0.

    A plugin also has its source, and what an attack needs or a defense hides. No plugin is imported.
    """
    if options.what == "grids":
        from benchmark.experiment.grid import packaged_titles

        rows: list[Row] = [(name, title, []) for name, title in packaged_titles().items()]
    elif options.what == "models":
        rows = _model_rows()
    else:
        rows = _plugin_rows(options)
    width = max(len(name) for name, _, _ in rows)
    for name, summary, details in rows:
        print(f"{name:<{width}}  {summary}")
        for detail in details:
            print(f"{'':<{width}}  {detail}")
    return 0


def _model_rows() -> list[Row]:
    """Return every model with a name, and whether it is on this machine."""
    from benchmark.diffusion.catalogue import HUB_IDS, cached_directory, packaged_checkpoints
    from benchmark.diffusion.presets import PRESETS

    rows: list[Row] = [(name, f"{preset.summary}, random init", []) for name, preset in PRESETS.items()]
    for name in packaged_checkpoints():
        rows.append((name, f"the preset {name.partition(':')[0]}, trained on the public images of photos; included", []))
    for name in HUB_IDS:
        location = (
            "in the Hugging Face cache" if cached_directory(name) else f"not on this machine; 'hf download {name}' fetches it"
        )
        rows.append((name, location, []))
    rows.append(("PATH", "any local diffusers U-Net directory with safetensors weights; `train` makes one", []))
    return rows


def _plugin_rows(options: argparse.Namespace) -> list[Row]:
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
