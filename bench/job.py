"""The complete job on ``local[2]``: Spark, planning, capture, journal and landing.

``python -m bench.job BASE_URL STREAMS REQUESTS [WORKERS]`` prints one line of JSON. All times use the monotonic clock,
as in the simulator's record. With WORKERS, that many capture tasks share the streams, each on its own executor
process. One more executor lands.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console

from deltatap.delta.tables import quoted
from deltatap.driver.needs import preflight
from deltatap.driver.run import run
from deltatap.settings_loading import load_settings
from deltatap.spark.session import local_session
from deltatap.spark.slots import slots

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

    from deltatap.config import Settings

MODEL = "gpt-4o-mini"
_LOOK_S = 0.2
_WORKERS_AT = 4


def settings_in(folder: Path, **sections: Any) -> Settings:  # noqa: ANN401 - any part of the configuration
    """Settings with all tables and the state in one folder, no key and no prices. Each of ``sections`` replaces one."""
    tables = {name: {"table": str(folder / name)} for name in ("prompts", "captures", "runs")}
    rest = {"state": {"dir": str(folder / "state")}, "endpoint": {"api_key": None}, "prices": None}
    return load_settings(tables | rest | sections)


def settings_of(folder: Path, base_url: str, streams: int, workers: int = 1, where: str = "workers") -> Settings:
    """Settings for a job with a number of streams, shared by a number of workers, or by none: all in the driver."""
    return settings_in(
        folder,
        endpoint={"base_url": base_url, "api_key": None, "model": MODEL, "name": "sim"},
        request={},
        capture={"concurrency": streams, "streams_per_worker": streams // workers, "where": where},
    )


def job(
    spark: SparkSession,
    folder: Path,
    base_url: str,
    streams: int,
    requests: int,
    workers: int = 1,
    where: str = "workers",
) -> dict[str, Any]:
    """Run a capture of this many requests and read the result from Delta."""
    query = f"SELECT concat('r', id) AS request_id, concat('Prompt ', id) AS prompt FROM range({requests})"
    spark.sql(query).coalesce(1).write.format("delta").save(str(folder / "prompts"))
    settings = settings_of(folder, base_url, streams, workers, where)
    ready = time.monotonic()
    ended = run(settings, spark, preflight(settings), Console(file=sys.stderr))
    closed = time.monotonic()
    if ended.row["completed"] != requests:
        sys.exit(f"expected {requests} completed rows, found {ended.row}")
    captures = spark.table(quoted(settings.captures.table))
    content = "transform(filter(chunks, c -> c.kind = 'content'), c -> c.{0}) AS {0}"
    rows = captures.selectExpr("request_hash", content.format("ms"), "loop_lag_ms", content.format("read")).toArrow()
    return {
        "ready": ready,
        "closed": closed,
        "streams": [list(row.values()) for row in rows.to_pylist()],
    }


def main() -> None:
    base_url, streams, requests = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    workers = int(sys.argv[4]) if len(sys.argv) > _WORKERS_AT else None
    spark = local_session("local[2]" if workers is None else f"local-cluster[{workers + 1},1,1024]", app_name="bench")
    while workers is not None and slots(spark) <= workers:  # wait until every executor has registered
        time.sleep(_LOOK_S)
    with tempfile.TemporaryDirectory(prefix="bench-") as name:
        found = job(spark, Path(name), base_url, streams, requests, workers or 1)
    spark.stop()
    print(json.dumps(found))


if __name__ == "__main__":
    main()
