"""TensorFlow Serving's JSON, read and written."""

import base64
import contextlib
import json

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving import wire
from serving.errors import BadRequest
from serving.protos import serving_pb2
from serving.wire import Inputs, VersionStatus

STRING, UINT8, FLOAT = serving_pb2.DT_STRING, serving_pb2.DT_UINT8, serving_pb2.DT_FLOAT


def signature(**inputs):
    """Of inputs given as (dtype, sizes)."""
    made = serving_pb2.SignatureDef(method_name="tensorflow/serving/predict")
    for name, (dtype, sizes) in inputs.items():
        info = made.inputs[name]
        info.name, info.dtype = f"{name}:0", dtype
        info.tensor_shape.SetInParent()
        for size in sizes:
            info.tensor_shape.dim.add(size=size)
    return made


IMAGES = signature(image_bytes=(STRING, [-1]))
PIXELS = signature(pixels=(UINT8, [-1, 1, 2]))
FLOATS = signature(x=(FLOAT, [-1]))
DOUBLES = signature(x=(serving_pb2.DT_DOUBLE, [-1]))
SHORTS = signature(x=(serving_pb2.DT_INT16, [-1]))
LONGS = signature(x=(serving_pb2.DT_INT64, [-1]))
BOOLS = signature(x=(serving_pb2.DT_BOOL, [-1]))
SCALAR = signature(x=(FLOAT, []))
HALVES = signature(x=(19, [-1]))
TWO = signature(text=(STRING, [-1]), x=(FLOAT, [-1, 2]))

# document


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        (b"{}", {}),
        (b' \n\t\r{"a": [1, 1.5, -0.0, 1e3, null, true, "\xc3\xa4"]}', {"a": [1, 1.5, 0, 1000, None, True, "ä"]}),
        (b'\xef\xbb\xbf{"a": 1}', {"a": 1}),
        (b'{"a": [Infinity, -Infinity]}', {"a": [np.inf, -np.inf]}),
        (b'{"a": 1} {"b": ', {"a": 1}),
        (b'{"a": 1}}}', {"a": 1}),
        (b'{"a": 1}\xff\xfe', {"a": 1}),
        (b'\xef\xbb\xbf{"a": "\xc3\xa4"}\xff', {"a": "ä"}),
        (b'{"a": 1, "b": 2, "a": 3}', {"a": 1, "b": 2}),
        (b'{"a": "\\ud83d\\uDE00 \\\\ud800"}', {"a": "😀 \\ud800"}),
        (b'{"a": 1} "\\ud800"', {"a": 1}),
        (b'{"a": ' + b"1" * 4000 + b"}", {"a": int("1" * 4000)}),
    ],
)
def test_the_first_value_is_read(body, expected):
    assert wire.document(body) == expected


def test_nan_is_a_number():
    assert np.isnan(wire.document(b'{"a": NaN}')["a"])


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "JSON Parse error: The document is empty"),
        (b" \n", "JSON Parse error: The document is empty"),
        (b"\xef\xbb\xbf", "JSON Parse error: The document is empty"),
        (b"\xff", "JSON Parse error: not UTF-8 at offset: 0"),
        (b"hello", r"JSON Parse error: .* at offset: 0"),
        (b'{"a": }', r"JSON Parse error: .* at offset: 6"),
        (b'{"\xc3\xa4": }', r"JSON Parse error: .* at offset: 7"),
        (b'{"a": 01}', "JSON Parse error"),
        (b'{"a": 1.}', "JSON Parse error"),
        (b"{'a': 1}", "JSON Parse error"),
        (b'{"a": "\n"}', "JSON Parse error"),
        (b'{"a": "\xff"}', "JSON Parse error: not UTF-8 at offset: 7"),
        (b'{"a": "\xed\xa0\x80"}', "JSON Parse error: not UTF-8"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"\\uDFFF": 1}', "surrogate"),
        (b'{"a": "\\ud800", "b": ' + b"[" * 900 + b"]" * 900 + b"}", "surrogate|nested too deeply"),
        (b'{"a": 1e400}', "Number too big"),
        (b'{"a": -1e400}', "Number too big"),
        (b'{"a": ' + b"1" * 5000 + b"}", "Number too big"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a":' * 100_000, "nested too deeply"),
        (b"[1, 2]", r"JSON Value: \[1, 2\] Is not object"),
        (b'"text"', r'JSON Value: "text" Is not object'),
        (b"null", "JSON Value: null Is not object"),
        (b"[" + b"1," * 100_000 + b"1]", r"^.{,300}$"),
    ],
)
def test_what_is_no_object_is_refused(body, words):
    with pytest.raises(BadRequest, match=words):
        wire.document(body)


