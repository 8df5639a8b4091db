"""What a run has to say to MLflow, on disk; MLflow is not asked."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest

from pipeline import journal
from pipeline.errors import TrackingError
from pipeline.journal import JOURNAL, State

HEADER = {"kind": "run", "id": "1" * 32, "uri": "http://me:secret@here", "experiment": "insects", "name": "ants"}


def written(run_dir: Path, *records: dict[str, Any], rest: str = "") -> Path:
    """A journal of these records; `rest` is half a line."""
    path = run_dir / JOURNAL
    path.write_text("".join(json.dumps(record) + "\n" for record in records) + rest)
    return path


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_what_is_appended_is_read(run_dir: Path) -> None:
    assert journal.begin(run_dir) == []
    assert mode(run_dir / JOURNAL) == 0o600, "its address may hold a password"
    records = [HEADER, {"kind": "tags", "values": {"who": "ä\nb"}}]
    for record in records:
        journal.append(run_dir, record)
    assert journal.read(run_dir) == records
    assert journal.begin(run_dir) == records
    assert journal.address(run_dir) == ("http://me:secret@here", "insects")


def test_half_a_line_is_cut_off_by_whoever_writes_on(run_dir: Path) -> None:
    path = written(run_dir, HEADER, rest='{"kind": "met')
    assert journal.read(run_dir) == [HEADER]
    assert path.read_text().endswith("met"), "who reads changes nothing"
    assert journal.begin(run_dir) == [HEADER]
    journal.append(run_dir, {"kind": "status"})
    assert journal.read(run_dir) == [HEADER, {"kind": "status"}]


@pytest.mark.parametrize("ask", [journal.read, journal.address])
def test_a_folder_without_a_journal(run_dir: Path, ask: Any) -> None:
    with pytest.raises(TrackingError, match=r"nothing to deliver: .* holds no tracking\.jsonl\. Give the folder"):
        ask(run_dir)
    written(run_dir, rest='{"kind": "r')
    with pytest.raises(TrackingError, match=r"tracking\.jsonl is empty; the run ended as it began"):
        ask(run_dir)


def test_a_run_that_mlflow_has_not_heard_of_can_be_sent_elsewhere(run_dir: Path) -> None:
    path = written(run_dir, HEADER, {"kind": "tags", "values": {}}, rest='{"ki')
    path.chmod(0o600)
    journal.redirect(run_dir, "http://there")
    assert journal.read(run_dir) == [HEADER | {"uri": "http://there"}, {"kind": "tags", "values": {}}]
    assert path.read_text().endswith('{"ki')
    assert mode(path) == 0o600
    State("9" * 32, 1).write(run_dir)
    journal.redirect(run_dir, "http://elsewhere")
    assert journal.address(run_dir)[0] == "http://there"


def test_there_may_be_nothing_to_send_elsewhere(run_dir: Path) -> None:
    journal.redirect(run_dir, "http://there")
    assert list(run_dir.iterdir()) == []
    path = written(run_dir, rest=json.dumps(HEADER))
    journal.redirect(run_dir, "http://there")
    assert path.read_text() == json.dumps(HEADER)


def test_what_was_delivered_is_known(run_dir: Path) -> None:
    assert journal.is_delivered(run_dir), "there is nothing to deliver"
    written(run_dir, HEADER, {"kind": "status"}, rest='{"ki')
    assert State.read(run_dir) == State(None, 0)
    assert not journal.is_delivered(run_dir)
    for delivered in (1, 2):
        State("9" * 32, delivered).write(run_dir)
        assert State.read(run_dir) == State("9" * 32, delivered)
        assert journal.is_delivered(run_dir) == (delivered == 2)
