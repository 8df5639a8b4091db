"""The whole job, on digits in a folder: what it ends as, and what a job that was cut short leaves to the next."""

import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits
from typer.testing import CliRunner

from pipeline import config_file, judge, promotion, publish, retrain, testset
from pipeline.__main__ import app
from pipeline.artifacts import RunRecord, read_manifest
from pipeline.errors import ConfigError, TrackingError
from pipeline.locks import locked
from pipeline.mlflow_client import resolve_uri
from pipeline.recording import config_of
from pipeline.refreeze import refreeze
from pipeline.registry import Registry
from pipeline.smoke import SmokeTestError
from tests.networks import QUIET

pytestmark = pytest.mark.slow

CONFIG = """
name: digits
data: {source: folder, path: data, crop: 1.0, image_size: 32, batch_size: 32}
backbone: {name: lenet5, weights: none}
phases: [{epochs: 2, learning_rate: 2e-3, unfreeze: all}]
checkpoint: {every: 3}
retrain: {near_duplicates: ignore}
gate: {min_gain: -1, max_class_drop: 1, max_ece_increase: 1, max_latency_ratio: null}
"""


def write_digits(folder, first, last, label=None):
    digits = load_digits()
    for row in range(first, last):
        path = folder / (label or str(digits.target[row] % 3)) / f"{row:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((digits.images[row] * 15).astype(np.uint8)).save(path)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a champion, whose files say where they are: it is moved away and put back at the same place."""
    home = tmp_path_factory.mktemp("work") / "here"
    kept = home.with_name("kept")
    with pytest.MonkeyPatch.context() as patch:
        home.mkdir()
        patch.chdir(home)
        patch.delenv("MLFLOW_TRACKING_URI", raising=False)
        Path("config.yaml").write_text(CONFIG)
        write_digits(home / "data", 0, 240)
        outcome = retrain.retrain(config(), QUIET)
        assert (outcome.outcome, outcome.champion) == ("promoted", 1)
        assert "there is no champion" in outcome.reason
        assert Path(outcome.gate).is_file()
        shutil.copytree(home, kept)
    return home, kept


@pytest.fixture
def here(trained, monkeypatch, without_charts):
    home, kept = trained
    for path in (home / "runs").glob("mlflow.db*"):
        path.rename(home / path.name)
    for name in ("runs", "export", "data"):
        shutil.rmtree(home / name, ignore_errors=True)
        shutil.copytree(kept / name, home / name, ignore=shutil.ignore_patterns("mlflow.db*"))
    # MLflow keeps its database open in this process, so that is brought back in place.
    for path in home.glob("mlflow.db*"):
        path.rename(home / "runs" / path.name)
    with (
        closing(sqlite3.connect(kept / "runs/mlflow.db")) as old,
        closing(sqlite3.connect(home / "runs/mlflow.db")) as db,
    ):
        old.backup(db)
    monkeypatch.chdir(home)
    return home


def config(*overrides):
    return config_file.load("config.yaml", list(overrides))


def more(home, first=240, last=300):
    write_digits(home / "data", first, last)


def champion():
    return publish.champion(Path("export/digits"))


def aliases():
    found = Registry(resolve_uri(config()), "digits").versions()
    return {alias: version.number for version in found for alias in version.aliases}


def test_unchanged_data_is_nothing_to_do(here):
    outcome = retrain.retrain(config(), QUIET)
    assert (outcome.outcome, outcome.champion) == ("nothing to do", 1)
    assert outcome.reason == "no picture changed since version 1"
    assert len(list(Path("runs/digits").glob("*/run.json"))) == 1


def test_new_pictures_are_learned_from_and_a_better_model_is_promoted(here):
    before = testset.newest(Path("runs/digits/test-sets"))
    more(here)
    outcome = retrain.retrain(config(), QUIET)
    assert (outcome.outcome, outcome.champion) == ("promoted", 2)
    assert outcome.gain_low <= outcome.gain <= outcome.gain_high
    assert publish.versions(Path("export/digits")) == [1, 2]
    assert (champion().registered, champion().previous.registered) == (2, 1)
    assert aliases() == {"champion": 2, "previous": 1}
    # The test set is the one it was, and the new pictures that belong to it wait.
    run_dir = Path(outcome.run_dir)
    rows = [line.split(",") for line in (run_dir / "splits.csv").read_text().splitlines()[1:]]
    assert {row[3] for row in rows if row[2] == "test"} == before.digests
    assert sum(testset.WAITS in row[4] for row in rows) > 0
    assert read_manifest(Path("export/digits/2")).test_set == before.identity
    assert retrain.retrain(config(), QUIET).outcome == "nothing to do"


