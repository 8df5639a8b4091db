"""The gate's decision as one web page that needs no network: the checks, the classes, and pictures whose label flips.

It looks like the run's report. Shape letters: H height, W width.
"""

import base64
import html
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template

import numpy as np

from pipeline.artifacts import write_atomically
from pipeline.gate import Check, ClassRow, Decision, Model

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
    verdict = "Promoted" if decision.promote else "Refused"
    names = [model.name for model in (decision.challenger, decision.champion) if model]
    fields = {
        "title": html.escape(f"{verdict}: {names[0]}"),
        "subject": html.escape(" against ".join(names)),
        "verdict": verdict,
        "tone": "good" if decision.promote else "bad",
        "pictures": _pictures(decision.n),
        "reason": html.escape(decision.reason),
        "gain": _gain(decision),
        "checks": "\n".join(_check(check) for check in decision.checks),
        "models": "\n".join(_models(decision.champion, decision.challenger)),
        "head": _heads(decision.champion, decision.challenger),
        "explained": _explained(decision),
        "classes": _classes(decision),
        "gallery": _gallery(flips) if decision.champion else "",
        "facts": "\n".join(
            f'<tr><th class="key">{html.escape(key)}</th><td class="fact">{html.escape(value)}</td></tr>'
            for key, value in {**facts, "Rules": _rules(decision), "Seed": str(decision.seed)}.items()
        ),
    }
    page = Template(Path(__file__).with_name("gate.html").read_text(encoding="utf-8")).substitute(fields)
    # Only a lone surrogate, from a file name that is not UTF-8, cannot be encoded.
    write_atomically(path, page.encode("utf-8", errors="xmlcharrefreplace").decode("utf-8"))


# -------------------------------------------------------------------------------------------------------------- tables


def _check(check: Check) -> str:
    word = '<td class="verdict good">✓ passed</td>' if check.passed else '<td class="verdict bad">✗ failed</td>'
    return (
        f'<tr><th class="name">{html.escape(check.name)}</th>{word}'
        f"<td>{html.escape(_capital(check.finding))}.<br>"
        f'<span class="soft">{html.escape(_capital(check.rule))}.</span></td></tr>'
    )


def _heads(champion: Model | None, challenger: Model) -> str:
    roles = [(champion.name, "champion")] if champion else []
    return "".join(
        f'<th class="number">{html.escape(name)}<br>{role}</th>'
        for name, role in [*roles, (challenger.name, "challenger")]
    )


def _models(champion: Model | None, challenger: Model) -> list[str]:
    """One row a figure, the champion's column first."""
    models = [model for model in (champion, challenger) if model]

    def row(title: str, values: list[str]) -> str:
        cells = "".join(f'<td class="number">{value}</td>' for value in values)
        return f"<tr><th>{title}</th>{cells}</tr>"

    def interval(model: Model) -> str:
        low, high = (100 * end for end in model.accuracy_interval)
        return f'{_percent(model.accuracy)}<br><span class="soft">{low:.1f} to {high:.1f} %</span>'

    return [
        row('Accuracy<br><span class="soft">95 % interval</span>', [interval(model) for model in models]),
        row("Expected calibration error", [f"{model.ece:.3f}" for model in models]),
        row(
            "Median time for one picture",
            ["–" if model.latency_ms is None else f"{model.latency_ms:.3g} ms" for model in models],
        ),
    ]


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


def _classes(decision: Decision) -> str:
    """Tables of the classes, those that lost most first; the many after the first are folded away."""
    rows = sorted(
        decision.per_class, key=lambda row: (not row.failed, row.n == 0, -(row.drop or 0), row.challenger or 0)
    )
    ends = [abs(end) for row in rows for end in row.drop_interval or ()]
    scale = max([decision.rules["max_class_drop"] * 1.2, *ends, 0.05])
    compared = decision.champion is not None
    titles = ["Pictures", "Champion", "Challenger", "Change, points"] if compared else ["Pictures", "Right"]
    head = "".join(f'<th class="number">{title}</th>' for title in titles)
    if compared:
        head += '<th class="interval" colspan="2">95 % interval of the change</th>'

    def table(some: Sequence[ClassRow]) -> str:
        body = "\n".join(_class_row(row, scale, decision) for row in some)
        return (
            f'<div class="scroll"><table class="classes"><thead><tr><th>Class</th>{head}</tr></thead>'
            f"<tbody>\n{body}\n</tbody></table></div>"
        )

    shown, folded = rows[:MOST_OPEN_ROWS], rows[MOST_OPEN_ROWS:]
    if not folded:
        return table(shown)
    more = "class" if len(folded) == 1 else "classes"
    return f"{table(shown)}\n<details><summary>{len(folded):,} more {more}</summary>\n{table(folded)}</details>"


