"""The OpenAPI document at `/openapi.json`, from which `/docs` is drawn."""

from typing import Any, NamedTuple

from pipeline import __version__

_PICTURES, _TENSORFLOW, _SERVER = "Pictures", "TensorFlow Serving", "Server"

_ABOUT = f"""\
Pictures in, classes with probabilities out, for every model that `graft serve` (version {__version__}) serves.

```
curl --data-binary "@ant.jpg" "http://localhost:8501/v1/models/hymenoptera:classify-image"
```

Every error is JSON, `{{"error": "what is wrong, and what is allowed"}}`. A path or method that is not here is answered
404, and 400 below `/v1/`, as by TensorFlow Serving. Headers of more than 64 kB are answered 431.

Every answer has an `X-Request-Id`: the request's own, if it has one of 1 to 128 letters, digits, dots, dashes and
underscores, or else a new one. The server's log has it too.

Where the server was started with a token, `Authorization: Bearer TOKEN` must be sent along, except where it says that
none is needed:

```
curl -H "Authorization: Bearer $GRAFT_TOKEN" "http://localhost:8501/models"
```
"""


class _Place(NamedTuple):
    """What a path may say behind the model's name.

    Attributes:
        suffix: of operation ids.
        words: for summaries.
    """

    path: str
    example: str
    suffix: str
    parameters: tuple[str, ...]
    words: str


_PLACES = (
    _Place("", "", "", ("model",), ""),
    _Place("/versions/{version}", "/versions/3", "Version", ("model", "version"), ", by a certain version"),
    _Place("/labels/{label}", "/labels/stable", "Label", ("model", "label"), ", by the version that a label points to"),
)

_STATUSES = {
    400: "BadRequest",
    401: "Unauthorized",
    404: "NotFound",
    408: "SlowRequest",
    413: "TooLarge",
    415: "Unsupported",
    429: "Overloaded",
    500: "Failed",
    503: "Unavailable",
    504: "TooLate",
}
_BODY = (400, 401, 404, 408, 413, 415, 429, 500, 503, 504)
_LOOK_UP = (400, 401, 404, 500, 503)


def document() -> dict[str, Any]:
    """OpenAPI 3.1: a JSON object, the same for every server of this version."""
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Graft",
            "summary": "Image classification over HTTP.",
            "description": _ABOUT,
            "version": __version__,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": ".", "description": "The server that this document came from."}],
        "security": [{"token": []}],
        "tags": [
            {"name": _PICTURES, "description": "What most clients need."},
            {
                "name": _TENSORFLOW,
                "description": "TensorFlow Serving's REST interface, version 1: its clients work unchanged.",
            },
            {"name": _SERVER, "description": "For who runs the server: its state, its figures, its pages."},
        ],
        "paths": {**_of_models(), **_of_the_server()},
        "components": {
            "securitySchemes": {
                "token": {
                    "type": "http",
                    "scheme": "bearer",
                    "description": "Needed where the server was started with one, by --token-file or GRAFT_TOKEN.",
                }
            },
            "parameters": _PARAMETERS,
            "headers": _HEADERS,
            "schemas": _SCHEMAS,
            "responses": {name: _error(name, text) for name, text in _ERRORS.items()},
        },
    }


def _of_models() -> dict[str, Any]:
    """What is below /v1/models/, each for the newest version, a certain one, and a label's."""
    paths: dict[str, Any] = {}
    for place in _PLACES:
        paths[f"/v1/models/{{model}}{place.path}:classify-image"] = {"post": _classify_image(place)}
    paths["/models"] = {"get": _models()}
    for place in _PLACES:
        paths[f"/v1/models/{{model}}{place.path}:predict"] = {"post": _predict(place)}
    for place in _PLACES:
        paths[f"/v1/models/{{model}}{place.path}"] = {"get": _status(place)}
    for place in _PLACES:
        paths[f"/v1/models/{{model}}{place.path}/metadata"] = {"get": _metadata(place)}
    for verb in ("classify", "regress"):
        for place in _PLACES:
            paths[f"/v1/models/{{model}}{place.path}:{verb}"] = {"post": _examples(verb, place)}
    return paths


