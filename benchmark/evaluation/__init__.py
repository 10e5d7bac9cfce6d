"""The judge and its metrics: the only code that compares a reconstruction with the truth."""
