"""Decisions of the gate about made-up models, and their page."""

import numpy as np

from pipeline import gate_page
from pipeline.config import Gate
from pipeline.flips import between
from pipeline.gate import decide
from pipeline.paired import Answers


def answers(said, classes, name="version 4", confidence=0.9, latency_ms=10.0):
    """A model that gives each picture the class `said`, int [N], with one confidence."""
    said = np.asarray(said)
    probabilities = np.full((len(said), classes), (1 - confidence) / (classes - 1))
    probabilities[np.arange(len(said)), said] = confidence
    return Answers(name, probabilities, latency_ms)


def pair(both=0, gained=0, lost=0, neither=0, **settings):
    """A champion and a challenger on pictures of two classes in turn, by who is right."""
    old = np.repeat([True, False, True, False], [both, gained, lost, neither])
    new = np.repeat([True, True, False, False], [both, gained, lost, neither])
    labels = np.arange(len(old)) % 2
    champion = answers(np.where(old, labels, 1 - labels), 2, "version 3")
    return champion, answers(np.where(new, labels, 1 - labels), 2, **settings), labels


def decided(classes, n=1000, old=0.8, new=0.9, rules=Gate(), first=False, broken=None):  # noqa: B008
    """A decision about made-up models, and the flips."""
    c = len(classes)
    rng = np.random.default_rng(0)
    labels, ease = np.arange(n) % c, rng.random(n)
    champion = answers(np.where(ease < old, labels, (labels + 1) % c), c, "version 3", 0.8)
    right = (ease < new) & ~((labels == broken) & (ease > 0.3))
    wrong = (labels + rng.integers(1, c, n)) % c
    challenger = answers(np.where(right, labels, wrong), c, "version 4", 0.9)
    decision = decide(None if first else champion, challenger, labels, classes, rules, 0)
    names = [f"picture {i}.jpg" for i in range(n)]
    return decision, [] if first else between(champion, challenger, labels, classes, names, names)


def noise(rng, height, width):
    return rng.integers(0, 256, (height, width, 3), dtype=np.uint8)


def written(tmp_path, decision, flips, facts=None, pictures=None):
    """The page; every flip has a picture of noise if `pictures` are not given."""
    path, rng = tmp_path / "gate.html", np.random.default_rng(0)
    if pictures is None:
        pictures = {flip.digest: noise(rng, 40, 30) for flip in flips}
    gate_page.write(path, decision, flips, pictures, facts or {"Run": "runs/ants/1"})
    assert [each.name for each in tmp_path.iterdir()] == ["gate.html"]
    return path.read_text(encoding="utf-8")
