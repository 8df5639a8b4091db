"""What the endpoint refuses, and what remains of it when clients behave badly: a real process, raw connections."""

import base64
import gzip
import io
import json
import math
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import zlib
from contextlib import contextmanager

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from serving.settings import Settings
from tests.serving import (
    CLASSIFY,
    PREDICT,
    ROOT,
    SECONDS,
    Client,
    chunked,
    encoded,
    form,
    gated,
    request,
    serving,
    tiny,
    wait,
)

MAX_BODY = 20_000
LIMITS = ("--max-body", "20KB", "--max-images", "3", "--max-megapixels", "0.05")
PNG = encoded()
TOKEN = "correct-horse-battery"


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    tiny(folder)
    return folder


@pytest.fixture(scope="module")
def server(export):
    """With small limits. It lives through every test that uses it."""
    with serving(export, *LIMITS) as running:
        yield running.ready()


@contextmanager
def gate(export, folder, *options, first=""):
    """A server whose engine stops while `folder`/shut is there, and starts shut."""
    options = ("--max-batch", "1", "--max-wait-ms", "0", "--decode-threads", "1", *options)
    with serving(export, *options, first=gated(folder) + first) as running:
        running.ready()
        (folder / "seen").unlink()
        (folder / "shut").touch()
        try:
            yield running
        finally:
            (folder / "shut").unlink(missing_ok=True)


def computing(folder, count=1):
    """Waits until the engine has been asked for so many batches."""
    wait(lambda: (folder / "seen").exists() and len((folder / "seen").read_text().split()) == count, "the batch")


def waiting(server, count):
    wait(lambda: f"graft_waiting_pictures {count}.0" in server.get("/metrics").body.decode(), f"{count} in the queue")


def picture(kind, **options):
    return encoded(kind, **options)


