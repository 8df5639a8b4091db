"""The charts of a run's report.

Shape letters: H height, W width, C classes.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline import pages
from pipeline.artifacts import Epoch
from pipeline.metrics import Bin
from pipeline.pages import BLUE, INK, ORANGE, PAPER, SKY, SOFT, TINT, Chart, short
from pipeline.pixels import to_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from pipeline.config import RunConfig
    from pipeline.evaluate import Report

# Above these numbers a chart shows the classes that matter most instead of all.
LARGEST_MATRIX = 30
MOST_ROWS = 30


def learning_curves(history: Sequence[Epoch], config: "RunConfig") -> Chart:
    """Loss, accuracy and learning rate over the epochs of all phases, as configured."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = pages.figure(7.5, 7)
    loss, accuracy, rate = figure.subplots(3, 1, sharex=True, height_ratios=[3, 3, 1.3])
    epochs = [e.epoch for e in history]
    dots = {"marker": "o"} if len(history) <= 40 else {}
    for axes, train, validation in (
        (loss, [e.loss for e in history], [e.validation_loss for e in history]),
        (accuracy, [e.accuracy for e in history], [e.validation_accuracy for e in history]),
    ):
        axes.plot(epochs, train, color=BLUE, linestyle="--", label="training", **(dots | {"markerfacecolor": PAPER}))
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
    return Chart(
        figure,
        "How training went. Validation pictures are not learned from: where their loss rises while the training loss "
        f"falls, the network overfits. {_training_figures(config)}",
        f"Learning curves over {len(history)} epochs in {history[-1].phase} phases: validation loss from "
        f"{history[0].validation_loss:.3f} to {history[-1].validation_loss:.3f}, validation accuracy from "
        f"{history[0].validation_accuracy:.1%} to {history[-1].validation_accuracy:.1%}, "
        f"at best {best.validation_accuracy:.1%} in epoch {best.epoch}.",
    )


def _training_figures(config: "RunConfig") -> str:
    """By what else than overfitting they differ from those of validation."""
    augment = config.data.augment
    mixed = {"mixup": augment.mixup is not None, "cutmix": augment.cutmix is not None}
    augmented = "on augmented pictures, " if augment.of_each or any(mixed.values()) else ""
    asked = mixed | {
        "label smoothing": any(phase.label_smoothing for phase in config.phases),
        "class weights": config.data.class_weights != "none",
    }
    of_loss = " and ".join(name for name, is_on in asked.items() if is_on)
    loss, differ = (
        (f", and the training loss with {of_loss}", ", and the two losses differ by more than overfitting")
        if of_loss
        else ("", "")
    )
    return (
        f"Training figures are measured {augmented}while the weights still change{loss}; so they can be worse than "
        f"validation{differ}."
    )


def _mark_phases(history: Sequence[Epoch], rows: Sequence["Axes"]) -> None:
    for phase in sorted({e.phase for e in history}):
        epochs = [e.epoch for e in history if e.phase == phase]
        start, end = min(epochs) - 0.5, max(epochs) + 0.5
        if phase % 2 == 0:
            for axes in rows:
                axes.axvspan(start, end, color=TINT, zorder=0)
        rows[0].text(
            (start + end) / 2, 1.03, f"phase {phase}", transform=rows[0].get_xaxis_transform(),
            ha="center", va="bottom", color=SOFT,
        )  # fmt: skip


def confusion(report: "Report") -> Chart:
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
        return Chart(_matrix(matrix, names), caption, f"Confusion matrix of {len(names)} classes. {alt}")
    caption = f"The most frequent of {mistakes} mistakes: true class → predicted class."
    return Chart(_top_confusions(matrix, names, pairs), caption, f"Most frequent confusions. {alt}")


def _matrix(matrix: np.ndarray, names: list[str]) -> "Figure":
    share = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    shown = [short(name) for name in names]
    side = max(2.6, (0.4 if len(names) <= 15 else 0.34) * len(names))
    margin = 0.9 + 0.085 * max(len(name) for name in shown)
    figure = pages.figure(side + margin, side + margin)
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

    figure = pages.figure(7.5, 1.2 + 0.27 * max(len(pairs), 3))
    axes = figure.subplots()
    counts = [int(matrix[pair]) for pair in pairs]
    axes.barh(range(len(pairs)), counts, color=BLUE, height=0.7)
    axes.set_yticks(range(len(pairs)), [f"{short(names[i])} → {short(names[j])}" for i, j in pairs])
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


