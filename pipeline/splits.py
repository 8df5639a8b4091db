"""A run's pictures, decoded and divided: what `ingest` makes and every later stage reads.

Shape letters: N pictures, H height, W width.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np

from pipeline.errors import DataError
from pipeline.sources.base import Example, Source, SplitName


@dataclass(frozen=True)
class Quarantined:
    """A picture that is left out, and why."""

    name: str
    reason: str


@dataclass(frozen=True, eq=False)
class Split:
    """The N pictures of one split, in the order of the source.

    Attributes:
        name: train, validation or test.
        labels: int32 [N], indices into the run's classes.
        names: N names, as the source gives them.
        digests: N SHA-256 hex digests of the encoded bytes.
        positions: int64 [N], ascending: each picture's number among the source's examples, and row of the store.
        store: uint8 [rows, H, W, 3], memory-mapped; the pixels of all splits.
    """

    name: SplitName
    labels: np.ndarray
    names: tuple[str, ...]
    digests: tuple[str, ...]
    positions: np.ndarray = field(repr=False)
    store: np.ndarray = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""
        _, height, width, channels = self.store.shape
        return height, width, channels

    def images(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3] in 0..255, RGB, of pictures int [n] in 0..N-1. May be called from several threads."""
        images: np.ndarray = self.store[self.positions[rows]]
        return images


@dataclass(frozen=True, eq=False)
class Splits:
    """A run's pictures.

    Attributes:
        classes: names in the order of the network's outputs.
        train: what weights and means are learned from.
        validation: what choices are made on.
        test: what the final figures are taken on.
        quarantine: what was left out.
        notes: sentences for the user on how the data was used.
        digest: SHA-256 hex digest over every picture's content, label and split; the order does not matter.
        source: where the pictures came from.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    quarantine: tuple[Quarantined, ...]
    notes: tuple[str, ...]
    digest: str
    source: Source = field(repr=False)

    @property
    def all(self) -> tuple[Split, Split, Split]:
        return self.train, self.validation, self.test

    def encoded(self, split: Split, rows: np.ndarray) -> Iterator[bytes]:
        """Reads encoded pictures from the source again, one at a time.

        Every call goes through the source from its start: ask once for all pictures rather than often for a few.

        Args:
            split: one of this object's splits.
            rows: int [n] in 0..N-1, ascending.

        Raises:
            DataError: a picture is gone or is no longer what it was.
        """
        positions = split.positions[rows]
        assert np.all(np.diff(positions) > 0), "rows must ascend"
        wanted = dict(zip(positions.tolist(), np.asarray(rows).tolist(), strict=True))
        for position, example in enumerate(self.source.examples()):
            if not wanted:
                return
            row = wanted.pop(position, None)
            if row is not None:
                yield _unchanged(example, split.digests[row])
        if wanted:
            raise DataError(
                f"{len(wanted)} pictures of the {split.name} split, such as {split.names[min(wanted.values())]}, are "
                "gone since the run began. Run again, and leave the data as it is until the run has ended."
            )


def _unchanged(example: Example, digest: str) -> bytes:
    try:
        encoded = example.read()
    except OSError as error:
        problem = f"can no longer be read ({error.strerror or error})"
    else:
        if hashlib.sha256(encoded).hexdigest() == digest:
            return encoded
        problem = "has changed"
    raise DataError(
        f"The picture {example.name} {problem} since the run began. Run again, and leave the data as it is until the "
        "run has ended."
    )
