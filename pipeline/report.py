"""A run's report: its charts as files, one web page, and a model card, all from what is in the run's folder.

Shape letters: H height, W width.
"""

import csv
import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import card, charts, contents, features, gradcam, pages
from pipeline.artifacts import CLUSTERS, OUTPUTS, Epoch, Manifest, Outputs, RunRecord, read_history
from pipeline.cli import graft
from pipeline.config import RunConfig
from pipeline.config_file import dump, load
from pipeline.errors import ConfigError
from pipeline.evaluate import Report
from pipeline.metrics import meaning, softmax
from pipeline.model import Network
from pipeline.reopen import manifest_of

MOST_PICTURES = 1000
"""Test pictures in the gallery: with so many of SIDE pixels the page stays below 15 MB."""
MOST_EXPLAINED = 12
"""Pictures of a kind that Grad-CAM is drawn over."""
MOST_OPEN_ROWS = 50
SIDE = 96

Look = Callable[[Sequence[str]], dict[str, np.ndarray]]
"""Of SHA-256 hex digests of test pictures, those that can be seen, as the network sees them: uint8 [H, W, 3]."""


@dataclass(frozen=True, eq=False)
class Run:
    """What a run's folder says, for its report and its card."""

    run_dir: Path
    record: RunRecord
    config: RunConfig
    scores: Report
    history: list[Epoch]
    outputs: Outputs
    manifest: Manifest
    mean: np.ndarray | None
    training: int
    """Pictures it learned from."""
    leaks: str = ""
    """What is to be said of test pictures that an earlier run, whose weights it started from, learned from; else
    nothing."""

    @property
    def about(self) -> str:
        """What tells it from the config's other runs, in a line."""
        config, record = self.config, self.record
        started = datetime.fromisoformat(record.started_at).astimezone(UTC)
        options = [f"{key}={value}" for key, value in config.backbone.options.items()]
        parts = [
            " ".join([config.backbone.name, *options]),
            f"{started.day} {started:%B %Y, %H:%M} UTC",
            f"run {Path(record.run_dir).name}",
        ]
        if record.title not in (None, record.name):
            parts.append(str(record.title))
        return " · ".join(parts)

    @property
    def scaling(self) -> str:
        """What is to be said of temperature scaling where it did not help; else nothing."""
        if self.scores.calibration.ece <= self.scores.calibration_before.ece:
            return ""
        count = len(self.outputs.validation_digests)
        return f" On these test pictures scaling did not help: it was fitted on {count:,} validation pictures."

    @property
    def command(self) -> str:
        """What repeats the run from anywhere on its machine; for a challenger, what trains the next one."""
        config, here, there = self.run_dir / "config.yaml", self.record.started_in, ""
        program = graft(None if here is None else Path(here))
        if here is not None:
            config = config.relative_to(here) if config.is_relative_to(here) else config
            there = f"cd {shlex.quote(here)} && "
        what = "retrain" if self.record.challenger else "run"
        command = f"{there}{shlex.quote(program)} {what} {shlex.quote(str(config))}"
        if self.config.backbone.weights.startswith("run:") and not self.record.challenger:
            assert self.record.started_from is not None  # A name stands for its newest run.
            command += f" --set backbone.weights=run:{shlex.quote(Path(self.record.started_from).name)}"
        return command

    @property
    def probabilities(self) -> np.ndarray:
        """float64 [N, C] of the test pictures, as exported: after temperature scaling."""
        return softmax(self.outputs.logits, self.scores.temperature)

    @property
    def digests(self) -> dict[str, str]:
        """What the model, its data and its code can be told by."""
        code = self.manifest.code
        return {
            "Data": self.manifest.data_digest,
            "Weights": self.manifest.weights_digest,
            "Code": code.digest,
            "Commit": code.commit or "not in a checkout",
            "Versions": f"graft {code.graft}, TensorFlow {code.tensorflow}, Keras {code.keras}, NumPy {code.numpy}, "
            f"Pillow {code.pillow}, Python {code.python}",
        }


