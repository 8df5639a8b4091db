"""A sweep as one web page that needs no network: the winner, the trials, and what each key does to the loss."""

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline import pages, search_space
from pipeline.pages import BLUE, GREEN, INK, LINE, ORANGE, SKY, SOFT, TINT, Chart
from pipeline.sweep_result import Outcome, Training

_BEST = 5  # Trials that stand out in a chart.
_SPACE = 0.06  # Of an axis, beyond its first and last value.


def write(path: Path, outcome: Outcome, then: str, facts: Mapping[str, str], note: str = "") -> None:
    """Writes the page.

    Args:
        path: sweep.html in an existing folder.
        outcome: a sweep with a training that has ended well.
        then: the command that trains the winner.
        facts: rows of the table "How it was made".
        note: what to know of that command; empty for nothing.
    """
    winner, noise = outcome.winner, outcome.noise
    assert winner is not None
    ended = [row for row in outcome.ranked if row.status == "finished"]
    with pages.drawing():
        charts = [_history(outcome), *(_of_key(outcome, key, ended) for key in outcome.keys)]
        pages.write(
            path,
            "sweep.html",
            outcome=outcome,
            winner=winner,
            noise=noise,
            rows=[(row, *outcome.beside_base(row)) for row in outcome.ranked],
            seeds=[row for row in outcome.trainings if row.role.startswith("seed")],
            parallel=_parallel(outcome, ended) if len(ended) > 1 else None,
            charts=charts,
            then=then,
            note=note,
            facts=facts,
        )


# -------------------------------------------------------------------------------------------------------------- scales


class _Scale:
    """Where a key's values lie on an axis from 0 to 1, and what stands beside it.

    Numbers of a range lie where they are, on a logarithmic axis where the range is; values of a list lie apart
    evenly, numbers among them in order.
    """

    def __init__(self, key: str, texts: Sequence[str], ranged: bool, log: bool) -> None:
        self.ticks: list[tuple[float, str]]
        self._ranged, self._log = ranged, log
        if ranged:
            from matplotlib.ticker import LogLocator, MaxNLocator

            numbers = [float(text) for text in texts]
            low, high = min(numbers), max(numbers)
            self._low, self._high = (math.log10(low), math.log10(high)) if log else (low, high)
            locator = LogLocator(subs=(1.0, 3.0)) if log else MaxNLocator(5)
            marks = [mark for mark in locator.tick_values(low, high) if low <= mark <= high] or [low, high]
            self.ticks = [(self._at(mark), f"{mark:g}") for mark in marks]
        else:
            unique = sorted(dict.fromkeys(texts), key=_order)
            step = 1 / max(len(unique) - 1, 1)
            self._places = {text: place * step if len(unique) > 1 else 0.5 for place, text in enumerate(unique)}
            self.ticks = [(place, pages.short(text, 18)) for text, place in self._places.items()]

    def __call__(self, text: str) -> float:
        return self._at(float(text)) if self._ranged else self._places[text]

    def _at(self, number: float) -> float:
        width = self._high - self._low
        return ((math.log10(number) if self._log else number) - self._low) / width if width else 0.5


def _order(text: str) -> tuple[list[float], str]:
    """Sorts numbers, and lists and the like by the numbers in them."""
    return [float(number) for number in re.findall(search_space.NUMBER, text)], text


def _scale(outcome: Outcome, key: str, rows: Sequence[Training]) -> _Scale:
    texts = [row.point[key] for row in rows]
    # The base may have no number where the others have one.
    ranged = key in outcome.ranged and all(re.fullmatch(search_space.NUMBER, text) for text in texts)
    return _Scale(key, texts, ranged, ranged and key in outcome.logarithmic and all(float(text) > 0 for text in texts))


def _losses(rows: Sequence[Training]) -> np.ndarray:
    return np.array([row.loss for row in rows], float)


def _limits(losses: np.ndarray) -> tuple[float, float]:
    """Of an axis of losses: trials that went far astray lie at its upper end."""
    low, middle = float(losses.min()), float(np.median(losses))
    high = min(float(losses.max()), max(middle + 4 * (middle - low), low * 1.02 + 1e-6))
    margin = 0.08 * (high - low) or 0.05 * max(low, 1e-3)
    return low - margin, high + margin


# -------------------------------------------------------------------------------------------------------------- charts