def _of_the_server() -> dict[str, Any]:
    return {
        "/healthz": {
            "get": _open(
                "healthz",
                "Whether the process answers",
                "For liveness probes; models do not matter.\n\n```\ncurl http://localhost:8501/healthz\n```",
                {"200": _json("It does.", "Health", {"status": "ok"})},
            )
        },
        "/readyz": {
            "get": _open(
                "readyz",
                "Whether a model is loaded and warm",
                "For readiness probes.\n\n```\ncurl --fail http://localhost:8501/readyz\n```",
                {
                    "200": _json("One is.", "Health", {"status": "ready"}),
                    "503": _errors((503,))["503"] | {"description": "None is yet."},
                },
            )
        },
        "/metrics": {
            "get": {
                "operationId": "metrics",
                "tags": [_SERVER],
                "summary": "Figures for Prometheus",
                "description": "Requests by code, histograms of decoding, queue and inference, batch sizes, versions, "
                "refusals.\n\n```\ncurl http://localhost:8501/metrics\n```",
                "responses": {
                    "200": {
                        "description": "Prometheus's text format.",
                        "headers": _headers("X-Request-Id"),
                        "content": {
                            "text/plain": {
                                "schema": {"type": "string"},
                                "example": 'graft_requests_total{code="200",route="classify-image"} 42.0',
                            }
                        },
                    },
                    **_errors((401, 500)),
                },
            }
        },
        "/": {"get": _open("page", "The page to try pictures on", "For browsers.", {"200": _html()})},
        "/docs": {"get": _open("docs", "This reference", "For browsers.", {"200": _html()})},
        "/page/{file}": {
            "get": {
                **_open(
                    "asset",
                    "What the pages are made of",
                    "Styles, scripts and the icon.",
                    {
                        "200": {
                            "description": "The file.",
                            "headers": _headers("X-Request-Id"),
                            "content": {"*/*": {}},
                        },
                        "404": {"$ref": "#/components/responses/NotFound"},
                    },
                ),
                "parameters": [
                    {
                        "name": "file",
                        "in": "path",
                        "required": True,
                        "description": "Its name.",
                        "schema": {"type": "string"},
                        "example": "style.css",
                    }
                ],
            }
        },
        "/openapi.json": {
            "get": _open(
                "openapi",
                "This reference, as OpenAPI 3.1",
                "For code generators and clients.\n\n```\ncurl http://localhost:8501/openapi.json\n```",
                {
                    "200": {
                        "description": "The document.",
                        "headers": _headers("X-Request-Id"),
                        "content": {"application/json": {"schema": {"type": "object"}}},
                    }
                },
            )
        },
    }


def _classify_image(place: _Place) -> dict[str, Any]:
    url = f"http://localhost:8501/v1/models/hymenoptera{place.example}:classify-image"
    binary = {"type": "string", "format": "binary", "description": "A JPEG, PNG or WebP picture, told by its content."}
    return {
        "operationId": f"classifyImage{place.suffix}",
        "tags": [_PICTURES],
        "summary": f"Classify one picture, or several{place.words}",
        "description": f"""\
The body is a picture's bytes, of any Content-Type:

```
curl --data-binary "@ant.jpg" "{url}?top_k=2"
```

Or a form with several files:

```
curl -F "file=@ant.jpg" -F "file=@bee.jpg" "{url}"
```

In a form, a picture that cannot be used has its error in its place, and the others their classes. Where none can be
used, the whole answer is the first one's error.""",
        "parameters": [*_parameters(*place.parameters), {"$ref": "#/components/parameters/top_k"}],
        "requestBody": {
            "required": True,
            "description": "Raw bodies may be gzipped, with `Content-Encoding: gzip`; forms may not.",
            "content": {
                "image/*": {"schema": binary},
                "application/octet-stream": {"schema": binary},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "properties": {
                            "file": {
                                "type": "array",
                                "items": binary,
                                "description": "The pictures; fields of any name are taken, as long as they are files.",
                            }
                        },
                    }
                },
            },
        },
        "responses": {
            "200": _json(
                "Each picture's classes, in the order in which they were sent.",
                "Classification",
                {
                    "model": "hymenoptera",
                    "version": "3",
                    "predictions": [
                        {
                            "file": "ant.jpg",
                            "classes": [
                                {"label": "ants", "probability": 0.973214},
                                {"label": "bees", "probability": 0.026786},
                            ],
                        },
                        {
                            "file": "x.gif",
                            "error": {
                                "status": 415,
                                "message": "The picture cannot be used: not a JPEG, PNG or WebP picture.",
                            },
                        },
                    ],
                },
                "X-Model-Version",
                "Server-Timing",
            ),
            **_errors(_BODY),
        },
    }


