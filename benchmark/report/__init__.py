"""From records to tables and figures. Reads a run directory; knows no plugin."""
