"""What goes wrong with deltatap itself.

What goes wrong with a call is an outcome (``outcomes.py``), never an exception.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


class DeltatapError(Exception):
    """The root of all errors that deltatap raises."""


class ConfigError(DeltatapError):
    """Something that the configuration says, or names, is wrong; nothing was called.

    Attributes:
        problems: each as ``where: what was expected``.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))


class VocabularyError(DeltatapError):
    """A vocabulary of tiktoken's is missing or damaged."""


class CredentialError(DeltatapError):
    """No token is to be had; the message holds none."""


class ProtocolError(DeltatapError):
    """A server sent what is no event stream."""


class EventTooLargeError(ProtocolError):
    """An event is longer than the limit."""


class RunningError(DeltatapError):
    """A run on the same captures table lives."""


class LeaseLostError(DeltatapError):
    """Another driver has taken over."""


class LandingError(DeltatapError):
    """The journal does not land."""


_CRASHED = "Python worker exited unexpectedly"
_SAID = 300


def said(error: BaseException) -> str:
    """What an error says, on one short line: its first, or what a Python worker raised where Spark tells of one."""
    text = str(error).strip()
    _, found, trace = text.rpartition("Traceback (most recent call last):")
    if not found and _CRASHED in text:
        return _CRASHED
    lines = [line for line in trace.splitlines() if line.strip()]
    # In a traceback what is indented says where, and the JVM's own begins after it.
    line = next((line for line in lines if not (found and line[0].isspace())), type(error).__name__)
    return " ".join(line.split())[:_SAID]