def test_a_challenger_that_is_not_better_is_refused_once(here):
    more(here)
    strict = config("gate.min_gain=0.5")
    outcome = retrain.retrain(strict, QUIET)
    assert (outcome.outcome, outcome.champion) == ("refused", 1)
    assert publish.versions(Path("export/digits")) == [1]
    assert aliases() == {"champion": 1}
    again = retrain.retrain(strict, QUIET)
    assert again.outcome == "nothing to do"
    assert "was refused" in again.reason
    assert retrain.retrain(config(), QUIET).outcome == "promoted"  # Other rules are another question.


@pytest.mark.parametrize("where", ["before training", "in training", "in judging", "at the registry", "at publishing"])
def test_a_job_that_is_cut_short_is_completed_by_the_next(here, monkeypatch, where):
    more(here)
    module, name, at = {
        "before training": (retrain, "import_tensorflow", 1),
        "in training": ("pipeline.checkpoint.Checkpoints", "write", 3),
        "in judging": (judge, "decide", 1),
        "at the registry": (Registry, "alias", 2),
        "at publishing": (promotion.publish, "make_highest", 2),
    }[where]
    with monkeypatch.context() as patch:
        stop_at(patch, module, name, at)
        with pytest.raises(KeyboardInterrupt):
            retrain.retrain(config(), QUIET)
    runs = {path.parent for path in Path("runs/digits").glob("*/run.json")}
    outcome = retrain.retrain(config(), QUIET)
    assert (outcome.outcome, outcome.champion) == ("promoted", 2)
    after = [RunRecord.read(path) for path in Path("runs/digits").glob("*/run.json")]
    assert [record.status for record in after] == ["finished", "finished"]
    assert where == "before training" or {Path(record.run_dir).name for record in after} == {run.name for run in runs}
    assert publish.versions(Path("export/digits")) == [1, 2]
    assert aliases() == {"champion": 2, "previous": 1}
    assert not Path("runs/digits/retrain.json").exists()
    assert retrain.retrain(config(), QUIET).outcome == "nothing to do"


def stop_at(patch, module, name, call):
    """Makes the call-th call of a function end as Ctrl-C does."""
    import importlib

    if isinstance(module, str):
        package, _, cls = module.rpartition(".")
        module = getattr(importlib.import_module(package), cls)
    real, calls = getattr(module, name), []

    def wrapped(*arguments, **words):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*arguments, **words)

    patch.setattr(module, name, wrapped)


def test_a_challenger_that_somebody_removed_is_made_again(here, monkeypatch):
    more(here)
    with monkeypatch.context() as patch:
        stop_at(patch, Registry, "register", 1)
        with pytest.raises(KeyboardInterrupt):
            retrain.retrain(config(), QUIET)
    shutil.rmtree(max(Path("runs/digits").glob("*/run.json")).parent)
    assert retrain.retrain(config(), QUIET).outcome == "promoted"


def test_a_training_that_the_data_overtook_is_given_up(here, monkeypatch):
    more(here)
    with monkeypatch.context() as patch:
        stop_at(patch, "pipeline.checkpoint.Checkpoints", "write", 3)
        with pytest.raises(KeyboardInterrupt):
            retrain.retrain(config(), QUIET)
    more(here, 300, 320)
    assert retrain.retrain(config(), QUIET).outcome == "promoted"
    runs = [RunRecord.read(path) for path in sorted(Path("runs/digits").glob("*/run.json"))]
    assert [run.status for run in runs] == ["finished", "killed", "finished"]


def test_a_registry_that_is_away_at_the_promotion_leaves_everything_as_it_was(here, monkeypatch):
    more(here)
    with monkeypatch.context() as patch:

        def away(*arguments):
            raise TrackingError("MLflow is away.")

        patch.setattr(Registry, "register", away)
        outcome = retrain.retrain(config(), QUIET)
    assert outcome.outcome == "failed"
    assert "will complete" in outcome.reason
    assert publish.versions(Path("export/digits")) == [1]
    outcome = retrain.retrain(config(), QUIET)
    assert (outcome.outcome, outcome.champion) == ("promoted", 2)