def _models() -> dict[str, Any]:
    return {
        "operationId": "models",
        "tags": [_PICTURES],
        "summary": "What is served: models, versions, classes, limits",
        "description": "```\ncurl http://localhost:8501/models\n```",
        "responses": {
            "200": _json(
                "Models by name, versions newest first.",
                "Models",
                {
                    "models": [
                        {
                            "name": "hymenoptera",
                            "classes": ["ants", "bees"],
                            "versions": [{"version": "3", "state": "AVAILABLE", "labels": ["stable"], "error": ""}],
                        }
                    ],
                    "engine": "openvino 2026.4.1",
                    "limits": {"max_body_bytes": 10_000_000, "max_pictures": 64, "max_megapixels": 50},
                },
            ),
            **_errors((401, 500)),
        },
    }


def _predict(place: _Place) -> dict[str, Any]:
    return {
        "operationId": f"predict{place.suffix}",
        "tags": [_TENSORFLOW],
        "summary": f"Run a signature{place.words}",
        "description": f"""\
The signature `serving_default` takes `image_bytes`, encoded pictures; `pixels` takes `pixels`, decoded ones, [N, H, W,
3] of whole numbers from 0 to 255. Both give `label`, `score` and `probabilities`.

```
curl -d '{{"instances": [{{"b64": "'$(base64 -w0 ant.jpg)'"}}]}}' \\
  http://localhost:8501/v1/models/hymenoptera{place.example}:predict
```

Row format has `instances` and is answered with `predictions`; columnar format has `inputs` and is answered with
`outputs`. One picture that cannot be used fails the request. Content-Type is not looked at, NaN and Infinity are
numbers.""",
        "parameters": _parameters(*place.parameters),
        "requestBody": {
            "required": True,
            "description": "It may be gzipped, with `Content-Encoding: gzip`.",
            "content": {
                "application/json": {
                    "schema": {"$ref": "#/components/schemas/PredictRequest"},
                    "example": {"signature_name": "serving_default", "instances": [{"b64": "/9j/4AAQSkZJRg…"}]},
                }
            },
        },
        "responses": {
            "200": _json(
                "Outputs of the model for each picture.",
                "PredictResponse",
                {"predictions": [{"label": "ants", "probabilities": [0.97321427, 0.026785735], "score": 0.97321427}]},
                "X-Model-Version",
                "Server-Timing",
            ),
            **_errors(_BODY),
        },
    }


def _status(place: _Place) -> dict[str, Any]:
    words = {
        "": "Every version of a model, and its state",
        "Version": "The state of one version",
        "Label": "Every version, whatever the label",
    }[place.suffix]
    return {
        "operationId": f"status{place.suffix}",
        "tags": [_TENSORFLOW],
        "summary": words,
        "description": "A model is usable as soon as a version is AVAILABLE. One that could not be loaded is at END, "
        "and its message says why. Asked with a label, the answer is every version, as TensorFlow Serving's is.\n\n"
        "```\ncurl http://localhost:8501/v1/models/hymenoptera\n```",
        "parameters": _parameters(*place.parameters),
        "responses": {
            "200": _json(
                "Newest version first.",
                "ModelStatus",
                {
                    "model_version_status": [
                        {
                            "version": "3",
                            "state": "AVAILABLE",
                            "status": {"error_code": "OK", "error_message": ""},
                        }
                    ]
                },
            ),
            **_errors((400, 401, 404, 500)),
        },
    }


