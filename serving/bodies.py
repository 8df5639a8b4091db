"""Request bodies, within limits of size, time, memory and compression."""

import asyncio
import logging
import zlib
from collections.abc import AsyncGenerator
from types import TracebackType
from typing import Self

from starlette.datastructures import Headers
from starlette.formparsers import MultiPartException, MultiPartParser
from starlette.requests import ClientDisconnect
from starlette.types import Receive

from serving.errors import BadRequest, Overloaded, SlowRequest, TooLarge, Unsupported
from serving.settings import Settings

# Of a gzip body's size to what it holds: pictures do not shrink, Base64 by a quarter, repetitive JSON by tens.
MAX_RATIO = 100
# Of all bodies in memory: many slow clients with large bodies may not fill it.
MAX_HELD = 256_000_000
_EXPAND_IN_THREAD = 100_000

# What is wrong with a form is told to who sent it.
logging.getLogger("python_multipart").setLevel(logging.CRITICAL)


class Held:
    """Bytes of all bodies in memory."""

    def __init__(self) -> None:
        self.bytes = 0


class Body:
    """One request's body. What it takes in memory counts until the block is left.

    Args:
        receive: of the request, by ASGI.
        deadline: by the event loop's clock.
        held: shared by all requests of a server.

    Attributes:
        size: bytes received so far, and what they expanded to.

    `read` and `files` raise:
        TooLarge, SlowRequest, Overloaded, Unsupported: beyond a limit.
        BadRequest: the body is not what its headers say.
        ClientDisconnect: nobody is there any more.
    """

    def __init__(self, headers: Headers, receive: Receive, deadline: float, settings: Settings, held: Held) -> None:
        self._headers, self._receive, self._deadline = headers, receive, deadline
        self._max, self._max_files = settings.max_body_bytes, settings.max_pictures
        self._held = held
        self.size = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._held.bytes -= self.size

    @property
    def is_form(self) -> bool:
        return self._headers.get("content-type", "").lower().startswith("multipart/form-data")

    async def read(self) -> bytes:
        """The whole body, without its compression."""
        encoding = self._encoding("identity", "gzip")
        try:
            async with asyncio.timeout_at(self._deadline):
                body = b"".join([chunk async for chunk in self._chunks()])
        except TimeoutError:
            raise _slow() from None
        if encoding == "identity":
            return body
        if len(body) < _EXPAND_IN_THREAD:
            expanded = self._expand(body)
        else:
            expanded = await asyncio.to_thread(self._expand, body)
        self._hold(len(expanded))
        return expanded

    async def files(self) -> list[tuple[str, bytes]]:
        """Names and contents of the files in a multipart body."""
        self._encoding("identity")
        parser = _FormParser(self._headers, self._chunks(), max_files=self._max_files, max_fields=100)
        parser.spool_max_size = self._max + 1  # In memory, and never on a disk that may be read-only.
        try:
            async with asyncio.timeout_at(self._deadline):
                form = await parser.parse()
        except TimeoutError:
            raise _slow() from None
        except MultiPartException as error:
            if error.message.startswith("Too many files"):
                raise TooLarge(f"A request may hold {self._max_files} pictures.") from None
            raise BadRequest(f"The multipart body is damaged: {error.message}") from None
        if not parser.ended:
            await form.close()
            raise BadRequest("The multipart body is incomplete: the boundary that ends it is missing.")
        files = [value for _, value in form.multi_items() if not isinstance(value, str)]
        found = [(file.filename or "", await file.read()) for file in files]
        await form.close()
        return found

    async def _chunks(self) -> AsyncGenerator[bytes, None]:
        declared = self._headers.get("content-length", "")
        if declared.isdecimal() and int(declared[:20]) > self._max:
            raise self._too_large()
        more = True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise ClientDisconnect
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            self._hold(len(chunk))
            if self.size > self._max:
                raise self._too_large()
            yield chunk

    def _hold(self, count: int) -> None:
        self.size += count
        self._held.bytes += count
        if self._held.bytes > MAX_HELD:
            raise Overloaded("The server is busy: it is receiving too much at once. Try again in a second.")

    def _encoding(self, *allowed: str) -> str:
        encoding = self._headers.get("content-encoding", "identity").strip().lower()
        if encoding not in allowed:
            raise Unsupported(f"Content-Encoding may be {' or '.join(allowed)} here. Received: {encoding[:50]}.")
        return encoding

    def _too_large(self) -> TooLarge:
        return TooLarge(f"The body is too large: at most {self._max:,} bytes are accepted.")

    def _expand(self, body: bytes) -> bytes:
        limit = min(self._max, MAX_RATIO * len(body))
        expander = zlib.decompressobj(wbits=31)
        try:
            expanded = expander.decompress(body, limit + 1)
        except zlib.error as error:
            raise BadRequest(f"The body is not gzip, although Content-Encoding says so: {error}") from None
        if len(expanded) > limit:
            raise TooLarge(
                f"The body expands to more than {self._max:,} bytes, or more than {MAX_RATIO} times its size."
            )
        if not expander.eof:
            raise BadRequest("The gzip body is incomplete.")
        return expanded


class _FormParser(MultiPartParser):
    """Says whether the form came to its end; its names are UTF-8, and of no codec that a client may choose."""

    ended = False

    @property
    def _charset(self) -> str:
        return "utf-8"

    @_charset.setter
    def _charset(self, value: str) -> None:
        """Some codecs take minutes, or give what cannot be sent back."""

    def on_end(self) -> None:
        self.ended = True


def _slow() -> SlowRequest:
    return SlowRequest("The body did not arrive in time. Send it faster, or in smaller requests.")
