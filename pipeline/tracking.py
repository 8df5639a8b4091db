"""MLflow, by way of a journal.

A run writes what it has to say into `run_dir/tracking.jsonl`, one JSON object a line, and `deliver` replays the lines
that MLflow has not taken yet: during the run after every line, or later, for `graft sync`. There is no other way of
delivering. Each line can be replayed without harm, so a crash at any moment costs nothing but a repetition.

    kind                fields
    run                 id, uri, experiment, name, time; parent, the folder of the run that it is a part of;
                        the first line
    params, tags        values: a dict of strings
    metrics             values: a dict of numbers, or "nan", "inf" and "-inf"; step, time; dataset, the name and digest
                        of the one that they were measured on
    dataset             name, digest, source_type, source, schema, profile, context
    artifact            path, relative to run_dir; folder
    model               name, description; export_dir, absolute; example, base64
    version             name, tags, description: the model becomes a registered version
    status              status, time; the last line, unless a run that was killed goes on, or is judged later

Times are milliseconds since 1970. How far the journal was delivered stands in `run_dir/tracking.state.json`.
"""

import base64
import fcntl
import importlib.metadata
import json
import math
import os
import re
import shlex
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal
from urllib.parse import quote, unquote

from pydantic import ValidationError

from pipeline import notes
from pipeline.artifacts import RunRecord, write_atomically
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.errors import ConfigError, TrackingError

JOURNAL = "tracking.jsonl"
STATE = "tracking.state.json"
PARTS = "trials"
"""In a sweep's folder: the folders of its trials, whose runs are parts of the sweep's."""

SYSTEM = "system/"
"""How the names of figures begin that MLflow's pages show apart, as system metrics."""

# MLflow's pages leave tags out that begin so; nobody reads this one.
_RUN_TAG = "mlflow.graft.journal"
# Of every dataset: MLflow's pages list its columns.
_SCHEMA = json.dumps(
    {
        "mlflow_colspec": [
            {"name": "image", "type": "binary", "required": True},
            {"name": "label", "type": "string", "required": True},
        ]
    }
)
# PostgreSQL and MySQL have room for so many characters in a description.
_TEXT = 5000

_ENVIRONMENT = {
    # The journal is the retry. A request that is repeated blindly could also create a second run.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    # A uv.lock where graft happens to be started has nothing to do with what the model needs.
    "MLFLOW_UV_AUTO_DETECT": "false",
    # Standard output is ours.
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
}

_FIRST_WAIT_S = 30.0


def resolve_uri(config: RunConfig) -> str:
    """Where a run is tracked: `tracking.uri`, else MLFLOW_TRACKING_URI, else `mlflow.db` in `output_dir`.

    Paths come back absolute, for the journal may be delivered from another working directory.

    Raises:
        ConfigError: the URI is a plain folder, which MLflow no longer supports.
    """
    uri = config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI")
    if not uri:
        return default_uri(Path(config.output_dir))
    if uri.startswith("sqlite:///"):
        path, mark, options = uri.partition("?")
        return _sqlite_uri(sqlite_path(path)) + mark + options
    if uri.startswith("file:") or ("://" not in uri and uri != "databricks"):
        raise ConfigError(
            "The MLflow tracking URI (tracking.uri, or the environment variable MLFLOW_TRACKING_URI) names a plain "
            "folder, which MLflow no longer supports. Allowed: a server as http://HOST:PORT, or a database such as "
            f"sqlite:///PATH/mlflow.db. Received: {uri}"
        )
    return uri


def default_uri(output_dir: Path) -> str:
    """The SQLite database of the runs in a folder."""
    return _sqlite_uri(output_dir.resolve() / "mlflow.db")


def without_password(text: str) -> str:
    """The text with `***` in place of the password in each address, `scheme://user:password@host`."""
    return re.sub(r"(://[^:/@\s]*):[^@/\s]+@", r"\1:***@", text)


