"""TensorFlow Serving's gRPC over exported models, computed by TensorFlow in this process, with faults on demand.

    python -m tests.tfserving_server EXPORT [--port 8500] [--fault FILE]

It prints the port it listens on. FILE, read at every call while it is there, holds a `Fault` as JSON, for example
{"code": "RESOURCE_EXHAUSTED"} or {"seconds": 2}.
"""

import argparse
import functools
import json
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import grpc
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

START, LOADING, AVAILABLE, UNLOADING, END = (
    get_model_status_pb2.ModelVersionStatus.State.Value(name)
    for name in ("START", "LOADING", "AVAILABLE", "UNLOADING", "END")
)
_CODES = {code.value[0]: code for code in grpc.StatusCode}  # TensorFlow's are the same.


@dataclass
class Fault:
    """What goes wrong with predictions.

    Attributes:
        code: the name of gRPC's status that they end in; None: they are answered.
        details: its words.
        seconds: that each takes at least, or until `release`.
        calls: after so many the fault is over.
    """

    code: str | None = None
    details: str = "as the test wants it"
    seconds: float = 0
    calls: float = float("inf")


class Server:
    """Serves every version below `export`, from when it is made until `stop`.

    Attributes:
        port: that it listens on.
        fault: what goes wrong now.
        states: of each (name, version): its state, error code and error message. Only what is AVAILABLE is computed.
        calls: that have come to Predict, whatever became of them.
        arrived: released by each of them.
        last, seconds: the newest of their requests, and how long its client waits.
    """

    def __init__(self, export, port=0, fault_file=None):
        self.fault = Fault()
        self.calls = 0
        self.arrived = threading.Semaphore(0)
        self.last, self.seconds = None, None
        self._fault_file = fault_file
        self._released = threading.Event()
        self._lock = threading.Lock()
        self._models = {
            (path.parent.name, int(path.name)): _loaded(path)
            for path in Path(export).glob("*/*")
            if path.name.isdecimal()
        }
        self.states = dict.fromkeys(self._models, (AVAILABLE, 0, ""))
        # Messages of any size are taken, as by TensorFlow Serving. A port that is in use is an error, not shared.
        options = [("grpc.max_receive_message_length", -1), ("grpc.so_reuseport", 0)]
        self._server = grpc.server(ThreadPoolExecutor(16), options=options)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Prediction(self), self._server)
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(_Status(self), self._server)
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self._server.start()

    def release(self):
        """Ends what the fault's `seconds` hold back, now and from now on."""
        self._released.set()

    def stop(self):
        self.release()
        self._server.stop(grace=None).wait()

    def wait(self):
        self._server.wait_for_termination()

    def misbehave(self, request, context):
        with self._lock:
            self.calls += 1
            self.last, self.seconds = request, context.time_remaining()
            fault = self.fault
            if self._fault_file and self._fault_file.exists():
                fault = Fault(**json.loads(self._fault_file.read_text()))
            fault.calls -= 1
        self.arrived.release()
        if fault.calls < 0:
            return
        self._released.wait(fault.seconds)
        if fault.code:
            context.abort(grpc.StatusCode[fault.code], fault.details)

    def find(self, spec, context):
        """The version that a request means, and the model."""
        available = {key for key, (state, _, _) in self.states.items() if state == AVAILABLE}
        if spec.HasField("version"):
            version, said = spec.version.value, f"Specific({spec.name}, {spec.version.value})"
        else:
            version = max((number for name, number in available if name == spec.name), default=None)
            said = f"Latest({spec.name})"
        if (spec.name, version) not in available:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: {said}")
        return version, self._models[spec.name, version]


# Several servers in one process share what they load.
@functools.cache
def _loaded(path):
    return tf.saved_model.load(str(path))


class _Prediction(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, server):
        self._server = server

    def Predict(self, request, context):  # noqa: N802
        self._server.misbehave(request, context)
        version, model = self._server.find(request.model_spec, context)
        name = request.model_spec.signature_name or "serving_default"
        if name not in model.signatures:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, f'Serving signature key "{name}" not found.')
        signature = model.signatures[name]
        expected = set(signature.structured_input_signature[1])
        if set(request.inputs) != expected:
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"input size does not match signature: {len(request.inputs)}!={len(expected)}",
            )
        for alias in request.output_filter:
            if alias not in signature.structured_outputs:
                context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"output tensor alias not found in signature: {alias}")
        try:
            inputs = {key: tf.constant(tf.make_ndarray(value)) for key, value in request.inputs.items()}
            outputs = signature(**inputs)
        except tf.errors.OpError as error:
            context.abort(_CODES[error.error_code], error.message)
        response = predict_pb2.PredictResponse(
            model_spec=model_pb2.ModelSpec(name=request.model_spec.name, signature_name=name)
        )
        response.model_spec.version.value = version
        for alias in request.output_filter or outputs:
            response.outputs[alias].CopyFrom(_as_fields(outputs[alias]))
        return response


class _Status(model_service_pb2_grpc.ModelServiceServicer):
    def __init__(self, server):
        self._server = server

    def GetModelStatus(self, request, context):  # noqa: N802
        spec, states = request.model_spec, self._server.states
        found = sorted(version for name, version in states if name == spec.name)
        if spec.HasField("version"):
            if spec.version.value not in found:
                context.abort(
                    grpc.StatusCode.NOT_FOUND, f"Could not find version {spec.version.value} of model {spec.name}"
                )
            found = [spec.version.value]
        if not found:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Could not find any versions of model {spec.name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in found:
            state, code, message = states[spec.name, version]
            status = {"error_code": code, "error_message": message}
            response.model_version_status.add(version=version, state=state, status=status)
        return response


def _as_fields(value):
    """TensorFlow Serving answers with values in `float_val` and `string_val`, not in `tensor_content`."""
    field = {tf.float32: "float_val", tf.string: "string_val"}[value.dtype]
    shape = {"dim": [{"size": size} for size in value.shape]}
    proto = tensor_pb2.TensorProto(dtype=value.dtype.as_datatype_enum, tensor_shape=shape)
    getattr(proto, field).extend(value.numpy().ravel())
    return proto


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("export", type=Path)
    parser.add_argument("--port", type=int, default=8500)
    parser.add_argument("--fault", type=Path)
    arguments = parser.parse_args()
    server = Server(arguments.export, arguments.port, arguments.fault)
    print(server.port, flush=True)
    server.wait()
