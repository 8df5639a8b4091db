"""Mutated pictures, forms, documents and paths: only 2xx and 4xx, neighbours unharmed, memory given back.

GRAFT_FUZZ_EXAMPLES=10000 pytest tests/test_fuzz.py tries so many of each, other ones every time.
"""

import base64
import io
import json
import os
import struct
import time
import zlib
from urllib.parse import quote

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.serving import CLASSIFY, PREDICT, encoded, form, serving, tiny

pytestmark = pytest.mark.slow

EXAMPLES = int(os.environ.get("GRAFT_FUZZ_EXAMPLES", "300"))
FUZZ = settings(
    max_examples=EXAMPLES,
    derandomize="GRAFT_FUZZ_EXAMPLES" not in os.environ,
    database=None,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
GROWTH = 50_000_000  # bytes of memory that a server may keep of all this: what its allocator has not given back
KNOWN = encoded(seed=7)


def _deep(kind, **options):
    """A picture of 16 bits a value."""
    stream = io.BytesIO()
    values = np.random.default_rng(0).integers(0, 65536, (32, 24)).astype(np.uint16)
    Image.fromarray(values).save(stream, kind, **options)
    return stream.getvalue()


def _few_colours(**options):
    stream = io.BytesIO()
    palette = Image.fromarray(np.random.default_rng(0).integers(0, 256, (32, 24, 3)).astype(np.uint8)).quantize(16)
    palette.save(stream, "PNG", **options)
    return stream.getvalue()


def _exif():
    tags = Image.Exif()
    tags[0x0112], tags[0x010E], tags[0x8769] = 6, "a picture", {0x9003: "2026:01:01 00:00:00"}
    return tags.tobytes()


def _frames(kind):
    stream = io.BytesIO()
    frames = [Image.fromarray(np.full((16, 16, 3), value, np.uint8)) for value in (0, 100, 200)]
    frames[0].save(stream, kind, save_all=True, append_images=frames[1:])
    return stream.getvalue()


SIZE = (32, 24)
PICTURES = [
    encoded("JPEG", SIZE),
    encoded("JPEG", SIZE, progressive=True),
    encoded("JPEG", SIZE, "CMYK"),
    encoded("JPEG", SIZE, "L"),
    encoded("JPEG", SIZE, exif=_exif(), subsampling=0),
    encoded("JPEG", SIZE, icc_profile=bytes(range(256)) * 4, restart_marker_rows=1),
    _frames("MPO"),
    encoded("PNG", SIZE),
    encoded("PNG", SIZE, "RGBA", exif=_exif()),
    encoded("PNG", SIZE, "L"),
    _deep("PNG"),
    _few_colours(),
    _few_colours(transparency=b"\0\x80\xff", bits=4),
    _frames("PNG"),
    encoded("WEBP", SIZE),
    encoded("WEBP", SIZE, lossless=True),
    encoded("WEBP", SIZE, "RGBA", exif=_exif()),
    _frames("WEBP"),
]
DOCUMENTS = [
    json.dumps(document).encode()
    for document in (
        {"instances": [{"b64": base64.b64encode(KNOWN).decode()}]},
        {"instances": [{"image_bytes": {"b64": base64.b64encode(KNOWN).decode()}}] * 2},
        {"inputs": {"image_bytes": [{"b64": base64.b64encode(KNOWN).decode()}]}, "signature_name": "serving_default"},
        {"signature_name": "pixels", "instances": np.zeros((1, 16, 16, 3), int).tolist()},
        {"signature_name": "pixels", "inputs": {"pixels": np.full((2, 16, 16, 3), 9).tolist()}},
        {"instances": ["text", "\N{PILE OF POO}"], "more": [None, True, 1e5, {}]},
    )
]
INTERESTING = [0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]

# What is done to bytes: how, where, and with what.
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(
            ["flip", "set", "number", "head", "cut", "drop", "double", "splice", "insert", "sums", "sizes"],
        ),
        st.integers(0, 2**20),
        st.integers(0, 2**20),
    ),
    min_size=1,
    max_size=6,
)


