"""Which pictures two models label differently, and in what order they are shown."""

import numpy as np

from pipeline.flips import flipped
from tests.deciding import answers, pair


def test_flipped_pictures_take_turns():
    champion, challenger, labels = pair(both=50, gained=3, lost=2, neither=5)
    order = flipped(champion, challenger, labels)
    assert sorted(order) == [50, 51, 52, 53, 54]
    lost = [i in (53, 54) for i in order]
    assert lost == [True, False, True, False, False]
    # Of the lost, the one that the challenger is surer of comes first.
    challenger.probabilities[54] = np.where(challenger.probabilities[54] > 0.5, 0.95, 0.05)
    assert flipped(champion, challenger, labels)[0] == 54
    third = answers([0], 3), answers([1], 3), np.array([2])
    assert flipped(*third).tolist() == [0]  # wrong either way
    assert flipped(champion, champion, labels).tolist() == []
