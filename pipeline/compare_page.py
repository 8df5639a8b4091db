"""A comparison of runs as one web page that needs no network: figures, curves over each other, pictures that flip."""

import hashlib
from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path

import numpy as np

from pipeline import pages
from pipeline.compare import METRICS, NOTE, Comparison, Side, Versus
from pipeline.compare_changes import ABSENT
from pipeline.compare_runs import Run
from pipeline.flips import KINDS, Flip
from pipeline.sources.base import SPLIT_NAMES

MOST_FLIPS = 200
"""Pictures on the page, over all runs."""
MOST_OPEN_ROWS = 30
SIDE = 96
"""Of a picture on the page, in pixels."""
_LONGEST_NAME = 62  # of a page: three folders of runs
_LINES = ("-", "--", ":", "-.")  # where there are more runs than colours


def file_name(folders: Sequence[Path]) -> str:
    """What the page is called if nobody says: by the folders of the runs, and where they are too many for that by the
    first ones and a digest over all."""
    names = "_".join(folder.name for folder in folders)
    if len(names) <= _LONGEST_NAME:
        return f"{names}.html"
    digest = hashlib.sha256("\n".join(map(str, folders)).encode(errors="surrogateescape")).hexdigest()
    return f"{names[:_LONGEST_NAME]}_{digest[:8]}.html"


def write(
    path: Path,
    comparison: Comparison,
    runs: Sequence[Run],
    flips: Sequence[Sequence[Flip]],
    pictures: Mapping[str, np.ndarray],
) -> None:
    """Writes the page.

    Args:
        path: an HTML file in an existing folder.
        comparison: of the runs.
        runs: in its order.
        flips: for each run but the first, those that are listed.
        pictures: uint8 [H, W, 3] by digest, of those that there are.
    """
    labels = {side.letter: label(side) for side in comparison.runs}
    with pages.drawing():
        charts = [curves(runs, labels), changes(comparison)]
        pages.write(
            path,
            "compare.html",
            runs=comparison.runs,
            labels=labels,
            against=comparison.against,
            n=comparison.n,
            repeated=comparison.repeated,
            warnings=comparison.warnings,
            settings=comparison.settings,
            note=NOTE,
            absent=ABSENT,
            metrics=METRICS,
            charts=charts,
            per_class=comparison.per_class,
            is_open=len(comparison.per_class) <= MOST_OPEN_ROWS,
            facts={key: values for key, values in facts(comparison.runs).items() if set(values) != {ABSENT}},
            flips=[(versus, _counts(versus), rows) for versus, rows in zip(comparison.against, flips, strict=True)],
            pictures={digest: pages.tile(picture, SIDE) for digest, picture in pictures.items()},
        )


def label(side: Side) -> str:
    """What a run is called beside its letter, e.g. "ants@champion 20261121-155311-bc26"."""
    return f"{side.reference if '@' in side.reference else side.name} {Path(side.run_dir).name}"


def facts(sides: Sequence[Side]) -> dict[str, list[str]]:
    """Rows about the runs, beyond their configs: a value for each run, ABSENT where it is not known."""
    stages = dict.fromkeys(stage for side in sides for stage in side.seconds)
    rows = {
        "name": [side.name for side in sides],
        **{f"{split} pictures": [f"{side.pictures[split]:,}" for side in sides] for split in SPLIT_NAMES},
        "epochs": [str(side.epochs) for side in sides],
        **{f"{stage}, seconds": [_seconds(side.seconds.get(stage)) for side in sides] for stage in stages},
        "all stages, seconds": [_seconds(sum(side.seconds.values())) for side in sides],
        "weights": [ABSENT if side.weights is None else f"{side.weights:,}" for side in sides],
        "exported model, MB": [f"{side.model_bytes / 1e6:.2f}" for side in sides],
        "one picture, ms (gate)": [ABSENT if side.latency_ms is None else f"{side.latency_ms:.3g}" for side in sides],
        "temperature": [f"{side.temperature:.3f}" for side in sides],
        "started from": [side.started_from or ABSENT for side in sides],
    }
    for name in ("graft", "python", "tensorflow", "keras", "numpy", "pillow"):
        rows[name] = [getattr(side.code, name) for side in sides]
    rows["code commit"] = [_short(side.code.commit) for side in sides]
    rows["code digest"] = [_short(side.code.digest) for side in sides]
    rows["data digest"] = [_short(side.data_digest) for side in sides]
    rows["folder"] = [side.run_dir for side in sides]
    return rows


