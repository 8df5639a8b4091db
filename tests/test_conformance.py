"""TensorFlow Serving's REST interface, version 1: what each kind of request is answered, over HTTP.

What stands here was read from TensorFlow Serving's http_rest_api_util.cc, http_rest_api_handler.cc, http_server.cc and
json_tensor.cc; the words of its errors are part of it.
"""

import base64
import gzip
import json
import re
import time

import keras
import numpy as np
import pytest
import tensorflow as tf
from starlette.testclient import TestClient

from serving import errors
from serving.app import create_app
from serving.settings import Settings
from tests import exporting
from tests.networks import split

PICTURES = split(12, classes=3, size=16)
CLASSES = ("ant", "bee", "Käfer")
PIXELS = PICTURES.images(np.arange(3))
PNG = [exporting.encoded(pixels) for pixels in PIXELS]
OUTPUTS = {"probabilities", "label", "score"}

PREDICT = "/v1/models/m:predict"
B64 = [{"b64": base64.b64encode(png).decode()} for png in PNG]
ROW = {"instances": [B64[0]]}


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A folder with versions 1 and 2 of a model, which differ, and 3, which is none; and a models.config for them."""
    folder = tmp_path_factory.mktemp("export")
    for seed in (1, 2):
        keras.utils.set_random_seed(seed)
        pixels = keras.Input((16, 16, 3))
        x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 50)(pixels))
        exporting.exported(keras.Model(pixels, keras.layers.Dense(3)(x)), PICTURES, folder, CLASSES)
    (folder / "m" / "3").mkdir()
    (folder / "models.config").write_text(
        f"""
        model_config_list {{
          config {{
            name: "m" base_path: "{folder}/m" model_platform: "tensorflow"
            model_version_policy {{ specific {{ versions: 1 versions: 2 versions: 3 }} }}
            version_labels {{ key: "stable" value: 1 }}
            version_labels {{ key: "café 1" value: 1 }}
          }}
          config {{ name: "ants & bees" base_path: "{folder}/m" model_version_policy {{ specific {{ versions: 2 }} }} }}
        }}
        """,
        encoding="utf-8",
    )
    return folder


@pytest.fixture(scope="module")
def client(export):
    with TestClient(create_app(Settings(models_config=export / "models.config"))) as client:
        for path in ("/v1/models/m", "/v1/models/ants%20%26%20bees"):
            await_settled(client, path)
        yield client


def await_settled(client, path, seconds=60):
    """Until no version of a model is being loaded any more."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        answer = client.get(path)
        if answer.status_code == 200 and {version["state"] for version in versions(answer)} <= {"AVAILABLE", "END"}:
            return
        time.sleep(0.05)
    pytest.fail(f"not loaded after {seconds} s: {answer.text}")


def versions(answer):
    return answer.json()["model_version_status"]


@pytest.fixture(scope="module")
def expected(export):
    """By version, what the SavedModel gives for the three pictures."""
    computed = {}
    for version in (1, 2):
        outputs = tf.saved_model.load(str(export / "m" / str(version))).signatures["pixels"](pixels=tf.constant(PIXELS))
        computed[version] = {name: outputs[name].numpy() for name in OUTPUTS}
    assert abs(computed[1]["probabilities"] - computed[2]["probabilities"]).max() > 0.01
    return computed


def nothing(answer, expected):
    assert answer == {"outputs": {name: [] for name in OUTPUTS}}


def same(given, version, pictures, expected):
    """Columns, as JSON has them, are what the SavedModel gives."""
    assert given.keys() == OUTPUTS
    wanted = {name: values[list(pictures)] for name, values in expected[version].items()}
    assert given["label"] == [label.decode() for label in wanted["label"]]
    for name in ("probabilities", "score"):
        np.testing.assert_allclose(given[name], wanted[name], atol=1e-5)


def rows(version, *pictures):
    """Row format: one object for each picture."""

    def check(answer, expected):
        assert answer.keys() == {"predictions"}
        assert all(row.keys() == OUTPUTS for row in answer["predictions"])
        columns = {name: [row[name] for row in answer["predictions"]] for name in OUTPUTS}
        same(columns, version, pictures, expected)

    return check


def columns(version, *pictures):
    """Columnar format: one list for each output."""

    def check(answer, expected):
        assert answer.keys() == {"outputs"}
        same(answer["outputs"], version, pictures, expected)

    return check


