"""TensorFlow Serving computes: pixels go there by gRPC, probabilities come back.

The connection is not encrypted. Where the network between the two is not trusted, a service mesh or a sidecar beside
each of them encrypts it.

Shape letters: N pictures, H height, W width, C classes, D features.
"""

import json
import os
import threading
import time
from collections.abc import Callable

# gRPC reads it when it is imported. Its own lines on standard error are no JSON; what they say is logged here too.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")

import grpc
import numpy as np
from google.protobuf.wrappers_pb2 import Int64Value

from serving.engines import LoadError, NotYet
from serving.errors import Overloaded, Refusal, TooLate, Unavailable
from serving.export import Export, array, tensor
from serving.logs import log
from serving.protos import serving_pb2

_FAILURES = 5  # in a row, after which upstream is taken to be away
_PAUSE = 1.0  # seconds between tries while it is
_FAIR = 1.0  # seconds: a shorter call that comes to no answer says nothing of upstream
_STATUS_SECONDS = 5.0  # that upstream has to say which versions it serves
_AWAY = {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}

_CALLS = {
    "methodConfig": [
        {
            "name": [{"service": "tensorflow.serving.PredictionService"}],
            "retryPolicy": {
                "maxAttempts": 3,
                "initialBackoff": "0.05s",
                "maxBackoff": "0.5s",
                "backoffMultiplier": 4,
                "retryableStatusCodes": ["UNAVAILABLE"],
            },
        }
    ],
    # A failure takes one token and an answer gives 0.2 back; with half of them or less nothing is retried. So one
    # failure in six calls is always retried, and a server that refuses all of them is not asked three times as often.
    "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.2},
}
_CHANNEL = [
    ("grpc.service_config", json.dumps(_CALLS)),
    # What is larger is not retried, and the default is less than two pictures. So large is no message.
    ("grpc.per_rpc_retry_buffer_size", 2**31 - 1),
    # 1000 pictures of 1000 classes reach the default of 4 MB. What is sent has no limit at either end.
    ("grpc.max_receive_message_length", -1),
    # While upstream is away a connection is tried once a second, and each try has a second; by default both grow, up to
    # two minutes. Its name is looked up as often: a container that returns may have another address.
    ("grpc.initial_reconnect_backoff_ms", 200),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.dns_min_time_between_resolutions_ms", 1000),
    # A machine that vanishes closes no connection. While calls wait, it is asked every 10 s whether it is there.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
]


