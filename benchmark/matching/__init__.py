"""Gradient matching: find what, put through the clients' training, gives the update that was seen."""
