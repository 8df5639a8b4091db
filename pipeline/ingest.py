"""Encoded pictures to splits: one pass that reads and judges every picture, and decodes those not known to be good.

Shape letters: N pictures, H height, W width.
"""

import csv
import hashlib
import shutil
from collections import Counter
from collections.abc import Collection, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal, Protocol

import numpy as np

from pipeline.config import Data
from pipeline.console import Console
from pipeline.decoded import Decoded, PixelFile, pixel_settings
from pipeline.errors import DataError
from pipeline.parallel import WORKERS, in_order
from pipeline.pixels import BadImage, PixelSpec, decode
from pipeline.sources.base import SPLIT_NAMES, Example, Source, SplitName
from pipeline.splits import LeftOut, Split, Splits, check_splits

CONTRADICTION = "the same picture is labelled"
"""How the reason begins that a picture is left out for where it is there under several labels."""


class Known(Protocol):
    """What earlier runs found out about pictures. A picture is the 32 bytes of its encoded bytes' SHA-256 digest."""

    def decodable(self, pixels: str, picture: bytes) -> bool:
        """Whether a picture is known to decode with these settings, a `pixel_settings`. Called from many threads."""

    def add_decodable(self, pixels: str, pictures: Iterable[bytes]) -> None:
        """Keeps for later runs that these pictures decode."""


def ingest(
    data: Data,
    source: Source,
    spec: PixelSpec,
    folder: Path,
    quarantine_file: Path,
    known: Known | None,
    console: Console,
) -> Splits:
    """Reads and judges every picture once, and splits them.

    A picture that is known to decode is not decoded now, but when its pixels are first needed.

    Splits are decided by a hash of each picture's encoded bytes: see `split_of`.

    Args:
        data: what is allowed to be wrong, and the splits' shares.
        source: the pictures.
        spec: how they become pixels.
        folder: made if need be; its disk gets the pixels, up to N H W 3 bytes.
        quarantine_file: gets the list of what is left out and why, also where that is too much to go on.
        known: what earlier runs found out, and where to keep what this one does; None to decode every picture now.
        console: gets a bar with images/s, and a warning where pictures are left out.

    Raises:
        DataError: the disk is too small, more than `data.max_bad_fraction` of the pictures are bad, or what is left is
            not enough to train and test on.
    """
    splits = read(data, source, spec, folder, known, console)
    write_quarantine(quarantine_file, splits.quarantine)
    check_quarantine(splits, data, quarantine_file)
    if splits.quarantine:
        count = len(splits.quarantine) + sum(map(len, splits.all))
        console.warn(f"{len(splits.quarantine)} of {count} pictures are left out: {_commonest(splits.quarantine)}.")
    notes = check_splits({split.name: split for split in splits.all}, splits.classes)
    return replace(splits, notes=splits.notes + notes)


def read(data: Data, source: Source, spec: PixelSpec, folder: Path, known: Known | None, console: Console) -> Splits:
    """As `ingest`, whatever is left out, and where splits are empty. Raises DataError where the disk is too small."""
    folder.mkdir(parents=True, exist_ok=True)
    file = PixelFile(folder, spec)
    if source.size is not None:
        _check_space(source.size, spec, folder)
        file.reserve(source.size)  # Also what is decoded late in the run, when the disk may have become full.
    judged = _read(source, spec, file, known, console)
    if known is not None:
        known.add_decodable(
            pixel_settings(spec), [bytes.fromhex(picture.digest) for picture in judged if picture.decoded]
        )
    pictures = _without_contradictions(judged)
    good = [picture for picture in pictures if picture.reason is None]
    quarantine = tuple(
        LeftOut(picture.name, picture.label, picture.digest, picture.reason)
        for picture in pictures
        if picture.reason is not None
    )
    brings = {picture.given for picture in pictures if picture.given is not None}
    given = _most_held_out(good)
    places = [split_of(picture.digest, given[picture.digest], brings, data) for picture in good]
    decoded = np.array([picture.decoded for picture in pictures], bool)
    pixels = Decoded(file, source, spec, [picture.digest for picture in pictures], decoded)
    train, validation, test = (_split(name, good, places, source.classes, pixels) for name in SPLIT_NAMES)
    notes = source.notes + _copies(good, given)
    return Splits(source.classes, train, validation, test, quarantine, notes, source)


