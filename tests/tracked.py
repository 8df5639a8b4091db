"""For tests of what goes to MLflow: all that a run says, and what a store holds of it."""

import json
from io import BytesIO
from pathlib import Path
from typing import Any

from pipeline.console import Console
from pipeline.journal import STATE
from pipeline.mlflow_client import connect
from pipeline.tracking import Dataset, Tracker

PICTURES = Dataset("ants", "d" * 12, "local", "/pictures", {"pictures": 244, "ant": 120, "bee": 124})


def picture() -> bytes:
    from PIL import Image

    stream = BytesIO()
    Image.new("RGB", (8, 8), (200, 10, 10)).save(stream, "PNG")
    return stream.getvalue()


def whole_run(run_dir: Path, uri: str, export_dir: Path) -> Tracker:
    """Everything a run says, once."""
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())
    tracker.params({"seed": 0, "data.path": "pictures"})
    tracker.tags({"graft.code_commit": "abc"})
    tracker.dataset(PICTURES, "training")
    for step in range(3):
        tracker.metrics({"loss": 1 / (step + 1), "accuracy": 0.5}, step)
    (run_dir / "report.json").write_text("{}")
    tracker.artifact(run_dir / "report.json")
    tracker.model("ants", export_dir, picture())
    tracker.version("ants", {})
    tracker.finish("FINISHED")
    return tracker


def contents(uri: str) -> dict[str, Any]:
    """What a store holds of the experiment `insects`; lists, so that something that is there twice shows."""
    client = connect(uri)
    experiment = client.get_experiment_by_name("insects")
    runs = client.search_runs([experiment.experiment_id])
    models = client.search_logged_models([experiment.experiment_id])
    return {
        "runs": [(run.info.run_name, run.info.status) for run in runs],
        "params": [run.data.params for run in runs],
        "commits": [run.data.tags["graft.code_commit"] for run in runs],
        "loss": [[(m.step, m.value) for m in client.get_metric_history(run.info.run_id, "loss")] for run in runs],
        "datasets": [data.dataset.name for run in runs for data in run.inputs.dataset_inputs],
        "artifacts": [file.path for run in runs for file in client.list_artifacts(run.info.run_id)],
        "models": [(model.status, model.source_run_id) for model in models],
        "outputs": [output.model_id for run in runs for output in run.outputs.model_outputs],
        "versions": [(v.name, int(v.version), v.run_id) for v in client.search_model_versions()],
    }


def expected(run_id: str, model_id: str) -> dict[str, Any]:
    return {
        "runs": [("ants", "FINISHED")],
        "params": [{"seed": "0", "data.path": "pictures"}],
        "commits": ["abc"],
        "loss": [[(0, 1.0), (1, 1 / 2), (2, 1 / 3)]],
        "datasets": ["ants"],
        "artifacts": ["report.json"],
        "models": [("READY", run_id)],
        "outputs": [model_id],
        "versions": [("ants", 1, run_id)],
    }


def assert_delivered_once(run_dir: Path, uri: str) -> None:
    found = contents(uri)
    run_id = json.loads((run_dir / STATE).read_text())["run_id"]
    assert found == expected(run_id, found["outputs"][0])