def read(run_dir: Path) -> Run:
    """Raises ConfigError where the folder is not that of a run that has been evaluated and exported."""
    try:
        mean = run_dir / "mean.npy"
        record, outputs = RunRecord.read(run_dir / "run.json"), Outputs.read(run_dir / OUTPUTS)
        return Run(
            run_dir,
            record,
            load(run_dir / "config.yaml", []),
            Report.read(run_dir / "report.json"),
            read_history(run_dir),
            outputs,
            manifest_of(run_dir),
            np.load(mean) if mean.is_file() else None,
            _training(run_dir / "splits.csv"),
            _leaks(run_dir, record, outputs),
        )
    except FileNotFoundError as error:
        missing = f"it has no {Path(error.filename).name}"
    except (OSError, ValueError, KeyError) as error:  # KeyError: splits.csv without its columns.
        missing = f"a file in it cannot be read ({type(error).__name__})"
    raise ConfigError(
        f"{run_dir} is not the folder of a run that can be reported on: {missing}. It must be the folder "
        "<output_dir>/<name>/<time> of a run that got as far as its export, made by this version of graft. Give such a "
        "folder, or run the config again."
    )


def _training(splits: Path) -> int:
    with splits.open(encoding="utf-8", newline="") as file:
        return sum(row["split"] == "train" for row in csv.DictReader(file))


def _leaks(run_dir: Path, record: RunRecord, outputs: Outputs) -> str:
    if record.started_from is None:
        return ""
    learned, gone = contents.learned_by(Path(record.started_from))
    if (run_dir / CLUSTERS).is_file():
        learned = contents.with_alike(learned, contents.clusters(run_dir / CLUSTERS))
    words = ""
    if count := len(learned & set(outputs.digests)):
        words = (
            f" The weights it started from, those of {record.started_from}, were trained or tuned on {count:,} of "
            "these pictures or near duplicates of them: the figures flatter it."
        )
    if gone is not None:
        words += (
            f" The weights it started from go back to {gone}, whose list of pictures is gone: they may have been "
            "trained on some of these."
        )
    return words


def write(run: Run, network: Network, look: Look) -> list[Path]:
    """Writes the charts as PNG files, model-card.md and report.html into the run's folder.

    Args:
        run: from `read`.
        network: as it was trained.
        look: for the pictures on the page; those it has not are left out.

    Returns:
        The files written, the page last.
    """
    explained = {kind: rows[:MOST_EXPLAINED] for kind, rows in _telling(run).items()}
    shown = _shown(run)
    digests = run.outputs.digests
    seen = look([digests[row] for row in {*shown, *(row for rows in explained.values() for row in rows)}])
    with pages.drawing():
        drawn = {
            "learning_curves": charts.learning_curves(run.history, run.config),
            "confusion": charts.confusion(run.scores),
            "per_class": charts.per_class(run.scores),
            "reliability": charts.reliability(run.scores),
        }
        if run.mean is not None:
            drawn["mean"] = charts.mean_picture(run.mean)
        drawn |= _what_it_sees(run, network, seen)
        for name, chart in drawn.items():
            chart.save(run.run_dir / f"{name}.png")
    written = [run.run_dir / f"{name}.png" for name in drawn]
    model_card, page = run.run_dir / "model-card.md", run.run_dir / "report.html"
    card.write(model_card, run)
    pages.write(
        page,
        "report.html",
        run=run,
        charts=drawn,
        accuracy=pages.percent(run.scores.metrics["accuracy"]),
        metrics=_metrics(run),
        matrix=_matrix(run.scores),
        confusions=_confusions(run.scores),
        tiles=[_tile(run, row, seen[digests[row]], SIDE) for row in shown if digests[row] in seen],
        explained={kind: _explained(run, network, rows, seen) for kind, rows in explained.items()},
        most_open_rows=MOST_OPEN_ROWS,
        config=dump(run.config),
        places=_places(run),
    )
    return [*written, model_card, page]


# ------------------------------------------------------------------------------------------------------------ pictures


def _telling(run: Run) -> dict[str, list[int]]:
    """Test pictures that tell most about the network: rows, the most telling first."""
    probabilities, labels = run.probabilities, run.outputs.labels
    score, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    surest = np.argsort(-score, kind="stable")
    return {
        "The most confident mistakes": [int(row) for row in surest if not right[row]],
        "The least certain that are right": [int(row) for row in surest[::-1] if right[row]],
    }


