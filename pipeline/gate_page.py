"""The gate's decision as one web page that needs no network: the checks, the classes, and pictures whose label flips.

Shape letters: H height, W width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline import pages
from pipeline.flips import KINDS, Flip
from pipeline.gate import ClassRow, Decision

MOST_PICTURES = 200
MOST_OPEN_ROWS = 30
SIDE = 240
"""The longer side of a picture on the page, in pixels: with 200 pictures the page stays below 15 MB."""

_EXPLAINED = {
    "lost": "Right by the champion, wrong by the challenger.",
    "gained": "Wrong by the champion, right by the challenger.",
    "wrong either way": "Both models are wrong, each with a label of its own.",
}


def write(
    path: Path,
    decision: Decision,
    flips: Sequence[Flip],
    pictures: Mapping[str, np.ndarray],
    facts: Mapping[str, str],
) -> None:
    """Writes the page.

    Args:
        path: gate.html in an existing folder.
        decision: what the gate decided.
        flips: from champion to challenger, those first that should be drawn. Empty without a champion.
        pictures: uint8 [H, W, 3] by digest, of the flips that are drawn; MOST_PICTURES of them at most are.
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
        kinds=_kinds(flips, pictures),
        facts={**facts, "Rules": _rules(decision), "Seed": str(decision.seed)},
        capital=_capital,
        percent=pages.percent,
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
    """The flips of one of KINDS: its name, what it means, how many there are, and those that are drawn."""

    name: str
    explained: str
    count: int
    shown: list[tuple[Flip, pages.Tile]]


def _kinds(flips: Sequence[Flip], pictures: Mapping[str, np.ndarray]) -> list[Kind]:
    with_picture = [flip for flip in flips if flip.digest in pictures]
    drawn = [(flip, pages.tile(pictures[flip.digest], SIDE)) for flip in with_picture[:MOST_PICTURES]]
    return [
        Kind(
            name,
            _EXPLAINED[name],
            sum(flip.kind == name for flip in flips),
            [(flip, tile) for flip, tile in drawn if flip.kind == name],
        )
        for name in KINDS
    ]


# --------------------------------------------------------------------------------------------------------------- words


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _signed(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _pictures(n: int) -> str:
    return f"{n:,} picture" if n == 1 else f"{n:,} pictures"
