import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import gates
from pipeline import metrics
from pipeline.config import Gate
from pipeline.gate import Decision, decide
from pipeline.paired import Answers
from tests.deciding import answers, pair

RULES = Gate()


def check(decision, name):
    return next(each for each in decision.checks if each.name == name)


def failed(decision):
    return [each.name for each in decision.checks if not each.passed]


# ------------------------------------------------------------------------------------------------------------ decisions


def test_a_clear_gain_is_promoted_and_its_arithmetic_told():
    decision = decide(*pair(both=800, gained=80, lost=30, neither=90), ["ants", "bees"], RULES, 0)
    assert decision.promote
    assert failed(decision) == []
    assert (decision.only_challenger_right, decision.only_champion_right) == (80, 30)
    assert decision.gain == pytest.approx(0.05)
    low, high = decision.gain_interval
    assert (low, high) == (pytest.approx(0.05 - 0.0203, abs=0.002), pytest.approx(0.05 + 0.0203, abs=0.002))
    assert (decision.champion.accuracy, decision.challenger.accuracy) == (0.83, 0.88)
    assert decision.reason.startswith("the gain over version 3 is +5.0 points, 95 % from ")
    assert check(decision, "accuracy").sentence == (
        f"the gain over version 3 is +5.0 points, 95 % from {100 * low:.1f} to {100 * high:.1f}: "
        "the interval's lower end must be above 0."
    )
    assert "80 pictures gained and 30 lost" in check(decision, "mcnemar").sentence


def test_a_gain_that_chance_explains_is_refused():
    decision = decide(*pair(both=800, gained=50, lost=40, neither=110), ["ants", "bees"], RULES, 0)
    assert not decision.promote
    assert failed(decision) == ["accuracy", "mcnemar"]
    assert "the gain over version 3 is +1.0 points" in decision.reason
    assert "must be above 0" in decision.reason


def test_a_clear_loss_is_refused_by_every_test_of_the_gain():
    decision = decide(*pair(both=800, gained=30, lost=80, neither=90), ["ants", "bees"], RULES, 0)
    assert decision.p_value < 0.001
    assert failed(decision) == ["accuracy", "mcnemar"]


def test_few_pictures_cannot_promote_however_good():
    decision = decide(*pair(gained=4), ["ants", "bees"], RULES, 0)
    assert decision.gain_interval == (1, 1)  # the bootstrap alone would be fooled
    assert failed(decision) == ["mcnemar"]


def test_a_challenger_that_answers_the_same_is_refused_and_passes_as_not_worse():
    same = pair(both=900, neither=100)
    assert failed(decide(*same, ["ants", "bees"], RULES, 0)) == ["accuracy", "mcnemar"]
    decision = decide(*same, ["ants", "bees"], Gate(min_gain=-0.01), 0)
    assert decision.promote
    assert [each.name for each in decision.checks] == ["accuracy", "margin", "classes", "calibration", "latency"]


def test_not_worse_needs_pictures_too():
    decision = decide(*pair(both=20), ["ants", "bees"], Gate(min_gain=-0.01), 0)
    assert failed(decision) == ["margin"]
    assert "probability must be below 0.025" in decision.reason


def test_the_margins_probability_is_one_sided():
    # As many right, and none otherwise: 0.9 to the n-th power, were one picture in ten lost.
    for n, promote in ((30, False), (36, True)):
        decision = decide(*pair(both=n), ["ants", "bees"], Gate(min_gain=-0.1), 0)
        assert check(decision, "margin").passed == promote
        assert f"with probability {0.9**n:.2g}" in check(decision, "margin").finding


def test_a_margin_above_zero_is_asked_of_both():
    models = pair(both=800, gained=80, lost=30, neither=90)
    decision = decide(*models, ["ants", "bees"], Gate(min_gain=0.04), 0)
    assert failed(decision) == ["accuracy", "margin"]
    assert check(decision, "mcnemar").passed
    assert decide(*models, ["ants", "bees"], Gate(min_gain=0.02), 0).promote


def test_a_broken_class_is_named_though_the_total_improves():
    classes = [f"species {k}" for k in range(10)]
    labels = np.arange(1000) % 10
    rank = np.arange(1000) // 10  # within its class
    old = np.where(rank < 80, labels, (labels + 1) % 10)
    new = np.where(rank < np.where(labels == 4, 50, 90), labels, (labels + 1) % 10)
    decision = decide(answers(old, 10, "version 3"), answers(new, 10), labels, classes, RULES, 0)
    assert decision.gain == pytest.approx(0.06)
    assert failed(decision) == ["class species 4"]
    assert decision.reason == ("class species 4 lost 30.0 points (80 to 50 of 100 pictures right)")
    row = decision.per_class[4]
    assert (row.n, row.champion, row.challenger, row.failed) == (100, 0.8, 0.5, True)
    assert row.drop == pytest.approx(0.3)
    assert row.drop_interval[0] < 0.3 < row.drop_interval[1]
    assert not any(other.failed for other in decision.per_class if other is not row)


