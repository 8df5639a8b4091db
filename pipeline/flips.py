"""Test pictures to which two models give different labels, for a person to look at. No TensorFlow.

Shape letters: N test pictures.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pipeline.paired import Answers

Kind = Literal["lost", "gained", "wrong either way"]
KINDS: tuple[Kind, ...] = ("lost", "gained", "wrong either way")


@dataclass(frozen=True)
class Flip:
    """A test picture to which the new model gives another label than the old one.

    Attributes:
        digest: SHA-256 in hex of its encoded bytes.
        name: what the picture is called.
        label: its true class.
        old, new: the classes that the models give it.
        old_score, new_score: their probabilities, 0 to 1.
    """

    digest: str
    name: str
    label: str
    old: str
    new: str
    old_score: float
    new_score: float

    @property
    def kind(self) -> Kind:
        """Lost is one that the old model alone has right, gained one that the new model alone has right."""
        if self.old == self.label:
            return "lost"
        return "gained" if self.new == self.label else "wrong either way"


def flipped(old: Answers, new: Answers, labels: np.ndarray) -> np.ndarray:
    """int [F]: the pictures to which the two models give different labels, for a person to look at.

    The lost ones, the gained ones and those that are wrong either way take turns, those first whose wrong label has the
    highest probability; so the first few are a fair choice.
    """
    old_label, new_label = old.probabilities.argmax(axis=1), new.probabilities.argmax(axis=1)
    kind = np.where(old_label == labels, 0, np.where(new_label == labels, 1, 2))
    score = np.where(kind == 1, old.probabilities.max(axis=1), new.probabilities.max(axis=1))
    changed = np.flatnonzero(old_label != new_label)
    by_kind = changed[np.lexsort((-score[changed], kind[changed]))]
    rank = np.arange(len(by_kind)) - np.searchsorted(kind[by_kind], kind[by_kind])
    return np.asarray(by_kind[np.lexsort((kind[by_kind], rank))])


def between(
    old: Answers, new: Answers, labels: np.ndarray, classes: Sequence[str], digests: Sequence[str], names: Sequence[str]
) -> list[Flip]:
    """The flips from an old model to a new one, in the order of `flipped`: the first few are a fair choice.

    Args:
        old, new: the models' answers to the N pictures.
        labels: int [N].
        classes: their names, in the order of the probabilities.
        digests, names: of the N pictures.
    """
    return [
        Flip(
            digest=digests[row],
            name=names[row],
            label=classes[labels[row]],
            old=classes[int(old.probabilities[row].argmax())],
            new=classes[int(new.probabilities[row].argmax())],
            old_score=float(old.probabilities[row].max()),
            new_score=float(new.probabilities[row].max()),
        )
        for row in flipped(old, new, labels).tolist()
    ]
