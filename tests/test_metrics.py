import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from scipy.special import log_softmax

from pipeline import metrics

# Four pictures, three classes; the last class has no picture, and one picture is wrong.
PROBABILITIES = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.4, 0.5, 0.1], [0.2, 0.6, 0.2]])
LABELS = np.array([0, 1, 0, 1])


@st.composite
def logits_and_labels(draw):
    n, c = draw(st.integers(1, 30)), draw(st.integers(2, 12))
    logits = draw(npst.arrays(np.float32, (n, c), elements=st.floats(-1e4, 1e4, width=32)))
    return logits, draw(npst.arrays(np.int64, n, elements=st.integers(0, c - 1)))


def test_softmax_is_stable_and_temperature_divides_the_logits():
    logits = np.array([[1000.0, 0.0], [2.0, 0.0]], dtype=np.float32)
    np.testing.assert_allclose(
        metrics.softmax(logits, 2.0), [[1, 0], [1 / (1 + np.exp(-1)), 1 / (1 + np.exp(1))]], atol=1e-12
    )


def test_metrics_by_hand():
    score = metrics.score(PROBABILITIES, LABELS)
    assert score["accuracy"] == 0.75
    assert score["top5_accuracy"] == 1.0
    assert score["macro_f1"] == pytest.approx((2 / 3 + 4 / 5) / 2)  # of the two classes that have pictures
    assert score["loss"] == pytest.approx(-np.mean(np.log([0.7, 0.8, 0.4, 0.6])))
    # Confidences 0.5, 0.6, 0.7, 0.8 fall in four bins of one picture each.
    assert score["ece"] == pytest.approx((0.5 + 0.4 + 0.3 + 0.2) / 4)


def test_top5_looks_at_five_classes():
    probabilities = np.array([[0.3, 0.2, 0.15, 0.14, 0.12, 0.09], [0.3, 0.2, 0.15, 0.14, 0.12, 0.09]])
    assert metrics.top5_accuracy(probabilities, np.array([4, 5])) == 0.5


def test_an_impossible_right_class_has_a_finite_loss():
    assert 30 < metrics.log_loss(np.array([[1.0, 0.0]], dtype=np.float32), np.array([1])) < 40


def test_bins_are_closed_above_and_cover_every_picture():
    probabilities = np.array([[1 / 3, 1 / 3, 1 / 3], [1.0, 0.0, 0.0], [0.2, 0.8, 0.0]])
    bins = metrics.reliability_bins(probabilities, np.array([0, 0, 0]))
    assert len(bins) == 15
    assert (bins[0].lower, bins[-1].upper) == (0, 1)
    assert {i: b.count for i, b in enumerate(bins) if b.count} == {4: 1, 11: 1, 14: 1}  # 5/15 and 12/15 close a bin
    assert (bins[11].confidence, bins[11].accuracy) == (0.8, 0.0)


def test_per_class_and_confusion_keep_absent_classes():
    rows = metrics.per_class(PROBABILITIES, LABELS, ["ant", "bee", "wasp"])
    assert [(row.name, row.support) for row in rows] == [("ant", 2), ("bee", 2), ("wasp", 0)]
    assert (rows[0].precision, rows[0].recall) == (1.0, 0.5)
    assert (rows[1].precision, rows[1].recall) == (pytest.approx(2 / 3), 1.0)
    assert (rows[2].precision, rows[2].recall, rows[2].f1) == (0, 0, 0)
    assert metrics.confusion(PROBABILITIES, LABELS).tolist() == [[1, 1, 0], [0, 2, 0], [0, 0, 0]]


@pytest.mark.parametrize("planted", [0.3, 1.0, 3.0])
def test_temperature_is_recovered(planted):
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    labels = np.array([rng.choice(4, p=p) for p in metrics.softmax(logits)])
    assert metrics.fit_temperature(logits * planted, labels) == pytest.approx(planted, rel=0.05)


def test_temperature_without_pictures_is_one():
    assert metrics.fit_temperature(np.zeros((0, 3)), np.zeros(0, int)) == 1.0


def test_temperature_stays_near_one_for_a_handful_of_right_pictures():
    assert 0.3 < metrics.fit_temperature(np.array([[3.0, 0.0], [0.0, 2.0]]), np.array([0, 1])) <= 1


def negative_log_likelihood(logits, labels):
    return -log_softmax(logits.astype(np.float64), axis=1)[np.arange(len(labels)), labels].mean()


@settings(max_examples=50, deadline=None)  # the first example imports SciPy and scikit-learn
@given(logits_and_labels())
def test_everything_is_finite_and_in_range(sample):
    logits, labels = sample
    temperature = metrics.fit_temperature(logits, labels)
    assert 1 / 20 <= temperature <= 20
    probabilities = metrics.softmax(logits, temperature)
    score = metrics.score(probabilities, labels)
    assert set(score) == set(metrics.METRICS)
    assert 0 <= score.pop("loss") < 40
    assert all(0 <= value <= 1 for value in score.values())
    assert score["top5_accuracy"] >= score["accuracy"]
    assert sum(b.count for b in metrics.reliability_bins(probabilities, labels)) == len(labels)
    assert metrics.confusion(probabilities, labels).sum() == len(labels)
    before = negative_log_likelihood(logits, labels)
    assert negative_log_likelihood(logits / temperature, labels) <= before * (1 + 1e-6)
