"""Trainings one after another on the same pictures: what the next one can use of the last is kept.

A training here ends in the same weights as `run` with the same config, bit for bit, whatever was trained before it. The
test split is not looked at.
"""

import json
import random
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from pipeline import finetune, model
from pipeline.artifacts import Epoch
from pipeline.backbones import BACKBONES, weights
from pipeline.config import Phase, RunConfig
from pipeline.console import Console
from pipeline.errors import ConfigError, TrainingError
from pipeline.feed import Pictures
from pipeline.metrics import fit_temperature, log_loss, softmax
from pipeline.model import Network
from pipeline.prepared import Prepared, prepared
from pipeline.seeding import reproducible

# Trainings of a backbone's own layers: each leaves the graph of these a little larger.
_FRESH = 20
_MOST_DRAWN = 10_000  # Seeds for a backbone: a few for each layer.

# What of `data` only training looks at, with the pictures already read and split.
_OF_TRAINING = {"augment", "views", "class_weights", "batch_size"}


@dataclass(frozen=True)
class Score:
    """What an epoch's weights make of the validation split.

    Attributes:
        epoch: counted from 1 across phases.
        loss: log loss in nats, with the temperature that fits these pictures best.
        accuracy: top-1, 0 to 1.
    """

    epoch: int
    loss: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class _Start:
    """A backbone as it is before any training, and the random numbers when it had been built.

    Attributes:
        seed: it was built with.
        backbone: the network.
        values: of its variables.
        numbers: the states of Python's and NumPy's random numbers.
        drawn: how many seeds Keras had drawn, where `values` are a file's: another seed's training starts from the same
            backbone, after as many draws. None where they follow from the seed.
        networks: on this backbone, by pooling; others share their layers below the head.
    """

    seed: int
    backbone: keras.Model
    values: list[np.ndarray]
    numbers: tuple[Any, Any]
    drawn: int | None
    networks: dict[str, Network] = field(default_factory=dict)

    @classmethod
    def of(cls, config: RunConfig, backbone: keras.Model) -> Self:
        """To be called when it has just been built. The random numbers are others afterwards."""
        values = [variable.numpy().copy() for variable in backbone.variables]
        numbers = random.getstate(), np.random.get_state()
        # Variables that are no weights are the states of seed generators.
        from_file = config.backbone.weights != "none" and len(backbone.variables) == len(backbone.weights)
        return cls(config.seed, backbone, values, numbers, _drawn(config.seed, numbers) if from_file else None)

    def again(self, seed: int) -> keras.Model:
        """Puts it all back, as it would be with this seed: the same one, or any where `drawn` is known."""
        keras.utils.clear_session(free_memory=False)
        keras.utils.set_random_seed(seed)
        for variable, value in zip(self.backbone.variables, self.values, strict=True):
            variable.assign(value)
        if seed == self.seed:
            numbers, numpys = self.numbers
            random.setstate(numbers)
            np.random.set_state(numpys)
        else:
            assert self.drawn is not None
            for _ in range(self.drawn):
                _draw()
        return self.backbone


def _draw() -> None:
    """As Keras draws a seed for each initializer and each dropout layer that is given none."""
    random.randint(1, 1_000_000_000)


def _drawn(seed: int, numbers: tuple[Any, Any]) -> int | None:
    """After how many draws from a seed's beginning the states are these; None where that is never."""
    python, (_, *numpys) = numbers
    keras.utils.set_random_seed(seed)
    _, *fresh = np.random.get_state()
    if not all(np.array_equal(now, then) for now, then in zip(fresh, numpys, strict=True)):
        return None
    for count in range(_MOST_DRAWN):
        if random.getstate() == python:
            return count
        _draw()
    return None


