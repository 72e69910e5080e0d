"""Faults of deltatap itself: what one row's trouble raises becomes the error of that row, and touches no other.

Knows which exceptions belong to a row, and how they are logged and named. Leaves what has arrived, and what the row
then means, to ``engine.py``, ``jobs.py`` and ``rows.py``.
"""

from __future__ import annotations

import asyncio
import logging
import traceback

from deltatap.model import CaptureError

_log = logging.getLogger("deltatap")
_ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, MemoryError)


def is_fault(error: BaseException) -> bool:
    """Whether an exception is one row's trouble. False if it ends the process or the task, or memory has run out.

    A panic of a library in Rust, such as tiktoken, is a fault, although it is no ``Exception``.
    """
    return not isinstance(error, _ENDS)


def internal_error(error: BaseException, request_id: str, code: str, what: str) -> CaptureError:
    """The error of the row, after logging the exception; or else, raise the exception again if it is no fault.

    The exception's own message is neither logged nor kept, because it may repeat the key.

    Args:
        error: what was raised.
        request_id: of the row.
        code: one of ``model.INTERNAL_*``.
        what: what deltatap could not do, in words.
    """
    if not is_fault(error):
        raise error
    stack = traceback.extract_tb(error.__traceback__)
    _log.error("request %s: %s: %s\n%s", request_id, what, type(error).__name__, "".join(stack.format()))
    where = f" in {stack[-1].name}" if stack else ""
    return CaptureError("internal", code, f"deltatap could not {what}: {type(error).__name__}{where}")
