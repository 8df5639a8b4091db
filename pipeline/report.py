"""A run's figures as pictures and as one web page that needs no network.

The pictures share one style and a palette that colour-blind readers can tell apart (Okabe and Ito, 2008).
Shape letters: H height, W width, C classes.
"""

import base64
import html
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

import numpy as np

from pipeline.artifacts import Epoch
from pipeline.metrics import METRICS, Bin, ClassScore

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.evaluate import Report

BLUE, ORANGE, INK, SOFT, LINE = "#0072b2", "#d55e00", "#1d2430", "#5b6675", "#dfe3e8"

STYLE: dict[Any, Any] = {
    "font.size": 10,
    "text.color": INK,
    "text.parse_math": False,  # a class may have dollar signs in its name
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.titlepad": 10,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": LINE,
    "grid.linewidth": 0.8,
    "xtick.color": LINE,
    "ytick.color": LINE,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "legend.frameon": False,
    "lines.linewidth": 2,
    "lines.markersize": 5,
    "savefig.dpi": 150,
}

# Behind matplotlib's own font, those that write other scripts, where they are installed.
FONTS = ("Noto Sans CJK SC", "Noto Sans CJK JP", "PingFang SC", "Hiragino Sans", "Microsoft YaHei", "Arial Unicode MS")

# Above these numbers a picture shows the classes that matter most instead of all.
LARGEST_MATRIX = 30
MOST_ROWS = 30
MOST_OPEN_ROWS = 50

# A picture wider than this, in inches, takes the page's full width, below the others.
WIDEST_COLUMN = 8


@dataclass(frozen=True)
class Picture:
    """A drawing, how to read it, and what it shows in words for who cannot see it."""

    figure: "Figure"
    caption: str
    alt: str


def write(
    run_dir: Path,
    name: str,
    report: "Report",
    history: Sequence[Epoch],
    mean: np.ndarray | None,
    config: str,
    facts: Mapping[str, str],
    command: str,
) -> list[Path]:
    """Writes learning_curves.png, confusion.png, per_class.png, reliability.png, mean.png and report.html.

    Args:
        run_dir: an existing folder.
        name: the run's name, the page's title.
        report: of the test split.
        history: the epochs in order, at least one.
        mean: float [H, W, 3] or [3] in 0..255, subtracted from every picture; None, and no mean.png, where there is no
            such thing.
        config: the complete configuration, as YAML.
        facts: rows of the table "Where things are": digests, and paths of the export and the run store.
        command: the shell command that repeats the run.

    Returns:
        The files written, the page last.
    """
    import matplotlib
    from matplotlib import font_manager

    installed = set(font_manager.get_font_names())
    family = ["DejaVu Sans", *(font for font in FONTS if font in installed)]
    with matplotlib.rc_context(STYLE | {"font.family": family}), warnings.catch_warnings():
        # A script that no installed font writes shows as boxes; the page's table has the names.
        warnings.filterwarnings("ignore", r"Glyph .* missing from font", UserWarning)
        pictures = {
            "learning_curves": learning_curves(history),
            "confusion": confusion(report),
            "per_class": per_class(report),
            "reliability": reliability(report),
        }
        if mean is not None:
            pictures["mean"] = mean_picture(mean)
        paths = {run_dir / f"{stem}.png": picture for stem, picture in pictures.items()}
        for path, picture in paths.items():
            picture.figure.savefig(path)
    page = run_dir / "report.html"
    # Only a lone surrogate, from a file name that is not UTF-8, cannot be encoded.
    page.write_text(_page(name, report, paths, config, facts, command), encoding="utf-8", errors="xmlcharrefreplace")
    return [*paths, page]


# ------------------------------------------------------------------------------------------------------------ pictures


