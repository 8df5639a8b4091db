"""Learning-rate range tests with made-up losses."""

import numpy as np

from pipeline.lr_range import HIGHEST, LOWEST, STEPS, RangeTest
from tests.networks import phase

RATES = np.geomspace(LOWEST, HIGHEST, STEPS)


def of_curve(losses, unchanged=None, rate=1e-3, diverged=None):
    losses = np.array(losses, float)
    unchanged = np.ones(len(losses)) if unchanged is None else np.array(unchanged, float)
    return RangeTest(1, phase(learning_rate=rate), RATES[: len(losses)], losses, unchanged, diverged, 1.0)


def valley(start=1e-4, end=1e-2, floor=0.5):
    """A loss of 1 that falls to `floor` between two learning rates, straight on the logarithmic scale, then rises."""
    done = np.clip(np.log(RATES / start) / np.log(end / start), 0, 1)
    return 1 - (1 - floor) * done + 0.1 * np.log(np.maximum(RATES / end, 1))
