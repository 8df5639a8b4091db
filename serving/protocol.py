"""uvicorn's HTTP protocol with the limits it lacks: on connections, on headers, on bodies nobody reads any more, and on
what a request costs that is refused anyway."""

import asyncio
import uuid
from collections.abc import Callable

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 65_536
HEADER_SECONDS = 10.0
"""From a connection, or a request's first byte on it, to the end of its headers."""
DRAIN_SECONDS = 5.0
"""In which a client that has its answer may still send the body that the answer did not need. Closing at once would
make it miss the answer (RFC 9112, 9.6)."""

_BUSY = b'{"error": "The server is busy: its queue is full. Try again in a second."}'


class Protocol(HttpToolsProtocol):
    """One connection. The server makes a subclass that knows the server.

    Attributes:
        max_connections: one more is answered 503 and closed.
    """

    max_connections: int

    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0
    _in_body = False
    _refusing = False  # The request whose body is arriving; uvicorn does not know of it.
    _kept_alive = True

    def full(self) -> bool:
        """Whether nothing can be computed now. A request for a computation is then answered 429 as soon as its headers
        are there, and not after it has gone all the way to the queue: under overload, refusals must cost little."""
        raise NotImplementedError

    def refused(self) -> None:
        """Is told of each such request."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._end(b"503 Service Unavailable", "The server has too many connections. Try again in a second.")
        else:
            self._within(HEADER_SECONDS, self._slow_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        continued = self._in_headers
        super().data_received(data)
        if continued and self._in_headers:
            self._header_bytes += len(data)
            if self._header_bytes > HEADER_BYTES:
                self._end(b"431 Request Header Fields Too Large", f"Headers may take {HEADER_BYTES:,} bytes.")
        # An empty line between requests begins none, but ends uvicorn's own wait for the next.
        if not (self._in_headers or self._in_body or self._timer or self.timeout_keep_alive_task) and self._answered():
            self._within(HEADER_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._within(HEADER_SECONDS, self._slow_headers)

    def on_headers_complete(self) -> None:
        self._cancel()
        self._in_headers, self._in_body = False, True
        computes = self.parser.get_method() == b"POST" and self.url[:4].lower() == b"/v1/"
        if computes and self._answered() and self.full():
            self._refuse()
        else:
            super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        if not self._refusing:
            super().on_body(body)

    def on_message_complete(self) -> None:
        self._in_body = False
        if self._refusing:
            self._refusing = False
            if not self._kept_alive:
                self.transport.close()
        else:
            super().on_message_complete()
        if self._answered():  # Before the end of the body: uvicorn does not look after the connection any more.
            self._within(self.timeout_keep_alive, self.transport.close)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self._in_body and not self.transport.is_closing():
            self._within(DRAIN_SECONDS, self.transport.close)

    def _answered(self) -> bool:
        """Whether no request waits for an answer."""
        return self.cycle is None or self.cycle.response_complete

    def _refuse(self) -> None:
        self.refused()
        self._refusing = True
        self._kept_alive = self.parser.should_keep_alive() and not self.expect_100_continue
        self.transport.write(
            b"HTTP/1.1 429 Too Many Requests\r\ncontent-type: application/json\r\nretry-after: 1\r\n"
            b"x-request-id: %s\r\n%scontent-length: %d\r\n\r\n%s"
            % (uuid.uuid4().hex.encode(), b"" if self._kept_alive else b"connection: close\r\n", len(_BUSY), _BUSY)
        )
        self._within(DRAIN_SECONDS, self.transport.close)

    def _slow_headers(self) -> None:
        self._end(b"408 Request Timeout", "The request's headers did not arrive in time.")

    def _end(self, status: bytes, message: str) -> None:
        body = b'{"error": "%s"}' % message.encode()
        retry = b"retry-after: 1\r\n" if status.startswith(b"503") else b""
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n%s"
            % (status, len(body), retry, body)
        )
        self.transport.close()

    def _within(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
