"""Plugins by name: how they are found, what they import, and the contract that each one keeps."""

from benchmark.registry.registry import KINDS, Plugin, Registry, load

__all__ = ["KINDS", "Plugin", "Registry", "load"]