def status(*numbers):
    """States of these versions; 3 could not be loaded."""

    def check(answer, expected):
        assert answer.keys() == {"model_version_status"}
        assert [version["version"] for version in answer["model_version_status"]] == list(numbers)
        for version in answer["model_version_status"]:
            assert version.keys() == {"version", "state", "status"}
            assert version["status"].keys() == {"error_code", "error_message"}
            if version["version"] == "3":
                assert (version["state"], version["status"]["error_code"]) == ("END", "UNKNOWN")
                assert "not a model exported by graft" in version["status"]["error_message"]
            else:
                assert (version["state"], version["status"]) == (
                    "AVAILABLE",
                    {"error_code": "OK", "error_message": ""},
                )

    return check


def metadata(name, version):
    def check(answer, expected):
        assert answer["model_spec"] == {"name": name, "signature_name": "", "version": version}
        assert answer["metadata"].keys() == {"signature_def"}
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        assert signatures["serving_default"]["inputs"] == {
            "image_bytes": {
                "dtype": "DT_STRING",
                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                "name": "serving_default_image_bytes:0",
            }
        }
        shape = signatures["pixels"]["inputs"]["pixels"]["tensor_shape"]
        assert [dim["size"] for dim in shape["dim"]] == ["-1", "16", "16", "3"]
        assert signatures["pixels"]["outputs"].keys() == OUTPUTS
        assert signatures["pixels"]["method_name"] == "tensorflow/serving/predict"

    return check


def case(line, method, path, body, code, matcher, **headers):
    return pytest.param(method, path, body, code, matcher, headers, id=line)


def with_signature(name, **rest):
    return {"signature_name": name, **rest}


MALFORMED = "^Malformed request: {} {}$"

