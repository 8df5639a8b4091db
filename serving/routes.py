"""Every address the server answers.

Below /v1/ they are TensorFlow Serving's, to the letter (model_servers/http_rest_api_handler.cc), and one of our own,
`:classify-image`.

Shape letters: N pictures, C classes.
"""

import asyncio
import heapq
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from http import HTTPMethod
from pathlib import Path
from time import perf_counter
from typing import Any
from urllib.parse import unquote

import numpy as np
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import BaseRoute, Route

from serving import openapi, wire
from serving.bodies import Body
from serving.errors import BadRequest, NotFound, Refusal, Unavailable
from serving.observed import Record, end_arrival
from serving.service import Results, Service
from serving.versions import Served, State

TOP_K = 5

_PAGE = Path(__file__).parent / "page"
_FILES = {path.name for path in _PAGE.iterdir()}
# Larger documents are parsed in a thread, so that nobody waits for them.
_PARSE_IN_THREAD = 256_000
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' blob:; frame-ancestors 'none'; base-uri 'none'",
    "Cache-Control": "no-cache",
}

Handler = Callable[[Service, Request, dict[str, str]], Awaitable[Response]]


def routes() -> list[BaseRoute]:
    return [
        Route("/", partial(_page, file="index.html")),
        Route("/docs", partial(_page, file="docs.html")),
        Route("/page/{file}", _page),
        Route("/openapi.json", _openapi),
        Route("/models", _models),
        Route("/healthz", _healthz),
        Route("/readyz", _readyz),
        Route("/metrics", _metrics),
        Route("/{path:path}", _v1, methods=list(HTTPMethod)),
    ]


async def _v1(request: Request) -> Response:
    """TensorFlow Serving knows one error for a path or method that it does not know, 400."""
    path = request.scope.get("raw_path", request.url.path.encode()).decode("ascii", "replace")
    if not path.lower().startswith("/v1/"):
        raise NotFound("Not Found")
    for method, pattern, handler in _V1:
        match = pattern.fullmatch(path)
        if match and method == request.method:
            parts = {name: unquote(part) for name, part in match.groupdict().items() if part is not None}
            return await handler(_service(request), request, parts)
    if request.method == "GET" and path.lower() == "/v1/models":
        raise BadRequest("Missing model name in request.")
    raise BadRequest(f"Malformed request: {request.method} {path}")


async def _classify_image(service: Service, request: Request, parts: dict[str, str]) -> Response:
    """Labels with probabilities for the picture, or pictures, in the body."""
    top_k = _top_k(request.query_params.get("top_k"))
    with _body(service, request) as body, _borrowed(service, request, parts) as served:
        files = await body.files() if body.is_form else [("", await body.read())]
        if not files:
            raise BadRequest("There is no picture in the form. Send each as a file: curl -F file=@ant.jpg")
        data = [content for _, content in files]
        end_arrival(request.scope)
        results = await service.classify(served, data, _deadline(service, request), request.receive)
        results.raise_if_none()
        predictions: list[dict[str, Any]] = []
        for (name, _), result in zip(files, results.of, strict=True):
            predictions.append({"file": name} if body.is_form else {})
            match result:
                case np.ndarray():
                    predictions[-1]["classes"] = _best(result, served.export.manifest.classes, top_k)
                case Refusal():
                    service.metrics.refusals.labels(type(result).__name__).inc()
                    predictions[-1]["error"] = {"status": result.status, "message": str(result)}
                case _:
                    predictions[-1]["error"] = {"status": 500, "message": "This picture could not be computed."}
        answer = {"model": served.name, "version": str(served.version), "predictions": predictions}
        return _answer(json.dumps(answer, ensure_ascii=False).encode(), request, results)


