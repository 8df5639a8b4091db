"""A run's pictures, divided: what `ingest` makes and every later stage reads.

Shape letters: N pictures, H height, W width.
"""

import hashlib
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np

from pipeline.decoded import Decoded, examples_at, unchanged
from pipeline.errors import DataError
from pipeline.sources.base import SPLIT_NAMES, Source, SplitName, listed


@dataclass(frozen=True)
class LeftOut:
    """A picture that is in no split, and why. Its digest is empty where it cannot even be read."""

    name: str
    label: str
    digest: str
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

    @classmethod
    def of_rows(cls, name: SplitName, rows: list[tuple[int, int, str, str]], pixels: Decoded) -> "Split":
        """From each picture's position, label, name and digest, by ascending position."""
        return cls(
            name,
            np.array([label for _, label, _, _ in rows], np.int32),
            tuple(name for _, _, name, _ in rows),
            tuple(digest for _, _, _, digest in rows),
            np.array([position for position, _, _, _ in rows], np.int64),
            pixels,
        )

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
        quarantine: pictures that cannot be used.
        notes: sentences for the user on how the data was used.
        source: where the pictures came from.
        held: good pictures that are kept out of the splits.
    """

    classes: tuple[str, ...]
    train: Split
    validation: Split
    test: Split
    quarantine: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    source: Source = field(repr=False)
    held: tuple[LeftOut, ...] = ()

    @property
    def all(self) -> tuple[Split, Split, Split]:
        return self.train, self.validation, self.test

    @cached_property
    def digest(self) -> str:
        """SHA-256 hex digest over every picture's content, label and split; the order does not matter."""
        lines = [
            f"{digest} {split.name} {self.classes[label]}\n"
            for split in self.all
            for digest, label in zip(split.digests, split.labels, strict=True)
        ]
        return hashlib.sha256("".join(sorted(lines)).encode()).hexdigest()

    def moved(self, places: Mapping[str, SplitName], held: Mapping[str, str]) -> "Splits":
        """The same pictures, some of them elsewhere.

        Args:
            places: by SHA-256 hex digest, the split that a picture goes to. The others stay where they are.
            held: by digest, why a picture is taken out of the splits.

        Raises:
            DataError: nothing is left of a split, or of a class in train.
        """
        rows: dict[SplitName, list[tuple[int, int, str, str]]] = {name: [] for name in SPLIT_NAMES}
        out = list(self.held)
        for split in self.all:
            for row in zip(split.positions.tolist(), split.labels.tolist(), split.names, split.digests, strict=True):
                _, label, name, digest = row
                if digest in held:
                    out.append(LeftOut(name, self.classes[label], digest, held[digest]))
                else:
                    rows[places.get(digest, split.name)].append(row)
        pixels = self.train.pixels
        splits = {name: Split.of_rows(name, sorted(rows[name]), pixels) for name in SPLIT_NAMES}
        check_splits(splits, self.classes)
        return replace(
            self, train=splits["train"], validation=splits["validation"], test=splits["test"], held=tuple(out)
        )

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


def check_splits(splits: dict[SplitName, Split], classes: tuple[str, ...]) -> tuple[str, ...]:
    """Refuses, by DataError, splits that cannot be trained or tested on; notes for those that are merely poor."""
    notes = []
    for name, split in splits.items():
        present = set(split.labels.tolist())
        absent = [label for i, label in enumerate(classes) if i not in present]
        sizes = ", ".join(f"{other} {len(splits[other])}" for other in SPLIT_NAMES)
        if not len(split):
            raise DataError(
                f"The {name} split is empty (pictures: {sizes}). Add pictures, change data.validation_fraction and "
                "data.test_fraction, or bring splits of your own as folders or a column of a CSV file."
            )
        if absent and name == "train":
            raise DataError(
                f"Nothing is left to learn {listed(absent)} from: no such picture is in the train split (pictures: "
                f"{sizes}). Add pictures, lower data.validation_fraction and data.test_fraction, bring splits of your "
                "own, or leave the class out with data.classes."
            )
        if absent:
            notes.append(f"The {name} split has no picture of {listed(absent)}.")
    return tuple(notes)
