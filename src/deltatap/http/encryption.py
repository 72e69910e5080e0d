"""The client's side of one TLS connection, without a socket: ciphertext in, plaintext and ciphertext out. Sans-IO.

``stream_socket.py`` moves the ciphertext. ``tls.py`` makes the context and explains failures.
"""

from __future__ import annotations

import ssl
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    # Anything with bytes in it.
    Data = bytes | memoryview[int]

# The plaintext of a TLS record is at most this long (RFC 8446, section 5.1).
_RECORD = 16 * 1024


class Encryption:
    """Encrypts outgoing data and decrypts incoming data.

    Call :meth:`handshake` until it returns True. After every call, send :meth:`outgoing` if :attr:`pending`: a
    handshake, an alert, a KeyUpdate and a renegotiation also have bytes to send.

    Attributes:
        over: whether no more plaintext will come.
        failure: why; None if the server ended the connection.

    Args:
        context: the trusted authorities and the client's certificate.
        host: the name that the server's certificate must have.
    """

    __slots__ = ("_in", "_out", "_read", "_tls", "failure", "over")

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._in, self._out, server_hostname=host)
        self._read = self._tls.read
        self.over = False
        self.failure: ssl.SSLError | None = None

    @property
    def pending(self) -> bool:
        """Whether ciphertext waits to be sent."""
        return self._out.pending > 0

    def outgoing(self) -> bytes:
        """The ciphertext to send."""
        return self._out.read()

    def handshake(self, data: bytes = b"") -> bool:
        """Continue the handshake with the server's data. Returns whether the handshake is complete.

        Raises:
            ssl.SSLError: the handshake failed. An alert for the server may be pending.
        """
        self._in.write(data)
        try:
            self._tls.do_handshake()
        except ssl.SSLWantReadError:
            return False
        return True

    def receive(self, data: bytes) -> bytes:
        """Decrypt the data of one read of the socket. Never fails: see `over` and `failure`.

        Returns:
            The plaintext of all records that are complete; often empty.
        """
        incoming, read = self._in, self._read
        incoming.write(data)
        try:
            plain = read(_RECORD)
            # Reading past the end raises an exception, which costs more than the two checks that avoid it.
            if not plain or not (incoming.pending or self._tls.pending()):
                self.over = not plain
                return plain
        except ssl.SSLWantReadError:
            return b""
        except ssl.SSLError as error:
            self._end(error)
            return b""
        return self._rest(plain)

    def _rest(self, first: bytes) -> bytes:
        """The plaintext of several records."""
        records = [first]
        try:
            while record := self._read(_RECORD):
                records.append(record)
            self.over = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLError as error:
            self._end(error)
        return b"".join(records)

    def send(self, data: Data) -> int:
        """Encrypt the start of some data; the next call takes the rest. Never fails: see `over` and `failure`.

        Returns:
            How much was encrypted; 0 while a renegotiation waits for the server.
        """
        if not data:
            return 0
        try:
            return self._tls.write(data[:_RECORD])
        except ssl.SSLWantReadError:
            return 0
        except ssl.SSLError as error:
            self._end(error)
            return 0

    def _end(self, error: ssl.SSLError) -> None:
        self.over = True
        # The alert close_notify ends the connection properly, but many servers omit it. The framing shows whether the
        # response is complete.
        self.failure = None if isinstance(error, ssl.SSLZeroReturnError | ssl.SSLEOFError) else error
