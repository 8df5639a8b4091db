"""A real MLflow server over SQLite or PostgreSQL, on this machine's loopback, which can be killed and started again.

PostgreSQL is Debian's package `postgresql`; its server listens on a socket in a temporary folder alone.
"""

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BACKENDS = ("sqlite", "postgresql")
_SECONDS = 120.0  # More than a start takes on a busy machine.


class MlflowServer:
    """`mlflow server`, from `start` to `kill`; what it holds stays.

    Attributes:
        uri: for clients; the same after every start.
        folder: of its log and the artifacts it serves.
        database: its backend store, as SQLAlchemy's URI.
    """

    def __init__(self, folder: Path, database: str) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            self._port = free.getsockname()[1]
        self.uri = f"http://127.0.0.1:{self._port}"
        self.folder, self.database = folder, database
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, wait: bool = True) -> None:
        """Starts it; `wait` until it answers."""
        assert self._process is None
        self.folder.mkdir(parents=True, exist_ok=True)
        command = [
            sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(self._port),
            "--workers", "1", "--backend-store-uri", self.database,
            "--artifacts-destination", str(self.folder / "artifacts"),
        ]  # fmt: skip
        own = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command, stdout=log, stderr=log, cwd=self.folder, env=os.environ | own, start_new_session=True
            )
        if wait:
            self.wait()

    def wait(self) -> None:
        """Until it answers."""
        deadline = time.monotonic() + _SECONDS
        while not self._answers():
            assert self._process is not None
            assert self._process.poll() is None, (self.folder / "server.log").read_text()
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.1)

    def ensure(self) -> None:
        """Starts it where it is not running, and waits until it answers."""
        if self._process is None:
            self.start()
        self.wait()

    def kill(self) -> None:
        """SIGKILL, its workers too, in the middle of whatever they do."""
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.uri}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False


@contextmanager
def mlflow_server(folder: Path, backend: str) -> Iterator[MlflowServer]:
    """A server that answers, over an empty database.

    Args:
        folder: for all it writes, but PostgreSQL's own files.
        backend: one of BACKENDS.
    """
    with contextlib.ExitStack() as stack:
        database = f"sqlite:///{folder}/mlflow.db" if backend == "sqlite" else stack.enter_context(postgresql())
        server = MlflowServer(folder, database)
        stack.callback(server.kill)
        server.start()
        yield server


@contextmanager
def postgresql() -> Iterator[str]:
    """SQLAlchemy's URI of an empty database; the test is skipped where PostgreSQL is not installed."""
    found = shutil.which("initdb")
    places = [Path(found).resolve().parent] if found else sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if not places:
        pytest.skip("PostgreSQL's initdb is not installed (Debian's package postgresql)")
    # It refuses to run as root.
    user = {"user": "nobody", "group": "nogroup", "extra_groups": []} if os.geteuid() == 0 else {}
    # A socket's path must be short.
    with tempfile.TemporaryDirectory(prefix="graft-pg-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        if user:
            shutil.chown(folder, "nobody", "nogroup")
        data, log = f"{folder}/data", f"{folder}/log"
        subprocess.run(
            [places[-1] / "initdb", "-D", data, "-U", "graft", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"],
            cwd=folder, check=True, capture_output=True, **user,
        )  # fmt: skip
        options = ["-c", "listen_addresses=", "-c", "fsync=off", "-k", folder]
        with Path(log).open("wb") as output:
            server = subprocess.Popen(
                [places[-1] / "postgres", "-D", data, *options], cwd=folder, stdout=output, stderr=output, **user
            )
        try:
            ready = [places[-1] / "pg_isready", "-q", "-h", folder]
            deadline = time.monotonic() + _SECONDS
            while subprocess.run(ready).returncode:
                assert server.poll() is None, Path(log).read_text()
                assert time.monotonic() < deadline, "PostgreSQL did not start"
                time.sleep(0.05)
            yield f"postgresql+psycopg://graft@/postgres?host={folder}"
        finally:
            server.send_signal(signal.SIGINT)  # fast shutdown
            server.wait(_SECONDS)
