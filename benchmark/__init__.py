"""GIDBench: what one update of a federated diffusion client gives away, and what it costs to stop that.

Importing this package is light: torch and everything that needs it is imported by the modules that use it.
"""

from pathlib import Path as _Path

__version__ = "0.2.0"

_CHECKOUT = _Path(__file__).resolve().parent.parent

if (_CHECKOUT / "attacks").is_dir() and (_CHECKOUT / "pyproject.toml").is_file():
    from benchmark import _checkout

    __path__.append(str(_CHECKOUT))
    _checkout.hide_rooms(_CHECKOUT)
