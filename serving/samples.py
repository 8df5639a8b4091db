"""A sample of what the endpoint is asked, for `graft watch`: embeddings, classes and confidence, and no pictures.

    a batch's thread ── chosen pictures ─→ bounded queue ─→ one thread ─→ files of `pipeline.samples`

Nothing here may hold up a request, or make it fail: what finds the queue full is dropped, and what cannot be written is
given up.

Shape letters: N pictures, C classes, D features.
"""

import queue
import random
import threading
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.samples import Sample, write_samples
from serving.logs import log
from serving.metrics import Metrics

QUEUED = 1_000
GATHER_SECONDS = 1.0
"""Between writes, so that a file is opened and locked once a second at most."""
CLOSE_SECONDS = 5.0


@dataclass(frozen=True)
class Kept:
    """One picture on its way to the file of the model `name`. The rest is a `Sample`'s; embedding: float32 [D]."""

    name: str
    time: datetime
    version: int
    label: str
    confidence: float
    embedding: np.ndarray

    def sample(self) -> Sample:
        return Sample.of(self.time, self.version, self.label, self.confidence, self.embedding)


class Sampler:
    """Writes what is kept of pictures. One a server.

    Args:
        folder: for the files; it is made.
        rate: the share of pictures that is to be kept, above 0 and at most 1.
        metrics: gets the numbers of those written, dropped and failed.
    """

    def __init__(self, folder: Path, rate: float, metrics: Metrics) -> None:
        self.rate = rate
        self._folder, self._counter = folder, metrics.samples
        self._queue: queue.Queue[Kept] = queue.Queue(QUEUED)
        self._closed = threading.Event()
        self._failing = False
        self._thread = threading.Thread(target=self._work, name="samples", daemon=True)
        self._thread.start()

    def put(self, kept: Kept) -> None:
        """Takes a picture in, or drops it: it does not wait. For any thread."""
        try:
            self._queue.put_nowait(kept)
        except queue.Full:
            self._counter.labels(kept.name, "dropped").inc()

    def close(self) -> None:
        """Writes what is there. Nothing is put in any more."""
        self._closed.set()
        self._thread.join(CLOSE_SECONDS)

    def _work(self) -> None:
        while not self._closed.wait(GATHER_SECONDS):
            self._write()
        self._write()

    def _write(self) -> None:
        models: dict[str, list[Kept]] = defaultdict(list)
        for _ in range(self._queue.qsize()):
            kept = self._queue.get_nowait()
            models[kept.name].append(kept)
        for name, several in models.items():
            try:
                write_samples(self._folder, name, [kept.sample() for kept in several])
            except (OSError, ValueError) as error:  # ValueError: what a broken model gave is no probability.
                self._counter.labels(name, "failed").inc(len(several))
                if not self._failing:
                    fields = {"folder": str(self._folder), "model": name, "error": str(error)}
                    log.warning("samples cannot be written; requests go on without them", extra={"fields": fields})
                self._failing = True
            else:
                self._counter.labels(name, "written").inc(len(several))
                if self._failing:
                    log.info("samples are written again", extra={"fields": {"folder": str(self._folder)}})
                self._failing = False


@dataclass(frozen=True)
class Sampling:
    """Chooses pictures of one version of a model, as it is served. Its methods wait for nothing, and any thread may
    call them."""

    sampler: Sampler
    name: str
    version: int
    classes: Sequence[str]

    def choose(self, count: int) -> list[int]:
        """The rows that are to be kept of a batch of `count` pictures; often none."""
        return [row for row in range(count) if random.random() < self.sampler.rate]

    def keep(self, probabilities: np.ndarray, embeddings: np.ndarray) -> None:
        """Takes them in: float32 [N, C] and [N, D], which nobody changes any more."""
        now = datetime.now(UTC)
        for scores, embedding in zip(probabilities, embeddings, strict=True):
            best = int(scores.argmax())
            label, confidence = self.classes[best], float(scores[best])
            self.sampler.put(Kept(self.name, now, self.version, label, confidence, embedding))
