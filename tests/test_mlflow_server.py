"""Whole runs and the registry against real MLflow servers that are killed and started again."""

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from pipeline.console import Console
from pipeline.errors import TrackingError
from pipeline.journal import JOURNAL, STATE
from pipeline.locks import Held, Pace, locked
from pipeline.mlflow_client import connect
from pipeline.registry import Registry
from tests.locking import Job, assert_one_of
from tests.mlflow_server import BACKENDS, MlflowServer, mlflow_server
from tests.registering import everything

pytestmark = pytest.mark.slow

CONFIG = Path(__file__).parent.parent / "configs" / "digits-0-4.yaml"
QUIET = Console(quiet=True)


@pytest.fixture(scope="module", params=BACKENDS)
def running(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MlflowServer]:
    with mlflow_server(tmp_path_factory.mktemp(request.param), request.param) as server:
        yield server


@pytest.fixture
def server(running: MlflowServer) -> MlflowServer:
    """It answers, whatever the test before has done to it."""
    running.ensure()
    return running


# ---------------------------------------------------------------------------------------------------------------- runs


class Run:
    """`graft run` of small digits, in a process of its own."""

    def __init__(self, folder: Path, uri: str, name: str) -> None:
        self.name, self._folder = name, folder
        settings = {"name": name, "tracking.uri": uri, "phases.0.epochs": 4}
        changes = [part for item in settings.items() for part in ("--set", "=".join(map(str, item)))]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "pipeline", "run", str(CONFIG), *changes],
            cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip

    @property
    def run_dir(self) -> Path:
        (found,) = (self._folder / "runs" / self.name).glob("2*")
        return found

    def journal(self, kind: str) -> list[dict[str, Any]]:
        """What the run has said so far."""
        try:
            lines = (self.run_dir / JOURNAL).read_text().splitlines(keepends=True)
        except (ValueError, OSError):  # It has not begun.
            return []
        records = [json.loads(line) for line in lines if line.endswith("\n")]
        return [record for record in records if record["kind"] == kind]

    def until(self, reached: Callable[[], object]) -> None:
        while not reached():
            assert self.process.poll() is None, self.process.communicate()[0]
            time.sleep(0.01)

    def end(self) -> str:
        """What it printed, once it has finished well."""
        output, _ = self.process.communicate(timeout=300)
        assert self.process.returncode == 0, output
        return output

    def sync(self) -> None:
        command = [sys.executable, "-m", "pipeline", "sync", str(self.run_dir)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert result.returncode == 0, result.stderr


def assert_everything_is_there_once(run: Run, uri: str) -> None:
    """Compares what MLflow holds of a run with what the run has said."""
    client = connect(uri)
    experiment = client.get_experiment_by_name(run.name)
    (found,) = client.search_runs([experiment.experiment_id])
    run_id = found.info.run_id
    assert found.info.status == "FINISHED"
    assert json.loads((run.run_dir / "run.json").read_text())["mlflow_run_id"] == run_id

    params = {key: value for record in run.journal("params") for key, value in record["values"].items()}
    assert found.data.params == params
    said: dict[str, list[tuple[int, float]]] = {}
    for record in run.journal("metrics"):
        for key, value in record["values"].items():
            said.setdefault(key, []).append((record["step"], pytest.approx(float(value))))
    assert {len(said["train/loss"]), len(said["test/accuracy"])} == {4, 1}
    histories = {key: client.get_metric_history(run_id, key) for key in found.data.metrics}
    assert {key: [(metric.step, metric.value) for metric in history] for key, history in histories.items()} == said
    assert len(found.inputs.dataset_inputs) == 3

    folders = {record["folder"] for record in run.journal("artifact")}
    uploaded = [file.path for folder in folders for file in client.list_artifacts(run_id, folder) if not file.is_dir]
    said_to_be = {str(Path(record["folder"]) / Path(record["path"]).name) for record in run.journal("artifact")}
    assert sorted(uploaded) == sorted(said_to_be)
    report = Path(client.download_artifacts(run_id, "figures/report.json"))
    assert report.read_bytes() == (run.run_dir / "report.json").read_bytes()

    (model,) = client.search_logged_models([experiment.experiment_id])
    assert (str(model.status), model.source_run_id) == ("READY", run_id)
    assert [output.model_id for output in found.outputs.model_outputs] == [model.model_id]
    assert "MLmodel" in {file.path for file in client.list_logged_model_artifacts(model.model_id)}
    (version,) = Registry(uri, run.name).versions()
    assert (version.number, version.run_id) == (1, run_id)


@pytest.mark.parametrize("kind", ["metrics", "artifact", "model"])
def test_a_server_killed_in_the_middle_of_a_run(server: MlflowServer, tmp_path: Path, kind: str) -> None:
    run = Run(tmp_path, server.uri, f"killed-at-{kind}")
    run.until(lambda: run.journal(kind))
    server.kill()
    assert "graft sync" in run.end()
    server.start()
    run.sync()
    assert_everything_is_there_once(run, server.uri)
    (run.run_dir / STATE).unlink()
    run.sync()
    assert_everything_is_there_once(run, server.uri)


def test_a_server_that_is_away_at_the_start_and_comes_back_when_it_likes(server: MlflowServer, tmp_path: Path) -> None:
    server.kill()
    run = Run(tmp_path, server.uri, "away-at-the-start")
    run.until(lambda: run.journal("metrics"))
    server.start(wait=False)
    run.end()
    server.wait()
    run.sync()
    assert_everything_is_there_once(run, server.uri)


# ------------------------------------------------------------------------------------------------------------ registry


def test_the_life_of_a_registry(server: MlflowServer) -> None:
    everything(server.uri)


def test_of_two_jobs_on_two_machines_exactly_one_gets_the_lease(server: MlflowServer, tmp_path: Path) -> None:
    two = [Job("file", server.uri, tmp_path / host, host) for host in ("near", "far")]
    try:
        for _ in range(5):
            assert_one_of(two)
    finally:
        for job in two:
            job.end()


def test_a_lease_outlives_its_server(server: MlflowServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pace = Pace(renew=0.5, expiry=60, poll=0.1)
    with locked("ants", server.uri, tmp_path, QUIET, pace) as lock:
        server.kill()
        with pytest.raises(TrackingError, match="did not renew the lease of the model ants"):
            lock.check()
        server.start()
        lock.check()
        with pytest.raises(Held), locked("ants", server.uri, tmp_path / "elsewhere", QUIET, pace):
            pass
    assert not [key for key in connect(server.uri).get_registered_model("ants").tags if key.startswith("graft.lease.")]

    server.kill()
    with locked("ants", server.uri, tmp_path, QUIET, pace) as lock:
        assert "Other machines are not kept from retraining ants yet" in capsys.readouterr().err
        server.start()
        lock.check()
        with pytest.raises(Held), locked("ants", server.uri, tmp_path / "elsewhere", QUIET, pace):
            pass