def _shown(run: Run) -> list[int]:
    """Test pictures of the gallery: mistakes first, then the least certain."""
    mistakes, rights = _telling(run).values()
    return (mistakes + rights)[:MOST_PICTURES]


def _tile(run: Run, row: int, picture: np.ndarray, side: int) -> dict[str, Any]:
    probabilities, tile = run.probabilities[row], pages.tile(picture, side)
    return {
        "src": tile.src,
        "tiny": tile.tiny,
        "label": int(run.outputs.labels[row]),
        "given": int(probabilities.argmax()),
        "score": float(probabilities.max()),
        "name": run.outputs.names[row],
    }


def _explained(run: Run, network: Network, rows: list[int], seen: dict[str, np.ndarray]) -> list[dict[str, Any]]:
    """Tiles with the Grad-CAM of the class that the picture was given."""
    rows = [row for row in rows if run.outputs.digests[row] in seen]
    if not rows:
        return []
    pictures = np.stack([seen[run.outputs.digests[row]] for row in rows])
    maps = gradcam.maps(network, pictures, run.outputs.logits[rows].argmax(axis=1))
    side = max(pictures.shape[1], pages.TINY * 3)
    return [
        _tile(run, row, picture, side) | {"map": pages.tile(gradcam.overlay(picture, heat), side).src}
        for row, picture, heat in zip(rows, pictures, maps, strict=True)
    ]


def _what_it_sees(run: Run, network: Network, seen: dict[str, np.ndarray]) -> dict[str, pages.Chart]:
    """Kernels, and what they and the layers above make of the picture that the network is surest and right about."""
    drawn = {}
    if kernels := features.kernel_chart(network):
        drawn["kernels"] = kernels
    rights = [row for row in _telling(run)["The least certain that are right"] if run.outputs.digests[row] in seen]
    if rights:
        surest = rights[-1]
        picture, label = seen[run.outputs.digests[surest]], run.outputs.classes[run.outputs.labels[surest]]
        which = f" The picture is {run.outputs.names[surest]}, {label}: of those shown, the one it is surest of."
        for name, draw in (("responses", features.response_chart), ("feature_maps", features.maps_chart)):
            if chart := draw(network, picture):
                drawn[name] = replace(chart, caption=chart.caption + which)
    return drawn


# -------------------------------------------------------------------------------------------------------------- tables


def _metrics(run: Run) -> list[tuple[str, float, str]]:
    """Name, value and meaning of each figure; the meaning is its function's docstring."""
    scores = run.scores
    before = {"loss": scores.calibration_before.loss, "ece": scores.calibration_before.ece}
    rows = []
    for name, value in scores.telling.items():
        words = meaning(name)
        if name in before:
            words += f" Before temperature scaling: {before[name]:.4f}."
        rows.append((name.replace("_", " "), value, words))
    words = f"The exported model divides its logits by this; fitted on the validation split.{run.scaling}"
    return [*rows, ("temperature", scores.temperature, words)]


def _matrix(scores: Report) -> list[list[tuple[int, float]]] | None:
    """Pictures of each true class (row) and predicted class (column), and their share of the row; None for so many
    classes that it could not be read."""
    if len(scores.confusion) > charts.LARGEST_MATRIX:
        return None
    return [[(count, count / max(sum(row), 1)) for count in row] for row in scores.confusion]


def _confusions(scores: Report) -> list[tuple[int, int, int, float]]:
    """True class, predicted class, how many pictures, and their share of the true class, the most frequent first."""
    counts = np.asarray(scores.confusion)
    wrong = counts - np.diag(np.diag(counts))
    order = np.argsort(-wrong, axis=None, kind="stable")[: charts.MOST_ROWS]
    pairs = zip(*(axis.tolist() for axis in np.unravel_index(order, wrong.shape)), strict=True)
    return [(i, j, int(wrong[i, j]), float(wrong[i, j] / counts[i].sum())) for i, j in pairs if wrong[i, j]]


def _places(run: Run) -> dict[str, str]:
    record = run.record
    return {
        "Run": record.run_dir,
        "Exported model": record.export_dir or f"{run.run_dir / 'model'}, not published",
        "MLflow store": record.tracking_uri,
        "MLflow run": record.mlflow_run_id or "not delivered yet",
        **({"Started from": record.started_from} if record.started_from else {}),
        **run.digests,
    }
