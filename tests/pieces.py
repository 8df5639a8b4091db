"""Splits and sources of a few pictures, for tests of what goes where."""

import csv
import hashlib

import numpy as np

from pipeline.sources.base import SPLIT_NAMES, Example, Source
from pipeline.splits import Split, Splits
from tests.exporting import encoded
from tests.networks import InMemory

CLASSES = ("ant", "bee")


def digest(number):
    return hashlib.sha256(b"%d" % number).hexdigest()


def splits(places, classes=CLASSES, pixels=None, digests=None):
    """Splits of N pictures in given places, labelled in turn.

    Args:
        places: of each picture, the name of its split.
        classes: their names.
        pixels: uint8 [N, H, W, 3]; black if not given.
        digests: N of them; if not given, those of `digest`.
    """
    pixels = np.zeros((len(places), 8, 8, 3), np.uint8) if pixels is None else pixels
    digests = digests or [digest(number) for number in range(len(places))]
    rows = [(n, n % len(classes), f"{n}.png", digests[n]) for n in range(len(places))]
    train, validation, test = (
        Split.of_rows(name, [row for row, place in zip(rows, places, strict=True) if place == name], InMemory(pixels))
        for name in SPLIT_NAMES
    )
    return Splits(
        tuple(classes), train, validation, test, (), (), Source(tuple(classes), len(places), lambda: iter(()))
    )


def places(of):
    """The split of each picture, by digest; why it is in none, for those that are held."""
    return {digest: split.name for split in of.all for digest in split.digests} | {
        item.digest: item.reason for item in of.held
    }


def source(pictures, classes=CLASSES):
    """A source of pictures, uint8 [H, W, 3], with their labels and splits."""
    examples = [
        Example(f"{number}.png", label, split, lambda pixels=pixels: encoded(pixels))
        for number, (pixels, label, split) in enumerate(pictures)
    ]
    return Source(tuple(classes), len(examples), lambda: iter(examples))


def write_splits(run_dir, of, names, clusters=()):
    """What a run says of a source's pictures: `splits.csv`, with the names of their splits in turn, and its list of
    `clusters`, each a list of numbers, of pictures that show the same."""
    rows = [(e.name, e.label, hashlib.sha256(e.read()).hexdigest()) for e in of.examples()]
    with (run_dir / "splits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "sha256", "reason"])
        writer.writerows((name, label, split, sha, "") for (name, label, sha), split in zip(rows, names, strict=True))
    with (run_dir / "near-duplicates.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "path", "label", "split", "sha256", "conflict"])
        for cluster, numbers in enumerate(clusters, start=1):
            writer.writerows((cluster, *rows[n][:2], names[n], rows[n][2], "") for n in numbers)
