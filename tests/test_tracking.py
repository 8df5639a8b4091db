"""Real stores: SQLite in a temporary folder, and MLflow's own server where a server has to go away and come back."""

import base64
import contextlib
import json
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import journal
from pipeline.console import Console
from pipeline.delivery import deliver
from pipeline.errors import TrackingError
from pipeline.journal import JOURNAL, STATE
from pipeline.mlflow_client import connect, experiment_pages
from pipeline.tracking import Tracker
from tests.tracked import PICTURES, assert_delivered_once, contents, picture, whole_run


def test_mlflow_shows_what_the_run_said(run_dir: Path, uri: str, export_dir: Path) -> None:
    tracker = whole_run(run_dir, uri, export_dir)

    assert_delivered_once(run_dir, uri)
    run = connect(uri).get_run(tracker.run_id)
    assert run.info.artifact_uri.startswith((run_dir.parent / "mlartifacts").as_uri())
    assert run.info.start_time <= run.info.end_time <= time.time() * 1000


def test_dataset_keeps_source_profile_and_context(run_dir: Path, uri: str) -> None:
    from mlflow.types import Schema

    tracker = Tracker(run_dir, uri, "insects", "ants", Console())
    pictures = replace(PICTURES, digest="0123456789abcdef" * 4, source="/pictures/a b", profile={"pictures": 244})
    tracker.dataset(pictures, "training")

    (used,) = connect(uri).get_run(tracker.run_id).inputs.dataset_inputs
    assert used.dataset.digest == ("0123456789abcdef" * 4)[:36]
    assert used.dataset.source_type == "local"
    assert json.loads(used.dataset.source) == {"uri": "/pictures/a b"}
    assert json.loads(used.dataset.profile) == {"pictures": 244}
    schema = Schema.from_json(json.dumps(json.loads(used.dataset.schema)["mlflow_colspec"]))
    assert [(column.name, column.type.name) for column in schema] == [("image", "binary"), ("label", "string")]
    assert {tag.key: tag.value for tag in used.tags} == {"mlflow.data.context": "training"}


def test_a_model_shows_its_figures_the_data_they_are_of_and_the_parameters_once(
    run_dir: Path, uri: str, export_dir: Path
) -> None:
    tracker = Tracker(run_dir, uri, "insects", "run", Console())
    tracker.params({"seed": 0})
    tracker.metrics({"train/loss": 1.0}, 1)
    tracker.dataset(PICTURES, "test")
    tracker.metrics({"test/accuracy": 0.75, "test/loss": math.nan}, 0, PICTURES)
    tracker.model("ants", export_dir, picture(), "Knows *two* insects.")
    tracker.version("ants", {}, "Knows two insects.")
    tracker.finish("FINISHED")
    (run_dir / STATE).unlink()
    deliver(run_dir, Console())

    client = connect(uri)
    (model,) = client.search_logged_models(["1"])
    assert (model.name, model.params, model.tags["mlflow.note.content"]) == (
        "ants",
        {"seed": "0"},
        "Knows *two* insects.",
    )
    figures = {figure.key: (figure.value, figure.dataset_name, figure.dataset_digest) for figure in model.metrics}
    assert figures["test/accuracy"] == (0.75, "ants", "d" * 12)
    assert set(figures) == {"test/accuracy", "test/loss"}
    assert [m.value for m in client.get_metric_history(tracker.run_id, "test/accuracy")] == [0.75]
    assert client.get_model_version("ants", "1").description == "Knows two insects."


def test_what_the_machine_does_goes_with_what_is_said_next_and_goes_on_being_counted(run_dir: Path, uri: str) -> None:
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())

    def sampled() -> list[int]:
        return [m.step for m in connect(uri).get_metric_history(tracker.run_id, "system/cpu_utilization_percentage")]

    tracker.sample({"cpu_utilization_percentage": 50.0})
    tracker.sample({"cpu_utilization_percentage": 50.0})
    assert sampled() == []
    tracker.metrics({"loss": 1.0}, 1)
    assert sampled() == [0, 1]
    tracker.finish("KILLED")

    again = Tracker(run_dir, uri, "insects", "ants", Console())
    again.sample({"cpu_utilization_percentage": 50.0})
    again.finish("FINISHED")
    assert sampled() == [0, 1, 2]


