"""Schedules on numbers, and learning rates and decay per variable under every optimizer."""

import keras
import numpy as np
import pytest

from pipeline import optimizers
from pipeline.config import SGD, AdamW, Cosine, RMSprop, Step
from tests.networks import phase


def rates(asked, steps_per_epoch):
    schedule = optimizers.learning_rate(asked, steps_per_epoch)
    return [float(schedule(step)) for step in range(asked.epochs * steps_per_epoch)]


def test_step_divides_at_each_interval():
    asked = phase(epochs=6, learning_rate=1.0, schedule=Step(every_epochs=2, factor=0.1))
    np.testing.assert_allclose(rates(asked, 3)[::3], [1, 1, 0.1, 0.1, 0.01, 0.01], rtol=1e-5)


def test_cosine_falls_from_the_start_to_nearly_nothing():
    found = rates(phase(epochs=10, learning_rate=2.0, schedule=Cosine()), 4)
    assert found[0] == pytest.approx(2.0)
    assert found[20] == pytest.approx(1.0, abs=1e-3)
    assert found[-1] < 0.02
    assert sorted(found, reverse=True) == found


def test_warm_up_rises_to_the_learning_rate_and_then_falls():
    found = rates(phase(epochs=10, learning_rate=2.0, schedule=Cosine(warmup_epochs=2)), 4)
    assert found[:8] == pytest.approx([2.0 * step / 8 for step in range(8)])
    assert max(found) == found[8] == pytest.approx(2.0)
    assert found[-1] < 0.03


def moved(optimizer, scales, names=("kernel", "bias"), weight_decay=0.0, gradient=1.0):
    variables = [keras.Variable([[10.0]], name=name) for name in names]
    asked = phase(learning_rate=0.1, optimizer=optimizer, weight_decay=weight_decay)
    built = optimizers.optimizer(asked, 1, list(scales), list(names))
    built.build(variables)
    built.apply([np.full((1, 1), gradient, np.float32)] * len(names), variables)
    return [10.0 - float(variable.numpy()[0, 0]) for variable in variables]


@pytest.mark.parametrize("optimizer", ["sgd", SGD(nesterov=True), "adam", "rmsprop", RMSprop(momentum=0.5)])
def test_each_variable_moves_at_its_own_rate(optimizer):
    whole, half = moved(optimizer, (1.0, 0.5))
    assert whole > 0
    assert half == pytest.approx(whole / 2, rel=1e-3)


@pytest.mark.parametrize("optimizer", ["sgd", "adam", AdamW(), "rmsprop"])
def test_weight_decay_shrinks_kernels_at_their_own_rate_and_leaves_biases(optimizer):
    decayed = moved(optimizer, (1.0, 0.5, 1.0), ("kernel", "kernel", "bias"), weight_decay=0.2, gradient=0.0)
    assert decayed == pytest.approx([10 * 0.1 * 0.2, 10 * 0.05 * 0.2, 0.0], abs=1e-5)


def test_decay_is_part_of_the_momentum_under_sgd_and_apart_from_it_elsewhere():
    """With a gradient of zero: AlexNet's v <- 0.9 v - 0.1 (0.2 w), and decoupled w <- w - 0.1 (0.2 w)."""

    def weight_after(optimizer, steps):
        variable = keras.Variable([1.0], name="kernel")
        asked = phase(learning_rate=0.1, optimizer=optimizer, weight_decay=0.2)
        built = optimizers.optimizer(asked, 1, [1.0], ["kernel"])
        built.build([variable])
        for _ in range(steps):
            built.apply([np.zeros(1, np.float32)], [variable])
        return float(variable.numpy()[0])

    weight, velocity = 1.0, 0.0
    for _ in range(5):
        velocity = 0.9 * velocity - 0.1 * 0.2 * weight
        weight += velocity
    assert weight_after(SGD(momentum=0.9), 5) == pytest.approx(weight, rel=1e-5)
    assert weight_after(AdamW(), 5) == pytest.approx((1 - 0.1 * 0.2) ** 5, rel=1e-5)


@pytest.mark.parametrize(("epochs", "steps_per_epoch", "warmup"), [(1, 1, 0.5), (2, 1, 1.5), (1, 2, 0.9)])
def test_warm_up_leaves_at_least_one_step(epochs, steps_per_epoch, warmup):
    found = rates(phase(epochs=epochs, learning_rate=2.0, schedule=Cosine(warmup_epochs=warmup)), steps_per_epoch)
    assert max(found) == pytest.approx(2.0)
