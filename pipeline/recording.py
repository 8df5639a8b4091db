"""What a run leaves behind: the files in its folder, `run.json` among them, and the same in MLflow.

Stages know nothing of this; `run.py` hands their results over.
"""

import getpass
import hashlib
import io
import os
import shlex
import shutil
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from pipeline import artifacts, notes, report
from pipeline.artifacts import BackboneIdentity, Epoch, Manifest, Outputs, Parity, PhaseCost, RunRecord
from pipeline.backbones.weights import digest, started_from
from pipeline.config import RunConfig
from pipeline.config_file import dump, load
from pipeline.console import Console
from pipeline.errors import ConfigError, DataError, GraftError
from pipeline.evaluate import Report, write_predictions
from pipeline.ingest import write_splits
from pipeline.metrics import softmax
from pipeline.mlflow_client import resolve_uri, without_password
from pipeline.model import Network
from pipeline.pages import percent
from pipeline.pixels import VERSION, PixelSpec
from pipeline.registry import CHALLENGER, ROLE
from pipeline.splits import Split, Splits
from pipeline.system_metrics import watched
from pipeline.testset import FrozenTest
from pipeline.tracking import Dataset, Tracker

_SHORT = 12
"""Letters of a digest that people are shown; `manifest.json` and `splits.csv` have whole ones."""

# What MLflow gets of the run's folder, by the folder it goes to. The weights are in the model.
_LOGGED = {
    "": ("report.html", "model-card.md", "*.yaml"),
    "charts": ("*.png",),
    "data": ("*.csv", "test-set.json"),
    "figures": ("report.json", artifacts.HISTORY, artifacts.OUTPUTS),
}


def config_of(run_dir: Path) -> RunConfig:
    """The config that a run was started with; `weights: run:NAME` stands for the run that it stood for then.

    Raises:
        ConfigError: the folder is not a run's, or the run has ended well.
    """
    try:
        record = RunRecord.read(run_dir / "run.json")
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{run_dir} is not the folder of a run that can be resumed: it must hold a run.json. Give a "
            "folder <output_dir>/<name>/<time>, as graft run prints it at its start."
        ) from error
    if record.status == "finished":
        raise ConfigError(
            f"The run {run_dir} has finished: there is nothing to resume. Its report is {run_dir / 'report.html'}. To "
            f"train once more: graft run {run_dir / 'config.yaml'}"
        )
    if record.challenger:
        raise ConfigError(
            f"The run {run_dir} is a challenger, which is judged before it is published. Go on with it, or begin anew "
            "where something has changed, with: graft retrain CONFIG"
        )
    start = record.started_from
    overrides = [] if start is None else [f"backbone.weights=run:{Path(start).name}"]
    return load(run_dir / "config.yaml", overrides)


@contextmanager
def recorded(
    config: RunConfig,
    console: Console,
    run_dir: Path | None = None,
    challenger: bool = False,
    title: str | None = None,
) -> Iterator["Recording"]:
    """A run's folder and its MLflow run, from start to end, however it ends.

    Args:
        config: the run's.
        console: hears where the folder is.
        run_dir: the folder to make, or that of a run to go on with. Default: a new one.
        challenger: whether it is one of `graft retrain`'s.
        title: what MLflow calls it. Default: the config's name.

    Raises:
        ConfigError: the run's folder or the exported model's cannot be made.
        GraftError: another process is working on that run.
    """
    folder = run_dir or artifacts.new_folder(Path(config.output_dir).resolve() / config.name)
    _make_folders(config, folder)
    with artifacts.alone(folder, "run"), console.also_to(folder / artifacts.LOG):
        recording = Recording(config, folder, challenger, title or config.name, console)
        try:
            with watched(recording.sample):
                yield recording
        except BaseException as error:
            recording.end("KILLED" if isinstance(error, KeyboardInterrupt) else "FAILED", error)
            raise
        recording.end("FINISHED")