def changed(data, changes, others):
    data = bytearray(data)
    for how, where, what in changes:
        at = where % (len(data) + 1)
        if how == "flip" and data:
            data[at % len(data)] ^= 1 << what % 8
        elif how == "set" and data:
            data[at % len(data)] = what % 256
        elif how == "number":
            data[at : at + 4] = struct.pack("<I" if where % 2 else ">I", INTERESTING[what % len(INTERESTING)])
        elif how == "head" and data:
            data[where % min(len(data), 64)] = what % 256
        elif how == "cut":
            del data[at:]
        elif how == "drop":
            del data[at : at + what % 64]
        elif how == "double":
            data[at:at] = data[at : at + what % 512]
        elif how == "splice":
            other = others[what % len(others)]
            data[at:] = other[what % len(other) :]
        elif how == "insert":
            data[at:at] = bytes([what % 256]) * (what % 300)
        elif how == "sums":
            _right_sums(data)
        elif how == "sizes" and data[:4] == b"RIFF":
            data[4:8] = struct.pack("<I", max(0, len(data) - 8))
    return bytes(data)


def _right_sums(data):
    """Of a PNG's chunks, so that what was changed in them is read at all."""
    at = 8
    while data[:4] == b"\x89PNG" and at + 12 <= len(data):
        end = at + 8 + int.from_bytes(data[at : at + 4], "big")
        if end + 4 > len(data):
            break
        data[end : end + 4] = struct.pack(">I", zlib.crc32(data[at + 4 : end]))
        at = end + 4


class Fuzzed:
    """A server, a connection for the odd requests and one for the sound ones."""

    def __init__(self, server):
        self.server = server
        self.odd, self.sound = server.client(), server.client()
        self.expected = self.known()

    def known(self):
        self.sound.request("POST", CLASSIFY, KNOWN)
        return self.sound.answer().json()["predictions"]

    def beside(self, path, body, headers=None):
        """An odd request and a sound one at the same time; the answer to the odd one."""
        self.odd.request("POST", path, body, headers)
        assert self.known() == self.expected
        answer = self.odd.answer()
        if answer is None or answer.headers.get("connection") == "close":
            self.odd.close()
            self.odd = self.server.client()
        assert answer is not None
        return checked(answer)

    def close(self):
        self.odd.close()
        self.sound.close()


def checked(answer):
    assert 200 <= answer.status < 300 or 400 <= answer.status < 500, answer
    if answer.status >= 400:
        assert 0 < len(answer.json()["error"]) < 2000
    return answer


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("export")
    tiny(folder)
    with serving(folder) as running:
        yield running.ready()


@pytest.fixture(scope="module")
def fuzzed(server):
    fuzzed = Fuzzed(server)
    for _ in range(3):
        for data in PICTURES:
            fuzzed.beside(CLASSIFY, data)
        for document in DOCUMENTS:
            fuzzed.beside(PREDICT, document)
    before = server.resident()
    yield fuzzed
    assert fuzzed.known() == fuzzed.expected
    fuzzed.close()
    time.sleep(0.1)
    assert server.resident() < before + GROWTH


def test_the_pictures_themselves(fuzzed):
    statuses = [fuzzed.beside(CLASSIFY, data).status for data in PICTURES]
    assert statuses.count(200) == len(PICTURES) - 2  # Two are animated.
    assert [fuzzed.beside(PREDICT, document).status for document in DOCUMENTS] == [200] * 5 + [415]


@FUZZ
@given(st.integers(0, len(PICTURES) - 1), CHANGES)
def test_pictures(fuzzed, which, changes):
    answer = fuzzed.beside(CLASSIFY, changed(PICTURES[which], changes, PICTURES))
    if answer.status == 200:
        (prediction,) = answer.json()["predictions"]
        probabilities = [each["probability"] for each in prediction["classes"]]
        assert sum(probabilities) == pytest.approx(1, abs=1e-4)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(PICTURES) - 1), CHANGES), min_size=1, max_size=4))
