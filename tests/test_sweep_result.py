"""What a sweep found, in figures, words and a page: no training."""

import csv
import re

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import t, ttest_1samp

from pipeline import pages, sweep_page
from pipeline.commands.sweep import _print
from pipeline.sweep_result import Noise
from tests.sweeping import KEYS, base, outcome, seeds, training


def test_the_lowest_loss_wins_then_the_accuracy_then_the_first(tmp_path):
    pruned = training(1, 0.01, 1.0, status="pruned")
    failed = training(2, None, None, status="failed", reason="diverged")
    rows = [training(3, 0.4, 0.7), training(4, 0.3, 0.7), training(5, 0.3, 0.9), training(6, 0.3, 0.9)]
    ranked = outcome(tmp_path, base(), pruned, failed, *rows).ranked
    assert [row.number for row in ranked] == [5, 6, 4, 3, 0, 1, 2]
    assert outcome(tmp_path, base(), pruned, failed, *rows).left_out == "1 pruned, 1 failed"


def test_noise_is_the_standard_deviation_over_the_seeds_of_the_base(tmp_path):
    rows = seeds([0.6, 0.4, 0.52], [0.7, 0.9, 0.8], "seed of base", 0)
    noise = outcome(tmp_path, base(0.5, 0.8), *rows).noise
    assert noise.seeds == 4
    assert noise.loss == pytest.approx(np.std([0.5, 0.6, 0.4, 0.52], ddof=1))
    assert noise.accuracy == pytest.approx(np.std([0.8, 0.7, 0.9, 0.8], ddof=1))
    assert noise.mean_loss == pytest.approx(np.mean([0.5, 0.6, 0.4, 0.52]))
    row = training(1, 0.45, 0.82)
    loss, points = outcome(tmp_path, base(0.5, 0.8), *rows, row).beside_base(row)
    of_difference = np.sqrt(2) * t.ppf(0.975, 3)  # 95 %, with three degrees of freedom
    assert loss == f"-0.0500 ± {of_difference * noise.loss:.4f}"
    assert points == f"+2.0 ± {100 * of_difference * noise.accuracy:.1f}"


def test_one_more_seed_lies_in_the_band_as_often_as_it_says():
    draws = np.random.default_rng(0).normal(size=(400_000, 4))
    known, further = draws[:, :3], draws[:, 3]
    of_one = Noise(loss=1.0, accuracy=0.0, seeds=3, mean_loss=0.0).of_another
    inside = np.abs(further - known.mean(axis=1)) < of_one * known.std(axis=1, ddof=1)
    assert inside.mean() == pytest.approx(0.95, abs=0.002)  # six of its standard deviations
    assert Noise(loss=0.2, accuracy=0.0, seeds=3, mean_loss=9.0).of_another == pytest.approx(0.2 * of_one)


def test_the_band_lies_about_the_mean_over_the_seeds(tmp_path):
    rows = seeds([0.6, 0.7], [0.8, 0.8], "seed of base", 0)
    found = outcome(tmp_path, base(0.2), *rows, training(1, 0.4))
    with pages.drawing():
        chart = sweep_page._history(found)
    (axes,) = chart.figure.axes
    (dashed,) = (line for line in axes.lines if line.get_linestyle() == "--")
    (band,) = axes.patches
    assert dashed.get_ydata()[0] == pytest.approx(0.5)
    assert band.get_y() + band.get_height() / 2 == pytest.approx(0.5)
    assert f"± {found.noise.of_another:.4f}" in chart.caption


@pytest.mark.parametrize(
    ("winner", "verdict"),
    [
        ([0.3, 0.31, 0.29, 0.3], "Better than the base"),
        ([0.3, 0.9, 0.2, 0.5], "Not distinguishable from the base"),
        ([0.8, 0.9, 0.8, 0.9], "Worse than the base"),
    ],
)
def test_the_winner_is_better_where_the_interval_over_further_seeds_says_so(winner, verdict, tmp_path):
    of_base = [0.5, 0.52, 0.49, 0.51]
    found = outcome(
        tmp_path, base(), training(1, 0.1, 1.0),
        *seeds(of_base, [0.8] * 4, "seed of base", 0), *seeds(winner, [0.9] * 4, "seed of winner", 1),
    )  # fmt: skip
    comparison = found.comparison
    interval = ttest_1samp(np.subtract(winner, of_base), 0).confidence_interval(0.95)
    assert comparison.loss - comparison.loss_within == pytest.approx(interval.low)
    assert comparison.loss + comparison.loss_within == pytest.approx(interval.high)
    assert comparison.accuracy == pytest.approx(0.1)
    assert comparison.better is found.better is verdict.startswith("Better")
    assert found.headline == ("Better than the base" if found.better else "Keep the base")
    assert "on these validation pictures" in found.verdict
    assert found.verdict.startswith(verdict)
    assert ("Seed 2 of the winner went astray: its loss is 0.9000, their median 0.4000." in found.verdict) is (
        0.2 in winner
    )


def test_the_seed_that_the_winner_was_chosen_by_does_not_count(tmp_path):
    rows = [*seeds([0.5, 0.6], [0.8, 0.8], "seed of base", 0), *seeds([0.5, 0.6], [0.8, 0.8], "seed of winner", 1)]
    assert outcome(tmp_path, base(), training(1, 0.01, 1.0), *rows).comparison.loss == 0