def claiming(width, height):
    """A PNG of a few bytes whose header claims a size."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animated(kind):
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 200)]
    stream = io.BytesIO()
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


def padded(size):
    """A picture of this many bytes; what is behind the end of a PNG is no part of it."""
    return PNG + bytes(size - len(PNG))


GZIP = {"Content-Encoding": "gzip"}
DOCUMENT = json.dumps({"instances": [{"b64": base64.b64encode(PNG).decode()}]}).encode()
FORM = {"Content-Type": "multipart/form-data; boundary=limit"}

BODIES = {
    "at the limit": (CLASSIFY, padded(MAX_BODY), {}, 200, "classes"),
    "one byte more": (CLASSIFY, padded(MAX_BODY + 1), {}, 413, "at most 20,000 bytes"),
    "chunked, at the limit": (CLASSIFY, chunked(padded(MAX_BODY)), {"Transfer-Encoding": "chunked"}, 200, "classes"),
    "chunked, one byte more": (
        CLASSIFY, chunked(padded(MAX_BODY + 1)), {"Transfer-Encoding": "chunked"}, 413, "at most 20,000 bytes",
    ),
    "declared, far beyond": (CLASSIFY, b"", {"Content-Length": 10**15}, 413, "at most 20,000 bytes"),
    "document beyond": (PREDICT, b" " * MAX_BODY + b"{}", {}, 413, "at most 20,000 bytes"),
    "as many pictures as allowed": (CLASSIFY, *form(*[("a", PNG)] * 3), 200, "classes"),
    "one picture more": (CLASSIFY, *form(*[("a", PNG)] * 4), 413, "may hold 3 pictures"),
    "one picture more in JSON": (
        PREDICT, json.dumps({"instances": json.loads(DOCUMENT)["instances"] * 4}).encode(), {}, 413, "hold 3 pictures",
    ),
    "megapixels": (CLASSIFY, claiming(60_000, 60_000), {}, 413, "3600 megapixels, the limit is 0.05"),
    "a pixel too many": (CLASSIFY, claiming(50_001, 1), {}, 413, "the limit is 0.05"),
    "megapixels in JSON": (
        PREDICT,
        json.dumps({"instances": [{"b64": base64.b64encode(claiming(60_000, 60_000)).decode()}]}).encode(),
        {}, 413, "megapixels",
    ),
    "JPEG": (CLASSIFY, picture("JPEG"), {}, 200, "classes"),
    "WebP": (CLASSIFY, picture("WEBP"), {}, 200, "classes"),
    "GIF": (CLASSIFY, picture("GIF", mode="L"), {}, 415, "not a JPEG, PNG or WebP"),
    "BMP": (CLASSIFY, picture("BMP"), {}, 415, "not a JPEG, PNG or WebP"),
    "TIFF": (CLASSIFY, picture("TIFF"), {}, 415, "not a JPEG, PNG or WebP"),
    "HEIC": (CLASSIFY, b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + bytes(200), {}, 415, "not a JPEG, PNG or WebP"),
    "SVG": (CLASSIFY, b'<svg xmlns="http://www.w3.org/2000/svg"/>', {}, 415, "not a JPEG, PNG or WebP"),
    "text": (CLASSIFY, b"hello", {}, 415, "not a JPEG, PNG or WebP"),
    "nothing": (CLASSIFY, b"", {}, 400, "empty"),
    "WebP, animated": (CLASSIFY, animated("WEBP"), {}, 415, "animated: 2 frames"),
    "PNG, animated": (CLASSIFY, animated("PNG"), {}, 415, "animated: 2 frames"),
    "PNG, cut": (CLASSIFY, PNG[:-100], {}, 400, "damaged or truncated"),
    "JPEG, cut": (CLASSIFY, picture("JPEG")[:300], {}, 400, "damaged or truncated"),
    "gzip": (PREDICT, gzip.compress(DOCUMENT), GZIP, 200, "probabilities"),
    "gzip of a picture": (CLASSIFY, gzip.compress(PNG), GZIP, 200, "classes"),
    "gzip, at the limit": (CLASSIFY, gzip.compress(padded(MAX_BODY)), GZIP, 200, "classes"),
    "gzip, beyond the size": (CLASSIFY, gzip.compress(padded(MAX_BODY + 1)), GZIP, 413, "expands to more than"),
    "gzip, beyond the ratio": (CLASSIFY, gzip.compress(bytes(19_000)), GZIP, 413, "more than 100 times"),
    "gzip, of gigabytes": (CLASSIFY, gzip.compress(bytes(2_000_000)), GZIP, 413, "expands to more than"),
    "gzip, cut": (CLASSIFY, gzip.compress(PNG)[:-20], GZIP, 400, "incomplete"),
    "gzip, without its end": (CLASSIFY, gzip.compress(PNG)[:-1], GZIP, 400, "incomplete"),
    "gzip, of nothing": (CLASSIFY, b"", GZIP, 400, "incomplete"),
    "gzip, wrong checksum": (CLASSIFY, gzip.compress(PNG)[:-8] + bytes(8), GZIP, 400, "not gzip"),
    "no gzip": (CLASSIFY, PNG, GZIP, 400, "not gzip"),
    "another encoding": (CLASSIFY, PNG, {"Content-Encoding": "br"}, 415, "identity or gzip here. Received: br"),
    "two encodings": (CLASSIFY, gzip.compress(PNG), {"Content-Encoding": "gzip, gzip"}, 415, "Received: gzip, gzip"),
    "encoding in capitals": (CLASSIFY, gzip.compress(PNG), {"Content-Encoding": "GZIP"}, 200, "classes"),
    "form": (CLASSIFY, *form(("a.png", PNG)), 200, "a.png"),
    "form, compressed": (CLASSIFY, gzip.compress(form(("a", PNG))[0]), GZIP | FORM, 415, "Content-Encoding"),
    "form without boundary": (CLASSIFY, form()[0], {"Content-Type": "multipart/form-data"}, 400, "boundary"),
    "form with another boundary": (
        CLASSIFY, form(("a", PNG))[0], {"Content-Type": "multipart/form-data; boundary=x"}, 400, "damaged",
    ),
    "form of nothing": (CLASSIFY, b"", FORM, 400, "incomplete"),
    "form without a file": (CLASSIFY, form()[0], FORM, 400, "no picture in the form"),
    "form of fields": (
        CLASSIFY, b'--limit\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--limit--\r\n', FORM, 400,
        "no picture in the form",
    ),
    "form of too many fields": (
        CLASSIFY,
        b'--limit\r\nContent-Disposition: form-data; name="a"\r\n\r\n\r\n' * 101 + b"--limit--\r\n", FORM, 400,
        "Too many fields",
    ),
    "form without its end": (CLASSIFY, *form(("a", PNG), ("b", PNG), end=False), 400, "incomplete"),
    "form cut in a file": (CLASSIFY, form(("a", PNG), ("b", PNG))[0][:-100], FORM, 400, "incomplete"),
    "form, part without name": (CLASSIFY, b"--limit\r\nX: y\r\n\r\nz\r\n--limit--\r\n", FORM, 400, "name"),
    "form, part with long headers": (
        CLASSIFY, b"--limit\r\nX: " + b"y" * 15_000 + b"\r\n\r\n\r\n--limit--\r\n", FORM, 400, "damaged",
    ),
    "form, part with many headers": (
        CLASSIFY, b"--limit\r\n" + b"X: y\r\n" * 2000 + b"\r\n\r\n--limit--\r\n", FORM, 400, "damaged",
    ),
    "form in a form": (CLASSIFY, *form(("a", form(("b", PNG), boundary="inner")[0])), 415, "not a JPEG"),
    "form, name beyond ASCII": (CLASSIFY, *form(("Käfer.png", PNG)), 200, "Käfer.png"),
    **{
        f"form in {charset}": (
            CLASSIFY, form((name, PNG))[0], {"Content-Type": f"multipart/form-data; boundary=limit; charset={charset}"},
            200, "classes",
        )
        for charset, name in {
            "utf-7": "+2AA-", "unicode_escape": r"\ud800", "raw_unicode_escape": r"\ud800", "undefined": "a",
            "punycode": "a-b", "idna": "a..b", "zlib": "a", "no-such": "a",
        }.items()
    },
}  # fmt: skip


@pytest.mark.parametrize(("path", "body", "headers", "status", "words"), BODIES.values(), ids=BODIES)
def test_bodies(server, path, body, headers, status, words):
    answer = server.post(path, body, headers)
    assert answer.status == status, answer
    if status == 200:
        assert words in answer.body.decode()
    else:
        assert words in answer.json()["error"]
        assert answer.json().keys() == {"error"}
    assert re.fullmatch("[0-9a-f]{32}", answer.headers["x-request-id"])
    assert server.post(CLASSIFY, PNG).status == 200


def test_a_bad_picture_among_good_ones_has_its_error_in_its_place(server):
    answer = server.post(CLASSIFY, *form(("a.png", PNG), ("b.gif", picture("GIF", mode="L")), ("c.png", PNG[:50])))
    assert answer.status == 200
    predictions = answer.json()["predictions"]
    assert [each["file"] for each in predictions] == ["a.png", "b.gif", "c.png"]
    assert [each.get("error", {}).get("status") for each in predictions] == [None, 415, 400]
    assert predictions[0]["classes"] == server.post(CLASSIFY, PNG).json()["predictions"][0]["classes"]


def test_a_jpeg_of_countless_scans(server):
    """Of 75 bytes each, and each takes a pass over the whole picture: at 49 megapixels some 20 ms."""
    stream = io.BytesIO()
    Image.new("L", (64, 64)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    answer = server.post(CLASSIFY, data[:-2] + last * 110 + b"\xff\xd9")
    assert answer.status == 400
    assert "scans" in answer.json()["error"]


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("GET", f"/v1/models/{'m' * 50_000}", b""),
        ("GET", f"/v1/{'m' * 50_000}", b""),
        ("POST", f"/v1/models/m/labels/{'m' * 50_000}:predict", b'{"instances": ["a"]}'),
        ("POST", PREDICT, b'{"signature_name": "' + b"s" * 15_000 + b'"}'),
    ],
)
def test_errors_are_short(server, method, path, body):
    assert len(server.ask(method, path, body).json()["error"]) < 1000


def test_expanded_bodies_count_as_memory(export):
    """A hundred kilobytes of gzip may become ten megabytes; so many of them that memory fills are not all taken."""
    blob = gzip.compress(PNG + np.random.default_rng(0).bytes(100_000) + bytes(9_700_000))
    lower = "import serving.bodies\nserving.bodies.MAX_HELD = 15_000_000\n"
    with serving(export, "--decode-threads", "1", first=lower) as running:
        running.ready()
        clients = [running.client() for _ in range(20)]
        for client in clients:
            client.request("POST", CLASSIFY, blob, GZIP)
        answers = [client.answer() for client in clients]
        for client in clients:
            client.close()
        statuses = {answer.status for answer in answers}
        assert 429 in statuses
        assert statuses <= {200, 429}
        assert all(answer.headers["retry-after"] == "1" for answer in answers if answer.status == 429)
        # Nothing of them is held any more.
        assert running.post(CLASSIFY, blob, GZIP).status == 200


# Requests that are not quite HTTP, and pages that are not there.
PATHS = {
    "HEAD of a page": ("HEAD", "/", 200),
    "HEAD of a route": ("HEAD", "/healthz", 200),
    "HEAD below /v1/": ("HEAD", "/v1/models/m", 400),
    "OPTIONS": ("OPTIONS", PREDICT, 400),
    "OPTIONS *": ("OPTIONS", "*", 404),
    "TRACE": ("TRACE", "/", 404),
    "an unknown method": ("BREW", "/", 400),
    "up and out": ("GET", "/page/../app.py", 404),
    "up and out, encoded": ("GET", "/page/%2e%2e/app.py", 404),
    "up and out, slashes encoded": ("GET", "/page/..%2f..%2fpyproject.toml", 404),
    "up and out, backslashes": ("GET", "/page/..%5capp.py", 404),
    "an absolute path": ("GET", "/page//etc/passwd", 404),
    "a folder": ("GET", "/page/", 404),
    "a zero in the path": ("GET", "/page/%00", 404),
    "a long path": ("GET", "/page/" + "a" * 5000, 404),
    "a line break in the path": ("GET", "/healthz%0d%0aX-Injected:%20yes", 404),
    "a line break in a model's name": ("GET", "/v1/models/m%0d%0aX-Injected:%20yes", 404),
    "a line break in a label": ("POST", "/v1/models/m/labels/a%0d%0aX-Injected:%20yes:predict", 404),
    "not UTF-8": ("GET", "/v1/models/%ff%fe", 404),
    "not ASCII": ("GET", "/v1/models/Käfer", 400),
    "half an escape": ("GET", "/v1/models/%f", 404),
    "an absolute address": ("GET", "http://elsewhere.example/healthz", 200),
    "an address without a path": ("GET", "http://elsewhere.example", 400),
    "a tunnel": ("CONNECT", "localhost:22", 400),
    "top_k beyond the classes": ("POST", CLASSIFY + "?top_k=99", 200),
    "top_k of nothing": ("POST", CLASSIFY + "?top_k=0", 400),
    "top_k no number": ("POST", CLASSIFY + "?top_k=%00", 400),
    "top_k endless": ("POST", CLASSIFY + "?top_k=" + "9" * 5000, 400),
    "version beyond 64 bits": ("POST", "/v1/models/m/versions/" + "9" * 40 + ":predict", 400),
}


@pytest.mark.parametrize(("method", "path", "status"), PATHS.values(), ids=PATHS)
def test_paths(server, method, path, status):
    answer = server.ask(method, path, PNG if method == "POST" else b"")
    assert answer.status == status, answer
    assert "x-injected" not in answer.headers
    if method != "HEAD" and status >= 400:
        assert answer.json()["error"]
    assert server.get("/healthz").status == 200


WRONG = {
    "not HTTP": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    "HTTP/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    "two lengths": request("POST", CLASSIFY, b"ab", {"Content-Length": "2\r\nContent-Length: 3"}),
    "length and chunks": request("POST", CLASSIFY, b"0\r\n\r\n", {"Content-Length": 5, "Transfer-Encoding": "chunked"}),
    "negative length": request("POST", CLASSIFY, b"ab", {"Content-Length": -2}),
    "length beyond 64 bits": request("POST", CLASSIFY, b"ab", {"Content-Length": 10**30}),
    "chunk of no size": request("POST", CLASSIFY, b"zz\r\n\r\n", {"Transfer-Encoding": "chunked"}),
    "unknown transfer encoding": request("POST", CLASSIFY, b"ab", {"Transfer-Encoding": "gzip"}),
    "header without a name": b"GET / HTTP/1.1\r\n: x\r\n\r\n",
    "header with a zero": b"GET / HTTP/1.1\r\nX: a\0b\r\n\r\n",
}


@pytest.mark.parametrize("data", WRONG.values(), ids=WRONG)
def test_what_is_not_http_is_answered_and_closed(server, data):
    with server.client() as client:
        client.send(data)
        answer = client.answer()
        assert answer.status == 400
        assert answer.json() == {"error": "This is not an HTTP/1.1 request."}
        assert answer.headers["connection"] == "close"
        assert client.closed()


def test_endless_headers(server):
    with server.client() as client:
        client.send(b"GET /healthz HTTP/1.1\r\n")
        until_closed(client, b"X: " + b"y" * 10_000 + b"\r\n")
        answer = client.answer()
        assert answer is None or answer.status == 431


@pytest.mark.parametrize(
    ("start", "flood"),
    [(b"0\r\n", b"a: b\r\n" * 2000), (b"0\r\n", b"a" * 10_000), (b"1;", b"a" * 10_000)],
    ids=["trailers", "a trailer", "an extension"],
)
def test_endless_trailers_and_extensions_of_chunks(server, start, flood):
    before = server.resident()
    with server.client() as client:
        client.send(request("POST", CLASSIFY, start, {"Transfer-Encoding": "chunked"}))
        until_closed(client, flood)
    assert server.resident() < before + 20_000_000
    assert server.get("/healthz").status == 200


def test_trailers_are_no_headers(server):
    with server.client() as client:
        head = request("POST", CLASSIFY, b"", {"Transfer-Encoding": "chunked"})
        client.send(head + chunked(PNG)[:-2] + b"X-Request-Id: a\r\nContent-Encoding: gzip\r\n\r\n")
        assert client.answer().status == 200


def test_a_flood_of_pipelined_requests(server):
    before = server.resident()
    with server.client() as client:
        until_closed(client, request("GET", "/healthz") * 5000)
    assert server.resident() < before + 30_000_000
    assert server.get("/healthz").status == 200


def until_closed(client, data):
    """Sends the same again and again until the server has had enough."""
    for _ in range(100_000_000 // len(data)):
        try:
            client.send(data)
        except (ConnectionResetError, BrokenPipeError):
            return
    pytest.fail("the server took it all")


def test_pipelined_requests_are_answered_in_order(server):
    with server.client() as client:
        paths = ["/healthz", "/v1/models/m", "/nowhere", "/readyz"] * 10
        client.send(b"".join(request("GET", path) for path in paths))
        assert [client.answer().status for _ in paths] == [200, 200, 404, 200] * 10


def test_large_pipelined_requests(server):
    """The headers of one and the body of the other arrive in the same piece."""
    with server.client() as client:
        data = request("POST", CLASSIFY, padded(15_000)) * 40
        sender = threading.Thread(target=client.send, args=[data])
        sender.start()
        assert [client.answer().status for _ in range(40)] == [200] * 40
        sender.join()


def test_a_connection_is_kept(server):
    with server.client() as client:
        for _ in range(3):
            client.request("POST", CLASSIFY, PNG)
            assert client.answer().status == 200
            client.request("POST", CLASSIFY, b"bad")
            assert client.answer().status == 415
        client.request("GET", "/healthz", headers={"Connection": "close"})
        assert client.answer().headers["connection"] == "close"
        assert client.closed()


def test_http_1_0(server):
    with server.client() as client:
        client.send(b"GET /healthz HTTP/1.0\r\n\r\n")
        assert client.answer().status == 200
        assert client.closed()


def test_expect_continue(server):
    with server.client() as client:
        client.send(request("POST", CLASSIFY, b"", {"Expect": "100-continue", "Content-Length": len(PNG)}))
        assert client.answer().status == 100
        client.send(PNG)
        assert client.answer().status == 200
    with server.client() as client:
        client.send(request("POST", CLASSIFY, b"", {"Expect": "100-continue", "Content-Length": MAX_BODY + 1}))
        assert client.answer().status == 413


def test_an_early_answer_reaches_a_client_that_is_still_sending(server):
    with server.client() as client:
        client.request("POST", CLASSIFY, padded(3_000_000))
        assert client.answer().status == 413
        client.request("GET", "/healthz")
        assert client.answer().status == 200


def test_an_early_answer_reaches_a_client_that_wants_to_close(server):
    """As Python's urllib does."""
    with server.client() as client:
        client.request("POST", CLASSIFY, padded(10_000_000), {"Connection": "close"})
        assert client.answer().status == 413