async def _predict(service: Service, request: Request, parts: dict[str, str]) -> Response:
    """TensorFlow Serving's predict: either signature, row or columnar format."""
    with _body(service, request) as body:
        data = await body.read()
        document = await _in_thread(service, len(data), wire.document, data)
        name = wire.signature_name(document)
        with _borrowed(service, request, parts) as served:
            signature = served.export.signatures.get(name)
            if signature is None:
                raise BadRequest(f'Serving signature name: "{name}" not found in signature def')
            inputs = await _in_thread(service, len(data), wire.inputs, document, signature)
            (values,) = inputs.values.values()
            deadline = _deadline(service, request)
            end_arrival(request.scope)
            if isinstance(values, np.ndarray):
                results = await service.compute(served, values, deadline, request.receive)
            else:
                results = await service.classify(served, values, deadline, request.receive)
            classes = served.export.manifest.classes
            probabilities = results.stacked() if results.of else np.zeros((0, len(classes)), np.float32)
            outputs: dict[str, np.ndarray | list[bytes]] = {
                "label": [classes[row.argmax()].encode() for row in probabilities],
                "probabilities": probabilities,
                "score": probabilities.max(axis=-1),
            }
            return _answer(wire.answer(outputs, inputs.row_format), request, results)


async def _classify(service: Service, request: Request, parts: dict[str, str]) -> Response:
    """TensorFlow Serving's classify and regress, which take tf.Example: no exported model has such a signature."""
    with _body(service, request) as body:
        data = await body.read()
        name = wire.signature_name(await _in_thread(service, len(data), wire.document, data))
    with _borrowed(service, request, parts) as served:
        signature = served.export.signatures.get(name)
        if signature is None:
            raise BadRequest(f"No signature was found with the name: {name}")
        kind = parts["verb"]
        what = {"classify": "classification", "regress": "regression"}[kind]
        raise BadRequest(
            f"Expected {what} signature method_name to be tensorflow/serving/{kind}. Was: {signature.method_name}"
        )


async def _metadata(service: Service, request: Request, parts: dict[str, str]) -> Response:
    with _borrowed(service, request, parts) as served:
        return _json(wire.metadata(served.name, served.version, served.export.signatures))


async def _status(service: Service, request: Request, parts: dict[str, str]) -> Response:
    """Of one version, or of all; asked with a label, TensorFlow Serving gives all too."""
    _record(request).route = "status"
    name = parts["model"]
    found = service.versions.status(name)
    if not found:
        raise NotFound(f"Could not find any versions of model {name}")
    version = _version(parts)
    if version is not None:
        found = [status for status in found if status.version == version]
        if not found:
            raise NotFound(f"Could not find version {version} of model {name}")
    return _json(
        wire.status(
            wire.VersionStatus(
                status.version, status.state.value, "UNKNOWN" if status.state is State.END else "OK", status.error
            )
            for status in found
        )
    )


_MODEL = r"(?i:/v1/models/)(?P<model>[^/:]+)(?:(?i:/versions/)(?P<version>\d+)|(?i:/labels/)(?P<label>[^/:]+))?"

_V1: list[tuple[str, re.Pattern[str], Handler]] = [
    ("POST", re.compile(_MODEL + ":(?P<verb>classify-image)"), _classify_image),
    ("POST", re.compile(_MODEL + ":(?P<verb>predict)"), _predict),
    ("POST", re.compile(_MODEL + ":(?P<verb>classify|regress)"), _classify),
    ("GET", re.compile(_MODEL + "(?i:/metadata)"), _metadata),
    ("GET", re.compile(_MODEL), _status),
]


async def _models(request: Request) -> Response:
    """What the page needs: models, classes, versions, limits."""
    service = _service(request)
    _record(request).route = "models"
    models = []
    for name in service.versions.names():
        with suppress(NotFound):  # It has just gone, or has no version yet.
            models.append(_described(service, name))
    settings = service.settings
    limits = {name: getattr(settings, name) for name in ("max_body_bytes", "max_pictures", "max_megapixels")}
    return JSONResponse({"models": models, "engine": service.engine.name, "limits": limits})


