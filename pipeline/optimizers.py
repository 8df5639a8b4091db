"""A phase's optimizer and learning-rate schedule, from Keras, with a learning rate per variable."""

from typing import Any

import keras
import tensorflow as tf

from pipeline.config import SGD, Adam, AdamW, Constant, Cosine, Phase, Plateau, RMSprop, Step

# Parameters of these names shift and scale; decaying them towards zero is not what weight decay is for.
_NOT_DECAYED = ("bias", "gamma", "beta")


def optimizer(phase: Phase, steps_per_epoch: int, scales: list[float], names: list[str]) -> keras.optimizers.Optimizer:
    """The optimizer of one phase.

    Args:
        phase: its optimizer, learning rate, schedule, weight decay and averaging. Clipping is the training step's: it
            needs the gradient of the whole batch, over all devices.
        steps_per_epoch: training steps in an epoch.
        scales: for each trained variable, in order, its multiple of the learning rate.
        names: their names, e.g. "kernel".
    """
    common = {
        "learning_rate": learning_rate(phase, steps_per_epoch),
        "use_ema": phase.ema is not None,
        "ema_momentum": phase.ema or 0.99,
    }
    decays = [0.0 if name in _NOT_DECAYED else phase.weight_decay for name in names]
    match phase.optimizer:
        case SGD(momentum=momentum, nesterov=nesterov):
            return _per_variable(keras.optimizers.SGD, scales, decays)(momentum=momentum, nesterov=nesterov, **common)
        case RMSprop(momentum=momentum):
            return _per_variable(keras.optimizers.RMSprop, scales, decays)(momentum=momentum, **common)
        case Adam() | AdamW():  # AdamW is Adam with the decoupled weight decay that `_per_variable` adds.
            return _per_variable(keras.optimizers.Adam, scales, decays)(**common)


def learning_rate(phase: Phase, steps_per_epoch: int) -> float | keras.optimizers.schedules.LearningRateSchedule:
    """The learning rate as a function of the step, or a number where the schedule is not one of the step."""
    schedules = keras.optimizers.schedules
    steps = phase.epochs * steps_per_epoch
    match phase.schedule:
        case Constant() | Plateau():
            return phase.learning_rate
        case Step(every_epochs=every, factor=factor):
            return schedules.ExponentialDecay(phase.learning_rate, every * steps_per_epoch, factor, staircase=True)
        case Cosine(warmup_epochs=warmup):
            warmup_steps = min(round(warmup * steps_per_epoch), steps - 1)
            if warmup_steps == 0:
                return schedules.CosineDecay(phase.learning_rate, steps)
            return schedules.CosineDecay(
                0.0, steps - warmup_steps, warmup_target=phase.learning_rate, warmup_steps=warmup_steps
            )


def _per_variable(kind: type, scales: list[float], decays: list[float]) -> type:
    """A Keras optimizer class in which each variable has its own learning rate and weight decay.

    Scaling the learning rate, unlike scaling the gradient, is right under Adam too. Decay follows the variable's own
    learning rate. Under SGD it is part of the gradient, and so of the momentum (Krizhevsky et al., 2012); elsewhere it
    is decoupled from it (Loshchilov and Hutter, 2019).
    """
    coupled = issubclass(kind, keras.optimizers.SGD)

    class PerVariable(kind):
        def update_step(self, gradient: tf.Tensor, variable: tf.Variable, learning_rate: Any) -> None:
            index = self._get_variable_index(variable)
            learning_rate = tf.cast(learning_rate, variable.dtype) * scales[index]
            if decays[index] and coupled:
                gradient = gradient + decays[index] * variable
            elif decays[index]:
                variable.assign_sub(variable * decays[index] * learning_rate)
            super().update_step(gradient, variable, learning_rate)

        def _all_reduce_sum_gradients(self, pairs: Any) -> Any:
            # TensorFlow keeps the graph of every step that sums over devices for as long as the process lives: it would
            # grow with each training.
            if tf.distribute.get_strategy().num_replicas_in_sync == 1:
                return pairs
            return super()._all_reduce_sum_gradients(pairs)

    PerVariable.__name__ = kind.__name__
    return PerVariable
