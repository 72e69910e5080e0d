"""Exports captures as spans. Databricks runs this script, and you can run it too. See ``deltatap export --help``."""

from deltatap.cli import export, run_job

if __name__ == "__main__":
    run_job(export)
