"""Screening network designs: what is compared is alike, what is told is so, and nothing stays behind."""

import importlib
import json
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import keras
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import config_file, screen
from pipeline.commands.screen import networks
from pipeline.config import BackboneConfig
from pipeline.console import Console
from pipeline.errors import ConfigError
from tests.networks import QUIET
from tests.screening import row

CONFIG = Path(__file__).parent.parent / "configs" / "digits-0-4.yaml"
command = importlib.import_module("pipeline.commands.screen")


def config(*overrides, path=CONFIG):
    return config_file.load(path, list(overrides))


def screened(folder, *names, kernels=("none",), seeds=2, overrides=(), console=QUIET):
    of = config(f"output_dir={folder}", "phases.0.epochs=3", "data.classes=['0', '1', '2']", *overrides)
    return list(screen.screen(of, names, kernels, seeds, console))


class Watching(Console):
    """Keeps what bars are of."""

    def __init__(self):
        super().__init__(quiet=True)
        self.bars = []

    def bar(self, label, *args, **options):
        self.bars.append(label)
        return super().bar(label, *args, **options)


# ------------------------------------------------------------------------------------------------- what is compared


def test_names_come_from_the_table_each_once():
    assert networks("lenet5, alexnet,lenet5,") == ["lenet5", "alexnet"]
    with pytest.raises(ConfigError, match=r"graft backbones.*Received: resnet51, x\. Did you mean resnet50\?"):
        networks("lenet5,resnet51,x")
    with pytest.raises(ConfigError, match=r"Received: ' ,'\. Give any of: lenet5, "):
        networks(" ,")


def test_each_network_has_its_size_and_its_options():
    of = config("backbone.name=mobilenet", "backbone.options={alpha: 0.25}", "data.image_size=96")
    assert [screen.config_for(of, name).image_size for name in ("mobilenet", "lenet5", "alexnet", "xception")] == [
        96, 32, 227, 96,
    ]  # fmt: skip
    assert screen.config_for(of, "mobilenet").backbone == BackboneConfig(
        name="mobilenet", weights="none", options={"alpha": 0.25}
    )
    assert screen.config_for(of, "mobilenet_v2").backbone.options == {}
    assert screen.config_for(config(), "vgg16").image_size == 224
    channel = config("data.mean_subtraction=channel")
    assert screen.config_for(channel, "vgg16").data.mean_subtraction == "channel"
    assert screen.config_for(channel, "convnext_tiny").data.mean_subtraction == "backbone"


def test_the_head_alone_trains_as_in_the_first_phase_on_plain_pictures():
    of = config(
        "phases.0={epochs: 7, learning_rate: 0.003, unfreeze: {blocks: 2}, layer_decay: 0.5, optimizer: sgd,"
        " schedule: cosine, early_stopping: {patience: 2}, backbone_mode: training, label_smoothing: 0.1}",
        "data.augment={flip: horizontal}",
        "data.views=4",
        "head.dropout=0.3",
    )
    first = of.phases[0]
    found = screen.config_for(of, "lenet5")
    (phase,) = found.phases
    assert (phase.unfreeze, phase.early_stopping, phase.layer_decay) == ("head", None, None)
    kept = ("epochs", "learning_rate", "optimizer", "schedule", "label_smoothing")
    assert all(getattr(phase, key) == getattr(first, key) for key in kept)
    assert (found.data.augment.of_each, found.data.views, found.head) == ({}, None, of.head)


@settings(max_examples=20, deadline=None)
@given(st.integers(-25, 25), st.floats(-100, 100), st.integers(0, 2**31))
def test_features_of_any_size_come_to_mean_0_and_variance_1(power, offset, seed):
    random = np.random.default_rng(seed)
    features = ((random.normal(size=(64, 4)) + offset) * 10.0**power).astype(np.float32)
    features[:, 3] = features[0, 3]
    bare = keras.Sequential([keras.Input((4,))])
    standard = screen._standardised(bare, features)(features).numpy()
    assert standard[:, :3].mean(axis=0) == pytest.approx(0, abs=1e-3)
    assert standard[:, :3].std(axis=0) == pytest.approx(1, rel=1e-2)
    assert np.all(standard[:, 3] == 0)
    far = screen._standardised(bare, features)(features * np.float32(3)).numpy()
    assert np.isfinite(far).all()
    assert np.all(far[:, 3] == 0)


