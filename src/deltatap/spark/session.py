"""Spark on one machine: a session with Delta that starts quickly, logs little and needs no manual installation.

Knows which options make a small session fast. Leaves Java to ``java.py`` and the Delta jars to ``jars.py``. Not used if
a session already exists, as on Databricks or in a notebook.
"""

from __future__ import annotations

import atexit
import importlib.metadata
import os
import sys
import threading
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.errors import SparkSetupError, missing_extra, one_line
from deltatap.spark.jars import find_jars, jars_for
from deltatap.spark.java import java_home

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from pyspark.sql import SparkSession

_LOGGING = Path(__file__).with_name("log4j2.properties")
# TieredStopAtLevel=1 shrinks the code cache to 48 MB. The queries of a run fill it within a minute, and
# then the JVM stops compiling.
_QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"


def local_session(
    master: str = "local[*]",
    *,
    app_name: str = "deltatap",
    conf: Mapping[str, str] | None = None,
    jars: str | Path | None = None,
) -> SparkSession:
    """Start Spark with Delta on this machine.

    Python workers use the caller's interpreter, not the ``python3`` on PATH. Everything listens on loopback only.

    Args:
        master: ``local[…]``, or ``local-cluster[workers,cores,MiB]`` for executors in separate processes.
        app_name: The name that Spark shows.
        conf: Spark options; they override the options set here.
        jars: A folder with the Delta jars. Default: those of ``make setup``, or else of the user's cache, to which they
            are downloaded once.

    Returns:
        The active session if there is one, else a new one.

    Raises:
        SparkSetupError: Java 17 or 21 is missing, the versions of pyspark and delta-spark do not fit, or the jars
            cannot be downloaded.
        MissingExtraError: pyspark or delta-spark is not installed.
    """
    try:
        import pyspark  # noqa: PLC0415 - Databricks brings its own, so it is an extra
        from pyspark.errors import PySparkRuntimeError  # noqa: PLC0415
        from pyspark.sql import SparkSession  # noqa: PLC0415

        needed = jars_for(pyspark.__version__, importlib.metadata.version("delta-spark"))
    except ModuleNotFoundError as error:
        raise missing_extra(error, "spark") from error

    # By default, workers use python3 from PATH, which may be a Python without deltatap.
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    # The workers of a local-cluster look up the host's name, and no Spark option changes that.
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    with java_home():
        found = find_jars(needed, Path(pyspark.__file__).parent, None if jars is None else Path(jars))
        builder = SparkSession.builder.master(master).appName(app_name)
        for name, value in (_options(found) | dict(conf or {})).items():
            builder = builder.config(name, value)
        # Meanwhile, this process imports the modules that read tables (readers.py). Errors are raised again when it
        # uses them.
        threading.Thread(target=_import_reader, name="deltatap-import", daemon=True).start()
        warehouse = Path("spark-warehouse").absolute()
        if not warehouse.exists():
            atexit.register(_remove_if_empty, warehouse)
        try:
            return builder.getOrCreate()
        except PySparkRuntimeError as error:
            raise SparkSetupError(f"Spark does not start: {one_line(error)}") from error


def _remove_if_empty(warehouse: Path) -> None:
    """Remove the folder that Spark creates at the first look into its catalog, unless it holds tables."""
    with suppress(OSError):
        warehouse.rmdir()


def _import_reader() -> None:
    from deltatap.delta.readers import without_jvm  # noqa: PLC0415 - it imports for a second

    if without_jvm():
        with suppress(Exception):
            import_module("deltatap.delta.local")


def _options(jars: Sequence[Path]) -> dict[str, str]:
    class_path = os.pathsep.join(map(str, jars))
    return {
        "spark.sql.extensions": "io.delta.sql.DeltaSparkSessionExtension",
        "spark.sql.catalog.spark_catalog": "org.apache.spark.sql.delta.catalog.DeltaCatalog",
        "spark.sql.session.timeZone": "UTC",
        "spark.speculation": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.sql.shuffle.partitions": "4",
        "spark.databricks.delta.snapshotPartitions": "1",
        # Above this number of paths, Spark lists them in a separate job. A batch of journal files has up to 200.
        "spark.sql.sources.parallelPartitionDiscovery.threshold": "1000",
        "spark.python.daemon.module": "deltatap.spark.daemon",
        "spark.driver.extraJavaOptions": f"{_QUICK_JVM} -Dlog4j2.configurationFile={_LOGGING.as_uri()}",
        "spark.executor.extraJavaOptions": _QUICK_JVM,
        # Executors of a local-cluster do not inherit sys.path, and deltatap may be importable without being installed.
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        "spark.driver.extraClassPath": class_path,
        "spark.executor.extraClassPath": class_path,
    }
