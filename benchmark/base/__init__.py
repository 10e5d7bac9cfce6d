"""Basic tools for all other packages: error messages, input checks, files, seeds and the machine."""
