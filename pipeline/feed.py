"""What training reads: batches of what the frozen layers make of pictures, from the store or computed on the fly.

Shape letters: N pictures of a split, n of a batch, H height, W width, C classes.
"""

import hashlib
from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf

from pipeline import augment, backbones
from pipeline.activations import Store
from pipeline.config import Cache, Data, RunConfig
from pipeline.console import Console
from pipeline.decoded import pixel_settings
from pipeline.frozen import PLAIN, Frozen, Views
from pipeline.model import Division
from pipeline.parallel import WORKERS, in_order
from pipeline.pixels import PixelSpec
from pipeline.splits import Split, Splits
from pipeline.trunk import to_devices

Batch = tuple[Any, Any, Any]
"""Features float32 [n, ...], labels float32 [n, C], one-hot or mixed, and counts float32 [n]: 1, or 0 for a picture
that only fills a batch up to one for each device. Tensors, or one of each for each device of the strategy."""

_AHEAD = max(2, min(WORKERS, 4))  # Batches that are being read while one is trained on.


@dataclass(frozen=True)
class Pictures:
    """What a run trains on, and how the frozen layers' activations are kept.

    Attributes:
        train: what to learn from.
        validation: for schedules, early stopping and the curves.
        classes: C.
        data: augmentation, views and batch size.
        cache: whether and how activations are kept.
        store: where; None where they are not.
        settings: what decides an activation besides the frozen layers, the picture and its view.
        seed: decides the order, the views and their augmentation.
    """

    train: Split
    validation: Split
    classes: int
    data: Data
    cache: Cache
    store: Store | None
    settings: dict[str, Any]
    seed: int

    @classmethod
    def of(cls, config: RunConfig, splits: Splits, spec: PixelSpec, store: Store | None) -> Self:
        """Takes them from a run's config and splits."""
        settings = {
            "backbone": config.backbone.name,
            "options": config.backbone.options,
            "mean": config.data.mean_subtraction,
            "pixels": pixel_settings(spec),
            # What layers, and augmentation, compute with the same weights and seeds.
            "versions": {"keras": keras.__version__, "tensorflow": tf.__version__, "graft": backbones.VERSION},
        }
        return cls(
            splits.train,
            splits.validation,
            len(splits.classes),
            config.data,
            config.cache,
            store,
            settings,
            config.seed,
        )