def test_many_broken_classes_are_counted_and_all_are_checks():
    classes = [f"c{k}" for k in range(8)]
    labels = np.arange(800) % 8
    new = np.where(labels < 6, (labels + 1) % 8, labels)
    decision = decide(answers(labels, 8, "version 3"), answers(new, 8), labels, classes, RULES, 0)
    assert [name for name in failed(decision) if name.startswith("class ")] == [f"class c{k}" for k in range(6)]
    assert "; 3 more classes lost too much; " in decision.reason


def test_a_class_may_lose_what_chance_explains():
    # Three of twenty: 15 points, which happens.
    labels = np.arange(400) % 20
    new = np.where((labels == 7) & (np.arange(400) < 60), 0, labels)
    decision = decide(
        answers(labels, 20, "version 3"), answers(new, 20), labels, list("abcdefghijklmnopqrst"), RULES, 0
    )
    assert check(decision, "classes").passed
    assert "class h lost 15.0 points (20 to 17 of 20 pictures right)" in check(decision, "classes").sentence


def test_a_class_may_lose_what_the_config_allows():
    # 30 of 500 is a loss beyond chance, but not beyond five points and chance.
    labels = np.arange(1000) % 2
    rank = np.arange(1000) // 2
    old = answers(np.where((labels == 1) & (rank < 200), 0, labels), 2, "version 3")
    new = answers(np.where((labels == 0) & (rank < 30), 1, labels), 2)
    assert check(decide(old, new, labels, ["ants", "bees"], RULES, 0), "classes").passed
    strict = decide(old, new, labels, ["ants", "bees"], Gate(max_class_drop=0.0), 0)
    assert "class ants lost 6.0 points (500 to 470 of 500 pictures right)" in check(strict, "class ants").finding


def test_a_challenger_that_does_not_know_a_class_is_refused_for_it():
    labels = np.arange(300) % 3
    champion = answers(np.where(np.arange(300) < 60, (labels + 1) % 3, labels), 3, "version 3")
    probabilities = answers(np.where(labels == 2, 0, labels), 3).probabilities.copy()
    probabilities[:, 2] = 0
    decision = decide(champion, Answers("version 4", probabilities), labels, ["ant", "bee", "wasp"], RULES, 0)
    assert "class wasp lost" in decision.reason


def test_confidence_that_is_no_longer_right_is_refused():
    models = pair(both=800, gained=80, lost=30, neither=90, confidence=0.6)
    decision = decide(*models, ["ants", "bees"], RULES, 0)
    assert failed(decision) == ["calibration"]
    assert "the expected calibration error went from 0.070 to 0.280" in decision.reason
    assert decide(*models, ["ants", "bees"], Gate(max_ece_increase=0.3), 0).promote


def test_calibration_that_chance_explains_is_no_reason():
    decision = decide(*pair(both=52, gained=6, lost=1, neither=1, confidence=0.88), ["ants", "bees"], RULES, 0)
    low, high = decision.ece_increase_interval
    assert low < 0.05 < high
    assert check(decision, "calibration").passed


@pytest.mark.parametrize(
    ("latency_ms", "at_most", "promote"), [(20.0, 2.0, True), (20.1, 2.0, False), (99.0, None, True), (None, 2.0, True)]
)
def test_latency(latency_ms, at_most, promote):
    models = pair(both=800, gained=80, lost=30, neither=90, latency_ms=latency_ms)
    decision = decide(*models, ["ants", "bees"], Gate(max_latency_ratio=at_most), 0)
    assert decision.promote == promote
    assert promote or "2.01 times as long (it may be 2 times as long at most)" in decision.reason


# ------------------------------------------------------------------------------------------------------ no champion yet


def test_without_a_champion_the_commonest_class_is_the_floor():
    labels = np.repeat([0, 1], [70, 30])
    good = decide(None, answers(np.where(np.arange(100) % 10, labels, 1 - labels), 2), labels, ["ant", "bee"], RULES, 0)
    assert good.promote
    assert good.champion is None
    assert good.gain is good.p_value is good.per_class[0].drop is None
    assert good.per_class[0].challenger == pytest.approx(0.9)
    barely = np.where(np.arange(100) < 73, labels, 1 - labels)
    assert not decide(None, answers(barely, 2), labels, ["ant", "bee"], RULES, 0).promote  # 73 of 100 may be chance
    lazy = decide(None, answers(np.zeros(100, int), 2), labels, ["ant", "bee"], RULES, 0)
    assert failed(lazy) == ["floor accuracy"]
    assert "must be above 70.0 %, which always answering ant would reach" in lazy.reason


