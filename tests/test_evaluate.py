import csv

import numpy as np
import pytest

from pipeline import metrics
from pipeline.errors import DataError, TrainingError
from pipeline.evaluate import Report, evaluate, write_predictions

CLASSES = ["ants", "bees", "wasps"]


def sample(n, seed, scale=6.0):
    """Logits that are right about two times in three and, scaled, far too confident."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 2, n)  # wasps have no picture
    logits = rng.normal(size=(n, 3)).astype(np.float32)
    logits[np.arange(n), labels] += 1
    return logits * np.float32(scale), labels


@pytest.fixture(scope="module")
def report():
    return evaluate(*sample(200, 1), *sample(300, 2), CLASSES)


def test_metrics_are_those_of_the_scaled_model(report):
    logits, labels = sample(200, 1)
    assert report.n == 200
    assert report.metrics == metrics.score(metrics.softmax(logits, report.temperature), labels)
    assert report.calibration.loss == report.metrics["loss"]
    assert report.calibration.ece == report.metrics["ece"]
    low, high = report.accuracy_interval
    assert low < report.metrics["accuracy"] < high


def test_scaling_mends_overconfidence_and_moves_no_label(report):
    logits, labels = sample(200, 1)
    assert report.temperature > 2
    assert report.calibration.loss < report.calibration_before.loss
    assert report.calibration.ece < report.calibration_before.ece
    assert report.metrics["accuracy"] == metrics.accuracy(metrics.softmax(logits), labels)


def test_tables_follow_the_classes(report):
    assert [row.name for row in report.per_class] == CLASSES
    assert [row.support for row in report.per_class] == [sum(row) for row in report.confusion]
    assert sum(map(sum, report.confusion)) == report.n


def test_report_survives_its_file(report, tmp_path):
    report.write(tmp_path / "report.json")
    assert Report.read(tmp_path / "report.json") == report


def test_no_validation_picture_leaves_the_temperature_at_one():
    report = evaluate(*sample(20, 1), *sample(0, 2), CLASSES)
    assert report.temperature == 1
    assert report.calibration == report.calibration_before


def test_no_test_picture_is_refused():
    with pytest.raises(DataError, match=r"test split is empty.*data\.test_fraction"):
        evaluate(*sample(0, 1), *sample(20, 2), CLASSES)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_divergence_is_named(bad):
    logits, labels = sample(20, 1)
    logits[3, 1] = bad
    with pytest.raises(TrainingError, match=r"diverged.*learning_rate.*clip_norm"):
        evaluate(logits, labels, *sample(20, 2), CLASSES)


def test_predictions_are_one_line_a_picture(tmp_path):
    path = tmp_path / "predictions.csv"
    names = ['a "b", c.jpg', "ü\n.png", "not utf-8 \udc80.jpg"]
    probabilities = np.array([[0.7, 0.2, 0.1], [0.1, 0.8, 0.1], [0.3, 0.3, 0.4]])
    write_predictions(path, names, np.array([0, 0, 2]), probabilities, CLASSES)
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["name"] for row in rows] == ['a "b", c.jpg', "ü\n.png", r"not utf-8 \udc80.jpg"]
    assert [row["label"] for row in rows] == ["ants", "ants", "wasps"]
    assert [row["predicted"] for row in rows] == ["ants", "bees", "wasps"]
    assert [float(row["score"]) for row in rows] == [0.7, 0.8, 0.4]


def test_where_all_is_right_the_interval_has_a_width_all_the_same():
    logits = 5.0 * np.eye(len(CLASSES), dtype=np.float32)[np.arange(40) % len(CLASSES)]
    labels = np.arange(40) % len(CLASSES)
    low, high = evaluate(logits, labels, logits, labels, CLASSES).accuracy_interval
    assert 0.9 < low < high == 1


def test_top_5_accuracy_tells_nothing_of_few_classes(report):
    assert "top5_accuracy" in report.metrics
    assert set(report.metrics) - set(report.telling) == {"top5_accuracy"}


@pytest.mark.parametrize("scale", [0.1, 1.0, 6.0])
def test_a_network_that_is_only_too_sure_or_unsure_is_not_doubted(scale):
    assert evaluate(*sample(200, 1, scale), *sample(300, 2, scale), CLASSES).doubt == ""


def test_a_network_without_validation_pictures_is_doubted_by_its_loss():
    report = evaluate(*sample(200, 1, 1e4), *sample(0, 2), CLASSES)
    assert f"loss on the test split is {report.calibration.loss:.1f} nats, where guessing has 1.10" in report.doubt
    assert "temperature that suits" not in report.doubt


def test_a_temperature_at_an_end_of_its_range_is_doubted():
    logits, labels = sample(300, 2, 1e4)
    report = evaluate(*sample(200, 1, 1.0), logits, labels, CLASSES)
    assert "at an end of its range (0.05 to 20)" in report.doubt
    assert "loss on the test split" not in report.doubt
    unsure = evaluate(*sample(200, 1, 1e-2), *sample(3000, 2, 1e-2), CLASSES)
    assert "at an end of its range" in unsure.doubt
