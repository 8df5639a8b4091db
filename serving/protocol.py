"""uvicorn's HTTP protocol with the limits it lacks: on connections, on headers, on bodies nobody reads any more, and on
what a request costs that is refused anyway."""

import asyncio
import random
import re
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

HEADER_BYTES = 65_536
HEADER_SECONDS = 10.0
"""From a connection, or a request's first byte on it, to the end of its headers."""
DRAIN_SECONDS = 5.0
"""In which a client that has its answer may still send the body that the answer did not need. Closing at once would
make it miss the answer (RFC 9112, 9.6)."""
WRITE_SECONDS = 30.0
"""In which a client must read some of its answer where the answer does not fit into the connection's buffers."""
PIPELINED = 100
"""Requests that may wait on a connection for the answer to one before them."""

REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,128}")

_BUSY = b'{"error": "The server is busy: its queue is full. Try again in a second."}'


def new_id() -> str:
    """For a request that brings none. Not from the system, which would let other threads go first."""
    return f"{random.getrandbits(128):032x}"


class Protocol(HttpToolsProtocol):
    """One connection. The server makes a subclass that knows the server.

    Attributes:
        max_connections: one more is answered 503 and closed.
    """

    max_connections: int

    _timer: asyncio.TimerHandle | None = None
    _unread: asyncio.TimerHandle | None = None
    _in_headers = False
    _idle_bytes = 0  # Received since headers, or a piece of a body: of headers, or of what surrounds pieces.
    _in_body = False
    _refusing = False  # The request whose body is arriving; uvicorn does not know of it.
    _kept_alive = True
    _lingering = False  # Answered for the last time, while a body is still arriving.
    _running: RequestResponseCycle | None = None  # uvicorn's own `cycle` is the newest, which may wait for this one.

    def full(self) -> bool:
        """Whether nothing can be computed now. A request for a computation is then answered 429 as soon as its headers
        are there, and not after it has gone all the way to the queue: under overload, refusals must cost little."""
        raise NotImplementedError

    def refused(self) -> None:
        """Is told of each such request."""
        raise NotImplementedError

    def ended(self, status: int) -> None:
        """Is told of each connection that is closed because of what was received, or not received, on it."""
        raise NotImplementedError

    def arrive(self) -> object:
        """What is kept in the scope of each other request for a computation."""
        raise NotImplementedError

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        if len(self.connections) > self.max_connections:
            self._end(b"503 Service Unavailable", "The server has too many connections. Try again in a second.")
        else:
            self._within(HEADER_SECONDS, self._slow_headers)

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel()
        if self._unread is not None:
            self._unread.cancel()
        self._leave()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._unread = self.loop.call_later(WRITE_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._unread is not None:
            self._unread.cancel()

    def data_received(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        self._idle_bytes += len(data)
        super().data_received(data if self._in_body else _without_upgrade(data))
        if self._idle_bytes > HEADER_BYTES and not self.transport.is_closing():
            self._too_long()
        # An empty line between requests begins none, but ends uvicorn's own wait for the next.
        if not (self._in_headers or self._in_body or self._timer or self.timeout_keep_alive_task) and self._answered():
            self._within(HEADER_SECONDS, self.transport.close)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_headers = True
        self._idle_bytes = 0
        if self._answered():  # Else it waits for another, and may not even be read.
            self._within(HEADER_SECONDS, self._slow_headers)

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_headers:  # What follows a body in chunks is nobody's concern.
            super().on_header(name, value)

    def on_headers_complete(self) -> None:
        self._cancel()
        self._idle_bytes = 0
        if len(self.pipeline) >= PIPELINED:
            self._close()
        if sum(len(name) + len(value) for name, value in self.headers) > HEADER_BYTES:
            self._too_long()
        if self.transport.is_closing():
            return
        computes = self.parser.get_method() == b"POST" and self.url[:4].lower() == b"/v1/"
        if computes and self._answered() and self.full():
            self._refuse()
        else:
            if computes:
                self.scope["arrival"] = self.arrive()  # type: ignore[typeddict-unknown-key]
            super().on_headers_complete()
            if not self.cycle.keep_alive:  # uvicorn would close with the answer, whatever is still arriving.
                self.cycle.transport = _Lingering(self.transport, self._close_when_read)  # type: ignore[assignment]
        self._in_headers, self._in_body = False, True

    def on_body(self, body: bytes) -> None:
        self._idle_bytes = 0
        if not (self._refusing or self.transport.is_closing()):
            super().on_body(body)

    def on_message_complete(self) -> None:
        if self.transport.is_closing():
            return
        self._in_body = False
        self._idle_bytes = 0
        if self._refusing:
            self._refusing = False
            self._lingering = not self._kept_alive
        else:
            super().on_message_complete()
        if self._lingering:
            self.transport.close()
        elif self._answered():  # Before the end of the body: uvicorn does not look after the connection any more.
            self._within(self.timeout_keep_alive, self.transport.close)

    def on_response_complete(self) -> None:
        answered = self._running
        super().on_response_complete()
        if self.transport.is_closing():
            return
        if self.pipeline:  # uvicorn would read on while these wait.
            self.flow.pause_reading()
        if answered is self.cycle and self._in_body:
            self._within(DRAIN_SECONDS, self.transport.close)
        elif self._in_headers:
            self._within(HEADER_SECONDS, self._slow_headers)

    def send_400_response(self, msg: str) -> None:
        self._end(b"400 Bad Request", "This is not an HTTP/1.1 request.")

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._running = cycle
        super()._start_asgi_task(cycle, app)

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
            % (self._id(), b"" if self._kept_alive else b"connection: close\r\n", len(_BUSY), _BUSY)
        )
        self._within(DRAIN_SECONDS, self.transport.close)

    def _close_when_read(self) -> None:
        if self._in_body:
            self._lingering = True
        else:
            self.transport.close()

    def _id(self) -> bytes:
        given = next((value for name, value in self.headers if name == b"x-request-id"), b"")
        return given if REQUEST_ID.fullmatch(given.decode("latin-1")) else new_id().encode()

    def _too_long(self) -> None:
        self._end(b"431 Request Header Fields Too Large", f"Headers may take {HEADER_BYTES:,} bytes.")

    def _slow_headers(self) -> None:
        self._end(b"408 Request Timeout", "The request's headers did not arrive in time.")

    def _end(self, status: bytes, message: str) -> None:
        # Not where it would be taken for an earlier request's answer, or for a second one.
        if self._in_body:
            heard = self._running is self.cycle and self._running is not None and not self._running.response_started
        else:
            heard = self._running is None or self._running.response_complete
        self.ended(int(status[:3]))
        if heard:
            body = b'{"error": "%s"}' % message.encode()
            retry = b"retry-after: 1\r\n" if status.startswith(b"503") else b""
            self.transport.write(
                b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n%sconnection: close\r\n\r\n%s"
                % (status, len(body), retry, body)
            )
        self._close()

    def _close(self) -> None:
        self._leave()
        self.transport.close()

    def _leave(self) -> None:
        """Tells the request that is being answered that nobody is there any more. uvicorn tells the newest only."""
        if self._running is not None and not self._running.response_complete:
            self._running.disconnected = True
            self._running.message_event.set()

    def _within(self, seconds: float, otherwise: Callable[[], None]) -> None:
        self._cancel()
        self._timer = self.loop.call_later(seconds, otherwise)

    def _cancel(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class _Lingering:
    """A transport for one answer, after which uvicorn closes it."""

    def __init__(self, transport: asyncio.Transport, close: Callable[[], None]) -> None:
        self.write, self.is_closing, self.close = transport.write, transport.is_closing, close


def _without_upgrade(data: bytes) -> bytes:
    """Hides the offer of another protocol, which may be ignored (RFC 9110, 7.8). Some clients make it with each first
    request, and uvicorn's parser would take the body that follows for that protocol's."""
    end = data.find(b"\r\n\r\n")
    head = data if end < 0 else data[:end]
    if b"\r\nupgrade:" not in head.lower():
        return data
    return re.sub(rb"(?i)\r\nupgrade:", b"\r\nx-upgrade:", head) + data[len(head) :]