def _parallel(outcome: Outcome, rows: Sequence[Training]) -> Chart:
    """Parallel coordinates: an axis for each key, the last one for the loss, a line for each training."""
    from matplotlib.ticker import MaxNLocator

    keys = outcome.keys
    figure = pages.figure(min(max(8.5, 2.6 + 1.9 * len(keys)), 16), 4.6)
    axes = figure.add_subplot()
    scales = [_scale(outcome, key, rows) for key in keys]
    low, high = _limits(_losses(rows))

    def at_loss(loss: float) -> float:
        return min((loss - low) / (high - low), 1.0)

    columns = range(len(keys) + 1)
    winner = outcome.winner
    for place, row in reversed(list(enumerate(rows))):
        assert row.loss is not None
        # A little apart, so that lines through one value can be told from one another.
        apart = 0.03 * ((row.number * 0.618) % 1 - 0.5)
        heights = [scale(row.point[key]) + apart for scale, key in zip(scales, keys, strict=True)]
        color, width, alpha, style = LINE, 1.0, 1.0, "-"
        if row is winner:
            color, width = ORANGE, 3.0
        elif row.role == "base":
            color, width, style = INK, 2.0, "--"
        elif place <= _BEST:
            color, width, alpha = BLUE, 1.6, 0.8
        else:
            color, alpha = SOFT, 0.35
        axes.plot(columns, [*heights, at_loss(row.loss)], style, color=color, linewidth=width, alpha=alpha, zorder=2)
    ticks = [scale.ticks for scale in scales]
    marks = [mark for mark in MaxNLocator(6).tick_values(low, high) if low <= mark <= high]
    ticks.append([(at_loss(mark), f"{mark:g}") for mark in marks])
    for column, of_column in zip(columns, ticks, strict=True):
        axes.axvline(column, color=LINE, linewidth=1.2, zorder=1)
        for height, text in of_column:
            axes.annotate(
                text, (column, height), (5, 0), textcoords="offset points", va="center", fontsize=9, color=INK,
                zorder=4, bbox={"facecolor": pages.PAPER, "edgecolor": "none", "alpha": 0.75, "pad": 0.8},
            )  # fmt: skip
    axes.set_xticks(columns, [*(pages.short(key, 26) for key in keys), "loss"], fontsize=9)
    axes.set_yticks([])
    axes.set_ylim(-_SPACE, 1 + _SPACE)
    axes.set_xlim(-0.08, len(keys) + 0.3)
    axes.grid(visible=False)
    for side in ("left", "bottom"):
        axes.spines[side].set_visible(False)
    axes.tick_params(length=0)
    assert winner is not None
    of_base = "" if winner.role == "base" else " The base is dashed."
    return Chart(
        figure,
        f"One line for each of {len(rows)} trainings that ended well; lower on the last axis is better. The winner is "
        f"orange, the next {_BEST} are blue.{of_base}",
        f"Parallel coordinates of {', '.join(keys)} and the loss; the winner is {winner.differs} with "
        f"{winner.loss:.4f}",
    )


def _history(outcome: Outcome) -> Chart:
    """The loss of trial after trial, and the lowest so far."""
    rows = [row for row in outcome.trials if row.status == "finished"]
    base, noise = outcome.base, outcome.noise
    from matplotlib.ticker import MaxNLocator

    figure = pages.figure(5.6, 3.6)
    axes = figure.add_subplot(title="Trial after trial", xlabel="trial", ylabel="loss")
    assert base is not None
    assert base.loss is not None
    if noise is not None:
        axes.axhspan(noise.mean_loss - noise.of_another, noise.mean_loss + noise.of_another, color=TINT, zorder=0)
    middle = noise.mean_loss if noise else base.loss
    low, high = _limits(np.array([base.loss, middle, *_losses(rows)]))
    label = f"base, mean of {noise.seeds} seeds" if noise else "base"
    axes.axhline(middle, color=INK, linestyle="--", linewidth=1.2, label=label)
    if rows:
        numbers, losses = [row.number for row in rows], _losses(rows)
        axes.plot(numbers, np.minimum(losses, high), "o", clip_on=False, color=SKY, markersize=4, label="trial")
        best = np.minimum.accumulate(losses)
        axes.step(numbers, best, where="post", color=BLUE, label="best so far")
    axes.set_ylim(low, high)
    axes.legend(fontsize=9)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    left = "" if not (others := outcome.left_out) else f" {others} trials are not shown."
    return Chart(
        figure,
        f"The band is where one more seed of the base would lie, in 95 % of cases: the mean over its {noise.seeds} "
        f"seeds ± {noise.of_another:.4f}. A trial inside it may be no better or worse than the base.{left}"
        if noise
        else f"The loss of each trial.{left}",
        f"Loss of {len(rows)} trials in their order; the base has {base.loss:.4f}, the best training "
        f"{min([base.loss, *(row.loss for row in rows if row.loss is not None)]):.4f}",
    )


def _of_key(outcome: Outcome, key: str, rows: Sequence[Training]) -> Chart:
    """The loss against one key's values."""
    figure = pages.figure(5.6, 3.6)
    axes: Any = figure.add_subplot(title=pages.short(key, 40), ylabel="loss")
    scale, winner = _scale(outcome, key, rows), outcome.winner
    low, high = _limits(_losses(rows))
    for row in rows:
        assert row.loss is not None
        color, size = (ORANGE, 8) if row is winner else (INK, 6) if row.role == "base" else (BLUE, 4.5)
        label = "winner" if row is winner else "base" if row.role == "base" else None
        apart = 0.0 if label else 0.03 * ((row.number * 0.618) % 1 - 0.5)
        marker = "D" if row.role == "base" else "o"
        axes.plot(
            scale(row.point[key]) + apart, min(row.loss, high), marker, color=color, markersize=size, label=label,
            alpha=1 if label else 0.6, clip_on=False, zorder=3 if label else 2,
        )  # fmt: skip
    by_value: dict[str, list[float]] = {}
    for row in rows:
        assert row.loss is not None
        by_value.setdefault(row.point[key], []).append(row.loss)
    if key not in outcome.ranged:
        for number, (text, losses) in enumerate(by_value.items()):
            x = scale(text)
            axes.plot(
                [x - 0.04, x + 0.04],
                [min(np.median(losses), high)] * 2,
                color=GREEN,
                label=None if number else "median",
                zorder=4,
            )
    places, texts = zip(*scale.ticks, strict=True)
    crowded = len(texts) > 4 and max(map(len, texts)) > 6
    axes.set_xticks(places, texts, rotation=30 if crowded else 0, ha="right" if crowded else "center", fontsize=9)
    axes.set_xlim(-_SPACE, 1 + _SPACE)
    axes.set_ylim(low, high)
    axes.legend(fontsize=9)
    medians = "; ".join(f"{text}: {np.median(losses):.4f}" for text, losses in list(by_value.items())[:12])
    shown = " (logarithmic)" if key in outcome.logarithmic else ""
    return Chart(
        figure,
        f"Each training's value of {key}{shown} and its loss: a key whose points form no slope hardly matters here.",
        f"Loss by {key}. {medians if key not in outcome.ranged else f'{len(rows)} trainings'}",
    )