def _seconds(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1f}"


def _short(digest: str | None) -> str:
    if not digest:
        return ABSENT
    return digest[:12] + ("-dirty" if digest.endswith("-dirty") else "")


def _counts(versus: Versus) -> dict[str, int]:
    return dict(zip(KINDS, (versus.lost, versus.gained, versus.wrong_either_way), strict=True))


# -------------------------------------------------------------------------------------------------------------- charts


def curves(runs: Sequence[Run], labels: Mapping[str, str]) -> pages.Chart:
    """Validation loss and accuracy by epoch, a line for each run; what runs are called, by letter."""
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    figure = pages.figure(7.5, 6)
    loss, accuracy = figure.subplots(2, 1, sharex=True)
    longest = max(len(run.history) for run in runs)
    said = []
    for place, (run, color) in enumerate(zip(runs, cycle(pages.SERIES), strict=False)):
        epochs = [e.epoch for e in run.history]
        style = {
            "color": color,
            "linestyle": _LINES[place // len(pages.SERIES) % len(_LINES)],
            "marker": "o" if longest <= 40 else "",
            "label": f"{run.letter}  {pages.short(labels[run.letter], 36)}",
        }
        loss.plot(epochs, [e.validation_loss for e in run.history], **style)
        accuracy.plot(epochs, [e.validation_accuracy for e in run.history], **style)
        best = max(run.history, key=lambda e: e.validation_accuracy)
        said.append(
            f"{run.letter}: loss from {run.history[0].validation_loss:.3f} to {run.history[-1].validation_loss:.3f}, "
            f"accuracy at best {best.validation_accuracy:.1%} in epoch {best.epoch} of {len(run.history)}"
        )
    loss.set(ylabel="loss (nats)", title="Validation by epoch")
    accuracy.set(ylabel="accuracy", xlabel="epoch")
    accuracy.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{100 * value:.4g} %"))
    accuracy.xaxis.set_major_locator(MaxNLocator(integer=True))
    figure.legend(*loss.get_legend_handles_labels(), loc="outside lower center", ncols=2 if len(runs) > 1 else 1)
    figure.align_ylabels()
    return pages.Chart(
        figure,
        "Loss and accuracy on each run's own validation pictures, after every epoch. The weights of the best epoch are "
        "not always the last ones.",
        f"Validation curves. {'; '.join(said)}.",
    )


def changes(comparison: Comparison) -> pages.Chart:
    """Each run's change in accuracy against the first, with its interval."""
    first = comparison.runs[0].letter
    figure = pages.figure(7.5, 1.6 + 0.45 * len(comparison.against))
    axes = figure.subplots()
    accuracies = [versus.differences[0] for versus in comparison.against]
    for y, difference in enumerate(accuracies):
        assert difference.interval is not None
        low, high = (100 * end for end in difference.interval)
        color = {"better": pages.BLUE, "worse": pages.ORANGE}.get(difference.verdict, pages.SOFT)
        axes.plot([low, high], [y, y], color=color, linewidth=5, alpha=0.45, solid_capstyle="round")
        axes.plot([100 * difference.change], [y], "o", color=color, markersize=8)
    axes.axvline(0, color=pages.INK, linewidth=1.2, linestyle="--")
    axes.set_yticks(range(len(accuracies)), [f"{versus.letter} − {first}" for versus in comparison.against])
    axes.set_ylim(len(accuracies) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)
    axes.set(xlabel="points of accuracy", title=f"Change in accuracy against {first}")
    return pages.Chart(
        figure,
        f"The difference on {comparison.n:,} common test pictures, and its 95 % interval by the paired bootstrap. "
        "Grey: chance may explain it.",
        " ".join(difference.sentence for difference in accuracies),
    )
