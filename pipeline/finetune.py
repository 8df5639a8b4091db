"""Training: phase by phase, freeze, train what is left, and prove that what was frozen did not change.

Shape letters: N pictures, H height, W width, C classes.
"""

import hashlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from pipeline import optimizers
from pipeline.artifacts import Epoch
from pipeline.config import Phase, Plateau
from pipeline.console import Console
from pipeline.errors import GraftError
from pipeline.feed import Feed, Pictures
from pipeline.metrics import accuracy, log_loss, softmax
from pipeline.model import Division, Network, divide
from pipeline.splits import Split


def finetune(
    network: Network,
    phases: list[Phase],
    pictures: Pictures,
    console: Console,
    on_epoch: Callable[[Epoch], None],
) -> list[Epoch]:
    """Trains a network in place.

    Args:
        network: from `model.build`, built in the scope of the current `tf.distribute` strategy.
        phases: what to train, for how long, and how.
        pictures: to learn from and to validate on, and how they are read.
        console: gets a bar per epoch.
        on_epoch: called with each epoch's record when it is complete.

    Returns:
        The records of all epochs, numbered from 1 across phases.

    Raises:
        ConfigError: a phase unfreezes what the backbone does not have.
        GraftError: training diverged.
    """
    history: list[Epoch] = []
    for number, phase in enumerate(phases):
        division = divide(network, phase)
        before = fingerprint(division.unchanging)
        console.say(f"phase {number + 1}/{len(phases)}: {_summary(phase, division, network)}")
        started = time.perf_counter()
        with closing(Feed(pictures, division, number, phase.epochs, console)) as feed:
            feed.prepare()
            prepared = time.perf_counter() - started
            for record in _train(division, phase, pictures, feed, console):
                history.append(replace(record, phase=number + 1, epoch=len(history) + 1))
                on_epoch(history[-1])
        epochs = [epoch for epoch in history if epoch.phase == number + 1]
        console.say(f"  phase {number + 1}: {_account(prepared, epochs, feed.account())}")
        changed = [name for name, digest in fingerprint(division.unchanging).items() if before[name] != digest]
        if changed:
            raise AssertionError(f"frozen weights changed in phase {number + 1}: {', '.join(changed)}")
    return history


def predict(model: keras.Model, split: Split, batch_size: int) -> np.ndarray:
    """A model's output, in inference mode, for each picture of a split in order: float32 [N, C] for logits."""
    forward = _compiled(model)
    batches = split.stream(np.arange(len(split)), batch_size)
    return np.concatenate([forward(tf.cast(images, tf.float32)).numpy() for _, images in batches])


def fingerprint(variables: list[keras.Variable]) -> dict[str, str]:
    """SHA-256 of each variable's bytes, by place and path."""
    return {
        f"{place}:{variable.path}": hashlib.sha256(np.ascontiguousarray(variable.numpy()).tobytes()).hexdigest()
        for place, variable in enumerate(variables)
    }


def strategy() -> tf.distribute.Strategy:
    """All of this machine's GPUs in step where there are several; else the one device there is."""
    if len(tf.config.list_physical_devices("GPU")) > 1:
        return tf.distribute.MirroredStrategy()
    return tf.distribute.get_strategy()