def connect(uri: str) -> Any:
    """An `mlflow.MlflowClient` for a tracking URI; MLflow is set up to be quiet and to fail at once, unless the
    environment says otherwise."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    from mlflow import MlflowClient

    if uri.startswith(("postgresql", "mysql", "mssql")):
        import sqlalchemy

        engine = sqlalchemy.create_engine(uri)
        engine.connect().close()  # Raises at once where MLflow would go on trying for minutes.
        engine.dispose()
    if not uri.startswith("sqlite:///"):
        return MlflowClient(uri)
    path = sqlite_path(uri)
    path.parent.mkdir(parents=True, exist_ok=True)
    # MLflow fills an empty database by its migrations, which fail when two runs begin at the same time.
    with _alone(path.with_name(f"{path.name}.lock")):
        return MlflowClient(uri)


# ------------------------------------------------------------------------------------------------------------- journal


class Tracker:
    """Where a run puts what MLflow shall know. It may be called from several threads.

    No call raises because MLflow is away or refuses: the first failure is a warning, the next attempts come at growing
    intervals, and `finish` makes a last one.
    """

    def __init__(
        self,
        run_dir: Path,
        uri: str,
        experiment: str,
        run_name: str,
        console: Console,
        clock: Callable[[], float] = time.monotonic,
        parent: Path | None = None,
        at_once: bool = True,
    ) -> None:
        """Starts the journal of a run, or goes on with the one there is. What that says already is not said again.

        Args:
            run_dir: the run's folder; it exists.
            uri: as `resolve_uri` gives it.
            experiment: MLflow experiment, created where missing.
            run_name: the name MLflow shows.
            console: told once when MLflow is away.
            clock: seconds; paces the attempts.
            parent: the folder of the run that this one is a part of, such as a trial of a sweep; MLflow shows it below
                that one. It has a journal already.
            at_once: whether each line is delivered when it is written; else the caller calls `deliver`.
        """
        # MLflow waits two minutes for an answer; training shall not. `graft sync` has the time.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
        self._run_dir = run_dir.resolve()
        self._console = console
        self._clock = clock
        self._at_once = at_once
        self._wait_s = 0.0
        self._retry_at = -math.inf
        self._writing = threading.Lock()
        # A tracking URI may hold a password.
        (self._run_dir / JOURNAL).touch(mode=0o600)
        earlier = _mended(self._run_dir / JOURNAL)
        self._said = {_gist(record) for record in earlier}
        samples = [r["step"] for r in earlier if r["kind"] == "metrics" and next(iter(r["values"])).startswith(SYSTEM)]
        self._samples = max(samples, default=-1) + 1
        if not earlier:
            part_of = {} if parent is None else {"parent": str(parent.resolve())}
            self._append(
                "run", id=uuid.uuid4().hex, uri=uri, experiment=experiment, name=run_name, time=_now_ms(),
                **part_of,
            )  # fmt: skip
        elif earlier[-1]["kind"] == "status":
            self._append("status", status="RUNNING", time=_now_ms())

    @property
    def run_id(self) -> str | None:
        """MLflow's id of the run; None while MLflow has not been reached."""
        return _read_state(self._run_dir).run_id

    def params(self, flat: Mapping[str, Any]) -> None:
        """Logs parameters, as text without passwords; what MLflow has no room for, beyond 6000 characters, is cut."""
        self._append("params", values={key: without_password(str(value))[:6000] for key, value in flat.items()})

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags, as text of up to 5000 characters; an earlier value is replaced."""
        self._append("tags", values={key: str(value)[:_TEXT] for key, value in tags.items()})

    def metrics(self, values: Mapping[str, float], step: int, dataset: "Dataset | None" = None) -> None:
        """Logs numbers at a step. Names: letters, digits, and `_ - . / : space`; what is before the slash is a group.

        SQL stores keep nan, and the largest float in place of an infinity.

        Args:
            values: by name.
            step: MLflow draws figures whose only step is 0 as bars, and others as lines.
            dataset: what the final figures of a model were measured on; MLflow shows them with the model, too.
        """
        on = {} if dataset is None else {"dataset": [dataset.name, dataset.digest]}
        self._append("metrics", values=_numbers(values), step=step, time=_now_ms(), **on)

    def sample(self, values: Mapping[str, float]) -> None:
        """Logs what the machine does at this moment, each figure under `system/`.

        Nothing is delivered for this alone: it goes with what the run says next.
        """
        with self._writing:
            numbers = _numbers({f"{SYSTEM}{name}": value for name, value in values.items()})
            self._write({"kind": "metrics", "values": numbers, "step": self._samples, "time": _now_ms()})
            self._samples += 1

    def dataset(self, dataset: "Dataset", context: str) -> None:
        """Logs which data the run used, and what for, e.g. training."""
        self._append(
            "dataset",
            name=dataset.name[:500],
            digest=dataset.digest[:36],
            source_type=dataset.source_type,
            source=json.dumps({"uri": dataset.source}),
            schema=_SCHEMA,
            profile=json.dumps(dict(dataset.profile)),
            context=context,
        )

    def artifact(self, path: Path, folder: str = "") -> None:
        """Uploads a file, or a directory under its name, from inside the run's folder to `folder` of the artifacts."""
        self._append("artifact", path=str(path.resolve().relative_to(self._run_dir)), folder=folder)

    def model(self, name: str, export_dir: Path, example: bytes, description: str = "") -> None:
        """Logs an exported model, with the parameters of the run and the figures that were measured on a dataset.

        Args:
            name: what MLflow calls it.
            export_dir: the SavedModel. Its signature `serving_default` takes `image_bytes` (string [N]) to
                `probabilities` (float32 [N, C]), `label` (string [N]) and `score` (float32 [N]).
            example: one encoded picture, the model's input example; small, for the journal holds it.
            description: Markdown, of which MLflow has room for 5000 characters.
        """
        encoded = base64.b64encode(example).decode()
        where, text = str(export_dir.resolve()), description[:_TEXT]
        self._append("model", name=name, description=text, export_dir=where, example=encoded)

    def version(self, name: str, tags: Mapping[str, str], description: str = "") -> None:
        """Registers the logged model as a version of the registered model `name`, created where missing.

        Args:
            name: of the registered model.
            tags: of the version.
            description: of the version; as for `model`.
        """
        self._append("version", name=name, tags=dict(tags), description=description[:_TEXT])

    def finish(self, status: Literal["FINISHED", "FAILED", "KILLED"]) -> None:
        """Ends the run, and says how to deliver later what could not be delivered now."""
        self._retry_at = -math.inf
        self._append("status", status=status, time=_now_ms())

    def _append(self, kind: str, **fields: Any) -> None:
        record = {"kind": kind, **fields}
        # A file may have changed since, and a run may end more than once.
        if kind not in ("artifact", "status") and _gist(record) in self._said:
            return
        with self._writing:
            self._write(record)
        if not self._at_once or self._clock() < self._retry_at:
            return
        try:
            deliver(self._run_dir, self._console)
        except TrackingError as error:
            if kind == "status":
                self._console.warn(str(error))
            elif not self._wait_s:
                self._console.warn(f"The run goes on without MLflow and will try again by itself. {error}")
            self._wait_s = self._wait_s * 2 or _FIRST_WAIT_S
            self._retry_at = self._clock() + self._wait_s

    def _write(self, record: dict[str, Any]) -> None:
        with (self._run_dir / JOURNAL).open("a", encoding="utf-8") as journal:
            journal.write(json.dumps(record, allow_nan=False) + "\n")