def check_quarantine(splits: Splits, data: Data, list_file: Path) -> None:
    """Refuses, by DataError, data of which too much is left out; `list_file` is where all that is listed."""
    quarantine = splits.quarantine
    count = len(quarantine) + sum(map(len, splits.all))
    if count == 0:
        raise DataError("The data has no pictures of the classes asked for. Add some, or change data.classes.")
    if len(quarantine) == count:
        raise DataError(
            f"None of the {count} pictures can be used: {_commonest(quarantine)}. All are in {list_file}. Replace them."
        )
    if len(quarantine) > data.max_bad_fraction * count:
        raise DataError(
            f"{len(quarantine)} of {count} pictures cannot be used, more than data.max_bad_fraction = "
            f"{data.max_bad_fraction:g} allows: {_commonest(quarantine)}. All are listed in {list_file}. Mend or "
            "remove them, or raise data.max_bad_fraction."
        )


def split_of(digest: str, given: SplitName | None, brings: Collection[SplitName], data: Data) -> SplitName:
    """Where a picture belongs, by its content alone, so that it never moves as the data grows.

    The first 64 bits of the digest, as a fraction u of 1, are spread evenly over pictures.

    Args:
        digest: SHA-256 hex digest of the encoded picture.
        given: where the data puts it; None if the data brings no splits. Then it is test where u < test_fraction,
            validation where u < test_fraction + validation_fraction, else train.
        brings: the splits the data brings. Without validation among them, validation is train where
            u < validation_fraction.
        data: the fractions.
    """
    u = int(digest[:16], 16) / 2**64
    if given is None:
        if u < data.test_fraction:
            return "test"
        return "validation" if u < data.test_fraction + data.validation_fraction else "train"
    if given == "train" and "validation" not in brings and u < data.validation_fraction:
        return "validation"
    return given


def mean_to_subtract(choice: Literal["backbone", "channel", "image", "none"], train: Split) -> np.ndarray | None:
    """What `data.mean_subtraction` asks for, in 0..255: float32 [3] or [H, W, 3]; None for the network's own means."""
    match choice:
        case "backbone":
            return None
        case "channel":
            return channel_mean(train)
        case "image":
            return mean_image(train)
        case "none":
            return np.zeros(3, np.float32)


def channel_mean(split: Split) -> np.ndarray:
    """The mean of each channel over all pictures and pixels: float32 [3] in 0..255, R G B."""
    mean: np.ndarray = _mean(split).mean(axis=(0, 1))
    return mean.astype(np.float32)


def mean_image(split: Split) -> np.ndarray:
    """The mean of each pixel over all pictures: float32 [H, W, 3] in 0..255."""
    return _mean(split).astype(np.float32)


def write_quarantine(path: Path, quarantine: Iterable[LeftOut]) -> None:
    """Writes a CSV file with the columns path, reason."""
    _write_csv(path, ("path", "reason"), ((item.name, item.reason) for item in quarantine))


def write_splits(path: Path, splits: Splits) -> None:
    """Writes a CSV file of all pictures with the columns path, label, split, sha256, reason; what is in no split has a
    reason for it."""
    rows = (
        (name, splits.classes[label], split.name, digest, "")
        for split in splits.all
        for name, label, digest in zip(split.names, split.labels, split.digests, strict=True)
    )
    out = ((item.name, item.label, "", item.digest, item.reason) for item in splits.held + splits.quarantine)
    _write_csv(path, ("path", "label", "split", "sha256", "reason"), chain(rows, out))


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class _Picture:
    position: int
    name: str
    label: str
    given: SplitName | None
    digest: str = ""
    reason: str | None = None
    """Why it is left out; None if it is good."""
    decoded: bool = False
    """Whether its pixels are in the file."""


