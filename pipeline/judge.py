"""Champion and challenger on the same test pictures: what each says, how long it takes, and where they differ.

Both are read back from disk and get the same encoded pictures, each by its own way from bytes to pixels, as at serving.

Shape letters: N test pictures, n of a batch, C classes.
"""

import base64
import csv
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from pipeline import contents, flips
from pipeline.artifacts import CLUSTERS, LEARNED_FROM, MODEL, Record, read_manifest
from pipeline.config import Gate
from pipeline.console import Console
from pipeline.decoded import unchanged
from pipeline.errors import DataError
from pipeline.flips import Flip
from pipeline.gate import Decision, decide
from pipeline.gate_page import MOST_PICTURES
from pipeline.paired import Answers
from pipeline.parallel import WORKERS
from pipeline.pixels import decode
from pipeline.sources.base import Source

_BATCH = 32
_TIMED = 40  # Pictures, one at a time, by each model in turn.
_KNOWN = 8


class Leak(Record):
    """Test pictures that the champion has learned from, itself or a near duplicate.

    Attributes:
        names: of the pictures. They are left out of the comparison.
        accuracy_with, accuracy_without: the champion's, on all test pictures and on the others; None where there are
            no others.
    """

    names: list[str]
    accuracy_with: float
    accuracy_without: float | None

    @property
    def sentence(self) -> str:
        without = "no other is left" if self.accuracy_without is None else f"{self.accuracy_without:.1%} without"
        return (
            f"The champion has learned from {len(self.names)} of the test pictures, or from near duplicates of them: "
            f"its accuracy is {self.accuracy_with:.1%} with them, {without}. They are left out of the comparison."
        )


class Known(Record):
    """A test picture, encoded and in base64, and the probability that the challenger gives each class."""

    picture: str
    probabilities: dict[str, float]


class Verdict(Record):
    """`gate.json`.

    Attributes:
        decision: of the gate.
        leak: what the champion has learned from; None for nothing.
        missing: frozen test pictures that are no longer in the data.
        repeated: test pictures that show the same as another one. They are left out: chance knows nothing of them.
        known: a few test pictures and the challenger's answers, for the endpoint to be asked.
    """

    decision: Decision
    leak: Leak | None
    missing: int
    repeated: int
    known: list[Known]


@dataclass(frozen=True, eq=False)
class Judged:
    """A verdict, and what is behind it.

    Attributes:
        flips: from champion to challenger; none without a champion.
        pictures: uint8 [H, W, 3] by digest, of the first MOST_PICTURES flips, as the challenger sees them.
    """

    verdict: Verdict
    flips: list[Flip]
    pictures: dict[str, np.ndarray]


def judge(
    run_dir: Path,
    champion: tuple[str, Path] | None,
    source: Source,
    frozen: int,
    rules: Gate,
    seed: int,
    console: Console,
) -> Judged:
    """Compares a challenger with the champion.

    Args:
        run_dir: the challenger's run.
        champion: what to call it, and its exported model; None for a challenger without one.
        source: where the test pictures are read again.
        frozen: how many pictures the frozen test set has.
        rules: of the gate.
        seed: of its resampling.
        console: gets a bar.

    Raises:
        DataError: a test picture is gone or has changed since the run, or the champion has learned from all of them.
        ExportError: a model cannot be read.
    """
    test, clusters = _test_rows(run_dir), contents.clusters(run_dir / CLUSTERS)
    models = [_Model("the challenger", run_dir / MODEL)]
    if champion is not None:
        models.append(_Model(*champion))
    classes = list(dict.fromkeys(label for model in models for label in model.classes))
    number = {label: place for place, label in enumerate(classes)}
    labels = np.array([number[row["label"]] for row in test])

    scores = [np.zeros((len(test), len(classes))) for _ in models]
    with console.bar("judging on the test pictures", len(test)) as advance, ThreadPoolExecutor(WORKERS) as pool:
        pictures = _encoded(source, test)
        for start in range(0, len(test), _BATCH):
            batch = list(islice(pictures, _BATCH))
            for model, table in zip(models, scores, strict=True):
                columns = [number[label] for label in model.classes]
                table[start : start + len(batch), columns] = model.probabilities(list(pool.map(model.decode, batch)))
            advance(len(batch))
    first = list(islice(_encoded(source, test), _TIMED))
    latencies = _latencies(models, first)
    answers = [
        Answers(model.name, table, latency) for model, table, latency in zip(models, scores, latencies, strict=True)
    ]

    leak, clean = None, np.ones(len(test), bool)
    if champion is not None:
        clean = ~_learned(test, champion[1], clusters)
        if not clean.all():
            right = scores[1].argmax(axis=1) == labels
            leak = Leak(
                names=[row["path"] for row, is_clean in zip(test, clean, strict=True) if not is_clean],
                accuracy_with=float(right.mean()),
                accuracy_without=float(right[clean].mean()) if clean.any() else None,
            )
            console.warn(leak.sentence)
            if not clean.any():
                raise DataError(f"{leak.sentence} Freeze another test set: graft freeze-test CONFIG.")
    repeated = clean & np.array(contents.repeated([row["sha256"] for row in test], clusters))
    clean &= ~repeated
    challenger, *others = [Answers(a.name, a.probabilities[clean], a.latency_ms) for a in answers]
    old = next(iter(others), None)
    decision = decide(old, challenger, labels[clean], classes, rules, seed)
    verdict = Verdict(
        decision=decision,
        leak=leak,
        missing=frozen - len({row["sha256"] for row in test}),
        repeated=int(repeated.sum()),
        known=[
            Known(
                picture=base64.b64encode(data).decode(),
                probabilities={label: float(scores[0][row, number[label]]) for label in models[0].classes},
            )
            for row, data in enumerate(first[:_KNOWN])
        ],
    )
    if old is None:
        return Judged(verdict, [], {})
    judged = [test[row] for row in np.flatnonzero(clean)]
    digests, names = [row["sha256"] for row in judged], [row["path"] for row in judged]
    found = flips.between(old, challenger, labels[clean], classes, digests, names)
    return Judged(verdict, found, _pictures(models[0], found[:MOST_PICTURES], judged, source))


