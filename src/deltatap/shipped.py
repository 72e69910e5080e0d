"""The paths of the files that ship with the package: ``conf/``, ``jobs/`` and ``databricks.yml``.

The wheel has copies of these files, and a checkout has the originals. Leaves their content to other modules.
"""

from __future__ import annotations

from pathlib import Path

# The root of the checkout. In an installed package, it is a folder without these files.
CHECKOUT = Path(__file__).resolve().parents[2]
_IN_THE_WHEEL = Path(__file__).with_name("shipped")


def path(name: str) -> Path:
    """The file with this name, which is relative to the root of a checkout."""
    return (_IN_THE_WHEEL if _IN_THE_WHEEL.is_dir() else CHECKOUT) / name


def bundle() -> list[str]:
    """The names of the files that a Databricks bundle consists of, sorted."""
    root = path("")
    folders = [file for folder in ("conf", "jobs") for file in (root / folder).rglob("*") if file.is_file()]
    names = {file.relative_to(root).as_posix() for file in folders if "__pycache__" not in file.parts}
    return sorted({"databricks.yml", *names} - {"conf/local.yml"})
