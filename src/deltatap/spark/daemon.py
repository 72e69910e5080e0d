"""Spark's Python daemon with our imports made: every worker that it forks has them at once, and shares their memory.

A worker that imports for itself takes some four seconds before its first request. Only sessions of ours start it
(``local.py``); what a worker does is not its business. ``python -m deltatap.spark.daemon``, by Spark.
"""

from __future__ import annotations

import gc
from contextlib import suppress
from importlib import import_module

from pyspark import daemon

_MODULES = (
    "deltatap.udf",
    "deltatap.driver.owed",
    "pyspark.worker",
    "pyspark.sql.pandas.serializers",
    "pyarrow.parquet",
)


def main() -> None:
    """Import, then fork as Spark asks."""
    for name in _MODULES:
        # A worker that needs what cannot be imported says so itself.
        with suppress(Exception):
            import_module(name)
    with suppress(Exception):
        import_module("deltatap.tokens").encoding("o200k_base")
    gc.collect()
    # Collections in the workers do not touch, and so do not copy, what is shared.
    gc.freeze()
    daemon.manager()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
