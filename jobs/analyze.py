"""Computes the metrics tables. Databricks runs this script, and you can run it too. See ``deltatap analyze --help``."""

from deltatap.cli import analyze, run_job

if __name__ == "__main__":
    run_job(analyze)