def _described(service: Service, name: str) -> dict[str, Any]:
    versions = [
        {"version": str(each.version), "state": each.state.value, "labels": each.labels, "error": each.error}
        for each in service.versions.status(name)
    ]
    try:
        with service.versions.borrow(name) as served:
            classes = served.export.manifest.classes
    except Unavailable:
        classes = []
    return {"name": name, "classes": classes, "versions": versions}


async def _healthz(request: Request) -> Response:
    """The process answers."""
    _record(request).route = "health"
    return JSONResponse({"status": "ok"})


async def _readyz(request: Request) -> Response:
    """A model is loaded and warm."""
    _record(request).route = "health"
    ready = _service(request).versions.ready
    if not ready:
        raise Unavailable("No model is loaded and warm yet.")
    return JSONResponse({"status": "ready"})


async def _metrics(request: Request) -> Response:
    _record(request).route = "metrics"
    metrics = _service(request).metrics
    return Response(metrics.text(), media_type=metrics.content_type)


async def _openapi(request: Request) -> Response:
    _record(request).route = "page"
    return JSONResponse(openapi.document())


async def _page(request: Request, file: str | None = None) -> Response:
    _record(request).route = "page"
    name = file or request.path_params["file"]
    if name not in _FILES:
        raise NotFound("Not Found")
    return FileResponse(_PAGE / name, headers=_PAGE_HEADERS)


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


def _record(request: Request) -> Record:
    record: Record = request.scope["record"]
    return record


def _body(service: Service, request: Request) -> Body:
    left = _deadline(service, request) - perf_counter()
    return Body(
        request.headers, request.receive, asyncio.get_running_loop().time() + left, service.settings, service.held
    )


def _deadline(service: Service, request: Request) -> float:
    """By `time.perf_counter`: for the whole request, since its headers were there."""
    return _record(request).started + service.settings.request_seconds


@contextmanager
def _borrowed(service: Service, request: Request, parts: dict[str, str]) -> Iterator[Served]:
    """The version that a path asks for, noted for the log and the answer's headers."""
    record = _record(request)
    record.route = parts.get("verb", "metadata")
    with service.versions.borrow(parts["model"], _version(parts), parts.get("label")) as served:
        record.model, record.version = served.name, served.version
        yield served


def _version(parts: dict[str, str]) -> int | None:
    text = parts.get("version")
    if text is None:
        return None
    if len(text) > 19 or int(text) >= 2**63:
        raise BadRequest(f"Failed to convert version: {text[:50]} to numeric.")
    return int(text)


async def _in_thread(service: Service, size: int, work: Callable[..., Any], *arguments: Any) -> Any:
    """For what is large in a thread, one at a time: JSON takes tens of times its size in memory while it is parsed."""
    if size < _PARSE_IN_THREAD:
        return work(*arguments)
    async with service.parsing:
        return await asyncio.to_thread(work, *arguments)


def _top_k(text: str | None) -> int:
    if text is None:
        return TOP_K
    if not re.fullmatch(r"[1-9]\d{0,8}", text):
        raise BadRequest(f"top_k must be a whole number from 1. Received: {text[:50]!r}.")
    return int(text)


def _best(probabilities: np.ndarray, classes: list[str], top_k: int) -> list[dict[str, Any]]:
    """The most probable classes first."""
    ranked = heapq.nlargest(top_k, zip(probabilities.tolist(), range(0, -len(classes), -1), strict=True))
    return [{"label": classes[-place], "probability": round(probability, 6)} for probability, place in ranked]


def _answer(body: bytes, request: Request, results: Results) -> Response:
    record = _record(request)
    timing = record.timing = results.timing
    record.pictures = len(results.of)
    response = _json(body)
    response.headers["Server-Timing"] = ", ".join(f"{k};dur={v * 1000:.2f}" for k, v in vars(timing).items())
    return response


def _json(body: bytes) -> Response:
    return Response(body, media_type="application/json")
