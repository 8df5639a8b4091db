"""What comes before a training: of a run, and of commands that look, try and compare and leave no run behind."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import keras
import numpy as np

from pipeline import finetune, ingest, model
from pipeline.activations import Store, opened
from pipeline.backbones import BACKBONES, weights
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.pixels import PixelSpec
from pipeline.seeding import reproducible
from pipeline.sources import open_source
from pipeline.sources.base import Source
from pipeline.splits import Splits


@dataclass(frozen=True, eq=False)
class Prepared:
    """A config's pictures and network, as a run would train on them.

    Attributes:
        config: whose they are.
        spec: how encoded pictures become pixels.
        splits: the pictures.
        store: where activations are kept; None where they are not.
        backbone: with its weights.
        mean: what is subtracted, float32 [3] or [H, W, 3] in 0..255; None for the network's own means.
    """

    config: RunConfig
    spec: PixelSpec
    splits: Splits
    store: Store | None
    backbone: keras.Model
    mean: np.ndarray | None


def begin(config: RunConfig) -> tuple[Source, PixelSpec, keras.Model]:
    """Where a config's pictures come from, how they become pixels, and the backbone, all seeds set.

    To be called in the scope of the `tf.distribute` strategy that trains.

    Raises:
        GraftError: a mistake in the config, a missing source, missing weights: whatever can be told before a picture is
            read.
    """
    source = open_source(config.data)
    reproducible(config.seed)
    backbone = weights.load(config.backbone, config.image_size, Path(config.output_dir))
    model.check_phases(backbone, BACKBONES[config.backbone.name], config.phases)
    return source, pixel_spec(config), backbone


def pixel_spec(config: RunConfig) -> PixelSpec:
    """How a config's encoded pictures become pixels."""
    return PixelSpec(config.image_size, config.image_size, config.data.crop, config.data.max_megapixels)


@contextmanager
def prepared(config: RunConfig, console: Console) -> Iterator[Prepared]:
    """Reads the pictures and builds the backbone as `run` does. Pixels are kept in `output_dir` until it ends.

    Raises:
        GraftError: as `run`, before it trains.
    """
    with finetune.strategy().scope():
        source, spec, backbone = begin(config)
        with read(config, source, spec, console) as (splits, store):
            mean = ingest.mean_to_subtract(config.data.mean_subtraction, splits.train)
            yield Prepared(config, spec, splits, store, backbone, mean)


@contextmanager
def read(config: RunConfig, source: Source, spec: PixelSpec, console: Console) -> Iterator[tuple[Splits, Store | None]]:
    """Reads the pictures as `run` does, whatever the network. Pixels are kept in `output_dir` until it ends.

    Yields:
        The pictures, and where activations are kept; None where they are not.

    Raises:
        DataError: the pictures cannot be used.
    """
    output_dir = Path(config.output_dir).resolve()
    output_dir.mkdir(parents=True, exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=f".{config.name}-", dir=output_dir) as scratch,
        opened(config.cache, Path(config.cache_dir), console) as store,
    ):
        folder = Path(scratch)
        yield ingest.ingest(config.data, source, spec, folder, folder / "quarantine.csv", store, console), store
