"""Runs the quick Spark tests with each Spark and pandas version of Databricks runtimes, in separate environments.

    make matrix                            # all combinations
    python tools/matrix.py 4.0 -k landing  # one combination, with options for pytest

Uses Python 3.12 if it is installed, as the runtimes do. All other versions come from the lock. If a combination has
another Spark version than the lock, its Delta jars are downloaded to the user's cache.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
UV = ROOT / ".tools/uv/bin/uv"
# Spark, pandas, pyarrow: those of runtime 17.3 LTS and 18 LTS (with Spark's latest patch release), and the newest.
COMBINATIONS = {
    "4.0": ("4.0.5", "2.2.3", "19.0.1"),
    "4.1": ("4.1.4", "2.2.3", "21.0.0"),
    "4.2": ("4.2.0", "3.1.1", "26.0.1"),
}


def interpreter() -> str:
    """Python 3.12 if it runs, else this Python. With a version manager, ``python3.12`` can exist but not start."""
    found = shutil.which("python3.12")
    runs = found is not None and subprocess.run([found, "--version"], check=False, capture_output=True).returncode == 0
    return found if found is not None and runs else sys.executable


def main(names: list[str], options: list[str]) -> int:
    failed = []
    for name in names or COMBINATIONS:
        python = environment(name)
        started = time.monotonic()
        command: list[str | Path] = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
        command += options or ["tests/spark"]
        code = subprocess.run(command, cwd=ROOT, check=False).returncode
        outcome = "passed" if code == 0 else "failed"
        print(
            f"matrix: Spark {', pandas '.join(COMBINATIONS[name][:2])}: {outcome}, {time.monotonic() - started:.0f} s",
            flush=True,
        )
        failed += [name] if code else []
    return len(failed)


def environment(name: str) -> Path:
    """The Python of a combination's environment, which is created if it does not exist."""
    spark, pandas, pyarrow = COMBINATIONS[name]
    runs = interpreter()
    folder = ROOT / ".tools/matrix" / f"{name}-{pandas}-{pyarrow}-{Path(runs).name}"
    python = folder / "bin/python"
    if (folder / "made").exists():
        return python
    print(f"matrix: installing Spark {spark}, pandas {pandas}, pyarrow {pyarrow}", flush=True)
    chosen = {"pyspark": spark, "pandas": pandas, "pyarrow": pyarrow}
    lock = re.findall(r"^([\w.-]+)==([^\s;]+)", (ROOT / "requirements.lock").read_text(encoding="utf-8"), re.MULTILINE)
    # pandas 2 has no wheel for the newest numpy, so uv chooses the version of numpy.
    pinned = [f"{package}=={version}" for package, version in lock if package not in {*chosen, "numpy", "pandas-stubs"}]
    wanted = [f"{package}=={version}" for package, version in chosen.items()]
    constraints = folder.with_suffix(".txt")
    constraints.parent.mkdir(parents=True, exist_ok=True)
    constraints.write_text("\n".join([*pinned, *wanted]) + "\n")
    subprocess.run([UV, "venv", "--quiet", "--clear", "--python", runs, folder], check=True)
    install: list[str | Path] = [UV, "pip", "install", "--quiet", "--python", python, "--constraint", constraints]
    extras = f"{ROOT}[spark,azure,databricks,report,serve]"
    subprocess.run([*install, "--group", "dev", "--editable", extras], cwd=ROOT, check=True)
    (folder / "made").touch()
    return python


if __name__ == "__main__":
    given = sys.argv[1:]
    chosen = [word for word in given if word in COMBINATIONS]
    sys.exit(main(chosen, [word for word in given if word not in COMBINATIONS]))