def learning_curves(history: Sequence[Epoch]) -> Picture:
    """Loss, accuracy and learning rate over the epochs of all phases."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = _figure(7.5, 7)
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.3])
    epochs = [e.epoch for e in history]
    dots = {"marker": "o"} if len(history) <= 40 else {}
    for axes, train, validation in (
        (loss, [e.loss for e in history], [e.validation_loss for e in history]),
        (accuracy, [e.accuracy for e in history], [e.validation_accuracy for e in history]),
    ):
        axes.plot(epochs, train, color=BLUE, linestyle="--", label="training", **(dots | {"markerfacecolor": "white"}))
        axes.plot(epochs, validation, color=ORANGE, label="validation", **dots)
    rates = [e.learning_rate for e in history]
    rate.plot(epochs, rates, color=INK, drawstyle="steps-mid", **dots)
    if positive := [r for r in rates if r > 0]:  # a schedule may end at 0, which a logarithm cannot show
        rate.set_yscale("log", nonpositive="mask")
        rate.set_ylim(min(positive) / 3.2, max(positive) * 3.2)  # spans a power of ten, so that a tick is labelled
    rate.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    rate.minorticks_off()
    accuracy.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.set_xlim(min(epochs) - 0.5, max(epochs) + 0.5)
    loss.set(ylabel="loss (nats)")
    accuracy.set(ylabel="accuracy")
    rate.set(ylabel="learning rate", xlabel="epoch")
    _mark_phases(history, (loss, accuracy, rate))
    loss.legend(loc="best")
    figure.align_ylabels()

    best = max(history, key=lambda e: e.validation_accuracy)
    return Picture(
        figure,
        "How training went. Validation pictures are not learned from: where their loss rises while the training loss "
        "falls, the network overfits. Training figures are measured on augmented pictures, while the weights still "
        "change, and the training loss with the label smoothing, mixup and class weights that the config asks for; so "
        "they can be worse than validation, and the two losses differ by more than overfitting.",
        f"Learning curves over {len(history)} epochs in {history[-1].phase} phases: validation loss from "
        f"{history[0].validation_loss:.3f} to {history[-1].validation_loss:.3f}, validation accuracy from "
        f"{history[0].validation_accuracy:.1%} to {history[-1].validation_accuracy:.1%}, "
        f"at best {best.validation_accuracy:.1%} in epoch {best.epoch}.",
    )


def _mark_phases(history: Sequence[Epoch], rows: Sequence["Axes"]) -> None:
    for phase in sorted({e.phase for e in history}):
        epochs = [e.epoch for e in history if e.phase == phase]
        start, end = min(epochs) - 0.5, max(epochs) + 0.5
        if phase % 2 == 0:
            for axes in rows:
                axes.axvspan(start, end, color="#f0f3f6", zorder=0)
        rows[0].text(
            (start + end) / 2, 1.03, f"phase {phase}", transform=rows[0].get_xaxis_transform(),
            ha="center", va="bottom", color=SOFT,
        )  # fmt: skip


def confusion(report: "Report") -> Picture:
    """The confusion matrix, or the most frequent confusions where it would be too large to read."""
    matrix = np.asarray(report.confusion)
    names = [row.name for row in report.per_class]
    wrong = matrix - np.diag(np.diag(matrix))
    mistakes = int(wrong.sum())
    order = np.argsort(-wrong, axis=None, kind="stable")[:MOST_ROWS]
    pairs = [(int(i), int(j)) for i, j in zip(*np.unravel_index(order, wrong.shape), strict=True) if wrong[i, j]]
    if pairs:
        true, guess = pairs[0]
        worst = f" Most frequent: {names[true]} taken for {names[guess]}, {wrong[true, guess]} of {matrix[true].sum()}."
    else:
        worst = ""
    alt = f"{mistakes} of {report.n} test pictures got a wrong class.{worst}"
    if len(names) <= LARGEST_MATRIX:
        caption = "Test pictures by true class (row) and predicted class (column), shaded by their share of the row."
        return Picture(_matrix(matrix, names), caption, f"Confusion matrix of {len(names)} classes. {alt}")
    caption = f"The most frequent of {mistakes} mistakes: true class → predicted class."
    return Picture(_top_confusions(matrix, names, pairs), caption, f"Most frequent confusions. {alt}")


def _matrix(matrix: np.ndarray, names: list[str]) -> "Figure":
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = [_short(name) for name in names]
    side = max(2.6, (0.4 if len(names) <= 15 else 0.34) * len(names))
    margin = 0.9 + 0.085 * max(len(name) for name in shown)
    figure = _figure(side + margin, side + margin)
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1.25)  # the darkest blues would hide their numbers
    axes.set_xticks(range(len(names)), shown, rotation=90 if len(names) > 4 else 0)
    axes.set_yticks(range(len(names)), shown)
    axes.set(xlabel="predicted class", ylabel="true class")
    axes.set_title("Confusion matrix, test pictures")
    axes.tick_params(length=0)
    axes.grid(False)
    axes.spines[:].set_visible(False)
    axes.set_xticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.set_yticks(np.arange(len(names) - 1) + 0.5, minor=True)
    axes.tick_params(which="minor", length=0)
    axes.grid(which="minor", color="white", linewidth=1.5)
    size = 14 if len(names) <= 5 else 10 if len(names) <= 15 else 8
    for (row, column), count in np.ndenumerate(matrix):
        if count or row == column:
            color = "white" if share[row, column] > 0.6 else INK
            axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=size)
    return figure


def _top_confusions(matrix: np.ndarray, names: list[str], pairs: list[tuple[int, int]]) -> "Figure":
    from matplotlib.ticker import MaxNLocator

    figure = _figure(7.5, 1.2 + 0.27 * max(len(pairs), 3))
    axes = figure.subplots()
    counts = [int(matrix[pair]) for pair in pairs]
    axes.barh(range(len(pairs)), counts, color=BLUE, height=0.7)
    axes.set_yticks(range(len(pairs)), [f"{_short(names[i])} → {_short(names[j])}" for i, j in pairs])
    for y, ((true, _), count) in enumerate(zip(pairs, counts, strict=True)):
        axes.text(count, y, f" {count} of {matrix[true].sum()}", va="center", color=SOFT, fontsize=9)
    axes.set_xlim(0, 1.15 * max(counts, default=1))
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("test pictures")
    axes.set_title("Most frequent confusions" if pairs else "No test picture was confused")
    return figure


def per_class(report: "Report") -> Picture:
    """F1, precision and recall of each class, best first; of the worst alone where there are many."""
    from matplotlib.ticker import PercentFormatter

    seen = sorted((row for row in report.per_class if row.support), key=lambda row: -row.f1)
    rows = seen[-MOST_ROWS:]
    figure = _figure(7.5, 1.5 + 0.3 * len(rows))
    axes = figure.subplots()
    y = range(len(rows))
    axes.barh(y, [row.f1 for row in rows], color="#cfe3f1", height=0.72, label="F1")
    axes.plot([row.precision for row in rows], y, "o", color=BLUE, markersize=7, label="precision")
    axes.plot([row.recall for row in rows], y, "D", color=ORANGE, markersize=6, label="recall")
    axes.set_yticks(y, [f"{_short(row.name)}  ({row.support})" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"The {MOST_ROWS} classes with the lowest F1" if len(seen) > len(rows) else "Scores by class")
    figure.legend(loc="outside lower center", ncols=3)
    return Picture(
        figure,
        "Recall is the share of a class's pictures that were found; precision is the share of pictures given this "
        "class that belong to it. In brackets: test pictures.",
        f"Scores of {len(rows)} classes. Best F1 of those shown: {rows[0].name} {rows[0].f1:.2f}; "
        f"worst: {rows[-1].name} {rows[-1].f1:.2f}.",
    )


def reliability(report: "Report") -> Picture:
    """Confidence against accuracy before and after temperature scaling, with the number of pictures below."""
    figure = _figure(7.5, 4.4)
    upper, lower = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
    sides = (
        ("Before scaling", report.calibration_before),
        (f"Exported, T = {report.temperature:.2f}", report.calibration),
    )
    lower[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", ""])
    for top, bottom, (title, calibration) in zip(upper, lower, sides, strict=True):
        _reliability_bars(top, bottom, calibration.bins)
        top.set_title(f"{title}: error {calibration.ece:.3f}")
    upper[0].set_ylabel("accuracy")
    lower[0].set_ylabel("pictures")
    figure.supxlabel("confidence", color=SOFT, fontsize=10)
    before, after = report.calibration_before.ece, report.calibration.ece
    return Picture(
        figure,
        "Whether confidence can be believed: of the pictures given a class with 80 % confidence, 80 % should be right. "
        "Bars below the diagonal are overconfident. Each gap counts by the pictures in it, drawn below.",
        f"Reliability diagrams. Expected calibration error {before:.3f} before and {after:.3f} after temperature "
        f"scaling with T = {report.temperature:.2f}.",
    )


def _reliability_bars(top: "Axes", bottom: "Axes", bins: Sequence[Bin]) -> None:
    from matplotlib.ticker import MaxNLocator

    left, width = [b.lower for b in bins], [b.upper - b.lower for b in bins]
    top.bar(left, [b.accuracy for b in bins], width, align="edge", color=BLUE, edgecolor="white", linewidth=0.8)
    top.plot([0, 1], [0, 1], color=ORANGE, linestyle="--", linewidth=1.5)
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    bottom.bar(left, [b.count for b in bins], width, align="edge", color="#9aa7b5", edgecolor="white", linewidth=0.8)
    bottom.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


def mean_picture(mean: np.ndarray) -> Picture:
    """What is subtracted from every picture: a mean image [H, W, 3], or a colour [3]; 0..255."""
    channels = mean.reshape(-1, 3).mean(axis=0)
    values = "   ".join(f"{channel} {value:.1f}" for channel, value in zip("RGB", channels, strict=True))
    what = "Mean image" if mean.ndim == 3 else "Mean colour"
    colors = np.clip(np.rint(mean), 0, 255).astype(np.uint8)
    figure = _figure(3.6, 3.9)
    axes = figure.subplots()
    axes.imshow(colors if mean.ndim == 3 else colors.reshape(1, 1, 3))
    axes.set_title(what)
    axes.set_xlabel(values, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return Picture(
        figure,
        "What is subtracted from every picture before the network sees it, in training and in the exported model.",
        f"{what} subtracted from every picture: {values}, of 255.",
    )


def _figure(width: float, height: float) -> "Figure":
    """An empty figure, sides in inches, that fits its axes around their labels."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _short(name: str, longest: int = 24) -> str:
    """A class's name as a label in a picture."""
    name = "".join(letter if letter.isprintable() else "?" for letter in name)
    return name if len(name) <= longest else name[: longest - 1] + "…"


