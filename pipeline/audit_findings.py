"""What a look at the data can find: the kinds of findings, and the list of them that is reviewed by hand."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pipeline.artifacts import write_atomically

COLUMNS = ("path", "label", "split", "sha256", "finding", "detail", "action")


@dataclass(frozen=True)
class Kind:
    """A kind of finding.

    Attributes:
        meaning: a sentence on what it is and what to do about it.
        proposal: the action that the list proposes; empty where a person has to look first.
    """

    meaning: str
    proposal: str = ""


CLEAREST = (
    "Only the clearest wrong labels are found, about half of them where classes are hard to tell apart: an empty list "
    "is no proof."
)

KINDS = {
    "damaged": Kind("Cannot be decoded, so that every run leaves it out. Mend it, or take it out.", "quarantine"),
    "conflicting labels": Kind(
        "Shows the same as a picture of another class. Identical bytes are left out of every run, as nobody can tell "
        "which label is right; a near copy is learned from under both."
    ),
    "leak": Kind(
        "Shows the same as a picture of a split that is held out from it. What is learned from it is tested on it: the "
        "figures come out too good. Keep one of the two, or both in one split."
    ),
    "likely mislabel": Kind(
        "A classifier that learned from the other pictures is sure of another class. Look at it, and relabel it where "
        f"the classifier is right. {CLEAREST}"
    ),
    "copy": Kind("The same bytes as a picture before it. It counts twice, and tells nothing new.", "quarantine"),
    "near copy": Kind("The same picture as another, re-encoded, resized or cropped a little."),
    "outlier": Kind("The network sees nothing like it in the data: perhaps it is no picture of any class."),
    "constant": Kind("One plain area: nothing is to be seen on it.", "quarantine"),
    "blurred": Kind("No part of it is sharp, as the network sees it."),
    "dark": Kind("Even its light parts are dark."),
    "bright": Kind("Even its dark parts are bright."),
    "odd size": Kind("Much smaller or larger than the others. A small one is enlarged, and shows less."),
    "odd shape": Kind("Long and narrow: the centre crop leaves little of it."),
}
"""In the order of a report, what is wrong for certain and does most harm first."""


class Mark(NamedTuple):
    """That a picture was found to be of a kind.

    Attributes:
        kind: one of KINDS.
        row: the picture's.
        score: of one kind, larger is worse.
        why: what was measured, in a few words.
        other: the row of the picture it is compared with; None if it is judged alone.
    """

    kind: str
    row: int
    score: float
    why: str
    other: int | None = None


@dataclass(frozen=True)
class Finding:
    """What is known of a picture that was found.

    Attributes:
        kind: one of KINDS.
        name: as the source gives it.
        label: its class.
        digest: SHA-256 hex digest of the encoded bytes; empty where it cannot even be read.
        split: where a run puts it; empty where it is left out.
        score: of one kind, larger is worse.
        why: what was measured, in a few words.
        row: its own among the pictures that can be used; None where it is left out.
        other: the row of the picture it is compared with; None if it is judged alone.
        listed_twice: whether that is the same file with the same label: taking it out would take out both.
    """

    kind: str
    name: str
    label: str
    digest: str
    split: str
    score: float
    why: str
    row: int | None = None
    other: int | None = None
    listed_twice: bool = False

    @property
    def proposal(self) -> str:
        """The action that the list proposes; empty where a person has to look first."""
        return "" if self.listed_twice else KINDS[self.kind].proposal


def ordered(findings: Iterable[Finding]) -> list[Finding]:
    """By kind, the worst first."""
    order = {kind: place for place, kind in enumerate(KINDS)}
    return sorted(findings, key=lambda finding: (order[finding.kind], -finding.score, finding.name))


def write(path: Path, findings: Iterable[Finding]) -> Path | None:
    """Writes the list to review: a CSV file with COLUMNS, what is proposed in its last one.

    An action that a person wrote into an earlier list there stays, for the same picture and finding.

    Returns:
        Where the earlier list is now, if it has actions that have no place in this one, or cannot be read; else None.
    """
    theirs, is_whole = _actions(path)
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(COLUMNS)
    for f in findings:
        action = theirs.pop((f.digest, f.name, f.kind), f.proposal)
        writer.writerow((f.name, f.label, f.split, f.digest, f.kind, f.why, action))
    proposals = {kind: what.proposal for kind, what in KINDS.items()}
    aside = None
    if not is_whole or any(action not in ("", proposals.get(kind)) for (_, _, kind), action in theirs.items()):
        aside = path.with_name(f"{path.stem}-{datetime.fromtimestamp(path.stat().st_mtime, UTC):%Y%m%d-%H%M%S}.csv")
        path.replace(aside)
    write_atomically(path, stream.getvalue())
    return aside


def rows(text: str) -> list[dict[str, str]]:
    """A list's rows by column. Spreadsheets of some countries put semicolons where others put commas.

    Raises:
        csv.Error: it is no CSV file.
    """
    header = text.partition("\n")[0]
    delimiter = ";" if header.count(";") > header.count(",") else ","
    return list(csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True))


def _actions(path: Path) -> tuple[dict[tuple[str, str, str], str], bool]:
    """What an earlier list has, if any, by digest, name and kind; and whether all of it could be read."""
    try:
        found = rows(path.read_text(encoding="utf-8-sig"))
        return {(row["sha256"], row["path"], row["finding"]): row["action"] or "" for row in found}, True
    except FileNotFoundError:
        return {}, True
    except (OSError, UnicodeDecodeError, csv.Error, KeyError):
        return {}, False