def test_without_a_champion_floors_of_the_config_count():
    labels = np.arange(100) % 2
    model = answers(np.where(np.arange(100) < 20, 1 - labels, labels), 2)  # 80 % right, 90 % sure
    assert decide(None, model, labels, ["a", "b"], Gate(min_accuracy=0.8), 0).promote
    assert failed(decide(None, model, labels, ["a", "b"], Gate(min_accuracy=0.81), 0)) == ["floor accuracy"]
    decision = decide(None, model, labels, ["a", "b"], Gate(max_ece=0.09), 0)
    assert failed(decision) == ["floor calibration"]
    assert "the expected calibration error is 0.100 (it must be 0.09 at most)" in decision.reason


# ------------------------------------------------------------------------------------------------------------ anything


@st.composite
def judged(draw):
    n, c = draw(st.integers(1, 30)), draw(st.integers(2, 6))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    models = []
    for name in ("version 1", "version 2"):
        probabilities = rng.dirichlet(np.full(c, draw(st.sampled_from([0.05, 1.0, 20.0]))), n)
        if draw(st.booleans()):
            probabilities[:, draw(st.integers(0, c - 1))] = 0  # a class it does not know
        models.append(Answers(name, probabilities.astype(draw(st.sampled_from([np.float32, np.float64]))), 5.0))
    labels = rng.integers(0, draw(st.integers(1, c)), n)  # the last classes may have no picture
    rules = Gate(
        min_gain=draw(st.sampled_from([-1.0, -0.02, 0.0, 0.1, 1.0])),
        max_class_drop=draw(st.sampled_from([0.0, 0.05, 1.0])),
    )
    return models, labels, [f"class {k}" for k in range(c)], rules


@settings(max_examples=60, deadline=None)
@given(judged(), st.booleans())
def test_anything_gets_one_decision_that_can_be_read_back(case, first):
    (old, new), labels, classes, rules = case
    champion = None if first else old
    decision = decide(champion, new, labels, classes, rules, seed=1)
    assert decision == decide(champion, new, labels, classes, rules, seed=1)
    assert Decision.model_validate_json(decision.model_dump_json()) == decision
    assert decision.promote == (failed(decision) == [])
    assert decision.reason
    assert [row.name for row in decision.per_class] == classes
    assert sum(row.n for row in decision.per_class) == len(labels)
    assert decision.challenger.accuracy == pytest.approx(metrics.accuracy(new.probabilities, labels))
    assert decision.challenger.accuracy_interval[0] <= decision.challenger.accuracy
    assert np.isfinite(list(decision.figures.values())).all()
    if not first:
        assert decision.gain_interval[0] <= decision.gain <= decision.gain_interval[1]
        assert all(0 <= row.p_value <= 1 for row in decision.per_class if row.n)
        assert all(row.drop is None for row in decision.per_class if not row.n)


def test_a_thousand_classes():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 1000, 2000)
    old, new = (np.where(rng.random(2000) < share, labels, (labels + 1) % 1000) for share in (0.7, 0.8))
    names = [f"c{k}" for k in range(1000)]
    assert decide(answers(old, 1000, "version 3"), answers(new, 1000), labels, names, RULES, 0).promote


def test_the_figures_are_numbers_by_name():
    figures = decide(*pair(both=800, gained=80, lost=30, neither=90), ["ants", "bees"], RULES, 0).figures
    assert figures["gain"] == pytest.approx(0.05)
    assert figures["promote"] == 1
    assert "gain" not in decide(None, pair(both=9)[1], np.arange(9) % 2, ["ants", "bees"], RULES, 0).figures


def test_no_tensorflow():
    code = "import sys, pipeline.gate, pipeline.gate_page; sys.exit('tensorflow' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# --------------------------------------------------------------------------------------------------------------- rates


def test_rates_of_a_few_simulated_pairs():
    assert gates.false_promotions(pairs=8, seed=1) <= 1 / 8
    assert gates.true_promotions(pairs=8, seed=1) >= 6 / 8
    assert gates.broken_class(pairs=4, seed=1) == 1


@pytest.mark.slow
def test_rates():
    """Of some pairs from each world; the benchmark has more."""
    assert gates.false_promotions(pairs=105) <= 0.05
    assert gates.true_promotions(pairs=63) >= 0.9
    assert gates.broken_class(pairs=40) >= 0.95
