"""TensorFlow Serving's JSON: what requests say, and what answers look like.

Everything here is computed from its arguments alone. What is accepted, and in which words it is refused, follows
TensorFlow Serving's util/json_tensor.cc.

Shape letter: N rows, which are pictures here.
"""

import base64
import binascii
import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from google.protobuf.json_format import MessageToDict

from serving.errors import BadRequest
from serving.protos import serving_pb2

DEFAULT_SIGNATURE = "serving_default"

_SHOWN = 200
"""Characters of a JSON value that an error repeats."""
_DTYPES: dict[int, np.dtype[Any]] = {
    serving_pb2.DT_FLOAT: np.dtype(np.float32),
    serving_pb2.DT_DOUBLE: np.dtype(np.float64),
    serving_pb2.DT_INT8: np.dtype(np.int8),
    serving_pb2.DT_INT16: np.dtype(np.int16),
    serving_pb2.DT_INT32: np.dtype(np.int32),
    serving_pb2.DT_INT64: np.dtype(np.int64),
    serving_pb2.DT_UINT8: np.dtype(np.uint8),
    serving_pb2.DT_BOOL: np.dtype(np.bool_),
}
_TYPES = {type(None): "Null", dict: "Object", list: "Array", str: "String", int: "Number", float: "Number"}
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")


@dataclass(frozen=True)
class Inputs:
    """What a predict request asks about.

    Attributes:
        row_format: it came as `instances`, and is answered as `predictions`; else as `inputs` and `outputs`.
        values: by the signature's input names. A string input is a list of N bytes; any other an array of the
            signature's dtype and shape. N is the same for all, and may be 0 where `row_format` is False.
    """

    row_format: bool
    values: dict[str, list[bytes] | np.ndarray]


@dataclass(frozen=True)
class VersionStatus:
    """One version as the status route shows it.

    Attributes:
        version: its number.
        state: START, LOADING, AVAILABLE, UNLOADING or END.
        error_code: a gRPC code's name, e.g. "UNKNOWN"; "OK" where nothing went wrong.
        error_message: in words; empty where nothing went wrong.
    """

    version: int
    state: str
    error_code: str = "OK"
    error_message: str = ""


def document(body: bytes) -> dict[str, Any]:
    """The first JSON value in a request's body; what follows it is ignored.

    NaN, Infinity and -Infinity are numbers. Of keys that occur twice in an object, the first counts.

    Raises:
        BadRequest: it is not JSON in UTF-8, nested too deeply, has a number beyond float64, or is not an object.
    """
    cut = False
    try:
        text = body.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # Bytes behind the first value are nobody's concern; if these lie within it, what is before them is not whole.
        text, cut = error.object[: error.start].decode(), True
    start = len(text) - len(text.lstrip(" \t\n\r"))
    if start == len(text) and not cut:
        raise BadRequest("JSON Parse error: The document is empty.")
    try:
        value, end = _DECODER.raw_decode(text, start)
    except json.JSONDecodeError as error:
        what, position = ("not UTF-8", len(text)) if cut else (error.msg, error.pos)
        raise BadRequest(f"JSON Parse error: {what} at offset: {len(text[:position].encode())}.") from None
    except RecursionError:
        raise BadRequest("JSON Parse error: the document is nested too deeply.") from None
    except ValueError:  # More digits than Python converts.
        raise BadRequest("JSON Parse error: Number too big to be stored in double.") from None
    if _ESCAPED_SURROGATE.search(text, start, end):
        _refuse_lone_surrogates(value)
    if not isinstance(value, dict):
        raise BadRequest(f"JSON Value: {_shown(value)} Is not object")
    return value


