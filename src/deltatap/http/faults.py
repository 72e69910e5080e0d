"""Bugs in deltatap: an exception that one row causes becomes the error of that row, and other rows continue.

Knows which exceptions belong to a row, and how they are logged and named. ``engine.py``, ``jobs.py``, ``counting.py``
and ``rows.py`` keep the output that had arrived and decide the row's status.
"""

from __future__ import annotations

import asyncio
import logging
import traceback

from deltatap.model import CaptureError
from deltatap.visible import visible

_log = logging.getLogger("deltatap")
_ENDS = (KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError, MemoryError)


def is_fault(error: BaseException) -> bool:
    """Whether an exception affects only one row. False if it ends the process or task, or if memory ran out.

    A panic of a library in Rust, such as tiktoken, is a fault, although it is not an ``Exception``.
    """
    return not isinstance(error, _ENDS)


def internal_error(error: BaseException, request_id: str, code: str, what: str) -> CaptureError:
    """Log the exception and return the row's error. Raises the exception again if it does not belong to the row.

    The exception's own message is neither logged nor kept, because it may repeat the key.

    Args:
        error: the exception.
        request_id: of the row.
        code: one of ``model.INTERNAL_*``.
        what: what deltatap could not do, as text.
    """
    if not is_fault(error):
        raise error
    stack = traceback.extract_tb(error.__traceback__)
    _log.error("request %s: %s: %s\n%s", visible(request_id), what, type(error).__name__, "".join(stack.format()))
    where = f" in {stack[-1].name}" if stack else ""
    return CaptureError("internal", code, f"deltatap could not {what}: {type(error).__name__}{where}")
