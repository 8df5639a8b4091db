"""The pixels of a run's pictures, in a file, each picture decoded when it is first needed.

Shape letters: N pictures of the source, n of them, H height, W width.
"""

import hashlib
import json
import os
import weakref
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from tempfile import TemporaryFile
from threading import Lock

import numpy as np
import PIL

from pipeline.errors import DataError
from pipeline.parallel import WORKERS, in_order
from pipeline.pixels import VERSION, BadImage, PixelSpec, decode
from pipeline.sources.base import Example, Source


class PixelFile:
    """Rows of uint8 [H, W, 3] in a file, written and read in any order, from any thread.

    Read with system calls, not as a memory map: the mapped part of a file counts as a process's own memory.
    """

    def __init__(self, folder: Path, spec: PixelSpec) -> None:
        """Makes an empty file in a folder, without a name there. It is gone when nothing refers to this object any
        more, however the process ends. Raises OSError."""
        self.image_shape = spec.height, spec.width, 3
        self._row_bytes = spec.height * spec.width * 3
        file = TemporaryFile(dir=folder, buffering=0)  # noqa: SIM115
        weakref.finalize(self, file.close)
        self._file = file.fileno()
        self._writing = Lock()

    def reserve(self, rows: int) -> None:
        """Takes the room of so many rows on the disk, so that writing them cannot fail later. Raises OSError."""
        os.posix_fallocate(self._file, 0, rows * self._row_bytes)

    def write(self, position: int, pixels: np.ndarray) -> None:
        """Writes one row. Raises OSError where the disk is full."""
        assert pixels.shape == self.image_shape
        assert pixels.dtype == np.uint8
        rest, offset = np.ascontiguousarray(pixels).reshape(-1).data, position * self._row_bytes
        with self._writing:  # One at a time does the kernel too, with all others spinning.
            while rest:
                written = os.pwrite(self._file, rest, offset)
                rest, offset = rest[written:], offset + written

    def read(self, positions: np.ndarray) -> np.ndarray:
        """uint8 [n, H, W, 3]: the rows int [n], all of which have been written."""
        pixels = np.empty((len(positions), *self.image_shape), np.uint8)
        for row, position in zip(pixels, positions.tolist(), strict=True):
            count = os.preadv(self._file, [row.data], position * self._row_bytes)
            assert count == self._row_bytes, f"row {position} is not there"
        return pixels


class Decoded:
    """The pixels of all N pictures of a source. A picture's position is its number among the source's examples.

    Attributes:
        shape: (N, H, W, 3).
        present: bool [N], whose pixels are in the file.
    """

    def __init__(
        self, file: PixelFile, source: Source, spec: PixelSpec, digests: Sequence[str], present: np.ndarray
    ) -> None:
        """Takes a file with the rows that are `present`, bool [N]; `digests` are N SHA-256 hex digests of encoded
        pictures. Pictures that nobody asks for may be unreadable."""
        self.shape = len(digests), *file.image_shape
        self.present = present
        self._file = file
        self._source = source
        self._spec = spec
        self._digests = digests
        self._loading = Lock()

    def read(self, positions: np.ndarray, group: np.ndarray) -> np.ndarray:
        """Pixels at random. May be called from several threads.

        Args:
            positions: int [n].
            group: ascending positions that hold those asked for. Where any of those asked for is missing, the whole
                group is loaded: each load goes through the source from its start.

        Returns:
            uint8 [n, H, W, 3] in 0..255, RGB.

        Raises:
            DataError: as `load`.
        """
        if not self.present[positions].all():
            self.load(group)
        return self._file.read(positions)

    def load(self, positions: np.ndarray) -> None:
        """Decodes those pictures, ascending positions, that are missing; one load at a time.

        Raises:
            DataError: a picture is gone, is no longer what it was, or cannot be decoded.
        """
        with self._loading:
            missing = positions[~self.present[positions]]
            with ThreadPoolExecutor(WORKERS) as pool, closing(self._in_order(pool, missing, 4 * WORKERS)) as pictures:
                for _ in pictures:
                    pass

    def stream(
        self, positions: np.ndarray, batch_size: int = 32
    ) -> Generator[tuple[np.ndarray, np.ndarray], None, None]:
        """Pixels in the order of the source, in batches; the next batch is decoded while the caller uses this one.

        Two streams over the same missing pictures at the same time may both decode them.

        Args:
            positions: int [n], ascending.
            batch_size: how many pictures come at once; the last batch may have fewer.

        Yields:
            Positions, int [n], and their pixels, uint8 [n, H, W, 3] in 0..255, RGB.

        Raises:
            DataError: as `load`.
        """
        window = batch_size + 4 * WORKERS
        with ThreadPoolExecutor(WORKERS) as pool, closing(self._in_order(pool, positions, window)) as pictures:
            for start in range(0, len(positions), batch_size):
                batch = positions[start : start + batch_size]
                yield batch, np.stack(list(islice(pictures, len(batch))))

    def _in_order(
        self, pool: ThreadPoolExecutor, positions: np.ndarray, window: int
    ) -> Generator[np.ndarray, None, None]:
        return in_order(pool, self._picture, self._with_examples(positions), window)

    def _with_examples(self, positions: np.ndarray) -> Iterator[tuple[int, Example | None]]:
        """Each position, with its example where it is missing. Where none is, the source is not gone through."""
        missing = positions[~self.present[positions]]
        examples = examples_at(self._source, missing)
        absent = set(missing.tolist())
        for position in positions.tolist():
            yield position, next(examples) if position in absent else None

    def _picture(self, item: tuple[int, Example | None]) -> np.ndarray:
        """uint8 [H, W, 3]: one picture, from the file or decoded and put there."""
        position, example = item
        if example is None:
            picture: np.ndarray = self._file.read(np.array([position]))[0]
            return picture
        try:
            pixels = decode(unchanged(example, self._digests[position]), self._spec)
        except BadImage as error:
            raise DataError(
                f"The picture {example.name} cannot be decoded ({error}), although it could be in an earlier run. "
                "Remove it from the data, and run again."
            ) from error
        self._file.write(position, pixels)
        self.present[position] = True
        return pixels


def pixel_settings(spec: PixelSpec) -> str:
    """All that pixels follow from besides the encoded picture, as a SHA-256 hex digest."""
    # Pillow brings the decoders with it.
    settings = asdict(spec) | {"version": VERSION, "pillow": PIL.__version__}
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()


def examples_at(source: Source, positions: np.ndarray) -> Iterator[Example]:
    """The examples at ascending positions, int [n], of a source that is gone through again, from its start.

    Raises:
        DataError: there are no longer so many.
    """
    assert np.all(np.diff(positions) > 0), "positions must ascend"
    if not len(positions):
        return
    examples, start = source.examples(), 0
    for position in positions.tolist():
        example = next(islice(examples, position - start, None), None)
        if example is None:
            raise DataError(
                f"Pictures are gone since the run began: the data ends before number {position + 1}. Run again, and "
                "leave the data as it is until the run has ended."
            )
        yield example
        start = position + 1


def unchanged(example: Example, digest: str) -> bytes:
    """The encoded picture, read again.

    Raises:
        DataError: it cannot be read, or no longer has the SHA-256 hex digest it had.
    """
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
