"""Figures of merit of a classifier. NumPy, SciPy and scikit-learn, no TensorFlow. A new one is a row of METRICS.

Shape letters: N pictures (at least one), C classes (at least two). Probabilities are float [N, C] in 0..1 with rows
that sum to one; labels are int [N] in 0..C-1. Classes without a picture are allowed everywhere.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """float64 [N, C] probabilities from logits [N, C]; a temperature above 1 makes them less confident."""
    from scipy.special import softmax

    return np.asarray(softmax(logits.astype(np.float64) / temperature, axis=1))


# ------------------------------------------------------------------------------------------------------ single figures


def accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose most probable class is the right one, 0 to 1. The first class wins a tie."""
    return float(np.mean(probabilities.argmax(axis=1) == labels))


def top5_accuracy(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Share of pictures whose right class is among the five most probable, 0 to 1; so 1 with up to five classes."""
    best = np.argsort(-probabilities, axis=1, kind="stable")[:, :5]
    return float(np.mean((best == labels[:, None]).any(axis=1)))


def macro_f1(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean of the F1 scores of the classes that have a picture, 0 to 1: each class counts the same."""
    from sklearn.metrics import f1_score

    predicted = probabilities.argmax(axis=1)
    return float(f1_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


def log_loss(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean negative log-likelihood of the right class, in nats; at most 36 a picture, as probabilities are clipped."""
    of_labels = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(np.maximum(of_labels, np.finfo(np.float64).eps)).mean())


def expected_calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    """Mean gap between confidence and accuracy over the reliability bins, weighted by their pictures, 0 to 1.

    Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, equation 3.
    """
    gaps = [b.count * abs(b.accuracy - b.confidence) for b in reliability_bins(probabilities, labels)]
    return float(sum(gaps) / len(labels))


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": accuracy,
    "top5_accuracy": top5_accuracy,
    "macro_f1": macro_f1,
    "loss": log_loss,
    "ece": expected_calibration_error,
}


def meaning(name: str) -> str:
    """What a metric is, by the start of its function's docstring; empty for one that is not in the table."""
    documented = METRICS[name].__doc__ if name in METRICS else None
    return " ".join((documented or "").split("\n\n")[0].split())


def score(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Every metric of the table, by name."""
    return {name: metric(probabilities, labels) for name, metric in METRICS.items()}


# -------------------------------------------------------------------------------------------------------- many figures


@dataclass(frozen=True)
class Bin:
    """The pictures whose top-1 confidence lies in (lower, upper].

    Attributes:
        count: how many pictures.
        confidence: their mean top-1 probability; 0 without pictures.
        accuracy: the share of them that is right; 0 without pictures.
    """

    lower: float
    upper: float
    count: int
    confidence: float
    accuracy: float


def reliability_bins(probabilities: np.ndarray, labels: np.ndarray, bins: int = 15) -> list[Bin]:
    """Confidence against accuracy in `bins` equal-width bins of top-1 probability, lowest first (Guo et al., 2017)."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == labels
    edges = np.linspace(0, 1, bins + 1)
    # Rounding may put a sum of probabilities, and so a confidence, just above 1.
    index = np.clip(np.searchsorted(edges, confidence, side="left") - 1, 0, bins - 1)
    count = np.bincount(index, minlength=bins)
    some = np.maximum(count, 1)
    mean_confidence = np.bincount(index, weights=confidence, minlength=bins) / some
    mean_right = np.bincount(index, weights=right, minlength=bins) / some
    rows = zip(edges[:-1], edges[1:], count, mean_confidence, mean_right, strict=True)
    return [Bin(float(low), float(high), int(n), float(c), float(a)) for low, high, n, c, a in rows]


@dataclass(frozen=True)
class ClassScore:
    """How one class fares.

    Attributes:
        name: the class.
        precision: share of the pictures given this label that carry it rightly; 0 where none was given it.
        recall: share of this class's pictures that got this label; 0 without pictures.
        f1: harmonic mean of the two.
        support: pictures of this class.
    """

    name: str
    precision: float
    recall: float
    f1: float
    support: int


def per_class(probabilities: np.ndarray, labels: np.ndarray, classes: list[str]) -> list[ClassScore]:
    """Precision, recall, F1 and support of each of the C classes, in their order."""
    from sklearn.metrics import precision_recall_fscore_support

    columns = precision_recall_fscore_support(
        labels, probabilities.argmax(axis=1), labels=np.arange(len(classes)), zero_division=0
    )
    return [
        ClassScore(name, float(precision), float(recall), float(f1), int(support))
        for name, precision, recall, f1, support in zip(classes, *columns, strict=True)
    ]


def confusion(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """int [C, C]: pictures of class [row] that were given class [column]."""
    from sklearn.metrics import confusion_matrix

    every = np.arange(probabilities.shape[1])
    return np.asarray(confusion_matrix(labels, probabilities.argmax(axis=1), labels=every))


# --------------------------------------------------------------------------------------------------------- calibration

HIGHEST_TEMPERATURE = 20.0
"""The lowest is its reciprocal."""


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """The temperature by which logits are divided so that confidence matches accuracy (Guo et al., 2017).

    Minimises the negative log-likelihood of the N labels over log T, T between 1/20 and 20. Where every picture is
    right the likelihood alone would drive T to 0, and a handful of pictures would drive it anywhere; a standard normal
    prior on log T, worth about one picture, keeps those cases near 1 and vanishes as N grows. The likelihood is never
    worse than at T = 1. No pictures (N = 0) give 1.

    Args:
        logits: finite float [N, C], of pictures that the network was not trained on.
        labels: int [N].
    """
    from scipy.optimize import minimize_scalar
    from scipy.special import log_softmax

    if len(labels) == 0:
        return 1.0
    logits = logits.astype(np.float64)
    every = np.arange(len(labels))

    def objective(log_t: float) -> float:
        likelihood = log_softmax(logits * np.exp(-log_t), axis=1)[every, labels].sum()
        return float(log_t**2 / 2 - likelihood)

    bound = np.log(HIGHEST_TEMPERATURE)
    fitted = float(minimize_scalar(objective, bounds=(-bound, bound), method="bounded").x)
    return float(np.exp(fitted)) if objective(fitted) < objective(0) else 1.0
