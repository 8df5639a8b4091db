"""One run, from a config to a published model: the whole flow on one screen."""

from functools import partial
from pathlib import Path

import keras
import tensorflow as tf

from pipeline import evaluate, export, finetune, ingest, model
from pipeline.activations import opened
from pipeline.artifacts import RunRecord
from pipeline.backbones import BACKBONES, weights
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.feed import Pictures
from pipeline.pixels import PixelSpec
from pipeline.recording import recorded
from pipeline.sources import open_source


def run(config: RunConfig, console: Console) -> RunRecord:
    """Trains, evaluates, exports and records one model.

    Returns:
        What `run.json` in the run's folder says.

    Raises:
        GraftError: anything the user can mend. Mistakes in the config, a missing source and missing weights are found
            before the run's folder and the MLflow run are made.
    """
    data, row = config.data, BACKBONES[config.backbone.name]
    spec = PixelSpec(config.image_size, config.image_size, data.crop, data.max_megapixels)
    source = open_source(data)
    reproducible(config.seed)
    with finetune.strategy().scope():
        backbone = weights.load(config.backbone, config.image_size, Path(config.output_dir))
        model.check_phases(backbone, row, config.phases)

        with recorded(config, console) as recording, opened(config.cache, Path(config.cache_dir), console) as store:
            with recording.stage("ingest"):
                splits = ingest.ingest(data, source, spec, recording.scratch, recording.quarantine, store, console)
                mean = ingest.mean_to_subtract(data.mean_subtraction, splits.train)
                recording.data(splits, mean)
            with recording.stage("train"):
                network = model.build(backbone, row, mean, config.head, len(splits.classes))
                pictures = Pictures.of(config, splits, spec, store)
                finetune.finetune(network, config.phases, pictures, console, recording.epoch)
                recording.network(network)
            with recording.stage("evaluate"):
                validation_logits = finetune.predict(network.model, splits.validation, data.batch_size)
                test_logits = finetune.predict(network.model, splits.test, data.batch_size)
                scores = evaluate.evaluate(
                    test_logits, splits.test.labels, validation_logits, splits.validation.labels,
                    list(splits.classes), config.seed,
                )  # fmt: skip
                recording.scores(scores, test_logits)
            with recording.stage("export"):
                export_dir = export.export(
                    network.model, scores.temperature, splits.classes, spec, export.TestPictures.of(splits),
                    config.name, Path(config.export.dir), partial(recording.manifest, spec), console,
                )  # fmt: skip
            with recording.stage("report"):
                recording.model(export_dir)
    return recording.record


def reproducible(seed: int) -> None:
    """Makes everything after this call a function of `seed`: initial values, order, augmentation, and rounding."""
    keras.utils.clear_session()  # Keras numbers layers from 1 again.
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
