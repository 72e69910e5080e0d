"""Makes tests/spark/released.tar.gz with the code that is imported: run it with a checkout of the released version.

    PYTHONPATH=<checkout>/src:<checkout> python tests/spark/released.py tests/spark/released.tar.gz

The archive holds what a user of that version has after a complete run and a driver that was killed: prompts, captures,
runs, and the state folder with its plan and with a journal that has not landed. Its tables are named ``/released/…``.
"""

from __future__ import annotations

import shutil
import sys
import tarfile
import time
from pathlib import Path

import psutil
import yaml

from deltatap.spark.session import local_session
from tests import prompts
from tests.simulation import start_simulator

FOLDER = Path("/released")


def main(archive: Path) -> None:
    """Make the archive."""
    FOLDER.mkdir()
    try:
        spark = local_session("local[1]", app_name="released", conf={"spark.sql.shuffle.partitions": "1"})
        prompts.write(spark, FOLDER / "prompts", [(f"r{n:02d}", f"Prompt {n}?") for n in range(24)])
        spark.stop()
        with start_simulator("--ttft-ms", "50", "--itl-ms", "20", "--tokens", "20") as simulator:
            first = {"table": None, "sql": f"SELECT * FROM delta.`{FOLDER}/prompts` WHERE request_id < 'r06'"}
            assert start(prompts.config(FOLDER, simulator.base_url, prompts=first, run={"id": "first"})).wait() == 0
            job = start(prompts.config(FOLDER, simulator.base_url, capture={"concurrency": 2}, state={"flush_s": 0.2}))
            while len(list(FOLDER.glob("state/*/journal/*.parquet"))) < 2:
                assert job.poll() is None
                time.sleep(0.02)
            processes = [job, *job.children(recursive=True)]
            for process in processes:
                process.kill()
            psutil.wait_procs(processes, timeout=30)
        for path in (*FOLDER.rglob("*.crc"), *FOLDER.rglob(".*.tmp")):
            path.unlink()
        with tarfile.open(archive, "w:gz") as packed:
            for name in ("prompts", "captures", "runs", "state"):
                packed.add(FOLDER / name, name)
    finally:
        shutil.rmtree(FOLDER)


def start(tree: dict[str, object]) -> psutil.Popen:
    """Start a capture in another process."""
    config = FOLDER / "config.yml"
    config.write_text(yaml.safe_dump(tree))
    return psutil.Popen([Path(sys.executable).with_name("deltatap"), "capture", "--config", str(config)])


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute())
