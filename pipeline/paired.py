"""Statistics of shares, and of paired differences: two models scored on the same pictures. NumPy, SciPy, no TensorFlow.

Shape letters: N test pictures (at least one), C classes (at least two), K classes at a time, R resamples, r some of
them, B reliability bins. Shares and calibration errors are 0 to 1, losses nats.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from pipeline import metrics

LEVEL = 0.05
"""Of every test; intervals hold 1 - LEVEL, and are two-sided."""
GAIN_RESAMPLES = 20_000
RESAMPLES = 2_000

Interval = tuple[float, float]


@dataclass(frozen=True, eq=False)
class Answers:
    """What one model says of the test pictures.

    Attributes:
        name: what to call it in sentences, e.g. "version 3".
        probabilities: float [N, C], after temperature scaling, columns in the order of the judged classes. The judged
            classes are all that either model knows: a model has zeros in the column of a class that it does not know,
            and its answer is wrong where it is a class that the pictures no longer have.
        latency_ms: median time for one picture, in milliseconds, above 0; None where it was not measured.
    """

    name: str
    probabilities: np.ndarray
    latency_ms: float | None = None


def accuracy_interval(right: int, n: int) -> Interval:
    """95 % percentile bootstrap interval of the share of pictures that are right.

    Of n pictures drawn with replacement the number that are right is binomial; its quantiles are what resampling
    without end comes to. Where every picture is right, or none, resampling knows of nothing else: there it is Wilson's.
    """
    from scipy.stats import binom

    if right in (0, n):
        return wilson(right, n)
    low, high = binom.ppf([LEVEL / 2, 1 - LEVEL / 2], n, right / n) / n
    return float(low), float(high)


def wilson(right: int, n: int) -> Interval:
    """95 % score interval of a share (Wilson, 1927): it has a width even where every picture is right, or none."""
    from scipy.stats import binomtest

    interval = binomtest(right, n).proportion_ci(1 - LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_gain(gained: int, lost: int, n: int, seed: int) -> Interval:
    """95 % percentile interval of the gain in accuracy by the paired bootstrap (Efron and Tibshirani, 1993).

    A picture adds 1 to the gain, 0 or -1. Resampling N pictures with replacement draws how many add each from a
    multinomial distribution with the shares that were seen; so those are drawn. Where no picture differs the interval
    has no width, which is why the gate never asks it alone.
    """
    shares = np.array([gained, lost, n - gained - lost]) / n
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=GAIN_RESAMPLES)
    return percentiles((drawn[:, 0] - drawn[:, 1]) / n)


def mcnemar(gained: int, lost: int) -> float:
    """Two-sided mid-p value of McNemar's test: gained and lost pictures are as likely.

    Fagerland, Lydersen and Laake, "The McNemar test for binary matched-pairs data: mid-p and asymptotic are better than
    exact conditional", BMC Medical Research Methodology 13:91, 2013: the mid-p kept its level in all of 9595 settings,
    where the exact test is far below it and so misses gains. As many gained as lost give 1.
    """
    from scipy.stats import binom

    fewer, both = min(gained, lost), gained + lost
    return float(2 * binom.cdf(fewer, both, 0.5) - binom.pmf(fewer, both, 0.5))


def difference_p_value(more: int, less: int, n: int, margin: float, right: int | None = None) -> float:
    """One-sided p-value of paired shares that differ by `margin` at most.

    Of n pairs, `more` add 1 to the difference and `less` subtract 1. The p-value is the exact probability of such a
    difference or a larger one, where the true difference is `margin` and the share of those that subtract is its
    maximum likelihood estimate under that hypothesis (Tango, "Equivalence test and confidence interval for the
    difference in proportions for the paired-sample design", Statistics in Medicine 17, 1998). Such a p-value is called
    estimated, or E (Lloyd, "Exact p-values for discrete models obtained by estimation and maximization", Australian &
    New Zealand Journal of Statistics 50, 2008). Unlike the normal approximation, it holds its level, to a tenth of it,
    with a handful of pairs and at the small levels that many classes need.

    Args:
        more, less: at most n together, n at least 1.
        margin: -1 to 1.
        right: how often the two models are right, together. Where it is given, they are taken to disagree no more often
            than independent ones would that are right so often: two networks err on the same pictures rather than on
            different ones. With few pairs that tells a broken class which the disagreements alone do not.
    """
    from scipy.fft import next_fast_len

    a, b = 2 * n, (2 * n - more + less) * margin - more - less
    c = -less * margin * (1 - margin)
    subtract = (np.sqrt(max(b * b - 4 * a * c, 0)) - b) / (2 * a)
    if right is not None:
        second = np.clip((right / n - margin) / 2, max(0.0, -margin), min(1.0, 1 - margin))
        subtract = min(subtract, second * (1 - second - margin))
    subtract = float(np.clip(subtract, max(0.0, -margin), (1 - margin) / 2))
    add = subtract + margin
    # The distribution of a sum of n differences, by the n-th power of the characteristic function of one.
    size = next_fast_len(2 * n + 1)
    turn = np.exp(-2j * np.pi * np.arange(size) / size)
    sums = np.fft.ifft((add * turn + subtract * turn.conj() + (1 - add - subtract)) ** n).real
    return float(np.clip(sums[np.arange(more - less, n + 1)].sum(), 0, 1))  # a negative sum is at size + sum


def difference_interval(more: np.ndarray, less: np.ndarray, n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """95 % interval of the difference of paired shares: float [K] low and high.

    Agresti and Min, "Simple improved confidence intervals for comparing matched proportions", Statistics in Medicine
    24, 2005: Wald's after half a pair is added to each of the four cells.

    Args:
        more, less: int [K], the pairs that add 1 and that subtract 1.
        n: int [K], all pairs, at least 1.
    """
    from scipy.stats import norm

    difference = (more - less) / (n + 2)
    variance = ((more + less + 1) / (n + 2) - difference**2) / (n + 2)
    half = norm.isf(LEVEL / 2) * np.sqrt(variance)
    return np.maximum(difference - half, -1), np.minimum(difference + half, 1)


def holm(p_values: np.ndarray) -> np.ndarray:
    """float [K]: p-values corrected for being K (Holm, 1979): the chance that any is below LEVEL wrongly is LEVEL."""
    k = len(p_values)
    order = np.argsort(p_values)
    corrected = np.empty(k)
    corrected[order] = np.maximum.accumulate(p_values[order] * np.arange(k, 0, -1))
    return np.minimum(corrected, 1)


def bootstrap_ece_increase(old: np.ndarray, new: np.ndarray, labels: np.ndarray, seed: int) -> Interval:
    """95 % percentile interval of the rise of the expected calibration error, by the paired bootstrap: both models
    are scored on the same resampled pictures.

    Args:
        old, new: float [N, C], the two models' probabilities.
        labels: int [N].
    """
    n = len(labels)
    gaps = np.hstack([_gaps(old, labels), _gaps(new, labels)])
    increases = []
    for times in resampled(n, seed):
        of_old, of_new = np.abs(times @ gaps).reshape(len(times), 2, -1).sum(axis=2).T / n
        increases.append(of_new - of_old)
    return percentiles(np.concatenate(increases))


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
    for times in resampled(n, seed):
        loss.append(times @ rise / n)
        before, after = (_macro_f1(guess, labels, c, times) for guess in guesses)
        f1.append(after - before)
    return {"macro_f1": percentiles(np.concatenate(f1)), "loss": percentiles(np.concatenate(loss))}


def swap_p_values(old: np.ndarray, new: np.ndarray, labels: np.ndarray, seed: int) -> dict[str, float]:
    """Two-sided p-values of the changes in macro F1 and log loss, by a randomisation test (Fisher, 1935).

    If it makes no difference which of two runs answers, then what each says of a picture may be swapped: the p-value is
    the share of RESAMPLES random swaps that change a figure at least as much, this one included. Unlike a bootstrap
    interval it is not sure of itself where only a few pictures differ.

    Args:
        old, new: float [N, C], the two runs' probabilities.
        labels: int [N].
        seed: of the swaps.
    """
    c = old.shape[1]
    rise = _surprise(new, labels) - _surprise(old, labels)
    guesses = [probabilities.argmax(axis=1) for probabilities in (old, new)]

    def changes(swapped: np.ndarray) -> np.ndarray:
        """float [2, r]: of macro F1 and log loss, where pictures are swapped as float [r, N] says, 1 or 0."""
        before, after = (
            _macro_f1(np.concatenate(guesses), np.tile(labels, 2), c, np.hstack([1 - other, other]))
            for other in (swapped, 1 - swapped)
        )
        return np.stack([after - before, (1 - 2 * swapped) @ rise / len(labels)])

    seen = np.abs(changes(np.zeros((1, len(labels))))) * (1 - 1e-9)  # Else rounding tells equal ones apart.
    rng, larger = np.random.default_rng(seed), np.zeros(2)
    for size in _at_a_time(2 * len(labels)):
        larger += (np.abs(changes(rng.integers(0, 2, (size, len(labels))).astype(np.float64))) >= seen).sum(axis=1)
    f1, loss = ((1 + larger) / (1 + RESAMPLES)).tolist()
    return {"macro_f1": f1, "loss": loss}


def resampled(n: int, seed: int) -> Iterator[np.ndarray]:
    """RESAMPLES draws of n of n pictures with replacement, some at a time: float [R, n], how often each is drawn."""
    rng = np.random.default_rng(seed)
    for r in _at_a_time(n):
        drawn = rng.integers(0, n, (r, n)) + n * np.arange(r)[:, None]
        yield np.bincount(drawn.ravel(), minlength=r * n).reshape(r, n).astype(np.float64)


def _at_a_time(n: int) -> Iterator[int]:
    """RESAMPLES in parts, for some 100 MB of memory where each is of n pictures."""
    rows = max(1, 4_000_000 // n)
    for start in range(0, RESAMPLES, rows):
        yield min(rows, RESAMPLES - start)


def percentiles(resampled: np.ndarray) -> Interval:
    """95 % percentile interval of what resamples gave."""
    low, high = np.percentile(resampled, [50 * LEVEL, 100 - 50 * LEVEL])
    return float(low), float(high)


def _gaps(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """float [N, B]: in the column of a picture's reliability bin, 1 where it is right less its confidence; else 0.

    The calibration error is the sum over columns of the absolute value of the column's sum, over N.
    """
    confidence = probabilities.max(axis=1)
    upper = [b.upper for b in metrics.reliability_bins(probabilities, labels)]
    column = np.minimum(np.searchsorted(upper, confidence), len(upper) - 1)
    gaps = np.zeros((len(labels), len(upper)))
    gaps[np.arange(len(labels)), column] = (probabilities.argmax(axis=1) == labels) - confidence
    return gaps


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
