"""Feeds arbitrary answers through client, accumulator, rows and Arrow: ``python -m tests.fuzz --minutes 20 --seed 1``.

An answer is a mutation of a transcript or of a case of tests/answers: of its JSON, its records, its head, its bytes
and the places where it is cut. An answer fails if anything raises, if it does not become exactly one correct row, if
it is slow, or if well-behaved streams beside it do not complete. A failing answer is made smaller and written to a
file, which ``--replay`` runs again.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tests.fuzz.search import alone, read, search


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description="Search for an answer that deltatap cannot handle.")
    parser.add_argument("--minutes", type=float, default=20.0, help="how long to search")
    parser.add_argument("--seed", type=int, default=0, help="of the random numbers")
    parser.add_argument("--folder", type=Path, default=Path(), help="where failing answers are written")
    parser.add_argument("--replay", type=Path, help="run a failing answer again, instead of a search")
    options = parser.parse_args()
    if options.replay:
        failure = alone(read(options.replay))
        print(failure or "nothing is wrong")
        return int(failure is not None)
    return int(search(options.minutes, options.seed, options.folder) > 0)


if __name__ == "__main__":
    sys.exit(main())
