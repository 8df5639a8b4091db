"""The learning-rate range test: it changes nothing, sees what training sees, and reads its curve rightly."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from pipeline import config_file, finetune, lr_range
from pipeline.activations import Store
from pipeline.artifacts import read_manifest
from pipeline.commands.lr import lr
from pipeline.config import Augment, Blocks, Cache, Head
from pipeline.console import Console
from pipeline.errors import GraftError
from pipeline.lr_range import HIGHEST, LOWEST, STEPS
from pipeline.metrics import log_loss, softmax
from pipeline.run import run
from tests.networks import QUIET, data, network, phase, pictures, same, split, values
from tests.ranging import of_curve, valley
from tests.stores import LARGE, refuse

ROOT = Path(__file__).parent.parent
CONFIG = ROOT / "configs" / "digits-0-4.yaml"
FLOATS = st.floats(0, 2.0**126, width=32)


def learned(net, phases, pics):
    finetune.finetune(net, phases, pics, None, QUIET, lambda _: None)
    return values(net.model.variables)


# ------------------------------------------------------------------------------------------------- it changes nothing


@pytest.mark.slow
def test_weights_statistics_and_the_seeds_of_dropout_come_back():
    net = network(head=Head(hidden_units=[8], batch_norm=True, dropout=0.5))
    before = values(net.model.variables)
    test = lr_range.range_test(net, phase(unfreeze=Blocks(blocks=1), backbone_mode="training"), 0, pictures(), QUIET)
    assert len(test.losses) > 1
    assert same(before, values(net.model.variables))


@pytest.mark.slow
def test_each_phase_is_tested_on_what_a_training_leaves():
    head = Head(dropout=0.3)
    phases = [phase(), phase(unfreeze="all", learning_rate=1e-3), phase(unfreeze=Blocks(blocks=1))]
    net, plain = network("lenet5", head=head), network("lenet5", head=head)
    tests = list(lr_range.range_tests(net, phases, pictures(), QUIET))
    assert [test.number for test in tests] == [1, 2, 3]
    assert same(values(net.model.variables), learned(plain, phases[:2], pictures()))
    finetune.finetune(net, phases, pictures(), None, QUIET, lambda _: None, only=2)
    assert same(values(net.model.variables), learned(network("lenet5", head=head), phases, pictures()))


@pytest.mark.slow
@pytest.mark.parametrize("cache", ["auto", "always"])
def test_a_store_that_a_test_has_filled_changes_no_training(tmp_path, cache):
    phases = [phase(), phase(unfreeze=Blocks(blocks=2), learning_rate=1e-3)]
    settings = data(augment=Augment(flip="horizontal"), views=3)

    def trained(folder, tests):
        with Store(tmp_path / folder, LARGE, refuse) as store:
            reads = pictures(data_=settings, cache=Cache(use=cache), store=store)
            for _ in range(tests):
                assert len(list(lr_range.range_tests(network("lenet5"), phases, reads, QUIET))) == 2
            return learned(network("lenet5"), phases, reads)

    without = trained("without", 0)
    assert same(without, trained("with", 1))
    assert same(without, trained("without", 1))


@pytest.mark.slow
def test_a_run_after_a_test_is_bit_identical_to_a_run_without_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def config(folder):
        phases = ["phases.0.epochs=2", "phases.0.unfreeze={blocks: 1}", "head.dropout=0.2"]
        return config_file.load(CONFIG, [*phases, f"output_dir={folder}", f"export.dir={folder}/export"])

    def weights(folder):
        record = run(config(folder), QUIET)
        return read_manifest(Path(record.run_dir) / "model").weights_digest

    without = weights("without")
    for folder in ("with", "without"):  # Before the first run, and between two.
        assert len(list(lr_range.tests_of(config(folder), QUIET))) == 1
        assert weights(folder) == without
    assert not [path for path in (tmp_path / "with").iterdir() if path.name.startswith(".")]


# ------------------------------------------------------------------------------------------- it sees what training sees


def test_its_loss_is_the_phases_and_is_unchanged_while_the_rate_is_too_low():
    net, pics = network("lenet5"), pictures()
    test = lr_range.range_test(net, phase(), 0, pics, QUIET)
    assert test.losses[0] == test.unchanged[0]
    assert test.curve[:10] == pytest.approx(test.unchanged.mean(), rel=1e-4)
    epoch = len(pics.train) // pics.data.batch_size
    expected = log_loss(softmax(finetune.predict(net.model, pics.train, 8)), pics.train.labels)
    assert test.unchanged[:epoch].mean() == pytest.approx(expected, rel=1e-4)
    smoothing = lr_range.range_test(net, phase(label_smoothing=0.5), 0, pics, QUIET)
    assert not np.allclose(smoothing.unchanged, test.unchanged)


def test_each_step_is_taken_at_its_learning_rate():
    net, train = network("lenet5"), split()
    features = finetune.predict(finetune.divide(net, phase()).frozen, train, 8)
    weights, offset = (variable.numpy().astype(np.float64) for variable in net.head.trainable_variables)
    plain = phase(optimizer={"name": "sgd", "momentum": 0.0})
    test = lr_range.range_test(net, plain, 0, pictures(train, data_=data(batch_size=24)), QUIET)
    for rate, loss in zip(test.rates[:85], test.losses[:85], strict=True):
        probabilities = softmax(features @ weights + offset)
        assert loss == pytest.approx(log_loss(probabilities, train.labels), rel=1e-3)
        error = (probabilities - np.eye(3)[train.labels]) / 24
        weights -= rate * features.T @ error
        offset -= rate * error.sum(axis=0)
    assert test.losses[84] < 0.95 * test.losses[0]


@pytest.mark.slow
def test_the_optimizer_and_its_settings_are_the_phases():
    def curve(**changes):
        return lr_range.range_test(network("lenet5"), phase(**changes), 0, pictures(), QUIET).losses

    adam = curve()
    for changes in ({"optimizer": "sgd"}, {"clip_norm": 1e-3, "optimizer": "sgd"}, {"weight_decay": 0.1}):
        other = curve(**changes)
        assert not np.array_equal(adam[: len(other)], other[: len(adam)])
    assert np.array_equal(adam, curve(schedule="cosine", learning_rate=0.5))


def test_a_few_pictures_are_gone_through_again():
    test = lr_range.range_test(network("lenet5"), phase(), 0, pictures(train=split(3)), QUIET)
    assert test.passes >= len(test.losses) > 20
    assert test.suggestion is not None


def test_a_network_that_gives_no_numbers_gets_no_suggestion():
    net = network("lenet5")
    net.head.trainable_variables[0].assign(net.head.trainable_variables[0] * np.inf)
    test = lr_range.range_test(net, phase(), 0, pictures(), QUIET)
    assert (test.suggestion, test.minimum, len(test.rates)) == (None, None, 0)
    assert "not a finite number from the start" in test.why_not
    json.dumps(test.figures(), allow_nan=False)


# -------------------------------------------------------------------------------------------------- it reads its curve


def test_the_suggestion_is_the_middle_of_the_fall():
    test = of_curve(valley(1e-4, 1e-2))
    assert 1e-2 <= test.minimum < 3e-2
    assert 1e-3 <= test.suggestion < 2e-3
    assert 0.1 <= of_curve(valley(1e-2, 1)).suggestion < 0.2


def test_hard_and_easy_batches_do_not_move_it():
    hard = np.random.default_rng(0).uniform(0.2, 3, STEPS)
    even, uneven = of_curve(valley()), of_curve(valley() * hard, hard)
    assert uneven.minimum == pytest.approx(even.minimum, rel=0.5)
    assert uneven.suggestion == pytest.approx(even.suggestion, rel=0.5)


@pytest.mark.parametrize("losses", [np.ones(STEPS), valley(floor=0.99), np.linspace(1, 5, STEPS)])
def test_a_flat_or_rising_curve_has_no_suggestion(losses):
    test = of_curve(losses)
    assert (test.suggestion, test.minimum) == (None, None)
    assert "never fell by 2%: 1 at first" in test.why_not
    assert test.verdict == "not told by this test"


@pytest.mark.parametrize(
    ("rate", "verdict"),
    [
        (1e-3, "as good as the suggestion"),
        (1e-5, "times lower than the suggestion"),
        (8e-3, "times higher than the suggestion"),
        (0.05, "beyond the lowest loss: too high"),
        (1.0, "the loss diverges there"),
    ],
)
def test_the_configs_own_rate_is_judged(rate, verdict):
    assert of_curve(valley(), rate=rate, diverged=0.5).verdict.endswith(verdict)


@given(
    st.lists(st.tuples(FLOATS, FLOATS), max_size=STEPS),
    st.floats(1e-8, 100),
)
def test_any_losses_are_read(pairs, rate):
    losses, unchanged = zip(*pairs, strict=True) if pairs else ((), ())
    test = of_curve(losses, unchanged, rate)
    assert (test.suggestion is None) == (test.minimum is None) == (test.why_not is not None)
    if test.suggestion is not None:
        assert LOWEST <= test.suggestion <= test.minimum <= HIGHEST
    assert test.verdict
    json.dumps(test.figures(), allow_nan=False)


def test_the_page_shows_each_phase(tmp_path):
    config = config_file.load(CONFIG)
    no_mistake = [0.0] + [1.0] * (STEPS - 1)
    tests = [of_curve(valley(), no_mistake, diverged=1.0), of_curve(np.ones(STEPS)), of_curve([])]
    lr_range.write_page(tmp_path / "lr.html", config, tests)
    page = (tmp_path / "lr.html").read_text()
    assert f"--set phases.0.learning_rate={tests[0].suggestion:.2g}" in page
    assert page.count("<figure") == 3
    assert "No suggestion: the loss never fell by 2%" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    assert lr_range.settings(tests[1:]) == []


# ------------------------------------------------------------------------------------------------------------- command


def graft(*arguments, cwd):
    program = "import typer; from pipeline.commands.lr import lr; app = typer.Typer(); app.command()(lr); app()"
    return subprocess.run(
        [sys.executable, "-c", program, *arguments], cwd=cwd, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_the_command_prints_a_page_and_leaves_no_run(tmp_path):
    result = graft(str(CONFIG), "--set", "phases.0.epochs=1", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *_, last = result.stdout.splitlines()
    found = json.loads(last)
    (only,) = found["phases"]
    assert 1e-4 < only["suggested"] < 1e-1
    assert f"--set phases.0.learning_rate={only['suggested']:.2g}" in result.stdout
    assert found["page"] == str(tmp_path / "runs" / "digits-0-4" / "lr" / "lr.html")
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert {path for path in left if "activations" not in path} == {"runs/digits-0-4/lr/lr.html"}


@pytest.mark.slow
def test_after_a_rate_at_which_the_loss_diverges_nothing_is_tested(tmp_path):
    config = tmp_path / "two.yaml"
    config.write_text(CONFIG.read_text() + "  - {epochs: 1, learning_rate: 1e-3}\n")
    result = graft(str(config), "--json", "--set", "phases.0.learning_rate=1000", "--set", "seed=1", cwd=tmp_path)
    assert result.returncode == 1
    assert "the loss diverges there" in result.stdout
    assert "phase 2" not in result.stdout
    said = " ".join(result.stderr.split())
    assert "Phase 2 cannot be tested" in said
    assert "phases.0.learning_rate lower" in said
    assert "Traceback" not in result.stderr
    (to_try,) = (line for line in result.stdout.splitlines() if line.startswith("to try"))
    assert to_try.count("phases.0.learning_rate=") == to_try.count("seed=1") == 1
    assert "=1000" not in to_try
    assert len(json.loads(result.stdout.splitlines()[-1])["phases"]) == 1
    assert (tmp_path / "runs" / "digits-0-4" / "lr" / "lr.html").read_text().count("<figure") == 1


@pytest.mark.parametrize(("rate", "diverges"), [(0.4, False), (0.5, True), (1000.0, True)])
def test_whether_the_configs_own_rate_diverges(rate, diverges):
    assert of_curve(valley(), rate=rate, diverged=0.5).diverges == diverges
    assert not of_curve(valley(), rate=rate).diverges


def test_a_test_that_is_interrupted_leaves_the_page_as_it_was(tmp_path, monkeypatch):
    def interrupted(*_):
        yield of_curve(valley())
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(lr_range, "tests_of", interrupted)
    page = tmp_path / "runs" / "digits-0-4" / "lr" / "lr.html"
    page.parent.mkdir(parents=True)
    page.write_text("complete")
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    with pytest.raises(typer.Exit):
        lr(CONFIG)
    assert page.read_text() == "complete"


def test_a_phase_that_diverges_ends_the_tests():
    tests = lr_range.range_tests(
        network("lenet5"), [phase(epochs=5, learning_rate=1e38, optimizer="sgd"), phase()], pictures(), Console(True)
    )
    assert next(tests).verdict == "beyond the lowest loss: too high"
    with pytest.raises(GraftError, match="Training diverged"):
        next(tests)
