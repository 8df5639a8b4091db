"""Made-up runs; two real runs at the end."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import pytest

from pipeline import compare, compare_page, metrics, paired
from pipeline.artifacts import OUTPUTS, Outputs
from pipeline.config_file import parse
from pipeline.console import Console
from pipeline.metrics import softmax
from tests.comparing import Page, a_run, compared, of, pictures, written

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data"), 200)


# ------------------------------------------------------------------------------------------------------------- figures


def test_a_gain_beyond_chance_is_shown(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(30))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(28, 32))
    found = compared(a, b)
    versus = found.against[0]
    assert found.n == 200
    assert [side.letter for side in found.runs] == ["A", "B"]
    assert found.runs[0].figures["accuracy"] == 0.85
    assert found.runs[0].accuracy_interval == paired.accuracy_interval(170, 200)
    assert (versus.gained, versus.lost, versus.wrong_either_way) == (28, 2, 0)
    accuracy = of(found, "accuracy")
    assert accuracy.change == pytest.approx(0.13)
    assert accuracy.interval == paired.bootstrap_gain(28, 2, 200, 0)
    assert accuracy.p_value == paired.mcnemar(28, 2)
    assert accuracy.verdict == "better"
    low, high = (100 * end for end in accuracy.interval)
    assert accuracy.sentence == f"B is better by 13.0 points, 95 % from {low:.1f} to {high:.1f}: shown."
    # The other way round, the sentence says by how much it is worse.
    back = of(compared(b, a), "accuracy")
    assert back.verdict == "worse"
    assert back.sentence == f"B is worse by 13.0 points, 95 % from {low:.1f} to {high:.1f}: shown."


def test_what_chance_explains_is_not_shown(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(10))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(4, 13))
    accuracy = of(compared(a, b), "accuracy")
    assert accuracy.verdict == "not shown"
    assert re.fullmatch(r"B is better by 0\.5 points, 95 % from −\d\.\d to \d\.\d: not shown\.", accuracy.sentence)


def test_few_pictures_that_differ_show_nothing_although_the_bootstrap_says_so(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(4))
    b = a_run(tmp_path / "ants" / "b", data)
    found = compared(a, b)
    assert of(found, "accuracy").p_value == pytest.approx(0.0625)
    for metric, improved in (("accuracy", 1), ("macro_f1", 1), ("loss", -1)):
        difference = of(found, metric)
        assert min(improved * end for end in difference.interval) > 0
        assert difference.verdict == "not shown"
        assert re.search(r": not shown, as chance alone does this with probability 0\.\d+\.$", difference.sentence)


def test_calibration_errors_are_not_judged(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(40), confidence=9.0)
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(40), confidence=2.0)
    ece = of(compared(a, b), "ece")
    assert (ece.interval, ece.p_value, ece.verdict) == (None, None, "not judged")
    assert re.fullmatch(r"B is (better|worse) in calibration error by \d+\.\d points: not judged\.", ece.sentence)


def test_runs_that_say_the_same_are_equal(tmp_path, data):
    a, b = (a_run(tmp_path / "ants" / name, data, wrong=range(5)) for name in "ab")
    found = compared(a, b)
    assert of(found, "accuracy").sentence == "B and A are equal, 95 % from 0.0 to 0.0: not shown."
    assert of(found, "loss").sentence == "B and A are equal in log loss, 95 % from 0.000 to 0.000: not shown."
    assert found.settings == []
    assert not found.against[0].data
    assert found.warnings == []


def test_less_loss_is_better(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(40))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(4))
    found = compared(a, b)
    loss = of(found, "loss")
    assert loss.change == pytest.approx(found.runs[1].figures["loss"] - found.runs[0].figures["loss"])
    assert loss.change < 0
    assert loss.interval[0] < loss.change < loss.interval[1] < 0
    assert loss.verdict == "better"
    assert re.match(r"B is better in log loss by 0\.\d{3} nats, 95 % from 0\.\d{3} to 0\.\d{3}: shown", loss.sentence)
    assert of(found, "macro_f1").verdict == "better"


def test_calibration_is_of_the_exported_model(tmp_path, data):
    """After temperature scaling, as in each run's own report."""
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(20), confidence=9.0)
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(20), confidence=2.0)
    report = json.loads((a / "report.json").read_text())
    report["temperature"] = 3.0
    (a / "report.json").write_text(json.dumps(report))
    outputs = Outputs.read(a / OUTPUTS)
    found = compared(a, b)
    expected = metrics.score(softmax(outputs.logits, 3.0), outputs.labels)
    assert found.runs[0].figures == pytest.approx({name: expected[name] for name in compare.METRICS})
    assert found.runs[0].temperature == 3.0


