"""Training: phase by phase, freeze, train what is left, and prove that what was frozen did not change.

Shape letters: N pictures, H height, W width, C classes.
"""

import hashlib
import time
from collections.abc import Callable, Iterator
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from pipeline import augment, optimizers
from pipeline.artifacts import Epoch
from pipeline.config import Data, Phase, Plateau
from pipeline.console import Console
from pipeline.errors import GraftError
from pipeline.metrics import accuracy, log_loss, softmax
from pipeline.model import Division, Network, divide
from pipeline.splits import Split


def finetune(
    network: Network,
    phases: list[Phase],
    data: Data,
    train: Split,
    validation: Split,
    seed: int,
    console: Console,
    on_epoch: Callable[[Epoch], None],
) -> list[Epoch]:
    """Trains a network in place.

    Args:
        network: from `model.build`, built in the scope of the current `tf.distribute` strategy.
        phases: what to train, for how long, and how.
        data: augmentation, class weights and batch size.
        train: N pictures to learn from.
        validation: pictures for schedules, early stopping and the curves.
        seed: decides order and augmentation.
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
        for record in _train(division, phase, data, train, validation, (seed, number), console):
            history.append(replace(record, phase=number + 1, epoch=len(history) + 1))
            on_epoch(history[-1])
        changed = [name for name, digest in fingerprint(division.unchanging).items() if before[name] != digest]
        if changed:
            raise AssertionError(f"frozen weights changed in phase {number + 1}: {', '.join(changed)}")
    return history


def predict(model: keras.Model, split: Split, batch_size: int) -> np.ndarray:
    """A model's output, in inference mode, for each picture of a split in order: float32 [N, C] for logits."""
    return _outputs(_compiled(model), split, batch_size)


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


