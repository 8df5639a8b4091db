"""What a run has to say to MLflow, on disk; MLflow is not asked."""

import json
import stat
import subprocess
import sys
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline import journal
from pipeline.errors import TrackingError
from pipeline.journal import JOURNAL, STATE, State
from tests.conftest import ROOT

HEADER = {"kind": "run", "id": "1" * 32, "uri": "http://me:secret@here", "experiment": "insects", "name": "ants"}
REDIRECT = """
import sys
from pathlib import Path
from pipeline import journal
print("ready", flush=True)
for number in range(500):
    journal.redirect(Path(sys.argv[1]), f"http://there/{number}")
"""


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
    journal.redirect(run_dir, "http://me:secret@there")
    assert journal.read(run_dir) == [HEADER | {"uri": "http://me:secret@there"}, {"kind": "tags", "values": {}}]
    assert path.read_text().endswith('{"ki')
    assert mode(run_dir / STATE) == 0o600
    journal.redirect(run_dir, "http://there")
    assert journal.address(run_dir) == ("http://there", "insects")
    replace(State.read(run_dir), run_id="9" * 32, delivered=1).write(run_dir)
    journal.redirect(run_dir, "http://elsewhere")
    assert journal.address(run_dir)[0] == "http://there"


def test_a_run_may_write_on_while_others_send_it_elsewhere(run_dir: Path) -> None:
    journal.begin(run_dir)
    journal.append(run_dir, HEADER)
    command = [sys.executable, "-c", REDIRECT, str(run_dir)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=ROOT) as other:
        assert other.stdout is not None
        written = 0
        other.stdout.readline()
        while other.poll() is None:
            journal.append(run_dir, {"kind": "metrics", "step": written})
            written += 1
            assert journal.address(run_dir)[1] == "insects"
    assert other.returncode == 0
    header, *records = journal.read(run_dir)
    assert header["uri"] == "http://there/499"
    assert [record["step"] for record in records] == list(range(written))


def test_a_run_does_not_wait_for_its_delivery(run_dir: Path) -> None:
    written(run_dir, HEADER)
    appending = threading.Thread(target=journal.append, args=(run_dir, {"kind": "status"}))
    with journal.locked(run_dir):
        appending.start()
        appending.join(timeout=60)
        assert not appending.is_alive()
    assert journal.read(run_dir) == [HEADER, {"kind": "status"}]


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
