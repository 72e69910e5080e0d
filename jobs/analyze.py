"""The analysis job: what Databricks runs, and a person too. See ``deltatap analyze --help``."""

from deltatap.cli import analyze_job

if __name__ == "__main__":
    analyze_job()