class Recording:
    """One run's folder and MLflow run.

    Attributes:
        run_dir: `<output_dir>/<name>/<time>-<random>/`.
        quarantine: the list of pictures that could not be used.
        scratch: a folder in it for the run's own use, removed at the end.
        record: what `run.json` will say.
        sample: takes what the machine does at the moment, by name; any thread may call it.
    """

    def __init__(self, config: RunConfig, run_dir: Path, challenger: bool, title: str, console: Console) -> None:
        uri = resolve_uri(config)
        self.run_dir = run_dir
        self.scratch = self.run_dir / "scratch"
        self.quarantine = self.run_dir / "quarantine.csv"
        self._config, self._console = config, console
        self._code = artifacts.code()
        self._history: list[Epoch] = []
        self._test_set: str | None = None
        # Shown and shared, so it holds no password; what was tracked where is not what makes a run.
        self._shown = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": None})})
        if (self.run_dir / "run.json").is_file():
            self._go_on()
        else:
            start = started_from(config.backbone, Path(config.output_dir))
            self.record = RunRecord(
                name=config.name,
                status="running",
                run_dir=str(self.run_dir),
                started_at=_now(),
                started_in=str(Path.cwd()),
                tracking_uri=without_password(uri),
                backbone=BackboneIdentity(name=config.backbone.name, options=config.backbone.options),
                started_from=None if start is None else str(start),
                challenger=challenger,
                title=title,
            )
            artifacts.write_atomically(self.run_dir / "config.yaml", dump(self._shown))
            self.record.write(self.run_dir / "run.json")
        self._tracker = Tracker(self.run_dir, uri, config.experiment, notes.named(title, self.run_dir), console)
        self.sample = self._tracker.sample
        self._tracker.params(config.flat())
        self._tracker.tags(self._origin())
        console.say(f"run {self.run_dir}")

    def _origin(self) -> dict[str, str]:
        """Where the run comes from, in tags; MLflow has names and places on its pages for the first ones."""
        tags = {
            "mlflow.user": _user(),
            "mlflow.source.name": "graft retrain" if self.record.challenger else "graft run",
            "mlflow.source.type": "LOCAL",
            "graft.run_dir": str(self.run_dir),
            "graft.code_digest": self._code.digest[:_SHORT],
        }
        if self._code.commit:
            tags["mlflow.source.git.commit"] = self._code.commit
        if self.record.started_from:
            tags["graft.started_from"] = self.record.started_from
        if self.record.challenger:
            tags[ROLE] = CHALLENGER
        return tags

    def _go_on(self) -> None:
        """Takes up what a run that was killed has recorded."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        record = RunRecord.read(self.run_dir / "run.json")
        self.record = record.model_copy(update={"status": "running", "finished_at": None, "error": None})
        self.record.write(self.run_dir / "run.json")
        if (self.run_dir / artifacts.HISTORY).is_file():
            self._history = artifacts.read_history(self.run_dir)

    @property
    def checkpoint(self) -> Path:
        """The folder of what a killed training goes on from."""
        return self.run_dir / "checkpoint"

    @property
    def model_dir(self) -> Path:
        """Of the run's own copy of the exported model."""
        return self.run_dir / artifacts.MODEL

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times a stage."""
        started = time.perf_counter()
        yield
        self._update(seconds=self.record.seconds | {name: round(time.perf_counter() - started, 3)})

    def data(self, splits: Splits, mean: np.ndarray | None) -> None:
        """Records the splits, what was quarantined, and what is subtracted.

        Raises:
            DataError: the run was killed and goes on, and the data is no longer what it was.
        """
        if self.record.data_digest not in (None, splits.digest):
            raise DataError(
                f"The run {self.run_dir} cannot go on: the data has changed since it began, and half of a training on "
                "other pictures is no training. Put the data back as it was, or start a new run."
            )
        self._update(data_digest=splits.digest)
        self._splits = splits
        write_splits(self.run_dir / "splits.csv", splits)
        if mean is not None:
            np.save(self.run_dir / "mean.npy", mean)
        self._tracker.tags({"graft.data_digest": splits.digest[:_SHORT]})
        for split, context in zip(splits.all, ("training", "validation", "test"), strict=True):
            if len(split):
                self._tracker.dataset(self._dataset(split), context)
        for note in splits.notes:
            self._console.say(note)
        sizes = ", ".join(f"{len(split.labels)} {split.name}" for split in splits.all)
        self._console.say(f"{sizes}; {len(splits.classes)} classes; {len(splits.quarantine)} quarantined")

    def _dataset(self, split: Split) -> Dataset:
        """A split as MLflow shows it: which pictures with which labels, and how many of each class."""
        data, classes = self._config.data, self._splits.classes
        content = sorted(zip(split.digests, (classes[label] for label in split.labels), strict=True))
        counts = np.bincount(split.labels, minlength=len(classes)).tolist()
        return Dataset(
            name=Path(data.path).name if data.path else data.name or data.source,
            digest=hashlib.sha256(repr(content).encode()).hexdigest()[:_SHORT],
            source_type="local" if data.path else data.source,
            source=str(Path(data.path).resolve()) if data.path else data.name or data.source,
            profile={"pictures": len(split), **dict(zip(classes, counts, strict=True))},
        )

    def epoch(self, epoch: Epoch) -> None:
        """Records one epoch, on one axis across phases; one that was recorded before the run was killed is known."""
        known = self._history[epoch.epoch - 1 : epoch.epoch]
        if known and known[0].loss == epoch.loss and known[0].validation_loss == epoch.validation_loss:
            return
        del self._history[epoch.epoch - 1 :]  # The training was begun anew: its checkpoint could not be used.
        self._tracker.metrics(notes.of_epoch(epoch), step=epoch.epoch)
        self._history.append(epoch)
        artifacts.write_history(self.run_dir, self._history)

    def phase(self, cost: PhaseCost) -> None:
        """Records what a phase of training took."""
        self._update(phases=[*(known for known in self.record.phases if known.phase < cost.phase), cost])

    def network(self, network: Network) -> None:
        """Keeps the trained weights; a later run can start from them."""
        network.backbone.save_weights(self.run_dir / "backbone.weights.h5")
        network.head.save_weights(self.run_dir / "head.weights.h5")
        self._weights_digest = digest(network.model)

    def scores(self, scores: Report, test_logits: np.ndarray, validation_logits: np.ndarray) -> None:
        """Records the evaluation."""
        self._scores = scores
        self._update(metrics={f"test_{name}": value for name, value in scores.metrics.items()})
        scores.write(self.run_dir / "report.json")
        test, classes = self._splits.test, list(self._splits.classes)
        probabilities = softmax(test_logits, scores.temperature)
        write_predictions(self.run_dir / "predictions.csv", list(test.names), test.labels, probabilities, classes)
        validation = self._splits.validation
        Outputs(
            self._splits.classes, test.names, test.digests, test.labels, test_logits,
            validation.digests, validation.labels, validation_logits,
        ).write(self.run_dir / artifacts.OUTPUTS)  # fmt: skip
        low, high = scores.accuracy_interval
        self._figures = {"test/accuracy": scores.metrics["accuracy"]}
        self._figures |= {"test/accuracy_low": low, "test/accuracy_high": high}
        self._figures |= {f"test/{name}": value for name, value in scores.metrics.items()}
        self._tracker.metrics(self._figures, step=0, dataset=self._dataset(test))
        self._tracker.metrics({"validation/temperature": scores.temperature}, step=0)

    def test_set(self, test_set: FrozenTest) -> None:
        """Keeps the frozen test set that the run is judged on."""
        test_set.write(self.run_dir / "test-set.json")
        self._test_set = test_set.identity
        self._tracker.tags({"graft.test_set": test_set.identity})

    def exported(self, spec: PixelSpec, parity: Parity) -> None:
        """Describes the exported model beside it, in the run's folder."""
        manifest = Manifest(
            name=self._config.name,
            version=0,
            created_at=_now(),
            classes=list(self._splits.classes),
            pixels=spec,
            pixels_version=VERSION,
            temperature=self._scores.temperature,
            config=self._shown.model_dump(mode="json", by_alias=True),
            data_digest=self._splits.digest,
            weights_digest=self._weights_digest,
            metrics=self.record.metrics,
            parity=parity,
            code=self._code,
            mlflow_run_id=self._tracker.run_id,
            started_from=self.record.started_from,
            run=self.run_dir.name,
            test_set=self._test_set,
        )
        manifest.write(self.model_dir / "manifest.json")
        # So that what a champion learned from is known wherever the champion is.
        shutil.copy(self.run_dir / "splits.csv", self.model_dir / artifacts.LEARNED_FROM)

    def published(self, export_dir: Path) -> None:
        """Records where servers find the model."""
        self._update(export_dir=str(export_dir))

    def report(self, network: Network) -> None:
        """Draws the report, and hands everything to MLflow."""
        test = self._splits.test
        rows = {digest: row for row, digest in enumerate(test.digests)}

        def look(digests: Sequence[str]) -> dict[str, np.ndarray]:
            return dict(zip(digests, test.images(np.array([rows[digest] for digest in digests])), strict=True))

        report.write(report.read(self.run_dir), network, look)
        for folder, patterns in _LOGGED.items():
            for path in sorted(path for pattern in patterns for path in self.run_dir.glob(pattern)):
                self._tracker.artifact(path, folder)
        sentence = self._sentence()
        about = notes.version(sentence, artifacts.card(self.run_dir))
        self._tracker.tags({notes.NOTE: notes.finished(sentence, self._figures, self.run_dir)})
        self._tracker.model(self._config.name, self.model_dir, self._example(), about)
        if not self.record.challenger:  # Else the gate has its say first.
            self._tracker.version(self._config.name, self._version_tags(), about)

    def _version_tags(self) -> dict[str, str]:
        """What the registry says of this model."""
        tags = {"graft.data_digest": self._splits.digest[:_SHORT], "graft.run_dir": str(self.run_dir)}
        if self.record.export_dir is not None:
            export_dir = Path(self.record.export_dir)
            tags |= {"graft.export_dir": str(export_dir), "graft.export_version": export_dir.name}
        return tags

    def end(self, status: Literal["FINISHED", "FAILED", "KILLED"], error: BaseException | None = None) -> None:
        """Ends the run here and in MLflow."""
        shutil.rmtree(self.scratch, ignore_errors=True)
        defect = error is not None and not isinstance(error, (GraftError, KeyboardInterrupt))
        why = "".join(traceback.format_exception(error)).rstrip() if defect else _reason(error)
        if status == "KILLED" and not self.record.challenger:
            self._console.say(f"go on with: graft run --resume {shlex.quote(str(self.run_dir))}")
        self._console.log(status.lower() if why is None else f"{status.lower()}: {why}")
        self._tracker.artifact(self.run_dir / artifacts.LOG)
        if status == "FINISHED":
            took = {f"time/{stage}_seconds": seconds for stage, seconds in self.record.seconds.items()}
            self._tracker.metrics(took, step=0)
        else:
            self._tracker.tags({notes.NOTE: notes.stopped(status, _reason(error) or "")})
        self._tracker.finish(status)
        self._update(status=status.lower(), finished_at=_now(), error=_reason(error))
        if status == "FINISHED":  # Else it may be gone on with.
            shutil.rmtree(self.checkpoint, ignore_errors=True)

    def _sentence(self) -> str:
        """What came of the run."""
        figures, backbone = self._figures, self._config.backbone
        return (
            f"{percent(figures['test/accuracy'])} of {len(self._splits.test):,} test pictures are right (95 % "
            f"interval {percent(figures['test/accuracy_low'])} to {percent(figures['test/accuracy_high'])}): "
            f"{backbone.name}, {len(self._splits.classes)} classes, {len(self._splits.train):,} training pictures, "
            f"{len(self._history)} epochs."
        )

    def _example(self) -> bytes:
        """A test picture as the network sees it, encoded."""
        stream = io.BytesIO()
        Image.fromarray(self._splits.test.images(np.array([0]))[0]).save(stream, "JPEG")
        return stream.getvalue()

    def _update(self, **changes: Any) -> None:
        self.record = self.record.model_copy(update=changes | {"mlflow_run_id": self._tracker.run_id})
        self.record.write(self.run_dir / "run.json")


def _make_folders(config: RunConfig, run_dir: Path) -> None:
    """Makes the run's folder, and the exported model's: a mistake there shall not be found after the training."""
    for key, given, folder in (
        ("export.dir", config.export.dir, Path(config.export.dir) / config.name),
        ("output_dir", config.output_dir, run_dir.parent),
    ):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryDirectory(prefix=".writable-", dir=folder).cleanup()
        except OSError as error:
            raise ConfigError(
                f"{key} must be a folder that can be made, or written to: {folder} is not ({error.strerror}). "
                f"Received: {given}. Choose another {key}, or another name."
            ) from error
    run_dir.mkdir(exist_ok=True)


def _reason(error: BaseException | None) -> str | None:
    if isinstance(error, KeyboardInterrupt):
        return "stopped"
    return None if error is None else str(error) or type(error).__name__


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _user() -> str:
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # A container may run under a number that has no name.
        return str(os.getuid())
