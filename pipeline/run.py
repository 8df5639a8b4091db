"""One run, from a config to a published model: the whole flow on one screen."""

from functools import partial
from pathlib import Path

import keras
import tensorflow as tf

from pipeline import evaluate, export, finetune, ingest, model
from pipeline.artifacts import RunRecord
from pipeline.backbones import BACKBONES, weights
from pipeline.config import RunConfig
from pipeline.console import Console
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

        with recorded(config, console) as recording:
            with recording.stage("ingest"):
                splits = ingest.ingest(data, source, spec, recording.scratch, console)
                mean = ingest.mean_to_subtract(data.mean_subtraction, splits.train)
                recording.data(splits, mean)
            with recording.stage("train"):
                network = model.build(backbone, row, mean, config.head, len(splits.classes))
                history = finetune.finetune(
                    network, config.phases, data, splits.train, splits.validation, config.seed, console, recording.epoch
                )
                recording.training(network, history)
            with recording.stage("evaluate"):
                logits = {s.name: finetune.predict(network.model, s, data.batch_size) for s in splits.held_out}
                scores = evaluate.evaluate(logits, splits, config.seed)
                recording.scores(scores)
            with recording.stage("export"):
                exported = export.export(
                    network.model, scores.temperature, splits.classes, spec,
                    export.TestPictures.of(splits), config.name, Path(config.export.dir), recording.manifest, console,
                )  # fmt: skip
                recording.model(exported)
    return recording.record
