"""What a kind of data is to the rest of the pipeline: named, labelled, encoded pictures, one after another."""

from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from pipeline.errors import DataError

SplitName = Literal["train", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "validation", "test")


@dataclass(frozen=True)
class Example:
    """One picture.

    Attributes:
        name: its path relative to the data's root, with forward slashes, or e.g. tf_flowers/train/17. Printable.
        label: its class.
        split: where the data itself puts it; None where splits are decided by content.
        read: gives the encoded bytes. Raises OSError.
    """

    name: str
    label: str
    split: SplitName | None
    read: Callable[[], bytes]


@dataclass(frozen=True)
class Source:
    """Labelled pictures.

    Attributes:
        classes: the names of all classes, in the order of the network's outputs.
        size: about how many examples there are; None if unknown.
        examples: goes through all of them. Every call gives the same examples in the same order. All have a split or
            none has.
        notes: sentences that the user should read, e.g. about how splits are used.
    """

    classes: tuple[str, ...]
    size: int | None
    examples: Callable[[], Iterator[Example]]
    notes: tuple[str, ...] = ()


def choose_classes(found: Collection[str], wanted: list[str] | None) -> tuple[str, ...]:
    """The classes of a run: those wanted, in that order, or else all that were found, sorted.

    Raises:
        DataError: a wanted class was not found, fewer than two were found, or a name has more than one line.
    """
    if unknown := sorted(set(wanted or ()) - set(found)):
        raise DataError(
            f"data.classes names {listed(unknown)}, which the data does not have. "
            f"Name some of those that there are: {listed(sorted(found))}."
        )
    if len(found) < 2:
        raise DataError(
            "A classifier needs pictures of at least two classes, and the data has "
            f"{'only ' + listed(sorted(found)) if found else 'none'}. Add another class."
        )
    chosen = tuple(wanted or sorted(found))
    if broken := [repr(name) for name in chosen if len(f"{name}.".splitlines()) > 1]:
        raise DataError(
            "The name of a class must not hold a line break, as each is a line of the exported labels.txt. Received: "
            f"{listed(broken)}. Rename it in the data, or list the classes to use, without it, in data.classes."
        )
    return chosen


def adopt_splits(found: Collection[SplitName]) -> tuple[dict[SplitName, SplitName | None], tuple[str, ...]]:
    """How the splits that data brings are used: the split that each one becomes, and a note for the user.

    The figures of a run are always taken from pictures that nothing was tuned on. So where there is only one held-out
    split, it is the test split, whatever it is called, and validation comes out of train.
    """
    assert "train" in found
    if set(found) == {"train"}:
        return {"train": None}, ("The data has a train split alone; validation and test are taken from it.",)
    if set(found) == {"train", "validation"}:
        return {"train": "train", "validation": "test"}, (
            "The data has train and validation splits but no test split: its validation split is used as the test "
            "split, and validation is taken from train.",
        )
    if set(found) == {"train", "test"}:
        return {"train": "train", "test": "test"}, (
            "The data has train and test splits but no validation split: validation is taken from train.",
        )
    return {"train": "train", "validation": "validation", "test": "test"}, ()


def listed(words: Collection[str], limit: int = 20) -> str:
    """Words with commas, the rest of a long list as a number."""
    shown = ", ".join(list(words)[:limit])
    return shown if len(words) <= limit else f"{shown} and {len(words) - limit} more"