def test_classes_say_which_changed_most(tmp_path, data):
    bees = [number for number, label in enumerate(data.labels) if label == "bee"]
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, wrong=bees[:20])
    first, *others = compared(a, b).per_class
    assert (first.name, first.n, first.right) == ("bee", len(bees), [1.0, 1 - 20 / len(bees)])
    ((change, low, high),) = first.changes
    assert change == pytest.approx(-20 / len(bees))
    assert low < change < high < 0
    assert {row.name for row in others} == {"ant", "fly"}
    assert all(row.changes[0][0] == 0 for row in others)


def test_runs_say_what_they_cost(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, phases=[])
    b = a_run(tmp_path / "ants" / "b", data)
    (b / "gate.json").write_text(json.dumps({"decision": {"challenger": {"latency_ms": 1.25}}}))
    first, second = compared(a, b).runs
    assert first.seconds == {"ingest": 1.0, "train": 2.0}
    assert 1_000_000 < first.model_bytes < 1_010_000
    assert (first.latency_ms, second.latency_ms) == (None, 1.25)
    assert (first.epochs, first.pictures["test"]) == (3, 200)
    rows = compare_page.facts([first, second])
    assert rows["one picture, ms (gate)"] == ["–", "1.25"]
    assert rows["all stages, seconds"] == ["3.0", "3.0"]


# ------------------------------------------------------------------------------------------------------------- command


def graft(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "compare", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_prints_what_it_found_and_where_the_page_is(tmp_path, data):
    a_run(tmp_path / "runs" / "ants" / "a", data, wrong=range(30), places=["test"] * 190 + ["train"] * 10)
    a_run(tmp_path / "runs" / "ants" / "b", data, wrong=range(3), config={"seed": 7})
    result = graft("a", "b", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *lines, last = result.stdout.splitlines()
    assert lines[:2] == ["A  ants a", "B  ants b"]
    assert any(re.fullmatch(r"seed +0 +0 +7 *", line) for line in lines)
    assert "on 190 common test pictures" in lines
    assert "pictures that flip from A to B: 0 lost, 27 gained, 0 wrong either way" in lines
    found = compare.Comparison.model_validate_json(last)
    assert found.against[0].differences[0].sentence in lines
    assert lines[-1] == "page  runs/compare/a_b.html"
    assert "Leak: A has learned from, or was tuned on, 10 of B's 200 test pictures" in result.stderr
    assert (tmp_path / "runs" / "compare" / "a_b.html").is_file()
    assert graft("a", "b", "--output", "here/x.html", cwd=tmp_path).returncode == 0
    assert (tmp_path / "here" / "x.html").is_file()

    result = graft("a", "ants@champion", cwd=tmp_path)
    assert result.returncode == 1
    assert "There is no model registry" in result.stderr
    result = graft("a", "nowhere", cwd=tmp_path)
    assert result.returncode == 2
    assert "nowhere is not a run" in result.stderr


@pytest.mark.slow
def test_real_runs_of_digits(tmp_path):
    from pipeline.run import run

    tree = {
        "name": "digits", "output_dir": str(tmp_path / "runs"), "export": {"dir": str(tmp_path / "export")},
        "data": {"source": "digits", "classes": ["3", "8"], "crop": 1.0, "batch_size": 64},
        "backbone": {"name": "lenet5", "weights": "none"},
        "phases": [{"epochs": 1, "learning_rate": 5e-4, "unfreeze": "all"}],
    }  # fmt: skip
    quiet = Console(quiet=True)
    with mock.patch.dict(os.environ):
        records = [run(parse(tree | {"seed": seed}), quiet) for seed in (0, 1)]
    folders = [Path(record.run_dir) for record in records]
    found = compared(*folders)
    assert [row.key for row in found.settings] == ["seed"]
    assert not found.against[0].data
    for side, record in zip(found.runs, records, strict=True):
        assert side.figures["accuracy"] == pytest.approx(record.metrics["test_accuracy"])
        assert side.figures["loss"] == pytest.approx(record.metrics["test_loss"], rel=1e-5)
    versus = found.against[0]
    assert len(Page(written(tmp_path, *folders).read_text()).images) == (
        versus.gained + versus.lost + versus.wrong_either_way
    )
