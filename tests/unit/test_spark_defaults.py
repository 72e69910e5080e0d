"""Default options for the Spark of the tests, with and without an archive of classes."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

from tests import spark_defaults


@pytest.mark.parametrize("archived", [True, False])
def test_each_jvm_gets_the_options_and_the_archive_if_there_is_one(
    archived: bool,  # noqa: FBT001 - a parameter of the test
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(spark_defaults, "FOLDER", tmp_path)
    if archived:
        (tmp_path / "classes-1.jsa").touch()
    env = spark_defaults.environment(tmp_path, {"spark.some": "value"})
    option, file, shell = shlex.split(env["PYSPARK_SUBMIT_ARGS"])
    assert (option, shell) == ("--properties-file", "pyspark-shell")
    lines = dict(line.split(" ", 1) for line in Path(file).read_text().splitlines())
    assert lines.pop("spark.some") == "value"
    java = {value for name, value in lines.items() if name.endswith(".defaultJavaOptions")}
    assert len(lines) == (2 if archived else 0)
    assert all(f"-XX:SharedArchiveFile={tmp_path}/classes-1.jsa" in value for value in java)
    assert not any(Path(env["SPARK_CONF_DIR"]).iterdir()), "with files on the class path, Java uses no archive"