@pytest.mark.parametrize(
    ("given_", "expected"),
    [({}, "serving_default"), ({"signature_name": ""}, "serving_default"), ({"signature_name": "pixels"}, "pixels")],
)
def test_the_signatures_name(given_, expected):
    assert wire.signature_name(given_) == expected


@pytest.mark.parametrize("given_", [None, 1, ["pixels"], {"name": "pixels"}])
def test_a_signatures_name_that_is_no_string_is_refused(given_):
    with pytest.raises(BadRequest, match=r"not formatted correctly\. 'signature_name' key must be a string value\."):
        wire.signature_name({"signature_name": given_})


# inputs

TINY = [[[1, 2]], [[3, 255]]]


@pytest.mark.parametrize(
    ("expected", "body", "values"),
    [
        (IMAGES, {"instances": [{"b64": "YWJj"}, {"b64": ""}]}, [b"abc", b""]),
        (IMAGES, {"instances": [{"image_bytes": {"b64": "YWJj"}}, {"image_bytes": "Zoë"}]}, [b"abc", "Zoë".encode()]),
        (IMAGES, {"instances": ["YWJj", {"b64": "YWJj"}]}, [b"YWJj", b"abc"]),
        (IMAGES, {"inputs": ["YWJj", {"b64": "YWJj"}]}, [b"YWJj", b"abc"]),
        (IMAGES, {"inputs": {"image_bytes": [{"b64": "YWJj"}]}}, [b"abc"]),
        (IMAGES, {"inputs": {"image_bytes": ["a"], "another": 5}, "anything": 1}, [b"a"]),
        (IMAGES, {"inputs": []}, []),
        (signature(name=(STRING, [-1])), {"instances": [{"b64": "YWJj"}]}, [b"abc"]),
        (signature(any=(STRING, [2])), {"instances": ["a", "b"]}, [b"a", b"b"]),
        (PIXELS, {"instances": TINY}, np.uint8(TINY)),
        (PIXELS, {"instances": [{"pixels": TINY[0]}, {"pixels": TINY[1]}]}, np.uint8(TINY)),
        (PIXELS, {"inputs": TINY}, np.uint8(TINY)),
        (PIXELS, {"inputs": {"pixels": TINY}}, np.uint8(TINY)),
        (FLOATS, {"instances": [1, 0.1, -2.5, 16777215]}, np.float32([1, 0.1, -2.5, 16777215])),
        (FLOATS, {"inputs": [float("nan"), float("inf"), 1e-50]}, np.float32([np.nan, np.inf, 0])),
        (DOUBLES, {"inputs": [1e300, 2**53 - 1]}, np.float64([1e300, 2**53 - 1])),
        (SHORTS, {"inputs": [-32768, 32767]}, np.int16([-32768, 32767])),
        (LONGS, {"inputs": [-(2**63), 2**63 - 1]}, np.int64([-(2**63), 2**63 - 1])),
        (BOOLS, {"inputs": [True, False]}, np.array([True, False])),
        (SCALAR, {"inputs": 1.5}, np.float32(1.5)),
    ],
)
def test_single_inputs(expected, body, values):
    (name,) = expected.inputs
    read = wire.inputs(body, expected)
    assert read.row_format == ("instances" in body)
    assert read.values.keys() == {name}
    if isinstance(values, list):
        assert read.values[name] == values
    else:
        assert read.values[name].dtype == values.dtype
        np.testing.assert_array_equal(read.values[name], values, strict=True)


@pytest.mark.parametrize(
    "body",
    [
        {"instances": [{"text": "a", "x": [1, 2]}, {"x": [3, 4], "text": {"b64": "Yg=="}}]},
        {"inputs": {"x": [[1, 2], [3, 4]], "text": ["a", {"b64": "Yg"}], "more": None}},
    ],
)
def test_two_inputs(body):
    read = wire.inputs(body, TWO)
    assert read.values["text"] == [b"a", b"b"]
    np.testing.assert_array_equal(read.values["x"], np.float32([[1, 2], [3, 4]]), strict=True)