class _Model:
    """An exported model, read back."""

    def __init__(self, name: str, path: Path) -> None:
        import tensorflow as tf

        self.name = name
        manifest = read_manifest(path)
        self.classes = manifest.classes
        self._spec = manifest.pixels
        self._loaded = tf.saved_model.load(str(path))  # A signature does not keep its model's variables alive.
        self._signature = self._loaded.signatures["pixels"]

    def decode(self, encoded: bytes) -> np.ndarray:
        """uint8 [H, W, 3]."""
        return decode(encoded, self._spec)

    def probabilities(self, pixels: Sequence[np.ndarray]) -> np.ndarray:
        """float32 [n, C] for n pictures."""
        import tensorflow as tf

        answer: np.ndarray = self._signature(pixels=tf.constant(np.stack(pixels)))["probabilities"].numpy()
        return answer


def _test_rows(run_dir: Path) -> list[dict[str, str]]:
    """What a run's `splits.csv` says of its test pictures."""
    with (run_dir / "splits.csv").open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if row["split"] == "test"]


def _encoded(source: Source, rows: list[dict[str, str]]) -> Iterator[bytes]:
    """The pictures of the rows, in their order, which is the source's."""
    wanted = iter(rows)
    row = next(wanted, None)
    for example in source.examples():
        if row is None:
            return
        if example.name == row["path"]:
            yield unchanged(example, row["sha256"])
            row = next(wanted, None)
    if row is not None:
        raise DataError(f"The test picture {row['path']} has gone since the run began. Run graft retrain again.")


def _latencies(models: list[_Model], encoded: list[bytes]) -> list[float]:
    """Each model's median milliseconds for one picture, pixels to probabilities; in turn, so that both meet the same
    other load."""
    times: list[list[float]] = [[] for _ in models]
    for data in [encoded[0], *encoded]:
        for model, taken in zip(models, times, strict=True):
            pixels = [model.decode(data)]
            started = time.perf_counter()
            model.probabilities(pixels)
            taken.append((time.perf_counter() - started) * 1e3)
    return [statistics.median(taken[1:]) for taken in times]  # In the first call, much is set up.


def _learned(test: list[dict[str, str]], champion: Path, clusters: Mapping[str, str]) -> np.ndarray:
    """bool [N]: whether the champion has learned from, or was tuned on, a test picture or a near duplicate of it."""
    known: set[str] = set()
    if (champion / LEARNED_FROM).is_file():
        known = contents.learned(champion / LEARNED_FROM)
    learned = contents.with_alike(known, clusters)
    return np.array([row["sha256"] in learned for row in test])


def _pictures(
    model: _Model, drawn: Sequence[Flip], rows: list[dict[str, str]], source: Source
) -> dict[str, np.ndarray]:
    """Those of the flips, as the model sees them, by digest."""
    digests = {flip.digest for flip in drawn}
    wanted = [row for row in rows if row["sha256"] in digests]
    pixels = map(model.decode, _encoded(source, wanted))
    return {row["sha256"]: picture for row, picture in zip(wanted, pixels, strict=True)}
