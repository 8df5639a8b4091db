"""What is removed and what is kept, with MLflow's own registry and runs; exports that nobody loads."""

import fcntl
from unittest import mock

import pytest

from pipeline import promotion, publish
from pipeline.artifacts import BackboneIdentity, RunRecord
from pipeline.config import Retention
from pipeline.console import Console
from pipeline.delivery import deliver, remove_run
from pipeline.errors import TrackingError
from pipeline.journal import is_delivered
from pipeline.mlflow_client import connect
from pipeline.registry import Registry
from pipeline.retention import retain
from pipeline.tracking import Tracker
from tests.promoting import a_model, served
from tests.stores import Heard

QUIET = Console(quiet=True)
AWAY = "http://127.0.0.1:9"
RECORD = RunRecord(
    name="ants", status="finished", run_dir="", started_at="2026-01-01T00:00:00+00:00", tracking_uri="",
    backbone=BackboneIdentity(name="mobilenet", options={}, keras="3"),
)  # fmt: skip


class Life:
    """The runs of a name, each a night's, and the versions that some of them became."""

    def __init__(self, folder, uri):
        self.uri, self.registry = uri, Registry(uri, "ants")
        self.home, self.runs = folder / "export" / "ants", folder / "runs" / "ants"

    def run(self, night, status="finished", uri=None):
        run_dir = self.runs / f"2026010{night}-030000-abcd"
        a_model(run_dir)
        RECORD.model_copy(update={"status": status, "run_dir": str(run_dir)}).write(run_dir / "run.json")
        tracker = Tracker(run_dir, uri or self.uri, "ants", run_dir.name, Heard())
        if status != "running":
            tracker.finish("FINISHED")
        return run_dir

    def version(self, night, promote=False):
        """A run whose model becomes a version, and the champion if it shall."""
        run_dir = self.run(night)
        run_id = deliver(run_dir, QUIET).run_id
        client = connect(self.uri)
        model = client.create_logged_model(client.get_run(run_id).info.experiment_id, "model", run_id)
        client.finalize_logged_model(model.model_id, "READY")
        version = self.registry.register(run_id, {"graft.run_dir": str(run_dir)})
        if promote:
            promotion.install(self.registry, self.home, version, run_dir / "model", "better", "gate")
        return run_dir

    def retain(self, versions=2, runs=2):
        console = Heard()
        retain(Retention(versions=versions, runs=runs), self.registry, self.home, self.runs, console)
        return console.said

    @property
    def left(self):
        """The registered versions, the folders where servers read, withdrawn ones included, and the runs' nights."""
        numbers = sorted(version.number for version in self.registry.versions())
        folders = {*publish.versions(self.home), *publish.versions(self.home / ".withdrawn")}
        return numbers, sorted(folders), sorted(int(path.name[7]) for path in self.runs.glob("*"))


@pytest.fixture
def life(tmp_path, uri):
    return Life(tmp_path, uri)


def test_nothing_is_old_yet(life):
    assert life.retain() == []
    life.version(1, promote=True)
    life.run(2)
    assert life.retain() == []
    assert life.left == ([1], [1], [1, 2])


def test_the_oldest_go_with_all_that_is_theirs(life):
    runs = [life.version(night, promote=True) for night in range(1, 6)]
    ids = [deliver(run, QUIET).run_id for run in runs]
    assert life.retain(versions=3, runs=2) == [
        "2 old versions removed",
        "2 old runs removed; mlflow gc frees what MLflow holds of them",
    ]
    assert life.left == ([3, 4, 5], [3, 4, 5], [3, 4, 5])
    stages = [connect(life.uri).get_run(run_id).info.lifecycle_stage for run_id in ids]
    assert stages == ["deleted"] * 2 + ["active"] * 3
    assert served(life.home) == runs[-1].name
    assert life.retain(versions=3, runs=2) == []


def test_the_champion_its_predecessor_and_their_runs_stay_however_old(life):
    life.version(1, promote=True)
    life.version(2, promote=True)
    for night in range(3, 8):
        life.version(night)
    life.retain()
    assert life.left == ([1, 2, 6, 7], [1, 2], [1, 2, 6, 7])
    promotion.go_back(life.home, "worse")
    life.retain()
    assert life.left == ([1, 2, 6, 7], [1, 2], [1, 2, 6, 7])
    assert publish.folder_of(life.home, 2) is not None  # Withdrawn, and kept.


def test_a_version_that_was_served_once_goes_also_where_it_was_withdrawn(life):
    for night in (1, 2, 3):
        life.version(night, promote=True)
    promotion.go_back(life.home, "worse")
    for night in (4, 5, 6):
        life.version(night, promote=True)
    life.retain()
    assert life.left == ([5, 6], [5, 6], [5, 6])


def test_a_run_that_is_under_way_or_not_delivered_stays(life):
    life.run(1, "running")
    life.run(2, uri=AWAY)
    busy = life.run(3, "failed")
    for night in (4, 5, 6, 7):
        life.run(night, "killed")
    with (busy / "run.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert life.retain() == ["2 old runs removed; mlflow gc frees what MLflow holds of them"]
        assert life.left[2] == [1, 2, 3, 6, 7]
    life.retain()
    assert life.left[2] == [1, 2, 6, 7]


def test_a_folder_that_is_no_run_is_left_alone(life):
    for night in range(1, 5):
        life.run(night)
    (life.runs / "test-sets").mkdir()
    (life.runs / "retrain.json").write_text("{}")
    (life.runs / "20260101-030000-abcd" / "run.json").write_text("damaged")
    life.retain()
    assert {path.name for path in life.runs.iterdir()} >= {"test-sets", "retrain.json", "20260101-030000-abcd"}


def test_without_mlflow_nothing_is_removed(life):
    for night in range(1, 5):
        life.version(night, promote=True)
    before = life.left
    with pytest.raises(TrackingError):
        retain(Retention(versions=2, runs=2), Registry(AWAY, "ants"), life.home, life.runs, QUIET)
    assert life.left == before


def test_cut_short_it_goes_on_the_next_time(life):
    for night in range(1, 7):
        life.version(night, promote=True)
    with (
        mock.patch.object(Registry, "delete", side_effect=TrackingError("MLflow went away")),
        pytest.raises(TrackingError),
    ):
        life.retain()
    assert served(life.home) == "20260106-030000-abcd"
    life.retain()
    assert life.left == ([5, 6], [5, 6], [5, 6])


def test_a_run_that_is_gone_from_mlflow_already_is_removed_here(life):
    run = life.run(1)
    connect(life.uri).delete_run(deliver(run, QUIET).run_id)
    remove_run(run)
    for night in (2, 3):
        life.run(night)
    life.retain()
    assert life.left[2] == [2, 3]


def test_whether_a_run_is_delivered(life, tmp_path):
    assert is_delivered(tmp_path), "there is nothing to deliver"
    assert not is_delivered(life.run(1, uri=AWAY))
    run = life.run(2)
    assert is_delivered(run)
    with (run / "tracking.jsonl").open("a") as journal:
        journal.write('{"kind": "tags", "values')  # Its own process is about to write the rest of the line.
        journal.flush()
        assert is_delivered(run)
        journal.write('": {"a": "b"}}\n')
    assert not is_delivered(run)
    deliver(run, QUIET)
    assert is_delivered(run)
