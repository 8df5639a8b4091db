"""serving.proto beside the originals of TensorFlow and TensorFlow Serving."""

import re
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from google.protobuf.descriptor import FieldDescriptor
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow.core.protobuf import meta_graph_pb2, saved_model_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
    prediction_log_pb2,
    status_pb2,
)
from tensorflow_serving.config import file_system_storage_path_source_pb2, model_server_config_pb2

from serving.protos import serving_pb2
from tests.conftest import ROOT

ORIGINALS = [
    tensor_pb2, tensor_shape_pb2, types_pb2, meta_graph_pb2, saved_model_pb2, model_pb2, predict_pb2, status_pb2,
    get_model_status_pb2, prediction_log_pb2, file_system_storage_path_source_pb2, model_server_config_pb2,
]  # fmt: skip
NUMBERS_FOR_ENUMS = {"StatusProto.error_code"}


def below(messages):
    for message in messages:
        yield message
        yield from below(message.nested_types)


def short(descriptor):
    """Its name without the package."""
    return descriptor.full_name.removeprefix(descriptor.file.package + ".")


MESSAGES = {short(message): message for message in below(serving_pb2.DESCRIPTOR.message_types_by_name.values())}
THEIRS = {
    short(message): message
    for module in ORIGINALS
    for message in below(module.DESCRIPTOR.message_types_by_name.values())
}


def kind(field):
    """What decides how a field is written: its number, type and cardinality, and what its message or enum is called."""
    number_for_enum = f"{short(field.containing_type)}.{field.name}" in NUMBERS_FOR_ENUMS
    return {
        "number": field.number,
        "type": FieldDescriptor.TYPE_INT32 if number_for_enum else field.type,
        "repeated": field.is_repeated,
        "packed": field.is_packed,
        "message": field.message_type and short(field.message_type),
        "enum": None if number_for_enum else field.enum_type and short(field.enum_type),
    }


@pytest.mark.parametrize("name", MESSAGES)
def test_fields_are_those_of_the_original(name):
    original = THEIRS[name]
    assert MESSAGES[name].GetOptions().map_entry == original.GetOptions().map_entry
    fields = {field.name: kind(field) for field in MESSAGES[name].fields}
    assert fields == {key: kind(original.fields_by_name[key]) for key in fields}


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (serving_pb2.DataType, types_pb2.DataType),
        (serving_pb2.ModelVersionStatus.State, get_model_status_pb2.ModelVersionStatus.State),
    ],
    ids=["DataType", "State"],
)
def test_enums_are_those_of_the_original(ours, theirs):
    assert dict(ours.items()).items() <= dict(theirs.items()).items()


def test_status_codes_are_those_of_grpc():
    grpc = pytest.importorskip("grpc")
    codes = {code.name: code.value[0] for code in grpc.StatusCode}
    original = THEIRS["StatusProto"].fields_by_name["error_code"].enum_type
    assert codes.items() <= {value.name: value.number for value in original.values}.items()


def test_a_request_goes_there_and_back():
    request = predict_pb2.PredictRequest(output_filter=["probabilities"])
    request.model_spec.name, request.model_spec.signature_name = "hymenoptera", "pixels"
    request.model_spec.version.value = 7
    pixels = np.arange(2 * 4 * 4 * 3, dtype=np.uint8).reshape(2, 4, 4, 3)
    request.inputs["pixels"].CopyFrom(tf.make_tensor_proto(pixels))
    request.inputs["image_bytes"].CopyFrom(tf.make_tensor_proto([b"\xff\xd8", b""]))

    ours = serving_pb2.PredictRequest.FromString(request.SerializeToString())
    assert ours.model_spec.version.value == 7
    assert ours.inputs["pixels"].tensor_content == pixels.tobytes()
    assert list(ours.inputs["image_bytes"].string_val) == [b"\xff\xd8", b""]
    assert predict_pb2.PredictRequest.FromString(ours.SerializeToString()) == request


def test_a_response_goes_there_and_back():
    response = serving_pb2.PredictResponse()
    response.model_spec.version.value = 2**40
    tensor = response.outputs["score"]
    tensor.dtype = serving_pb2.DT_FLOAT
    tensor.tensor_shape.dim.add(size=2)
    tensor.float_val.extend([0.25, float("inf")])

    theirs = predict_pb2.PredictResponse.FromString(response.SerializeToString())
    assert theirs.model_spec.version.value == 2**40
    np.testing.assert_array_equal(tf.make_ndarray(theirs.outputs["score"]), np.float32([0.25, np.inf]))
    assert serving_pb2.PredictResponse.FromString(theirs.SerializeToString()) == response


def test_fields_that_are_not_named_here_pass_through():
    tensor = tensor_pb2.TensorProto(dtype=types_pb2.DT_INT32, int_val=[1, 2], version_number=3)
    passed = serving_pb2.TensorProto.FromString(tensor.SerializeToString()).SerializeToString()
    assert tensor_pb2.TensorProto.FromString(passed) == tensor


def test_the_generated_files_are_those_of_the_proto(tmp_path):
    pytest.importorskip("grpc_tools")
    # In a process of its own: the compiler and TensorFlow each bring their protobuf.
    command = [sys.executable, "-m", "grpc_tools.protoc", "-I.", f"--python_out={tmp_path}", f"--pyi_out={tmp_path}"]
    subprocess.run([*command, "serving/protos/serving.proto"], cwd=ROOT, check=True)
    for name in ("serving_pb2.py", "serving_pb2.pyi"):
        kept, made = (
            # Without the compiler's version, which may be another one.
            re.sub(
                r"Protobuf Python Version: .*|^ +\d+,$",
                "",
                (folder / "serving" / "protos" / name).read_text(encoding="utf-8"),
                flags=re.MULTILINE,
            )
            for folder in (ROOT, tmp_path)
        )
        assert made == kept, f"{name} is not what serving.proto gives; serving.proto says how to write it again"
