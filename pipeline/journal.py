"""What a run has to say to MLflow, on disk: `run_dir/tracking.jsonl`, one JSON object a line. No MLflow, no TensorFlow.

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

Times are milliseconds since 1970. How far the journal was delivered, and where to if not where its first line says,
stands in `run_dir/tracking.state.json`. Only the run writes the journal, and waits for nobody; the state is written by
whoever holds the journal's lock.
"""

import json
import os
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Self

from pipeline.artifacts import locked_file, write_atomically
from pipeline.errors import TrackingError

JOURNAL = "tracking.jsonl"
STATE = "tracking.state.json"
PARTS = "trials"
"""In a sweep's folder: the folders of its trials, whose runs are parts of the sweep's."""


@dataclass(frozen=True)
class State:
    """How far a journal was delivered.

    Attributes:
        run_id: MLflow's id of the run; None while MLflow has not been reached.
        delivered: lines that MLflow has.
        uri: where it is delivered; None for where its first line says.
    """

    run_id: str | None = None
    delivered: int = 0
    uri: str | None = None

    @classmethod
    def read(cls, run_dir: Path) -> Self:
        """Of a run; nothing was delivered where it says nothing."""
        path = run_dir / STATE
        return cls(**json.loads(path.read_text(encoding="utf-8"))) if path.exists() else cls()

    def write(self, run_dir: Path) -> None:
        write_atomically(run_dir / STATE, json.dumps(asdict(self)), mode=0o600)  # A URI may hold a password.


def begin(run_dir: Path) -> list[dict[str, Any]]:
    """Makes a run's journal, or goes on with the one there is, without the half line that a killed run may have left.
    Gives the records in it."""
    path = run_dir / JOURNAL
    path.touch(mode=0o600)  # A tracking URI may hold a password.
    text = path.read_bytes()
    whole = text[: text.rfind(b"\n") + 1]
    if len(whole) < len(text):
        os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append(run_dir: Path, record: dict[str, Any]) -> None:
    """Adds a line to a journal that was begun."""
    with (run_dir / JOURNAL).open("a", encoding="utf-8") as file:
        file.write(json.dumps(record, allow_nan=False) + "\n")


def read(run_dir: Path) -> list[dict[str, Any]]:
    """A run's records, the header first, with the address that they are delivered to.

    Raises:
        TrackingError: there is no journal, or no record in it.
    """
    path = _journal(run_dir)
    # A run that is under way, or was killed, may have written half of the last line.
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    if not records:
        raise TrackingError(f"There is nothing to deliver: {path} is empty; the run ended as it began.")
    uri = State.read(run_dir).uri
    return records if uri is None else [records[0] | {"uri": uri}, *records[1:]]


def locked(run_dir: Path) -> AbstractContextManager[None]:
    """Keeps the state of a run to one delivery at a time. Raises TrackingError where there is no journal."""
    return locked_file(_journal(run_dir))


def address(run_dir: Path) -> tuple[str, str]:
    """The tracking URI and the experiment that a run's journal names. Raises TrackingError, as `read`."""
    header = read(run_dir)[0]
    return header["uri"], header["experiment"]


def redirect(run_dir: Path, uri: str) -> None:
    """Has a run that MLflow has not heard of delivered to another address, as the one it began with may be wrong."""
    if not (run_dir / JOURNAL).is_file():
        return
    with locked(run_dir):
        state = State.read(run_dir)
        if state.run_id is None:
            replace(state, uri=uri).write(run_dir)


def is_delivered(run_dir: Path) -> bool:
    """Whether MLflow has all that a run recorded."""
    path = run_dir / JOURNAL
    # A run under way may be in the middle of a line.
    return not path.is_file() or path.read_bytes().count(b"\n") <= State.read(run_dir).delivered


def _journal(run_dir: Path) -> Path:
    path = run_dir / JOURNAL
    if not path.is_file():
        raise TrackingError(
            f"There is nothing to deliver: {run_dir} holds no {JOURNAL}. Give the folder of a run, as graft run prints "
            "it at its end: <output_dir>/<name>/<time>."
        )
    return path
