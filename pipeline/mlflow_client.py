"""How MLflow is reached: its address, a client for it, and what it says when it refuses. No TensorFlow."""

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

from pipeline import notes
from pipeline.artifacts import locked_file
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, GraftError, TrackingError

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
    """The text with `***` in place of the password in each address, `scheme://user:password@host`.

    Passwords hold slashes and at signs, too: all up to the last @ of the word goes. To hide too much does no harm.
    """
    return re.sub(r"(://[^:\s]*):\S*@", r"\1:***@", text)


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
    with locked_file(path.with_name(f"{path.name}.lock")):
        return MlflowClient(uri)


def shorten_timeout() -> None:
    """Has MLflow wait ten seconds for an answer instead of two minutes, unless the environment says otherwise."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")


@contextmanager
def asking(uri: str, what: str) -> Iterator[None]:
    """Says in words what MLflow did not do.

    Args:
        uri: where MLflow is.
        what: completes "MLflow did not ...".

    Raises:
        TrackingError: in place of whatever MLflow raises.
    """
    try:
        yield
    except (AssertionError, GraftError):
        raise
    except Exception as error:
        # MLflow's stores and artifact clients are plug-ins that raise what they like: its own, SQLAlchemy's,
        # requests', botocore's errors.
        raise TrackingError(
            f"MLflow at {without_password(uri)} did not {what}: {reason_of(error)}. See to it that MLflow is there "
            "(its address is tracking.uri, or MLFLOW_TRACKING_URI) and try again; a repetition does no harm."
        ) from error


def experiment_pages(uri: str) -> dict[str, str]:
    """The newest experiments by name, at most five, each with the address of its runs behind that of MLflow's pages.

    Raises:
        Exception: whatever MLflow raises.
    """
    experiments = connect(uri).search_experiments(max_results=5, filter_string="name != 'Default'")
    return {experiment.name: notes.page(experiment.experiment_id) for experiment in experiments}


def reason_of(error: Exception) -> str:
    """One line of what went wrong. The cause stands at the end of a long message where a connection failed."""
    text = (str(error).strip().splitlines() or [""])[0].rpartition("Caused by ")[2]
    text = re.sub(r"^\w+\([\"']?(.*?)[\"']?\)*$", r"\1", text)  # NewConnectionError('...')
    return without_password(text[:300].rstrip(".)\"'")) or type(error).__name__


def sqlite_path(uri: str) -> Path:
    """The file of a database, `sqlite:///...`."""
    return Path(unquote(uri.removeprefix("sqlite:///").partition("?")[0]))


def artifact_location(uri: str) -> str | None:
    """Where a new experiment keeps its files: beside a SQLite database; None for the default of a server, or of
    another database."""
    if not uri.startswith("sqlite:///"):
        return None
    return sqlite_path(uri).with_name("mlartifacts").as_uri()


def _sqlite_uri(path: Path) -> str:
    """SQLAlchemy decodes percent signs in a database's path and reads a query behind a question mark."""
    return "sqlite:///" + re.sub("[%?#]", lambda match: quote(match[0]), str(path.absolute()))
