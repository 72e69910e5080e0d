"""A connected socket on the event loop: reads with the kernel's time stamps, writes when the send buffer has room.

Knows sockets and the event loop's readers and writers. ``encryption.py`` has TLS, ``connection.py`` knows what the
bytes mean. Three rules follow from how uvloop watches a socket:

- Every read asks for the socket's error, too. uvloop reports an error once and then stops watching the socket, so a
  reset right behind data would never be seen.
- A callback that raises closes the socket. Otherwise uvloop would call it forever.
- Reader and writer are removed before the socket closes, because the next socket gets the same number.
"""

from __future__ import annotations

import asyncio
import os
import socket
import sys
import time
from contextlib import suppress
from functools import cache
from typing import TYPE_CHECKING, Protocol

from deltatap.http.clock import TIMESTAMP_SPACE, TIMESTAMPNS, stamp_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from deltatap.http.encryption import Encryption

_READ = 64 * 1024
# After this many full reads, other connections get their turn.
_TURNS = 16
_NOTHING = memoryview(b"")
# How much unsent data the send buffer may hold. A request counts as written when the send buffer has taken its
# last byte, so the times include the upload of this much.
_UNSENT = 16 * 1024
_SOL_SOCKET, _SO_ERROR = socket.SOL_SOCKET, socket.SO_ERROR
_perf_counter = time.perf_counter


class Owner(Protocol):
    """Receives the data that a socket reads."""

    def received(self, data: bytes, stamp: int, now: float) -> None:
        """Take the data of one read: its plaintext, the kernel's stamp (ns; 0 if none), and monotonic seconds."""

    def lost(self, error: Exception | None) -> None:
        """Handle the end of the connection: what broke it, or None if the server closed it."""

    def broke(self, error: BaseException) -> None:
        """Handle an exception of `received`. The connection is closed."""


@cache
def keep_stamps_on() -> None:
    """Let the kernel stamp packets for as long as the process lives.

    It stamps packets only while a socket asks for it, and begins a moment after the first one does (Linux,
    net_enable_timestamp). Otherwise the first answers would have no stamps.
    """
    if sys.platform == "linux":
        with suppress(OSError), socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
            asking.setsockopt(_SOL_SOCKET, TIMESTAMPNS, 1)
            asking.detach()  # stays open


def prepare(stream: socket.socket) -> None:
    """Set the options of a connected socket. Where the system gives no time stamps, reads have none."""
    stream.setblocking(False)
    stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    stream.setsockopt(_SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    if sys.platform == "linux":
        with suppress(OSError):
            stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _UNSENT)
        with suppress(OSError):
            stream.setsockopt(_SOL_SOCKET, TIMESTAMPNS, 1)


