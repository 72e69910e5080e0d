"""Lets Spark's own Ivy resolve the Delta jars by their coordinates, and puts them into the folder named as argument.

Run by set-up under the project's Python. No Spark context is started: resolving is done when the JVM comes up.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from pyspark import SparkConf
from pyspark.java_gateway import launch_gateway

from deltatap.local import delta_coordinates, jar_name, java_home


def main(folder: Path) -> None:
    coordinates = delta_coordinates()
    conf = SparkConf(loadDefaults=False)
    conf.set("spark.jars.packages", ",".join(coordinates))
    conf.set("spark.jars.ivy", str(folder / "ivy"))
    with java_home():
        gateway = launch_gateway(conf)  # type: ignore[no-untyped-call]
    gateway.shutdown()
    for each in coordinates:
        group = each.split(":")[0]
        shutil.copyfile(folder / "ivy/jars" / f"{group}_{jar_name(each)}", folder / jar_name(each))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
