"""Make tables and figures from the records of a run directory, without any plugin."""
