"""Spark's Java classes in an archive that every JVM of the tests maps into memory.

Spark loads about 25,000 classes before its first MERGE completes. Reading and verifying them takes several CPU seconds
in each JVM. Java calls such an archive application class-data sharing (AppCDS). A JVM ignores an archive that does not
fit its class path or its version.
"""

from __future__ import annotations

import importlib.metadata
import os
from typing import TYPE_CHECKING

from pyspark import SparkContext

from deltatap.spark import session

if TYPE_CHECKING:
    from pathlib import Path

_USE = "-XX:SharedArchiveFile={} -Xlog:cds=off -Xlog:cds+dynamic=off"
_WRITE = "-XX:ArchiveClassesAtExit={} -Xlog:cds=off -Xlog:cds+dynamic=off"
_WRITTEN_S = 120.0


def prepare() -> dict[str, str]:
    """Make every JVM that starts from now on use the archive, including jobs in other processes.

    Returns:
        Spark options. If there is no archive yet, the options make the session's JVM write one when it ends, for
        :func:`keep`. Otherwise there are none.
    """
    archive = _archive()
    if archive is None:
        return {}
    if archive.exists():
        # Spark passes this variable to the JVM of every driver.
        os.environ["SPARK_SUBMIT_OPTS"] = f"{os.environ.get('SPARK_SUBMIT_OPTS', '')} {_USE.format(archive)}"
        return {}
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return {}
    name = "spark.driver.extraJavaOptions"
    return {name: f"{session._options()[name]} {_WRITE.format(_unfinished(archive))}"}


def keep() -> None:
    """End the JVM, whose session has stopped, and keep the archive that it writes."""
    gateway, archive = SparkContext._gateway, _archive()
    assert gateway is not None
    assert archive is not None
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(timeout=_WRITTEN_S)
    if _unfinished(archive).exists():
        _unfinished(archive).replace(archive)


def _archive() -> Path | None:
    """Return the archive's path for this Java and this Spark, or None if Java cannot write an archive."""
    java = session.find_java()
    # The archive extends the JDK's own archive, and the Java that `make setup` installs has none.
    if java is None or not (java.resolve().parents[1] / "lib/server/classes.jsa").is_file():
        return None
    spark = importlib.metadata.version("pyspark")
    return session.CHECKOUT / ".jars" / f"classes-{java.resolve().parents[1].name}-{spark}.jsa"


def _unfinished(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.{os.getpid()}")
