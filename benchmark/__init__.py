"""GIDBench measures what one update of a federated diffusion client reveals, and what it costs to prevent that.

This package imports quickly. It does not import torch; only the modules that use torch do.
"""

from pathlib import Path as _Path

__version__ = "0.2.0"

_CHECKOUT = _Path(__file__).resolve().parent.parent

if (_CHECKOUT / "attacks").is_dir() and (_CHECKOUT / "pyproject.toml").is_file():
    from benchmark import _checkout

    __path__.append(str(_CHECKOUT))
    _checkout.hide_plugin_folders(_CHECKOUT)
