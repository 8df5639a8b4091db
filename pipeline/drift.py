"""Whether what an endpoint is asked still looks like the data its model was trained on. No TensorFlow.

Three figures compare the pictures that were sampled with those of the training data: the population stability index of
the predicted classes and of the confidence, and the energy distance of the embeddings. A figure counts where it is
large enough to matter and chance does not explain it.

Shape letters: N samples, M reference pictures, C classes, D features, B bins, R rearrangements.
"""

import zipfile
import zlib
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from pipeline.artifacts import Record, read_manifest
from pipeline.errors import DataError, ExportError
from pipeline.samples import Samples, read_samples

REFERENCE = Path("assets.extra") / "reference.npz"
FEWEST = 50
"""Samples of different pictures, below which nothing is said."""
FEWEST_HELD_OUT = 20
"""Held-out pictures, likewise."""
NEWEST = 500
"""Different pictures that are compared at most: 200 new ones must show among older ones that were as they should be."""
LARGE_PSI = 0.25
"""The customary bounds are 0.1 for a small and 0.25 for a large shift (Siddiqi, Credit Risk Scorecards, 2006, 13)."""
LARGE_DISTANCE = 0.01
"""About what one picture in seven of quite another kind makes. Photographs the network was trained on and others of the
same kind differ by less than half of it."""
P = 0.001
"""A model that is watched every night is compared 365 times a year, by three figures."""
REARRANGEMENTS = 1999
_BINS = 10  # of confidence
_SAME = 1e-3  # of its length: embeddings that are so close are of one picture


@dataclass(frozen=True)
class Reference:
    """What a model made of the data it comes from.

    Attributes:
        name, version: the model's, as it is served.
        embeddings: float32 [M, D].
        labels: the most probable class, str [M].
        confidences: its probability, float64 [M].
        held_out: whether the model was not trained on the picture, bool [M].
    """

    name: str
    version: int
    embeddings: np.ndarray
    labels: np.ndarray
    confidences: np.ndarray
    held_out: np.ndarray


class Figure(Record):
    """One figure of a comparison.

    Attributes:
        value: 0 where there is no difference.
        p: the share of random rearrangements of both sides' pictures that differ as much; 0 to 1.
        differs: whether it is large, and chance does not explain it.
    """

    value: float
    p: float
    differs: bool


class Comparison(Record):
    """The samples beside some of the reference's pictures.

    Attributes:
        against: which ones.
        pictures: how many.
        classes: population stability index of the predicted classes.
        confidence: the same of the confidence, in ten bins.
        embeddings: energy distance of the embeddings, as a share of the mean distance: 0 to 1.
    """

    against: str
    pictures: int
    classes: Figure
    confidence: Figure
    embeddings: Figure

    @property
    def differs(self) -> bool:
        return self.classes.differs or self.confidence.differs or self.embeddings.differs


class Drift(Record):
    """What `watch` finds.

    Attributes:
        name, version: of the model.
        samples: different pictures that were compared, the newest ones.
        repeated: samples that were left out, as they show what another one shows.
        first, last: when the first and the last of them was answered, UTC, ISO 8601; None without any.
        comparisons: none where there are too few samples.
        drifted: whether the samples differ from every part of the reference.
        sentence: all that in words.
    """

    name: str
    version: int
    samples: int
    repeated: int
    first: str | None
    last: str | None
    comparisons: list[Comparison]
    drifted: bool
    sentence: str


def watch(export_dir: Path, folder: Path, seed: int) -> Drift:
    """Compares what the endpoint was asked of a model with the data the model comes from.

    Args:
        export_dir: a model's version, where the endpoint reads it: NAME/VERSION/.
        folder: of samples, as `graft serve --samples` was given it. Those of other versions are left out: embeddings
            of two networks cannot be compared.
        seed: of the rearrangements.

    Raises:
        ExportError: the folder is not an exported model, or has nothing to compare with.
        DataError: the samples cannot be read.
    """
    reference = read_reference(export_dir)
    # A number is given again where a version was removed, so what is older than the model is another's.
    since = datetime.fromisoformat(read_manifest(export_dir).created_at)
    try:
        if not folder.is_dir():
            raise DataError(
                f"There is no folder {folder} with samples of what the endpoint is asked. Serve the model with graft "
                "serve --samples, and give the folder named there."
            )
        width = reference.embeddings.shape[1]
        samples = read_samples(folder, reference.name, reference.version, width, since)
    except OSError as error:
        raise DataError(f"The samples in {folder} cannot be read: {error}. Make them readable.") from None
    return compare(reference, samples, seed)