def signature_name(document: Mapping[str, Any]) -> str:
    """Of the signature that is asked for. Raises BadRequest where it is not a string."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise BadRequest(
            f"JSON Value: {_shown(document)} not formatted correctly. 'signature_name' key must be a string value."
        )
    return name or DEFAULT_SIGNATURE


def inputs(document: Mapping[str, Any], signature: serving_pb2.SignatureDef) -> Inputs:
    """The tensors in a predict request.

    Args:
        document: with either `instances`, a list of rows, or `inputs`, one list for each input.
        signature: names, dtypes and shapes of the inputs.

    Raises:
        BadRequest: the document is not of either form, or its values do not fit the signature.
    """
    expected = signature.inputs
    if not expected:
        raise BadRequest("Failed to get input map for signature: it has no inputs.")
    row_format = "instances" in document
    if row_format and "inputs" in document:
        raise BadRequest(
            f"JSON Value: {_shown(document)} Not formatted correctly expecting only one of 'inputs' or 'instances' "
            "keys to exist"
        )
    if row_format:
        columns = _columns_of_rows(document["instances"], sorted(expected))
    elif "inputs" in document:
        columns = _columns(document["inputs"], sorted(expected))
    else:
        raise BadRequest("Missing 'inputs' or 'instances' key")
    values = {name: _tensor(name, column, expected[name]) for name, column in columns.items()}
    counts = {name: len(value) for name, value in values.items() if isinstance(value, list) or value.ndim}
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise BadRequest(f"Every input must have the same number of rows, but {listed}.")
    return Inputs(row_format, values)


def answer(outputs: Mapping[str, np.ndarray | list[bytes]], row_format: bool) -> bytes:
    """The body that answers a predict request.

    Args:
        outputs: by name, at least one: arrays [N, …] of floats, integers or bools, or N strings. Strings of an output
            whose name ends in `_bytes` are written in base64, others as text.
        row_format: `predictions` with one entry a row, else `outputs`.
    """
    rows = {name: _written(name, values) for name, values in outputs.items()}
    if len(rows) == 1:
        (only,) = rows.values()
        text = _list(only)
    elif row_format:
        keys = [f"{json.dumps(name, ensure_ascii=False)}:" for name in rows]
        text = _list(
            [
                "{" + ",".join(key + value for key, value in zip(keys, row, strict=True)) + "}"
                for row in zip(*rows.values(), strict=True)
            ]
        )
    else:
        named = (f"{json.dumps(name, ensure_ascii=False)}:{_list(values)}" for name, values in rows.items())
        text = "{" + ",".join(named) + "}"
    return f'{{"{"predictions" if row_format else "outputs"}":{text}}}'.encode()


def metadata(name: str, version: int, signatures: Mapping[str, serving_pb2.SignatureDef]) -> bytes:
    """The body of the metadata route."""
    spec = serving_pb2.ModelSpec(name=name)
    spec.version.value = version
    named = {key: _plain(signature) for key, signature in signatures.items()}
    return _json({"model_spec": _plain(spec), "metadata": {"signature_def": {"signature_def": named}}})


def status(versions: Iterable[VersionStatus]) -> bytes:
    """The body of the status route, newest version first."""
    shown = [
        {
            "version": str(each.version),
            "state": each.state,
            "status": {"error_code": each.error_code, "error_message": each.error_message},
        }
        for each in sorted(versions, key=lambda each: each.version, reverse=True)
    ]
    return _json({"model_version_status": shown})


def _number(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise BadRequest("JSON Parse error: Number too big to be stored in double.")
    return number


def _first_of_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    return value if len(value) == len(pairs) else dict(reversed(pairs))


_DECODER = json.JSONDecoder(parse_float=_number, object_pairs_hook=_first_of_each)


def _refuse_lone_surrogates(value: object) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise BadRequest("JSON Parse error: The surrogate pair in string is invalid.") from None
    except RecursionError:
        raise BadRequest("JSON Parse error: the document is nested too deeply.") from None


def _shown(value: object) -> str:
    """A JSON value's text, or its beginning; the cost does not grow with the value's."""
    text = ""
    for part in json.JSONEncoder(ensure_ascii=False).iterencode(value):
        text += part[: _SHOWN + 1]
        if len(text) > _SHOWN:
            return text[:_SHOWN] + "…"
    return text


def _columns_of_rows(rows: object, names: list[str]) -> dict[str, list[Any]]:
    if not isinstance(rows, list):
        raise BadRequest(f"JSON Value: {_shown(rows)} Excepting 'instances' to be an list/array")
    if not rows:
        raise BadRequest("No values in 'instances' array")
    objects = [isinstance(row, dict) and not _is_base64(row) for row in rows]
    if not all(objects):
        if any(objects):
            odd = objects.index(not objects[0])
            wanted, got = ("object", "value/list") if objects[0] else ("value/list", "object")
            raise BadRequest(f"Expecting {wanted} but got {got} at item {odd} of input list")
        if len(names) > 1:
            raise BadRequest(
                "instances is a plain list, but expecting list of objects as multiple input tensors required as per "
                f"tensorinfo_map: {','.join(names)}"
            )
        return {names[0]: rows}
    for position, row in enumerate(rows):
        if row.keys() != set(names):
            raise BadRequest(
                f"Failed to process element: {position} of 'instances' list. JSON object: {_shown(row)} keys must be "
                f"equal to: {','.join(names)}"
            )
    return {name: [row[name] for row in rows] for name in names}


def _columns(value: object, names: list[str]) -> dict[str, Any]:
    if not isinstance(value, dict) or _is_base64(value):
        if len(names) > 1:
            raise BadRequest(
                "inputs is a plain value/list, but expecting an object as multiple input tensors required as per "
                f"tensorinfo_map: {','.join(names)}"
            )
        return {names[0]: value}
    for name in names:
        if name not in value:
            raise BadRequest(f"Missing named input: {name} in 'inputs' object.")
    return {name: value[name] for name in names}


def _tensor(name: str, value: object, info: serving_pb2.TensorInfo) -> list[bytes] | np.ndarray:
    leaves, shape = _dense(value)
    expected = [dim.size for dim in info.tensor_shape.dim]
    # Minus one stands for any size.
    fits = len(shape) == len(expected) and all(want in (-1, got) for want, got in zip(expected, shape, strict=True))
    if not fits and not info.tensor_shape.unknown_rank:
        raise BadRequest(f"Input {name} must have the shape {expected}, but got {shape}.")
    if info.dtype == serving_pb2.DT_STRING and len(shape) == 1:
        return [_string(name, position, leaf) for position, leaf in enumerate(leaves)]
    if info.dtype not in _DTYPES:
        raise BadRequest(f"Input {name} of shape {expected} has a type that JSON cannot carry to this server.")
    return _numbers(leaves, _DTYPES[info.dtype]).reshape(shape)


def _dense(value: object) -> tuple[list[Any], list[int]]:
    """The leaves of nested lists, which must form a box, and its shape."""
    leaves: list[Any] = [value]
    shape: list[int] = []
    while leaves and isinstance(leaves[0], list):
        size = len(leaves[0])
        if set(map(type, leaves)) != {list} or set(map(len, leaves)) != {size}:
            odd = next(leaf for leaf in leaves if not isinstance(leaf, list) or len(leaf) != size)
            got = f"list at unexpected size: {len(odd)}" if isinstance(odd, list) else f"value: {_shown(odd)}"
            raise BadRequest(f"Encountered {got} at level: {len(shape)} expected a list of size: {size}")
        shape.append(size)
        leaves = list(chain.from_iterable(leaves))
    if list in set(map(type, leaves)):
        raise BadRequest(f"Encountered list at unexpected level: {len(shape)} expected < {len(shape)}")
    return leaves, shape


def _type_error(value: object, expected: str) -> BadRequest:
    kind = str(value) if isinstance(value, bool) else _TYPES[type(value)]
    return BadRequest(f"JSON Value: {_shown(value)} Type: {kind} is not of expected type: {expected}")


def _numbers(leaves: list[Any], dtype: np.dtype[Any]) -> np.ndarray:
    """Raises BadRequest where a leaf is of another type, out of range, or would lose digits."""
    kinds: set[type] = {bool} if dtype.kind == "b" else {int, float} if dtype.kind == "f" else {int}
    if not set(map(type, leaves)) <= kinds:
        raise _type_error(next(leaf for leaf in leaves if type(leaf) not in kinds), dtype.name)
    if dtype.kind == "f":
        _refuse_loss(leaves, dtype)
        return np.array(leaves, np.float64).astype(dtype)
    try:
        return np.array(leaves, dtype)
    except OverflowError:
        bounds = np.iinfo(dtype)
        raise _type_error(next(leaf for leaf in leaves if not bounds.min <= leaf <= bounds.max), dtype.name) from None


def _refuse_loss(leaves: list[int | float], dtype: np.dtype[Any]) -> None:
    """Of integers, those that a float does not hold exactly; of the rest, finite ones beyond its range."""
    bounds = np.finfo(dtype)
    whole, largest = 2 ** (bounds.nmant + 1) - 1, float(bounds.max)
    for leaf in leaves:
        if abs(leaf) > whole and (isinstance(leaf, int) or math.inf > abs(leaf) > largest):
            target = "float" if dtype == np.float32 else "double"
            raise BadRequest(f"Cannot convert JSON value: {_shown(leaf)} to {target} without loss of precision.")


def _is_base64(value: dict[str, Any]) -> bool:
    return len(value) == 1 and isinstance(value.get("b64"), str)


def _string(name: str, position: int, leaf: object) -> bytes:
    if isinstance(leaf, str):
        return leaf.encode()
    try:
        if not isinstance(leaf, dict):
            raise _type_error(leaf, "string")
        if not _is_base64(leaf):
            raise BadRequest(f"JSON Value: {_shown(leaf)} not formatted correctly for base64 data")
        return _base64(leaf["b64"])
    except BadRequest as error:
        raise BadRequest(f"Failed to process element: {position} key: {name}. Error: {error}") from None


def _base64(text: str) -> bytes:
    """RFC 4648, section 4, with all of its padding or none; white space is skipped."""
    try:
        letters = text.encode("ascii").translate(None, b" \t\n\v\f\r")
        bare = letters.rstrip(b"=")
        padding = -len(bare) % 4
        if len(letters) - len(bare) not in (0, padding):
            raise ValueError
        return binascii.a2b_base64(bare + b"=" * padding, strict_mode=True)
    except ValueError:  # What binascii and encode raise are ValueErrors as well.
        raise BadRequest("Unable to base64 decode") from None


def _written(name: str, values: np.ndarray | list[bytes]) -> list[str]:
    """The JSON text of each row."""
    if isinstance(values, list):
        if name.endswith("_bytes"):
            return [f'{{"b64":"{base64.b64encode(value).decode()}"}}' for value in values]
        return [json.dumps(value.decode(errors="replace"), ensure_ascii=False) for value in values]
    if values.dtype.kind != "f":
        return [json.dumps(row, separators=(",", ":")) for row in values.tolist()]
    # NumPy writes the shortest text that reads back to the same number of that width; 0.1, and not 0.10000000149.
    texts = values.astype("U")
    if not np.isfinite(values).all():
        texts[np.isnan(values)] = "NaN"
        texts[np.isposinf(values)] = "Infinity"
        texts[np.isneginf(values)] = "-Infinity"
    return [_nested(row) for row in texts.tolist()]


def _nested(texts: str | list[Any]) -> str:
    if isinstance(texts, str):
        return texts
    return _list(texts if texts and isinstance(texts[0], str) else [_nested(each) for each in texts])


def _list(texts: list[str]) -> str:
    return f"[{','.join(texts)}]"


def _plain(message: Any) -> dict[str, Any]:
    plain: dict[str, Any] = MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )
    return plain


def _json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
