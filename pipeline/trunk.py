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

TENSORFLOW = "tensorflow"

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


def preferred_engine() -> str:
    """What `fastest` gives unless the engines disagree. Another version of it is another engine."""
    if tf.config.list_physical_devices("GPU"):
        return TENSORFLOW
    return f"openvino {version('openvino')}"


def fastest(frozen: keras.Model, pictures: np.ndarray, agreed: bool = False) -> Forward:
    """OpenVINO on a CPU, where it agrees with TensorFlow on these pictures; else TensorFlow.

    Args:
        frozen: pixels, float32 [N, H, W, 3] in 0..255, to one tensor.
        pictures: a few of the data's own, float32 [N, H, W, 3] in 0..255.
        agreed: whether the preferred engine has been found to agree for these very layers before.
    """
    engine = preferred_engine()
    if engine == TENSORFLOW:
        return _tensorflow(frozen, pictures)
    graph = _constant_graph(frozen)
    try:
        run = _with_openvino(graph, frozen.output_shape[1:])
        features = run(pictures)
    except Exception as error:  # Its plugins raise RuntimeError, TypeError and more for operations they do not know.
        return _tensorflow(frozen, pictures, f"OpenVINO cannot run them ({_line(error)})")
    if not agreed:
        expected = graph(tf.constant(pictures)).numpy()
        with np.errstate(invalid="ignore"):  # Infinity less infinity.
            difference, largest = np.abs(features - expected).max(), np.abs(expected).max()
        if not difference <= TOLERANCE * largest:  # NaN is no agreement.
            why = f"OpenVINO differs by {difference:.2g} where the largest activation is {largest:.2g}"
            return _tensorflow(frozen, pictures, why)
    return _timed(engine, run, pictures)


def compiled(frozen: keras.Model, then: Callable[[Any], Any] = lambda features: features) -> Callable[[Any], Any]:
    """Frozen layers and what is done with their output as a TensorFlow function, traced once for all N.

    On GPUs that have it, TensorFlow multiplies in TF32 and sums in float32. bfloat16 is not good enough: it moves the
    activations of a pretrained MobileNet by a tenth.
    """
    signature = [tf.TensorSpec(frozen.input_shape, tf.float32)]
    return tf.function(  # type: ignore[no-any-return]
        lambda images: then(frozen(images, training=False)), input_signature=signature, autograph=False
    )


def _tensorflow(frozen: keras.Model, pictures: np.ndarray, why: str | None = None) -> Forward:
    return _timed(TENSORFLOW, _with_tensorflow(frozen), np.resize(pictures, (_TOGETHER, *pictures.shape[1:])), why)


def _timed(
    engine: str, run: Callable[[np.ndarray], np.ndarray], pictures: np.ndarray, why: str | None = None
) -> Forward:
    run(pictures[:1])
    started = time.perf_counter()
    run(pictures)
    return Forward(engine, run, (time.perf_counter() - started) / len(pictures), why)


def _with_tensorflow(frozen: keras.Model) -> Callable[[np.ndarray], np.ndarray]:
    """Always as many pictures at once: TensorFlow has other kernels for a few, which add in another order."""
    signature = [tf.TensorSpec([_TOGETHER, *frozen.input_shape[1:]], tf.float32)]
    together = tf.function(lambda images: frozen(images, training=False), input_signature=signature, autograph=False)

    def run(pictures: np.ndarray) -> np.ndarray:
        places = np.arange(len(pictures))
        batches = [pictures[np.resize(places[a : a + _TOGETHER], _TOGETHER)] for a in places[::_TOGETHER]]
        features: np.ndarray = np.concatenate([together(tf.constant(batch)).numpy() for batch in batches])
        return features[: len(pictures)]

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
        # Left to itself, OpenVINO computes in bfloat16 where the processor can: see `compiled`.
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