# ---------------------------------------------------------------------------------------------------------------- page


def _page(
    name: str, report: "Report", pictures: Mapping[Path, Picture], config: str, facts: Mapping[str, str], command: str
) -> str:
    low, high = (100 * bound for bound in report.accuracy_interval)
    fields = {
        "name": html.escape(name),
        "accuracy": f"{report.metrics['accuracy']:.1%}".replace("%", " %"),
        "interval": f"95 % interval {low:.1f} to {high:.1f} %, from {report.n:,} pictures that training never saw.",
        "metrics": "\n".join(_metrics(report)),
        "figures": "\n".join(
            _figure_element(*item) for item in sorted(pictures.items(), key=lambda item: _wide(item[1]))
        ),
        "open": " open" if len(report.per_class) <= MOST_OPEN_ROWS else "",
        "classes": f"{len(report.per_class):,}",
        "per_class": "\n".join(f"<tr><th>{html.escape(row.name)}</th>{_numbers(row)}</tr>" for row in report.per_class),
        "facts": "\n".join(
            f'<tr><th class="key">{html.escape(key)}</th><td class="fact">{html.escape(value)}</td></tr>'
            for key, value in facts.items()
        ),
        "command": html.escape(command),
        "config": html.escape(config),
    }
    return Template(Path(__file__).with_name("report.html").read_text(encoding="utf-8")).substitute(fields)


