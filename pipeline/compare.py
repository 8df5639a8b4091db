"""Runs side by side: what differs in their configs and data, and which is better on the test pictures they share.

All runs are compared with the first. Differences are of paired samples: both runs are scored on the same pictures. One
is shown when its 95 % interval leaves out zero and a test of chance agrees: McNemar's for accuracy, random swaps for
macro F1 and log loss. Calibration errors are given and not judged: the fewer the pictures and the more the confidences
are spread, the larger the error looks, and resampling adds to that. NumPy, SciPy and scikit-learn, no TensorFlow.

Shape letters: N common test pictures, C classes that any of the runs knows.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline import compare_changes, compare_pictures, metrics, pages, paired
from pipeline.artifacts import MODEL, Code, Record
from pipeline.compare_changes import DataChange, Setting
from pipeline.compare_pictures import Common
from pipeline.compare_runs import Run
from pipeline.paired import Answers, Interval
from pipeline.sources.base import SPLIT_NAMES

NOTE = (
    "Each interval holds by itself: of 20 differences that are none, one is shown by chance. The best of many runs is "
    "lucky as well as good."
)
"""To be said where there are more than two runs."""
_SEED = 0


# ------------------------------------------------------------------------------------------------------------- results


@dataclass(frozen=True)
class Metric:
    """How a row of `metrics.METRICS` is compared.

    Attributes:
        name: in the table.
        title: in sentences.
        unit: points, hundredths of a share; or nats.
        higher_is_better: or lower.
    """

    name: str
    title: str
    unit: Literal["points", "nats"]
    higher_is_better: bool

    def shown(self, value: float) -> str:
        """A run's figure."""
        return pages.percent(value) if self.unit == "points" else f"{value:.3f}"

    def change(self, value: float, sign: bool = True) -> str:
        """A difference, in the unit."""
        decimals, scale = (1, 100) if self.unit == "points" else (3, 1)
        value = round(scale * value, decimals) + 0.0  # no -0.0
        return f"{value:{'+' if sign else ''}.{decimals}f}".replace("-", "−")


METRICS = {
    metric.name: metric
    for metric in (
        Metric("accuracy", "accuracy", "points", True),
        Metric("macro_f1", "macro F1", "points", True),
        Metric("loss", "log loss", "nats", False),
        Metric("ece", "calibration error", "points", False),
    )
}


class Side(Record):
    """One run.

    Attributes:
        letter: A is what the others are compared with.
        name: of its config.
        run_dir: its folder.
        reference: how it was asked for.
        pictures: by split.
        epochs: trained.
        seconds: wall-clock time per stage.
        weights: of the network; None where the run did not say.
        model_bytes: of its exported model.
        latency_ms: the gate's median time for one picture; None where the gate was not asked.
        code: what it was made with.
        data_digest: of pictures, labels and splits.
        started_from: the folder of the run whose weights it started from; None for none.
        temperature: by which its logits are divided.
        figures: on the common test pictures, by name in METRICS.
        accuracy_interval: 95 % percentile bootstrap interval.
    """

    letter: str
    name: str
    run_dir: str
    reference: str
    pictures: dict[str, int]
    epochs: int
    seconds: dict[str, float]
    weights: int | None
    model_bytes: int
    latency_ms: float | None
    code: Code
    data_digest: str
    started_from: str | None
    temperature: float
    figures: dict[str, float]
    accuracy_interval: Interval


class Difference(Record):
    """A figure of one run less the first run's.

    Attributes:
        metric: in METRICS.
        change: a share, or nats.
        interval: its 95 % interval, of this difference alone; None where it is not judged.
        p_value: two-sided: McNemar's mid-p for accuracy, of random swaps for the others; None where it is not judged.
        verdict: better or worse where that is shown.
        sentence: all of it in words.
    """

    metric: str
    change: float
    interval: Interval | None
    p_value: float | None
    verdict: Literal["better", "worse", "not shown", "not judged"]
    sentence: str


class Versus(Record):
    """One run beside the first.

    Attributes:
        letter: the run's.
        differences: in the order of METRICS.
        gained, lost: test pictures that it alone has right, that the first alone has right.
        wrong_either_way: both are wrong, each with a label of its own.
        data: how its pictures differ.
    """

    letter: str
    differences: list[Difference]
    gained: int
    lost: int
    wrong_either_way: int
    data: DataChange


class ClassRow(Record):
    """One class that has a common test picture.

    Attributes:
        name: the class.
        n: its pictures.
        right: share of them that each run has right.
        changes: each other run's share less the first's, with the 95 % interval, of this class alone.
    """

    name: str
    n: int
    right: list[float]
    changes: list[tuple[float, float, float]]


class Comparison(Record):
    """What `graft compare --json` prints.

    Attributes:
        runs: the first is compared with.
        settings: in which the configs differ.
        n: common test pictures.
        repeated: others that are left out, as each shows the same as one of these.
        against: each other run beside the first.
        per_class: those first that changed most.
        warnings: what the figures do not say by themselves.
    """

    runs: list[Side]
    settings: list[Setting]
    n: int
    repeated: int
    against: list[Versus]
    per_class: list[ClassRow]
    warnings: list[str]


# ----------------------------------------------------------------------------------------------------------- comparing