@pytest.mark.parametrize(
    ("expected", "body", "words"),
    [
        (IMAGES, {}, "Missing 'inputs' or 'instances' key"),
        (IMAGES, {"instances": ["a"], "inputs": ["a"]}, "expecting only one of 'inputs' or 'instances'"),
        (IMAGES, {"instances": []}, "No values in 'instances' array"),
        (IMAGES, {"instances": {"image_bytes": "a"}}, "Excepting 'instances' to be an list/array"),
        (IMAGES, {"instances": None}, "Excepting 'instances' to be an list/array"),
        (serving_pb2.SignatureDef(), {"instances": ["a"]}, "Failed to get input map for signature"),
        # Rows
        (IMAGES, {"instances": ["a", {"image_bytes": "a"}]}, "Expecting value/list but got object at item 1"),
        (
            IMAGES,
            {"instances": [{"image_bytes": "a"}, {"b64": "YQ=="}]},
            "Expecting object but got value/list at item 1",
        ),
        (IMAGES, {"instances": [{}]}, r"element: 0 of 'instances' list.*keys must be equal to: image_bytes"),
        (IMAGES, {"instances": [{"image_bytes": "a", "more": 1}]}, "keys must be equal to: image_bytes"),
        (IMAGES, {"instances": [{"image_bytes": "a"}, {"other": "a"}]}, r'element: 1 .*\{"other": "a"\} keys must'),
        (TWO, {"instances": [[1, 2]]}, "instances is a plain list, but expecting list of objects.*text,x"),
        (TWO, {"instances": [{"text": "a"}]}, "keys must be equal to: text,x"),
        # Columns
        (IMAGES, {"inputs": {}}, "Missing named input: image_bytes in 'inputs' object"),
        (TWO, {"inputs": {"text": ["a"]}}, "Missing named input: x in 'inputs' object"),
        (TWO, {"inputs": [[1, 2]]}, "inputs is a plain value/list, but expecting an object"),
        (TWO, {"inputs": {"text": ["a"], "x": [[1, 2], [3, 4]]}}, "same number of rows, but text has 1, x has 2"),
        # Shapes
        (IMAGES, {"inputs": "a"}, r"Input image_bytes must have the shape \[-1\], but got \[\]"),
        (IMAGES, {"inputs": {"b64": "YQ=="}}, r"must have the shape \[-1\], but got \[\]"),
        (IMAGES, {"instances": [["a"]]}, r"must have the shape \[-1\], but got \[1, 1\]"),
        (PIXELS, {"instances": [[[1, 2, 3]]]}, r"Input pixels must have the shape \[-1, 1, 2\], but got \[1, 1, 3\]"),
        (PIXELS, {"inputs": []}, r"but got \[0\]"),
        (PIXELS, {"instances": [[1, 2]]}, r"but got \[1, 2\]"),
        (PIXELS, {"instances": [[[1, 2]], [[1]]]}, "list at unexpected size: 1 at level: 2 expected a list of size: 2"),
        (PIXELS, {"instances": [[[1, 2]], 7]}, "value: 7 at level: 1 expected a list of size: 1"),
        (PIXELS, {"instances": [[[1, [2]]]]}, "list at unexpected level: 3"),
        (PIXELS, {"instances": [[[]]]}, r"but got \[1, 1, 0\]"),
        # Values
        (
            IMAGES,
            {"instances": [5]},
            "element: 0 key: image_bytes.*Value: 5 Type: Number is not of expected type: string",
        ),
        (IMAGES, {"instances": [None]}, "Type: Null is not"),
        (IMAGES, {"instances": ["a", True]}, "element: 1 .*Value: true Type: True is not"),
        (IMAGES, {"inputs": [{"b64": 5}]}, r'Value: \{"b64": 5\} not formatted correctly for base64 data'),
        (IMAGES, {"inputs": [{"b64": "YQ==", "x": 1}]}, "not formatted correctly for base64 data"),
        (IMAGES, {"inputs": [{}]}, "not formatted correctly for base64 data"),
        (IMAGES, {"instances": [{"b64": "YQ-_"}]}, "Unable to base64 decode"),
        (PIXELS, {"instances": [[[1, 256]]]}, "Value: 256 Type: Number is not of expected type: uint8"),
        (PIXELS, {"instances": [[[-1, 2]]]}, "Value: -1 Type: Number is not of expected type: uint8"),
        (PIXELS, {"instances": [[[1, 10**400]]]}, "is not of expected type: uint8"),
        (PIXELS, {"instances": [[[1, 2.0]]]}, "Value: 2.0 Type: Number is not of expected type: uint8"),
        (PIXELS, {"instances": [[[1, True]]]}, "Value: true Type: True is not of expected type: uint8"),
        (PIXELS, {"instances": [[[1, "2"]]]}, 'Value: "2" Type: String is not of expected type: uint8'),
        (PIXELS, {"instances": [[[1, {"b64": "YQ=="}]]]}, "Type: Object is not of expected type: uint8"),
        (PIXELS, {"instances": [[[1, float("nan")]]]}, "Value: NaN Type: Number is not of expected type: uint8"),
        (SHORTS, {"inputs": [32768]}, "is not of expected type: int16"),
        (LONGS, {"inputs": [2**63]}, "is not of expected type: int64"),
        (FLOATS, {"inputs": [16777216]}, "Cannot convert JSON value: 16777216 to float without loss of precision"),
        (FLOATS, {"inputs": [-16777216]}, "Cannot convert JSON value: -16777216 to float"),
        (FLOATS, {"inputs": [1e39]}, r"Cannot convert JSON value: 1e\+39 to float"),
        (FLOATS, {"inputs": [10**400]}, "Cannot convert JSON value: 1000.*… to float"),
        (FLOATS, {"inputs": [True]}, "Type: True is not of expected type: float32"),
        (FLOATS, {"inputs": ["1"]}, "Type: String is not of expected type: float32"),
        (DOUBLES, {"inputs": [2**53]}, "to double without loss of precision"),
        (BOOLS, {"inputs": [1]}, "Type: Number is not of expected type: bool"),
        (HALVES, {"inputs": [1.0]}, "has a type that JSON cannot carry"),
        (signature(x=(STRING, [-1, -1])), {"inputs": [["a"]]}, "has a type that JSON cannot carry"),
    ],
)
def test_what_does_not_fit_the_signature_is_refused(expected, body, words):
    with pytest.raises(BadRequest, match=words):
        wire.inputs(body, expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", b""),
        ("/+8=", b"\xff\xef"),
        ("/+8", b"\xff\xef"),
        ("YQ==", b"a"),
        ("YQ", b"a"),
        ("YWJj", b"abc"),
        (" YW\r\nJj\t", b"abc"),
        ("_-8=", None),
        ("YQ=", None),
        ("YQ===", None),
        ("YWJj=", None),
        ("YWJj====", None),
        ("Y", None),
        ("Y===", None),
        ("====", None),
        ("=", None),
        ("YQ==YQ==", None),
        ("YW=j", None),
        ("YWJ!", None),
        ("YWJä", None),
        ("data:image/png;base64,YWJj", None),
        ("YWJj\0", None),
    ],
)
def test_base64(text, expected):
    body = {"instances": [{"b64": text}]}
    if expected is None:
        with pytest.raises(BadRequest, match="Unable to base64 decode"):
            wire.inputs(body, IMAGES)
    else:
        assert wire.inputs(body, IMAGES).values["image_bytes"] == [expected]


