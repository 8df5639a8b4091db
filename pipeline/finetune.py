"""Training: phase by phase, freeze, train what is left, and prove that what was frozen did not change.

Shape letters: N pictures, H height, W width, C classes.
"""

import hashlib
import json
import statistics
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from pipeline import optimizers, trunk
from pipeline.artifacts import Epoch, PhaseCost
from pipeline.backbones.weights import digest
from pipeline.checkpoint import Checkpoints, Progress
from pipeline.config import Phase, Plateau
from pipeline.console import Console
from pipeline.errors import TrainingError
from pipeline.feed import Feed, Pictures
from pipeline.metrics import accuracy, log_loss, softmax
from pipeline.model import Division, Network, divide
from pipeline.splits import Split


def finetune(
    network: Network,
    phases: list[Phase],
    pictures: Pictures,
    checkpoints: Checkpoints | None,
    console: Console,
    on_epoch: Callable[[Epoch], None],
    on_phase: Callable[[PhaseCost], None] | None = None,
    only: int | None = None,
    on_logits: Callable[[np.ndarray], None] | None = None,
) -> list[Epoch]:
    """Trains a network in place.

    Where there is a checkpoint, training continues from it, and ends in the same weights as if it had never been
    interrupted, bit for bit. A checkpoint that is damaged, or of another training, is passed over with a warning.

    Args:
        network: as it is before any training: from `model.build`, in the scope of the current `tf.distribute` strategy.
        phases: what to train, for how long, and how.
        pictures: to learn from and to validate on, and how they are read.
        checkpoints: where the checkpoint is kept. It is replaced when a phase begins, after every so many steps, and
            when training is complete. None: nowhere.
        console: gets a bar per epoch.
        on_epoch: called with each epoch's record when it is complete. An epoch that ended after the checkpoint is
            trained again, and its record comes again.
        on_phase: called with what a phase took when it is complete.
        only: train this phase alone, counted from 0, on what the phases before it have left. None: all of them.
        on_logits: called before `on_epoch` with what the network says of the validation pictures, float32 [N, C].

    Returns:
        The records of all epochs, numbered from 1 across phases, those before an interruption included.

    Raises:
        ConfigError: a phase unfreezes what the backbone does not have.
        TrainingError: training diverged.
        OSError: the checkpoint cannot be written, or is there and cannot be read.
    """
    key = "" if checkpoints is None else _decisive(network, phases, pictures)
    found = None if checkpoints is None else checkpoints.read(key, console.warn)
    progress, arrays = found or (Progress(key), {})
    variables = network.model.variables
    # What has never trained is as it was, which the key says, and is not in the checkpoint.
    changed = {int(place) for group, place in (name.split("/") for name in arrays) if group == "network"}
    for number in range(progress.phase, len(phases)) if only is None else [only]:
        phase = phases[number]
        division = divide(network, phase)
        unchanging = {id(variable) for variable in division.unchanging}
        changed |= {place for place, variable in enumerate(variables) if id(variable) not in unchanging}
        optimizer = optimizer_of(division, phase, pictures)
        state = _State({place: variables[place] for place in sorted(changed)}, optimizer)
        if resumed := bool(arrays):
            state.restore(arrays)
            arrays = {}
            console.say(f"training continues after step {progress.steps:,}")
            if progress.finished:
                return progress.history
        else:
            before = fingerprint(division.unchanging)
            progress = Progress(key, number, steps=progress.steps, history=progress.history, frozen=before)
        console.say(f"phase {number + 1}/{len(phases)}: {_summary(phase, division, network)}")
        started = time.perf_counter()
        with closing(Feed(pictures, division, number, phase.epochs, console, progress.engine)) as feed:
            feed.prepare()
            prepared = time.perf_counter() - started
            if checkpoints is not None and not resumed:
                progress.engine = feed.engine
                checkpoints.write(progress, state.arrays())
            _train(division, phase, pictures, feed, state, progress, checkpoints, console, on_epoch, on_logits)
        epochs = [epoch for epoch in progress.history if epoch.phase == number + 1]
        trained, frozen = _weights(division, network)
        uses, spared, spared_seconds = feed.activations
        cost = PhaseCost(
            phase=number + 1,
            trained=trained,
            frozen=frozen,
            seconds=prepared + sum(epoch.seconds for epoch in epochs),
            prepared=prepared,
            images_per_second=statistics.median(epoch.images_per_second for epoch in epochs),
            activations=uses,
            spared=spared,
            spared_seconds=spared_seconds,
        )
        console.say(f"  phase {number + 1}: {_account(cost)}")
        if on_phase is not None:
            on_phase(cost)
        after = fingerprint(division.unchanging)
        if moved := [name for name, value in progress.frozen.items() if after[name] != value]:
            raise AssertionError(f"frozen weights changed in phase {number + 1}: {', '.join(moved)}")
    if checkpoints is not None:
        progress.finished = True
        checkpoints.write(progress, _State({place: variables[place] for place in sorted(changed)}).arrays())
    return progress.history


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


