"""Closed-form attacks: linear algebra reads private values from an update, without a search."""

from benchmark.closed_form.timesteps import Unreadable, read_timesteps, with_timesteps

__all__ = ["Unreadable", "read_timesteps", "with_timesteps"]
