"""`graft models`, `promote` and `rollback`, and `compare` for a version: where they find the model and MLflow."""

import os

import pytest
from typer.testing import CliRunner

from pipeline.__main__ import app
from pipeline.config_file import dump, parse
from tests.promoting import World, served


@pytest.fixture
def world(tmp_path, uri, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return World(tmp_path, uri)


def config(folder, uri=None):
    """A config whose `output_dir` holds the world's mlflow.db."""
    tree = {
        "name": "ants", "output_dir": str(folder), "export": {"dir": str(folder / "export")},
        "tracking": {"uri": uri}, "data": {"source": "digits"}, "backbone": {"name": "lenet5", "weights": "none"},
    }  # fmt: skip
    (folder / "ants.yaml").write_text(dump(parse(tree)))
    return str(folder / "ants.yaml")


def graft(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, " ".join(result.output.split())


def test_a_config_says_where_all_of_it_is(world, tmp_path):
    here = ("--config", config(tmp_path))
    for number in (2, 3):
        code, said = graft("promote", "ants", number, "--reason", "by hand", *here)
        assert (code, said.partition(",")[0]) == (0, f"ants: version {number} is champion"), said
    code, said = graft("rollback", "ants", "--reason", "worse", *here)
    assert (code, "ants: version 2 is served from" in said) == (0, True), said
    assert served(world.home) == "run-2"
    assert world.registry.champion().number == 2
    assert world.registry.version(3).tags["graft.rolled_back"].endswith(": worse")
    assert world.registry.history()[-1].endswith(" rolled back to version 2: worse")
    code, said = graft("models", "ants", *here)
    assert code == 0
    assert "rolled back" in said
    assert graft("models", *here) == (0, "ants")


def test_what_is_typed_holds_before_the_config(world, tmp_path):
    here = ("--config", config(tmp_path))
    code, said = graft("models", *here, "--output-dir", tmp_path / "runs")
    assert (code, "runs holds no mlflow.db" in said) == (1, True), said
    code, said = graft("rollback", "ants", "--reason", "worse", *here, "--export", tmp_path / "runs")
    assert (code, "There is nothing to go back to below" in said) == (2, True), said


def test_the_configs_own_address_holds_before_the_environments(world, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert graft("models", "--config", config(tmp_path, world.uri)) == (0, "ants")
    code, said = graft("models", "--config", config(tmp_path))
    assert (code, "MLflow at http://127.0.0.1:9 did not list" in said) == (1, True), said
    code, said = graft("compare", "ants@1", "ants@9", "--config", config(tmp_path, world.uri))
    assert (code, "The folder of the run that made version 1 of ants is gone" in said) == (2, True), said


def test_a_config_that_cannot_be_read_is_told(tmp_path):
    code, said = graft("rollback", "ants", "--reason", "worse", "--config", tmp_path / "none.yaml")
    assert (code, "Cannot read the config" in said) == (2, True), said
