"""Runs side by side: what differs in their configs and data, and which is better on the test pictures they share.

All runs are compared with the first. Figures are of the test pictures that every run has, with the same label, and that
none has learned from; of those that show the same, one. Differences are of paired samples: both runs are scored on the
same pictures. One is shown when its 95 % interval leaves out zero and, for accuracy, McNemar's test agrees. NumPy,
SciPy and scikit-learn, no TensorFlow.

Shape letters: N common test pictures, C classes that any of the runs knows, R resamples, r some of them.
"""

import csv
import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

import numpy as np

from pipeline import contents, gate, metrics, pages
from pipeline.artifacts import (
    CLUSTERS,
    MODEL,
    OUTPUTS,
    Code,
    Epoch,
    Manifest,
    Outputs,
    Record,
    RunRecord,
    read_manifest,
)
from pipeline.config import BackboneConfig, Data, Phase, RunConfig
from pipeline.config_file import load
from pipeline.errors import ConfigError, DataError
from pipeline.evaluate import Report
from pipeline.flips import Flip, between
from pipeline.gate import Answers, Interval
from pipeline.pictures import read_again
from pipeline.sources.base import SPLIT_NAMES, listed

MOST_RUNS = len(ascii_uppercase)
FEW = 0.9
"""Of a run's test pictures; where fewer are compared, a warning says so."""
EXAMPLES = 5
NOTE = (
    "Each interval holds by itself: of 20 differences that are none, one is shown by chance. The best of many runs is "
    "lucky as well as good."
)
"""To be said where there are more than two runs."""
_SEED = 0

ABSENT = "–"


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
        accuracy_interval: 95 % Wilson score interval.
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


class Setting(Record):
    """A key of the config in which runs differ: its default and each run's value, as in YAML; ABSENT where the config
    has no such key."""

    key: str
    default: str
    values: list[str]


