"""The frozen layers' forward pass, on the fastest engine that agrees with TensorFlow.

Shape letters: N pictures, H height, W width.
"""

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from google.protobuf.message import EncodeError

TOLERANCE = 1e-3
"""Largest difference between two engines' activations, as a share of the largest activation. Half precision, which
activations are stored in, rounds by half of that."""

_TOGETHER = 32  # Pictures that pass TensorFlow at once.


@dataclass(frozen=True)
class Forward:
    """A forward pass through frozen layers, in inference mode.

    Attributes:
        engine: what computes it.
        run: float32 [N, H, W, 3] in 0..255 to float32 [N, ...]. What it gives for a picture does not depend, to the
            last bit, on the pictures beside it. May be called from several threads.
        seconds: what one picture takes, measured.
        why: why it is not a faster engine; None where it is the fastest.
    """

    engine: str
    run: Callable[[np.ndarray], np.ndarray]
    seconds: float
    why: str | None = None


def engines() -> tuple[str, ...]:
    """Names of the engines on this machine, the fastest first. Another version or device is another engine."""
    gpu = bool(tf.config.list_physical_devices("GPU"))
    tensorflow = f"tensorflow {tf.__version__} on {'GPU' if gpu else 'CPU'}"
    return (tensorflow,) if gpu else (f"openvino {version('openvino')}", tensorflow)


def fastest(frozen: keras.Model, pictures: np.ndarray, engine: str | None = None) -> Forward:
    """OpenVINO on a CPU, where it agrees with TensorFlow on these pictures; else TensorFlow.

    On GPUs that have it, TensorFlow multiplies in TF32 and sums in float32. bfloat16 is used nowhere: it rounds by up
    to one part in 256, and TOLERANCE is one in 1,000.

    Args:
        frozen: pixels, float32 [N, H, W, 3] in 0..255, to one tensor.
        pictures: a few of the data's own, float32 [N, H, W, 3] in 0..255.
        engine: one of `engines()` that was found before, for these very layers: nothing is compared.
    """
    *faster, tensorflow = engines()
    why = None
    if faster and engine != tensorflow:
        graph = _constant_graph(frozen)
        try:
            run = _with_openvino(graph, frozen.output_shape[1:])
            features = run(pictures)
        # What OpenVINO raises for an operation it does not know, and protobuf for a graph of more than 2 GB.
        except (RuntimeError, EncodeError) as error:
            why = f"OpenVINO cannot run them ({_line(error)})"
        else:
            why = None if engine == faster[0] else _disagreement(features, graph(tf.constant(pictures)).numpy())
            if why is None:
                return _timed(faster[0], run, pictures)
    full = np.resize(pictures, (_TOGETHER, *pictures.shape[1:]))
    return _timed(tensorflow, _with_tensorflow(frozen), full, why)


def to_devices(batch: np.ndarray, strategy: tf.distribute.Strategy) -> Any:
    """A tensor; with several devices, an equal share of the batch on each.

    The strategy is an argument, since another thread than the one in its scope knows nothing of it.
    """
    if strategy.num_replicas_in_sync == 1:
        return tf.constant(batch)
    shares = np.array_split(batch, strategy.num_replicas_in_sync)
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(shares[context.replica_id_in_sync_group])
    )


def _disagreement(features: np.ndarray, expected: np.ndarray) -> str | None:
    with np.errstate(invalid="ignore"):  # Infinity less infinity.
        difference, largest = np.abs(features - expected).max(), np.abs(expected).max()
    if difference <= TOLERANCE * largest:  # NaN is not.
        return None
    return f"OpenVINO differs by {difference:.2g} where the largest activation is {largest:.2g}"


def _timed(
    engine: str, run: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray, why: str | None = None
) -> Forward:
    run(pictures[:1])
    started = time.perf_counter()
    run(pictures)
    return Forward(engine, run, (time.perf_counter() - started) / len(pictures), why)


def _with_tensorflow(frozen: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Always as many pictures at once on each device: TensorFlow has other kernels for a few, which add in another
    order."""
    strategy = tf.distribute.get_strategy()
    at_once = _TOGETHER * strategy.num_replicas_in_sync
    forward = tf.function(lambda images: frozen(images, training=False), autograph=False)
    on_devices = tf.function(lambda images: strategy.run(forward, args=(images,)), autograph=False)

    def batch(pictures: np.ndarray) -> np.ndarray:
        features = strategy.experimental_local_results(on_devices(to_devices(pictures, strategy)))
        return np.concatenate([share.numpy() for share in features])

    def run(pictures: np.ndarray) -> np.ndarray:
        places = np.arange(len(pictures))
        batches = [pictures[np.resize(places[a : a + at_once], at_once)] for a in places[::at_once]]
        return np.concatenate([batch(pictures) for pictures in batches])[: len(places)]

    return run


def _with_openvino(graph: Any, shape: tuple[int, ...]) -> Callable[[np.ndarray], np.ndarray]:
    """One picture at a time on each core: faster here than batches, and no picture knows of another.

    Args:
        graph: a concrete function that captures no variables.
        shape: of one picture's activation.
    """
    import openvino as ov

    core = ov.Core()
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "graph.pb"
        file.write_bytes(_graph_def(graph).SerializeToString())
        model = core.read_model(file)
        # A converted graph may end in more than the one tensor asked for, e.g. in checks.
        model = ov.Model([model.output(graph.outputs[0].name)], model.get_parameters())
        model.reshape([1, *graph.inputs[0].shape[1:]])
        # Left to itself, OpenVINO computes in bfloat16 where the processor can: see `fastest`.
        settings = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "THROUGHPUT"}
        compiled = core.compile_model(model, "CPU", settings)
    queue = ov.AsyncInferQueue(compiled)
    one_caller = threading.Lock()

    def run(pictures: np.ndarray) -> np.ndarray:
        features = np.empty((len(pictures), *shape), np.float32)

        def keep(request: Any, row: int) -> None:
            features[row] = request.get_output_tensor().data[0]

        with one_caller:
            queue.set_callback(keep)
            for row in range(len(pictures)):
                queue.start_async({0: pictures[row : row + 1]}, row)
            queue.wait_all()
        return features

    return run


def _constant_graph(frozen: keras.Model) -> Any:
    """The forward pass as a concrete function that captures the weights' values, and no variables."""
    values = [(variable, tf.constant(variable.numpy())) for variable in frozen.variables]

    def forward(images: tf.Tensor) -> tf.Tensor:
        with keras.StatelessScope(state_mapping=values):
            return tf.identity(frozen(images, training=False), name="features")

    function = tf.function(forward, input_signature=[tf.TensorSpec(frozen.input_shape, tf.float32)], autograph=False)
    return function.get_concrete_function()


def _graph_def(graph: Any) -> Any:
    """A concrete function's graph with the tensors that it captured as constants."""
    definition = graph.graph.as_graph_def()
    captured = {inside.op.name: outside for outside, inside in graph.graph.captures}
    for node in definition.node:
        if node.name in captured:
            value = captured[node.name].numpy()
            node.op = "Const"
            node.attr.clear()
            node.attr["dtype"].type = tf.as_dtype(value.dtype).as_datatype_enum
            node.attr["value"].tensor.CopyFrom(tf.make_tensor_proto(value))
    return definition


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]