def test_a_second_job_says_who_works(here):
    more(here)
    with locked("digits", resolve_uri(config()), Path("runs").resolve(), QUIET):
        outcome = retrain.retrain(config(), QUIET)
    assert outcome.outcome == "nothing to do"
    assert f"process {os.getpid()}" in outcome.reason


def go_back():
    return promotion.go_back(Path("export/digits").resolve(), "bees are taken for ants")


def test_a_champion_that_changed_meanwhile_is_judged_against(here, monkeypatch):
    more(here)
    assert retrain.retrain(config(), QUIET).champion == 2
    more(here, 300, 360)
    with monkeypatch.context() as patch:
        stop_at(patch, Registry, "register", 1)
        with pytest.raises(KeyboardInterrupt):
            retrain.retrain(config(), QUIET)
    go_back()
    outcome = retrain.retrain(config(), QUIET)
    assert (outcome.outcome, champion().previous.registered) == ("promoted", 1)


def test_a_rollback_holds_until_something_changes(here):
    more(here)
    assert retrain.retrain(config(), QUIET).champion == 2
    go_back()
    outcome = retrain.retrain(config(), QUIET)
    assert (outcome.outcome, outcome.champion) == ("nothing to do", 1)
    assert outcome.reason.endswith("made version 2, which somebody went back from: bees are taken for ants")
    assert aliases() == {"champion": 1, "previous": 2}
    more(here, 300, 320)
    outcome = retrain.retrain(config(), QUIET)
    assert (outcome.outcome, outcome.champion) == ("promoted", 3)


def test_a_rollback_during_the_smoke_test_holds(here, monkeypatch):
    more(here)
    smoke = config("retrain.smoke_test={url: 'http://127.0.0.1:9'}")

    def fails(*arguments):
        go_back()
        raise SmokeTestError("It was busy.", answered=False)

    monkeypatch.setattr(retrain, "smoke_test", fails)
    assert retrain.retrain(smoke, QUIET).outcome == "failed"
    assert champion().registered == 1
    assert retrain.retrain(smoke, QUIET).outcome == "nothing to do"
    assert publish.versions(Path("export/digits")) == [1]


def test_another_test_set_is_another_question(here):
    more(here)
    assert retrain.retrain(config("gate.min_gain=1"), QUIET).outcome == "refused"
    assert retrain.retrain(config("gate.min_gain=1"), QUIET).outcome == "nothing to do"
    before, after = refreeze(config(), QUIET)
    assert after.digests > before.digests
    assert retrain.retrain(config("gate.min_gain=1"), QUIET).outcome == "refused"


def test_a_challenger_cannot_be_published_by_resuming_it(here, monkeypatch):
    more(here)
    with monkeypatch.context() as patch:
        stop_at(patch, "pipeline.checkpoint.Checkpoints", "write", 3)
        with pytest.raises(KeyboardInterrupt):
            retrain.retrain(config(), QUIET)
    newest = max(Path("runs/digits").glob("*/run.json")).parent
    with pytest.raises(ConfigError, match=r"is a challenger.*graft retrain"):
        config_of(newest)


@pytest.mark.parametrize("answered", [True, False])
def test_a_promotion_that_the_endpoint_does_not_serve_is_taken_back(here, monkeypatch, answered):
    more(here)
    smoke = "retrain.smoke_test={url: 'http://127.0.0.1:9'}"
    asked = []

    def fails(rules, token, name, version, known):
        asked.append((version, len(known)))
        raise SmokeTestError("It does not serve.", answered)

    with monkeypatch.context() as patch:
        patch.setattr(retrain, "smoke_test", fails)
        outcome = retrain.retrain(config(smoke), QUIET)
    assert asked == [(2, 8)]
    assert (outcome.outcome, outcome.champion) == ("failed", 1)
    assert publish.versions(Path("export/digits")) == [1]
    assert aliases() == {"champion": 1}
    monkeypatch.setattr(retrain, "smoke_test", lambda *arguments: None)
    again = retrain.retrain(config(smoke), QUIET)
    assert again.outcome == ("nothing to do" if answered else "promoted")


