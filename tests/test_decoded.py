"""Pictures decoded when they are first needed, and the ordered pool map under it."""

import gc
import hashlib
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config import Data
from pipeline.decoded import Decoded, PixelFile, pixel_settings
from pipeline.errors import DataError
from pipeline.parallel import WORKERS, in_order
from pipeline.pixels import PixelSpec, decode
from pipeline.sources import open_source
from pipeline.sources.base import Example, Source

SPEC = PixelSpec(12, 16, crop=1.0)


def picture(seed: int) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 256, (20, 24, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


class Sequential:
    """A source that hands each picture out as it comes by, as a TFDS dataset does, and counts."""

    def __init__(self, pictures: list[bytes]) -> None:
        self.pictures = pictures
        self.passes = 0
        self.reads: Counter[int] = Counter()
        self.source = Source(("a", "b"), None, self._examples)

    def _examples(self) -> Iterator[Example]:
        self.passes += 1
        for i in range(len(self.pictures)):
            yield Example(f"made/{i}", "ab"[i % 2], None, lambda i=i: self._read(i))  # type: ignore[misc]

    def _read(self, i: int) -> bytes:
        self.reads[i] += 1
        return self.pictures[i]


@pytest.fixture
def made(tmp_path: Path) -> Callable[[int], tuple[Sequential, Decoded]]:
    """So many pictures, none of them decoded."""

    def made(count: int) -> tuple[Sequential, Decoded]:
        made = Sequential([picture(i) for i in range(count)])
        digests = [hashlib.sha256(encoded).hexdigest() for encoded in made.pictures]
        return made, Decoded(PixelFile(tmp_path, SPEC), made.source, SPEC, digests, np.zeros(count, bool))

    return made


def pixels_of(sequential: Sequential, positions: np.ndarray) -> np.ndarray:
    return np.stack([decode(sequential.pictures[position], SPEC) for position in positions])


Made = Callable[[int], tuple[Sequential, Decoded]]


# ------------------------------------------------------------------------------------------------------------ at random


def test_pixels_at_random_are_those_of_the_decoder(made: Made) -> None:
    sequential, decoded = made(50)
    assert decoded.shape == (50, 12, 16, 3)
    group = np.arange(0, 50, 3)
    positions = np.array([30, 0, 48, 30])
    images = decoded.read(positions, group)
    assert (images.dtype, images.shape) == (np.uint8, (4, 12, 16, 3))
    assert (images == pixels_of(sequential, positions)).all()


def test_a_load_is_one_pass_over_what_is_missing_of_the_group(made: Made) -> None:
    sequential, decoded = made(40)
    decoded.read(np.array([4]), np.arange(0, 10, 2))
    assert sequential.reads == dict.fromkeys(range(0, 10, 2), 1)
    decoded.read(np.array([2, 8]), np.arange(10))
    assert sequential.passes == 1
    decoded.read(np.array([3]), np.arange(10))
    assert sequential.passes == 2
    assert sequential.reads == dict.fromkeys(range(10), 1)
    assert decoded.present.tolist() == [i < 10 for i in range(40)]


def test_many_threads_that_read_at_once_decode_each_picture_once(made: Made) -> None:
    sequential, decoded = made(100)
    group = np.arange(0, 100, 2)

    def read(seed: int) -> bool:
        positions = np.random.default_rng(seed).choice(group, 20)
        return bool((decoded.read(positions, group) == pixels_of(sequential, positions)).all())

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, range(40)))
    assert sequential.passes == 1
    assert sequential.reads == dict.fromkeys(group.tolist(), 1)


def test_the_file_is_there_as_long_as_it_is_needed_and_no_longer(made: Made, tmp_path: Path) -> None:
    def open_files() -> int:
        return len(list(Path("/dev/fd").iterdir()))

    before = open_files()
    sequential, decoded = made(3)
    assert open_files() == before + 1
    tmp_path.rmdir()
    positions = np.arange(3)
    assert (decoded.read(positions, positions) == pixels_of(sequential, positions)).all()
    del decoded
    gc.collect()
    assert open_files() == before


# ------------------------------------------------------------------------------------------------------------- in order


@pytest.mark.parametrize("batch_size", [1, 7, 1000])
def test_a_stream_comes_in_order_decodes_what_is_missing_and_keeps_it(made: Made, batch_size: int) -> None:
    sequential, decoded = made(60)
    decoded.load(np.arange(0, 60, 4))
    positions = np.arange(0, 60, 2)
    for passes in (2, 2):  # The second time everything is there.
        batches = list(decoded.stream(positions, batch_size))
        assert [len(batch) for batch, _ in batches] == [
            len(positions[start : start + batch_size]) for start in range(0, len(positions), batch_size)
        ]
        assert (np.concatenate([batch for batch, _ in batches]) == positions).all()
        assert (np.concatenate([images for _, images in batches]) == pixels_of(sequential, positions)).all()
        assert sequential.passes == passes
    assert (decoded.read(positions[::-1], positions) == pixels_of(sequential, positions[::-1])).all()
    assert sequential.reads == dict.fromkeys(positions.tolist(), 1)


def test_a_stream_of_nothing(made: Made) -> None:
    sequential, decoded = made(3)
    assert list(decoded.stream(np.zeros(0, np.int64))) == []
    assert sequential.passes == 0


def test_a_stream_goes_a_little_ahead_of_its_consumer_and_no_further(made: Made) -> None:
    ahead = 8 + 4 * WORKERS
    sequential, decoded = made(3 * ahead)
    stream = decoded.stream(np.arange(3 * ahead), batch_size=8)
    next(stream)
    deadline = time.monotonic() + 10
    while len(sequential.reads) < 8 + ahead - 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.1)
    assert len(sequential.reads) == 8 + ahead - 1
    stream.close()