@pytest.mark.slow
def test_the_seeds_decide_and_nothing_stays_behind(tmp_path):
    (first,) = screened(tmp_path / "a", "lenet5")
    assert len(first.accuracies) == 2
    assert first.mean > first.commonest + 0.2
    assert (first.problem, first.image_size) == (None, 32)
    assert first.validation > 10
    assert (first.cost.weights, first.cost.multiply_adds) == (60_856, 415_680)
    assert first.cost.seconds > 0
    assert {path.name for path in (tmp_path / "a").iterdir()} == {"activations"}
    (again,) = screened(tmp_path / "b", "lenet5", seeds=3)
    assert again.accuracies[:2] == first.accuracies
    (other,) = screened(tmp_path / "a", "lenet5", overrides=["seed=1"])
    assert other.accuracies[0] == again.accuracies[1]


@pytest.mark.slow
def test_features_are_brought_to_mean_0_on_the_training_split(tmp_path, monkeypatch):
    of_whom, standardised = [], screen._standardised
    monkeypatch.setattr(
        screen, "_standardised", lambda head, features: of_whom.append(features) or standardised(head, features)
    )
    (found,) = screened(tmp_path, "lenet5", seeds=1)
    (features,) = of_whom
    assert len(features) > 2 * found.validation  # 70 % of the pictures against 15 %


@pytest.mark.slow
def test_pictures_are_read_once_for_each_size(tmp_path):
    console = Watching()
    overrides = ["data.image_size=32", "data.mean_subtraction=channel"]
    names = ("lenet5", "mobilenet_v3_small")  # of which the second normalises by itself
    together = screened(tmp_path, *names, seeds=1, overrides=overrides, console=console)
    assert [label for label in console.bars if "pictures" in label] == ["reading pictures"]
    (alone,) = screened(tmp_path, names[1], seeds=1, overrides=overrides)
    assert [row.accuracies for row in together] == [together[0].accuracies, alone.accuracies]


@pytest.mark.slow
def test_what_is_wrong_with_one_network_does_not_end_the_others(tmp_path):
    overrides = ["data.image_size=32", "backbone.name=mobilenet", "backbone.options={alpha: -1}"]
    rows = screened(tmp_path, "mobilenet", "lenet5", kernels=("none", "imagenet"), seeds=1, overrides=overrides)
    assert [(row.backbone, row.kernels, row.problem is None) for row in rows] == [
        ("mobilenet", "none", False), ("mobilenet", "imagenet", False),
        ("lenet5", "none", True), ("lenet5", "imagenet", False),
    ]  # fmt: skip
    assert "cannot be built with {'alpha': -1}" in rows[0].problem
    assert "no ImageNet weights" in rows[3].problem


@pytest.mark.slow
def test_imagenets_kernels_beat_random_ones_on_photographs(tmp_path, photographs, imagenet_weights):
    path = CONFIG.parent / "hymenoptera.yaml"
    of = config(f"data.path={photographs}", f"output_dir={tmp_path}", path=path)
    random, imagenet = screen.screen(of, ["mobilenet"], ["none", "imagenet"], 1, QUIET)
    assert imagenet.mean > max(random.mean, imagenet.commonest)
    assert imagenet.cost.multiply_adds == random.cost.multiply_adds


# ---------------------------------------------------------------------------------------------------- what is told


def test_the_interval_is_students():
    low, high = row(0.5, 0.6, 0.7).interval
    assert (low, high) == (pytest.approx(0.6 - 0.2484, abs=1e-4), pytest.approx(0.6 + 0.2484, abs=1e-4))
    assert row(0.1, 0.9).interval == (0.0, 1.0)
    assert row(0.5).interval is None


def test_the_best_is_first_and_what_failed_last():
    rows = [row(name="failed"), row(0.4, 0.6, name="middle"), row(0.9, name="best"), row(0.1, name="worst")]
    assert [row.backbone for row in screen.ranked(rows)] == ["best", "middle", "worst", "failed"]
    json.dumps([row.figures() for row in rows], allow_nan=False)


