"""Captures prompts. Databricks runs this script, and you can run it too. See ``deltatap capture --help``."""

from deltatap.cli import capture, run_job

if __name__ == "__main__":
    run_job(capture)