def test_it_starts_from_the_champion(here):
    more(here)
    outcome = retrain.retrain(config("retrain.start=champion", "phases.0.learning_rate=1e-9"), QUIET)
    run = RunRecord.read(Path(outcome.run_dir) / "run.json")
    assert Path(run.started_from).name == Path(champion().previous.run_dir).name
    accuracies = [RunRecord.read(path).metrics for path in sorted(Path("runs/digits").glob("*/run.json"))]
    assert accuracies[0]["test_accuracy"] == accuracies[1]["test_accuracy"]  # It has learned nothing since.


@pytest.mark.parametrize(
    ("when", "trains"),
    [
        ("{changed: false, new_images: 60}", True),
        ("{changed: false, new_images: 61}", False),
        ("{changed: false, older_than: 1h}", False),
    ],
)
def test_what_is_enough_to_train(here, monkeypatch, when, trains):
    more(here)

    def stop(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(retrain, "_train", stop)
    if trains:
        with pytest.raises(KeyboardInterrupt):
            retrain.retrain(config(f"retrain.when={when}"), QUIET)
    else:
        assert retrain.retrain(config(f"retrain.when={when}"), QUIET).outcome == "nothing to do"


def graft(*words):
    done = CliRunner().invoke(app, words)
    return done.exit_code, done.stdout, done.stderr


def test_the_commands(here):
    command = [sys.executable, "-m", "pipeline", "retrain", "config.yaml", "--json", "--exit-code"]
    root = Path(__file__).parent.parent
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)})
    assert done.returncode == 3
    assert json.loads(done.stdout.splitlines()[-1])["outcome"] == "nothing to do"
    assert "nothing to do" in done.stdout.splitlines()[0]
    more(here)
    code, out, _ = graft("retrain", "config.yaml", "--exit-code", "--set", "gate.min_gain=1")
    assert (code, "refused" in out) == (4, True)
    code, out, _ = graft("retrain", "config.yaml", "--exit-code")
    assert (code, "export/digits/3" in out) == (0, True)
    code, out, _ = graft("models", "digits")
    assert code == 0
    versions = [line for line in out.splitlines()[1:] if not line.startswith(" ")]
    assert [line.split()[0] for line in versions] == ["3", "2", "1"]
    assert ["champion" in line for line in versions] == [True, False, False]
    assert "  refused: the gain over version 1 is" in out
    code, out, _ = graft("rollback", "digits", "--reason", "customers complain")
    assert (code, publish.versions(Path("export/digits"))) == (0, [1])
    assert aliases() == {"champion": 1, "previous": 3}
    code, out, _ = graft("models", "digits")
    assert re.search(r"rolled back [-\d]+ [:\d]+: customers complain", out)
    assert graft("rollback", "digits", "--reason", "once more")[0] == 2
    assert publish.versions(Path("export/digits")) == [1]
    code, out, _ = graft("promote", "digits", "3", "--reason", "they were wrong")
    assert (code, publish.versions(Path("export/digits"))) == (0, [1, 3])
    assert aliases() == {"champion": 3, "previous": 1}
    code, out, _ = graft("models", "digits", "--json")
    assert json.loads(out)["versions"][0]["reason"] == "they were wrong"
    code, out, _ = graft("promote", "digits", "2", "--reason", "the gate is too strict")
    assert (code, publish.versions(Path("export/digits"))[-1]) == (0, champion().version)
    assert champion().registered == 2
    code, _, err = graft("rollback", "../digits", "--reason", "x")
    assert (code, "letters, digits" in err) == (2, True)
    code, _, err = graft("promote", "digits", "9", "--reason", "x")
    assert (code, "has no version 9" in err) == (2, True)
    code, out, _ = graft("freeze-test", "config.yaml")
    assert (code, "test set 2" in out) == (0, True)
    code, out, _ = graft("run", "config.yaml")
    assert (code, publish.versions(Path("export/digits"))[-1]) == (0, champion().version)  # Not past the gate.
    code, _, err = graft("run", "--resume", str(champion().run_dir))
    assert (code, "has finished" in err) == (2, True)


def test_a_mistake_in_the_config_is_no_outcome_and_missing_data_is(here):
    with pytest.raises(ConfigError):
        retrain.retrain(config("tracking.uri=file:runs"), QUIET)
    outcome = retrain.retrain(config("data.path=nowhere"), QUIET)
    assert (outcome.outcome, outcome.champion) == ("failed", 1)
    assert "nowhere" in outcome.reason
