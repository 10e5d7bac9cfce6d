"""Plugins by name: how they are found, what they import, and the contract that each one keeps."""