def _metadata(place: _Place) -> dict[str, Any]:
    return {
        "operationId": f"metadata{place.suffix}",
        "tags": [_TENSORFLOW],
        "summary": f"Signatures of a model{place.words}",
        "description": "```\ncurl http://localhost:8501/v1/models/hymenoptera/metadata\n```",
        "parameters": _parameters(*place.parameters),
        "responses": {
            "200": _json(
                "Inputs and outputs with types and shapes; -1 is any size.",
                "Metadata",
                {
                    "model_spec": {"name": "hymenoptera", "signature_name": "", "version": "3"},
                    "metadata": {
                        "signature_def": {
                            "signature_def": {
                                "serving_default": {
                                    "inputs": {
                                        "image_bytes": {
                                            "dtype": "DT_STRING",
                                            "tensor_shape": {
                                                "dim": [{"size": "-1", "name": ""}],
                                                "unknown_rank": False,
                                            },
                                            "name": "serving_default_image_bytes:0",
                                        }
                                    },
                                    "outputs": {},
                                    "method_name": "tensorflow/serving/predict",
                                    "defaults": {},
                                }
                            }
                        }
                    },
                },
                "X-Model-Version",
            ),
            **_errors(_LOOK_UP),
        },
    }


def _examples(verb: str, place: _Place) -> dict[str, Any]:
    return {
        "operationId": f"{verb}{place.suffix}",
        "tags": [_TENSORFLOW],
        "summary": f"Not for pictures: {verb} with tf.Example{place.words}",
        "description": "No model that Graft exports has a signature for it, so the answer is 400, as TensorFlow "
        "Serving's would be. Use `:predict` or `:classify-image`.",
        "parameters": _parameters(*place.parameters),
        "requestBody": {"required": True, "content": {"application/json": {"schema": {"type": "object"}}}},
        "responses": _errors((400, 401, 404, 408, 413, 415, 429, 500, 503)),
    }


def _open(operation: str, summary: str, description: str, responses: dict[str, Any]) -> dict[str, Any]:
    """A route of the server that needs no token."""
    return {
        "operationId": operation,
        "tags": [_SERVER],
        "summary": summary,
        "description": description,
        "security": [],
        "responses": responses,
    }


def _parameters(*names: str) -> list[dict[str, Any]]:
    return [{"$ref": f"#/components/parameters/{name}"} for name in names]


def _headers(*names: str) -> dict[str, Any]:
    return {name: {"$ref": f"#/components/headers/{name}"} for name in names}


def _json(description: str, schema: str, example: dict[str, Any], *headers: str) -> dict[str, Any]:
    return {
        "description": description,
        "headers": _headers("X-Request-Id", *headers),
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}, "example": example}},
    }


def _html() -> dict[str, Any]:
    return {
        "description": "HTML.",
        "headers": _headers("X-Request-Id"),
        "content": {"text/html": {"schema": {"type": "string"}}},
    }


def _errors(statuses: tuple[int, ...]) -> dict[str, Any]:
    return {str(status): {"$ref": f"#/components/responses/{_STATUSES[status]}"} for status in statuses}


def _error(name: str, description: str) -> dict[str, Any]:
    more = {"Unauthorized": ("WWW-Authenticate",), "Overloaded": ("Retry-After",), "Unavailable": ("Retry-After",)}
    return _json(description, "Error", {"error": _SAID[name]}, *more.get(name, ()))


