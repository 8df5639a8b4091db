"""Which pictures there are, by content: what decides whether there is anything to do. No TensorFlow, no decoding."""

import csv
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pipeline.artifacts import RunRecord
from pipeline.console import Console
from pipeline.parallel import WORKERS, in_order
from pipeline.sources.base import Example, Source


@dataclass(frozen=True)
class Contents:
    """The readable pictures of a data set.

    Attributes:
        labels: by SHA-256 hex digest of a picture's encoded bytes, the labels it is there under.
    """

    labels: dict[str, frozenset[str]]

    @classmethod
    def of(cls, pairs: Iterable[tuple[str, str]]) -> Self:
        """From pairs of digest and label."""
        labels: dict[str, set[str]] = {}
        for digest, label in pairs:
            labels.setdefault(digest, set()).add(label)
        return cls({digest: frozenset(names) for digest, names in labels.items()})

    @property
    def digest(self) -> str:
        """SHA-256 hex digest over all of it; the order does not matter."""
        lines = [f"{digest} {sorted(labels)}" for digest, labels in self.labels.items()]
        return hashlib.sha256("\n".join(sorted(lines)).encode()).hexdigest()

    def since(self, older: "Contents") -> "Change":
        """What has changed."""
        mine, theirs = self.labels, older.labels
        return Change(
            added=len(mine.keys() - theirs.keys()),
            removed=len(theirs.keys() - mine.keys()),
            relabelled=sum(mine[digest] != theirs[digest] for digest in mine.keys() & theirs.keys()),
        )


@dataclass(frozen=True)
class Change:
    """Pictures that were added, removed and given another label."""

    added: int
    removed: int
    relabelled: int

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.relabelled)

    def __str__(self) -> str:
        counts = {"added": self.added, "removed": self.removed, "relabelled": self.relabelled}
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "no picture changed"


def read(source: Source, console: Console) -> Contents:
    """Reads and hashes every picture; those that cannot be read are passed over."""

    def look(example: Example) -> tuple[str, str] | None:
        with suppress(OSError):
            return hashlib.sha256(example.read()).hexdigest(), example.label
        return None

    pairs = []
    with (
        console.bar("looking for changes", source.size) as advance,
        ThreadPoolExecutor(WORKERS) as pool,
        closing(in_order(pool, look, source.examples(), window=4 * WORKERS)) as looked,
    ):
        for pair in looked:
            advance(1)
            if pair is not None:
                pairs.append(pair)
    return Contents.of(pairs)


def read_list(path: Path) -> Contents:
    """From a run's `splits.csv`. Raises OSError."""
    with path.open(encoding="utf-8", newline="") as file:
        return Contents.of((row["sha256"], row["label"]) for row in csv.DictReader(file) if row["sha256"])


def learned(path: Path) -> set[str]:
    """The digests of what a model was trained, or tuned, on, from its run's `splits.csv`. Raises OSError."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["sha256"] for row in csv.DictReader(file) if row["split"] in ("train", "validation")}


def learned_by(run_dir: Path) -> tuple[set[str], Path | None]:
    """The digests of what a run was trained, or tuned, on, itself or by the weights it started from; and of the runs
    that these go back to the one whose list cannot be read any more, beyond which nothing is known: None where all can.
    """
    try:
        found, start = learned(run_dir / "splits.csv"), RunRecord.read(run_dir / "run.json").started_from
    except (OSError, ValueError, KeyError):  # KeyError: splits.csv without its columns.
        return set(), run_dir
    if start is None:
        return found, None
    earlier, gone = learned_by(Path(start))
    return found | earlier, gone


def clusters(path: Path) -> dict[str, str]:
    """From a run's `near-duplicates.csv`: by digest, which cluster of pictures that show the same one is in. Raises
    OSError."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["sha256"]: row["cluster"] for row in csv.DictReader(file)}


def with_alike(digests: set[str], clusters: Mapping[str, str]) -> set[str]:
    """The pictures, and those that show the same as one of them."""
    theirs = {clusters[digest] for digest in digests & clusters.keys()}
    return digests | {digest for digest, cluster in clusters.items() if cluster in theirs}


def repeated(digests: Sequence[str], clusters: Mapping[str, str]) -> list[bool]:
    """Whether each picture shows the same as one before it. Of test pictures that do, the first speaks for all: the
    gate's statistics ask for independent ones."""
    seen: set[str] = set()
    found = []
    for digest in digests:
        shown = clusters.get(digest, digest)
        found.append(shown in seen)
        seen.add(shown)
    return found