def read_reference(export_dir: Path) -> Reference:
    """Raises ExportError where the folder is not an exported model, or has nothing to compare with."""
    manifest, path = read_manifest(export_dir), export_dir.absolute()
    if not path.name.isdecimal():
        raise ExportError(
            f"{export_dir} is not a version that an endpoint serves. Give the folder with the version number that it "
            "reads, e.g. export/NAME/1."
        )
    try:
        # Opened here, as NumPy leaves a file open that it cannot read.
        with (path / REFERENCE).open("rb") as file, np.load(file) as arrays:
            embeddings, probabilities, split = (arrays[key] for key in ("embeddings", "probabilities", "split"))
    except FileNotFoundError:
        reason = "it was exported before graft kept what its data looks like. Train it again"
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        reason = f"its {REFERENCE} cannot be read ({error}). Export it again"
    else:
        return Reference(
            path.parent.name,
            int(path.name),
            embeddings.astype(np.float32),
            np.array(manifest.classes)[probabilities.argmax(axis=1)],
            probabilities.max(axis=1).astype(np.float64),
            split > 0,
        )
    raise ExportError(f"What {export_dir} is asked cannot be watched: {reason}.")


def compare(reference: Reference, samples: Samples, seed: int) -> Drift:
    """Compares samples of one version with its reference.

    A network answers for the pictures it was trained on with more confidence than for any others, and its embeddings
    separate them better. So the samples have drifted where they differ from the held-out pictures, and from the
    training pictures too, and from both together: an endpoint may be asked any of them.

    Args:
        seed: of the rearrangements.
    """
    distinct = _distinct(samples)
    comparisons = []
    if len(distinct) >= FEWEST and reference.held_out.sum() >= FEWEST_HELD_OUT:
        parts = {
            "held-out": reference.held_out,
            "training": ~reference.held_out,
            "held-out and training": np.ones(len(reference.held_out), bool),
        }
        comparisons = [
            _comparison(against, reference, rows, distinct, np.random.default_rng(seed))
            for against, rows in parts.items()
            if rows.any()
        ]
    drifted = bool(comparisons) and all(comparison.differs for comparison in comparisons)
    return Drift(
        name=reference.name,
        version=reference.version,
        samples=len(distinct),
        repeated=len(samples) - len(distinct),
        first=distinct.times[0].isoformat(timespec="seconds") if len(distinct) else None,
        last=distinct.times[-1].isoformat(timespec="seconds") if len(distinct) else None,
        comparisons=comparisons,
        drifted=drifted,
        sentence=_sentence(reference, distinct, comparisons, drifted),
    )


def _sentence(reference: Reference, samples: Samples, comparisons: list[Comparison], drifted: bool) -> str:
    what, held_out = f"what version {reference.version} of {reference.name} is asked", int(reference.held_out.sum())
    if held_out < FEWEST_HELD_OUT:
        return (
            f"It cannot be told whether {what} has drifted: {held_out} pictures of its data were held out from the "
            f"training, and at least {FEWEST_HELD_OUT} are needed."
        )
    if not comparisons:
        return (
            f"It cannot be told yet whether {what} has drifted: {len(samples)} different pictures were sampled, and at "
            f"least {FEWEST} are needed."
        )
    first, last = (time.astimezone(UTC).strftime("%Y-%m-%d %H:%M") for time in (samples.times[0], samples.times[-1]))
    shown = next((each for each in comparisons if not each.differs), comparisons[0])
    differing = {"predicted classes": shown.classes, "confidence": shown.confidence, "embeddings": shown.embeddings}
    differ = " and ".join(name for name, figure in differing.items() if figure.differs)
    verdict = f"has drifted: the {differ} of" if drifted else "has not drifted:"
    return (
        f"W{what[1:]} {verdict} {len(samples)} different pictures from {first} to {last} UTC "
        f"{'differ from those' if drifted else 'are like those'} of its data. Beside {shown.pictures} {shown.against} "
        f"pictures, the population stability index of the predicted classes is {_said(shown.classes)}, that of the "
        f"confidence {_said(shown.confidence)}, and the energy distance of the embeddings {_said(shown.embeddings)}."
    )


def _said(figure: Figure) -> str:
    return f"{figure.value:.3f} (p = {figure.p:.2g})"


def _distinct(samples: Samples) -> Samples:
    """The newest samples, of different pictures: health checks ask for the same one again and again."""
    if not len(samples):
        return samples
    _, last = np.unique(samples.embeddings[::-1], axis=0, return_index=True)
    rows = np.sort(len(samples) - 1 - last)[-NEWEST:]
    embeddings = samples.embeddings[rows]
    # A picture's embedding depends a little on those it was computed with, unless the engine takes one at a time.
    near = _distances(embeddings) <= _SAME * np.linalg.norm(embeddings, axis=1)
    return samples.take(rows[~np.triu(near, 1).any(axis=0)])


