"""One run, from a config to a published model: the whole flow on one screen."""

from dataclasses import dataclass
from pathlib import Path

from pipeline import evaluate, export, finetune, ingest, leakage, model, promotion, publish, testset
from pipeline.activations import opened
from pipeline.artifacts import RunRecord
from pipeline.backbones import BACKBONES
from pipeline.checkpoint import Checkpoints
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.feed import Pictures
from pipeline.prepared import begin
from pipeline.recording import recorded


@dataclass(frozen=True)
class Challenge:
    """What `retrain` asks of a run beyond its config. Such a run is not published: the gate comes first.

    Attributes:
        test_set: what to test on; None to freeze the run's own test split.
        head: weights of the head to start from; None for new ones.
    """

    test_set: testset.FrozenTest | None
    head: Path | None


def run(
    config: RunConfig,
    console: Console,
    run_dir: Path | None = None,
    challenge: Challenge | None = None,
    title: str | None = None,
) -> RunRecord:
    """Trains, evaluates, exports and records one model, and publishes it unless a champion is to be challenged.

    Args:
        config: all that decides the run.
        console: hears how it goes.
        run_dir: the folder of a run that was killed and goes on, or to make. Default: a new one.
        challenge: what `retrain` asks.
        title: what MLflow calls it. Default: the config's name.

    Returns:
        What `run.json` in the run's folder says.

    Raises:
        GraftError: anything the user can mend. Mistakes in the config, a missing source and missing weights are found
            before the run's folder and the MLflow run are made.
    """
    data, row = config.data, BACKBONES[config.backbone.name]
    with finetune.strategy().scope():
        source, spec, backbone = begin(config)
        with (
            recorded(config, console, run_dir, challenge is not None, title) as recording,
            opened(config.cache, Path(config.cache_dir), console) as store,
        ):
            with recording.stage("ingest"):
                splits = ingest.ingest(data, source, spec, recording.scratch, recording.quarantine, store, console)
            if challenge is not None:
                with recording.stage("embedding"):
                    seen = leakage.look(config, splits, backbone, spec, store, console)
                with recording.stage("guard"):
                    splits, test_set = leakage.guarded(splits, challenge.test_set, seen, recording.run_dir, console)
                    recording.test_set(test_set)
            with recording.stage("train"):
                mean = ingest.mean_to_subtract(data.mean_subtraction, splits.train)
                recording.data(splits, mean)
                network = model.build(backbone, row, mean, config.head, len(splits.classes))
                if challenge is not None and challenge.head is not None:
                    network.head.load_weights(challenge.head)
                pictures = Pictures.of(config, splits, spec, store)
                checkpoints = Checkpoints(recording.checkpoint, config.checkpoint.every)
                finetune.finetune(
                    network, config.phases, pictures, checkpoints, console, recording.epoch, recording.phase
                )
                recording.network(network)
            with recording.stage("evaluate"):
                validation_logits = finetune.predict(network.model, splits.validation, data.batch_size)
                test_logits = finetune.predict(network.model, splits.test, data.batch_size)
                scores = evaluate.evaluate(
                    test_logits, splits.test.labels, validation_logits, splits.validation.labels,
                    list(splits.classes),
                )  # fmt: skip
                recording.scores(scores, test_logits, validation_logits)
                if scores.doubt:
                    console.warn(scores.doubt)
            with recording.stage("export"):
                parity = export.export(
                    network.embedding, scores.temperature, splits.classes, spec, export.TestPictures.of(splits),
                    config.name, recording.model_dir, console,
                )  # fmt: skip
                export.write_reference(
                    network.embedding, scores.temperature, splits, data.batch_size, recording.model_dir
                )
                recording.exported(spec, parity)
                home = Path(config.export.dir).resolve() / config.name
                if challenge is None:
                    with promotion.alone(home):
                        if publish.champion(home) is None:  # Else only a promotion changes what is served.
                            recording.published(publish.publish(recording.model_dir, home))
            with recording.stage("report"):
                recording.report(network)
    return recording.record