def _metrics(report: "Report") -> list[str]:
    """One table row a metric, explained by its function's docstring."""
    before = {"loss": report.calibration_before.loss, "ece": report.calibration_before.ece}
    rows = []
    for name, value in report.metrics.items():
        explained = " ".join((METRICS[name].__doc__ or "").split("\n\n")[0].split()) if name in METRICS else ""
        if name in before:
            explained += f" Before temperature scaling: {before[name]:.4f}."
        rows.append(
            f'<tr><th class="key">{html.escape(name.replace("_", " "))}</th><td class="number">{value:.4f}</td>'
            f'<td class="soft">{html.escape(explained)}</td></tr>'
        )
    rows.append(
        f'<tr><th class="key">temperature</th><td class="number">{report.temperature:.4f}</td>'
        '<td class="soft">The exported model divides its logits by this; fitted on the validation split.</td></tr>'
    )
    return rows


def _numbers(row: ClassScore) -> str:
    scores = [f"{value:.3f}" for value in (row.precision, row.recall, row.f1)] if row.support else ["–"] * 3
    return "".join(f'<td class="number">{text}</td>' for text in [*scores, f"{row.support:,}"])


def _wide(picture: Picture) -> bool:
    return bool(picture.figure.get_figwidth() > WIDEST_COLUMN)


def _figure_element(path: Path, picture: Picture) -> str:
    layout = ' class="wide"' if _wide(picture) else ""
    data = f"data:image/png;base64,{base64.b64encode(path.read_bytes()).decode()}"
    # 80 CSS pixels an inch, whatever the picture's size, so that the text in all of them has one size.
    width = round(80 * picture.figure.get_figwidth())
    return (
        f'<figure id="{path.stem}"{layout}>'
        f'<div><img width="{width}" src="{data}" alt="{html.escape(picture.alt)}"></div>'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )
