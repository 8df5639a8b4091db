"""The frozen layers' forward pass: one picture's values never depend on another's, and engines agree or give way."""

from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import trunk
from pipeline.config import Blocks
from pipeline.model import divide
from tests.networks import network, phase, split


def layers(name="mobilenet", unfreeze=None):
    return divide(network(name), phase(unfreeze=unfreeze or Blocks(blocks=1))).frozen


def model(*operations):
    pixels = keras.Input((8, 8, 3))
    x = pixels
    for operation in operations:
        x = operation(x)
    return keras.Model(pixels, x)


OPENVINO, TENSORFLOW = trunk.engines()
PIXELS = split(40).images(np.arange(40)).astype(np.float32)
SMALL = PIXELS[:5, :8, :8]


@pytest.mark.parametrize("engine", ["openvino", "tensorflow"])
@pytest.mark.parametrize("name", ["lenet5", "mobilenet"])
def test_what_a_picture_gives_does_not_depend_on_those_beside_it_to_the_last_bit(name, engine, monkeypatch):
    frozen = layers(name, "head")
    if engine == "tensorflow":
        monkeypatch.setattr(trunk, "TOLERANCE", -1.0)
    forward = trunk.fastest(frozen, PIXELS[:4])
    assert forward.engine.split()[0] == engine
    assert forward.seconds > 0
    whole = forward.run(PIXELS)
    assert whole.dtype == np.float32
    assert whole.shape == (40, *frozen.output_shape[1:])
    some = np.array([33, 2, 7, 0, 39, 21, 8])
    np.testing.assert_array_equal(forward.run(PIXELS[some]), whole[some])
    for row in some:
        np.testing.assert_array_equal(forward.run(PIXELS[row : row + 1])[0], whole[row])
    expected = frozen(PIXELS, training=False).numpy()
    np.testing.assert_allclose(whole, expected, atol=1e-3 * np.abs(expected).max())


def test_several_threads_may_ask_at_once():
    forward = trunk.fastest(layers(), PIXELS[:4])
    whole = forward.run(PIXELS)
    chosen = [np.random.default_rng(seed).permutation(40)[:13] for seed in range(24)]
    with ThreadPoolExecutor(6) as pool:
        for rows, features in zip(chosen, pool.map(lambda rows: forward.run(PIXELS[rows]), chosen), strict=True):
            np.testing.assert_array_equal(features, whole[rows])


class Text(keras.layers.Layer):
    """Goes by way of words, which OpenVINO has no operations for."""

    def call(self, x):
        return tf.strings.to_number(tf.strings.as_string(x))

    def compute_output_shape(self, shape):
        return shape


class Python(keras.layers.Layer):
    """Computes outside of any graph."""

    def call(self, x):
        return tf.ensure_shape(tf.numpy_function(lambda values: values * 2, [x], tf.float32), x.shape)

    def compute_output_shape(self, shape):
        return shape


@pytest.mark.parametrize("layer", [Text, Python])
def test_what_openvino_cannot_run_runs_on_tensorflow_and_says_why(layer):
    frozen = model(layer())
    forward = trunk.fastest(frozen, SMALL)
    assert forward.engine == TENSORFLOW
    assert forward.why.startswith("OpenVINO cannot run them (")
    assert "\n" not in forward.why
    np.testing.assert_allclose(forward.run(SMALL), frozen(SMALL), rtol=1e-6)


class Undefined(keras.layers.Layer):
    """Not a number where a picture is dark."""

    def call(self, x):
        return keras.ops.log(x - 100.0)


def test_what_is_not_a_number_is_no_agreement():
    forward = trunk.fastest(model(Undefined()), SMALL)
    assert (forward.engine, forward.why) == (
        TENSORFLOW,
        "OpenVINO differs by nan where the largest activation is nan",
    )


def test_an_engine_that_differs_by_more_than_the_tolerance_is_not_used(monkeypatch):
    frozen = model(keras.layers.Rescaling(2.0))
    assert trunk.fastest(frozen, SMALL).engine == OPENVINO
    assert trunk.fastest(frozen, SMALL).why is None

    real = trunk._with_openvino

    def off(share):
        def with_openvino(graph, shape):
            run = real(graph, shape)
            return lambda pictures: run(pictures) + share * 2.0 * np.float32(SMALL.max())

        return with_openvino

    monkeypatch.setattr(trunk, "_with_openvino", off(0.5e-3))
    assert trunk.fastest(frozen, SMALL).engine == OPENVINO
    monkeypatch.setattr(trunk, "_with_openvino", off(2e-3))
    forward = trunk.fastest(frozen, SMALL)
    assert forward.why.startswith("OpenVINO differs by 0.")
    assert forward.why.endswith(f"where the largest activation is {2 * SMALL.max():.2g}")
    np.testing.assert_array_equal(forward.run(SMALL), 2.0 * SMALL)


def test_layers_with_batch_normalisation_and_dropout_are_in_inference_mode():
    frozen = model(keras.layers.BatchNormalization(momentum=0.0), keras.layers.Dropout(0.5))
    frozen.trainable = True
    for _ in range(2):
        np.testing.assert_allclose(trunk.fastest(frozen, SMALL).run(SMALL), SMALL / np.sqrt(1.001), rtol=1e-5)