class Trainer:
    """Trains configs. Pictures are read again only where `data` has changed so that they differ, the backbone is built
    again only where it or the seed has changed, and activations come from the store that runs use.

    All of them must be validated on the same pictures: figures on other pictures cannot be compared.
    """

    def __init__(self, console: Console) -> None:
        """The console hears what reading the pictures has to say."""
        self._console = console
        self._open = ExitStack()
        self._prepared: Prepared | None = None
        self._start: _Start | None = None
        self._uses = 0
        self._validated_on: tuple[Any, ...] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()

    @property
    def sizes(self) -> dict[str, int]:
        """Pictures in each split of the config that was trained last."""
        assert self._prepared is not None
        return {split.name: len(split) for split in self._prepared.splits.all}

    @property
    def data_digest(self) -> str:
        """`Splits.digest` of the same."""
        assert self._prepared is not None
        return self._prepared.splits.digest

    def look(self, config: RunConfig) -> str:
        """Reads a config's pictures, as its training would. Returns `data_digest`. Raises GraftError."""
        self._ready(config)
        return self.data_digest

    def train(self, config: RunConfig, console: Console, on_epoch: Callable[[Epoch, Score], None]) -> Score:
        """Trains one config from its start, and forgets its weights.

        Args:
            config: what to train. Nothing is exported, and `tracking` is not looked at.
            console: hears how the training goes.
            on_epoch: called after each epoch; what it raises ends the training.

        Returns:
            The score of the weights that a run of this config would keep.

        Raises:
            ConfigError: the config cannot be trained, or its pictures to validate on are not those of the trainings
                before.
            TrainingError: the training diverged, or memory was short.
            GraftError: otherwise as `run`, before it evaluates; that lies with the machine or the data.
        """
        try:
            return self._train(config, console, on_epoch)
        except tf.errors.ResourceExhaustedError as error:
            self._start = None  # Whatever it left in memory goes with it.
            raise TrainingError(
                "There is not enough memory for this training. Lower data.batch_size or data.image_size, train fewer "
                f"blocks, or choose a smaller backbone. TensorFlow says: {str(error.message).splitlines()[0]}"
            ) from error

    def _train(self, config: RunConfig, console: Console, on_epoch: Callable[[Epoch, Score], None]) -> Score:
        ready = self._ready(config)
        start = self._started(config, ready)
        backbone, classes = start.again(config.seed), len(ready.splits.classes)
        pooling = config.head.pooling
        if pooling in start.networks:
            network = model.with_head(start.networks[pooling], config.head, classes)
        else:
            network = model.build(backbone, BACKBONES[config.backbone.name], ready.mean, config.head, classes)
            start.networks[pooling] = network
        pictures = Pictures.of(config, ready.splits, ready.spec, ready.store)
        losses: list[float] = []
        scores: list[Score] = []

        def on_logits(logits: np.ndarray) -> None:
            labels = pictures.validation.labels
            losses.append(log_loss(softmax(logits, fit_temperature(logits, labels)), labels))

        def scored(epoch: Epoch) -> None:
            scores.append(Score(epoch.epoch, losses[-1], epoch.validation_accuracy))
            on_epoch(epoch, scores[-1])

        history = finetune.finetune(network, config.phases, pictures, None, console, scored, on_logits=on_logits)
        return scores[kept(history, config.phases).epoch - 1]

    def _ready(self, config: RunConfig) -> Prepared:
        """The config's pictures, and a backbone."""
        if self._prepared is not None and preparation(self._prepared.config) == preparation(config):
            return self._prepared
        self._prepared = self._start = None
        self._open.close()
        self._prepared = ready = self._open.enter_context(prepared(config, self._console))
        self._start = _Start.of(config, ready.backbone)
        validation = ready.splits.validation
        key = (ready.splits.classes, validation.digests, tuple(validation.labels.tolist()))
        if self._validated_on not in (None, key):
            self._prepared = self._start = None
            self._open.close()
            raise ConfigError(
                "It would be validated on other pictures than the base, and the figures could not be compared. Vary "
                "no key that decides which pictures there are, or to which split they belong."
            )
        self._validated_on = key
        return ready

    def _started(self, config: RunConfig, ready: Prepared) -> _Start:
        start = self._start
        if start is None or self._uses >= _FRESH or (start.seed != config.seed and start.drawn is None):
            self._start, self._uses = None, 0
            reproducible(config.seed)
            backbone = weights.load(config.backbone, config.image_size, Path(config.output_dir))
            self._start = start = _Start.of(config, backbone)
        self._uses += any(phase.unfreeze != "head" for phase in config.phases)
        model.check_phases(start.backbone, BACKBONES[config.backbone.name], config.phases)
        return start


def preparation(config: RunConfig) -> str:
    """Names all that comes before a training but for the seed: configs of the same name share it."""
    data = config.data.model_dump(mode="json", exclude=_OF_TRAINING)
    others = [part.model_dump(mode="json") for part in (config.backbone, config.cache)]
    return json.dumps([data, config.image_size, *others], sort_keys=True)


def kept(history: Sequence[Epoch], phases: Sequence[Phase]) -> Epoch:
    """The epoch whose weights training ends with: the last one or, with early stopping, the last phase's best."""
    stopping = phases[-1].early_stopping
    if stopping is None:
        return history[-1]
    records = [epoch for epoch in history if epoch.phase == len(phases)]
    losses = [epoch.validation_loss for epoch in records]
    return records[-1 - finetune.stalled(losses, stopping.min_delta)]