CASES = [  # One row for each sentence of the contract, and for what follows from it.
    # Routing
    case("predict", "POST", PREDICT, ROW, 200, rows(2, 0)),
    case("a version", "POST", "/v1/models/m/versions/1:predict", ROW, 200, rows(1, 0)),
    case("a version with zeros before it", "POST", "/v1/models/m/versions/01:predict", ROW, 200, rows(1, 0)),
    case("a label", "POST", "/v1/models/m/labels/stable:predict", ROW, 200, rows(1, 0)),
    case("an encoded label", "POST", "/v1/models/m/labels/caf%C3%A9%201:predict", ROW, 200, rows(1, 0)),
    case("an encoded name", "POST", "/v1/models/ants%20%26%20bees:predict", ROW, 200, rows(2, 0)),
    case("a needlessly encoded name", "POST", "/v1/models/%6d:predict", ROW, 200, rows(2, 0)),
    case("paths in any case", "POST", "/V1/Models/m/VERSIONS/1:predict", ROW, 200, rows(1, 0)),
    case("labels in any case", "POST", "/v1/models/m/Labels/stable:predict", ROW, 200, rows(1, 0)),
    case("but not names", "POST", "/v1/models/M:predict", ROW, 404, r"^Servable not found for request: Latest\(M\)$"),
    case("nor verbs", "POST", "/v1/models/m:Predict", ROW, 400, MALFORMED.format("POST", "/v1/models/m:Predict")),
    case("a query is ignored", "POST", PREDICT + "?a=1", ROW, 200, rows(2, 0)),
    case("outside: 404", "GET", "/v2/models/m", None, 404, "."),
    case("outside, by POST: 404", "POST", "/nothing/v1/models/m:predict", ROW, 404, "."),
    case("the folder itself is outside", "GET", "/v1", None, 404, "."),
    case("inside: 400", "GET", "/v1/nothing", None, 400, MALFORMED.format("GET", "/v1/nothing")),
    case("inside, in any case", "GET", "/V1/nothing", None, 400, MALFORMED.format("GET", "/V1/nothing")),
    case("inside, the least", "GET", "/v1/", None, 400, MALFORMED.format("GET", "/v1/")),
    case("GET predict", "GET", PREDICT, None, 400, MALFORMED.format("GET", PREDICT)),
    case("POST status", "POST", "/v1/models/m", ROW, 400, MALFORMED.format("POST", "/v1/models/m")),
    case("POST metadata", "POST", "/v1/models/m/metadata", ROW, 400, MALFORMED.format("POST", "/v1/models/m/metadata")),
    case("PUT", "PUT", PREDICT, ROW, 400, MALFORMED.format("PUT", PREDICT)),
    case("DELETE", "DELETE", "/v1/models/m", None, 400, MALFORMED.format("DELETE", "/v1/models/m")),
    case("PATCH", "PATCH", PREDICT, ROW, 400, MALFORMED.format("PATCH", PREDICT)),
    case("OPTIONS", "OPTIONS", PREDICT, None, 400, MALFORMED.format("OPTIONS", PREDICT)),
    case("HEAD", "HEAD", "/v1/models/m", None, 400, None),
    case("another verb", "POST", "/v1/models/m:explain", ROW, 400, "^Malformed request: POST /v1/models/m:explain$"),
    case("no verb", "POST", "/v1/models/m:", ROW, 400, "^Malformed request"),
    case("no name", "POST", "/v1/models/:predict", ROW, 400, "^Malformed request"),
    case("a version that is no number", "POST", "/v1/models/m/versions/one:predict", ROW, 400, "^Malformed request"),
    case("no version", "POST", "/v1/models/m/versions/:predict", ROW, 400, "^Malformed request"),
    case("both", "POST", "/v1/models/m/versions/1/labels/stable:predict", ROW, 400, "^Malformed request"),
    case("a slash too many", "GET", "/v1/models/m/", None, 400, "^Malformed request: GET /v1/models/m/$"),
    case("something below", "GET", "/v1/models/m/else", None, 400, "^Malformed request"),
    case("no model", "GET", "/v1/models", None, 400, r"^Missing model name in request\.$"),
    case("a huge version", "POST", f"/v1/models/m/versions/{'9' * 20}:predict", ROW, 400,
         f"^Failed to convert version: {'9' * 20} to numeric"),
    case("a version without end", "GET", f"/v1/models/m/versions/{'9' * 5000}", None, 400, "^Failed to convert"),
    # Who is not there
    case("no such model", "POST", "/v1/models/x:predict", ROW, 404, r"^Servable not found for request: Latest\(x\)$"),
    case("no such version", "POST", "/v1/models/m/versions/9:predict", ROW, 404,
         r"^Servable not found for request: Specific\(m, 9\)$"),
    case("a version not loaded", "POST", "/v1/models/m/versions/3:predict", ROW, 404,
         r"^Servable not found for request: Specific\(m, 3\)$"),
    case("no such label", "POST", "/v1/models/m/labels/x:predict", ROW, 400,
         "^Unrecognized servable version label: x$"),
    case("metadata of no such model", "GET", "/v1/models/x/metadata", None, 404, r"^Servable not found .*Latest\(x\)$"),
    case("metadata of no such version", "GET", "/v1/models/m/versions/9/metadata", None, 404, "^Servable not found"),
    case("metadata of no such label", "GET", "/v1/models/m/labels/x/metadata", None, 400, "^Unrecognized servable"),
    case("status of no such model", "GET", "/v1/models/x", None, 404, "^Could not find any versions of model x$"),
    case("status of no such version", "GET", "/v1/models/m/versions/9", None, 404,
         "^Could not find version 9 of model m$"),
    case("a model named metadata", "GET", "/v1/models/metadata", None, 404, "versions of model metadata$"),
    # Order of checks
    case("bad JSON before the model", "POST", "/v1/models/x:predict", b"{", 400, "^JSON Parse error"),
    case("an object before the model", "POST", "/v1/models/x:predict", b"[]", 400, r"^JSON Value: \[\] Is not object"),
    case("the signature's type before the model", "POST", "/v1/models/x:predict", with_signature(1), 400,
         "'signature_name' key must be a string value"),
    case("the model before the signature", "POST", "/v1/models/x:predict", with_signature("x"), 404, "^Servable"),
    case("the model before the keys", "POST", "/v1/models/x:predict", {}, 404, "^Servable not found"),
    case("the label before the keys", "POST", "/v1/models/m/labels/x:predict", {}, 400, "^Unrecognized servable"),
    case("the signature before the keys", "POST", PREDICT, with_signature("x"), 400,
         '^Serving signature name: "x" not found in signature def$'),
    case("the keys", "POST", PREDICT, {}, 400, "^Missing 'inputs' or 'instances' key$"),
    # The body
    case("nothing", "POST", PREDICT, b"", 400, "^JSON Parse error: The document is empty"),
    case("not UTF-8", "POST", PREDICT, b'{"\xff": 1}', 400, "^JSON Parse error"),
    case("nested without end", "POST", PREDICT, b"[" * 100_000, 400, "^JSON Parse error"),
    case("what follows is ignored", "POST", PREDICT, json.dumps(ROW).encode() + b"} \xff {", 200, rows(2, 0)),
    case("unknown keys are ignored", "POST", PREDICT, {**ROW, "more": [None]}, 200, rows(2, 0)),
    case("NaN is JSON", "POST", PREDICT, b'{"x": [NaN, -Infinity, Infinity], ' + json.dumps(ROW).encode()[1:], 200,
         rows(2, 0)),
    case("both formats", "POST", PREDICT, {**ROW, "inputs": []}, 400, "only one of 'inputs' or 'instances'"),
    case("no rows", "POST", PREDICT, {"instances": []}, 400, "^No values in 'instances' array$"),
    case("rows that are no list", "POST", PREDICT, {"instances": B64[0]}, 400, "Excepting 'instances' to be an list"),
    case("the default signature", "POST", PREDICT, with_signature("serving_default", **ROW), 200, rows(2, 0)),
    case("the default signature, empty", "POST", PREDICT, with_signature("", **ROW), 200, rows(2, 0)),
    case("several rows", "POST", PREDICT, {"instances": B64}, 200, rows(2, 0, 1, 2)),
    case("rows with names", "POST", PREDICT, {"instances": [{"image_bytes": each} for each in B64]}, 200,
         rows(2, 0, 1, 2)),
    case("rows with a name too many", "POST", PREDICT, {"instances": [{"image_bytes": B64[0], "x": 1}]}, 400,
         "keys must be equal to: image_bytes"),
    case("rows without the name", "POST", PREDICT, {"instances": [{"image": B64[0]}]}, 400, "keys must be equal to"),
    case("rows of both kinds", "POST", PREDICT, {"instances": [B64[0], {"image_bytes": B64[0]}]}, 400, "got object"),
    case("columns", "POST", PREDICT, {"inputs": {"image_bytes": B64}}, 200, columns(2, 0, 1, 2)),
    case("columns too many", "POST", PREDICT, {"inputs": {"image_bytes": B64[:1], "x": 1}}, 200, columns(2, 0)),
    case("the only column", "POST", PREDICT, {"inputs": B64[1:]}, 200, columns(2, 1, 2)),
    case("a column of nothing", "POST", PREDICT, {"inputs": []}, 200, nothing),
    case("no such column", "POST", PREDICT, {"inputs": {"image": B64}}, 400, "^Missing named input: image_bytes"),
    case("a column that is no list", "POST", PREDICT, {"inputs": B64[0]}, 400, "must have the shape"),
    case("a signature without inputs", "POST", PREDICT, with_signature("__saved_model_init_op", **ROW), 400,
         "^Failed to get input map for signature"),
    # Base64
    case("a plain string is not decoded", "POST", PREDICT, {"instances": [B64[0]["b64"]]}, 415, "."),
    case("without padding", "POST", PREDICT, {"instances": [{"b64": B64[0]["b64"].rstrip("=")}]}, 200, rows(2, 0)),
    case("padded wrongly", "POST", PREDICT, {"instances": [{"b64": "YQ="}]}, 400, "Unable to base64 decode"),
    case("URL-safe", "POST", PREDICT, {"instances": [{"b64": "_-8="}]}, 400, "Unable to base64 decode"),
    case("not the only key", "POST", PREDICT, {"inputs": [{**B64[0], "x": 1}]}, 400, "not formatted correctly"),
    case("no string", "POST", PREDICT, {"inputs": [{"b64": 1}]}, 400, "not formatted correctly for base64"),
    case("a number for a string", "POST", PREDICT, {"instances": [1]}, 400, "is not of expected type: string"),
    # Numbers
    case("pixels", "POST", PREDICT, with_signature("pixels", instances=PIXELS.tolist()), 200, rows(2, 0, 1, 2)),
    case("pixels with names", "POST", "/v1/models/m/versions/1:predict",
         with_signature("pixels", instances=[{"pixels": PIXELS[1].tolist()}]), 200, rows(1, 1)),
    case("pixels in a column", "POST", PREDICT, with_signature("pixels", inputs={"pixels": PIXELS.tolist()}), 200,
         columns(2, 0, 1, 2)),
    case("1.0 is no integer", "POST", PREDICT, with_signature("pixels", instances=PIXELS.astype(float).tolist()), 400,
         "Type: Number is not of expected type: uint8"),
    case("256 is no uint8", "POST", PREDICT, with_signature("pixels", instances=(PIXELS + np.int64(256)).tolist()), 400,
         "Type: Number is not of expected type: uint8"),
    case("another size", "POST", PREDICT, with_signature("pixels", instances=PIXELS[:, 1:].tolist()), 400,
         r"must have the shape \[-1, 16, 16, 3\], but got \[3, 15, 16, 3\]"),
    case("ragged", "POST", PREDICT, with_signature("pixels", instances=[PIXELS[0].tolist(), [1]]), 400, "^Encountered"),
    # Headers and encodings
    case("any type", "POST", PREDICT, ROW, 200, rows(2, 0), **{"Content-Type": "text/plain"}),
    case("a form's type", "POST", PREDICT, ROW, 200, rows(2, 0), **{"Content-Type": "multipart/form-data"}),
    case("no readable type", "POST", PREDICT, ROW, 200, rows(2, 0), **{"Content-Type": ";;"}),
    case("gzip", "POST", PREDICT, gzip.compress(json.dumps(ROW).encode()), 200, rows(2, 0),
         **{"Content-Encoding": "gzip"}),
    case("gzip that is none", "POST", PREDICT, ROW, 400, ".", **{"Content-Encoding": "gzip"}),
    case("gzip that ends early", "POST", PREDICT, gzip.compress(json.dumps(ROW).encode())[:-12], 400, ".",
         **{"Content-Encoding": "gzip"}),
    # classify and regress, which need signatures that these models do not have
    case("classify", "POST", "/v1/models/m:classify", {"examples": [{"x": 1}]}, 400,
         "^Expected classification signature method_name to be tensorflow/serving/classify. Was: tensorflow"),
    case("regress", "POST", "/v1/models/m/labels/stable:regress", {"examples": [{"x": 1}]}, 400,
         "^Expected regression signature method_name to be tensorflow/serving/regress. Was: tensorflow"),
    case("classify with bad JSON", "POST", "/v1/models/x:classify", b"{", 400, "^JSON Parse error"),
    case("classify of no such model", "POST", "/v1/models/x:classify", {"examples": [{"x": 1}]}, 404, "^Servable"),
    case("classify with no such signature", "POST", "/v1/models/m:classify",
         with_signature("x", examples=[{"x": 1}]), 400, "^No signature was found with the name: x$"),
    # Metadata
    case("metadata", "GET", "/v1/models/m/metadata", None, 200, metadata("m", "2")),
    case("metadata of a version", "GET", "/v1/models/m/versions/1/metadata", None, 200, metadata("m", "1")),
    case("metadata of a label", "GET", "/v1/models/m/labels/stable/metadata", None, 200, metadata("m", "1")),
    case("metadata of an encoded name", "GET", "/v1/models/ants%20%26%20bees/metadata", None, 200,
         metadata("ants & bees", "2")),
    # Status
    case("status", "GET", "/v1/models/m", None, 200, status("3", "2", "1")),
    case("status in any case", "GET", "/v1/MODELS/m", None, 200, status("3", "2", "1")),
    case("status of a version", "GET", "/v1/models/m/versions/2", None, 200, status("2")),
    case("status of a broken version", "GET", "/v1/models/m/versions/3", None, 200, status("3")),
    case("status of a label is all", "GET", "/v1/models/m/labels/stable", None, 200, status("3", "2", "1")),
    case("status of any label is all", "GET", "/v1/models/m/labels/x", None, 200, status("3", "2", "1")),
]  # fmt: skip


