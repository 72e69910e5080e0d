"""The check before a job: what Databricks runs, and a person too. See ``deltatap check --help``."""

from deltatap.cli import check_job

if __name__ == "__main__":
    check_job()
