from __future__ import annotations

import threading

from deltatap.worker.unfinished import Unfinished


def test_a_feeding_thread_that_waits_continues_when_there_is_room_for_several_jobs() -> None:
    unfinished, added = Unfinished(32), threading.Event()
    assert all(unfinished.add(0.0) for _ in range(32))
    assert not unfinished.add(0.0)

    def add() -> None:
        if unfinished.add(10.0):
            added.set()

    waiting = threading.Thread(target=add)
    waiting.start()
    for _ in range(2):
        unfinished.remove()
    assert not added.wait(0.05)
    unfinished.remove()
    assert added.wait(5.0)
    waiting.join()
    for _ in range(30):
        unfinished.remove()
    assert unfinished.wait(0.0)
