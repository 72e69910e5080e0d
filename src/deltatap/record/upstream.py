"""The connection to the endpoint for one client: forwards the bytes of answers as they are read, then parses a copy.

The bytes reach the client before deltatap looks at them. A copy that deltatap cannot decode changes nothing for the
client. ``connection.py`` of ``http/`` parses the copy, ``session.py`` owns the connection.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import httpx2

from deltatap.http.connection import Connection, Response
from deltatap.http.parser import Event, ResponseParser

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from deltatap.http.connection import Sink


class _Parser(ResponseParser):
    """Finds the end of an answer, whether or not its body can be decoded.

    Attributes:
        undecodable: why the body cannot be decoded; None while it can.
    """

    __slots__ = ("_bodiless", "_recorded", "undecodable")

    def __init__(self, method: str, *, recorded: bool) -> None:
        super().__init__()
        self._bodiless, self._recorded = method == "HEAD", recorded
        self.undecodable: httpx2.TransportError | None = None

    def decoded(self, body: bytes) -> Iterable[bytes]:
        """The output of a part of the body; none after an undecodable part, or without recording."""
        return () if self.undecodable is not None or not self._recorded else super().decoded(body)

    def on_headers_complete(self) -> None:
        """Httptools callback. The answer to HEAD ends here."""
        super().on_headers_complete()
        if self._bodiless and self.status and self._llhttp is not None:
            self._advance(Event.END if self._llhttp.should_keep_alive() else Event.LAST_END)

    def _fail(self, event: Event, failure: httpx2.TransportError) -> None:
        if event is Event.UNDECODABLE:
            self.undecodable = failure
        else:
            super()._fail(event, failure)


class Answer(Response):
    """The answer to one request of the client, while its bytes are forwarded.

    Attributes:
        finished: done when the answer has ended or broken off.
    """

    __slots__ = ("_sent", "finished")
    _parser: _Parser

    def __init__(self, connection: Connection, wrote: Callable[[float], None], method: str, *, recorded: bool) -> None:
        super().__init__(connection, wrote)
        self._parser = _Parser(method, recorded=recorded)
        self._sent = False
        self.finished: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    @property
    def undecodable(self) -> httpx2.TransportError | None:
        """Why the body cannot be decoded; None if it can."""
        return self._parser.undecodable

    @property
    def hides_break(self) -> bool:
        """Whether the answer broke off, but looks complete: its body has no length and does not come in chunks."""
        names = {name.lower() for name, _ in self.headers}
        broke = isinstance(self._parser.failure, httpx2.ReadError)
        return broke and self.status != 0 and not names & {b"content-length", b"transfer-encoding"}

    def feed(self, data: bytes, stamp: int, now: float) -> None:
        """Handle the data of one read of the socket."""
        super().feed(data, stamp, now)
        if not self._parser.open and not self.finished.done():
            self.finished.set_result(None)

    def lost(self, error: Exception | None) -> None:
        """Handle the end of the connection."""
        super().lost(error)
        if not self.finished.done():
            self.finished.set_result(None)

    def sent(self, at: float) -> None:
        """Record when the whole request was written, in monotonic seconds."""
        self._sent = True
        super().written(at)

    def written(self, at: float) -> None:
        """Record when the answer came, if that was earlier. `100 Continue` comes before the request is written."""
        if self.status or self._sent:
            super().written(at)

    async def over(self) -> None:
        """Wait for the end of the answer, which is no longer recorded. Never fails."""
        while self._parser.open:  # `read` also returns when the head has arrived
            try:
                await self.read(lambda *_: False)
            except httpx2.TransportError:
                return

    def _deliver(self, sink: Sink, body: bytes, at: float, now: float) -> None:
        """Handle a part. If deltatap cannot handle it, `read` raises, and the client still gets the rest."""
        try:
            if self._taken(sink, body, at, now):
                self._wake()
        except Exception as error:  # noqa: BLE001 - the sink's own, which `read` raises
            self._wake(error)


class Upstream(Connection):
    """The connection to the endpoint.

    Args:
        forward: gets the bytes of each read, as they are.
        ended: called when the server has closed the connection, with the error if it broke.
    """

    def __init__(self, forward: Callable[[bytes], None], ended: Callable[[Exception | None], None]) -> None:
        super().__init__(lambda _: None)
        self._forward, self._ended = forward, ended

    def begin(self, wrote: Callable[[float], None], method: str, *, recorded: bool) -> Answer:
        """Expect the answer to a request, which the caller writes. Requests follow each other on the connection."""
        answer = Answer(self, wrote, method, recorded=recorded)
        self._response = answer
        return answer

    def received(self, data: bytes, stamp: int, now: float) -> None:
        """Handle one read: forward its bytes first."""
        self._forward(data)
        if self._response is not None:
            self._response.feed(data, stamp, now)
        else:  # a server may explain why it closes an idle connection
            self.abort()
            self._ended(None)

    def lost(self, error: Exception | None) -> None:
        """Handle the end of the connection."""
        super().lost(error)
        self._ended(error)

    def broke(self, error: BaseException) -> None:
        """Handle an exception of deltatap's own code."""
        super().broke(error)
        self._ended(error if isinstance(error, Exception) else None)