def per_class(report: "Report") -> Chart:
    """F1, precision and recall of each class, best first; of the worst alone where there are many."""
    from matplotlib.ticker import PercentFormatter

    seen = sorted((row for row in report.per_class if row.support), key=lambda row: -row.f1)
    rows = seen[-MOST_ROWS:]
    figure = pages.figure(7.5, 1.5 + 0.3 * len(rows))
    axes = figure.subplots()
    y = range(len(rows))
    axes.barh(y, [row.f1 for row in rows], color=SKY, alpha=0.4, height=0.72, label="F1")
    axes.plot([row.precision for row in rows], y, "o", color=BLUE, markersize=7, label="precision")
    axes.plot([row.recall for row in rows], y, "D", color=ORANGE, markersize=6, label="recall")
    axes.set_yticks(y, [f"{short(row.name)}  ({row.support})" for row in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlim(0, 1.02)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, symbol=" %"))
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set_title(f"The {MOST_ROWS} classes with the lowest F1" if len(seen) > len(rows) else "Scores by class")
    figure.legend(loc="outside lower center", ncols=3)
    return Chart(
        figure,
        "Recall is the share of a class's pictures that were found; precision is the share of pictures given this "
        "class that belong to it. In brackets: test pictures.",
        f"Scores of {len(rows)} classes. Best F1 of those shown: {rows[0].name} {rows[0].f1:.2f}; "
        f"worst: {rows[-1].name} {rows[-1].f1:.2f}.",
    )


def reliability(report: "Report") -> Chart:
    """Confidence against accuracy before and after temperature scaling, with the number of pictures below."""
    figure = pages.figure(7.5, 4.4)
    upper, lower = figure.subplots(2, 2, sharex=True, sharey="row", height_ratios=[3, 1])
    sides = (
        ("before scaling", report.calibration_before),
        (f"exported, T = {report.temperature:.2f}", report.calibration),
    )
    lower[0].set_xticks([0, 0.25, 0.5, 0.75, 1], ["0", "0.25", "0.5", "0.75", ""])
    for top, bottom, (title, calibration) in zip(upper, lower, sides, strict=True):
        _reliability_bars(top, bottom, calibration.bins)
        top.set_title(f"Error {calibration.ece:.3f}\n{title}")
    upper[0].set_ylabel("accuracy")
    lower[0].set_ylabel("pictures")
    figure.supxlabel("confidence", color=SOFT, fontsize=10)
    before, after = report.calibration_before.ece, report.calibration.ece
    return Chart(
        figure,
        "Whether confidence can be believed: of the pictures given a class with 80 % confidence, 80 % should be right. "
        "Bars below the diagonal are overconfident. Each gap counts by the pictures in it, drawn below.",
        f"Reliability diagrams. Expected calibration error {before:.3f} before and {after:.3f} after temperature "
        f"scaling with T = {report.temperature:.2f}.",
    )


def _reliability_bars(top: "Axes", bottom: "Axes", bins: Sequence[Bin]) -> None:
    from matplotlib.ticker import MaxNLocator

    left, width = [b.lower for b in bins], [b.upper - b.lower for b in bins]
    top.bar(left, [b.accuracy for b in bins], width, align="edge", color=BLUE, edgecolor=PAPER, linewidth=0.8)
    top.plot([0, 1], [0, 1], color=ORANGE, linestyle="--", linewidth=1.5)
    top.set(xlim=(0, 1), ylim=(0, 1.02))
    bottom.bar(left, [b.count for b in bins], width, align="edge", color=SOFT, edgecolor=PAPER, linewidth=0.8)
    bottom.yaxis.set_major_locator(MaxNLocator(nbins=3, integer=True))


def mean_picture(mean: np.ndarray) -> Chart:
    """What is subtracted from every picture: a mean image [H, W, 3], or a colour [3]; 0..255."""
    channels = mean.reshape(-1, 3).mean(axis=0)
    values = "   ".join(f"{channel} {value:.1f}" for channel, value in zip("RGB", channels, strict=True))
    what = "Mean image" if mean.ndim == 3 else "Mean colour"
    colors = to_bytes(mean)
    figure = pages.figure(3.6, 3.9)
    axes = figure.subplots()
    axes.imshow(colors if mean.ndim == 3 else colors.reshape(1, 1, 3))
    axes.set_title(what)
    axes.set_xlabel(values, color=INK)
    axes.set(xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    return Chart(
        figure,
        "What is subtracted from every picture before the network sees it, in training and in the exported model.",
        f"{what} subtracted from every picture: {values}, of 255.",
    )
