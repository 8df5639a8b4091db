"""What the console shows: on terminals of several kinds, where there is none, and in a run's log."""

import io
import os
import re
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.pictures import screen, session
from pipeline.config_file import parse
from pipeline.console import Console, _rate
from pipeline.errors import DataError
from pipeline.mlflow_client import connect
from pipeline.recording import recorded

TRAINING = """
import sys, time
from pipeline.console import Console

console = Console(quiet="--quiet" in sys.argv)
console.say("reads päcks of [red]:bug:[/red]")
with console.bar("reading", 3) as advance:
    for _ in range(3):
        advance()
with console.bar("  epoch 1/2", 2 * 8, keep=False) as advance:
    for epoch in (1, 2):
        for batch in range(8):
            time.sleep(0.06)
            advance(1, f"loss {1 / (1 + batch):.2f}, accuracy 0.50", f"  epoch {epoch}/2")
        cells = {"epoch": f"{epoch}/2", "loss": "0.125", "accuracy": "0.500", "validation\\nloss": "0.250",
                 "validation\\naccuracy": "0.75", "best": "*", "images/s": f"{10 ** epoch:,}"}
        console.row(cells, f"  epoch {epoch}/2: loss 0.125, accuracy 0.500; {10 ** epoch} images/s")
console.warn("the disk is nearly full")
print("result")
"""
PLAIN = """\
reads päcks of [red]:bug:[/red]
reading: # images/s
  epoch 1/2: loss 0.125, accuracy 0.500; 10 images/s
  epoch 2/2: loss 0.125, accuracy 0.500; 100 images/s
warning: the disk is nearly full
"""
COLOUR = re.compile(r"\x1b\[[\d;]*m")
MOVE = re.compile(r"\r(?!\n)|\x1b\[[\d;?]*[A-Zac-ln-z]")


def piped(*arguments, **environment):
    """Of a training without a terminal: what is on standard output, and on standard error."""
    settings = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "FORCE_COLOR")}
    result = subprocess.run(
        [sys.executable, "-c", TRAINING, *arguments],
        capture_output=True, check=True, text=True, encoding="utf-8", env=settings | environment,
    )  # fmt: skip
    return result.stdout, re.sub(r"[\d,]+ images/s$", "# images/s", result.stderr, count=1, flags=re.MULTILINE)


def on_terminal(tmp_path, columns=80, *arguments, **environment):
    """What a training writes to a terminal, and what is on it at the end without its colours."""
    code, written = session([sys.executable, "-c", TRAINING, *arguments], columns, tmp_path, **environment)
    assert code == 0, written
    return written, [COLOUR.sub("", line) for line in screen(written)]


def frames(written):
    """The bars that were shown, one after the other."""
    shown = [COLOUR.sub("", frame).split("\r")[0] for frame in re.split(r"\r(?:\x1b\[2K)+|\n", written)]
    return [frame for frame in shown if "left" in frame]


def test_without_a_terminal_each_step_is_one_plain_line():
    assert piped() == ("result\n", PLAIN)


def test_colours_are_forced_but_no_terminal_is():
    out, error = piped(FORCE_COLOR="1")
    assert out == "result\n"
    assert "\x1b[33mwarning:\x1b[0m" in error
    assert not MOVE.search(error)
    assert COLOUR.sub("", error) == PLAIN


@pytest.mark.parametrize("terminal", [True, False])
def test_quiet_shows_warnings_and_the_result_alone(terminal, tmp_path):
    if terminal:
        _, shown = on_terminal(tmp_path, 80, "--quiet")
        assert shown == ["warning: the disk is nearly full", "result", ""]
    else:
        assert piped("--quiet") == ("result\n", "warning: the disk is nearly full\n")