def test_a_seed_that_failed_is_left_out(tmp_path):
    of_winner = seeds([0.5, 0.6, 0.7], [0.8] * 3, "seed of winner", 1)
    of_winner[1] = of_winner[1].model_copy(update={"status": "failed", "loss": None, "accuracy": None})
    rows = [*seeds([0.5, 0.6, 0.7], [0.8] * 3, "seed of base", 0), *of_winner]
    found = outcome(tmp_path, base(), training(1, 0.1), *rows)
    assert found.comparison.seeds == 2
    assert "Seed 2 of the winner failed." in found.verdict


@pytest.mark.parametrize(
    ("trainings", "planned", "words", "headline"),
    [
        ([], 1, "No training has ended well", "Not known yet"),
        ([base(0.1), training(1, 0.2)], 2, "No trial has a lower loss", "Not known yet"),
        ([base(0.1), training(1, 0.2)], 1, "No trial has a lower loss", "Keep the base"),
        ([base(0.2), training(1, 0.1)], 1, "takes two further seeds of both", "Not known yet"),
    ],
)
def test_what_is_not_known_is_not_claimed(trainings, planned, words, headline, tmp_path):
    found = outcome(tmp_path, *trainings, planned=planned)
    assert found.headline == headline
    assert not found.better
    assert words in found.verdict
    assert found.comparison is None


def test_the_table_has_every_training_and_its_values(tmp_path):
    repeated = training(4, 0.4, same_as="0001-0")
    rows = [base(), training(1, 0.4), training(2, None, None, status="failed", reason="a, b"), repeated]
    further = seeds([0.6], [0.7], "seed of base", 0)
    outcome(tmp_path, *rows, *further).write_table(tmp_path / "trials.csv")
    with (tmp_path / "trials.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["trial"] for row in table] == ["0001-0", "0000-0", "0002-0", "0000-1"]
    assert table[0]["phases.0.learning_rate"] == "0.002"
    assert table[2]["reason"] == "a, b"


# The page

WORDS = st.text(st.characters(exclude_categories=["Cs", "Cc"]), min_size=1, max_size=30)
LOSSES = st.floats(1e-6, 36)


def page(tmp_path, found):
    sweep_page.write(tmp_path / "sweep.html", found, "graft run winner.yaml", {"command": "graft sweep"})
    return (tmp_path / "sweep.html").read_text()


def test_the_page_shows_the_winner_every_trial_and_a_chart_of_each_key(tmp_path):
    rows = [training(number, 0.5 - 0.05 * number, 0.8) for number in range(1, 5)]
    text = page(tmp_path, outcome(tmp_path, base(), *rows, training(5, None, None, status="failed", reason="<NaN>")))
    assert "phases.0.learning_rate=0.005, head.pooling=avg" in text
    assert "&lt;NaN&gt;" in text
    assert text.count("<figure") == 2 + len(KEYS)
    assert text.count("<tr") == 1 + 6 + 1 + 1  # the trials with their heading, the seeds' heading, a fact
    assert not re.search(r'(src|href)="http', text)
    for label in re.findall(r'role="img" aria-label="([^"]*)"', text):
        assert len(label) > 20


@pytest.mark.parametrize(
    ("of_winner", "headline", "command"),
    [
        ([0.3, 0.31], "0.1000 <small>calibrated validation loss</small>", "Train the winner"),
        ([0.3, 0.9], "Keep the base", "To train the lowest loss all the same"),
        ([], "Not known yet", "To train the lowest loss all the same"),
    ],
)
def test_the_verdict_is_the_headline_unless_the_winner_is_better(of_winner, headline, command, tmp_path, capsys):
    further = [
        *seeds([0.5, 0.52], [0.8] * 2, "seed of base", 0),
        *seeds(of_winner, [0.8] * len(of_winner), "seed of winner", 1),
    ]
    found = outcome(tmp_path, base(), training(1, 0.1), *further, planned=1)
    text = page(tmp_path, found)
    assert f'<p class="headline">{headline}</p>' in text
    assert f"<h2>{command}</h2>" in text
    _print(found, ("", ""))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    assert (f"verdict     {headline}. {found.verdict}" in lines) is not found.better
    assert any(line.startswith("winner  ") for line in lines) is found.better
    assert (" run " in printed) is found.better
    assert any(line.startswith("config  ") for line in lines)


def test_a_page_of_a_sweep_that_was_stopped(tmp_path):
    text = page(tmp_path, outcome(tmp_path, base(), planned=50))
    assert "0 of 50 trials have ended" in text
    assert "parallel" not in text


@pytest.mark.slow
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    losses=st.lists(LOSSES, min_size=1, max_size=6), words=WORDS, low=st.floats(1e-12, 1e6), factor=st.floats(1, 1e9),
    ranged=st.booleans(),
)  # fmt: skip
def test_a_page_takes_any_values(losses, words, low, factor, ranged, tmp_path):
    rows = [
        training(
            number,
            loss,
            0.5,
            point={KEYS[0]: repr(low * factor ** (number / 6)), KEYS[1]: words if number % 2 else "$x$"},
        )
        for number, loss in enumerate(losses, start=1)
    ]
    text = page(tmp_path, outcome(tmp_path, base(), *rows, ranged=ranged))
    assert text.count("<figure") == 2 + len(KEYS)