_PARAMETERS: dict[str, Any] = {
    "model": {
        "name": "model",
        "in": "path",
        "required": True,
        "description": "The model's name, percent-encoded where it has other signs than letters and digits.",
        "schema": {"type": "string", "pattern": "^[^/:]+$"},
        "example": "hymenoptera",
    },
    "version": {
        "name": "version",
        "in": "path",
        "required": True,
        "description": "A version's number.",
        "schema": {"type": "integer", "minimum": 0},
        "example": 3,
    },
    "label": {
        "name": "label",
        "in": "path",
        "required": True,
        "description": "A label from models.config.",
        "schema": {"type": "string", "pattern": "^[^/:]+$"},
        "example": "stable",
    },
    "top_k": {
        "name": "top_k",
        "in": "query",
        "description": "How many classes are given, the most probable first; all of them where there are fewer.",
        "schema": {"type": "integer", "minimum": 1, "maximum": 999_999_999, "default": 5},
    },
}

_HEADERS: dict[str, Any] = {
    "X-Request-Id": {
        "description": "The request's id, also in the server's log.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[A-Za-z0-9._-]{1,128}$"},
    },
    "X-Model-Version": {
        "description": "The version that answered.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "3",
    },
    "Server-Timing": {
        "description": "Where the time of the slowest picture went, in milliseconds.",
        "required": True,
        "schema": {"type": "string"},
        "example": "decode;dur=2.10, queue;dur=0.30, inference;dur=1.20",
    },
    "Retry-After": {
        "description": "Seconds after which to try again.",
        "required": True,
        "schema": {"type": "string", "pattern": "^[0-9]+$"},
        "example": "1",
    },
    "WWW-Authenticate": {"description": "`Bearer`.", "required": True, "schema": {"const": "Bearer"}},
}

_ERRORS = {
    "BadRequest": "The request is wrong: a damaged picture, bad JSON, an unknown label, a bad top_k, a wrong path.",
    "Unauthorized": "No token, or a wrong one.",
    "NotFound": "There is no such model or version, or no such page.",
    "SlowRequest": "The body did not arrive in time, by default 30 seconds.",
    "TooLarge": "More bytes, pictures or megapixels than allowed: by default 10 MB, 64 and 50.",
    "Unsupported": "Not a JPEG, PNG or WebP picture, or a Content-Encoding other than gzip.",
    "Overloaded": "The queue is full, here or upstream. Nothing was computed: try again.",
    "Failed": "A mistake in the server; its log has more under the request's id.",
    "Unavailable": "No version of the model is loaded yet, there are too many connections, or what computes is away.",
    "TooLate": "There was no answer within the time allowed, by default 30 seconds.",
}

_SAID = {
    "BadRequest": "top_k must be a whole number from 1. Received: '0'.",
    "Unauthorized": "A token is needed: send the header Authorization: Bearer TOKEN.",
    "NotFound": "Servable not found for request: Latest(hymenoptera)",
    "SlowRequest": "The body did not arrive in time. Send it faster, or in smaller requests.",
    "TooLarge": "The body is too large: at most 10,000,000 bytes are accepted.",
    "Unsupported": "The picture cannot be used: not a JPEG, PNG or WebP picture.",
    "Overloaded": "The server is busy: its queue is full. Try again in a second.",
    "Failed": "Something is wrong in the server; its log says what.",
    "Unavailable": "No version of the model hymenoptera is loaded. GET /v1/models/hymenoptera says why.",
    "TooLate": "There was no answer within 30 seconds.",
}


def _text(description: str, **more: Any) -> dict[str, Any]:
    return {"type": "string", "description": description, **more}


def _object(properties: dict[str, Any], *optional: str) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": [name for name in properties if name not in optional],
        "additionalProperties": False,
    }


def _list(items: dict[str, Any], description: str) -> dict[str, Any]:
    return {"type": "array", "items": items, "description": description}


_PROBABILITY = {"type": "number", "minimum": 0, "maximum": 1}
_SIGNATURE = _text("`serving_default`, if not said, or `pixels`.")
_STATE = _text("END is a version that could not be loaded.", enum=["START", "LOADING", "AVAILABLE", "UNLOADING", "END"])
_OUTPUTS = {
    "label": _text("The most probable class."),
    "probabilities": _list(_PROBABILITY, "Of every class, in the model's order."),
    "score": {**_PROBABILITY, "description": "The label's probability."},
}