class TensorFlowServing:
    """One channel to `upstream`, HOST:PORT of its gRPC, and one circuit for every model: they are away together."""

    # A batch travels while another is computed, so that the GPU does not wait for the network; upstream's own queue
    # merges what arrives together.
    at_once = 4
    # A GPU multiplies with 11 significant bits (TF32) unless it is told not to.
    tolerance = 1e-2

    def __init__(self, upstream: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = f"tensorflow serving at {upstream}"
        self._upstream = f"TensorFlow Serving at {upstream}"
        self._channel = grpc.insecure_channel(upstream, _CHANNEL)
        self._circuit = Circuit(clock)
        self._predict = self._channel.unary_unary(
            "/tensorflow.serving.PredictionService/Predict",
            request_serializer=serving_pb2.PredictRequest.SerializeToString,
            response_deserializer=serving_pb2.PredictResponse.FromString,
        )
        self._status = self._channel.unary_unary(
            "/tensorflow.serving.ModelService/GetModelStatus",
            request_serializer=serving_pb2.GetModelStatusRequest.SerializeToString,
            response_deserializer=serving_pb2.GetModelStatusResponse.FromString,
        )

    def load(self, export: Export) -> "TensorFlowServingModel":
        """Loads nothing: upstream must have the version already.

        Raises:
            NotYet: upstream is away, or has not loaded the version.
            LoadError: upstream could not load it, or is no TensorFlow Serving.
        """
        spec = serving_pb2.ModelSpec(name=export.name, version=Int64Value(value=export.version))
        what = f"version {export.version} of {export.name}"
        try:
            request = serving_pb2.GetModelStatusRequest(model_spec=spec)
            [found] = self._status(request, timeout=_STATUS_SECONDS).model_version_status
        except grpc.RpcError as error:
            raise self._no_status(what, error) from error
        if found.state == serving_pb2.ModelVersionStatus.AVAILABLE:
            return TensorFlowServingModel(spec, "embedding" in export.signatures, self._predict, self._circuit)
        if found.state == serving_pb2.ModelVersionStatus.END and found.status.error_code:
            raise LoadError(f"{self._upstream} could not load {what}: {_line(found.status.error_message)}")
        state = serving_pb2.ModelVersionStatus.State.Name(found.state)
        raise NotYet(f"{self._upstream} says {state} of {what}, which is served here as soon as it is AVAILABLE there.")

    def close(self) -> None:
        self._channel.close()

    def _no_status(self, what: str, error: grpc.RpcError) -> LoadError:
        code, details = error.code(), _line(error.details())
        if code is grpc.StatusCode.NOT_FOUND:
            self.lost = True
            return NotYet(
                f"{self._upstream} has no {what}, which is served here as soon as it is AVAILABLE there. If that does "
                "not come, see which folder and which versions its models.config names."
            )
        if code in _AWAY or code is grpc.StatusCode.RESOURCE_EXHAUSTED:
            return NotYet(f"{self._upstream} cannot be asked for {what} and is asked again ({code.name}: {details}).")
        return LoadError(
            f"{self._upstream} cannot say whether it has {what} ({code.name}: {details}). --upstream must be the host "
            "and the gRPC port, usually 8500, of a TensorFlow Serving."
        )


class TensorFlowServingModel:
    """One version that upstream has loaded."""

    lost = False

    def __init__(
        self,
        spec: serving_pb2.ModelSpec,
        embeds: bool,
        predict: "grpc.UnaryUnaryMultiCallable[serving_pb2.PredictRequest, serving_pb2.PredictResponse]",
        circuit: "Circuit",
    ) -> None:
        self.embeds = embeds
        self._spec = spec
        self._predict = predict
        self._circuit = circuit

    def probabilities(self, pixels: np.ndarray, seconds: float) -> np.ndarray:
        """Of uint8 [N, H, W, 3], float32 [N, C].

        Raises:
            Overloaded: upstream's queue or its memory is full.
            Unavailable: upstream is away, or has unloaded the version.
            TooLate: no answer within `seconds`.
            RuntimeError: upstream finds the request wrong, which is our mistake.
        """
        return self._outputs("pixels", ["probabilities"], pixels, seconds)[0]

    def embedded(self, pixels: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        probabilities, embeddings = self._outputs("embedding", ["probabilities", "embedding"], pixels, seconds)
        return probabilities, embeddings

    def close(self) -> None:
        pass

    def _outputs(self, signature: str, names: list[str], pixels: np.ndarray, seconds: float) -> list[np.ndarray]:
        request = serving_pb2.PredictRequest(inputs={"pixels": tensor(pixels)}, output_filter=names)
        request.model_spec.CopyFrom(self._spec)
        request.model_spec.signature_name = signature
        probe = self._circuit.admit()
        answered: bool | None = None
        try:
            response = self._predict(request, timeout=seconds)
            answered = True
        except grpc.RpcError as error:
            failure = self._failure(error)
            if error.code() not in _AWAY or isinstance(failure, Overloaded):
                answered = True
            elif error.code() is grpc.StatusCode.UNAVAILABLE or seconds >= _FAIR:
                answered = False
            raise failure from error
        finally:
            self._circuit.settle(probe, answered)
        return [array(response.outputs[name]) for name in names]

    def _failure(self, error: grpc.RpcError) -> Refusal | RuntimeError:
        code, details = error.code(), _line(error.details())
        # A full queue is UNAVAILABLE in its words: tensorflow/core/kernels/batching_util/shared_batch_scheduler.h.
        if code is grpc.StatusCode.RESOURCE_EXHAUSTED or "batch scheduling queue" in details:
            return Overloaded("TensorFlow Serving has more to compute than it takes. Try again in a moment.")
        if code is grpc.StatusCode.UNAVAILABLE:
            return Unavailable("TensorFlow Serving is away. Try again in a moment.")
        if code is grpc.StatusCode.DEADLINE_EXCEEDED:
            return TooLate("TensorFlow Serving did not answer in time.")
        what = f"version {self._spec.version.value} of {self._spec.name}"
        if code is grpc.StatusCode.NOT_FOUND:
            self.lost = True
            return Unavailable(f"TensorFlow Serving no longer has {what}. Try again in a moment.")
        return RuntimeError(f"TensorFlow Serving does not compute {what}: {code.name}: {details}")


class Circuit:
    """Spares a server that does not answer, and those who would wait for it.

    Closed, every call is let through. After `_FAILURES` in a row it opens: calls are refused at once, but for one probe
    at a time, `_PAUSE` seconds after the last failure. The first answer closes it.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._failures = 0
        self._failed_at = 0.0
        self._probing = False

    def admit(self) -> bool:
        """Whether the call is the probe, for `settle`, which must follow. Raises Unavailable while open."""
        with self._lock:
            if self._failures < _FAILURES:
                return False
            if self._probing or self._clock() < self._failed_at + _PAUSE:
                raise Unavailable("TensorFlow Serving is away. Try again in a moment.")
            self._probing = True
            return True

    def settle(self, probe: bool, answered: bool | None) -> None:
        """What became of an admitted call; None where it says nothing of the server."""
        with self._lock:
            if probe:
                self._probing = False
            if answered:
                if self._failures >= _FAILURES:
                    log.info("upstream answers again")
                self._failures = 0
            elif answered is False:
                self._failures += 1
                self._failed_at = self._clock()
                if self._failures == _FAILURES:
                    log.warning("upstream is away; requests are refused until it answers")


def _line(text: str | None) -> str:
    return " ".join((text or "").split())[:300]