def test_what_the_scores_do_not_tell_apart_is_said():
    best, near, far = row(0.80, 0.82, 0.81, name="best"), row(0.79, 0.81, 0.8, name="near"), row(0.5, 0.51, name="far")
    assert screen.told([far, near, best]) == "Not told apart from best, as the intervals overlap: near."
    assert screen.told([far, best, row(name="failed")]) == "No other interval overlaps that of best."
    assert screen.told([best, row(0.2, 0.21, 0.2, name="low")]) == (
        "No other interval overlaps that of best. Not shown to beat always answering the commonest class (0.300): low."
    )
    assert screen.told([row(0.2, 0.6)]) == "None is shown to beat always answering the commonest class (0.300)."
    assert screen.told([row(0.9), row(0.8)]) == "One seed gives no interval: the order may be chance."
    assert screen.told([row()]) == ""


@pytest.mark.parametrize(
    ("accuracies", "validation", "beats"),
    [
        ((0.5, 0.5, 0.5), 10, False),  # The seeds agree, and ten pictures are few.
        ((0.5, 0.5, 0.5), 100, True),
        ((0.5,), 10, False),
        ((0.5,), 100, True),
        ((0.2, 0.8), 10_000, False),  # The pictures are many, and the seeds do not agree.
    ],
)
def test_the_commonest_class_is_beaten_over_seeds_and_over_pictures(accuracies, validation, beats):
    found = replace(row(*accuracies), validation=validation)
    assert found.beats_commonest is beats
    assert ("None is shown to beat" in screen.told([found])) is not beats


def test_a_small_validation_split_is_warned_of():
    assert screen.few(config("data.validation_fraction=0.15"), [row(), row(0.5)]) == (
        "The validation split has 50 pictures: one of them is 2.0 points. "
        "For scores less coarse: --set data.validation_fraction=0.4"
    )
    assert screen.few(config("data.validation_fraction=0.4"), [row(0.5)]).endswith("2.0 points.")
    assert screen.few(config(), [replace(row(0.5), validation=100)]) == screen.few(config(), [row()]) == ""


def test_a_long_problem_is_told_once_below_the_table(capsys):
    long = replace(row(name="vgg16"), problem="missing " * 90)
    rows = [long, replace(long, kernels="imagenet"), replace(long, backbone="vgg19"), row(name="lenet5")]
    command._print("random kernels", rows, "")
    printed = capsys.readouterr().out
    assert "missing" not in printed
    assert "no score: see below" in printed
    assert "lenet5            no\n" in printed
    assert command._problems(rows) == {long.problem: ["vgg16", "vgg19"]}


def test_the_page_has_a_table_for_each_kind_of_kernels(tmp_path):
    rows = [row(0.5, 0.6), row(0.8, name="alexnet"), replace(row(kernels="imagenet"), problem="<gone>")]
    screen.write_page(tmp_path / "screen.html", config(), rows)
    page = (tmp_path / "screen.html").read_text()
    assert page.index("<th>alexnet</th>") < page.index("<th>lenet5</th>")
    assert "With ImageNet" in page
    assert "One seed gives no interval" in page
    assert "The validation split has 50 pictures" in page
    assert "&lt;gone&gt;" in page
    assert page.count("<figure") == 1
    screen.write_page(tmp_path / "screen.html", config(), rows[:1])
    assert "ImageNet&#39;s kernels" not in (tmp_path / "screen.html").read_text()


# --------------------------------------------------------------------------------------------------------- command


def graft(*arguments, cwd):
    program = "import typer; from pipeline.commands.screen import screen as c; a = typer.Typer(); a.command()(c); a()"
    return subprocess.Popen(
        [sys.executable, "-c", program, str(CONFIG), "--set", "phases.0.epochs=1", *arguments],
        cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_ranks(tmp_path):
    process = graft("--backbones", "lenet5", "--weights", "none", "--seeds", "2", "--json", cwd=tmp_path)
    out, err = process.communicate()
    assert process.returncode == 0, err
    *table, last = out.splitlines()
    (found,) = json.loads(last)["networks"]
    assert f"1   lenet5            {found['mean']:.3f}" in table[1]
    assert (tmp_path / "runs" / "digits-0-4" / "screen" / "screen.html").is_file()


@pytest.mark.slow
def test_what_is_known_is_printed_when_it_is_stopped(tmp_path):
    process = graft("--backbones", "lenet5,alexnet", "--weights", "none", "--seeds", "1", cwd=tmp_path)
    for _ in ("lenet5", "alexnet"):
        while not process.stderr.readline().startswith("reading pictures"):
            assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate()
    assert process.returncode == 130
    assert "1   lenet5" in out
    assert "alexnet" not in out
    assert not list(tmp_path.glob("runs/.digits*"))
