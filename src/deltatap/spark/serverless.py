"""Whether this process is a driver on Databricks serverless compute.

There, Spark is available only over Spark Connect, UDFs have no network access, and DataFrames cannot be cached. Other
modules know the consequences.
"""

from __future__ import annotations

import os


def is_serverless() -> bool:
    """Whether Spark runs on serverless compute, according to Databricks' environment variables."""
    runtime = os.environ.get("DATABRICKS_RUNTIME_VERSION", "")
    return os.environ.get("IS_SERVERLESS", "").upper() == "TRUE" or runtime.startswith("client.")
