"""The exceptions that deltatap raises, and how to put any exception on one line.

A failed API call is not an exception: it is an outcome (see ``http/outcomes.py``) and becomes a row.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

# A name or a value in a message can hold any character.
_BREAKS = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]+")

_PASSWORD = re.compile(r"(?<=://)[^/@\s:]*:(?!\d+/)\S+@")


class DeltatapError(Exception):
    """Base class of every error that deltatap raises."""


class ConfigError(DeltatapError):
    """The configuration is wrong, or names something that does not exist. No API call was made.

    Attributes:
        problems: one line for each problem, as ``where: what was expected``.
    """

    def __init__(self, problems: Sequence[str]) -> None:
        self.problems = tuple(_without_password(_BREAKS.sub(" ", problem)) for problem in problems)
        super().__init__("\n".join(self.problems))


class MissingExtraError(DeltatapError):
    """A command needs a package that an optional extra of deltatap installs."""


class SparkSetupError(DeltatapError):
    """Spark cannot start on this machine: no suitable Java, or no suitable Delta, was found. No API call was made."""


class VocabularyError(DeltatapError):
    """A tiktoken vocabulary is missing or damaged."""


class CredentialError(DeltatapError):
    """No token could be obtained. The message never contains a token."""


class ProtocolError(DeltatapError):
    """The server sent something that is not a valid event stream."""


class EventTooLargeError(ProtocolError):
    """An event is larger than the limit."""


class RunningError(DeltatapError):
    """Another run is active on this captures table."""


class LeaseLostError(DeltatapError):
    """Another driver has taken over the run."""


class LandingError(DeltatapError):
    """The journal cannot be landed in the captures table."""


class ExportError(DeltatapError):
    """Spans cannot be exported: the server cannot be reached or refuses them. The message contains no header."""


def missing_extra(error: ModuleNotFoundError, extra: str) -> MissingExtraError:
    """Return the error to raise (``from error``) when an import fails because ``extra`` is not installed."""
    return MissingExtraError(
        f"the extra {extra} is not installed ({error.name} is missing): run `pip install 'deltatap[{extra}]'`, or "
        "`make setup` in a checkout"
    )


_CRASHED = "Python worker exited unexpectedly"
_MAX_LENGTH = 300
# Prefixes that py4j and Spark add to a message: a call's name, the class of an exception, or that a job has failed.
_NOISE = re.compile(
    r"An error occurred while calling \S+|Exception while serving query|Multiple failures in stage materialization"
    r"|:?\s*(?:Caused by: )?(?:[a-z]\w*\.)+[A-Z][\w$]*(?:Exception|Error|Throwable)?:?"
)
_CAUSE = re.compile(r"^\s*Caused by: (?:[a-z]\w*\.)+[A-Z][\w$]*: (.+)$", re.MULTILINE)
_AT = re.compile(r"\s*at \S+\(")
_CLASS = re.compile(r"\b[A-Z]\w*(?:Exception|Error)\b")
# Java exceptions whose message is only a file name.
_FILE_ERRORS = {"AccessDeniedException": "permission denied", "NoSuchFileException": "no such file"}
_WRAPPED = re.compile(
    r"^(?:Job aborted due to stage failure|Exception thrown in awaitResult|Query .* terminated with exception"
    r"|\[STREAM_FAILED\])"
)


def is_of_spark(error: BaseException) -> bool:
    """Whether Spark or the JVM has reported an error."""
    return type(error).__module__.partition(".")[0] in ("pyspark", "py4j")


def described(error: BaseException) -> str:
    """An error as one line for the user: its message, after its class unless the error comes from deltatap or Spark."""
    known = isinstance(error, DeltatapError) or is_of_spark(error)
    return one_line(error) if known else f"{type(error).__name__}: {one_line(error)}"


def one_line(error: BaseException) -> str:
    """An error's message on one line of at most 300 characters.

    This is the first informative line of the message. If Spark reports an exception of a Python worker, the line is
    that exception. An exception of the JVM is shown by its message only, without the names of classes and calls.
    """
    text = str(error).strip()
    _, found, trace = text.rpartition("Traceback (most recent call last):")
    if not found and _CRASHED in text:
        return _CRASHED
    lines = [line for line in trace.splitlines() if line.strip()]
    if found:
        # Indented lines of a traceback are source locations. The JVM's own stack trace follows the Python one.
        lines = [line for line in lines if not line[0].isspace()]
    else:
        lines = [said for line in lines if not _AT.match(line) and (said := _without_noise(line))]
        causes = _CAUSE.findall(text)
        if lines and causes and _WRAPPED.match(lines[0].strip()):
            lines = causes[-1:]
    line = lines[0] if lines else (_CLASS.findall(text) or [type(error).__name__])[-1]
    for name, what in _FILE_ERRORS.items():
        if f"{name}: {line}" in text:
            line = f"{what}: {line}"
    return _without_password(" ".join(line.split()))[:_MAX_LENGTH]


def _without_password(text: str) -> str:
    """Text without the passwords in its URLs. ``abfss://container@account`` contains no password."""
    return _PASSWORD.sub("***@", text)


def _without_noise(line: str) -> str:
    while found := _NOISE.match(line):
        line = line[found.end() :].strip()
    return line.strip()