def _class_row(row: ClassRow, scale: float, decision: Decision) -> str:
    allowed = float(decision.rules["max_class_drop"])
    name = f"<th>{html.escape(row.name)}</th>"
    mark = ' class="failed"' if row.failed else ""
    shares = [row.challenger] if decision.champion is None else [row.champion, row.challenger]
    numbers = [f"{row.n:,}", *("–" if share is None else _percent(share) for share in shares)]
    chart = ""
    if decision.champion is not None:
        numbers.append("–" if row.drop is None else _signed(-row.drop))
        words = "" if row.drop_interval is None else _change(row.drop_interval)
        chart = f'<td class="words soft">{words}</td><td class="interval">{_class_chart(row, scale, allowed)}</td>'
    cells = "".join(f'<td class="number">{number}</td>' for number in numbers)
    return f"<tr{mark}>{name}{cells}{chart}</tr>"


def _rules(decision: Decision) -> str:
    return ", ".join(f"{key}: {'null' if value is None else value}" for key, value in decision.rules.items())


# -------------------------------------------------------------------------------------------------------------- charts
# Positions are percentages of the drawing's width, so that it stretches and its text does not.


def _gain(decision: Decision) -> str:
    """The gain's interval beside zero and the least that is asked; nothing without a champion."""
    if decision.gain is None or decision.gain_interval is None:
        return ""
    low, high = decision.gain_interval
    rule = float(decision.rules["min_gain"])
    passed = low > rule
    ends = (low, high, rule, 0.0)
    margin = 0.12 * max(max(ends) - min(ends), 0.01)
    start, width = min(ends) - margin, max(ends) - min(ends) + 2 * margin

    def x(share: float) -> str:
        return f"{100 * (share - start) / width:.2f}%"

    step = _step(100 * width)
    first, last = int(np.ceil(100 * start / step)), int(np.floor(100 * (start + width) / step))
    ticks = [k * step for k in range(first, last + 1)]
    marks = "".join(
        f'<line class="tick" x1="{x(t / 100)}" x2="{x(t / 100)}" y1="26" y2="84"/>'
        f'<text class="label" x="{x(t / 100)}" y="102" text-anchor="middle">{t:+g}</text>'
        for t in ticks
        if 3 < 100 * (t / 100 - start) / width < 97
    ).replace(">+0<", ">0<")
    anchor = "start" if (rule - start) / width < 0.5 else "end"
    shift = "6" if anchor == "start" else "-6"
    words = (
        f"Gain in accuracy {_signed(decision.gain)} points, 95 % interval {_signed(low)} to {_signed(high)}; "
        f"it must lie above {100 * rule:g}."
    )
    tone = "good" if passed else "bad"
    return (
        f'<h2>Gain in accuracy</h2>\n<figure class="chart"><svg class="{tone}" width="100%" height="110" role="img" '
        f'aria-label="{html.escape(words)}">{marks}'
        f'<line class="rule" x1="{x(rule)}" x2="{x(rule)}" y1="6" y2="84"/>'
        f'<text class="label" x="{x(rule)}" dx="{shift}" y="16" text-anchor="{anchor}">'
        f"must lie above {100 * rule:g}</text>"
        f'<line class="bar" x1="{x(low)}" x2="{x(high)}" y1="58" y2="58"/>'
        f'<circle class="dot" cx="{x(decision.gain)}" cy="58" r="7"/>'
        f'<text class="value" x="{x(decision.gain)}" y="44" text-anchor="middle">{_signed(decision.gain)}</text>'
        f"</svg><figcaption>Points of accuracy over the champion, and the 95 % interval by the paired bootstrap over "
        f"{_pictures(decision.n)}: {decision.only_challenger_right:,} gained, {decision.only_champion_right:,} lost."
        "</figcaption></figure>"
    )