def _comparison(
    against: str, reference: Reference, rows: np.ndarray, samples: Samples, random: np.random.Generator
) -> Comparison:
    """A permutation test of each figure (Good, Permutation, Parametric and Bootstrap Tests of Hypotheses, 2005).

    It is exact for any number of pictures, classes and features, as nothing but `chosen` knows which side a picture
    comes from: bins and distances are those of both together.
    """
    n, m = len(samples), int(rows.sum())
    # bool [N + M, R + 1]: which pictures are taken for the samples. In the first column, those that are.
    chosen = np.zeros((n + m, REARRANGEMENTS + 1), bool)
    chosen[:n] = True
    chosen[:, 1:] = random.permuted(chosen[:, 1:], axis=0)

    labels = np.unique(np.concatenate([samples.labels, reference.labels[rows]]), return_inverse=True)[1]
    confidences = np.concatenate([samples.confidences, reference.confidences[rows]])
    edges = np.unique(np.quantile(confidences, np.linspace(0, 1, _BINS + 1)[1:-1]))
    embeddings = np.concatenate([samples.embeddings, reference.embeddings[rows]])
    return Comparison(
        against=against,
        pictures=m,
        classes=_figure(stability(labels, chosen), LARGE_PSI),
        confidence=_figure(stability(np.searchsorted(edges, confidences, side="right"), chosen), LARGE_PSI),
        embeddings=_figure(energy(embeddings, chosen), LARGE_DISTANCE),
    )


def stability(bins: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Population stability index of the chosen pictures beside the others: the sum over bins of (a - b) ln(a / b).

    Each bin has half a picture more than was counted, or an empty one would make it infinite.
    Yurdakul, Statistical Properties of Population Stability Index, 2018: chance alone gives about (1/N + 1/M) (B - 1),
    which is 0.25 for 50 pictures a side and seven bins. Hence the test.

    Args:
        bins: each picture's, from 0, int64 [N + M].
        chosen: bool [N + M, R].

    Returns:
        float64 [R].
    """
    number = int(bins.max()) + 1
    counted = np.eye(number, dtype=np.float32)[bins].T @ chosen.astype(np.float32)  # Exact up to 2 ** 24 pictures.
    total = np.bincount(bins, minlength=number)[:, None]
    taken = chosen.sum(axis=0)
    a = (counted + 0.5) / (taken + number / 2)
    b = (total - counted + 0.5) / (len(bins) - taken + number / 2)
    found: np.ndarray = ((a - b) * np.log(a / b)).sum(axis=0, dtype=np.float64)
    return found


def energy(embeddings: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """Energy distance of the chosen pictures and the others: (2 E|X - Y| - E|X - X'| - E|Y - Y'|) / 2 E|X - Y|.

    0 for equal distributions and 1 at most (Székely and Rizzo, Energy statistics, 2013). It is a maximum mean
    discrepancy (Sejdinovic and others, Equivalence of distance-based and RKHS-based statistics, 2013) that needs no
    bandwidth, and no directions: those in which the samples differ need not be those in which the data does.

    Args:
        embeddings: float32 [N + M, D].
        chosen: bool [N + M, R].

    Returns:
        float64 [R].
    """
    distances = _distances(embeddings).astype(np.float32)
    n = chosen.sum(axis=0)
    m = len(chosen) - n
    # Sums of distances: from each picture to the chosen ones; among these; from them to the others; among the others.
    to_chosen = distances @ chosen.astype(np.float32)
    among = np.einsum("ij,ij->j", to_chosen, chosen, dtype=np.float64)
    across = to_chosen.sum(axis=0, dtype=np.float64) - among
    among_others = distances.sum(dtype=np.float64) - among - 2 * across
    found: np.ndarray = 1 - (among / n**2 + among_others / m**2) / (2 * across / (n * m))
    return found


def _figure(values: np.ndarray, large: float) -> Figure:
    """From the figure, which is the first, and those of rearrangements.

    The figure is one of the rearrangements: Phipson and Smyth, Permutation P-values should never be zero, 2010.
    """
    value = float(values[0])
    p = float(np.mean(values >= value - 1e-7))  # What is equal may be rounded.
    return Figure(value=value, p=p, differs=value >= large and p <= P)


def _distances(rows: np.ndarray) -> np.ndarray:
    """Euclidean, of each of [N, D] to each: float64 [N, N]."""
    rows = (rows - rows.mean(axis=0)).astype(np.float64)
    squares = (rows**2).sum(axis=1)
    distances: np.ndarray = np.sqrt(np.maximum(squares[:, None] + squares - 2 * rows @ rows.T, 0))
    np.fill_diagonal(distances, 0)
    return distances
