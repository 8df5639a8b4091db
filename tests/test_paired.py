"""Statistics by hand, by simulation, and against published figures."""

from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import multinomial

from pipeline import metrics, paired
from pipeline.metrics import softmax


def test_the_gains_interval_is_the_paired_bootstrap():
    differences = np.repeat([1, -1, 0], [12, 5, 83])
    rng = np.random.default_rng(0)
    resampled = differences[rng.integers(0, 100, (20_000, 100))].mean(axis=1)
    np.testing.assert_allclose(
        paired.bootstrap_gain(12, 5, 100, seed=0), np.percentile(resampled, [2.5, 97.5]), atol=0.0101
    )


def test_mcnemar_by_hand():
    # Bentur et al., table 1 of Fagerland, Lydersen and Laake (2013): 7 and 1, mid-p 0.0391.
    assert paired.mcnemar(7, 1) == pytest.approx(0.0391, abs=5e-5)
    assert paired.mcnemar(1, 7) == paired.mcnemar(7, 1)
    assert paired.mcnemar(0, 0) == paired.mcnemar(4, 4) == 1


def test_wilson_by_hand():
    assert paired.wilson(81, 263) == (
        pytest.approx(0.2553, abs=1e-4),
        pytest.approx(0.3662, abs=1e-4),
    )  # Newcombe (1998)
    low, high = paired.wilson(20, 20)
    assert 0.8 < low < high == 1


def test_accuracy_interval_is_the_percentile_bootstrap():
    right = np.arange(150) < 137
    rng = np.random.default_rng(0)
    resampled = right[rng.integers(0, 150, (20_000, 150))].mean(axis=1)
    found = paired.accuracy_interval(137, 150)
    np.testing.assert_allclose(found, np.percentile(resampled, [2.5, 97.5]), atol=0.0068)  # a picture
    assert found[0] < 137 / 150 < found[1]


@pytest.mark.parametrize("right", [0, 40])
def test_where_all_is_right_or_wrong_the_accuracys_interval_has_a_width_all_the_same(right):
    low, high = paired.accuracy_interval(right, 40)
    assert (low, high) == paired.wilson(right, 40)
    assert high - low > 0.05


def test_the_p_value_of_a_difference_is_its_exact_probability():
    # Without a pair that subtracts, and n of n that add: margin to the n-th power, were nothing to subtract.
    assert paired.difference_p_value(3, 0, 3, 0.0) == pytest.approx((1 / 2) ** 3)
    assert paired.difference_p_value(0, 5, 20, 0.05) > 0.95
    # By simulation, at the margin's most likely share of those that subtract.
    n, more, less, margin = 60, 14, 5, 0.05
    shares = np.linspace(0, (1 - margin) / 2, 20_001)[1:-1]
    likelihood = more * np.log(shares + margin) + less * np.log(shares)
    likelihood += (n - more - less) * np.log(1 - margin - 2 * shares)
    subtract = shares[likelihood.argmax()]
    drawn = np.random.default_rng(0).multinomial(n, [subtract + margin, subtract, 1 - margin - 2 * subtract], 400_000)
    simulated = np.mean(drawn[:, 0] - drawn[:, 1] >= more - less)
    assert paired.difference_p_value(more, less, n, margin) == pytest.approx(simulated, rel=0.05)


@pytest.mark.parametrize("margin", [-0.02, 0.0, 0.05])
@pytest.mark.parametrize("n", [5, 12, 25])
def test_the_p_value_holds_its_level(n, margin):
    outcomes = np.array([(more, less, n - more - less) for more in range(n + 1) for less in range(n + 1 - more)])
    p_values = np.array([paired.difference_p_value(more, less, n, margin) for more, less, _ in outcomes.tolist()])
    for subtract in np.linspace(max(0.0, -margin) + 1e-3, (1 - margin) / 2 - 1e-3, 15):
        chance = multinomial.pmf(outcomes, n, [subtract + margin, subtract, 1 - margin - 2 * subtract])
        for level in (0.05, 0.005, 0.0005):
            assert chance[p_values < level].sum() <= 1.1 * level


@pytest.mark.parametrize("together", [0.0, 0.5, 0.9])
def test_the_p_value_of_models_that_err_together_holds_its_level(together):
    n, margin = 12, 0.05
    steps = range(n + 1)
    outcomes = [(a, b, c, n - a - b - c) for a in steps for b in steps[: n + 1 - a] for c in steps[: n + 1 - a - b]]
    p_values = np.array([paired.difference_p_value(b, c, n, margin, 2 * a + b + c) for a, b, c, _ in outcomes])
    for second in np.linspace(0.01, 0.94, 15):
        first = second + margin
        both = (1 - together) * first * second + together * second
        chance = multinomial.pmf(outcomes, n, [both, first - both, second - both, 1 - first - second + both])
        for level in (0.05, 0.005, 0.0005):
            assert chance[p_values < level].sum() <= 1.1 * level


