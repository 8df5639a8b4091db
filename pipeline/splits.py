"""A run's pictures, divided: what `ingest` makes and every later stage reads.

Shape letters: N pictures, H height, W width.
"""

from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np

from pipeline.decoded import Decoded, examples_at, unchanged
from pipeline.sources.base import Source, SplitName


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
        positions: int64 [N], ascending: each picture's number among the source's examples.
        pixels: of all the source's pictures, by position; those of all splits.
    """

    name: SplitName
    labels: np.ndarray
    names: tuple[str, ...]
    digests: tuple[str, ...]
    positions: np.ndarray = field(repr=False)
    pixels: Decoded = field(repr=False)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(H, W, 3)."""
        _, height, width, channels = self.pixels.shape
        return height, width, channels

    @cached_property
    def contents(self) -> np.ndarray:
        """int32 [N]: a number from each picture's digest, to seed what is random about it."""
        return np.array([int(digest[:8], 16) & 0x7FFFFFFF for digest in self.digests], np.int32)

    def images(self, rows: np.ndarray) -> np.ndarray:
        """Pixels at random: uint8 [n, H, W, 3] in 0..255, RGB, of pictures int [n] in 0..N-1.

        May be called from several threads. Where one of those pictures is not decoded yet, the whole split is first.

        Raises:
            DataError: as `load`.
        """
        return self.pixels.read(self.positions[rows], self.positions)

    def load(self) -> None:
        """Decodes what is not decoded yet.

        Raises:
            DataError: a picture is gone, is no longer what it was, or cannot be decoded.
        """
        self.pixels.load(self.positions)

    def stream(self, rows: np.ndarray, batch_size: int = 32) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Pixels in order, in batches; the next batch is decoded, where need be, while the caller uses this one.

        Args:
            rows: int [n] in 0..N-1, ascending.
            batch_size: how many pictures come at once; the last batch may have fewer.

        Yields:
            Rows, int [n], and their pixels, uint8 [n, H, W, 3] in 0..255, RGB.

        Raises:
            DataError: as `load`.
        """
        with closing(self.pixels.stream(self.positions[rows], batch_size)) as batches:
            for positions, images in batches:
                yield np.searchsorted(self.positions, positions), images


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
        for row, example in zip(rows, examples_at(self.source, split.positions[rows]), strict=True):
            yield unchanged(example, split.digests[row])
