"""How a user starts deltatap, for the commands in messages."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path


def program(*, elsewhere: bool = False) -> str:
    """The command for a shell: the name if it is on PATH, else the path.

    Args:
        elsewhere: whether it must work in other folders. If not, a path is given only below the current folder, as in
            a checkout: an installed job's path would not help.
    """
    own = Path(sys.executable).with_name("deltatap")
    if shutil.which("deltatap") == str(own):
        return "deltatap"
    if elsewhere:
        return shlex.quote(str(own))
    return shlex.quote(str(own.relative_to(Path.cwd()))) if own.is_relative_to(Path.cwd()) else "deltatap"
