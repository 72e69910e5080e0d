"""A Python daemon for Spark that imports deltatap before it forks workers, which then start with shared imports.

A worker that does its own imports needs about four seconds before its first request. Only sessions from ``session.py``
use this daemon: Spark starts it as ``python -m deltatap.spark.daemon``. Leaves the work to the workers.
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
    """Import, then fork workers as Spark requests."""
    for name in _MODULES:
        # If a module cannot be imported, the worker that needs it reports the error.
        with suppress(Exception):
            import_module(name)
    with suppress(Exception):
        import_module("deltatap.tokens").encoding("o200k_base")
    gc.collect()
    # Garbage collection in the workers leaves frozen objects alone, so their shared memory is not copied.
    gc.freeze()
    daemon.manager()  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    main()
