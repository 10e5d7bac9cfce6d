"""Closed-form attacks: linear algebra reads private values from an update, without a search."""

from benchmark.closed_form.timesteps import UnreadableTimesteps, read_timesteps, with_timesteps

__all__ = ["UnreadableTimesteps", "read_timesteps", "with_timesteps"]