def _step(width: float) -> float:
    """A round distance between ticks, for about six of them."""
    power = 10.0 ** np.floor(np.log10(width / 6))
    return float(next(power * k for k in (1, 2, 5, 10) if power * k >= width / 6))


def _class_chart(row: ClassRow, scale: float, allowed: float) -> str:
    """The change's interval between -scale and scale."""
    if row.drop is None or row.drop_interval is None:
        return ""
    low, high = row.drop_interval

    def x(drop: float) -> str:
        return f"{50 - 48 * drop / scale:.1f}%"

    return (
        f'<svg class="{"bad" if row.failed else "good"}" width="100%" height="20" role="img" '
        f'aria-label="{_change(row.drop_interval)} points">'
        '<line class="tick" x1="50%" x2="50%" y1="0" y2="20"/>'
        f'<line class="rule" x1="{x(allowed)}" x2="{x(allowed)}" y1="0" y2="20"/>'
        f'<line class="bar" x1="{x(high)}" x2="{x(low)}" y1="10" y2="10"/>'
        f'<circle class="dot" cx="{x(row.drop)}" cy="10" r="4"/></svg>'
    )


# ------------------------------------------------------------------------------------------------------------- gallery


def _gallery(flips: Sequence[Flip]) -> str:
    drawn = [flip for flip in flips if flip.picture is not None][:MOST_PICTURES]
    parts = []
    for kind, explained in KINDS.items():
        count = sum(flip.kind == kind for flip in flips)
        shown = [flip for flip in drawn if flip.kind == kind]
        more = count - len(shown)
        note = f" {more:,} more {'is' if more == 1 else 'are'} not shown." if more else ""
        parts.append(f"<h3>{kind}: {_pictures(count)}</h3>")
        parts.append(f'<p class="soft">{explained if count else "There is none."}{note}</p>')
        if shown:
            parts += ['<div class="gallery">', *map(_card, shown), "</div>"]
    return "<h2>Pictures whose label flips</h2>\n" + "\n".join(parts)


def _card(flip: Flip) -> str:
    assert flip.picture is not None
    source, tiny = _jpeg(flip.picture)
    alt = f"{flip.name}: {flip.label}; the champion says {flip.champion}, the challenger {flip.challenger}"

    def said(model: str, label: str, score: float) -> str:
        tone, mark, word = ("good", "✓", "right") if label == flip.label else ("bad", "✗", "wrong")
        return (
            f'<dt>{model}</dt><dd class="{tone}"><span role="img" aria-label="{word}">{mark}</span> '
            f'{html.escape(label)} <span class="soft">{_whole_percent(score)}</span></dd>'
        )

    return (
        f'<figure class="flip"><img{" class=tiny" if tiny else ""} loading="lazy" src="{source}" '
        f'alt="{html.escape(alt)}"><figcaption><p class="name" title="{html.escape(flip.name)}">'
        f"{html.escape(flip.name)}</p><dl><dt>is</dt><dd>{html.escape(flip.label)}</dd>"
        f"{said('champion', flip.champion, flip.champion_score)}"
        f"{said('challenger', flip.challenger, flip.challenger_score)}</dl></figcaption></figure>"
    )


def _jpeg(picture: np.ndarray) -> tuple[str, bool]:
    """A data URI of a picture uint8 [H, W, 3], at most SIDE wide and high; and whether it is tiny."""
    from PIL import Image

    image = Image.fromarray(picture)
    tiny = max(image.size) < TINY
    image.thumbnail((SIDE, SIDE))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95 if tiny else 82, subsampling=0 if tiny else 2)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}", tiny


# --------------------------------------------------------------------------------------------------------------- words


def _capital(sentence: str) -> str:
    return sentence[:1].upper() + sentence[1:]


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _whole_percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _signed(share: float) -> str:
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _change(drop_interval: tuple[float, float]) -> str:
    low, high = drop_interval
    return f"{_signed(-high)} to {_signed(-low)}"


def _pictures(n: int) -> str:
    return f"{n:,} picture" if n == 1 else f"{n:,} pictures"