def _train(division: Division, phase: Phase, pictures: Pictures, feed: Feed, console: Console) -> Iterator[Epoch]:
    """Trains one phase, yielding a record after each epoch, numbered within the phase."""
    train, validation, data = pictures.train, pictures.validation, pictures.data
    trained = division.trained
    variables = trained.trainable_variables
    optimizer = optimizers.optimizer(
        phase,
        steps_per_epoch=-(-len(train.labels) // data.batch_size),
        scales=division.learning_rate_scales,
        names=[variable.name for variable in variables],
    )
    optimizer.build(variables)
    # Keras's callbacks reach the optimizer, the weights and the stop flag through a compiled model.
    trained.compile(optimizer=optimizer)
    trained.stop_training = False
    callbacks = keras.callbacks.CallbackList(_callbacks(phase), model=trained, epochs=phase.epochs)
    classes = pictures.classes
    weights = class_weights(train.labels, classes) if data.class_weights == "balanced" else np.ones(classes, np.float32)
    step = _compiled_step(division, optimizer, phase, weights)
    forward = _compiled(trained)

    callbacks.on_train_begin()
    for epoch in range(phase.epochs):
        with console.bar(f"  epoch {epoch + 1}/{phase.epochs}", len(train.labels)) as advance:
            started = time.perf_counter()
            callbacks.on_epoch_begin(epoch)
            learning_rate = float(optimizer.learning_rate.numpy())
            totals = np.zeros(3)
            for batch in feed.epoch(epoch):
                sums = np.array([float(total) for total in step(*batch)])
                totals += sums
                advance(int(sums[2]))
            trained_for = time.perf_counter() - started
            callbacks.on_test_begin()
            logits = np.concatenate([forward(features).numpy() for features in feed.validation()])
            callbacks.on_test_end()
            if not np.isfinite(logits).all():
                raise GraftError(
                    f"Training diverged in epoch {epoch + 1} of a phase with learning rate {phase.learning_rate:g}: "
                    "the network's outputs must be finite numbers, but some are infinite or not a number. Lower "
                    "phases.*.learning_rate, or set phases.*.clip_norm, e.g. 1.0."
                )
            probabilities = softmax(logits)
            record = Epoch(
                phase=1,
                epoch=epoch + 1,
                loss=float(totals[0] / totals[2]),
                accuracy=float(totals[1] / totals[2]),
                validation_loss=log_loss(probabilities, validation.labels),
                validation_accuracy=accuracy(probabilities, validation.labels),
                learning_rate=learning_rate,
                seconds=time.perf_counter() - started,
                images_per_second=len(train.labels) / trained_for,
            )
            advance(0, note=_figures(record))
        callbacks.on_epoch_end(epoch, {"val_loss": record.validation_loss, "val_accuracy": record.validation_accuracy})
        yield record
        if trained.stop_training:
            break
    callbacks.on_train_end()


def _compiled_step(
    division: Division,
    optimizer: keras.optimizers.Optimizer,
    phase: Phase,
    weights: np.ndarray,
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """One training step over the current strategy's devices.

    Args:
        division: what is frozen and what trains.
        optimizer: built on the trained variables.
        phase: label smoothing and clipping.
        weights: float32 [C], of each class in the loss.

    Returns:
        A function of one `feed.Batch` giving three sums over its pictures: of the loss, of right answers, of pictures.
    """
    distribution = tf.distribute.get_strategy()
    devices = distribution.num_replicas_in_sync
    trained = division.trained
    variables = trained.trainable_variables
    spread = phase.label_smoothing / len(weights)

    def on_one_device(
        features: tf.Tensor, labels: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        everywhere = tf.distribute.get_replica_context()
        pictures = everywhere.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(counts))
        with tf.GradientTape() as tape:
            logits = division.training_logits(features)
            targets = (labels * (1.0 - phase.label_smoothing) + spread) * weights
            losses = -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1) * counts
            penalty = tf.add_n(trained.losses) if trained.losses else 0.0
            loss = tf.reduce_sum(losses) / pictures + penalty / devices
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        gradients = everywhere.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
        if phase.clip_norm is not None:
            gradients, _ = tf.clip_by_global_norm(gradients, phase.clip_norm)
        # The optimizer sums over devices, once more.
        optimizer.apply([gradient / devices for gradient in gradients], variables)
        right = tf.cast(tf.argmax(labels, axis=-1) == tf.argmax(logits, axis=-1), tf.float32) * counts
        return tf.reduce_sum(losses), tf.reduce_sum(right), tf.reduce_sum(counts)

    def step(*batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        sums = distribution.run(on_one_device, args=batch)
        return tuple(distribution.reduce(tf.distribute.ReduceOp.SUM, total, axis=None) for total in sums)

    if devices > 1:
        return tf.function(step, reduce_retracing=True, autograph=False)  # type: ignore[no-any-return]
    # Traced once, for batches of any size, and called without the search for the trace that fits.
    shapes = [trained.input_shape, trained.output_shape, [None]]
    signature = [tf.TensorSpec(shape, tf.float32) for shape in shapes]
    return tf.function(step, autograph=False).get_concrete_function(*signature)  # type: ignore[no-any-return]


def _compiled(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """A model in inference mode, traced once for all batch sizes."""
    function = tf.function(lambda inputs: model(inputs, training=False), autograph=False)
    return function.get_concrete_function(tf.TensorSpec(model.input_shape, tf.float32))  # type: ignore[no-any-return]


def class_weights(labels: np.ndarray, classes: int) -> np.ndarray:
    """float32 [C]: n / (C n_c), so that every class weighs the same and the mean weight over pictures is 1."""
    counts = np.bincount(labels, minlength=classes)
    return (len(labels) / (classes * np.maximum(counts, 1))).astype(np.float32)


def _callbacks(phase: Phase) -> list[keras.callbacks.Callback]:
    callbacks: list[keras.callbacks.Callback] = []
    if phase.ema is not None:  # First, so that the others see the averaged weights at the end of an epoch.
        callbacks.append(keras.callbacks.SwapEMAWeights(swap_on_epoch=True))
    if isinstance(phase.schedule, Plateau):
        callbacks.append(
            keras.callbacks.ReduceLROnPlateau(
                monitor="val_accuracy",
                mode="max",
                factor=phase.schedule.factor,
                patience=phase.schedule.patience,
                min_delta=0.0,
            )
        )
    if phase.early_stopping is not None:
        callbacks.append(
            keras.callbacks.EarlyStopping(
                monitor="val_loss",
                mode="min",
                patience=phase.early_stopping.patience,
                min_delta=phase.early_stopping.min_delta,
                restore_best_weights=True,
            )
        )
    return callbacks


def _summary(phase: Phase, division: Division, network: Network) -> str:
    training = _count(division.trained.trainable_variables)
    frozen = _count(division.unchanging) - _count(network.normalise.variables)
    return f"{training:,} weights train, {frozen:,} are frozen; {phase.optimizer.name} at {phase.learning_rate:g}"


def _account(prepared: float, epochs: list[Epoch], store: str) -> str:
    """What a phase cost, in one line."""
    seconds = prepared + sum(epoch.seconds for epoch in epochs)
    before = f" ({prepared:.1f} s of it before the first epoch)" if prepared >= 0.1 else ""
    rate = statistics.median(epoch.images_per_second for epoch in epochs)
    return "; ".join(filter(None, [f"{seconds:.1f} s{before}", f"{rate:,.0f} images/s", store]))


def _count(variables: list[keras.Variable]) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _figures(record: Epoch) -> str:
    return (
        f"loss {record.loss:.3f}, accuracy {record.accuracy:.3f}; validation {record.validation_loss:.3f}, "
        f"{record.validation_accuracy:.3f}; {record.images_per_second:.0f} images/s"
    )