@given(st.binary(), st.booleans())
def test_base64_of_anything(data, padded):
    text = base64.b64encode(data).decode()
    body = {"instances": [{"b64": text if padded else text.rstrip("=")}]}
    assert wire.inputs(body, IMAGES).values["image_bytes"] == [data]


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("YWJj"),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["b64", "pixels", "x", "text"]) | st.text(), inner)
    ),
    max_leaves=12,
)
DOCUMENTS = st.dictionaries(st.sampled_from(["instances", "inputs", "signature_name"]), VALUES)


def read_whole(body):
    """As the server does; only BadRequest may be raised."""
    for expected in (IMAGES, PIXELS, FLOATS, LONGS, BOOLS, SCALAR, TWO):
        with contextlib.suppress(BadRequest):
            document = wire.document(body)
            assert wire.signature_name(document)
            read = wire.inputs(document, expected)
            assert isinstance(read, Inputs)
            assert read.values.keys() == set(expected.inputs)


@given(DOCUMENTS)
@example({"instances": [{"b64": "YWJj"}], "signature_name": "\ud800"})
def test_wild_documents_are_answered_or_refused(value):
    read_whole(json.dumps(value).encode())


@given(st.binary() | st.text().map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_wild_bytes_are_answered_or_refused(body):
    read_whole(body)


@given(DOCUMENTS, st.data())
def test_damaged_documents_are_answered_or_refused(value, data):
    body = bytearray(json.dumps(value).encode())
    position = data.draw(st.integers(0, len(body) - 1))
    body[position : position + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    read_whole(bytes(body))


# answer

SCORE = np.float32([0.1, 1])


@pytest.mark.parametrize(
    ("outputs", "rows", "columns"),
    [
        ({"score": SCORE}, "[0.1,1.0]", "[0.1,1.0]"),
        ({"p": np.float32([[0.1, 0.9], [1e-9, 1]])}, "[[0.1,0.9],[1e-09,1.0]]", "[[0.1,0.9],[1e-09,1.0]]"),
        ({"p": np.zeros((1, 2, 1), np.float32)}, "[[[0.0],[0.0]]]", "[[[0.0],[0.0]]]"),
        ({"p": np.zeros((0, 2), np.float32)}, "[]", "[]"),
        ({"p": np.zeros((2, 0), np.float32)}, "[[],[]]", "[[],[]]"),
        ({"x": np.float32([np.nan, np.inf, -np.inf])}, "[NaN,Infinity,-Infinity]", "[NaN,Infinity,-Infinity]"),
        ({"n": np.int64([2**62, -1])}, "[4611686018427387904,-1]", "[4611686018427387904,-1]"),
        ({"n": np.uint8([[1, 2]])}, "[[1,2]]", "[[1,2]]"),
        ({"b": np.array([True, False])}, "[true,false]", "[true,false]"),
        ({"label": ["Käfer".encode(), b'"\n\xff']}, r'["Käfer","\"\n�"]', r'["Käfer","\"\n�"]'),
        ({"image_bytes": [b"\xff\xef", b""]}, '[{"b64":"/+8="},{"b64":""}]', '[{"b64":"/+8="},{"b64":""}]'),
        (
            {"label": [b"ant", b"bee"], "score": SCORE, 'a "b"': np.float32([[1, 2], [3, 4]])},
            r'[{"label":"ant","score":0.1,"a \"b\"":[1.0,2.0]},{"label":"bee","score":1.0,"a \"b\"":[3.0,4.0]}]',
            r'{"label":["ant","bee"],"score":[0.1,1.0],"a \"b\"":[[1.0,2.0],[3.0,4.0]]}',
        ),
    ],
)
def test_answers(outputs, rows, columns):
    assert wire.answer(outputs, row_format=True).decode() == f'{{"predictions":{rows}}}'
    assert wire.answer(outputs, row_format=False).decode() == f'{{"outputs":{columns}}}'


@given(st.lists(st.floats(width=32), max_size=20))
@example([1e16, 1e-5, 16777216.0, 1e-45, 3.4028234663852886e38, -0.0])
def test_floats_come_back_as_they_were(values):
    body = wire.answer({"x": np.float32(values)}, row_format=True)
    read = json.loads(body)["predictions"]
    assert all(isinstance(value, float) for value in read)
    np.testing.assert_array_equal(np.float32(read), np.float32(values))


# metadata and status


def test_metadata_has_tensorflow_servings_shape():
    made = signature(image_bytes=(STRING, [-1]))
    made.outputs["score"].dtype = FLOAT
    made.outputs["score"].tensor_shape.unknown_rank = True
    assert json.loads(wire.metadata("ants", 2**40, {"serving_default": made})) == {
        "model_spec": {"name": "ants", "signature_name": "", "version": str(2**40)},
        "metadata": {
            "signature_def": {
                "signature_def": {
                    "serving_default": {
                        "inputs": {
                            "image_bytes": {
                                "name": "image_bytes:0",
                                "dtype": "DT_STRING",
                                "tensor_shape": {"dim": [{"size": "-1", "name": ""}], "unknown_rank": False},
                            }
                        },
                        "outputs": {
                            "score": {
                                "name": "",
                                "dtype": "DT_FLOAT",
                                "tensor_shape": {"dim": [], "unknown_rank": True},
                            }
                        },
                        "method_name": "tensorflow/serving/predict",
                        "defaults": {},
                    }
                }
            }
        },
    }


def test_status_has_tensorflow_servings_shape():
    versions = [VersionStatus(9, "AVAILABLE"), VersionStatus(10, "END", "UNKNOWN", "no such Käfer")]
    assert json.loads(wire.status(versions)) == {
        "model_version_status": [
            {"version": "10", "state": "END", "status": {"error_code": "UNKNOWN", "error_message": "no such Käfer"}},
            {"version": "9", "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}},
        ]
    }


def test_metadata_and_status_are_what_tensorflow_servings_clients_parse():
    from google.protobuf import json_format
    from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2

    named = json.loads(wire.metadata("ants", 3, {"serving_default": TWO}))["metadata"]["signature_def"]
    parsed = json_format.ParseDict(named, get_model_metadata_pb2.SignatureDefMap())
    assert parsed.signature_def["serving_default"].inputs["x"].tensor_shape.dim[1].size == 2
    answered = get_model_status_pb2.GetModelStatusResponse()
    json_format.Parse(wire.status([VersionStatus(3, "AVAILABLE")]), answered)
    assert answered.model_version_status[0].state == get_model_status_pb2.ModelVersionStatus.AVAILABLE
