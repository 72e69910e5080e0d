"""Checks what a capture needs. Databricks runs this script, and you can run it too. See ``deltatap check --help``."""

from deltatap.cli import check, run_job

if __name__ == "__main__":
    run_job(check)