def _train(
    division: Division,
    phase: Phase,
    data: Data,
    train: Split,
    validation: Split,
    seed: tuple[int, int],
    console: Console,
) -> Iterator[Epoch]:
    """Trains one phase, yielding a record after each epoch, numbered within the phase."""
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
    classes = trained.output_shape[-1]
    weights = class_weights(train.labels, classes) if data.class_weights == "balanced" else np.ones(classes, np.float32)
    step = _compiled_step(division, optimizer, phase, weights, augment.mixture(data.augment))
    draw = _epoch_of_batches(train, data, classes)
    forward = _compiled(keras.Model(division.frozen.input, trained(division.frozen.output)))

    callbacks.on_train_begin()
    for epoch in range(phase.epochs):
        with console.bar(f"  epoch {epoch + 1}/{phase.epochs}", len(train.labels)) as advance:
            started = time.perf_counter()
            callbacks.on_epoch_begin(epoch)
            learning_rate = float(optimizer.learning_rate.numpy())
            totals = np.zeros(3)
            for batch in draw(np.random.default_rng([*seed, epoch])):
                sums = np.array([float(total) for total in step(*batch)])
                totals += sums
                advance(int(sums[2]))
            trained_for = time.perf_counter() - started
            callbacks.on_test_begin()
            logits = _outputs(forward, validation, data.batch_size)
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
    mix: Callable[..., tuple[tf.Tensor, tf.Tensor]] | None,
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """One training step over the current strategy's devices.

    Args:
        division: what is frozen and what trains.
        optimizer: built on the trained variables.
        phase: label smoothing and clipping.
        weights: float32 [C], of each class in the loss.
        mix: mixup or CutMix.

    Returns:
        A function of one batch, as `_epoch_of_batches` draws it, giving three sums over its pictures: of the loss, of
        right answers, of pictures.
    """
    distribution = tf.distribute.get_strategy()
    devices = distribution.num_replicas_in_sync
    frozen, trained = division.frozen, division.trained
    variables = trained.trainable_variables
    spread = phase.label_smoothing / len(weights)

    def on_one_device(
        images: tf.Tensor, labels: tf.Tensor, counts: tf.Tensor, seeds: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        if mix is not None:
            images, labels = mix(images, labels, seeds[0])
        everywhere = tf.distribute.get_replica_context()
        pictures = everywhere.all_reduce(tf.distribute.ReduceOp.SUM, tf.reduce_sum(counts))
        # Outside the tape: nothing below the cut needs a gradient.
        features = frozen(images, training=False)
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

    @tf.function(reduce_retracing=True)
    def step(*batch: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        sums = distribution.run(on_one_device, args=batch)
        return tuple(distribution.reduce(tf.distribute.ReduceOp.SUM, total, axis=None) for total in sums)

    return step  # type: ignore[no-any-return]


def _compiled(model: keras.Model) -> Callable[[tf.Tensor], tf.Tensor]:
    """A model in inference mode, float32 [N, H, W, 3] to its output, traced once for all N."""
    signature = [tf.TensorSpec(model.input_shape, tf.float32)]
    return tf.function(lambda images: model(images, training=False), input_signature=signature)  # type: ignore[no-any-return]


def _outputs(forward: Callable[[tf.Tensor], tf.Tensor], split: Split, batch_size: int) -> np.ndarray:
    batches = _read(split, np.arange(len(split.labels)), batch_size)
    return np.concatenate([forward(tf.cast(images, tf.float32)).numpy() for (images,) in batches])


def _epoch_of_batches(train: Split, data: Data, classes: int) -> Callable[[np.random.Generator], tf.data.Dataset]:
    """Draws epochs of training batches, in an order that follows from the random generator alone.

    How a picture is changed follows from its content and from one number drawn for the epoch, not from its place in
    the order.

    Returns:
        A function from a generator to a distributed dataset of (images float32 [N, H, W, 3] in 0..255, labels float32
        [N, C] one-hot, counts float32 [N], seeds int32 [N, 2]). A count is 1, or 0 for a picture that only fills the
        last batch up to one for each device.
    """
    change = augment.augmentation(data.augment)
    strategy = tf.distribute.get_strategy()
    contents = np.array([int(digest[:8], 16) & 0x7FFFFFFF for digest in train.digests], np.int32)

    def finish(images: tf.Tensor, labels: tf.Tensor, counts: tf.Tensor, seeds: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images = tf.cast(images, tf.float32)
        if change is not None:
            images = change(images, seeds)
        return images, tf.one_hot(labels, classes), counts, seeds

    def draw(random: np.random.Generator) -> tf.data.Dataset:
        order = random.permutation(len(train.labels))
        filled = np.resize(order, len(order) + -len(order) % strategy.num_replicas_in_sync)
        counts = (np.arange(len(filled)) < len(order)).astype(np.float32)
        view = np.full(len(filled), random.integers(np.iinfo(np.int32).max), np.int32)
        seeds = np.stack([contents[filled], view], axis=1)
        batches = _read(train, filled, data.batch_size, train.labels[filled], counts, seeds)
        batches = batches.map(finish, tf.data.AUTOTUNE, deterministic=True)
        return strategy.experimental_distribute_dataset(batches.prefetch(2))

    return draw


def _read(split: Split, rows: np.ndarray, batch_size: int, *more: np.ndarray) -> tf.data.Dataset:
    """Batches of (images uint8 [N, H, W, 3], more...) read from the pixel store in parallel."""

    def read(rows: tf.Tensor, *rest: tf.Tensor) -> tuple[tf.Tensor, ...]:
        images = tf.numpy_function(split.images, [rows], tf.uint8)
        images.set_shape([None, *split.image_shape])
        return images, *rest

    batches = tf.data.Dataset.from_tensor_slices((rows.astype(np.int64), *more)).batch(batch_size)
    return batches.map(read, tf.data.AUTOTUNE, deterministic=True)


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


def _count(variables: list[keras.Variable]) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _figures(record: Epoch) -> str:
    return (
        f"loss {record.loss:.3f}, accuracy {record.accuracy:.3f}; validation {record.validation_loss:.3f}, "
        f"{record.validation_accuracy:.3f}; {record.images_per_second:.0f} images/s"
    )