def compare(runs: Sequence[Run], shared: Common) -> Comparison:
    """Compares every run with the first. The same arguments give the same figures.

    Args:
        runs: from `compare_runs.read`.
        shared: theirs, from `compare_pictures.common`.
    """
    first, *others = runs
    return Comparison(
        runs=[_side(run, answers, shared.labels) for run, answers in zip(runs, shared.answers, strict=True)],
        settings=compare_changes.settings(runs),
        n=len(shared.digests),
        repeated=shared.repeated,
        against=[
            _versus(first, other, shared.answers[0], answers, shared.labels)
            for other, answers in zip(others, shared.answers[1:], strict=True)
        ],
        per_class=_per_class(shared),
        warnings=compare_pictures.warnings(runs, shared),
    )


def _side(run: Run, answers: Answers, labels: np.ndarray) -> Side:
    right = int((answers.probabilities.argmax(axis=1) == labels).sum())
    splits = [picture.split for picture in run.pictures.values()]
    return Side(
        letter=run.letter, name=run.record.name, run_dir=str(run.folder), reference=run.reference,
        pictures={name: splits.count(name) for name in SPLIT_NAMES}, epochs=len(run.history),
        seconds=run.record.seconds,
        weights=next((cost.trained + cost.frozen for cost in run.record.phases), None),
        model_bytes=sum(file.stat().st_size for file in (run.folder / MODEL).rglob("*") if file.is_file()),
        latency_ms=_latency(run.folder), code=run.manifest.code,
        data_digest=run.manifest.data_digest,
        started_from=run.record.started_from, temperature=run.report.temperature,
        figures={name: metrics.METRICS[name](answers.probabilities, labels) for name in METRICS},
        accuracy_interval=paired.accuracy_interval(right, len(labels)),
    )  # fmt: skip


def _latency(folder: Path) -> float | None:
    """As the gate measured it."""
    try:
        said: float | None = json.loads((folder / "gate.json").read_text())["decision"]["challenger"]["latency_ms"]
    except (OSError, ValueError, KeyError):
        return None
    return said


def _versus(first: Run, other: Run, old: Answers, new: Answers, labels: np.ndarray) -> Versus:
    old_said, new_said = old.probabilities.argmax(axis=1), new.probabilities.argmax(axis=1)
    gained = int(((new_said == labels) & (old_said != labels)).sum())
    lost = int(((old_said == labels) & (new_said != labels)).sum())
    n = len(labels)
    intervals = {
        "accuracy": paired.bootstrap_gain(gained, lost, n, _SEED),
        **paired.bootstrap_changes(old.probabilities, new.probabilities, labels, _SEED),
    }
    p_values = {
        "accuracy": paired.mcnemar(gained, lost),
        **paired.swap_p_values(old.probabilities, new.probabilities, labels, _SEED),
    }
    differences = []
    for name, metric in METRICS.items():
        figure = metrics.METRICS[name]
        change = figure(new.probabilities, labels) - figure(old.probabilities, labels)
        letters = first.letter, other.letter
        differences.append(_difference(metric, letters, change, intervals.get(name), p_values.get(name)))
    return Versus(
        letter=other.letter, differences=differences, gained=gained, lost=lost,
        wrong_either_way=int((old_said != new_said).sum()) - gained - lost,
        data=compare_changes.data_change(first, other),
    )  # fmt: skip


def _difference(
    metric: Metric, letters: tuple[str, str], change: float, interval: Interval | None, p_value: float | None
) -> Difference:
    """Its interval and p-value are None where it is not judged."""
    first, other = letters
    is_better = (change > 0) == metric.higher_is_better
    what = "" if metric.name == "accuracy" else f" in {metric.title}"
    if change == 0:
        says = f"{other} and {first} are equal{what}"
    else:
        says = f"{other} is {'better' if is_better else 'worse'}{what} by "
        says += f"{metric.change(abs(change), sign=False)} {metric.unit}"
    verdict: Literal["better", "worse", "not shown", "not judged"]
    if interval is None or p_value is None:
        verdict, told = "not judged", "not judged"
    else:
        low, high = interval
        # The ends are of the amount that is said: a fall of the loss by 0.1 is better by 0.1.
        ends = (low, high) if change >= 0 else (-high, -low)
        says += f", 95 % from {metric.change(ends[0], sign=False)} to {metric.change(ends[1], sign=False)}"
        verdict, told = "not shown", "not shown"
        if low > 0 or high < 0:
            if p_value < paired.LEVEL:
                verdict, told = ("better" if is_better else "worse"), "shown"
            else:
                told = f"not shown, as chance alone does this with probability {p_value:.2g}"
    return Difference(
        metric=metric.name, change=change, interval=interval, p_value=p_value, verdict=verdict,
        sentence=f"{says}: {told}.",
    )  # fmt: skip


def _per_class(shared: Common) -> list[ClassRow]:
    c, labels = len(shared.classes), shared.labels
    n = np.bincount(labels, minlength=c)
    right = [answers.probabilities.argmax(axis=1) == labels for answers in shared.answers]
    counts = [np.bincount(labels[hit], minlength=c) for hit in right]
    intervals = []
    for hit in right[1:]:
        gained = np.bincount(labels[hit & ~right[0]], minlength=c)
        lost = np.bincount(labels[right[0] & ~hit], minlength=c)
        intervals.append(paired.difference_interval(gained, lost, np.maximum(n, 1)))
    rows = [
        ClassRow(
            name=shared.classes[k],
            n=int(n[k]),
            right=[float(count[k] / n[k]) for count in counts],
            changes=[
                (float((count[k] - counts[0][k]) / n[k]), float(low[k]), float(high[k]))
                for count, (low, high) in zip(counts[1:], intervals, strict=True)
            ],
        )
        for k in np.flatnonzero(n)
    ]
    return sorted(rows, key=lambda row: -max(abs(change) for change, _, _ in row.changes))
