"""The OpenAPI document against itself, and against what the server does."""

import json
import re

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from starlette.testclient import TestClient

from serving.app import create_app
from serving.openapi import document
from serving.settings import Settings
from tests.serving import encoded, tiny, wait

DOCUMENT = document()
TOKEN = "a-token-for-tests"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
OPERATIONS = [
    (method, path, operation) for path, methods in DOCUMENT["paths"].items() for method, operation in methods.items()
]
IDS = [f"{method} {path}" for method, path, _ in OPERATIONS]
VALUES = {"model": "m", "version": "1", "label": "stable", "file": "style.css"}
PNG = encoded()
GIF = b"GIF89a" + bytes(30)
PIXELS = json.dumps({"signature_name": "pixels", "inputs": [[[[0, 0, 0]] * 16] * 16]})


def resolved(value):
    while "$ref" in value:
        found = DOCUMENT
        for key in value["$ref"].removeprefix("#/").split("/"):
            found = found[key]
        value = found
    return value


def filled(path):
    return re.sub(r"\{(\w+)\}", lambda match: VALUES[match[1]], path)


def matching(schema, value):
    """Fails where the value is not what the schema says."""
    Draft202012Validator({**schema, "components": DOCUMENT["components"]}).validate(value)


def as_documented(operation, response):
    """Fails where the answer's status, headers, type or content are not what the document says."""
    assert str(response.status_code) in operation["responses"], response.text
    promised = resolved(operation["responses"][str(response.status_code)])
    for name, header in promised.get("headers", {}).items():
        assert name in response.headers
        if name != "Retry-After":
            matching(resolved(header)["schema"], response.headers[name])
    ((kind, content),) = promised["content"].items()
    assert kind in ("*/*", response.headers["content-type"].partition(";")[0])
    if kind == "application/json":
        matching(content["schema"], response.json())


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """Of a server with a token, a model and a label."""
    folder = tmp_path_factory.mktemp("export")
    tiny(folder)
    config = folder / "models.config"
    config.write_text(
        f'model_config_list {{ config {{ name: "m" base_path: "{folder}/m" '
        'version_labels { key: "stable" value: 1 } } }'
    )
    with TestClient(create_app(Settings(models_config=config, token=TOKEN))) as client:
        wait(lambda: client.get("/readyz").status_code == 200)
        yield client


def test_it_is_openapi():
    validate(DOCUMENT)
    assert DOCUMENT["openapi"].startswith("3.1")


def test_examples_are_what_schemas_say():
    for value in [*every(DOCUMENT["paths"]), *every(DOCUMENT["components"])]:
        if "schema" in value and "example" in value:
            matching(value["schema"], value["example"])


def every(value):
    """Each object in a JSON value."""
    if isinstance(value, dict):
        yield value
    if isinstance(value, dict | list):
        for child in value.values() if isinstance(value, dict) else value:
            yield from every(child)


def test_every_route_is_in_it(client):
    documented = set(DOCUMENT["paths"])
    for route in client.app.routes:
        if route.path != "/{path:path}":  # The one for everything else tells what is below /v1/ by itself.
            assert route.path in documented
    verbs = {"classify-image", "predict", "classify", "regress"}
    places = ("", "/versions/{version}", "/labels/{label}")
    models = {f"/v1/models/{{model}}{place}" for place in places}
    assert {path for path in documented if path.startswith("/v1/")} == (
        models | {f"{path}/metadata" for path in models} | {f"{path}:{verb}" for path in models for verb in verbs}
    )


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_every_route_exists_and_answers_as_documented(client, method, path, operation):
    response = client.request(method, filled(path), headers=AUTHORIZED, content=PNG if method == "post" else None)
    assert "Malformed request" not in response.text
    as_documented(operation, response)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_the_token_is_wanted_where_it_says_so(client, method, path, operation):
    response = client.request(method, filled(path))
    if operation.get("security") == []:
        assert response.status_code == 200
    else:
        assert response.status_code == 401
        as_documented(operation, response)


@pytest.mark.parametrize(("method", "path", "operation"), OPERATIONS, ids=IDS)
def test_models_that_are_not_there_are_answered_as_documented(client, method, path, operation):
    body = "{}" if method == "post" else None
    response = client.request(method, filled(path).replace("/m", "/other"), headers=AUTHORIZED, content=body)
    if "{model}" in path:
        assert response.status_code in (400, 404)
        as_documented(operation, response)


@pytest.mark.parametrize(
    ("route", "options", "status"),
    [
        (":classify-image", {"content": PNG}, 200),
        (":classify-image?top_k=1", {"content": PNG}, 200),
        (":classify-image", {"files": [("file", ("a.png", PNG)), ("file", ("b.gif", GIF))]}, 200),
        (":classify-image?top_k=0", {"content": PNG}, 400),
        (":classify-image", {"content": b""}, 400),
        (":classify-image", {"content": GIF}, 415),
        (":classify-image", {"content": bytes(10_000_001)}, 413),
        (":predict", {"content": PIXELS}, 200),
        (":predict", {"content": PIXELS.replace("inputs", "instances")}, 200),
        (":predict", {"content": '{"instances": ["not a picture"]}'}, 415),
        (":predict", {"content": "{"}, 400),
        (":regress", {"content": "{}"}, 400),
    ],
)
def test_answers_are_as_documented(client, route, options, status):
    path = f"/v1/models/{{model}}{route.partition('?')[0]}"
    response = client.post(f"/v1/models/m{route}", headers=AUTHORIZED, **options)
    assert response.status_code == status
    as_documented(DOCUMENT["paths"][path]["post"], response)


def test_before_a_model_is_loaded(tmp_path):
    (tmp_path / "m").mkdir()
    config = tmp_path / "models.config"
    config.write_text(f'model_config_list {{ config {{ name: "m" base_path: "{tmp_path}/m" }} }}')
    with TestClient(create_app(Settings(models_config=config))) as client:
        wait(lambda: client.get("/models").json()["models"] != [])
        for method, path in (("get", "/readyz"), ("post", "/v1/models/{model}:classify-image"), ("get", "/models")):
            response = client.request(method, filled(path), content=PNG if method == "post" else None)
            assert response.status_code == (200 if path == "/models" else 503)
            as_documented(DOCUMENT["paths"][path][method], response)


def test_the_server_gives_it(client):
    response = client.get("/openapi.json")
    assert response.json() == DOCUMENT