@dataclass(frozen=True)
class Dataset:
    """Pictures that a run used.

    Attributes:
        name: what the data is called; MLflow has room for 500 characters.
        digest: of its content; MLflow has room for 36 characters.
        source_type: local for files on this machine, which MLflow can open again, or the kind of source, e.g. tfds.
        source: path or address of the data.
        profile: counts, e.g. of pictures per class.
    """

    name: str
    digest: str
    source_type: str
    source: str
    profile: Mapping[str, int]


# ------------------------------------------------------------------------------------------------------------ delivery


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


@dataclass(frozen=True)
class _State:
    run_id: str | None = None
    delivered: int = 0


@dataclass(frozen=True)
class _Target:
    client: Any
    run_id: str
    run_dir: Path
    console: Console


def deliver(run_dir: Path, console: Console) -> Delivery:
    """Brings to MLflow what it has not had of a run's journal.

    Raises:
        TrackingError: MLflow is away or refuses, or `run_dir` holds no journal.
    """
    journal = run_dir / JOURNAL
    if not journal.is_file():
        raise TrackingError(
            f"There is nothing to deliver: {run_dir} holds no {JOURNAL}. Give the folder of a run, as graft run prints "
            "it at its end: <output_dir>/<name>/<time>."
        )
    with _alone(journal):
        records = _read_journal(journal)
        header, state = records[0], _read_state(run_dir)
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
                write_atomically(run_dir / STATE, json.dumps(asdict(_State(run_id, delivered))))
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
    if (run_dir / PARTS).is_dir():
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


