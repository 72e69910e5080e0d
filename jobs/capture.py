"""The capture job: what Databricks runs, and a person too. See ``deltatap capture --help``."""

from deltatap.cli import capture_job

if __name__ == "__main__":
    capture_job()
