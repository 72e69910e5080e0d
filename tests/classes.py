"""Writes the archive of Spark's classes that ``spark_defaults.py`` gives to every JVM of a test.

``python -m tests.classes`` takes half a minute, and nothing if the archive is up to date.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pyspark

from deltatap.spark.jars import find_jars, jars_for
from deltatap.spark.java import find_java
from deltatap.spark.session import local_session
from tests import prompts
from tests.runs import capture, captured
from tests.simulation import start_simulator
from tests.spark_defaults import FOLDER, PATTERN, environment

WAIT_S = 300.0
_SPARK = Path(pyspark.__file__).parent


def archive() -> Path:
    """The path of the archive for this Java and these jars. A JVM ignores an archive of other ones."""
    java = find_java()
    assert java is not None, "run `make setup`"
    version = subprocess.run([java, "-version"], capture_output=True, text=True, check=True).stderr
    jars = [*find_jars(jars_for(pyspark.__version__), _SPARK), *sorted((_SPARK / "jars").glob("*.jar"))]
    stats = [(str(jar), jar.stat().st_size, jar.stat().st_mtime_ns) for jar in jars]
    digest = hashlib.sha256(repr((version, stats)).encode()).hexdigest()[:16]
    return FOLDER / PATTERN.replace("*", digest)


def write(path: Path) -> None:
    """Run a capture in a JVM that archives its classes when it exits."""
    if path.exists():
        return
    for old in FOLDER.glob(PATTERN):
        old.unlink()
    with tempfile.TemporaryDirectory(dir=FOLDER) as name:
        folder = Path(name)
        new = folder / path.name
        env = environment(folder, {}, f"-XX:ArchiveClassesAtExit={new}")
        subprocess.run([sys.executable, "-m", "tests.classes", name], env={**os.environ, **env}, check=True)
        if new.exists():  # a Java without an archive of its own classes writes none
            new.replace(path)


def load(folder: Path) -> None:
    """Use Spark as the tests do."""
    tables = folder / "tables"
    tables.mkdir()
    spark = local_session("local[2]", conf={"spark.sql.warehouse.dir": str(folder / "warehouse")})
    prompts.write(spark, tables / "prompts", [(f"r{n}", f"Prompt {n}?") for n in range(20)])
    with start_simulator("--speed", "0") as simulator:
        capture(spark, tables, simulator)
    assert len(captured(spark, tables)) == 20
    java = spark.sparkContext._gateway.proc  # type: ignore[union-attr]
    spark.stop()
    java.stdin.close()  # then the JVM exits
    java.wait(WAIT_S)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        load(Path(sys.argv[1]))
    else:
        write(archive())