def address(run_dir: Path) -> tuple[str, str]:
    """The tracking URI and the experiment that a run's journal names. Raises TrackingError where there is none."""
    header = _read_journal(run_dir / JOURNAL)[0]
    return header["uri"], header["experiment"]


def redirect(run_dir: Path, uri: str) -> None:
    """Has a run that MLflow has not heard of delivered to another address, as the one it began with may be wrong."""
    journal = run_dir / JOURNAL
    if not journal.is_file():
        return
    with _alone(journal):
        lines = journal.read_text(encoding="utf-8").splitlines(keepends=True)
        if not lines or not lines[0].endswith("\n") or _read_state(run_dir).run_id is not None:
            return
        header = json.loads(lines[0])
        if header["uri"] == uri:
            return
        lines[0] = json.dumps(header | {"uri": uri}) + "\n"
        write_atomically(journal, "".join(lines), durable=True)
        journal.chmod(0o600)


def is_delivered(run_dir: Path) -> bool:
    """Whether MLflow has all that a run recorded."""
    journal = run_dir / JOURNAL
    # A run under way may be in the middle of a line.
    return not journal.is_file() or journal.read_bytes().count(b"\n") <= _read_state(run_dir).delivered


def remove_run(run_dir: Path) -> None:
    """Marks a run as deleted in MLflow; nothing happens where it never was there.

    Raises:
        TrackingError: MLflow is away or refuses.
    """
    state = _read_state(run_dir)
    if state.run_id is None:
        return
    uri = _read_journal(run_dir / JOURNAL)[0]["uri"]
    try:
        connect(uri).delete_run(state.run_id)
    except Exception as error:  # As in `deliver`.
        if getattr(error, "error_code", "") in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
            return  # Deleted in MLflow's own pages.
        raise TrackingError(
            f"MLflow at {without_password(uri)} did not remove the run {state.run_id}: {reason_of(error)}."
        ) from error


def pages(uri: str) -> dict[str, str]:
    """The newest experiments by name, at most five, each with the address of its runs behind that of MLflow's pages.

    Raises:
        Exception: whatever MLflow raises.
    """
    experiments = connect(uri).search_experiments(max_results=5, filter_string="name != 'Default'")
    return {experiment.name: notes.page(experiment.experiment_id) for experiment in experiments}


