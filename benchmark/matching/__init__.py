"""Gradient matching: find what, put through the client's step, gives the update that was seen."""