@pytest.mark.parametrize("upgrade", ["h2c", "websocket"])
def test_an_upgrade_is_ignored(server, upgrade):
    """Some clients offer HTTP/2 with each first request: curl --http2, Java's HttpClient."""
    with server.client() as client:
        client.request("POST", CLASSIFY, PNG, {"Connection": "Upgrade", "Upgrade": upgrade})
        assert client.answer().status == 200


@pytest.mark.parametrize(
    ("given", "kept"),
    [("a-B_9.z", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("ü", False), ("", False)],
)
def test_request_ids(server, given, kept):
    answer = server.get("/healthz", {"X-Request-Id": given})
    found = answer.headers["x-request-id"]
    assert found == given if kept else re.fullmatch("[0-9a-f]{32}", found)
    wait(lambda: found in {line.get("request_id") for line in server.log()}, "the log's line")


def test_logs_hold_no_pictures(server):
    secret = b"not-for-the-log"
    for body, headers in ((PNG + secret, {}), (secret, {}), form(("a", secret)), (b'{"instances": ["' + secret, {})):
        for path in (CLASSIFY, PREDICT):
            answer = server.post(path, body, headers)
            wait(lambda found=answer.headers["x-request-id"]: any(found in line for line in server.lines), "the line")
    assert secret.decode() not in "\n".join(server.lines)
    assert all({"time", "level", "message"} <= line.keys() for line in server.log())


# Time.

QUICK = "import serving.protocol\nserving.protocol.HEADER_SECONDS = serving.protocol.DRAIN_SECONDS = 0.5\n"


@pytest.fixture(scope="module")
def hasty(export):
    with serving(export, "--timeout", "1", "--max-connections", "5", *LIMITS, first=QUICK) as running:
        yield running.ready()


@pytest.mark.parametrize("start", [b"", PNG[:100]], ids=["at once", "later"])
@pytest.mark.parametrize("framing", [{"Content-Length": len(PNG)}, {"Transfer-Encoding": "chunked"}])
@pytest.mark.parametrize("path", [CLASSIFY, PREDICT])
def test_a_body_that_stops(hasty, path, framing, start):
    with hasty.client() as client:
        piece = b"%x\r\n%s\r\n" % (len(start), start) if start and "Transfer-Encoding" in framing else start
        client.send(request(path=path, method="POST", headers=framing) + piece)
        answer = client.answer()
        assert answer.status == 408
        assert "did not arrive in time" in answer.json()["error"]
        assert client.closed()


def test_a_form_that_stops(hasty):
    body, headers = form(("a", PNG))
    with hasty.client() as client:
        client.send(request("POST", CLASSIFY, body[:-50], headers | {"Content-Length": len(body)}))
        assert client.answer().status == 408
        assert client.closed()


def test_a_body_a_byte_at_a_time(hasty):
    with hasty.client() as client:
        client.send(request("POST", CLASSIFY, headers={"Content-Length": 10_000}))
        dripping(client, b"x")
        assert client.answer().status == 408


@pytest.mark.parametrize("start", [b"", b"GET /healthz HTTP/1.1\r\nX: ", b"\r\n"])
def test_headers_that_stop(hasty, start):
    with hasty.client() as client:
        client.send(start)
        answer = client.answer()
        assert answer.status == 408
        assert "headers did not arrive" in answer.json()["error"]
        assert client.closed()


def test_headers_a_byte_at_a_time(hasty):
    with hasty.client() as client:
        client.send(b"GET /healthz HTTP/1.1\r\nX: ")
        dripping(client, b"x")
        assert client.answer().status == 408


def test_a_client_that_sends_on_after_its_answer_is_cut_off(hasty):
    with hasty.client() as client:
        client.send(request("POST", CLASSIFY, headers={"Content-Length": 10**12}))
        assert client.answer().status == 413
        dripping(client, b"x")
        assert client.closed()


def dripping(client, byte):
    """Sends a byte now and then until the connection is closed or something has been said."""
    client.socket.settimeout(0.05)
    for _ in range(20 * SECONDS):
        try:
            client.send(byte)
            if client.socket.recv(1, socket.MSG_PEEK) or True:
                break
        except TimeoutError:
            continue
        except (ConnectionResetError, BrokenPipeError):
            break
    else:
        pytest.fail("the server listened on")
    client.socket.settimeout(SECONDS)


def test_answers_that_are_not_read(export):
    """The connection is given up, so that it is in nobody's way; nor in that of the server's end."""
    first = "import serving.protocol\nserving.protocol.WRITE_SECONDS = 0.5\n"
    with serving(export, first=first) as running, socket.socket() as client:
        running.ready()
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
        client.connect(running.address)
        for _ in range(3):
            client.sendall(request("GET", "/openapi.json") * 30)
        assert running.get("/healthz").status == 200
        running.process.send_signal(signal.SIGTERM)
        assert running.process.wait(SECONDS) == 0


def test_too_many_connections(hasty):
    clients = [hasty.client() for _ in range(5)]
    for client in clients:
        client.request("GET", "/healthz")
        assert client.answer().status == 200
    with hasty.client() as client:
        answer = client.answer()
        assert (answer.status, answer.headers["retry-after"]) == (503, "1")
        assert "too many connections" in answer.json()["error"]
        assert client.closed()
    clients[0].request("GET", "/healthz")
    assert clients[0].answer().status == 200
    for client in clients:
        client.close()
    wait(lambda: hasty.get("/healthz").status == 200)


# What is computed, and what is left.


def test_a_full_queue(export, tmp_path):
    with gate(export, tmp_path, "--max-queue", "2") as server:
        clients = [server.client() for _ in range(3)]
        clients[0].request("POST", CLASSIFY, PNG)
        computing(tmp_path)
        for client in clients[1:]:
            client.request("POST", CLASSIFY, PNG)
        waiting(server, 2)
        for path, body, headers in (
            (CLASSIFY, PNG, {}), (CLASSIFY, *form(("a", PNG))), (PREDICT, DOCUMENT, {}), (CLASSIFY, PNG * 2000, {}),
        ):  # fmt: skip
            answer = server.post(path, body, headers)
            assert (answer.status, answer.headers["retry-after"]) == (429, "1")
            assert "queue is full" in answer.json()["error"]
            assert answer.headers["x-request-id"]
        assert server.get("/readyz").status == 200
        (tmp_path / "shut").unlink()
        assert [client.answer().status for client in clients] == [200] * 3
        assert server.post(CLASSIFY, PNG).status == 200
        for client in clients:
            client.close()


def test_no_answer_in_time(export, tmp_path):
    with gate(export, tmp_path, "--timeout", "1") as server:
        clients = [server.client() for _ in range(3)]
        for client in clients:
            client.request("POST", CLASSIFY, PNG)
        for client in clients:
            answer = client.answer()
            assert answer.status == 504
            assert "within 1 seconds" in answer.json()["error"]
            client.close()
        (tmp_path / "shut").unlink()
        assert server.post(CLASSIFY, PNG).status == 200
        # Two of the three had not begun, and were left.
        assert (tmp_path / "seen").read_text().split() == ["1", "1"]


@pytest.mark.parametrize("pipelined", [b"", request("GET", "/healthz")])
def test_pictures_of_a_client_that_goes_away_are_not_computed(export, tmp_path, pipelined):
    with gate(export, tmp_path) as server:
        first, second = server.client(), server.client()
        first.request("POST", CLASSIFY, PNG)
        computing(tmp_path)
        second.send(request("POST", CLASSIFY, PNG) + pipelined)
        waiting(server, 1)
        second.close()
        wait(lambda: 499 in {line.get("status") for line in server.log()}, "the client's leaving")
        (tmp_path / "shut").unlink()
        assert first.answer().status == 200
        first.close()
        waiting(server, 0)
        assert server.post(CLASSIFY, PNG).status == 200
        assert (tmp_path / "seen").read_text().split() == ["1", "1"]


def test_nonsense_behind_a_request_in_flight(export, tmp_path):
    """Its answer must not be taken for the request's, and nothing is wrong in the server."""
    with gate(export, tmp_path) as server, server.client() as client:
        client.request("POST", CLASSIFY, PNG)
        computing(tmp_path)
        client.send(b"nonsense\r\n\r\n")
        assert client.answer() is None
        (tmp_path / "shut").unlink()
        assert server.post(CLASSIFY, PNG).status == 200


def test_a_pipelined_body_may_take_its_time(export, tmp_path):
    """Longer than a body that nobody waits for any more."""
    with gate(export, tmp_path, first=QUICK) as server, server.client() as client:
        client.send(request("POST", CLASSIFY, PNG) + request("POST", CLASSIFY, headers={"Content-Length": len(PNG)}))
        computing(tmp_path)
        (tmp_path / "shut").unlink()
        assert client.answer().status == 200
        client.socket.settimeout(1.5)
        assert not client.closed()
        client.socket.settimeout(SECONDS)


# Tokens.

FREE = ["/", "/docs", "/openapi.json", "/healthz", "/readyz", "/page/style.css"]
GUARDED = ["/models", "/metrics", "/v1/models/m", "/v1/models/m/metadata", "/V1/models/m", "/nowhere", "/%6dodels"]


@pytest.fixture(scope="module")
def guarded(export):
    with serving(export, "--host", "0.0.0.0", environment={"GRAFT_TOKEN": TOKEN}) as running:
        yield running.ready()
        assert TOKEN not in "\n".join(running.lines)


@pytest.mark.parametrize("path", FREE)
def test_free_routes(guarded, path):
    assert guarded.get(path).status == 200


@pytest.mark.parametrize(
    ("authorization", "right"),
    [
        (f"Bearer {TOKEN}", True), (f"bearer {TOKEN}", True), (f"BEARER  {TOKEN}", True), (None, False), ("", False),
        ("Bearer", False), ("Bearer ", False), (f"Bearer {TOKEN}x", False), (f"Bearer {TOKEN[:-1]}", False),
        (f"Basic {TOKEN}", False), (TOKEN, False), ("Bearer ü", False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("path", GUARDED)
def test_guarded_routes(guarded, path, authorization, right):
    answer = guarded.get(path, {} if authorization is None else {"Authorization": authorization})
    if right:
        assert answer.status == (404 if path == "/nowhere" else 200)
    else:
        assert answer.status == 401
        assert answer.headers["www-authenticate"] == "Bearer"
        assert "Authorization: Bearer TOKEN" in answer.json()["error"]


def test_without_a_token_no_body_is_read(guarded):
    with guarded.client() as client:
        client.send(request("POST", CLASSIFY, headers={"Content-Length": 1_000_000}))
        assert client.answer().status == 401


# Start and end.


def refused(*arguments, environment=None):
    """`graft serve` that does not start: its exit code and what it says."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "serve", *map(str, arguments)], cwd=ROOT, env=clean | (environment or {}),
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert done.stdout == ""
    return done.returncode, done.stderr


REFUSED = {
    "beyond loopback": (["--host", "0.0.0.0"], {}, r"needs a token.*--token-file FILE.*GRAFT_TOKEN.*--no-auth"),
    "short token": (["--host", "0.0.0.0"], {"GRAFT_TOKEN": "short"}, "at least 8 characters"),
    "no token in the file": (["--token-file", "/dev/null"], {}, "at least 8 characters"),
    "no such token file": (["--token-file", "no-such-file"], {}, "no-such-file cannot be read"),
    "not an address": (["--host", "256.0.0.1", "--no-auth"], {}, "cannot be listened on"),
    "nothing in no time": (["--timeout", "0"], {}, "greater than 0"),
    "a size that is none": (["--max-body", "huge"], {}, "--max-body must be a size"),
}


@pytest.mark.parametrize(("options", "environment", "words"), REFUSED.values(), ids=REFUSED)
def test_refused_at_the_start(export, options, environment, words):
    code, said = refused(export, "--port", "0", *options, environment=environment)
    assert code == 2
    assert re.search(words, said)
    assert len(said.strip().splitlines()) == 1
    assert "short" not in said or words != "at least 8 characters"


@pytest.mark.parametrize("field", ["request_seconds", "max_wait_ms", "poll_seconds", "max_megapixels"])
def test_endless_is_no_setting(field):
    with pytest.raises(ValidationError, match="finite"):
        Settings(**{field: math.inf})


def test_a_port_that_is_taken(export):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, said = refused(export, "--port", taken.getsockname()[1])
    assert code == 2
    assert re.search(r"cannot be listened on.*another\s+--port", said)
    assert len(said.strip().splitlines()) == 1


def test_sigterm_finishes_what_is_in_flight(export, tmp_path):
    with gate(export, tmp_path) as server, server.client() as client, server.client() as idle:
        idle.request("GET", "/healthz")
        assert idle.answer().status == 200
        client.request("POST", CLASSIFY, PNG)
        computing(tmp_path)
        server.process.send_signal(signal.SIGTERM)
        assert idle.closed()

        def unreachable():
            try:
                Client(server.address).close()
            except ConnectionRefusedError:
                return True
            return False

        wait(unreachable, "the end of listening")
        (tmp_path / "shut").unlink()
        answer = client.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert client.closed()
        assert server.process.wait(SECONDS) == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_when_idle(export, number):
    with serving(export) as server:
        server.ready()
        server.process.send_signal(number)
        assert server.process.wait(SECONDS) == 0
        assert server.log()[-1]["message"].startswith("Finished")


def test_a_second_signal_does_not_wait(export, tmp_path):
    with gate(export, tmp_path) as server, server.client() as client:
        client.send(request("POST", CLASSIFY, headers={"Content-Length": 1000}))
        wait(lambda: server.get("/healthz").status == 200)
        server.process.send_signal(signal.SIGTERM)
        wait(lambda: "Shutting down" in {line["message"] for line in server.log()}, "the end of listening")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(SECONDS) == 0


def test_a_model_that_comes_later(export, tmp_path):
    (tmp_path / "export").mkdir()
    with serving(tmp_path / "export", "--poll-seconds", "0.1") as server:
        assert server.get("/healthz").status == 200
        assert server.get("/readyz").status == 503
        assert server.post(CLASSIFY, PNG).status == 404
        assert server.get("/models").json()["models"] == []
        (tmp_path / "export" / "m").symlink_to(export / "m")
        server.ready()
        assert server.post(CLASSIFY, PNG).status == 200