def test_pictures_in_documents(fuzzed, odd):
    """In one request, and so likely in one batch: the first bad one is the answer."""
    rows = [changed(PICTURES[which], changes, PICTURES) for which, changes in odd]
    document = json.dumps({"instances": [{"b64": base64.b64encode(row).decode()} for row in [*rows, KNOWN]]})
    answer = fuzzed.beside(PREDICT, document.encode())
    if answer.status == 200:
        best = answer.json()["predictions"][-1]
        assert best["label"] == fuzzed.expected[0]["classes"][0]["label"]
        assert best["score"] == pytest.approx(fuzzed.expected[0]["classes"][0]["probability"], abs=1e-5)


@FUZZ
@given(st.lists(st.tuples(st.integers(0, len(PICTURES) - 1), CHANGES), max_size=4), st.text(max_size=10))
def test_pictures_in_forms(fuzzed, odd, name):
    """A bad one has its error in its place, and the good one its probabilities."""
    files = [("odd", changed(PICTURES[which], changes, PICTURES)) for which, changes in odd]
    body, headers = form(*files, (quote(name, safe=""), KNOWN), boundary="a-boundary-of-some-length")
    answer = fuzzed.beside(CLASSIFY, body, headers)
    assert answer.status == 200
    predictions = answer.json()["predictions"]
    assert len(predictions) == len(files) + 1
    assert predictions[-1]["classes"] == fuzzed.expected[0]["classes"]
    assert all(400 <= each["error"]["status"] < 500 for each in predictions if "error" in each)


@FUZZ
@given(CHANGES, CHANGES | st.just([]))
def test_forms(fuzzed, of_the_body, of_the_header):
    body, headers = form(("a.png", KNOWN), ("b.jpg", PICTURES[0]), boundary="limit")
    kind = headers["Content-Type"].encode() + b"; charset=utf-8"
    kind = changed(kind, of_the_header, [b"utf-7", b'"', b"; boundary=x", b"*=utf-8''"])
    kind = kind.decode("latin-1").translate(dict.fromkeys((*range(32), 127), "?"))
    body = changed(body, of_the_body, [body, b"\r\n--limit\r\n", b"--limit--", b"Content-Disposition: form-data"])
    fuzzed.beside(CLASSIFY, body, {"Content-Type": kind, "Content-Length": len(body)})


@FUZZ
@given(st.integers(0, len(DOCUMENTS) - 1), CHANGES)
def test_documents(fuzzed, which, changes):
    body = changed(DOCUMENTS[which], changes, [*DOCUMENTS, b"[[[[", b'"\\ud800"', b"NaN", b"1e999", b"9" * 5000])
    fuzzed.beside(PREDICT, body, {"Content-Length": len(body)})


WORDS = st.sampled_from(
    ["b64", "image_bytes", "pixels", "instances", "inputs", "signature_name", "serving_default", ""]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(WORDS | st.text(max_size=3), inner, max_size=3),
    max_leaves=12,
)


@FUZZ
@given(st.dictionaries(WORDS, VALUES, max_size=3) | VALUES)
def test_values(fuzzed, value):
    body = json.dumps(value).encode()
    fuzzed.beside(PREDICT, body, {"Content-Length": len(body)})


PARTS = st.text(max_size=6) | st.sampled_from(
    [
        "v1", "V1", "models", "m", "versions", "labels", "1", "2", "99999999999999999999", "metadata", ":predict",
        ":classify-image", ":classify", "m:predict", "page", "style.css", "docs", "metrics", "healthz", "openapi.json",
        ".", "..",
    ]
)  # fmt: skip
METHODS = st.sampled_from(["GET", "POST", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "CONNECT", "FIND", "M"])


@FUZZ
@given(METHODS, st.lists(PARTS, max_size=6), st.text(max_size=8), st.booleans(), st.sampled_from([b"", b"{}", KNOWN]))
def test_paths(fuzzed, method, parts, query, escaped, body):
    # What is left as it is are letters beyond ASCII, which are no HTTP.
    safe = ":%" if escaped else ":%" + "".join(letter for letter in "".join(parts) if 160 < ord(letter) < 256)
    path = "/" + "/".join(quote(part, safe=safe) for part in parts) + ("?" + quote(query) if query else "")
    with fuzzed.server.client() as client:
        client.request(method, path, body)
        assert fuzzed.known() == fuzzed.expected
        checked(client.answer(method)) if method != "HEAD" else client.answer(method)