@pytest.mark.parametrize(("method", "path", "body", "code", "matcher", "headers"), CASES)
def test_rest(client, expected, method, path, body, code, matcher, headers):
    content = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.request(method, path, content=content, headers=headers, follow_redirects=False)
    assert answer.status_code == code, answer.text[:300]
    if method == "HEAD":
        return
    assert answer.headers["Content-Type"] == "application/json"
    if callable(matcher):
        matcher(answer.json(), expected)
    else:
        assert answer.json().keys() == {"error"}
        assert re.search(matcher, answer.json()["error"]), answer.text[:300]


def test_floats_are_written_with_the_digits_of_float32(client):
    given = client.post(PREDICT, json={"inputs": B64}).json()["outputs"]["probabilities"]
    assert all(repr(value) == str(np.float32(value)) for row in given for value in row)


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.BadRequest, 400),
        (errors.NotFound, 404),
        (errors.Overloaded, 429),
        (errors.Unavailable, 503),
        (errors.TooLate, 504),
    ],
)
def test_status_codes_are_tensorflow_servings(kind, code):
    assert kind.status == code


def test_without_a_models_config_the_newest_version_is_served(export, expected, tmp_path):
    (tmp_path / "m").mkdir()
    for version in ("1", "2"):
        (tmp_path / "m" / version).symlink_to(export / "m" / version)
    with TestClient(create_app(Settings(export=tmp_path))) as client:
        await_settled(client, "/v1/models/m")
        status("2")(client.get("/v1/models/m").json(), expected)
        rows(2, 0)(client.post(PREDICT, json=ROW).json(), expected)
        assert client.post("/v1/models/m/versions/1:predict", json=ROW).status_code == 404