class StreamSocket:
    """Reads and writes one connected socket until it closes.

    Args:
        stream: prepared by :func:`prepare`; this object closes it.
        owner: receives the data. It may call :meth:`abort` at any time.
        encryption: of a connection with TLS, after its handshake.
    """

    __slots__ = (
        "_encryption",
        "_handed",
        "_loop",
        "_owner",
        "_paused",
        "_plain",
        "_received",
        "_recvmsg",
        "_socket",
        "_taken",
        "_unsent",
        "_waiting",
    )

    def __init__(self, stream: socket.socket, owner: Owner, encryption: Encryption | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        self._socket: socket.socket | None = stream
        self._recvmsg = stream.recvmsg
        self._owner, self._received, self._encryption = owner, owner.received, encryption
        # Data to encrypt, data to send, and the callback for the moment when all of it is in the send buffer.
        self._plain = self._unsent = _NOTHING
        self._taken: Callable[[float], None] | None = None
        self._handed = 0.0
        self._waiting = self._paused = False
        self._loop.add_reader(stream, self._readable)

    @property
    def closed(self) -> bool:
        """Whether the socket is closed."""
        return self._socket is None

    @property
    def sending(self) -> bool:
        """Whether something is still to be sent."""
        return self._taken is not None

    def write(self, data: bytes, taken: Callable[[float], None]) -> None:
        """Send some data.

        Args:
            data: what to send; one at a time.
            taken: called with the monotonic time at which the send buffer accepted the last byte, possibly at once. It
                is not called if the connection ends before.
        """
        self._taken = taken
        if self._encryption is None:
            self._unsent = memoryview(data)
        else:
            self._plain = memoryview(data)
        self._flush()

    def abort(self) -> None:
        """Close now. Discards unsent and unread data, and calls no callback."""
        stream = self._socket
        if stream is None:
            return
        self._socket = None
        self._loop.remove_reader(stream)
        self._discard(stream)
        stream.close()

    def pause(self, *, reading: bool) -> None:
        """Stop or continue reading. While nothing is read, the end of the connection is not noticed.

        Args:
            reading: whether to read.
        """
        if self._socket is None or self._paused is not reading:
            return
        self._paused = not reading
        if reading:
            self._loop.add_reader(self._socket, self._readable)
        else:
            self._loop.remove_reader(self._socket)

    def _readable(self, failure: OSError | None = None) -> None:  # noqa: C901 - the hot path: calls would cost more
        """Read the available data. Event loop callback.

        Args:
            failure: the error that has ended the connection, if earlier data is still unread.
        """
        encryption, turns = self._encryption, _TURNS
        try:
            while (stream := self._socket) is not None:
                try:
                    data, ancillary, _, _ = self._recvmsg(_READ, TIMESTAMP_SPACE)
                except (BlockingIOError, InterruptedError):
                    if failure is not None:
                        self._end(failure)
                    return
                except OSError as error:
                    self._end(failure or error)
                    return
                now = _perf_counter()
                if not data:
                    self._end(failure)
                    return
                turns = turns - 1 if len(data) == _READ else 0
                if encryption is not None:
                    data = encryption.receive(data)
                if data:
                    self._received(data, stamp_of(ancillary), now)
                if encryption is not None and (encryption.over or encryption.pending or self._plain):
                    self._answer(encryption)
                if self._paused and failure is None:
                    return
                # Costs less than a read that finds nothing.
                if not turns and failure is None and self._socket is not None:
                    code = stream.getsockopt(_SOL_SOCKET, _SO_ERROR)
                    if not code:
                        return
                    failure = OSError(code, os.strerror(code))
        except BaseException as error:  # noqa: BLE001 - the owner's, who gets it
            self._broke(error)

    def _writable(self) -> None:
        """Continue to send. Event loop callback."""
        try:
            self._flush()
        except BaseException as error:  # noqa: BLE001 - the owner's, who gets it
            self._broke(error)

    def _answer(self, encryption: Encryption) -> None:
        """Send the data that TLS produced during a read; close if TLS is over."""
        if not encryption.over:
            self._flush()
            return
        self._plain, self._taken = _NOTHING, None
        self._flush()  # an alert
        self._end(encryption.failure)

    def _flush(self) -> None:
        """Send as much as the send buffer takes. The event loop continues when the buffer has room."""
        encryption = self._encryption
        while (stream := self._socket) is not None:
            if not self._unsent and encryption is not None:
                self._plain = self._plain[encryption.send(self._plain) :]
                self._unsent = memoryview(encryption.outgoing())
            if not self._unsent:
                self._wait_for_room(stream, wait=False)
                if encryption is not None and encryption.over:
                    self._end(encryption.failure)
                    return
                # A renegotiation may hold the rest back.
                if self._taken is not None and not self._plain:
                    taken, self._taken = self._taken, None
                    taken(self._handed)
                return
            # Before the call, which never blocks: after it, a busy process may wait for the GIL for many ms.
            self._handed = _perf_counter()
            try:
                sent = stream.send(self._unsent)
            except (BlockingIOError, InterruptedError):
                self._wait_for_room(stream, wait=True)
                return
            except OSError as error:
                self._discard(stream)
                self._readable(error)  # the server may have answered before it closed the connection
                return
            self._unsent = self._unsent[sent:]

    def _wait_for_room(self, stream: socket.socket, *, wait: bool) -> None:
        if wait == self._waiting:
            return
        self._waiting = wait
        if wait:
            self._loop.add_writer(stream, self._writable)
        else:
            self._loop.remove_writer(stream)

    def _discard(self, stream: socket.socket) -> None:
        """Send nothing more."""
        self._plain = self._unsent = _NOTHING
        self._taken = None
        self._wait_for_room(stream, wait=False)

    def _end(self, error: Exception | None) -> None:
        if self._socket is not None:
            self.abort()
            self._owner.lost(error)

    def _broke(self, error: BaseException) -> None:
        self.abort()
        self._owner.broke(error)
        if not isinstance(error, Exception):
            raise error
