"""What computes probabilities from pixels: one file each, and a row in `ENGINES`.

Shape letters: N pictures, H height, W width, C classes, D features.
"""

from collections.abc import Callable
from typing import Protocol

import numpy as np

from serving.export import Export
from serving.settings import Settings

WARMUP_SECONDS = 60.0


class LoadError(Exception):
    """A version cannot be served. The message says why, and what to do."""


class NotYet(LoadError):  # noqa: N818
    """A version cannot be served now, but may be at the next look: what computes it is away, or still loads it."""


class Model(Protocol):
    """One version of one model, ready to compute."""

    lost: bool
    """Whether what computes has dropped this version, so that it must be loaded again."""
    embeds: bool
    """Whether `embedded` can be asked for."""

    def probabilities(self, pixels: np.ndarray, seconds: float) -> np.ndarray:
        """Computes a batch. Blocks; called from several threads, at most the engine's `at_once`.

        Args:
            pixels: uint8 [N, H, W, 3] in 0..255, N from 1 to the server's largest batch.
            seconds: after which nobody waits for the answer any more.

        Returns:
            float32 [N, C].

        Raises:
            Overloaded, Unavailable, TooLate: what computes is elsewhere, and does not answer.
        """

    def embedded(self, pixels: np.ndarray, seconds: float) -> tuple[np.ndarray, np.ndarray]:
        """As `probabilities`, which come first, with the features that the network's head takes, float32 [N, D]."""

    def close(self) -> None:
        """Gives back what it holds. Nothing is computing any more."""


class Engine(Protocol):
    """Loads versions; one a server."""

    name: str
    """With its version, or address: what users are told."""
    at_once: int
    """Batches that one model may compute at the same time."""
    tolerance: float
    """Largest difference from the SavedModel's probabilities that rounding explains."""

    def load(self, export: Export) -> Model:
        """Blocks. Raises LoadError where the version cannot be served by this engine."""

    def close(self) -> None:
        """Every model is closed."""


def difference(model: Model, export: Export, max_batch: int) -> float:
    """How far a model's probabilities are from the SavedModel's own at most, on its warm-up pictures; it may be NaN.

    Raises:
        ExportError: there are no warm-up pictures.
        LoadError: the shapes differ.
    """
    pixels, expected = export.warmup()
    batches = [pixels[first : first + max_batch] for first in range(0, len(pixels), max_batch)]
    given = np.concatenate([model.probabilities(batch, WARMUP_SECONDS) for batch in batches])
    if not given.shape == expected.shape == (len(pixels), len(export.manifest.classes)):
        raise LoadError(
            f"{export.path} does not fit together: probabilities of shape {given.shape}, at export {expected.shape}, "
            f"for {len(export.manifest.classes)} classes. Export it again."
        )
    return float(np.abs(given - expected).max())


def _openvino(settings: Settings) -> Engine:
    from serving.engines.openvino import OpenVino

    return OpenVino(embeddings=settings.samples is not None)


def _tensorflow(settings: Settings) -> Engine:
    from serving.engines.tensorflow import TensorFlow

    return TensorFlow()


def _tfserving(settings: Settings) -> Engine:
    from serving.engines.tfserving import TensorFlowServing

    assert settings.upstream is not None
    return TensorFlowServing(settings.upstream)


# Functions, so that nobody waits for a library that is not used.
ENGINES: dict[str, Callable[[Settings], Engine]] = {
    "openvino": _openvino,
    "tensorflow": _tensorflow,
    "tfserving": _tfserving,
}
