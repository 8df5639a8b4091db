"""Logits of the test split to the run's figures. The forward pass is the caller's; no TensorFlow here.

Shape letters: N test pictures, V validation pictures, C classes.
"""

import csv
import math
from pathlib import Path

import numpy as np
from pydantic import BaseModel, ConfigDict

from pipeline import metrics, paired
from pipeline.artifacts import Record
from pipeline.errors import DataError, TrainingError
from pipeline.metrics import HIGHEST_TEMPERATURE, Bin, ClassScore

DOUBTED = 3.0
"""A loss so many times that of a network that knows nothing is one that training has wrecked."""


class Calibration(BaseModel):
    """How far confidence can be believed."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    loss: float
    """Log loss in nats."""
    ece: float
    """Expected calibration error, 0 to 1."""
    bins: list[Bin]
    """The reliability diagram, lowest confidence first."""


class Report(Record):
    """What a run's model does on the test split: the content of report.json."""

    n: int
    """Test pictures."""
    metrics: dict[str, float]
    """Every row of metrics.METRICS, of the model as exported: after temperature scaling."""
    accuracy_interval: tuple[float, float]
    """95 % bootstrap interval on accuracy: low, high."""
    temperature: float
    """What the exported model divides its logits by; fitted on the validation split."""
    calibration: Calibration
    """Of the model as exported."""
    calibration_before: Calibration
    """The same before temperature scaling."""
    per_class: list[ClassScore]
    """One row a class, in the order of the model's outputs."""
    confusion: list[list[int]]
    """Test pictures of class [row] that were given class [column]."""

    @property
    def telling(self) -> dict[str, float]:
        """The metrics that tell something of so many classes: top-5 accuracy is 1 with up to five."""
        few = len(self.per_class) <= 5
        return {name: value for name, value in self.metrics.items() if not (few and name == "top5_accuracy")}

    @property
    def doubt(self) -> str:
        """Why the training is likely to have gone wrong, though its outputs are numbers; empty where nothing says so.

        It is by how sure the network is of what is wrong, before temperature scaling hides it.
        """
        # Chance knows ln C nats: every class is as likely as the others.
        chance, loss = math.log(len(self.per_class)), self.calibration_before.loss
        signs = []
        if loss > DOUBTED * chance:
            signs.append(
                f"before temperature scaling the loss on the test split is {loss:.1f} nats, where guessing has "
                f"{chance:.2f}"
            )
        if not 1.01 / HIGHEST_TEMPERATURE < self.temperature < HIGHEST_TEMPERATURE / 1.01:
            signs.append(
                f"the temperature that suits the validation split is {self.temperature:.3g}, at an end of its range "
                f"({1 / HIGHEST_TEMPERATURE:g} to {HIGHEST_TEMPERATURE:g})"
            )
        if not signs:
            return ""
        return (
            f"The training has probably diverged: {', and '.join(signs)}. Lower phases.*.learning_rate (graft lr "
            "CONFIG suggests one), or set phases.*.clip_norm, e.g. 1.0."
        )


def evaluate(
    test_logits: np.ndarray,
    test_labels: np.ndarray,
    validation_logits: np.ndarray,
    validation_labels: np.ndarray,
    classes: list[str],
) -> Report:
    """Fits the temperature on the validation split and scores the test split.

    Args:
        test_logits: float [N, C], before softmax.
        test_labels: int [N] in 0..C-1.
        validation_logits: float [V, C]; V may be 0, which leaves the temperature at 1.
        validation_labels: int [V] in 0..C-1.
        classes: C names, in the order of the logits.

    Raises:
        DataError: there is no test picture.
        TrainingError: a logit is not finite, so training diverged.
    """
    assert test_logits.shape == (len(test_labels), len(classes)), (test_logits.shape, len(test_labels), len(classes))
    assert validation_logits.shape == (len(validation_labels), len(classes)), validation_logits.shape
    if len(test_labels) == 0:
        raise DataError(
            "The test split is empty, so there is nothing to evaluate on. It needs at least one picture; received 0. "
            "Add pictures or raise data.test_fraction."
        )
    if not (np.isfinite(test_logits).all() and np.isfinite(validation_logits).all()):
        raise TrainingError(
            "Training diverged: the network's outputs must be finite numbers, but some are infinite or not a number. "
            "Lower phases.*.learning_rate, or set phases.*.clip_norm, e.g. 1.0."
        )
    temperature = metrics.fit_temperature(validation_logits, validation_labels)
    before = metrics.softmax(test_logits)
    after = metrics.softmax(test_logits, temperature)
    right = int((after.argmax(axis=1) == test_labels).sum())
    return Report(
        n=len(test_labels),
        metrics=metrics.score(after, test_labels),
        accuracy_interval=paired.accuracy_interval(right, len(test_labels)),
        temperature=temperature,
        calibration=_calibration(after, test_labels),
        calibration_before=_calibration(before, test_labels),
        per_class=metrics.per_class(after, test_labels, classes),
        confusion=metrics.confusion(after, test_labels).tolist(),
    )


def write_predictions(
    path: Path,
    names: list[str],
    labels: np.ndarray,
    probabilities: np.ndarray,
    classes: list[str],
) -> None:
    """One line a picture: name, label, predicted, score; the file predictions.csv.

    Args:
        path: the CSV file, UTF-8.
        names: N names of pictures. A byte of a file's name that is not UTF-8 is written as a backslash escape.
        labels: int [N].
        probabilities: float [N, C], after temperature scaling: `metrics.softmax(logits, report.temperature)`.
        classes: C names.
    """
    predicted = probabilities.argmax(axis=1)
    scores = probabilities.max(axis=1)
    with path.open("w", encoding="utf-8", errors="backslashreplace", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "label", "predicted", "score"])
        for name, label, guess, score in zip(names, labels, predicted, scores, strict=True):
            writer.writerow([name, classes[label], classes[guess], f"{score:.6f}"])


def _calibration(probabilities: np.ndarray, labels: np.ndarray) -> Calibration:
    return Calibration(
        loss=metrics.log_loss(probabilities, labels),
        ece=metrics.expected_calibration_error(probabilities, labels),
        bins=metrics.reliability_bins(probabilities, labels),
    )
