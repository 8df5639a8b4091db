"""Which run is meant."""

import os
from unittest import mock

import pytest

from pipeline.errors import ConfigError
from pipeline.find_run import find_run
from pipeline.mlflow_client import connect
from pipeline.registry import Registry
from tests.comparing import a_run, pictures
from tests.registering import a_run as in_mlflow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data"), 200)


def no_registry(name):
    raise AssertionError(f"MLflow was asked for {name}")


def test_a_run_is_found_by_its_folder_its_name_or_mlflows_id(tmp_path, data):
    runs = tmp_path / "runs"
    old = a_run(runs / "ants" / "1", data, mlflow_run_id="0a1b")
    # The last one to end, though not to begin.
    begun = "2025-12-31T00:00:00+00:00"
    new = a_run(runs / "ants" / "2", data, started_at=begun, finished_at="2026-02-01T00:00:00+00:00")
    a_run(runs / "ants" / "3", data, status="failed", error="The disk is full.", finished_at="2026-03-01")
    for reference, folder in ((str(old), old), ("1", old), ("0a1b", old), ("ants", new)):
        assert find_run(reference, runs, no_registry) == folder
    with pytest.raises(ConfigError, match=r"has not finished: its status is failed \(The disk is full\)\..*--resume"):
        find_run("3", runs, no_registry)
    with pytest.raises(ConfigError, match=r"has not finished"):
        find_run(str(runs / "ants" / "3"), runs, no_registry)
    with pytest.raises(ConfigError, match=r"bees is not a run\..*Names of runs there: ants\."):
        find_run("bees", runs, no_registry)
    with pytest.raises(ConfigError, match=r"ant is not a run\. Did you mean ants\?"):
        find_run("ant", runs, no_registry)
    (new / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json in .* is damaged"):
        find_run(str(new), runs, no_registry)


@pytest.fixture
def world(tmp_path, data):
    """Three versions: the champion before, the champion, and one that was refused."""
    runs = tmp_path / "runs"
    runs.mkdir()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with mock.patch.dict(os.environ):
        connect(uri)
        registry = Registry(uri, "ants")
        folders = []
        for number in (1, 2, 3):
            run_id = in_mlflow(uri)
            folders.append(a_run(runs / "ants" / f"run-{number}", data, mlflow_run_id=run_id))
            registry.register(run_id, {"graft.run_dir": str(folders[-1])})
        for number, alias in ((1, "previous"), (2, "champion")):
            registry.alias(alias, number)
            registry.tag(number, {"graft.promoted_at": "2026-01-01T00:00:00+00:00"})
        registry.tag(3, {"graft.gate": "refused"})
        yield runs, uri, folders


@pytest.mark.slow
def test_a_version_is_found_in_the_registry(world):
    runs, uri, folders = world
    registry = Registry(uri, "ants")

    def find(reference):
        return find_run(reference, runs, lambda name: Registry(uri, name))

    for reference, number in (("champion", 2), ("previous", 1), ("challenger", 3), ("1", 1), ("3", 3)):
        assert find(f"ants@{reference}") == folders[number - 1]
    words = (
        r"ants@best: ants has no such alias .*Aliases: champion \(version 2\), previous \(version 1\); .*: 3, 2, 1\."
    )
    with pytest.raises(ConfigError, match=words):
        find("ants@best")
    registry.tag(3, {"graft.promoted_at": "2026-01-02T00:00:00+00:00"})
    with pytest.raises(ConfigError, match=r"ants@challenger.*as each of its versions was promoted"):
        find("ants@challenger")
    registry.alias("challenger", 1)
    assert find("ants@challenger") == folders[0], "somebody's own alias comes first"
    # Moved with the rest of output_dir, it is known by MLflow's id.
    folders[1].rename(runs / "ants" / "moved")
    assert find("ants@champion") == runs / "ants" / "moved"
    (runs / "ants" / "moved").rename(runs / "gone")
    with pytest.raises(ConfigError, match=r"run that made version 2 of ants is gone: it was .*run-2"):
        find("ants@champion")
    with pytest.raises(ConfigError, match="bees@champion: no version of bees is registered"):
        find("bees@champion")
    with pytest.raises(ConfigError, match=r"no version of ant is registered in MLflow\. Did you mean ants\?"):
        find("ant@champion")