def test_threads_may_speak_at_the_same_time(run_dir: Path, uri: str) -> None:
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())

    def speak(number: int) -> None:
        for step in range(25):
            if number:
                tracker.sample({f"figure_{i}": step for i in range(500)})  # more than a file takes at once
            else:
                tracker.metrics({"loss": 1.0}, step)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(speak, range(4)))
    tracker.finish("FINISHED")

    lines = [json.loads(line) for line in (run_dir / JOURNAL).read_text().splitlines()]
    assert sorted(line["step"] for line in lines if "system/figure_0" in line.get("values", ())) == list(range(75))
    client = connect(uri)
    assert [m.step for m in client.get_metric_history(tracker.run_id, "loss")] == list(range(25))
    assert {m.step for m in client.get_metric_history(tracker.run_id, "system/figure_499")} == set(range(75))


def test_a_run_that_goes_on_says_again_only_what_may_have_changed(run_dir: Path, uri: str, export_dir: Path) -> None:
    whole_run(run_dir, uri, export_dir)
    before = journal.read(run_dir)
    whole_run(run_dir, uri, export_dir)

    again = journal.read(run_dir)[len(before) :]
    assert [record["kind"] for record in again] == ["status", "tags", "artifact", "status"]
    assert_delivered_once(run_dir, uri)


def test_a_run_that_goes_on_says_what_is_new(run_dir: Path, uri: str) -> None:
    for value in ("a", "b"):
        tracker = Tracker(run_dir, uri, "insects", "ants", Console())
        tracker.params({value: value})
        tracker.metrics({value: 1.0}, 1)
        tracker.metrics({"loss": 2.0}, ord(value))
        tracker.dataset(PICTURES, value)
    client = connect(uri)
    run = client.get_run(tracker.run_id)
    assert run.data.params == {"a": "a", "b": "b"}
    assert run.data.metrics.keys() == {"a", "b", "loss"}
    assert [m.step for m in client.get_metric_history(tracker.run_id, "loss")] == [ord("a"), ord("b")]
    assert len(run.inputs.dataset_inputs) == 1
    assert journal.read(run_dir)[-1]["context"] == "b"


def test_figures_of_a_step_are_those_that_were_said_first(run_dir: Path, uri: str) -> None:
    for loss in (1.0, 2.0):
        tracker = Tracker(run_dir, uri, "insects", "ants", Console())
        tracker.metrics({"loss": loss}, 1)
    assert [m.value for m in connect(uri).get_metric_history(tracker.run_id, "loss")] == [1.0]


def test_a_tag_has_the_value_that_was_said_last_however_often_a_run_goes_on(run_dir: Path, uri: str) -> None:
    for words in ("killed", "failed", "killed"):
        tracker = Tracker(run_dir, uri, "insects", "ants", Console())
        tracker.tags({"mlflow.note.content": words, "graft.code_commit": "abc"})
        tags = connect(uri).get_run(tracker.run_id).data.tags
        assert (tags["mlflow.note.content"], tags["graft.code_commit"]) == (words, "abc")


def test_a_part_of_a_run_is_shown_below_it_whichever_is_delivered_first(run_dir: Path, uri: str) -> None:
    whole = Tracker(run_dir, uri, "insects", "sweep", Console(), at_once=False)
    (run_dir / "part").mkdir()
    part = Tracker(run_dir / "part", uri, "insects", "trial", Console(), parent=run_dir)

    assert part.run_id is not None
    assert connect(uri).get_run(part.run_id).data.tags["mlflow.parentRunId"] == whole.run_id
    whole.finish("FINISHED")
    deliver(run_dir, Console())
    assert sorted(run.info.run_name for run in connect(uri).search_runs(["1"])) == ["sweep", "trial"]