class Feed:
    """The batches of one phase, read ahead by threads of its own until it is closed."""

    def __init__(
        self,
        pictures: Pictures,
        division: Division,
        phase: int,
        epochs: int,
        console: Console,
        engine: str | None = None,
    ) -> None:
        """
        Args:
            pictures: what to read.
            division: of the network, for the phase.
            phase: its number; with the seed, it decides every draw.
            epochs: how many there are at most.
            console: hears what was decided, and why.
            engine: as `engine` was, where the phase began in another process.
        """
        self._pictures, self._phase, self._epochs, self._console = pictures, phase, epochs, console
        self._pool = ThreadPoolExecutor(WORKERS)
        self._strategy = tf.distribute.get_strategy()
        shape = pictures.train.image_shape
        self._views = Views(pictures.data.augment, shape)
        self._seeds = seeds_of_views(pictures.seed, pictures.data.views or 1)
        self._mix = augment.mixture(pictures.data.augment, shape, pictures.classes)
        self._frozen: Frozen | None = None
        self._kept: set[str] = set()
        if division.cut is not None:
            dtype = None if pictures.cache.use == "off" else pictures.cache.dtype
            self._frozen = Frozen(
                division, self._views, dtype, pictures.settings, pictures.store, pictures.train, console, engine
            )

    @property
    def engine(self) -> str | None:
        """What computes the frozen layers; None where there are none. It is chosen in `prepare`, or now."""
        return None if self._frozen is None else self._frozen.engine

    def prepare(self) -> None:
        """Decides which activations are read from the store, and computes what is missing there."""
        pictures, frozen = self._pictures, self._frozen
        if frozen is None or pictures.store is None:
            return
        plain = np.full(len(pictures.validation), PLAIN, np.int32)
        wanted = [(pictures.validation, np.arange(len(plain)), plain)]
        uses = len(plain) * self._epochs
        if why_not := _why_train_is_not_kept(pictures.data):
            self._console.say(f"  training pictures pass the frozen layers in every epoch: {why_not}")
        else:
            wanted.insert(0, (pictures.train, *self._drawn()))
            uses += len(pictures.train) * self._epochs
        frozen.keep(wanted, uses, always=pictures.cache.use == "always")
        if frozen.kept:
            self._kept = {split.name for split, _, _ in wanted}

    def epoch(self, epoch: int, start: int = 0) -> Generator[Batch, None, None]:
        """The batches of one epoch, counted from 0, in an order that follows from the seed, the phase and the epoch.

        How a picture is changed follows from its content and a seed, not from its place in the order. Batches before
        the one numbered `start` are passed over, and nothing of them is read.
        """
        order, views, anew = self._draw(epoch)
        seeds = np.full(len(order), anew, np.int32) if views is None else self._seeds[views]
        size = self._pictures.data.batch_size
        batches = [(order[a : a + size], seeds[a : a + size]) for a in range(start * size, len(order), size)]
        with closing(in_order(self._pool, partial(self._read, anew=anew), batches, _AHEAD)) as ready:
            for batch in ready:
                features, labels, counts = (to_devices(part, self._strategy) for part in batch)
                yield features, labels, counts

    def validation(self) -> Generator[Any, None, None]:
        """Features float32 [n, ...] of the validation pictures, in order."""
        split, size = self._pictures.validation, self._pictures.data.batch_size
        rows = np.arange(len(split))
        plain = np.full(len(split), PLAIN, np.int32)
        batches = (rows[a : a + size] for a in range(0, len(rows), size))
        read = lambda batch: self._features(split, batch, plain[batch])  # noqa: E731
        with closing(in_order(self._pool, read, batches, _AHEAD)) as ready:
            for features in ready:
                yield tf.constant(features)

    @property
    def activations(self) -> tuple[int, int, float]:
        """How many were asked for, how many of them came from the store, and the seconds that computing those takes."""
        frozen = self._frozen
        if frozen is None:
            return 0, 0, 0.0
        spared = max(frozen.uses - frozen.computed, 0) if self._kept else 0
        return frozen.uses, spared, spared * frozen.seconds

    def close(self) -> None:
        self._pool.shutdown()

    def _draw(self, epoch: int) -> tuple[np.ndarray, np.ndarray | None, int]:
        """The order of an epoch's pictures, int [N], each one's view, int [N] in 0..K-1, and a seed of the epoch's own.

        A picture's view follows from its content, not from the other pictures: more of them leave it as it is. The
        views are None where every epoch augments anew.
        """
        data, key = self._pictures.data, [self._pictures.seed, self._phase, epoch]
        order = np.random.default_rng(key).permutation(len(self._pictures.train))
        anew = _number(*key)
        if data.augment.of_each and data.views is None:
            return order, None, anew
        drawn = _spread(self._pictures.train.contents[order].astype(np.uint64) << np.uint64(32) | np.uint64(anew))
        return order, (drawn % np.uint64(len(self._seeds))).astype(int), anew

    def _drawn(self) -> tuple[np.ndarray, np.ndarray]:
        """All that the phase's epochs draw: rows, int [n], ascending, and the seeds of their views, int32 [n]."""
        drawn = np.zeros((len(self._pictures.train), len(self._seeds)), bool)
        for epoch in range(self._epochs):
            order, views, _ = self._draw(epoch)
            drawn[order, views] = True
        rows, views = np.nonzero(drawn)
        return rows, self._seeds[views]

    def _read(self, batch: tuple[np.ndarray, np.ndarray], anew: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Features, labels and counts of a batch, filled up to the number of devices."""
        rows, seeds = batch
        filled = len(rows) + -len(rows) % self._strategy.num_replicas_in_sync
        counts = (np.arange(filled) < len(rows)).astype(np.float32)
        rows, seeds = np.resize(rows, filled), np.resize(seeds, filled)
        train = self._pictures.train
        labels = np.eye(self._pictures.classes, dtype=np.float32)[train.labels[rows]]
        if self._mix is None:
            return self._features(train, rows, seeds), labels, counts
        pixels = self._views.pixels(train.images(rows), train.contents[rows], seeds)
        seed = tf.constant([train.contents[rows[0]], anew], tf.int32)
        mixed, labels = (part.numpy() for part in self._mix(tf.constant(pixels), tf.constant(labels), seed))
        return self._through(mixed), labels, counts

    def _features(self, split: Split, rows: np.ndarray, seeds: np.ndarray) -> np.ndarray:
        if split.name in self._kept:
            assert self._frozen is not None
            return self._frozen.read(split, rows, seeds)
        return self._through(self._views.pixels(split.images(rows), split.contents[rows], seeds))

    def _through(self, views: np.ndarray) -> np.ndarray:
        return views if self._frozen is None else self._frozen.compute(views)


def _why_train_is_not_kept(data: Data) -> str | None:
    if data.augment.mixup is not None or data.augment.cutmix is not None:
        name = "mixup" if data.augment.mixup is not None else "cutmix"
        return f"data.augment.{name} mixes pixels, which is not the same as mixing activations"
    if data.augment.of_each and data.views is None:
        return "data.augment draws anew each time. With data.views, e.g. 8, each view would pass once and be kept"
    return None


def seeds_of_views(seed: int, views: int) -> np.ndarray:
    """int32 [views]: PLAIN, then a seed for each augmentation. More views leave the first ones as they are."""
    return np.array([PLAIN, *(_number(seed, view) for view in range(1, views))], np.int32)


def _number(*key: int) -> int:
    """31 bits that follow from a key."""
    return int.from_bytes(hashlib.sha256(repr(key).encode()).digest()[:4], "big") >> 1


def _spread(numbers: np.ndarray) -> np.ndarray:
    """uint64 [n]: other numbers, spread evenly, whatever the first ones are.

    The finalizer of SplitMix64: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", 2014.
    """
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    spread: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return spread
