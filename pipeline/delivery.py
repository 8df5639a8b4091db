"""Bringing a run's journal to MLflow: during the run after every line, or later, for `graft sync`.

There is no other way of delivering. Each line of the journal can be replayed without harm, so a crash at any moment
costs nothing but a repetition. No TensorFlow.
"""

import base64
import importlib.metadata
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import ValidationError

from pipeline import journal, notes
from pipeline.artifacts import RunRecord
from pipeline.console import Console
from pipeline.errors import TrackingError
from pipeline.journal import JOURNAL, PARTS, State
from pipeline.mlflow_client import artifact_location, asking, connect, reason_of, without_password
from pipeline.registry import logged_model, register_logged_model

# MLflow's pages leave tags out that begin so; nobody reads this one.
_RUN_TAG = "mlflow.graft.journal"


@dataclass(frozen=True)
class Delivery:
    """What `deliver` did.

    Attributes:
        run_id: MLflow's id of the run.
        uri: where it went, without a password.
        records: how many lines of the journal were delivered this time; 0 when nothing was left.
    """

    run_id: str
    uri: str
    records: int


def deliver(run_dir: Path, console: Console) -> Delivery:
    """Brings to MLflow what it has not had of a run's journal.

    Raises:
        TrackingError: MLflow is away or refuses, or `run_dir` holds no journal.
    """
    with journal.locked(run_dir):
        records, state = journal.read(run_dir), State.read(run_dir)
        header = records[0]
        pending = records[state.delivered :]
        shown_uri = without_password(header["uri"])
        if state.run_id and not pending:
            return Delivery(state.run_id, shown_uri, 0)
        try:
            client = connect(header["uri"])
            run_id = state.run_id or _open_run(client, header, console)
            target = _Target(client, run_id, run_dir, console)
            delivered = state.delivered
            for lines, record in _merged(pending):
                _SENDERS[record["kind"]](target, record)
                delivered += lines
                replace(state, run_id=run_id, delivered=delivered).write(run_dir)
        except (AssertionError, TrackingError):  # The latter is of the run that this one is a part of.
            raise
        except Exception as error:
            # MLflow's stores and artifact clients are plug-ins that raise what they like: its own, SQLAlchemy's,
            # requests', botocore's errors.
            whole = shlex.quote(header.get("parent", str(run_dir)))
            raise TrackingError(
                f"MLflow at {shown_uri} did not take all records of this run: {reason_of(error)}. They are kept in the "
                f"run's folder. Deliver them once MLflow is there: graft sync {whole}"
            ) from error
        return Delivery(run_id, shown_uri, len(pending))


def sync(run_dir: Path, console: Console) -> Delivery:
    """Delivers what MLflow has not had of a run that has ended, and enters MLflow's id of it into `run.json`.

    Raises:
        TrackingError: as `deliver`, or the run's `run.json` is missing or damaged.
    """
    delivery = deliver(run_dir, console)
    if (run_dir / "sweep.json").is_file():  # A sweep has no run.json.
        parts = sorted(path.parent for path in run_dir.glob(f"{PARTS}/*/{JOURNAL}"))
        return replace(delivery, records=delivery.records + sum(deliver(part, console).records for part in parts))
    path = run_dir / "run.json"
    try:
        record = RunRecord.read(path)
    except (OSError, ValidationError) as error:
        raise TrackingError(
            f"MLflow at {delivery.uri} has this run, as {delivery.run_id}, but the id cannot be entered into {path}: "
            "the file is missing, damaged or of another version of graft. Later runs can still start from the run's "
            f"weights: backbone.weights={run_dir / 'backbone.weights.h5'}"
        ) from error
    # A run under way writes this file itself.
    if record.status != "running":
        record.model_copy(update={"mlflow_run_id": delivery.run_id}).write(path)
    return delivery


def remove_run(run_dir: Path) -> None:
    """Marks a run as deleted in MLflow; nothing happens where it never was there.

    Raises:
        TrackingError: MLflow is away or refuses.
    """
    run_id = State.read(run_dir).run_id
    if run_id is None:
        return
    from mlflow.exceptions import MlflowException

    uri, _ = journal.address(run_dir)
    with asking(uri, f"remove the run {run_id}"):
        try:
            connect(uri).delete_run(run_id)
        except MlflowException as error:
            # Deleted in MLflow's own pages.
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise


def _open_run(client: Any, header: dict[str, Any], console: Console) -> str:
    """The run that belongs to a journal: the one that an interrupted delivery created, or a new one."""
    experiment = client.get_experiment_by_name(header["experiment"])
    if experiment is None:
        experiment_id = client.create_experiment(
            header["experiment"], artifact_location(header["uri"]), notes.EXPERIMENT
        )
    else:
        experiment_id = experiment.experiment_id
    if runs := client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{header['id']}'", max_results=1):
        return str(runs[0].info.run_id)
    tags = {_RUN_TAG: header["id"]}
    parent = Path(header.get("parent", ""))
    if "parent" in header and (parent / JOURNAL).is_file():  # Else it was removed.
        # Its own folder's lock is taken after this one's; a parent never waits for its parts.
        tags["mlflow.parentRunId"] = State.read(parent).run_id or deliver(parent, console).run_id
    return str(client.create_run(experiment_id, header["time"], tags, header["name"]).info.run_id)


# ------------------------------------------------------------------------------------------------------------- records


@dataclass(frozen=True)
class _Target:
    client: Any
    run_id: str
    run_dir: Path
    console: Console


