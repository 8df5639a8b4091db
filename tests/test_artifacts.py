"""What runs leave on disk, and what reading it needs."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from pipeline import artifacts, config_file
from pipeline.artifacts import BackboneIdentity, Outputs, RunRecord, read_manifest, write_atomically
from pipeline.delivery import sync
from pipeline.errors import ConfigError, ExportError, TrackingError
from pipeline.mlflow_client import connect
from pipeline.recording import recorded
from tests.networks import QUIET

ROOT = Path(__file__).parent.parent


def a_record(run_dir, **fields):
    return RunRecord(
        **{
            "name": "ants", "status": "finished", "run_dir": str(run_dir), "started_at": "2026-01-01T00:00:00+00:00",
            "finished_at": "2026-01-02T00:00:00+00:00", "tracking_uri": "sqlite:///mlflow.db",
            "backbone": BackboneIdentity(name="mobilenet", options={"alpha": 0.25, "twice": True}),
            "metrics": {"test_accuracy": 0.93}, **fields,
        }
    )  # fmt: skip


def a_config(here, **changes):
    settings = {
        "name": "ants",
        "data": {"source": "digits"},
        "backbone": {"name": "mobilenet", "weights": "none", "options": {"alpha": 0.25}},
        "tracking": {"uri": "http://127.0.0.1:9"},
        "output_dir": str(here / "runs"),
        "export": {"dir": str(here / "export")},
    }
    return config_file.parse(settings | changes)


# ------------------------------------------------------------------------------------------------------------- records


def test_a_record_reads_back_equal(tmp_path):
    for record in (a_record(tmp_path), a_record(tmp_path, status="killed", error="stopped", started_from="/runs/a/b")):
        record.write(tmp_path / "run.json")
        assert RunRecord.read(tmp_path / "run.json") == record


def test_keys_of_a_later_version_are_passed_over_and_missing_new_ones_have_defaults(tmp_path):
    path = tmp_path / "run.json"
    a_record(tmp_path).write(path)
    fields = json.loads(path.read_text())
    del fields["started_from"]
    fields["colour"] = "red"
    fields["backbone"]["depth"] = 3
    path.write_text(json.dumps(fields))
    assert RunRecord.read(path) == a_record(tmp_path)


def test_a_status_of_no_kind_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="'running', 'finished', 'failed' or 'killed'"):
        a_record(tmp_path, status="tired")


def test_a_reader_sees_the_old_text_or_the_new_one(tmp_path, monkeypatch):
    path = tmp_path / "run.json"
    write_atomically(path, "old")

    def fails(self, _target):
        assert self.read_text() == "new"
        raise OSError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", fails)
        with pytest.raises(OSError, match="no room"):
            write_atomically(path, "new")
    assert path.read_text() == "old"
    write_atomically(path, "new ä")
    assert path.read_text(encoding="utf-8") == "new ä"
    assert [file.name for file in tmp_path.iterdir()] == ["run.json"]


def test_a_folder_that_is_no_exported_model(tmp_path):
    with pytest.raises(ExportError, match=r"not a model exported by graft.*cannot be read"):
        read_manifest(tmp_path)
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ExportError, match="damaged, or of another version"):
        read_manifest(tmp_path)


@pytest.mark.skipif(shutil.which("git") is None, reason="git is not installed")
def test_the_commit_is_this_project_s_own(tmp_path, monkeypatch):
    """Not that of a checkout in whose environment the package is installed."""
    package = tmp_path / ".venv" / "pipeline"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    monkeypatch.setattr(artifacts, "__file__", str(package / "artifacts.py"))

    def git(*arguments):
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True)

    git("init", "--quiet")
    git("commit", "--quiet", "--allow-empty", "--message=theirs")
    assert artifacts.code().commit is None
    git("add", ".venv/pipeline/__init__.py")
    git("commit", "--quiet", "--message=ours")
    assert len(artifacts.code().commit) == 40


def test_reading_a_model_s_folder_needs_no_heavy_import():
    """Serving processes read manifests and decode pictures, without the training side."""
    program = (
        "import sys, pipeline.artifacts, pipeline.errors, pipeline.pixels, serving\n"
        "heavy = {'tensorflow', 'keras', 'mlflow', 'sklearn', 'matplotlib'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    result = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


# ----------------------------------------------------------------------------------------------------- a run's records


@pytest.mark.parametrize("key", ["output_dir", "export.dir"])
@pytest.mark.parametrize("folder", ["file/below", "file", "x" * 300])
def test_a_folder_that_cannot_be_made_is_a_mistake_in_the_config(key, folder, tmp_path):
    (tmp_path / "file").touch()
    folder = str(tmp_path / folder)
    asked = a_config(tmp_path, **({"output_dir": folder} if key == "output_dir" else {"export": {"dir": folder}}))
    with pytest.raises(ConfigError, match=f"^{key} must be a folder .*Received: {folder}"), recorded(asked, QUIET):
        raise AssertionError("the run has started")
    assert not list(tmp_path.rglob("run.json"))


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [(KeyboardInterrupt(), "killed", "stopped"), (ExportError("it differs"), "failed", "it differs")],
)
def test_how_a_run_ended(error, status, words, tmp_path):
    with pytest.raises(type(error)), recorded(a_config(tmp_path), QUIET) as recording:
        raise error
    record = RunRecord.read(recording.run_dir / "run.json")
    assert (record.status, record.error) == (status, words)


def test_a_run_says_which_run_it_started_from_and_sync_enters_its_id(tmp_path):
    earlier = tmp_path / "runs" / "ants" / "20260101-000000-abcd"
    earlier.mkdir(parents=True)
    a_record(earlier, backbone=BackboneIdentity(name="mobilenet", options={"alpha": 0.25})).write(earlier / "run.json")
    (earlier / "backbone.weights.h5").touch()
    backbone = {"name": "mobilenet", "weights": "run:ants", "options": {"alpha": 0.25}}
    with recorded(a_config(tmp_path, backbone=backbone), QUIET) as recording:
        pass
    run_dir = recording.run_dir
    record = RunRecord.read(run_dir / "run.json")
    assert record.started_from == str(earlier)
    assert (record.status, record.mlflow_run_id) == ("finished", None)

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    journal = run_dir / "tracking.jsonl"
    journal.write_text(journal.read_text().replace("http://127.0.0.1:9", uri))  # the server is back, so to speak
    delivery = sync(run_dir, QUIET)
    assert RunRecord.read(run_dir / "run.json") == record.model_copy(update={"mlflow_run_id": delivery.run_id})
    assert connect(uri).get_run(delivery.run_id).data.tags["graft.started_from"] == str(earlier)

    (run_dir / "run.json").write_text("{")
    with pytest.raises(TrackingError, match=f"has this run, as {delivery.run_id}.*run.json"):
        sync(run_dir, QUIET)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_outputs_that_were_cut_short_are_refused(tmp_path, share):
    path = tmp_path / "outputs.npz"
    labels = np.arange(50, dtype=np.int32)
    logits = np.random.default_rng(0).normal(size=(50, 50)).astype(np.float32)
    words = tuple(map(str, range(50)))
    written = Outputs(words, words, words, labels, logits, words, labels, logits)
    written.write(path)
    read = Outputs.read(path)
    assert read.digests == words
    np.testing.assert_array_equal(read.logits, logits)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(ValueError, match=r"outputs\.npz|cut short|file"):
        Outputs.read(path)
