"""Writes the report of a run. Databricks runs this script, and you can run it too. See ``deltatap report --help``."""

from deltatap.cli import report, run_job

if __name__ == "__main__":
    run_job(report)