_SCHEMAS: dict[str, Any] = {
    "Error": _object({"error": _text("What is wrong, and what is allowed.")}),
    "Health": _object({"status": {"enum": ["ok", "ready"], "description": "In words."}}),
    "Classification": _object(
        {
            "model": _text("The model's name."),
            "version": _text("The version that answered, also in the header X-Model-Version."),
            "predictions": _list(
                _object(
                    {
                        "file": _text("The file's name in the form; a picture sent by itself has none."),
                        "classes": _list(
                            _object(
                                {
                                    "label": _text("The class."),
                                    "probability": {**_PROBABILITY, "description": "Calibrated, to six places."},
                                }
                            ),
                            "The most probable first.",
                        ),
                        "error": {
                            **_object(
                                {
                                    "status": {
                                        "type": "integer",
                                        "description": "The status that the picture would have had by itself.",
                                    },
                                    "message": _text("What is wrong with it."),
                                }
                            ),
                            "description": "In place of classes.",
                        },
                    },
                    "file",
                    "classes",
                    "error",
                ),
                "One for each picture.",
            ),
        }
    ),
    "Models": _object(
        {
            "models": _list(
                _object(
                    {
                        "name": _text("As it stands in paths."),
                        "classes": _list({"type": "string"}, "What it tells apart; empty while no version is loaded."),
                        "versions": _list(
                            _object(
                                {
                                    "version": _text("Its number."),
                                    "state": _STATE,
                                    "labels": _list({"type": "string"}, "That point to it."),
                                    "error": _text("Why it is not served; empty where it is."),
                                }
                            ),
                            "Newest first.",
                        ),
                    }
                ),
                "By name.",
            ),
            "engine": _text("What computes, with its version or address."),
            "limits": {
                **_object(
                    {
                        "max_body_bytes": {"type": "integer", "description": "Of a request."},
                        "max_pictures": {"type": "integer", "description": "In a request."},
                        "max_megapixels": {"type": "number", "description": "Of a picture."},
                    }
                ),
                "description": "More is answered 413.",
            },
        }
    ),
    "PredictRequest": {
        "oneOf": [
            {
                "type": "object",
                "properties": {
                    "signature_name": _SIGNATURE,
                    "instances": {
                        **_list(
                            {"description": "A value, or an object with the input's name."},
                            'Row format: a picture each, `{"b64": "…"}` or rows of pixels.',
                        ),
                        "minItems": 1,
                    },
                },
                "required": ["instances"],
                "not": {"required": ["inputs"]},
            },
            {
                "type": "object",
                "properties": {
                    "signature_name": _SIGNATURE,
                    "inputs": {"description": "Columnar format: the list of all pictures, by name or by itself."},
                },
                "required": ["inputs"],
                "not": {"required": ["instances"]},
            },
        ]
    },
    "PredictResponse": {
        "oneOf": [
            _object({"predictions": _list(_object(_OUTPUTS), "Row format: one for each picture.")}),
            _object(
                {
                    "outputs": {
                        **_object({name: _list(value, "For each picture.") for name, value in _OUTPUTS.items()}),
                        "description": "Columnar format.",
                    }
                }
            ),
        ]
    },
    "ModelStatus": _object(
        {
            "model_version_status": _list(
                _object(
                    {
                        "version": _text("Its number."),
                        "state": _STATE,
                        "status": _object(
                            {
                                "error_code": _text("OK, or the name of a gRPC code."),
                                "error_message": _text("Why it could not be loaded."),
                            }
                        ),
                    }
                ),
                "The versions.",
            )
        }
    ),
    "Metadata": _object(
        {
            "model_spec": _object(
                {
                    "name": _text("The model's."),
                    "signature_name": _text("Empty."),
                    "version": _text("The version's number."),
                }
            ),
            "metadata": _object(
                {
                    "signature_def": _object(
                        {
                            "signature_def": {
                                "type": "object",
                                "description": "Signatures by name: inputs and outputs as TensorInfo.",
                                "additionalProperties": {"type": "object"},
                            }
                        }
                    )
                }
            ),
        }
    ),
}