def _read(source: Source, spec: PixelSpec, file: PixelFile, known: Known | None, console: Console) -> list[_Picture]:
    """Judges every picture and writes the pixels of those it decodes, each at its position."""
    settings = pixel_settings(spec)

    def judge(numbered: tuple[int, Example]) -> _Picture:
        position, example = numbered
        picture = _Picture(position, example.name, example.label, example.split)
        try:
            encoded = example.read()
        except OSError as error:
            return replace(picture, reason=f"cannot be read: {error.strerror or error}")
        digest = hashlib.sha256(encoded)
        picture = replace(picture, digest=digest.hexdigest())
        if known is not None and known.decodable(settings, digest.digest()):
            return picture
        try:
            pixels = decode(encoded, spec)
        except BadImage as error:
            return replace(picture, reason=str(error))
        file.write(position, pixels)
        return replace(picture, decoded=True)

    pictures: list[_Picture] = []
    skipped = 0
    with (
        console.bar("reading pictures", source.size) as advance,
        ThreadPoolExecutor(WORKERS) as pool,
        closing(in_order(pool, judge, enumerate(source.examples()), window=4 * WORKERS)) as judged,
    ):
        for picture in judged:
            pictures.append(picture)
            skipped += picture.reason is None and not picture.decoded
            advance(1, f"{skipped:,} of {len(pictures):,} known" if skipped else "")
    return pictures


def _check_space(count: int, spec: PixelSpec, store: Path) -> None:
    needed = count * spec.height * spec.width * 3
    free = shutil.disk_usage(store).free
    if needed > free:
        raise DataError(
            f"The pixels of {count} pictures take {count} x {spec.height} x {spec.width} x 3 bytes = "
            f"{needed / 1e6:,.0f} MB in {store}, where {free / 1e6:,.0f} MB are free. Make room, set output_dir to a "
            "larger disk, lower data.image_size, or name fewer classes in data.classes."
        )


# ------------------------------------------------------------------------------------------------ quarantine and splits


def _without_contradictions(pictures: list[_Picture]) -> list[_Picture]:
    """Quarantines pictures that are there under two labels: nobody can tell which label is right."""
    labels: dict[str, set[str]] = {}
    for picture in pictures:
        if picture.reason is None:
            labels.setdefault(picture.digest, set()).add(picture.label)
    doubtful = {digest: sorted(found) for digest, found in labels.items() if len(found) > 1}
    return [
        replace(picture, reason=f"{CONTRADICTION} {' and '.join(doubtful[picture.digest])}")
        if picture.digest in doubtful
        else picture
        for picture in pictures
    ]


def _commonest(quarantine: tuple[LeftOut, ...]) -> str:
    reasons = Counter(item.reason for item in quarantine)
    shown = [f"{reason} ({number})" for reason, number in reasons.most_common(3)]
    return "; ".join(shown) + ("" if len(reasons) <= 3 else f"; {len(reasons) - 3} other reasons")


def _most_held_out(good: list[_Picture]) -> dict[str, SplitName | None]:
    """By digest, the split that the data gives a picture; of several for its copies, the most held-out one."""
    given: dict[str, SplitName | None] = {}
    for picture in good:
        other = given.setdefault(picture.digest, picture.given)
        if picture.given is not None and other is not None:
            given[picture.digest] = max(picture.given, other, key=SPLIT_NAMES.index)
    return given


def _copies(good: list[_Picture], given: dict[str, SplitName | None]) -> tuple[str, ...]:
    """A note on byte-identical copies."""
    if len(good) == len(given):
        return ()
    copies = len(good) - len(given)
    moved = sum(picture.given != given[picture.digest] for picture in good)
    are = (
        "picture is a byte-identical copy of another" if copies == 1 else "pictures are byte-identical copies of others"
    )
    go, them = ("goes", "it") if moved == 1 else ("go", "them")
    return (
        f"{copies} {are}. Copies share one split"
        + (f": {moved} {go} to a more held-out split than the data gives {them}." if moved else "."),
    )


def _split(
    name: SplitName, good: list[_Picture], places: list[SplitName], classes: tuple[str, ...], pixels: Decoded
) -> Split:
    number = {label: i for i, label in enumerate(classes)}
    mine = [picture for picture, place in zip(good, places, strict=True) if place == name]
    rows = [(picture.position, number[picture.label], picture.name, picture.digest) for picture in mine]
    return Split.of_rows(name, rows, pixels)


def _mean(split: Split) -> np.ndarray:
    """float64 [H, W, 3]."""
    total = np.zeros(split.image_shape)
    for _, images in split.stream(np.arange(len(split))):
        total += images.sum(axis=0, dtype=np.float64)
    return total / len(split)


def _write_csv(path: Path, header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(header)
        writer.writerows(rows)
