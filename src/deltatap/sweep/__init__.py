"""The sweep: runs at several arrival rates, and the highest rate at which the bounds of ``analysis.slo`` hold."""
