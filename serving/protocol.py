"""uvicorn's HTTP protocol with the limits it lacks: on connections, on headers, and on bodies nobody reads any more."""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEADER_BYTES = 65_536
HEADER_SECONDS = 10.0
"""From a connection, or a request's first byte on it, to the end of its headers."""
DRAIN_SECONDS = 5.0
"""In which a client that has its answer may still send the body that the answer did not need. Closing at once would
make it miss the answer (RFC 9112, 9.6)."""


class Protocol(HttpToolsProtocol):
    """One connection.

    What it adds: a connection beyond `max_connections`, or whose headers take too long or are too long, is answered and
    closed; a body that is still arriving after the answer is dropped for a while, then the connection is closed.
    """

    max_connections = 0  # Set by the server: uvicorn makes instances of a class.
    _timer: asyncio.TimerHandle | None = None
    _in_headers = False
    _header_bytes = 0

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
        idle = self.cycle is not None and self.cycle.response_complete and not self.cycle.more_body
        if idle and self._timer is None and self.timeout_keep_alive_task is None:
            self._within(HEADER_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._header_bytes = 0
        self._within(HEADER_SECONDS, self._slow_headers)

    def on_headers_complete(self) -> None:
        self._cancel()
        self._in_headers = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        super().on_message_complete()
        if self.cycle.response_complete:  # Before the body was: uvicorn has stopped to look after the connection.
            self._within(self.timeout_keep_alive, self.transport.close)

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle.more_body and not self.transport.is_closing():
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

    def _within(self, seconds: float, otherwise: Any) -> None:
        self._cancel()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
