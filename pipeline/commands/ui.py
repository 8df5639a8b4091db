"""`graft ui`."""

import os
import signal
import socket
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import errors_in_words, stop_in_order
from pipeline.errors import ConfigError, TrackingError

_PATIENCE = 0.5  # Seconds that MLflow has for a request under way, once it is told to stop.


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
        stop_in_order()
        print(f"MLflow shows {uri} at http://127.0.0.1:{port} (stop with Ctrl-C)")
        with asking(uri, "list the experiments"):
            found = experiment_pages(uri)
        for experiment, page in found.items():
            print(f"{experiment:<12}http://127.0.0.1:{port}{page}", flush=True)
        raise typer.Exit(_serve(uri, port))


def _serve(uri: str, port: int) -> int:
    """Serves MLflow's pages until it is stopped; its exit code, where it ends by itself.

    Raises:
        KeyboardInterrupt: this process is told to stop. MLflow has ended then.
    """
    command = [sys.executable, "-m", "mlflow", "ui", "--backend-store-uri", uri, "--port", str(port)]
    # One person looks: MLflow's four workers and its runner of jobs would take ten processes more.
    command += ["--workers", "1", "--uvicorn-opts", "--log-level warning"]
    environment = os.environ | {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    # A group of its own, as Ctrl-C would else reach its processes twice: from the terminal and from one another.
    server = subprocess.Popen(
        command, env=environment, process_group=0, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert server.stdout is not None
    if signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:  # Not so under nohup.
        signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    try:
        for line in server.stdout:
            print(line, end="", file=sys.stderr, flush=True)
        return server.wait()
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        _stop(server)


def _stop(server: "subprocess.Popen[str]") -> None:
    """Ends all processes of a server; nobody reads what they say to that."""
    with suppress(ProcessLookupError, subprocess.TimeoutExpired):
        os.killpg(server.pid, signal.SIGTERM)
        server.wait(_PATIENCE)
    with suppress(ProcessLookupError):
        os.killpg(server.pid, signal.SIGKILL)
    server.wait()
