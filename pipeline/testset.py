"""The frozen test set: which pictures a champion and its challengers are judged on, by content, in numbered versions.

It is made once, of the first challenger's test split. From then on pictures that belong to the test split, by the hash
of their content or by the data's own splits, wait: they are neither trained nor tested on until `graft freeze-test`
makes the next version. No TensorFlow.
"""

import hashlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from pydantic import ValidationError

from pipeline.artifacts import Record
from pipeline.errors import DataError
from pipeline.sources.base import SplitName
from pipeline.splits import Splits

WAITS = "waits for the next test set"


class TestPicture(Record):
    """One picture of a frozen test set, as it was called and labelled then."""

    __test__ = False  # Not a test of pytest's.

    sha256: str
    name: str
    label: str


class FrozenTest(Record):
    """One version of a frozen test set: the content of `test-sets/<version>.json`.

    Attributes:
        version: from 1 on.
        frozen_at: UTC, ISO 8601.
        pictures: sorted by digest.
    """

    version: int
    frozen_at: str
    pictures: list[TestPicture]

    @property
    def digests(self) -> frozenset[str]:
        return frozenset(picture.sha256 for picture in self.pictures)

    @property
    def identity(self) -> str:
        """Its version, and a digest over its pictures: e.g. "2:1f3a99c04b7d"."""
        digest = hashlib.sha256("\n".join(sorted(self.digests)).encode()).hexdigest()
        return f"{self.version}:{digest[:12]}"

    @classmethod
    def of(cls, version: int, pictures: list[TestPicture]) -> Self:
        ordered = sorted(pictures, key=lambda picture: picture.sha256)
        return cls(version=version, frozen_at=datetime.now(UTC).isoformat(timespec="seconds"), pictures=ordered)


def folder_of(output_dir: str, name: str) -> Path:
    """Where a name's test sets are."""
    return Path(output_dir).resolve() / name / "test-sets"


def newest(folder: Path) -> FrozenTest | None:
    """The version in force; None before the first.

    Raises:
        DataError: its file is damaged.
    """
    files = {int(path.stem): path for path in folder.glob("*.json") if path.stem.isdecimal()}
    if not files:
        return None
    path = files[max(files)]
    try:
        return FrozenTest.read(path)
    except (OSError, ValidationError, UnicodeDecodeError) as error:
        raise DataError(
            f"The frozen test set {path} cannot be read ({type(error).__name__}), and a challenger must not be judged "
            "on other pictures than the champion. Put a copy of the file back: the folder of each run holds the one "
            "it was judged on, as test-set.json, and so does MLflow."
        ) from error


def freeze(folder: Path, test_set: FrozenTest) -> None:
    """Keeps a version."""
    folder.mkdir(parents=True, exist_ok=True)
    test_set.write(folder / f"{test_set.version}.json")


def of_splits(splits: Splits, version: int) -> FrozenTest:
    """A test set of a run's test split."""
    test = splits.test
    pictures = {
        digest: TestPicture(sha256=digest, name=name, label=splits.classes[label])
        for digest, name, label in zip(test.digests, test.names, test.labels.tolist(), strict=True)
    }
    return FrozenTest.of(version, list(pictures.values()))


def separated(splits: Splits, test_set: FrozenTest, wait: bool = True) -> Splits:
    """The splits with the frozen pictures that are there as test split, wherever the data puts them now.

    Args:
        splits: as the data and the pictures' content have it.
        test_set: the frozen pictures.
        wait: whether other pictures of the test split are taken out of it.

    Raises:
        DataError: none of them is there any more.
    """
    digests = test_set.digests
    places: dict[str, SplitName] = {
        digest: "test" for split in splits.all for digest in split.digests if digest in digests
    }
    held = {digest: WAITS for digest in splits.test.digests if wait and digest not in digests}
    if not places:
        raise DataError(
            f"None of the {len(digests)} pictures of the frozen test set (version {test_set.version}) is in the data "
            "any more, so nothing can be judged on it. Put them back, or freeze another: graft freeze-test CONFIG."
        )
    return splits.moved(places, held)
