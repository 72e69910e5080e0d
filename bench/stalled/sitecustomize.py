"""Stops every event loop of a Python program for 50 ms at random, once a second on average.

A folder on PYTHONPATH with this file changes a program that is not ours (bench/peers.py).
"""

import asyncio
import random
import time

STALL_S, APART_S = 0.05, 1.0
_run = asyncio.Runner.run


def _stall(loop):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    time.sleep(STALL_S)
    loop.call_later(random.expovariate(1 / APART_S), _stall, loop)


def _stalled(self, coro, *, context=None):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    loop = self.get_loop()
    loop.call_later(APART_S, _stall, loop)
    return _run(self, coro, context=context)


asyncio.Runner.run = _stalled  # type: ignore[method-assign]
