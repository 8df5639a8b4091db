"""What happens around every request: its id, the token, errors in words, figures and the log."""

import asyncio
import hmac
import re
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from starlette.datastructures import Headers
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serving.batching import Timing
from serving.errors import Refusal, Unauthorized
from serving.logs import log
from serving.metrics import Metrics
from serving.protocol import REQUEST_ID, new_id

_NO_TOKEN_NEEDED = re.compile(r"/|/docs|/openapi\.json|/healthz|/readyz|/page/.*")
_LONGEST = 500  # characters of an error, which may repeat what was sent
_CLIENT_GONE = 499  # As nginx and TensorFlow Serving count it; nobody gets to see it.


@dataclass
class Record:
    """What is noted of a request while it passes.

    Attributes:
        started: by `time.perf_counter`, when its headers were there.
        route: what was asked for, of a fixed set of words.
    """

    id: str
    started: float
    route: str = "other"
    status: int = 0
    model: str | None = None
    version: int | None = None
    pictures: int | None = None
    timing: Timing | None = None


class Observed:
    """ASGI middleware: everything inside it may raise a Refusal."""

    def __init__(self, app: ASGIApp, metrics: Metrics, token: str | None) -> None:
        self._app, self._metrics = app, metrics
        self._token = None if token is None else token.encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        wanted = headers.get("x-request-id", "")
        record = scope["record"] = Record(wanted if REQUEST_ID.fullmatch(wanted) else new_id(), perf_counter())

        async def observed(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                message["headers"].append((b"x-request-id", record.id.encode()))
                message["headers"].append((b"x-content-type-options", b"nosniff"))
                if record.version is not None:
                    message["headers"].append((b"x-model-version", str(record.version).encode()))
            await send(message)

        try:
            if self._token is not None and not _NO_TOKEN_NEEDED.fullmatch(scope["path"]):
                self._check(headers.get("authorization", ""), self._token)
            await self._app(scope, receive, observed)
        except Refusal as refusal:
            self._metrics.refusals.labels(type(refusal).__name__).inc()
            await _refuse(refusal.status, str(refusal), refusal.retry_after, scope, receive, observed)
        except ClientDisconnect:
            record.status = _CLIENT_GONE
        except asyncio.CancelledError:  # At the end of the time to finish.
            if record.status == 0:
                await _refuse(503, "The server is stopping.", 1, scope, receive, observed)
        except Exception:
            log.exception("a request failed", extra={"fields": {"request_id": record.id}})
            if record.status == 0:
                await _refuse(
                    500, "Something is wrong in the server; its log says what.", None, scope, receive, observed
                )
        finally:
            end_arrival(scope)
            self._note(scope, record)

    def _check(self, authorization: str, token: bytes) -> None:
        kind, _, given = authorization.partition(" ")
        if kind.lower() != "bearer" or not hmac.compare_digest(given.strip().encode(), token):
            raise Unauthorized("A token is needed: send the header Authorization: Bearer TOKEN.")

    def _note(self, scope: Scope, record: Record) -> None:
        seconds = perf_counter() - record.started
        self._metrics.requests.labels(record.route, record.status).inc()
        self._metrics.seconds.labels(record.route).observe(seconds)
        fields: dict[str, Any] = {
            "request_id": record.id,
            "method": scope["method"],
            "path": scope["path"][:200],
            "status": record.status,
            "milliseconds": round(seconds * 1000, 2),
        }
        fields |= {
            name: value for name in ("model", "version", "pictures") if (value := getattr(record, name)) is not None
        }
        if record.timing is not None:
            fields |= {f"{name}_ms": round(value * 1000, 2) for name, value in vars(record.timing).items()}
        log.info("request", extra={"fields": fields})


def end_arrival(scope: Scope) -> None:
    """A request has its places in the queue now, or will never have them."""
    if "arrival" in scope:
        scope["arrival"].end()


async def _refuse(
    status: int, message: str, retry_after: int | None, scope: Scope, receive: Receive, send: Send
) -> None:
    response = JSONResponse({"error": message if len(message) <= _LONGEST else message[:_LONGEST] + "…"}, status)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    if status == Unauthorized.status:
        response.headers["WWW-Authenticate"] = "Bearer"
    await response(scope, receive, send)
