"""The driver's code: one run from start to end."""