@pytest.mark.parametrize("columns", [40, 60, 80, 120])
def test_on_a_terminal_bars_move_and_epochs_are_a_table(columns, tmp_path):
    written, shown = on_terminal(tmp_path, columns)
    assert shown[0] == "reads päcks of [red]:bug:[/red]"
    assert re.fullmatch(r"reading: [\d,]+ images/s", shown[1])
    table = [
        "                            validation  validation",
        "   epoch    loss  accuracy        loss    accuracy    best  images/s",
        "     1/2   0.125     0.500       0.250        0.75       *        10",
        "     2/2   0.125     0.500       0.250        0.75       *       100",
    ]
    whole = {40: 38, 60: 58, 80: 68, 120: 68}[columns]  # Up to the end of a column.
    assert shown[2:-3] == [line[:whole] for line in table]
    assert shown[-3:] == ["warning: the disk is nearly full", "result", ""]
    assert max(map(len, frames(written))) <= columns
    whole_line = (
        r"  epoch 2/2 [━╸╺]+  (\d+/16  )?[\d.]+ images/s  0:0\d left  [\d.]+ [MG]B  loss 0\.\d\d, accuracy 0\.50"
    )
    if columns >= 80:
        assert any(re.fullmatch(whole_line, frame) for frame in frames(written)), frames(written)
    assert any(re.search(r"epoch 1/2 .* 0:0\d left", frame) for frame in frames(written))


def test_no_color(tmp_path):
    written, shown = on_terminal(tmp_path, NO_COLOR="1")
    assert not re.search(r"\x1b\[[\d;]*(3[0-7]|9[0-7]|38)", written)
    assert frames(written)
    assert shown[-3] == "warning: the disk is nearly full"


def test_a_dumb_terminal_is_plain(tmp_path):
    written, _ = on_terminal(tmp_path, TERM="dumb")
    assert not COLOUR.search(written)
    assert not MOVE.search(written)
    assert re.sub(r"reading: [\d,]+", "reading: #", written.replace("\r\n", "\n")) == PLAIN + "result\n"


def test_an_encoding_without_umlauts(tmp_path):
    written, shown = on_terminal(tmp_path, PYTHONIOENCODING="ascii")
    assert written.isascii()
    assert shown[0] == r"reads p\xe4cks of [red]:bug:[/red]"
    assert any("---" in frame and "images/s" in frame for frame in frames(written))


def test_a_bar_in_a_bar_and_lines_between(tmp_path):
    program = """
import time
from pipeline.console import Console
console = Console()
with console.bar("trials", 2, "trials") as trials:
    for trial in (1, 2):
        with console.bar("epochs", 2, keep=False) as epochs:
            for _ in range(2):
                time.sleep(0.3)
                epochs()
        console.say(f"trial {trial} is over")
        trials()
"""
    code, written = session([sys.executable, "-c", program], 80, tmp_path)
    assert code == 0, written
    shown = [COLOUR.sub("", line) for line in screen(written)]
    assert shown[:2] == ["trial 1 is over", "trial 2 is over"]
    assert re.fullmatch(r"trials: 1\.\d trials/s", shown[2])
    assert shown[3:] == [""]


def test_what_fails_leaves_no_bar(tmp_path):
    program = """
import time
from pipeline.console import Console
with Console().bar("reading", 9) as advance:
    advance()
    time.sleep(0.3)
    raise SystemExit(3)
"""
    code, written = session([sys.executable, "-c", program], 80, tmp_path)
    assert code == 3
    assert any("reading" in frame for frame in frames(written))
    assert not any(screen(written))


