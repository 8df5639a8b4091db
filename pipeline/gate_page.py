"""The gate's decision as one web page that needs no network: the checks, the classes, and pictures whose label flips.

Shape letters: H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import pages
from pipeline.gate import ClassRow, Decision

MOST_PICTURES = 200
MOST_OPEN_ROWS = 30
SIDE = 240
"""The longer side of a picture on the page, in pixels: with 200 pictures the page stays below 15 MB."""
TINY = 64
"""A picture smaller than this is drawn with its pixels as squares."""

KINDS = {
    "Lost": "Right by the champion, wrong by the challenger.",
    "Gained": "Wrong by the champion, right by the challenger.",
    "Wrong either way": "Both models are wrong, each with a label of its own.",
}


@dataclass(frozen=True, eq=False)
class Flip:
    """A test picture to which the two models give different labels.

    Attributes:
        name: what the picture is called.
        label: its true class.
        champion, challenger: the classes that the models give it.
        champion_score, challenger_score: their probabilities, 0 to 1.
        picture: uint8 [H, W, 3]; None for one that is counted and not drawn.
    """

    name: str
    label: str
    champion: str
    challenger: str
    champion_score: float
    challenger_score: float
    picture: np.ndarray | None

    @property
    def kind(self) -> str:
        """One of KINDS."""
        if self.champion == self.label:
            return "Lost"
        return "Gained" if self.challenger == self.label else "Wrong either way"


def write(path: Path, decision: Decision, flips: Sequence[Flip], facts: Mapping[str, str]) -> None:
    """Writes the page.

    Args:
        path: gate.html in an existing folder.
        decision: what the gate decided.
        flips: every picture whose label flips, those first that should be drawn: the first MOST_PICTURES with a
            picture are. Empty without a champion.
        facts: rows of the table "Where things are".
    """
    rows = _classes(decision)
    pages.write(
        path,
        "gate.html",
        decision=decision,
        models=[model for model in (decision.champion, decision.challenger) if model],
        gain=_gain(decision),
        explained=_explained(decision),
        tables=[rows[:MOST_OPEN_ROWS], rows[MOST_OPEN_ROWS:]],
        kinds=_kinds(flips),
        facts={**facts, "Rules": _rules(decision), "Seed": str(decision.seed)},
        capital=_capital,
        percent=_percent,
        signed=_signed,
        pictures=_pictures,
    )


# -------------------------------------------------------------------------------------------------------------- tables


def _explained(decision: Decision) -> str:
    """How to read the table of classes."""
    if decision.champion is None:
        return "The share of each class's pictures that are right."
    allowed = f"{100 * decision.rules['max_class_drop']:g}"
    return (
        "The share of each class's pictures that are right, those first that lost most. The dashed line is at the "
        f"{allowed} points that a class may lose. An interval is of its class alone, and of many classes some lie low "
        "by chance; the check corrects for that."
    )


def _classes(decision: Decision) -> list[tuple[ClassRow, "Interval | None"]]:
    """The classes, those that lost most first, each with its drawing."""
    rows = sorted(
        decision.per_class, key=lambda row: (not row.failed, row.n == 0, -(row.drop or 0), row.challenger or 0)
    )
    ends = [abs(end) for row in rows for end in row.drop_interval or ()]
    allowed = float(decision.rules["max_class_drop"])
    scale = max([allowed * 1.2, *ends, 0.05])
    return [(row, _class_interval(row, scale, allowed)) for row in rows]


def _rules(decision: Decision) -> str:
    return ", ".join(f"{key}: {'null' if value is None else value}" for key, value in decision.rules.items())


# -------------------------------------------------------------------------------------------------------------- charts


@dataclass(frozen=True)
class Interval:
    """Where things are drawn, in percent of the drawing's width, so that it stretches and its text does not.

    Attributes:
        low, high: the interval's ends, from left to right.
        middle: the figure.
        rule: what it is held against.
        ticks: with their labels.
        words: all of it.
        good: it keeps the rule.
    """

    low: float
    high: float
    middle: float
    rule: float
    ticks: tuple[tuple[float, str], ...]
    words: str
    good: bool


def _gain(decision: Decision) -> Interval | None:
    """The gain's interval beside zero and the least that is asked; None without a champion."""
    if decision.gain is None or decision.gain_interval is None:
        return None
    low, high = decision.gain_interval
    rule = float(decision.rules["min_gain"])
    ends = (low, high, rule, 0.0)
    margin = 0.12 * max(max(ends) - min(ends), 0.01)
    start, width = min(ends) - margin, max(ends) - min(ends) + 2 * margin

    def x(share: float) -> float:
        return round(100 * (share - start) / width, 2)

    step = _step(100 * width)
    first, last = int(np.ceil(100 * start / step)), int(np.floor(100 * (start + width) / step))
    places = [(x(k * step / 100), f"{k * step:+g}" if k else "0") for k in range(first, last + 1)]
    return Interval(
        low=x(low),
        high=x(high),
        middle=x(decision.gain),
        rule=x(rule),
        ticks=tuple(place for place in places if 3 < place[0] < 97),
        words=f"Gain in accuracy {_signed(decision.gain)} points, 95 % interval {_signed(low)} to {_signed(high)}; "
        f"it must lie above {100 * rule:g}.",
        good=low > rule,
    )


def _step(width: float) -> float:
    """A round distance between ticks, for about six of them."""
    power = 10.0 ** np.floor(np.log10(width / 6))
    return float(next(power * k for k in (1, 2, 5, 10) if power * k >= width / 6))


def _class_interval(row: ClassRow, scale: float, allowed: float) -> Interval | None:
    """The change's interval between -scale and scale, its tick at zero; None where there is none."""
    if row.drop is None or row.drop_interval is None:
        return None
    low, high = row.drop_interval

    def x(drop: float) -> float:
        return round(50 - 48 * drop / scale, 1)

    words = f"{_signed(-high)} to {_signed(-low)}"
    return Interval(x(high), x(low), x(row.drop), x(allowed), ((50.0, "0"),), words, not row.failed)


# ------------------------------------------------------------------------------------------------------------- gallery


@dataclass(frozen=True)
class Kind:
    """The flips of one of KINDS: its name, what it means, how many there are, and those with a picture: each with its
    address and whether it is tiny."""

    name: str
    explained: str
    count: int
    shown: list[tuple[Flip, str, bool]]


def _kinds(flips: Sequence[Flip]) -> list[Kind]:
    with_picture = [(flip, flip.picture) for flip in flips if flip.picture is not None]
    drawn = [(flip, *_embedded(picture)) for flip, picture in with_picture[:MOST_PICTURES]]
    return [
        Kind(
            name,
            explained,
            sum(flip.kind == name for flip in flips),
            [(flip, address, tiny) for flip, address, tiny in drawn if flip.kind == name],
        )
        for name, explained in KINDS.items()
    ]


def _embedded(picture: np.ndarray) -> tuple[str, bool]:
    """A picture's address, and whether it is tiny."""
    tiny = max(picture.shape[:2]) < TINY
    return pages.embedded(picture, SIDE, lossless=tiny), tiny


# --------------------------------------------------------------------------------------------------------------- words


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _signed(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _pictures(n: int) -> str:
    return f"{n:,} picture" if n == 1 else f"{n:,} pictures"
