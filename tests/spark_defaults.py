"""Default options for the Spark of every process of a test, and the archive of Spark's classes if there is one.

A JVM that maps the archive reads and verifies fewer classes: a short job needs a quarter less CPU time. ``make
test-slow`` writes it (``classes.py``). All tests run without it, too.
"""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

from deltatap.shipped import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

FOLDER = CHECKOUT / ".tools"
PATTERN = "classes-*.jsa"
_EMPTY = FOLDER / "empty"
# A JVM with other jars ignores the archive, and would say so on the standard output of a job. Java 17 moves an archive
# to a random address, which takes half a second.
_OPTIONS = "-XX:+UnlockDiagnosticVMOptions -XX:ArchiveRelocationMode=0"
_QUIET = "-Xlog:disable -Xlog:all=error:stderr"


def environment(folder: Path, options: Mapping[str, str], java: str | None = None) -> dict[str, str]:
    """Return environment variables that set default options for Spark.

    The file with the options is not in SPARK_CONF_DIR, because that folder is on the class path. Java uses an archive
    only with the class path that it was written with, and only if all folders on it are empty.

    Args:
        folder: where to put the file.
        options: the options of Spark.
        java: the options of the JVM. Default: those that use the archive.
    """
    if java is None:
        archive = next(FOLDER.glob(PATTERN), None)
        java = f"-XX:SharedArchiveFile={archive} {_OPTIONS}" if archive else ""
    file = folder / "spark-defaults.conf"
    _EMPTY.mkdir(parents=True, exist_ok=True)
    places = ("spark.driver.defaultJavaOptions", "spark.executor.defaultJavaOptions")
    lines = {**options, **(dict.fromkeys(places, f"{java} {_QUIET}") if java else {})}
    file.write_text("".join(f"{key} {value}\n" for key, value in lines.items()), encoding="utf-8")
    submit = shlex.join(["--properties-file", str(file), "pyspark-shell"])
    return {"SPARK_CONF_DIR": str(_EMPTY), "PYSPARK_SUBMIT_ARGS": submit}
