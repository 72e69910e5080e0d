"""What one row's trouble raises becomes that row's error, and what ends the process or the task does not."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest

from deltatap.http.faults import internal_error, is_fault
from deltatap.model import ERRORS, INTERNAL_COMPLETE, INTERNAL_CUT, INTERNAL_REQUEST, CaptureError

if TYPE_CHECKING:
    from collections.abc import Callable

KEY = "sk-0123456789abcdef"


class PanicException(BaseException):
    """What a library in Rust raises when it panics (pyo3): no ``Exception``."""


class OwnStop(KeyboardInterrupt):
    """A subclass of what ends the process."""


FAULTS: list[BaseException] = [
    ValueError(KEY),
    KeyError(KEY),
    UnicodeEncodeError("utf-8", KEY, 0, 1, KEY),
    RecursionError(),
    OverflowError("int64"),
    TimeoutError(),
    OSError(5, KEY),
    StopIteration(),
    PanicException(KEY),
    BaseExceptionGroup("", [PanicException(KEY)]),
]
ENDS: list[BaseException] = [
    KeyboardInterrupt(),
    SystemExit(3),
    GeneratorExit(),
    asyncio.CancelledError(),
    MemoryError(),
    OwnStop(),
]


def caught(raised: BaseException) -> BaseException:
    """The exception as it is where it was caught, with a traceback."""

    def inner() -> None:
        raise raised

    try:
        inner()
    except BaseException as error:  # noqa: BLE001 - a panic is no Exception
        return error
    raise AssertionError


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_becomes_the_error_of_its_row(fault: BaseException, caplog: pytest.LogCaptureFixture) -> None:
    assert is_fault(fault)
    name = type(fault).__name__
    assert internal_error(caught(fault), "r-7", INTERNAL_CUT, "handle the answer") == CaptureError(
        "internal", "cut", f"deltatap could not handle the answer: {name} in inner"
    )
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("deltatap", "ERROR")
    first, *stack = record.getMessage().splitlines()
    assert first == f"request r-7: handle the answer: {name}"
    assert "in caught" in stack[0]
    assert any("raise raised" in line for line in stack)


@pytest.mark.parametrize("end", ENDS, ids=lambda end: type(end).__name__)
def test_what_ends_the_process_or_the_task_is_raised_again(
    end: BaseException, caplog: pytest.LogCaptureFixture
) -> None:
    assert not is_fault(end)
    with pytest.raises(type(end)) as raised:
        internal_error(caught(end), "r-7", INTERNAL_REQUEST, "build the request")
    assert raised.value is end
    assert not caplog.records


def chained() -> None:
    raise ValueError(KEY) from caught(KeyError(KEY))


def noted() -> None:
    error = ValueError(KEY)
    error.add_note(KEY)
    raise error


def panicking() -> None:
    raise PanicException(KEY)


@pytest.mark.parametrize("fails", [chained, noted, panicking])
def test_the_message_of_an_exception_is_neither_kept_nor_logged(
    fails: Callable[[], None], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(BaseException, match=KEY) as raised:
        fails()
    error = internal_error(raised.value, "r-7", INTERNAL_REQUEST, "build the request")
    assert error.message == f"deltatap could not build the request: {raised.type.__name__} in {fails.__name__}"
    assert KEY not in caplog.text
    assert KEY not in repr(error)


@pytest.mark.parametrize("code", [INTERNAL_COMPLETE, INTERNAL_CUT, INTERNAL_REQUEST])
def test_an_exception_that_was_never_raised_has_no_place(code: str) -> None:
    error = internal_error(KeyError(KEY), "r-7", code, "add up the row")
    assert error == CaptureError("internal", code, "deltatap could not add up the row: KeyError")
    assert error.type in ERRORS
