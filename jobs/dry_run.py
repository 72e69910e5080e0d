"""Shows what a capture would send and cost. Databricks runs this script. See ``deltatap capture --help``, --dry-run."""

from deltatap.cli import capture, run_job

if __name__ == "__main__":
    run_job(capture, "--dry-run")
