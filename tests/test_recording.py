"""What a run says to MLflow, and how it reads there."""

import getpass
import json
import threading
from pathlib import Path

import pytest

from pipeline import config_file, notes
from pipeline.errors import DataError
from pipeline.mlflow_client import connect
from pipeline.recording import recorded
from pipeline.run import run
from tests.networks import QUIET

CONFIG = Path(__file__).parent.parent / "configs" / "digits-0-4.yaml"


@pytest.fixture
def config(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return config_file.load(CONFIG, ["phases.0.epochs=2"])


def run_of(recording):
    return connect(recording.record.tracking_uri).get_run(recording.record.mlflow_run_id)


@pytest.mark.slow
def test_a_run_can_be_understood_in_mlflow_alone(config):
    record = run(config, QUIET, title="epochs=2")
    client = connect(record.tracking_uri)
    found = client.get_run(record.mlflow_run_id)
    run_dir = Path(record.run_dir)
    assert found.info.run_name == f"epochs=2 ({run_dir.name[-4:]})"

    figures = {name for name in found.data.metrics if not name.startswith("system/")}
    elsewhere = {"time/embedding_seconds", "time/guard_seconds"}  # of a challenger
    elsewhere |= {"validation/calibrated_loss"}  # of a sweep
    others = ("gate/", "kept/", "winner/", "noise/")
    assert figures == {name for name in notes.FIGURES if not name.startswith(others)} - elsewhere
    assert {"system/cpu_utilization_percentage", "system/process_memory_megabytes"} <= found.data.metrics.keys()
    assert [point.step for point in client.get_metric_history(record.mlflow_run_id, "time/epoch_seconds")] == [1, 2]
    assert found.data.params.items() >= {"phases.0.epochs": "2", "backbone.name": "lenet5"}.items()

    tags = found.data.tags
    assert tags["mlflow.user"] == getpass.getuser()
    assert (tags["mlflow.source.name"], tags["mlflow.source.type"]) == ("graft run", "LOCAL")
    assert record.data_digest.startswith(tags["graft.data_digest"])
    assert len(tags["graft.data_digest"]) == len(tags["graft.code_digest"]) == 12
    accuracy = found.data.metrics["test/accuracy"]
    assert tags["mlflow.note.content"].startswith(f"**{100 * accuracy:.1f} % of 134 test pictures are right (95 % ")
    assert f"| test/accuracy | {accuracy:.4g} | 0 to 1 |" in tags["mlflow.note.content"]

    used = {data.tags[0].value: data.dataset for data in found.inputs.dataset_inputs}
    profiles = {context: json.loads(dataset.profile) for context, dataset in used.items()}
    assert {context: profile["pictures"] for context, profile in profiles.items()} == {
        "training": 620, "validation": 147, "test": 134,
    }  # fmt: skip
    assert all(sum(profile.values()) == 2 * profile["pictures"] for profile in profiles.values())
    assert len({dataset.digest for dataset in used.values()}) == 3

    def below(folder=None):
        return {item.path for item in client.list_artifacts(record.mlflow_run_id, folder)}

    assert below() == {"charts", "config.yaml", "data", "figures", "model-card.md", "report.html", "run.log"}
    assert below("charts") >= {"charts/confusion.png", "charts/learning_curves.png"}
    assert below("data") == {"data/predictions.csv", "data/quarantine.csv", "data/splits.csv"}
    assert below("figures") == {"figures/history.json", "figures/outputs.npz", "figures/report.json"}

    (model,) = client.search_logged_models([found.info.experiment_id])
    assert model.name == "digits-0-4"
    assert {figure.dataset_digest for figure in model.metrics} == {used["test"].digest}
    version = client.get_model_version("digits-0-4", "1")
    assert version.description.startswith(f"{100 * accuracy:.1f} % of 134 test pictures are right")
    assert "## Training" in version.description
    assert model.tags["mlflow.note.content"] == version.description


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "status", "note"),
    [
        (DataError("the pictures are gone"), "FAILED", "**Failed**: the pictures are gone"),
        (KeyboardInterrupt(), "KILLED", "**Killed**: stopped"),
    ],
)
def test_a_run_that_fails_says_why_and_one_that_goes_on_goes_on_counting(config, error, status, note):
    with pytest.raises(type(error)), recorded(config, QUIET, title="dropout=0.2") as recording:
        raise error
    found = run_of(recording)
    assert (found.info.status, found.data.tags["mlflow.note.content"]) == (status, note)
    assert not any(thread.name == "system metrics" for thread in threading.enumerate())

    with pytest.raises(DataError), recorded(config, QUIET, recording.run_dir) as again:
        raise DataError("and again")
    found = run_of(again)
    assert found.info.run_name == f"dropout=0.2 ({recording.run_dir.name[-4:]})"
    assert found.data.tags["mlflow.note.content"] == "**Failed**: and again"
    client = connect(again.record.tracking_uri)
    samples = client.get_metric_history(found.info.run_id, "system/cpu_utilization_percentage")
    assert [sample.step for sample in samples] == [0, 1]


@pytest.mark.slow
def test_a_challenger_says_so(config):
    with pytest.raises(DataError), recorded(config, QUIET, challenger=True, title="challenger: 12 added") as recording:
        raise DataError("no matter")
    tags = run_of(recording).data.tags
    assert (tags["graft.role"], tags["mlflow.source.name"]) == ("challenger", "graft retrain")
