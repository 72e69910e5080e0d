"""Spark's Java classes in an archive that every JVM of the tests maps into memory.

Spark loads about 25,000 classes before its first MERGE is through. Reading and verifying them takes several CPU seconds
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


def prepare() -> tuple[Path | None, dict[str, str]]:
    """Have every JVM that starts from now on use the archive, jobs of other processes included.

    Returns:
        Where there is no archive yet: a path, and the Spark options for a session whose JVM writes the archive there
        when it ends. Otherwise None, and no options.
    """
    java = session.find_java()
    # An archive builds on the JDK's own one, which set-up's Java does not have.
    if java is None or not (java.resolve().parents[1] / "lib/server/classes.jsa").is_file():
        return None, {}
    if (archive := _archive()).exists():
        # Spark hands this variable to the JVM of every driver.
        os.environ["SPARK_SUBMIT_OPTS"] = f"{os.environ.get('SPARK_SUBMIT_OPTS', '')} {_USE.format(archive)}"
        return None, {}
    if os.environ.get("PYTEST_XDIST_WORKER", "gw0") != "gw0":
        return None, {}
    path = archive.with_suffix(f".{os.getpid()}")
    name = "spark.driver.extraJavaOptions"
    return path, {name: f"{session._options()[name]} {_WRITE.format(path)}"}


def keep(path: Path) -> None:
    """End the JVM, whose session has stopped, and keep the archive that it writes."""
    gateway = SparkContext._gateway
    assert gateway is not None
    gateway.shutdown()
    gateway.proc.stdin.close()
    gateway.proc.wait(timeout=_WRITTEN_S)
    if path.exists():
        path.replace(_archive())


def _archive() -> Path:
    return session.CHECKOUT / ".jars" / f"classes-{importlib.metadata.version('pyspark')}.jsa"
