"""The test pictures that runs are compared on: those that all have, with one label, and that none has learned from; and
of these the ones that flip.

No TensorFlow. Shape letters: N common test pictures, C classes that any of the runs knows.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np

from pipeline import contents, metrics
from pipeline.compare_runs import Run
from pipeline.errors import DataError
from pipeline.flips import Flip, between
from pipeline.paired import Answers
from pipeline.pictures import read_again
from pipeline.sources.base import listed

FEW = 0.9
"""Of a run's test pictures; where fewer are compared, a warning says so."""


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


def warnings(runs: Sequence[Run], shared: Common) -> list[str]:
    """What the figures on these pictures do not say by themselves, a paragraph each; none where all is well.

    Args:
        runs: at least two.
        shared: theirs, from `common`.
    """
    return [*_leaks(runs), *_unknown_leaks(runs), *_other_pictures(runs, shared), *_other_classes(runs)]


def flips(runs: Sequence[Run], shared: Common, most: int) -> list[list[Flip]]:
    """The pictures to which a run gives another label than the first does, a list for each run but the first: of each
    kind a fair share, sorted by the probability of the wrong label, the highest first.

    Args:
        runs: at least two.
        shared: theirs, from `common`.
        most: in each list. They are called as in the first run.
    """
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
    """Pictures as the first run's network sees them, uint8 [H, W, 3] by digest; those that the data of one of the runs
    still has unchanged.

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


def _leaks(runs: Sequence[Run]) -> Iterator[str]:
    known = {run.letter: _known(run, runs) for run in runs}
    for run in runs:
        tests = dict(zip(run.outputs.digests, run.outputs.names, strict=True))
        for other in runs:
            names = [name for digest, name in tests.items() if digest in known[other.letter]]
            if other is not run and names:
                yield (
                    f"Leak: {other.letter} has learned from, or was tuned on, {len(names):,} of {run.letter}'s "
                    f"{len(tests):,} test pictures or near duplicates of them, itself or by the weights it started "
                    f"from ({listed(names, 3)}). They are left out of the figures."
                )


def _unknown_leaks(runs: Sequence[Run]) -> Iterator[str]:
    for run in runs:
        if run.gone is not None:
            yield (
                f"Leaks of {run.letter} cannot be ruled out: its weights go back to those of the run {run.gone}, which "
                "is gone, and with it the list of what that run learned from. Test pictures that are among these count "
                f"in {run.letter}'s favour."
            )


def _other_pictures(runs: Sequence[Run], shared: Common) -> Iterator[str]:
    n = len(shared.digests) + shared.repeated
    if few := [run for run in runs if n < FEW * len(run.outputs.digests)]:
        of = ", ".join(f"{len(run.outputs.digests):,} of {run.letter}" for run in few)
        yield (
            f"The runs have different test sets: only {n:,} test {'picture is' if n == 1 else 'pictures are'} common "
            f"to all, of {of}. Figures are of the common ones alone."
        )


def _other_classes(runs: Sequence[Run]) -> Iterator[str]:
    first, *others = runs
    for run in others:
        for who, than in ((run, first), (first, run)):
            if more := set(who.outputs.classes) - set(than.outputs.classes):
                yield (
                    f"{who.letter} also knows {len(more):,} {'class' if len(more) == 1 else 'classes'} that "
                    f"{than.letter} does not ({listed(sorted(more), 5)}), so it chooses among more. Common test "
                    "pictures are of classes that all runs know."
                )


def _known(run: Run, runs: Sequence[Run]) -> set[str]:
    """What a run has learned from, and what any of the runs says shows the same."""
    learned = run.learned
    for each in runs:
        learned = contents.with_alike(learned, each.clusters)
    return learned
