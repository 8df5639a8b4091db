"""The HTTP endpoint as an ASGI application, and the process that serves it."""

import asyncio
import contextlib
import ctypes
import logging
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from pipeline.errors import ConfigError
from serving.logs import log, to_standard_error
from serving.observed import Observed
from serving.protocol import Protocol
from serving.routes import routes
from serving.service import Service
from serving.settings import Settings

_OTHER_FILES = 200  # than connections, that the process has open
_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD = -3, -1  # malloc.h
KEEP_ALIVE_SECONDS = 75  # Longer than the 60 seconds of most load balancers, or they would use connections just closed.


def create_app(settings: Settings) -> Starlette:
    """The application. Models are loaded in the background once it has started; `/readyz` tells when."""
    service = Service(settings)

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        service.start()
        yield
        await asyncio.to_thread(service.close)

    token = None if settings.token is None else settings.token.get_secret_value()
    app = Starlette(
        routes=routes(),
        lifespan=lifespan,
        middleware=[Middleware(Observed, metrics=service.metrics, token=token)],
        exception_handlers={HTTPException: _not_routed},
    )
    app.router.redirect_slashes = False
    app.state.service = service
    return app


async def _not_routed(request: Request, error: Exception) -> Response:
    """No such page, or no such method for it."""
    assert isinstance(error, HTTPException)
    return JSONResponse({"error": error.detail}, error.status_code, error.headers)


def serve(settings: Settings, opened: Callable[[str], None]) -> None:
    """Serves until SIGTERM or SIGINT; what is in flight then is finished first.

    Args:
        opened: is told the URL as soon as requests are answered there.

    Raises:
        ConfigError: the address cannot be bound to.
    """
    try:
        family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
        listening = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    except OSError as error:
        raise ConfigError(
            f"{settings.host}:{settings.port} cannot be listened on ({os.strerror(error.errno or 0)}). Choose another "
            "--port, 0 for any free one, or another --host."
        ) from None
    to_standard_error()
    _return_large_memory()
    settings = _with_files_for(settings)
    app = create_app(settings)
    service: Service = app.state.service

    class Connection(Protocol):  # uvicorn makes one for each.
        max_connections = settings.max_connections

        def full(self) -> bool:
            return service.queue.full

        def refused(self) -> None:
            service.refused()

        def ended(self, status: int) -> None:
            service.metrics.requests.labels("connection", status).inc()
            service.metrics.refusals.labels("Connection").inc()

        def arrive(self) -> object:
            return service.queue.arrive()

    config = uvicorn.Config(
        app,
        http=Connection,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=int(settings.request_seconds) + 1,
    )
    server = _Server(config)

    def say() -> None:
        host, port = listening.getsockname()[:2]
        opened(f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}")

    server.on_start = say
    server.run(sockets=[listening])


def _with_files_for(settings: Settings) -> Settings:
    """Lets the process open a file for each connection, or lowers their number to what it may open."""
    needed = settings.max_connections + _OTHER_FILES
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return settings
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    if allowed == needed:
        return settings
    fewer = max(1, allowed - _OTHER_FILES)
    log.warning("the limit on open files allows fewer connections", extra={"fields": {"max_connections": fewer}})
    return settings.model_copy(update={"max_connections": fewer})


def _return_large_memory() -> None:
    """Has the C library give memory of 8 MB and more back as soon as it is free, and keep what is smaller.

    By default it keeps all: after three pictures of 49 megapixels, 1.2 GB for ever. Pillow takes 16 MB at a time. With
    the first of these alone, it would give everything back after each picture, and take it again for the next.
    """
    with contextlib.suppress(OSError, AttributeError):  # Of other systems.
        library = ctypes.CDLL(None)
        library.mallopt(_M_MMAP_THRESHOLD, 8 << 20)
        library.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


class _Server(uvicorn.Server):
    """Ends with the process's own exit code after a signal, where uvicorn would die of it."""

    on_start: Callable[[], None]

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        self.on_start()

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        await self._serve(sockets)

    def _stop(self) -> None:
        if self.should_exit:  # Who asks twice will not wait for what is in flight, nor for threads that compute it.
            logging.shutdown()
            os._exit(0)
        self.should_exit = True