def _open_run(client: Any, header: dict[str, Any], console: Console) -> str:
    """The run that belongs to a journal: the one that an interrupted delivery created, or a new one."""
    experiment = client.get_experiment_by_name(header["experiment"])
    if experiment is None:
        experiment_id = client.create_experiment(
            header["experiment"], _artifact_location(header["uri"]), notes.EXPERIMENT
        )
    else:
        experiment_id = experiment.experiment_id
    if runs := client.search_runs([experiment_id], f"tags.`{_RUN_TAG}` = '{header['id']}'", max_results=1):
        return str(runs[0].info.run_id)
    tags = {_RUN_TAG: header["id"]}
    parent = Path(header.get("parent", ""))
    if "parent" in header and (parent / JOURNAL).is_file():  # Else it was removed.
        # Its own folder's lock is taken after this one's; a parent never waits for its parts.
        tags["mlflow.parentRunId"] = _read_state(parent).run_id or deliver(parent, console).run_id
    return str(client.create_run(experiment_id, header["time"], tags, header["name"]).info.run_id)


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
        for record in _read_journal(target.run_dir / JOURNAL)
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
    experiment_id = run.info.experiment_id
    found = client.search_logged_models([experiment_id], f"source_run_id = '{run_id}'")
    if found:
        model = found[0]
    else:
        model = client.create_logged_model(
            experiment_id, record.get("name", "model"), run_id, {notes.NOTE: record.get("description", "")},
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
    from pipeline.registry import register_logged_model

    found = target.client.search_logged_models(
        [target.client.get_run(target.run_id).info.experiment_id], f"source_run_id = '{target.run_id}'"
    )
    if found:  # Else the exported model had gone, which was said.
        register_logged_model(
            target.client, record["name"], target.run_id, found[0], record["tags"], record.get("description", "")
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


# --------------------------------------------------------------------------------------------------------------- files


def _read_journal(path: Path) -> list[dict[str, Any]]:
    # A run that was killed may have left half a line at the end.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    if not records:
        raise TrackingError(f"There is nothing to deliver: {path} is empty; the run ended as it began.")
    return records


def _mended(path: Path) -> list[dict[str, Any]]:
    """A journal's records, after cutting off the half line that a killed run may have left at its end."""
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def _numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no word for nan and the infinities."""
    assert all(re.fullmatch(r"[\w\-. /:]{1,250}", name) for name in values), f"MLflow refuses a name in {values}"
    return {name: float(x) if math.isfinite(x) else str(float(x)) for name, x in values.items()}


def _gist(record: dict[str, Any]) -> str:
    """What a record says: of figures, which ones at which step, for a repetition takes other seconds."""
    if record["kind"] == "metrics":
        return f"metrics {record['step']} {sorted(record['values'])}"
    return json.dumps({key: value for key, value in record.items() if key != "time"}, sort_keys=True)


def _read_state(run_dir: Path) -> _State:
    path = run_dir / STATE
    return _State(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else _State()


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Keeps other processes out that ask for the same file, which is created where missing."""
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


# ---------------------------------------------------------------------------------------------------------- small help


def _sqlite_uri(path: Path) -> str:
    """SQLAlchemy decodes percent signs in a database's path and reads a query behind a question mark."""
    return "sqlite:///" + re.sub("[%?#]", lambda match: quote(match[0]), str(path.absolute()))


def sqlite_path(uri: str) -> Path:
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def _artifact_location(uri: str) -> str | None:
    """Beside a SQLite database; a server, or another database, has its own default."""
    if not uri.startswith("sqlite:///"):
        return None
    return sqlite_path(uri).with_name("mlartifacts").as_uri()


def reason_of(error: Exception) -> str:
    """One line of what went wrong. The cause stands at the end of a long message where a connection failed."""
    text = (str(error).strip().splitlines() or [""])[0].rpartition("Caused by ")[2]
    text = re.sub(r"^\w+\([\"']?(.*?)[\"']?\)*$", r"\1", text)  # NewConnectionError('...')
    return without_password(text[:300].rstrip(".)\"'")) or type(error).__name__


def _batches(items: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    return (items[start : start + size] for start in range(0, len(items), size))


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
