"""Stops the active run. Databricks runs this script, and you can run it too. See ``deltatap stop --help``."""

from deltatap.cli import run_job, stop

if __name__ == "__main__":
    run_job(stop)
