"""The Delta jars: which ones, where they are found, and how they are downloaded."""

from __future__ import annotations

import base64
import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyspark
import pytest

from deltatap.errors import SparkSetupError
from deltatap.shipped import CHECKOUT
from deltatap.spark import jars
from deltatap.spark.jars import Jar, download, find_jars, jars_for, repository

if TYPE_CHECKING:
    from collections.abc import Iterator

CONTENT = {"one": b"first jar" * 1000, "two": b"second jar"}
JARS = tuple(Jar(name, hashlib.sha256(content).hexdigest()) for name, content in CONTENT.items())
ONE, TWO = JARS
NAMES = [jar.name for jar in JARS]
PYSPARK = Path(pyspark.__file__).parent


@dataclass
class Repository:
    """A Maven repository on loopback: what it sends for each path, and what it was asked for."""

    url: str = ""
    sent: dict[str, bytes] = field(default_factory=dict)
    length: int | None = None
    moved_to: str | None = None
    asked: list[tuple[str, str | None]] = field(default_factory=list)


@pytest.fixture
def maven() -> Iterator[Repository]:
    given = Repository(sent={f"/maven/io/delta/{jar.artifact}/4.4.0/{jar.name}": CONTENT[jar.artifact] for jar in JARS})

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            given.asked.append((self.path, self.headers["Authorization"]))
            body = given.sent.get(self.path)
            if given.moved_to and "/moved/" not in self.path:
                self.send_response(302)
                self.send_header("Location", given.moved_to)
                self.end_headers()
                return
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(given.length or len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

        def log_message(self, *_: Any) -> None:
            """Print nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        given.url = f"http://127.0.0.1:{server.server_port}/maven/"
        yield given
        server.shutdown()
        thread.join()


@pytest.fixture
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A machine without jars. The returned folder is the cache."""
    monkeypatch.setattr(jars, "CHECKOUT", tmp_path / "checkout")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache/deltatap/jars"


def put(folder: Path) -> None:
    folder.mkdir(parents=True)
    for jar in JARS:
        (folder / jar.name).write_bytes(CONTENT[jar.artifact])


@pytest.mark.parametrize("version", ["4.0.5", "4.1.4", "4.2.0"])
def test_each_spark_version_has_its_jars(version: str) -> None:
    assert [jar.name for jar in jars_for(version, "4.4.0")] == [
        f"delta-spark_{version[:3]}_2.13-4.4.0.jar", "delta-storage-4.4.0.jar",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("spark", "delta", "line"),
    [
        ("4.3.0", "4.4.0", "delta-spark 4.4.0 needs pyspark 4.0, 4.1, 4.2; found pyspark 4.3.0"),
        ("3.5.4", "3.3.0", "delta-spark 4.4.0 needs pyspark 4.0, 4.1, 4.2; found pyspark 3.5.4"),
        ("4.1.4", "4.0.0", "pyspark 4.1.4 needs delta-spark 4.4.0; found delta-spark 4.0.0"),
    ],
)
def test_versions_that_do_not_fit_are_named_in_one_line(spark: str, delta: str, line: str) -> None:
    with pytest.raises(SparkSetupError) as raised:
        jars_for(spark, delta)
    assert str(raised.value) == f"{line}: run `pip install 'deltatap[spark]'`"


def test_the_jars_of_setup_match_their_pins() -> None:
    assert [jar.problem(CHECKOUT / ".jars") for jar in jars_for("4.1")] == [None, None]


def test_jars_are_found_in_the_checkout_then_in_the_cache_then_downloaded(
    tmp_path: Path, nowhere: Path, maven: Repository, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DEFAULT_ARTIFACT_REPOSITORY", maven.url)
    assert find_jars(JARS, PYSPARK) == [nowhere / name for name in NAMES]
    assert [path for path, _ in maven.asked] == [f"/maven/io/delta/{jar.artifact}/4.4.0/{jar.name}" for jar in JARS]
    assert find_jars(JARS, PYSPARK) == [nowhere / name for name in NAMES]
    assert len(maven.asked) == len(JARS), "the second time, they are in the cache"
    put(tmp_path / "checkout/.jars")
    assert find_jars(JARS, PYSPARK) == [tmp_path / "checkout/.jars" / name for name in NAMES]
    (tmp_path / "checkout/.jars" / ONE.name).write_bytes(b"of another version")
    assert find_jars(JARS, PYSPARK) == [nowhere / name for name in NAMES]


def test_the_folder_that_the_user_names_is_used_alone(
    tmp_path: Path, nowhere: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(nowhere)
    put(tmp_path / "mine")
    monkeypatch.chdir(tmp_path)
    assert find_jars(JARS, PYSPARK, Path("mine")) == [tmp_path / "mine" / name for name in NAMES]
    (tmp_path / "mine" / ONE.name).unlink()
    (tmp_path / "mine" / TWO.name).write_bytes(b"damaged")
    with pytest.raises(SparkSetupError) as raised:
        find_jars(JARS, PYSPARK, Path("mine"))
    assert str(raised.value) == (
        f"spark.jars: mine: {ONE.name}: No such file or directory; {TWO.name} has sha256 "
        f"{hashlib.sha256(b'damaged').hexdigest()}, not the pinned {TWO.sha256}"
    )


def test_a_damaged_jar_is_downloaded_again(nowhere: Path, maven: Repository) -> None:
    put(nowhere)
    (nowhere / TWO.name).write_bytes(CONTENT["two"][:-1])
    download(JARS, nowhere, maven.url)
    assert TWO.problem(nowhere) is None
    assert [path.rpartition("/")[2] for path, _ in maven.asked] == [TWO.name]


def test_several_processes_can_download_at_once(nowhere: Path, maven: Repository) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda _: download(JARS, nowhere, maven.url), range(8)))
    assert sorted(path.name for path in nowhere.iterdir()) == sorted(NAMES)
    assert find_jars(JARS, PYSPARK) == [nowhere / name for name in NAMES]


def test_a_jar_with_another_hash_is_refused(nowhere: Path, maven: Repository) -> None:
    maven.sent = dict.fromkeys(maven.sent, b"forged")
    with pytest.raises(
        SparkSetupError, match=rf"sent {ONE.name} with sha256 \w+, not the pinned {ONE.sha256}: set DEF"
    ):
        download(JARS, nowhere, maven.url)
    assert not nowhere.exists()


def test_an_answer_that_is_cut_is_not_kept(nowhere: Path, maven: Repository) -> None:
    maven.length = 1_000_000
    with pytest.raises(SparkSetupError, match=rf"cannot download {ONE.name} from .*IncompleteRead"):
        download(JARS, nowhere, maven.url)
    assert not nowhere.exists()


def test_a_write_that_fails_leaves_nothing(nowhere: Path, maven: Repository, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(SparkSetupError) as raised:
        download(JARS, nowhere, maven.url)
    assert str(raised.value).startswith(f"{nowhere}: cannot be written: No space left on device; set XDG_CACHE_HOME")
    assert list(nowhere.iterdir()) == []


@pytest.mark.parametrize(
    ("given", "shown", "reason"),
    [
        ("http://127.0.0.1:9/maven", "http://127.0.0.1:9/maven", "[Errno 111] Connection refused"),
        ("http://me:hunter2@127.0.0.1:9/m/", "http://127.0.0.1:9/m/", "[Errno 111] Connection refused"),
        ("not a url", "not a url", "unknown url type: 'not a url/io/delta/one/4.4.0/one-4.4.0.jar'"),
    ],
)
def test_a_repository_that_cannot_be_reached_is_named_with_what_to_do(
    nowhere: Path, given: str, shown: str, reason: str
) -> None:
    with pytest.raises(SparkSetupError) as raised:
        download(JARS, nowhere, given)
    assert str(raised.value) == (
        f"cannot download {ONE.name} from {shown}: {reason}; set DEFAULT_ARTIFACT_REPOSITORY to a Maven repository that "
        f"you can reach, or put {ONE.name} and {TWO.name} (io.delta) into a folder and pass --set spark.jars=FOLDER"
    )


def test_a_repository_without_the_jar_is_named_with_its_status(nowhere: Path, maven: Repository) -> None:
    with pytest.raises(SparkSetupError, match=rf"cannot download {ONE.name} from {maven.url}other: 404 Not Found; set"):
        download(JARS, nowhere, f"{maven.url}other")


def test_the_user_in_the_url_is_sent_to_the_repository_only(nowhere: Path, maven: Repository) -> None:
    maven.sent["/moved/one"] = CONTENT["one"]
    maven.moved_to = maven.url.replace("/maven/", "/moved/one")
    download([ONE], nowhere, maven.url.replace("://", "://me:hunter%202@"))
    expected = f"Basic {base64.b64encode(b'me:hunter 2').decode()}"
    assert [sent for _, sent in maven.asked] == [expected, None]


def test_a_repository_that_is_not_a_url_is_refused_without_its_password(nowhere: Path) -> None:
    with pytest.raises(SparkSetupError) as raised:
        download([ONE], nowhere, "https://me:hunter2@[mirror/maven")
    assert str(raised.value) == "DEFAULT_ARTIFACT_REPOSITORY: expected the URL of a Maven repository"


def test_the_repository_is_the_users_choice_or_the_default_of_spark(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DEFAULT_ARTIFACT_REPOSITORY", raising=False)
    assert repository(PYSPARK).startswith("https://")
    with pytest.raises(SparkSetupError, match="set DEFAULT_ARTIFACT_REPOSITORY to one"):
        repository(tmp_path)
    monkeypatch.setenv("DEFAULT_ARTIFACT_REPOSITORY", "https://mirror.example/maven")
    assert repository(PYSPARK) == "https://mirror.example/maven"