@pytest.fixture
def _in_tokyo(monkeypatch):
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("_in_tokyo")
@pytest.mark.parametrize("quiet", [True, False])
def test_the_log_has_everything_in_words_and_utc(quiet, tmp_path, capsys):
    console, path = Console(quiet), tmp_path / "run.log"
    path.write_text("before\n")
    console.say("too early")
    with console.also_to(path):
        console.say("päcks of [red]:bug:[/red]")
        with console.bar("reading", 3) as advance:
            advance(3, "2 of 3 known")
        console.row({"epoch": "1/2"}, "epoch 1/2: fine")
        console.warn("nearly full")
        console.log("for the log alone")
    console.say("too late")

    before, *lines = path.read_text(encoding="utf-8").splitlines()
    assert before == "before"
    times, texts = zip(*(line.split(" ", 1) for line in lines), strict=True)
    texts = [re.sub("[\\d,]+ images", "# images", text) for text in texts]
    assert texts == [
        "päcks of [red]:bug:[/red]", "reading: # images/s, 2 of 3 known", "epoch 1/2: fine", "warning: nearly full",
        "for the log alone",
    ]  # fmt: skip
    for moment in times:
        assert abs((datetime.now(UTC) - datetime.strptime(moment, "%Y-%m-%dT%H:%M:%S%z")).total_seconds()) < 60
    assert "for the log alone" not in capsys.readouterr().err


def test_two_logs_at_once(tmp_path):
    console = Console(quiet=True)
    with console.also_to(tmp_path / "sweep.log"):
        with console.also_to(tmp_path / "trial.log"):
            console.say("both")
        console.say("one")
    assert (tmp_path / "sweep.log").read_text().count("\n") == 2
    assert (tmp_path / "trial.log").read_text().endswith("Z both\n")


@given(st.text(st.characters(exclude_categories=["Cc"])))
def test_words_are_shown_as_they_are(text):
    before, sys.stderr = sys.stderr, io.StringIO()
    try:
        console = Console()
        console.say(text)
        console.warn(text)
        console.error(text)
        with console.bar(text, None) as advance:
            advance(0, text)
        console.row({text: text}, text)
        shown = sys.stderr.getvalue()
    finally:
        sys.stderr = before
    assert shown == f"{text}\nwarning: {text}\nerror: {text}\n{text}: {text or 'done'}\n{text}\n"


def a_config(here, uri="http://127.0.0.1:9"):
    return parse(
        {
            "name": "ants",
            "data": {"source": "digits"},
            "backbone": {"name": "lenet5", "weights": "none"},
            "tracking": {"uri": uri},
            "output_dir": str(here / "runs"),
            "export": {"dir": str(here / "export")},
        }
    )


@pytest.mark.parametrize(
    ("error", "end"),
    [
        (DataError("No ants. Add some."), "Z failed: No ants. Add some."),
        (KeyboardInterrupt(), "Z killed: stopped"),
        (ZeroDivisionError("ours"), "ZeroDivisionError: ours"),
    ],
)
def test_a_runs_log_ends_with_how_it_ended_and_is_gone_on_with(error, end, tmp_path):
    config = a_config(tmp_path)
    with pytest.raises(type(error)), recorded(config, Console(quiet=True)) as recording:
        raise error
    log = recording.run_dir / "run.log"
    first = log.read_text()
    assert f"Z run {recording.run_dir}\n" in first
    assert f"{end}\n" in first
    assert (f"--resume {recording.run_dir}\n" in first) == isinstance(error, KeyboardInterrupt)
    assert ("Traceback" in first) == isinstance(error, ZeroDivisionError)

    with pytest.raises(DataError), recorded(config, Console(quiet=True), recording.run_dir):
        raise DataError("Still none.")
    assert log.read_text().startswith(first)
    assert log.read_text().count(f"Z run {recording.run_dir}\n") == 2


@pytest.mark.slow
def test_mlflow_keeps_the_log_of_a_run_that_failed(tmp_path):
    config = a_config(tmp_path, f"sqlite:///{tmp_path}/mlflow.db")
    with pytest.raises(DataError), recorded(config, Console(quiet=True)) as recording:
        raise DataError("No ants. Add some.")
    kept = connect(config.tracking.uri).download_artifacts(recording.record.mlflow_run_id, "run.log", str(tmp_path))
    assert "Z failed: No ants. Add some.\n" in Path(kept).read_text()


def test_a_slow_rate_is_told_as_the_time_that_one_takes():
    assert _rate(0.027, "seeds") == "37 s/seed"
    assert _rate(1.5, "trials") == "1.5 trials/s"
