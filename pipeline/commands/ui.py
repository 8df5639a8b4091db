"""`graft ui`."""

import os
import socket
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import errors_in_words
from pipeline.errors import ConfigError, TrackingError


def ui(
    output_dir: Annotated[Path, typer.Argument(help="The output_dir of the runs to look at.")] = Path("runs"),
    port: Annotated[int, typer.Option(help="Where the page is served on this machine.")] = 5000,
) -> None:
    """Open MLflow on the run store."""
    with errors_in_words():
        if find_spec("mlflow") is None:
            raise ModuleNotFoundError(name="mlflow")
        from pipeline.mlflow_client import asking, default_uri, experiment_pages

        if not (output_dir / "mlflow.db").is_file():
            raise TrackingError(
                f"There are no runs to look at: {output_dir} holds no mlflow.db. Give the output_dir of a run. "
                "Runs whose tracking.uri, or MLFLOW_TRACKING_URI, names a server are on the server's own pages."
            )
        try:
            socket.create_server(("127.0.0.1", port)).close()
        except OSError as error:
            raise ConfigError(
                f"Port {port} cannot be used ({error.strerror}): another program may have it. Give another with --port."
            ) from None
        uri = default_uri(output_dir)
        command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
        print(f"MLflow shows {uri} at http://127.0.0.1:{port} (stop with Ctrl-C)")
        with asking(uri, "list the experiments"):
            found = experiment_pages(uri)
        for experiment, page in found.items():
            print(f"{experiment:<12}http://127.0.0.1:{port}{page}", flush=True)
        os.execv(sys.executable, command)
