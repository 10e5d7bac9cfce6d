"""The registry of plugins: find a plugin by name, read its imports, and check its contract."""

from benchmark.registry.registry import KINDS, Plugin, Registry, load

__all__ = ["KINDS", "Plugin", "Registry", "load"]