def test_models_that_err_together_show_a_broken_class_with_few_pictures():
    assert paired.difference_p_value(8, 0, 10, 0.05) > 0.001  # half of eight that disagree, by a coin
    assert paired.difference_p_value(8, 0, 10, 0.05, right=8) < 0.0005


def test_differences_intervals_cover():
    rng = np.random.default_rng(0)
    more, less, _ = rng.multinomial(40, [0.2, 0.1, 0.7], 20_000).T
    low, high = paired.difference_interval(more, less, np.full(20_000, 40))
    assert 0.94 < np.mean((low <= 0.1) & (high >= 0.1)) < 0.97


def test_holm_by_hand():
    np.testing.assert_allclose(paired.holm(np.array([0.01, 0.04, 0.03, 0.005])), [0.03, 0.06, 0.06, 0.02])
    np.testing.assert_allclose(paired.holm(np.array([0.9, 0.8])), [1, 1])


def test_the_calibration_errors_interval_is_the_paired_bootstrap():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 3, 80)
    old, new = (rng.dirichlet(np.full(3, a), 80) for a in (0.3, 1.0))
    increases = []
    for _ in range(1500):
        drawn = rng.integers(0, 80, 80)
        scores = [metrics.expected_calibration_error(each[drawn], labels[drawn]) for each in (old, new)]
        increases.append(scores[1] - scores[0])
    interval = paired.bootstrap_ece_increase(old, new, labels, seed=0)
    np.testing.assert_allclose(interval, np.percentile(increases, [2.5, 97.5]), atol=0.015)
    assert paired.bootstrap_ece_increase(old, old, labels, seed=0) == (0, 0)


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), c=st.integers(2, 5), seed=st.integers(0, 1000))
def test_bootstrap_changes_score_both_runs_on_the_same_resamples(n, c, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    old, new = (softmax(3 * rng.normal(size=(n, c))) for _ in range(2))
    with mock.patch.object(paired, "RESAMPLES", 20):
        found = paired.bootstrap_changes(old, new, labels, seed)
        draws = np.concatenate(list(paired.resampled(n, seed)))
    for name, figure in (("macro_f1", metrics.macro_f1), ("loss", metrics.log_loss)):
        changes = []
        for times in draws.astype(int):
            rows = np.repeat(np.arange(n), times)
            changes.append(figure(new[rows], labels[rows]) - figure(old[rows], labels[rows]))
        assert found[name] == pytest.approx(paired.percentiles(np.array(changes)), abs=1e-12)


def test_swaps_show_next_to_no_difference_where_there_is_none():
    """Of models that are equally good and differ by chance alone, one in twenty is told apart."""
    rng = np.random.default_rng(0)
    below = {"macro_f1": 0, "loss": 0}
    with mock.patch.object(paired, "RESAMPLES", 200):
        for _ in range(400):
            labels = rng.integers(0, 3, 60)
            towards = 1.5 * np.eye(3)[labels]
            old, new = (softmax(towards + rng.normal(0, 1.0, (60, 3))) for _ in range(2))
            for name, p_value in paired.swap_p_values(old, new, labels, seed=0).items():
                below[name] += p_value < paired.LEVEL
    assert all(5 <= count <= 36 for count in below.values()), below  # 20 expected, four standard deviations around


def test_swaps_by_hand():
    labels = np.zeros(10, int)
    labels[5:] = 1
    old = np.where(np.eye(2)[labels] == 1, 0.9, 0.1)
    new = old.copy()
    old[:6] = old[:6, ::-1]  # Six of ten are wrong in the old run, and right in the new one.
    found = paired.swap_p_values(old, new, labels, seed=0)
    # Two of the 64 ways to swap six pictures change the loss as much.
    assert found["loss"] == pytest.approx(2 / 64, abs=0.012)
    assert found["macro_f1"] == pytest.approx(2 / 64, abs=0.012)
    assert paired.swap_p_values(old, old, labels, seed=0) == {"macro_f1": 1, "loss": 1}
    assert found == paired.swap_p_values(old, new, labels, seed=0)
    assert found == paired.swap_p_values(new, old, labels, seed=0)
