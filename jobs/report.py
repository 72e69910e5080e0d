"""The report of a run: what Databricks runs, and a person too. See ``deltatap report --help``."""

from deltatap.cli import report_job

if __name__ == "__main__":
    report_job()
