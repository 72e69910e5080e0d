"""The Delta jars: which ones a Spark version needs, and where they are.

They are in a checkout after ``make setup``, in the folder that ``spark.jars`` names, or in the user's cache, to which
they are downloaded once. Each is pinned by its sha256. ``tools/setup.py`` also uses this module, with a Python that
has no packages, so this module imports no package at its top.
"""

from __future__ import annotations

import base64
import hashlib
import http.client
import os
import re
import urllib.error
import urllib.parse
import urllib.request
import uuid
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from deltatap.errors import SparkSetupError, one_line
from deltatap.shipped import CHECKOUT

if TYPE_CHECKING:
    import ssl
    from collections.abc import Sequence

DELTA = "4.4.0"
# The variable that Spark's own Ivy reads.
REPOSITORY = "DEFAULT_ARTIFACT_REPOSITORY"
_TIMEOUT_S = 60


@dataclass(frozen=True, slots=True)
class Jar:
    """A jar of Delta Lake, and its sha256."""

    artifact: str
    sha256: str

    @property
    def name(self) -> str:
        """The name of the file."""
        return f"{self.artifact}-{DELTA}.jar"

    def url(self, repository: str) -> str:
        """Where the jar is in a Maven repository."""
        return f"{repository.rstrip('/')}/io/delta/{self.artifact}/{DELTA}/{self.name}"

    def problem(self, folder: Path) -> str | None:
        """The problem with the jar in this folder; None if it is the pinned file."""
        try:
            with (folder / self.name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{self.name}: {error.strerror}"
        return None if found == self.sha256 else f"{self.name} has sha256 {found}, not the pinned {self.sha256}"


_STORAGE = Jar("delta-storage", "c46735481fa8e326b0957be02b4420cbcab4b325bb08009b7f2045a95133f1cc")
_OF_SPARK = {
    "4.0": Jar("delta-spark_4.0_2.13", "49e899667168b9412f83cbe894ce264107d7b896d6c5e12edca4e216845c1104"),
    "4.1": Jar("delta-spark_4.1_2.13", "75a9400986853c061f5109f012547de2545a5759e5e752e5ef633dabe16a4f10"),
    "4.2": Jar("delta-spark_4.2_2.13", "27d4fd8b1f879535c573ed1c718177d6a27f24d3e626ba02e216369725721ead"),
}


def jars_for(pyspark: str, delta: str = DELTA) -> tuple[Jar, ...]:
    """Return the jars for these versions of pyspark and delta-spark.

    Raises:
        SparkSetupError: deltatap does not work with one of these versions.
    """
    install = "run `pip install 'deltatap[spark]'`"
    own = _OF_SPARK.get(".".join(pyspark.split(".")[:2]))
    if own is None:
        supported = ", ".join(_OF_SPARK)
        raise SparkSetupError(f"delta-spark {DELTA} needs pyspark {supported}; found pyspark {pyspark}: {install}")
    if delta != DELTA:
        raise SparkSetupError(f"pyspark {pyspark} needs delta-spark {DELTA}; found delta-spark {delta}: {install}")
    return own, _STORAGE


def find_jars(jars: Sequence[Jar], pyspark: Path, folder: Path | None = None) -> list[Path]:
    """Return the paths of the jars. Download them if they are neither in the checkout nor in the cache.

    Args:
        jars: which jars.
        pyspark: the folder of the package pyspark.
        folder: the folder that contains them, if the user names one. Then there is no download.

    Raises:
        SparkSetupError: The folder does not contain them, or they cannot be downloaded.
    """
    if folder is not None:
        if problems := [problem for jar in jars if (problem := jar.problem(folder))]:
            raise SparkSetupError(f"spark.jars: {folder}: {'; '.join(problems)}")
        return [folder.resolve() / jar.name for jar in jars]
    in_checkout, in_cache = CHECKOUT / ".jars", cache()
    if not any(jar.problem(in_checkout) for jar in jars):
        return [in_checkout / jar.name for jar in jars]
    if any(jar.problem(in_cache) for jar in jars):
        from deltatap.endpoint import Tls  # noqa: PLC0415 - setup's Python does not have its packages
        from deltatap.http.tls import tls_context  # noqa: PLC0415

        download(jars, in_cache, repository(pyspark), tls_context(Tls()))
    return [in_cache / jar.name for jar in jars]


def cache() -> Path:
    """The folder for jars in the user's cache. The folder may not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache").absolute() / "deltatap/jars"


def repository(pyspark: Path) -> str:
    """The Maven repository to download from: the user's choice, or else the default of pyspark's own Ivy.

    Raises:
        SparkSetupError: Neither is known.
    """
    if chosen := os.environ.get(REPOSITORY):
        return chosen
    resolver = "org/apache/ivy/plugins/resolver/IBiblioResolver.class"
    for jar in (pyspark / "jars").glob("ivy-*.jar"):
        with zipfile.ZipFile(jar) as archive:
            # The class has one HTTPS URL.
            if found := re.search(rb"https://[\w./-]+", archive.read(resolver)):
                return found[0].decode()
    raise SparkSetupError(f"no Maven repository to download the Delta jars from: set {REPOSITORY} to one")


def download(jars: Sequence[Jar], folder: Path, repository: str, context: ssl.SSLContext | None = None) -> None:
    """Download the jars that are not in the folder. Several processes can do this at once.

    A jar is complete and verified when it appears in the folder.

    Raises:
        SparkSetupError: The repository cannot be reached, sends something else, or the folder cannot be written.
    """
    try:
        address, user = _without_user(repository)
    except ValueError as error:
        # The URL and the error may contain a password, so the message has neither.
        raise SparkSetupError(f"{REPOSITORY}: expected the URL of a Maven repository") from error
    for jar in jars:
        if jar.problem(folder) is None:
            continue
        try:
            content = _read(jar.url(address), user, context)
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise SparkSetupError(_unreachable(jar, jars, address, error)) from error
        if (found := hashlib.sha256(content).hexdigest()) != jar.sha256:
            wrong = f"sent {jar.name} with sha256 {found}, not the pinned {jar.sha256}"
            raise SparkSetupError(f"{address} {wrong}: set {REPOSITORY} to another repository")
        try:
            _keep(content, folder, jar.name)
        except OSError as error:
            where = "set XDG_CACHE_HOME to a folder that can be written"
            raise SparkSetupError(f"{folder}: cannot be written: {error.strerror}; {where}") from error


def _read(url: str, user: str, context: ssl.SSLContext | None) -> bytes:
    request = urllib.request.Request(url)  # noqa: S310 - the user's choice; the content is verified
    if user:
        # A redirect may lead to another host.
        request.add_unredirected_header("Authorization", f"Basic {base64.b64encode(user.encode()).decode()}")
    with urllib.request.urlopen(request, timeout=_TIMEOUT_S, context=context) as answer:  # noqa: S310 - as above
        content: bytes = answer.read()
    return content


def _without_user(url: str) -> tuple[str, str]:
    """A URL without the user and password in it, and these as ``user:password``, or else an empty text."""
    parts = urllib.parse.urlsplit(url)
    user, _, host = parts.netloc.rpartition("@")
    return parts._replace(netloc=host).geturl(), urllib.parse.unquote(user)


def _unreachable(jar: Jar, jars: Sequence[Jar], address: str, error: Exception) -> str:
    cause = error.reason if isinstance(error, urllib.error.URLError) else error
    reason = f"{error.code} {cause}" if isinstance(error, urllib.error.HTTPError) else cause
    said = one_line(reason) if isinstance(reason, Exception) else str(reason)
    return (
        f"cannot download {jar.name} from {address}: {said}; set {REPOSITORY} to a Maven "
        f"repository that you can reach, or put {' and '.join(each.name for each in jars)} (io.delta) into a folder "
        "and pass --set spark.jars=FOLDER"
    )


def _keep(content: bytes, folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    partial = folder / f"{name}.{uuid.uuid4().hex}"
    try:
        partial.write_bytes(content)
        partial.replace(folder / name)
    finally:
        partial.unlink(missing_ok=True)
