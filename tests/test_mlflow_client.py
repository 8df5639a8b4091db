"""Where a run is tracked."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest

from pipeline import config, config_file
from pipeline.console import Console
from pipeline.errors import ConfigError
from pipeline.mlflow_client import resolve_uri
from pipeline.tracking import Tracker


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """Tracking sets defaults in the environment; no other test shall see them."""
    with mock.patch.dict(os.environ):
        yield


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
