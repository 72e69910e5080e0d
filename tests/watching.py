"""``deltatap watch`` as a process."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def watching(folder: Path, *words: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """Watch a state folder; yields the URL of the page, and the process."""
    command = [
        sys.executable,
        "-m",
        "deltatap",
        "watch",
        *words,
        "--port",
        "0",
        "--set",
        f"state.dir={folder}",
        "--set",
        f"runs.table={folder / 'runs'}",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        assert process.stdout is not None
        try:
            line = ""
            while not line.startswith("watch: "):
                line = process.stdout.readline()
                assert line, "it did not start"
            yield line.removeprefix("watch: ").strip(), process
        finally:
            process.terminate()