def stalled(losses: list[float], min_delta: float) -> int:
    """Epochs since the loss was last lower, by more than `min_delta`, than ever before.

    It and `plateau` compare as Keras's EarlyStopping and ReduceLROnPlateau do, in float32.
    """
    best = 0
    for epoch, loss in enumerate(losses):
        if np.float32(loss + min_delta) < np.float32(losses[best]):
            best = epoch
    return len(losses) - 1 - best


def plateau(accuracies: list[float], patience: int) -> bool:
    """Whether the learning rate falls after the last of these epochs: so many in a row, since the accuracy was last
    higher than ever before or the learning rate fell, brought nothing better."""
    best, waited = accuracies[0], 0
    for value in accuracies[1:]:
        if np.float32(value) > np.float32(best):
            best, waited = value, 0
        else:
            waited = waited % patience + 1
    return waited == patience


@dataclass
class _State:
    """What training has changed and goes on from.

    Attributes:
        network: variables that train, or did in an earlier phase, by their places in the network.
        optimizer: of the phase in progress.
        best: weights of the trained part after the best epoch so far; empty without early stopping.
    """

    network: dict[int, keras.Variable]
    optimizer: keras.optimizers.Optimizer | None = None
    best: list[np.ndarray] = field(default_factory=list)

    def arrays(self) -> dict[str, np.ndarray]:
        values = {name: variable.numpy() for name, variable in self._variables().items()}
        return values | {f"best/{place}": value for place, value in enumerate(self.best)}

    def restore(self, arrays: dict[str, np.ndarray]) -> None:
        variables = self._variables()
        for name, value in arrays.items():
            if name in variables:
                variables[name].assign(value)
            else:
                self.best.append(value)

    def _variables(self) -> dict[str, keras.Variable]:
        named = {f"network/{place}": variable for place, variable in self.network.items()}
        optimizer = [] if self.optimizer is None else self.optimizer.variables
        return named | {f"optimizer/{place}": variable for place, variable in enumerate(optimizer)}


def _decisive(network: Network, phases: list[Phase], pictures: Pictures) -> str:
    """SHA-256, in hex, of all that the outcome of training follows from."""
    splits = [pictures.train, pictures.validation]
    decisive = {
        "network": [digest(network.model), network.head.to_json()],
        "phases": [phase.model_dump(mode="json", by_alias=True) for phase in phases],
        "pictures": [list(zip(split.digests, split.labels.tolist(), strict=True)) for split in splits],
        "data": pictures.data.model_dump(mode="json", exclude={"path", "data_dir"}),
        "rounding": None if pictures.cache.use == "off" else pictures.cache.dtype,
        "settings": pictures.settings,
        "seed": pictures.seed,
        "engines": trunk.engines(),
        "devices": tf.distribute.get_strategy().num_replicas_in_sync,
    }
    return hashlib.sha256(json.dumps(decisive, sort_keys=True).encode()).hexdigest()