def test_a_part_outlives_the_run_that_it_was_part_of(run_dir: Path, uri: str) -> None:
    Tracker(run_dir, uri, "insects", "sweep", Console(), at_once=False)
    (run_dir.parent / "part").mkdir()
    part = Tracker(run_dir.parent / "part", uri, "insects", "trial", Console(), parent=run_dir, at_once=False)
    shutil.rmtree(run_dir)
    deliver(run_dir.parent / "part", Console())
    assert "mlflow.parentRunId" not in connect(uri).get_run(part.run_id).data.tags


def test_an_experiment_describes_itself_and_has_a_view_to_compare_runs_by(run_dir: Path, uri: str) -> None:
    Tracker(run_dir, uri, "insects", "ants", Console())

    (page,) = experiment_pages(uri).values()
    key = page.rpartition("viewStateShareKey=")[2]
    experiment = connect(uri).get_experiment_by_name("insects")
    assert f"/experiments/{experiment.experiment_id}/runs?" in page
    assert "| test/accuracy | 0 to 1 |" in experiment.tags["mlflow.note.content"]
    view = json.loads(experiment.tags[f"mlflow.sharedViewState.{key}"])
    assert view["name"] in experiment.tags["mlflow.note.content"]
    state = json.loads(zlib.decompress(base64.b64decode(view["state"].removeprefix("deflate;"))))
    assert {"metrics.`test/accuracy`", "tags.`graft.gate`"} < set(state["selectedColumns"])
    assert max(map(len, experiment.tags.values())) <= 5000, "PostgreSQL has no room for more"


def test_what_somebody_wrote_about_an_experiment_stays(run_dir: Path, uri: str) -> None:
    client = connect(uri)
    client.create_experiment("insects", tags={"mlflow.note.content": "mine"})
    Tracker(run_dir, uri, "insects", "ants", Console())
    assert client.get_experiment_by_name("insects").tags["mlflow.note.content"] == "mine"


def test_many_and_long_params_fit(run_dir: Path, uri: str) -> None:
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())
    many = {f"head.{i}": None for i in range(250)}
    tracker.params(many | {"data.classes": ["bee"] * 3000, "tracking.uri": "http://user:secret@host"})

    params = connect(uri).get_run(tracker.run_id).data.params
    assert len(params) == 252
    assert params["tracking.uri"] == "http://user:***@host"
    assert params["head.7"] == "None"
    assert params["data.classes"] == str(["bee"] * 3000)[:6000]