class DataChange(Record):
    """What became of the first run's pictures, by content.

    Attributes:
        added, removed: pictures in a split of one run and in none of the other.
        relabelled: with another label.
        moved: to another split.
        examples: a few names of each, with what changed.
    """

    added: int
    removed: int
    relabelled: int
    moved: int
    examples: dict[str, list[str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.relabelled or self.moved)

    def __str__(self) -> str:
        counts = {"added": self.added, "removed": self.removed, "relabelled": self.relabelled, "moved": self.moved}
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "no picture differs"


class Difference(Record):
    """A figure of one run less the first run's.

    Attributes:
        metric: in METRICS.
        change: a share, or nats.
        interval: its 95 % interval, of this difference alone.
        p_value: McNemar's, mid-p, two-sided; for accuracy alone.
        verdict: better or worse where that is shown.
        sentence: all of it in words.
    """

    metric: str
    change: float
    interval: Interval
    p_value: float | None
    verdict: Literal["better", "worse", "not shown"]
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


# ------------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Picture:
    """A row of a run's `splits.csv`."""

    name: str
    label: str
    split: str


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, read back.

    Attributes:
        letter, reference: as in Side.
        folder: absolute.
        pictures: name, label and split of every picture in a split, by digest.
        learned: digests of what it was trained or tuned on, also by way of the runs that it started from.
        gone: of these runs the one whose list of pictures is no longer there, so that `learned` may lack some; None
            where all have theirs.
        clusters: of its near duplicates, by digest; empty where it did not look for any.
    """

    letter: str
    reference: str
    folder: Path
    record: RunRecord
    config: RunConfig
    report: Report
    history: list[Epoch]
    outputs: Outputs
    manifest: Manifest
    pictures: dict[str, Picture]
    learned: set[str]
    gone: Path | None
    clusters: dict[str, str]


def read(references: Sequence[str], folders: Sequence[Path]) -> list[Run]:
    """Reads runs from their folders.

    Raises:
        ConfigError: there are fewer than two or too many, one is given twice, or one lacks what is compared.
        ExportError: a run's own copy of its model is gone.
    """
    folders = [folder.resolve() for folder in folders]
    if not 2 <= len(folders) <= MOST_RUNS:
        raise ConfigError(
            f"Two to {MOST_RUNS} runs can be compared. Received: {len(folders)}. Give e.g. two folders of runs, or "
            "NAME@champion NAME@challenger."
        )
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            twice = references[folders.index(folder)], references[place]
            raise ConfigError(
                f"{' and '.join(dict.fromkeys(twice))} is one run, {folder}, given twice. Each run is compared with "
                "the first, so give different ones."
            )
    return [_read(*each) for each in zip(ascii_uppercase, references, folders, strict=False)]


def _read(letter: str, reference: str, folder: Path) -> Run:
    try:
        outputs = Outputs.read(folder / OUTPUTS)
        clusters = contents.clusters(folder / CLUSTERS) if (folder / CLUSTERS).is_file() else {}
        history = [Epoch(**epoch) for epoch in json.loads((folder / "history.json").read_text(encoding="utf-8"))]
        return Run(
            letter, reference, folder, RunRecord.read(folder / "run.json"), load(folder / "config.yaml"),
            Report.read(folder / "report.json"), history, outputs, read_manifest(folder / MODEL),
            _pictures(folder), *_learned(folder), clusters,
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError) as error:
        what = Path(error.filename).name if isinstance(error, OSError) and error.filename else "one of its files"
        problem = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ConfigError(
            f"The run {folder} cannot be compared: {what} {problem}. It was made by another version of graft, or files "
            f"were removed. Make it again: graft run {folder / 'config.yaml'}"
        ) from error


def _learned(folder: Path) -> tuple[set[str], Path | None]:
    """Of a run and of those whose weights it started from; and the first of these that is gone, beyond which nothing is
    known. Raises OSError, and ValueError where a run.json is damaged."""
    learned = contents.learned(folder / "splits.csv")
    start = RunRecord.read(folder / "run.json").started_from
    if start is None:
        return learned, None
    before = Path(start)
    if not all((before / name).is_file() for name in ("run.json", "splits.csv")):
        return learned, before
    earlier, gone = _learned(before)
    return learned | earlier, gone


def _pictures(folder: Path) -> dict[str, Picture]:
    """Raises OSError or KeyError."""
    with (folder / "splits.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["sha256"]: Picture(row["path"], row["label"], row["split"])
            for row in csv.DictReader(file)
            if row["split"] in SPLIT_NAMES
        }


# ----------------------------------------------------------------------------------------------------------- comparing


@dataclass(frozen=True, eq=False)
class Common:
    """What the runs say of the test pictures that all of them have.

    Attributes:
        digests: N of them, in the order of the first run.
        classes: C names.
        labels: int [N] in 0..C-1.
        answers: of each run; float [N, C] with zeros in the columns of classes that it does not know.
        repeated: pictures that are left out, as each shows the same as one of the N.
    """

    digests: list[str]
    classes: list[str]
    labels: np.ndarray
    answers: list[Answers]
    repeated: int


def common(runs: Sequence[Run]) -> Common:
    """The runs' answers to the test pictures that all of them have, with one label, and that none has learned from; of
    those that show the same, to the first.

    Raises:
        DataError: there is no such picture.
    """
    rows = [{digest: row for row, digest in enumerate(run.outputs.digests)} for run in runs]
    labels = [
        {digest: run.outputs.classes[run.outputs.labels[row]] for digest, row in of.items()}
        for run, of in zip(runs, rows, strict=True)
    ]
    learned = set().union(*(_known(run, runs) for run in runs))
    digests = [
        digest
        for digest, label in labels[0].items()
        if all(other.get(digest) == label for other in labels) and digest not in learned
    ]
    if not digests:
        tests = "; ".join(f"{run.letter}: {len(run.outputs.digests):,}, e.g. {run.outputs.names[0]}" for run in runs)
        raise DataError(
            "The runs cannot be compared: there is no test picture that all of them have, with the same label, and "
            f"none has learned from. Test pictures of {tests}. Compare runs of the same data."
        )
    again = np.any([contents.repeated(digests, run.clusters) for run in runs], axis=0)
    digests = [digest for digest, is_again in zip(digests, again, strict=True) if not is_again]
    classes = list(dict.fromkeys(name for run in runs for name in run.outputs.classes))
    number = {name: place for place, name in enumerate(classes)}
    answers = []
    for run, of in zip(runs, rows, strict=True):
        table = np.zeros((len(digests), len(classes)))
        logits = run.outputs.logits[[of[digest] for digest in digests]]
        table[:, [number[name] for name in run.outputs.classes]] = metrics.softmax(logits, run.report.temperature)
        answers.append(Answers(run.letter, table))
    truth = np.array([number[labels[0][digest]] for digest in digests])
    return Common(digests, classes, truth, answers, int(again.sum()))


def _known(run: Run, runs: Sequence[Run]) -> set[str]:
    """What a run has learned from, and what any of the runs says shows the same."""
    learned = run.learned
    for each in runs:
        learned = contents.with_alike(learned, each.clusters)
    return learned


def compare(runs: Sequence[Run], shared: Common) -> Comparison:
    """Compares every run with the first. The same arguments give the same figures.

    Args:
        runs: from `read`.
        shared: theirs, from `common`.
    """
    first, *others = runs
    return Comparison(
        runs=[_side(run, answers, shared.labels) for run, answers in zip(runs, shared.answers, strict=True)],
        settings=_settings(runs),
        n=len(shared.digests),
        repeated=shared.repeated,
        against=[
            _versus(first, other, shared.answers[0], answers, shared.labels)
            for other, answers in zip(others, shared.answers[1:], strict=True)
        ],
        per_class=_per_class(shared),
        warnings=_warnings(runs, shared),
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
        accuracy_interval=gate.wilson(right, len(labels)),
    )  # fmt: skip


def _latency(folder: Path) -> float | None:
    """As the gate measured it."""
    try:
        said: float | None = json.loads((folder / "gate.json").read_text())["decision"]["challenger"]["latency_ms"]
    except (OSError, ValueError, KeyError):
        return None
    return said


# -------------------------------------------------------------------------------------------------- configs and data


def _settings(runs: Sequence[Run]) -> list[Setting]:
    flat = [run.config.flat() for run in runs]
    defaults = _defaults(max(len(run.config.phases) for run in runs))
    rows = []
    for key in dict.fromkeys(key for config in flat for key in config):
        values = [_text(config[key]) if key in config else ABSENT for config in flat]
        if len(set(values)) > 1:
            rows.append(Setting(key=key, default=_text(defaults[key]) if key in defaults else ABSENT, values=values))
    return rows


def _defaults(phases: int) -> dict[str, Any]:
    """The defaults of the config's keys that have one, flat."""
    required = {"name", "data.source", "backbone.name"}
    required |= {f"phases.{place}.{key}" for place in range(phases) for key in ("epochs", "learning_rate")}
    bare = RunConfig(
        name="any", data=Data(source="digits"), backbone=BackboneConfig(name="mobilenet"),
        phases=[Phase(epochs=1, learning_rate=1.0)] * phases,
    )  # fmt: skip
    return {key: value for key, value in bare.flat().items() if key not in required}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _data_change(first: Run, other: Run) -> DataChange:
    old, new = first.pictures, other.pictures
    both = [digest for digest in old if digest in new]
    relabelled = [digest for digest in both if old[digest].label != new[digest].label]
    moved = [digest for digest in both if old[digest].split != new[digest].split]
    added, removed = [new[d] for d in new if d not in old], [old[d] for d in old if d not in new]
    examples = {
        "added": [f"{picture.name} ({picture.label}, {picture.split})" for picture in added],
        "removed": [f"{picture.name} ({picture.label}, {picture.split})" for picture in removed],
        "relabelled": [f"{new[d].name}: {old[d].label} → {new[d].label}" for d in relabelled],
        "moved": [f"{new[d].name}: {old[d].split} → {new[d].split}" for d in moved],
    }
    return DataChange(
        added=len(added), removed=len(removed), relabelled=len(relabelled), moved=len(moved),
        examples={what: names[:EXAMPLES] for what, names in examples.items() if names},
    )  # fmt: skip


def _warnings(runs: Sequence[Run], shared: Common) -> list[str]:
    said = []
    known = {run.letter: _known(run, runs) for run in runs}
    for run in runs:
        tests = dict(zip(run.outputs.digests, run.outputs.names, strict=True))
        for other in runs:
            names = [name for digest, name in tests.items() if digest in known[other.letter]]
            if other is not run and names:
                said.append(
                    f"Leak: {other.letter} has learned from, or was tuned on, {len(names):,} of {run.letter}'s "
                    f"{len(tests):,} test pictures or near duplicates of them, itself or by the weights it started "
                    f"from ({listed(names, 3)}). They are left out of the figures."
                )
    said += [
        f"Leaks of {run.letter} cannot be ruled out: its weights go back to those of the run {run.gone}, which is "
        "gone, and with it the list of what that run learned from. Test pictures that are among these count in "
        f"{run.letter}'s favour."
        for run in runs
        if run.gone is not None
    ]
    n = len(shared.digests) + shared.repeated
    if few := [run for run in runs if n < FEW * len(run.outputs.digests)]:
        of = ", ".join(f"{len(run.outputs.digests):,} of {run.letter}" for run in few)
        said.append(
            f"The runs have different test sets: only {n:,} test {'picture is' if n == 1 else 'pictures are'} common "
            f"to all, of {of}. Figures are of the common ones alone."
        )
    for run in runs[1:]:
        theirs, ours = runs[0].outputs.classes, run.outputs.classes
        for who, more in ((run, set(ours) - set(theirs)), (runs[0], set(theirs) - set(ours))):
            if more:
                also = f"{who.letter} also knows {len(more):,} {'class' if len(more) == 1 else 'classes'}"
                than = runs[0].letter if who is run else run.letter
                said.append(
                    f"{also} that {than} does not ({listed(sorted(more), 5)}), so it chooses among more. Common test "
                    "pictures are of classes that all runs know."
                )
    return said


# ---------------------------------------------------------------------------------------------------------- statistics


def _versus(first: Run, other: Run, old: Answers, new: Answers, labels: np.ndarray) -> Versus:
    old_said, new_said = old.probabilities.argmax(axis=1), new.probabilities.argmax(axis=1)
    gained = int(((new_said == labels) & (old_said != labels)).sum())
    lost = int(((old_said == labels) & (new_said != labels)).sum())
    n = len(labels)
    intervals = {
        "accuracy": gate.bootstrap_gain(gained, lost, n, _SEED),
        **bootstrap_changes(old.probabilities, new.probabilities, labels, _SEED),
        "ece": gate.bootstrap_ece_increase(old.probabilities, new.probabilities, labels, _SEED),
    }
    differences = []
    for name, metric in METRICS.items():
        figure = metrics.METRICS[name]
        change = figure(new.probabilities, labels) - figure(old.probabilities, labels)
        p_value = gate.mcnemar(gained, lost) if name == "accuracy" else None
        differences.append(_difference(metric, (first.letter, other.letter), change, intervals[name], p_value))
    return Versus(
        letter=other.letter, differences=differences, gained=gained, lost=lost,
        wrong_either_way=int((old_said != new_said).sum()) - gained - lost, data=_data_change(first, other),
    )  # fmt: skip


def _difference(
    metric: Metric, letters: tuple[str, str], change: float, interval: Interval, p_value: float | None
) -> Difference:
    low, high = interval
    outside = (low > 0 or high < 0) and (p_value is None or p_value < gate.LEVEL)
    is_better = (change > 0) == metric.higher_is_better
    first, other = letters
    what = "" if metric.name == "accuracy" else f" in {metric.title}"
    if change == 0:
        says = f"{other} and {first} are equal{what}"
        ends = low, high
    else:
        amount = metric.change(abs(change), sign=False)
        says = f"{other} is {'better' if is_better else 'worse'}{what} by {amount} {metric.unit}"
        # The ends are of that amount: a fall of the loss by 0.1 is better by 0.1.
        ends = (low, high) if change > 0 else (-high, -low)
    told = "shown" if outside else "not shown"
    if not outside and p_value is not None and (low > 0 or high < 0):
        told = f"not shown, as chance alone does this with probability {p_value:.2g}"
    return Difference(
        metric=metric.name, change=change, interval=interval, p_value=p_value,
        verdict="not shown" if not outside else "better" if is_better else "worse",
        sentence=f"{says}, 95 % from {metric.change(ends[0], sign=False)} to {metric.change(ends[1], sign=False)}: "
        f"{told}.",
    )  # fmt: skip


def bootstrap_changes(old: np.ndarray, new: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, Interval]:
    """95 % percentile intervals of the changes in macro F1 and log loss, by the paired bootstrap (Efron and Tibshirani,
    1993): both runs are scored on the same resampled pictures.

    Args:
        old, new: float [N, C], the two runs' probabilities.
        labels: int [N].
        seed: of the resampling.
    """
    n, c = len(labels), old.shape[1]
    rise = _surprise(new, labels) - _surprise(old, labels)
    guesses = [probabilities.argmax(axis=1) for probabilities in (old, new)]
    f1, loss = [], []
    for times in gate.resampled(n, seed):
        loss.append(times @ rise / n)
        before, after = (_macro_f1(guess, labels, c, times) for guess in guesses)
        f1.append(after - before)
    return {"macro_f1": gate.percentiles(np.concatenate(f1)), "loss": gate.percentiles(np.concatenate(loss))}


def _surprise(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float [N]: what `metrics.log_loss` is the mean of."""
    return np.array(-np.log(np.maximum(probabilities[np.arange(len(labels)), labels], np.finfo(np.float64).eps)))


def _macro_f1(guess: np.ndarray, labels: np.ndarray, c: int, times: np.ndarray) -> np.ndarray:
    """float [r]: `metrics.macro_f1` where each picture counts as often as float [r, N] says."""
    from scipy.sparse import csr_array

    def counted(classes: np.ndarray, which: np.ndarray) -> np.ndarray:
        """float [C, r]: how often each class is among the pictures int [K] that are counted."""
        table = csr_array((np.ones(len(which)), (classes[which], which)), shape=(c, len(classes)))
        return np.asarray(table @ times.T)

    every = np.arange(len(labels))
    there, said = counted(labels, every), counted(guess, every)
    hits = counted(labels, np.flatnonzero(guess == labels))
    f1 = np.where(there > 0, 2 * hits / np.maximum(there + said, 1), 0)
    return np.asarray(f1.sum(axis=0) / (there > 0).sum(axis=0))


def _per_class(shared: Common) -> list[ClassRow]:
    c, labels = len(shared.classes), shared.labels
    n = np.bincount(labels, minlength=c)
    right = [answers.probabilities.argmax(axis=1) == labels for answers in shared.answers]
    counts = [np.bincount(labels[hit], minlength=c) for hit in right]
    intervals = []
    for hit in right[1:]:
        gained = np.bincount(labels[hit & ~right[0]], minlength=c)
        lost = np.bincount(labels[right[0] & ~hit], minlength=c)
        intervals.append(gate.difference_interval(gained, lost, np.maximum(n, 1)))
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


# --------------------------------------------------------------------------------------------------------------- flips


def flips(runs: Sequence[Run], shared: Common, most: int) -> list[list[Flip]]:
    """For each run but the first, up to so many of the pictures whose label flips: a fair share of each kind, and then
    the surest wrong answers first. They are called as in the first run."""
    old = shared.answers[0]
    names = [runs[0].pictures[digest].name for digest in shared.digests]
    return [
        sorted(
            between(old, new, shared.labels, shared.classes, shared.digests, names)[:most],
            key=lambda flip: -(flip.old_score if flip.kind == "gained" else flip.new_score),
        )
        for new in shared.answers[1:]
    ]


def thumbnails(runs: Sequence[Run], digests: set[str]) -> dict[str, np.ndarray]:
    """The pictures uint8 [H, W, 3], as the first run sees them, by digest; those that a run's data still has unchanged.

    Nothing is downloaded, so pictures of TensorFlow Datasets are left out.
    """
    spec = runs[0].manifest.pixels
    found: dict[str, np.ndarray] = {}
    for run in runs:
        wanted = {digest for digest in digests - found.keys() if digest in run.pictures}
        if wanted and run.config.data.source != "tfds":
            with suppress(DataError):
                names = {run.pictures[digest].name for digest in wanted}
                found |= read_again(run.config.data, spec, names, wanted)
    return found