def optimizer_of(division: Division, phase: Phase, pictures: Pictures) -> keras.optimizers.Optimizer:
    """A phase's optimizer, built on what trains."""
    variables = division.trained.trainable_variables
    optimizer = optimizers.optimizer(
        phase,
        steps_per_epoch=-(-len(pictures.train.labels) // pictures.data.batch_size),
        scales=division.learning_rate_scales,
        names=[variable.name for variable in variables],
    )
    optimizer.build(variables)
    return optimizer


def _train(
    division: Division,
    phase: Phase,
    pictures: Pictures,
    feed: Feed,
    state: _State,
    progress: Progress,
    checkpoints: Checkpoints | None,
    console: Console,
    on_epoch: Callable[[Epoch], None],
    on_logits: Callable[[np.ndarray], None] | None,
) -> None:
    """Trains one phase, from where it is to its end."""
    train, validation, optimizer = pictures.train, pictures.validation, state.optimizer
    assert optimizer is not None
    trained = division.trained
    variables = trained.trainable_variables
    step = compiled_step(division, optimizer, phase, pictures)
    forward = _compiled(trained)

    left = (phase.epochs - progress.epoch) * len(train.labels)
    with console.bar(f"  epoch {progress.epoch + 1}/{phase.epochs}", left, keep=False) as advance:
        for epoch in range(progress.epoch, phase.epochs):
            label = f"{epoch + 1}/{phase.epochs}"
            started = time.perf_counter() - progress.seconds
            if progress.batch == 0:
                progress.learning_rate = float(optimizer.learning_rate.numpy())
            advance(int(progress.totals[2]), label=f"  epoch {label}")
            for batch in feed.epoch(epoch, progress.batch):
                loss, right, count = (float(total) for total in step(*batch))
                progress.totals = (progress.totals[0] + loss, progress.totals[1] + right, progress.totals[2] + count)
                progress.batch += 1
                progress.steps += 1
                progress.seconds = time.perf_counter() - started
                loss, right, seen = progress.totals
                advance(int(count), f"loss {loss / seen:.2f}, accuracy {right / seen:.2f}")
                if checkpoints is not None and progress.steps % checkpoints.every == 0:
                    checkpoints.write(progress, state.arrays())
            trained_for = time.perf_counter() - started
            last = [variable.numpy() for variable in variables] if phase.ema is not None else []
            optimizer.finalize_variable_values(variables)  # With phase.ema, their averages take their places.
            logits = np.concatenate([forward(features).numpy() for features in feed.validation()])
            if not np.isfinite(logits).all():
                raise TrainingError(
                    f"Training diverged in epoch {epoch + 1} of a phase with learning rate {phase.learning_rate:g}: "
                    "the network's outputs must be finite numbers, but some are infinite or not a number. Lower "
                    "phases.*.learning_rate, or set phases.*.clip_norm, e.g. 1.0."
                )
            probabilities = softmax(logits)
            loss, right, count = progress.totals
            record = Epoch(
                phase=progress.phase + 1,
                epoch=len(progress.history) + 1,
                loss=loss / count,
                accuracy=right / count,
                validation_loss=log_loss(probabilities, validation.labels),
                validation_accuracy=accuracy(probabilities, validation.labels),
                learning_rate=progress.learning_rate,
                seconds=time.perf_counter() - started,
                images_per_second=len(train.labels) / trained_for,
            )
            progress.history.append(record)
            progress.epoch, progress.batch, progress.totals, progress.seconds = epoch + 1, 0, (0.0, 0.0, 0.0), 0.0
            records = [record for record in progress.history if record.phase == progress.phase + 1]
            if isinstance(phase.schedule, Plateau) and plateau(
                [record.validation_accuracy for record in records], phase.schedule.patience
            ):
                optimizer.learning_rate = float(optimizer.learning_rate.numpy()) * phase.schedule.factor
            min_delta = 0.0 if phase.early_stopping is None else phase.early_stopping.min_delta
            waited = stalled([record.validation_loss for record in records], min_delta)
            if phase.early_stopping is not None and waited == 0:
                state.best = trained.get_weights()
            console.row(_cells(record, label, best=waited == 0), f"  epoch {label}: {_figures(record)}")
            if on_logits is not None:
                on_logits(logits)
            on_epoch(record)
            if phase.early_stopping is not None and waited >= phase.early_stopping.patience:
                break
            if phase.ema is not None and epoch + 1 < phase.epochs:
                for variable, value in zip(variables, last, strict=True):
                    variable.assign(value)
    if state.best:
        trained.set_weights(state.best)


def compiled_step(
    division: Division,
    optimizer: keras.optimizers.Optimizer,
    phase: Phase,
    pictures: Pictures,
) -> Callable[..., tuple[tf.Tensor, tf.Tensor, tf.Tensor]]:
    """One training step over the current strategy's devices.

    Args:
        division: what is frozen and what trains.
        optimizer: built on the trained variables.
        phase: label smoothing and clipping.
        pictures: whose classes may weigh differently in the loss.

    Returns:
        A function of one `feed.Batch` giving three sums over its pictures: of the loss, of right answers, of pictures.
    """
    distribution = tf.distribute.get_strategy()
    devices = distribution.num_replicas_in_sync
    trained = division.trained
    variables = trained.trainable_variables
    classes = pictures.classes
    balanced = pictures.data.class_weights == "balanced"
    weights = class_weights(pictures.train.labels, classes) if balanced else np.ones(classes, np.float32)
    spread = phase.label_smoothing / classes

    def over_devices(values: Any) -> Any:
        if devices == 1:  # As in `optimizers`.
            return values
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, values)

    def on_one_device(
        features: tf.Tensor, labels: tf.Tensor, counts: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        total = over_devices(tf.reduce_sum(counts))
        with tf.GradientTape() as tape:
            logits = division.training_logits(features)
            targets = (labels * (1.0 - phase.label_smoothing) + spread) * weights
            losses = -tf.reduce_sum(targets * tf.nn.log_softmax(logits), axis=-1) * counts
            penalty = tf.add_n(trained.losses) if trained.losses else 0.0
            loss = tf.reduce_sum(losses) / total + penalty / devices
        gradients = tape.gradient(loss, variables, unconnected_gradients="zero")
        gradients = over_devices(gradients)
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


def _summary(phase: Phase, division: Division, network: Network) -> str:
    training, frozen = _weights(division, network)
    return f"{training:,} weights train, {frozen:,} are frozen; {phase.optimizer.name} at {phase.learning_rate:g}"


def _weights(division: Division, network: Network) -> tuple[int, int]:
    """How many train, and how many are frozen."""
    frozen = _count(division.unchanging) - _count(network.normalise.variables)
    return _count(division.trained.trainable_variables), frozen


def _account(cost: PhaseCost) -> str:
    """What a phase took, in one line."""
    before = f" ({cost.prepared:.1f} s of it before the first epoch)" if cost.prepared >= 0.1 else ""
    parts = [f"{cost.seconds:.1f} s{before}", f"{cost.images_per_second:,.0f} images/s"]
    if cost.spared:
        parts.append(
            f"{cost.from_store:.0%} of {cost.activations:,} activations from the store, which saved computing for "
            f"{cost.spared_seconds:.1f} s"
        )
    elif cost.activations:
        parts.append(f"{cost.activations:,} activations, each computed when it was used")
    return "; ".join(parts)


def _count(variables: list[keras.Variable]) -> int:
    return sum(int(np.prod(variable.shape)) for variable in variables)


def _figures(record: Epoch) -> str:
    return (
        f"loss {record.loss:.3f}, accuracy {record.accuracy:.3f}; validation {record.validation_loss:.3f}, "
        f"{record.validation_accuracy:.3f}; {record.images_per_second:.0f} images/s"
    )


def _cells(record: Epoch, label: str, best: bool) -> dict[str, str]:
    """An epoch's figures by their headings; `best`: its validation loss is the lowest of its phase so far."""
    return {
        "epoch": label,
        "loss": f"{record.loss:.3f}",
        "accuracy": f"{record.accuracy:.3f}",
        "validation\nloss": f"{record.validation_loss:.3f}",
        "validation\naccuracy": f"{record.validation_accuracy:.3f}",
        "best": "*" if best else "",
        "images/s": f"{record.images_per_second:,.0f}",
    }