def _merged(records: Sequence[dict[str, Any]]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Records to send, each with the number of lines it stands for. Figures that follow one another go together: a
    store takes as long for those of one epoch as for those of a hundred."""
    for kind, group in groupby(records, key=lambda record: record["kind"]):
        same = list(group)
        if kind == "metrics":
            yield len(same), {"kind": kind, "steps": same}
        else:
            yield from ((1, record) for record in same)


def _send_nothing(target: _Target, record: dict[str, Any]) -> None:
    """The first line; `_open_run` has used it."""


def _send_params(target: _Target, record: dict[str, Any]) -> None:
    from mlflow.entities import Param

    for batch in _batches([Param(*item) for item in record["values"].items()], 100):
        target.client.log_batch(target.run_id, params=batch)


def _send_tags(target: _Target, record: dict[str, Any]) -> None:
    from mlflow.entities import RunTag

    for batch in _batches([RunTag(*item) for item in record["values"].items()], 100):
        target.client.log_batch(target.run_id, tags=batch)


def _send_metrics(target: _Target, record: dict[str, Any]) -> None:
    from mlflow.entities import Metric

    metrics = [
        Metric(name, float(x), at["time"], at["step"]) for at in record["steps"] for name, x in at["values"].items()
    ]
    for batch in _batches(metrics, 1000):
        target.client.log_batch(target.run_id, metrics=batch)


def _send_scores(target: _Target, model_id: str) -> None:
    """What a model's figures on a dataset are, with the model; the run has them already."""
    from mlflow.entities import Metric

    metrics = [
        Metric(name, float(x), record["time"], record["step"], model_id, *record["dataset"], run_id=target.run_id)
        for record in journal.read(target.run_dir)
        if "dataset" in record
        for name, x in record["values"].items()
    ]
    for batch in _batches(metrics, 1000):
        target.client.log_batch(target.run_id, metrics=batch)


def _send_dataset(target: _Target, record: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    fields = {key: record.get(key) for key in ("name", "digest", "source_type", "source", "schema", "profile")}
    context = InputTag("mlflow.data.context", record["context"])
    target.client.log_inputs(target.run_id, [DatasetInput(Dataset(**fields), [context])])


def _send_artifact(target: _Target, record: dict[str, Any]) -> None:
    path = target.run_dir / record["path"]
    if not path.exists():
        target.console.warn(f"{path} is no longer there and could not be brought to MLflow.")
        return
    target.client.log_artifact(target.run_id, str(path), record["folder"] or None)


def _send_model(target: _Target, record: dict[str, Any]) -> None:
    client, run_id = target.client, target.run_id
    export_dir = Path(record["export_dir"])
    if not export_dir.is_dir():
        target.console.warn(f"The exported model {export_dir} is no longer there and could not be brought to MLflow.")
        return
    run = client.get_run(run_id)
    model = logged_model(client, run_id) or client.create_logged_model(
        run.info.experiment_id, record.get("name", "model"), run_id, {notes.NOTE: record.get("description", "")},
        run.data.params, "image classifier",
    )  # fmt: skip
    if model.status != "READY":
        with TemporaryDirectory() as folder:
            _save_model(Path(folder) / "model", export_dir, base64.b64decode(record["example"]), model)
            client.log_model_artifacts(model.model_id, f"{folder}/model")
        client.finalize_logged_model(model.model_id, "READY")
    _send_scores(target, model.model_id)
    if model.model_id not in [output.model_id for output in run.outputs.model_outputs]:
        from mlflow.entities import LoggedModelOutput

        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step=0)])


def _send_version(target: _Target, record: dict[str, Any]) -> None:
    model = logged_model(target.client, target.run_id)
    if model is not None:  # Else the exported model had gone, which was said.
        register_logged_model(
            target.client, record["name"], target.run_id, model, record["tags"], record.get("description", "")
        )


def _save_model(path: Path, export_dir: Path, example: bytes, logged: Any) -> None:
    """Writes the SavedModel at `export_dir` and `mlflow_model.py` as an MLflow model to `path`."""
    import mlflow
    import pandas  # type: ignore[import-untyped]
    from mlflow.models import Model, ModelSignature
    from mlflow.types import ColSpec, DataType, Schema
    from mlflow.types.schema import Array

    mlflow.pyfunc.save_model(
        path,
        mlflow_model=Model(
            artifact_path=logged.artifact_location,
            run_id=logged.source_run_id,
            model_uuid=logged.model_id,
            model_id=logged.model_id,
        ),
        python_model=Path(__file__).with_name("mlflow_model.py"),
        artifacts={"saved_model": str(export_dir)},
        signature=ModelSignature(
            Schema([ColSpec(DataType.binary, "image")]),
            Schema(
                [
                    ColSpec(DataType.string, "label"),
                    ColSpec(DataType.double, "score"),
                    ColSpec(Array(DataType.double), "probabilities"),
                ]
            ),
        ),
        input_example=pandas.DataFrame({"image": [example]}),
        pip_requirements=[f"{name}=={importlib.metadata.version(name)}" for name in ("mlflow", "tensorflow")],
    )


def _send_status(target: _Target, record: dict[str, Any]) -> None:
    if record["status"] == "RUNNING":
        target.client.update_run(target.run_id, "RUNNING")
    else:
        target.client.set_terminated(target.run_id, record["status"], record["time"])


_SENDERS: dict[str, Callable[[_Target, dict[str, Any]], None]] = {
    "run": _send_nothing,
    "params": _send_params,
    "tags": _send_tags,
    "metrics": _send_metrics,
    "dataset": _send_dataset,
    "artifact": _send_artifact,
    "model": _send_model,
    "version": _send_version,
    "status": _send_status,
}


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))
