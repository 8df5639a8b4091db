"""Where a run is tracked."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import config, config_file
from pipeline.console import Console
from pipeline.errors import ConfigError
from pipeline.mlflow_client import resolve_uri, without_password
from pipeline.tracking import Tracker
from tests.conftest import ROOT


def a_config(output_dir: Path, uri: str | None = None) -> config.RunConfig:
    return config_file.parse(
        {
            "name": "ants",
            "data": {"source": "digits"},
            "backbone": {"name": "mobilenet", "weights": "none"},
            "tracking": {"uri": uri},
            "output_dir": str(output_dir),
        }
    )


def test_the_config_then_the_environment_then_a_database_in_the_output_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_uri(a_config(tmp_path)) == f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://tracking:5000")
    assert resolve_uri(a_config(tmp_path)) == "http://tracking:5000"
    assert resolve_uri(a_config(tmp_path, "https://other")) == "https://other"
    assert resolve_uri(a_config(tmp_path, "databricks")) == "databricks"


def test_relative_paths_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert resolve_uri(a_config(Path("runs"))) == f"sqlite:///{tmp_path}/runs/mlflow.db"
    assert resolve_uri(a_config(Path("runs"), "sqlite:///my.db?timeout=5")) == f"sqlite:///{tmp_path}/my.db?timeout=5"


@pytest.mark.parametrize("uri", ["mlruns", "./mlruns", "/data/mlruns", "file:///data/mlruns", "file:mlruns"])
def test_plain_folders_are_refused(tmp_path: Path, uri: str) -> None:
    with pytest.raises(ConfigError, match=f"names a plain folder.*Allowed: .*sqlite:///.*Received: {uri}"):
        resolve_uri(a_config(tmp_path, uri))


def test_an_awkward_output_folder(tmp_path: Path, empty_database: Path) -> None:
    folder = tmp_path / "a b%20c?d#ü"
    (folder / "run").mkdir(parents=True)
    shutil.copy(empty_database, folder / "mlflow.db")
    (folder / "run" / "report.json").write_text("{}")
    tracker = Tracker(folder / "run", resolve_uri(a_config(folder)), "insects", "ants", Console())
    tracker.artifact(folder / "run" / "report.json")

    assert tracker.run_id is not None
    assert [path.name for path in (folder / "mlartifacts").rglob("report.json")] == ["report.json"]


@given(user=st.from_regex(r"[^\s:]*", fullmatch=True), password=st.from_regex(r"\S+", fullmatch=True))
@example(user="me", password="se/cret")
@example(user="me", password="p@ss")
@example(user="me@corp", password="p:a//s@s")
@example(user="", password="secret")
def test_no_password_is_shown_whatever_is_in_it(user: str, password: str) -> None:
    before, after = f"MLflow at postgresql://{user}:", "@db.corp:5432/mlflow is away."
    assert without_password(f"{before}{password}{after}") == f"{before}***{after}"


@pytest.mark.parametrize(
    "text", ["http://here:5000/#/a b@c", "sqlite:////data/mlflow.db", "https://me@here/a", "a:b@c"]
)
def test_what_holds_no_password_is_shown(text: str) -> None:
    assert without_password(text) == text


OPEN = """
import sys
import mlflow.store.tracking.sqlalchemy_store
from pipeline.mlflow_client import connect
print("ready", flush=True)
sys.stdin.readline()
print(len(connect(sys.argv[1]).search_experiments()))
"""


@pytest.mark.slow
def test_processes_may_open_a_new_database_at_the_same_time(tmp_path: Path) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", OPEN, f"sqlite:///{tmp_path}/mlflow.db"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        )
        for _ in range(3)
    ]  # fmt: skip
    for process in processes:
        assert process.stdout is not None
        process.stdout.readline()
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("\n")
        process.stdin.flush()
    answers = [process.communicate() for process in processes]
    assert [out.strip() for out, _ in answers] == ["1"] * 3, [err[-1000:] for _, err in answers]