def test_numbers_that_are_not_finite(run_dir: Path, uri: str) -> None:
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())
    tracker.metrics({"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1e-300}, step=0)

    metrics = connect(uri).get_run(tracker.run_id).data.metrics
    assert math.isnan(metrics["a"])
    assert (metrics["b"], metrics["c"], metrics["d"]) == (sys.float_info.max, -sys.float_info.max, 1e-300)
    assert "NaN" not in (run_dir / JOURNAL).read_text(), "strict JSON"


def test_artifacts_go_where_they_are_told(run_dir: Path, uri: str) -> None:
    (run_dir / "plots").mkdir()
    (run_dir / "plots" / "loss.png").write_bytes(picture())
    (run_dir / "report.json").write_text("{}")
    tracker = Tracker(run_dir, uri, "insects", "ants", Console())
    tracker.artifact(run_dir / "plots")
    tracker.artifact(run_dir / "plots" / "loss.png", "pictures")
    tracker.artifact(run_dir / "report.json")

    client = connect(uri)
    found = {
        file.path
        for folder in (None, "plots", "pictures")
        for file in client.list_artifacts(tracker.run_id, folder)
        if not file.is_dir
    }
    assert found == {"plots/loss.png", "pictures/loss.png", "report.json"}


# ------------------------------------------------------------------------------------------------------- server away


@pytest.fixture
def dead_port() -> Iterator[tuple[int, list[int]]]:
    """A port that hangs up on everyone, and who called it so far."""
    calls: list[int] = []
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def hang_up() -> None:
            with contextlib.suppress(OSError):
                while True:
                    caller, _ = listener.accept()
                    calls.append(caller.getpeername()[1])
                    caller.close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        yield listener.getsockname()[1], calls
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_a_server_that_is_away_neither_stops_nor_slows_the_run(
    run_dir: Path, export_dir: Path, dead_port: tuple[int, list[int]], capsys: pytest.CaptureFixture[str]
) -> None:
    port, calls = dead_port
    now = [0.0]
    tracker = Tracker(
        run_dir, f"http://user:secret@127.0.0.1:{port}", "insects", "ants", Console(), clock=lambda: now[0]
    )
    assert tracker.run_id is None
    for step in range(100):  # a second each
        now[0] += 1
        tracker.metrics({"loss": 1.0}, step)
    during = capsys.readouterr().err
    assert during.count("warning:") == 1
    assert "The run goes on" in during
    assert len(calls) == 3, "at 0, 30 and 90 seconds"

    tracker.finish("FINISHED")

    assert len(calls) == 4
    after = capsys.readouterr().err
    assert after.count("warning:") == 1
    assert f"graft sync {run_dir}" in after
    assert "secret" not in during + after
    with pytest.raises(TrackingError, match=r"MLflow at http://user:\*\*\*@127.0.0.1:\d+ did not take all records"):
        deliver(run_dir, Console())


@contextlib.contextmanager
def mlflow_server(folder: Path, port: int) -> Iterator[str]:
    uri = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", f"sqlite:///{folder}/mlflow.db", "--artifacts-destination", f"{folder}/artifacts"]
    with (folder / "server.log").open("ab") as log:
        server = subprocess.Popen(
            [*command, *stores],
            stdout=log,
            stderr=log,
            cwd=folder,
            env=os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"},
            start_new_session=True,
        )
        try:
            deadline = time.monotonic() + 60
            while not _healthy(uri):
                assert server.poll() is None, (folder / "server.log").read_text()
                assert time.monotonic() < deadline, "the server did not start in a minute"
                time.sleep(0.1)
            yield uri
        finally:
            os.killpg(server.pid, signal.SIGKILL)  # its workers too, in the middle of whatever they do
            server.wait()


def _healthy(uri: str) -> bool:
    try:
        with urllib.request.urlopen(f"{uri}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, ConnectionError):
        return False


@pytest.mark.slow
def test_a_server_that_comes_and_goes_has_everything_once(
    run_dir: Path, uri: str, export_dir: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    now = [0.0]
    tracker = Tracker(run_dir, f"http://127.0.0.1:{port}", "insects", "ants", Console(), clock=lambda: now[0])
    tracker.params({"seed": 0, "data.path": "pictures"})
    tracker.tags({"graft.code_commit": "abc"})
    tracker.metrics({"loss": 1.0, "accuracy": 0.5}, 0)
    assert tracker.run_id is None

    with mlflow_server(run_dir.parent, port) as server:
        now[0] += 60
        tracker.metrics({"loss": 1 / 2, "accuracy": 0.5}, 1)
        assert tracker.run_id is not None
        assert contents(server)["loss"] == [[(0, 1.0), (1, 1 / 2)]]

    tracker.metrics({"loss": 1 / 3, "accuracy": 0.5}, 2)
    tracker.dataset(PICTURES, "training")
    (run_dir / "report.json").write_text("{}")
    tracker.artifact(run_dir / "report.json")
    tracker.model("ants", export_dir, picture())
    tracker.version("ants", {})
    tracker.finish("FINISHED")
    assert f"graft sync {run_dir}" in capsys.readouterr().err

    with mlflow_server(run_dir.parent, port) as server:
        delivery = deliver(run_dir, Console())
        assert (delivery.run_id, delivery.uri, delivery.records) == (tracker.run_id, server, 6)
        assert_delivered_once(run_dir, server)
        assert deliver(run_dir, Console()).records == 0
        (run_dir / STATE).unlink()
        assert deliver(run_dir, Console()).records == 11
        assert_delivered_once(run_dir, server)
