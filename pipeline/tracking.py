"""What a run says to MLflow. No TensorFlow.

It is written into the run's journal first, and delivered from there: MLflow may be away.
"""

import base64
import json
import math
import re
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from pipeline import journal
from pipeline.console import Console
from pipeline.delivery import deliver
from pipeline.errors import TrackingError
from pipeline.mlflow_client import shorten_timeout, without_password

# So begin the names of figures that MLflow's pages show apart, as system metrics.
_SYSTEM = "system/"
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

_FIRST_WAIT_S = 30.0


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
        """Starts the journal of a run, or goes on with the one there is. What that says already is not said again, but
        for what may have changed since: tags, files and the status.

        Args:
            run_dir: the run's folder; it exists.
            uri: as `mlflow_client.resolve_uri` gives it.
            experiment: MLflow experiment, created where missing.
            run_name: the name MLflow shows.
            console: told once when MLflow is away.
            clock: seconds; paces the attempts.
            parent: the folder of the run that this one is a part of, such as a trial of a sweep; MLflow shows it below
                that one. It has a journal already.
            at_once: whether each line is delivered when it is written; else the caller calls `deliver`.
        """
        shorten_timeout()  # Training shall not wait; `graft sync` has the time.
        self._run_dir = run_dir.resolve()
        self._console = console
        self._clock = clock
        self._at_once = at_once
        self._wait_s = 0.0
        self._retry_at = -math.inf
        self._writing = threading.Lock()
        earlier = journal.begin(self._run_dir)
        self._said = {_gist(record) for record in earlier}
        samples = [r["step"] for r in earlier if r["kind"] == "metrics" and next(iter(r["values"])).startswith(_SYSTEM)]
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
        return journal.State.read(self._run_dir).run_id

    def params(self, flat: Mapping[str, Any]) -> None:
        """Logs parameters, as text without passwords; what MLflow has no room for, beyond 6000 characters, is cut."""
        self._append("params", values={key: without_password(str(value))[:6000] for key, value in flat.items()})

    def tags(self, tags: Mapping[str, Any]) -> None:
        """Sets tags, as text of up to 5000 characters; an earlier value is replaced."""
        self._append("tags", values={key: str(value)[:_TEXT] for key, value in tags.items()})

    def metrics(self, values: Mapping[str, float], step: int, dataset: Dataset | None = None) -> None:
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
            numbers = _numbers({f"{_SYSTEM}{name}": value for name, value in values.items()})
            journal.append(
                self._run_dir, {"kind": "metrics", "values": numbers, "step": self._samples, "time": _now_ms()}
            )
            self._samples += 1

    def dataset(self, dataset: Dataset, context: str) -> None:
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
        # A tag or a file may have changed since, and changed back; a run may end more than once.
        if kind not in ("tags", "artifact", "status") and _gist(record) in self._said:
            return
        with self._writing:
            journal.append(self._run_dir, record)
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


def _numbers(values: Mapping[str, float]) -> dict[str, float | str]:
    """JSON has no word for nan and the infinities."""
    assert all(re.fullmatch(r"[\w\-. /:]{1,250}", name) for name in values), f"MLflow refuses a name in {values}"
    return {name: float(x) if math.isfinite(x) else str(float(x)) for name, x in values.items()}


def _gist(record: dict[str, Any]) -> str:
    """What a record says: of figures, which ones at which step, for a repetition takes other seconds."""
    if record["kind"] == "metrics":
        return f"metrics {record['step']} {sorted(record['values'])}"
    return json.dumps({key: value for key, value in record.items() if key != "time"}, sort_keys=True)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
