"""Whether this process is a driver on Databricks serverless compute.

There, Spark is only reached over Spark Connect, a UDF has no network access, and Spark keeps no DataFrames. Other
modules know what follows from this.
"""

from __future__ import annotations

import os


def is_serverless() -> bool:
    """Whether Spark is that of serverless compute, as Databricks says in environment variables."""
    runtime = os.environ.get("DATABRICKS_RUNTIME_VERSION", "")
    return os.environ.get("IS_SERVERLESS", "").upper() == "TRUE" or runtime.startswith("client.")