@pytest.mark.parametrize("end", ["close", "consumer's error", "dropped"])
def test_a_stream_that_ends_early_leaves_no_threads_and_no_work(made: Made, end: str) -> None:
    before = threading.active_count()
    sequential, decoded = made(500)
    stream = decoded.stream(np.arange(500), batch_size=4)
    next(stream)
    if end == "close":
        stream.close()
    elif end == "consumer's error":
        with pytest.raises(RuntimeError):
            stream.throw(RuntimeError)
    else:
        del stream
        gc.collect()
    assert threading.active_count() == before
    assert len(sequential.reads) < 500
    reads = sum(sequential.reads.values())
    positions = np.arange(20)
    assert (decoded.read(positions, positions) == pixels_of(sequential, positions)).all()
    assert sum(sequential.reads.values()) - reads == max(0, 20 - reads)  # What was decoded is not decoded again.


# ------------------------------------------------------------------------------------------------ what may have changed


def test_a_picture_that_is_no_longer_what_it_was(made: Made) -> None:
    sequential, decoded = made(10)
    positions = np.arange(10)
    sequential.pictures[7] = picture(1234)
    for load in (lambda: decoded.read(positions[:1], positions), lambda: list(decoded.stream(positions))):
        with pytest.raises(DataError, match=r"made/7 has changed since the run began\. Run again"):
            load()
    assert not decoded.present[7]
    assert (decoded.read(positions[:7], positions[:7]) == pixels_of(sequential, positions[:7])).all()


def test_a_picture_that_is_gone(made: Made) -> None:
    sequential, decoded = made(10)
    del sequential.pictures[6:]
    decoded.load(np.arange(6))
    with pytest.raises(DataError, match=r"the data ends before number 9\. Run again"):
        decoded.load(np.array([2, 8]))


def test_a_picture_that_cannot_be_read_any_more(tmp_path: Path) -> None:
    def read() -> bytes:
        raise PermissionError(13, "Permission denied")

    source = Source(("a", "b"), 1, lambda: iter([Example("a/0.png", "a", None, read)]))
    decoded = Decoded(PixelFile(tmp_path, SPEC), source, SPEC, ["00"], np.zeros(1, bool))
    with pytest.raises(DataError, match=r"a/0\.png can no longer be read \(Permission denied\) since the run began"):
        decoded.load(np.array([0]))


def test_a_picture_that_only_another_machine_could_decode(tmp_path: Path) -> None:
    made = Sequential([b"words"])
    digests = [hashlib.sha256(b"words").hexdigest()]
    decoded = Decoded(PixelFile(tmp_path, SPEC), made.source, SPEC, digests, np.zeros(1, bool))
    with pytest.raises(DataError, match=r"made/0 cannot be decoded \(not a JPEG, PNG or WebP picture\), although"):
        decoded.load(np.array([0]))


# --------------------------------------------------------------------------------------------------------- real sources


def test_sources_of_all_kinds(tmp_path: Path) -> None:
    for label in ("ants", "bees"):
        (tmp_path / "data" / label).mkdir(parents=True)
        for i in range(10):
            (tmp_path / "data" / label / f"{i}.png").write_bytes(picture(i + 100 * (label == "bees")))
    for data in (Data(source="folder", path=str(tmp_path / "data")), Data(source="digits")):
        source = open_source(data)
        encoded = [example.read() for example in source.examples()]
        digests = [hashlib.sha256(content).hexdigest() for content in encoded]
        decoded = Decoded(PixelFile(tmp_path, SPEC), source, SPEC, digests, np.zeros(len(encoded), bool))
        positions = np.arange(1, len(encoded), 3)
        expected = np.stack([decode(encoded[position], SPEC) for position in positions])
        assert (np.concatenate([images for _, images in decoded.stream(positions)]) == expected).all()
        assert (decoded.read(positions[::-1], positions) == expected[::-1]).all()


@pytest.mark.parametrize(("field", "value"), [("height", 13), ("width", 13), ("crop", 0.9), ("max_megapixels", 1.0)])
def test_settings_that_matter_to_pixels_have_digests_of_their_own(field: str, value: float) -> None:
    assert pixel_settings(SPEC) == pixel_settings(replace(SPEC))
    assert pixel_settings(replace(SPEC, **{field: value})) != pixel_settings(SPEC)  # type: ignore[arg-type]


# ------------------------------------------------------------------------------------------------------ the ordered map


def test_results_come_in_order_whatever_is_done_first() -> None:
    def work(i: int) -> int:
        time.sleep(0.002 * (i % 5 == 0))
        return i * i

    with ThreadPoolExecutor(4) as pool:
        assert list(in_order(pool, work, range(50), window=6)) == [i * i for i in range(50)]
        assert list(in_order(pool, work, (), window=6)) == []


@pytest.mark.parametrize("failing", ["work", "items", "consumer"])
def test_after_an_error_nothing_more_is_begun(failing: str) -> None:
    begun: list[int] = []
    finish = threading.Event()

    def work(i: int) -> int:
        begun.append(i)
        if i == 0 and failing == "work":
            raise ValueError("this one")
        if i > 0:
            finish.wait(10)
        return i

    def items() -> Iterator[int]:
        yield from range(5)
        if failing == "items":
            raise ValueError("this one")
        yield from range(5, 100)

    with ThreadPoolExecutor(1) as pool:
        results = in_order(pool, work, items(), window=20)
        if failing == "consumer":
            next(results)
            results.close()
        else:
            with pytest.raises(ValueError, match="this one"):
                next(results)
        finish.set()
    assert set(begun) <= {0, 1}
