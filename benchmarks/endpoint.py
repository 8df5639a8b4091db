"""What the endpoint's benchmarks share: the model, the pictures, servers in processes of their own, and the load.

Everything made on the way lies in build/bench: remove it to train the model anew.
"""

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PHOTOGRAPHS = Path("../shared/data/hymenoptera")
KERAS_HOME = "../shared/keras"
BUILD = Path("build/bench")
EXPORT = BUILD / "export"
NAME = "hymenoptera"
GRAFT = Path(sys.executable).parent / "graft"
CLASSIFY = f"/v1/models/{NAME}:classify-image"
STARTED_WITHIN = 120  # seconds
REFUSED = ("429", "503")

Result = dict[str, Any]


def pictures() -> list[Path]:
    """The photographs that are sent, always in this order."""
    found = sorted((PHOTOGRAPHS / "train").glob("*/*.jpg"))
    if not found:
        sys.exit(
            f"There are no photographs in {PHOTOGRAPHS}/train. They are those of PyTorch's transfer-learning tutorial, "
            f"hymenoptera_data.zip: unpack it there."
        )
    return found


def model() -> Path:
    """The folder with one version of a MobileNet 0.25 at 224 pixels, trained if it is not there."""
    version = EXPORT / NAME / "1"
    if not version.is_dir():
        pictures()
        settings = [f"data.path={PHOTOGRAPHS}", f"export.dir={EXPORT}", f"output_dir={BUILD / 'runs'}"]
        run(
            [str(GRAFT), "run", "configs/hymenoptera.yaml", *(word for each in settings for word in ("--set", each))],
            {"KERAS_HOME": os.environ.get("KERAS_HOME", KERAS_HOME)},
        )
    return version


def run(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str:
    """A command's standard output; what it says on standard error, if it fails, is all there is to say."""
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env={**os.environ, **(environment or {})}
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)[:300]} failed:\n{done.stderr}")
    return done.stdout


# ------------------------------------------------------------------------------------------------------------ the load


def build_load() -> None:
    BUILD.mkdir(parents=True, exist_ok=True)
    run(["cc", "-O2", "-o", str(BUILD / "load"), "benchmarks/load.c"])


def load(url: str, bodies: Sequence[Path], seconds: float, warmup: float = 0, **options: Any) -> Result:
    """What benchmarks/load.c prints. Options are its own: `concurrency=32`, `slow_headers=True`."""
    words = [f"--seconds={seconds}", f"--warmup={warmup}"]
    for name, value in options.items():
        if value is not None and value is not False:
            words.append(f"--{name.replace('_', '-')}" + ("" if value is True else f"={value}"))
    result: Result = json.loads(run([str(BUILD / "load"), *words, url, *map(str, bodies)]))
    return result


def count(result: Result, *statuses: str) -> int:
    return sum(result["status"][status]["count"] for status in statuses if status in result["status"])


def worst(result: Result, quantile: str, *statuses: str) -> float:
    """Milliseconds; of several statuses, the slowest's. 0 without such an answer."""
    return max((result["status"][status][quantile] for status in statuses if status in result["status"]), default=0.0)


def failures(result: Result) -> int:
    """Requests that did not end in 200."""
    others = sum(figures["count"] for status, figures in result["status"].items() if status != "200")
    return others + sum(result["errors"].values())


def succeeded(result: Result) -> Result:
    """The same, where nothing may have failed."""
    if failures(result) or not result["requests"]:
        sys.exit(f"Some requests failed where none may, and nothing is measured:\n{json.dumps(result)}")
    return result


# --------------------------------------------------------------------------------------------------------- the servers


@dataclass(frozen=True)
class Server:
    """One that is ready. `seconds` is from the start of its process to its first answer that says so."""

    url: str
    pid: int
    seconds: float

    def memory(self, what: str = "VmRSS") -> float:
        """MB that its process holds, or with "VmHWM" has held at most."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith(f"{what}:"))


@contextmanager
def graft(export: Path = EXPORT, *options: str) -> Iterator[Server]:
    """`graft serve`, on a port of its own choice, which it prints."""
    command = [str(GRAFT), "serve", str(export), "--port", "0", *options]
    with _process(command, "graft", {}, subprocess.PIPE) as (process, started):
        for line in process.stdout:
            words = [word for word in line.split() if word.startswith("http://")]
            if words:
                break
        else:
            sys.exit(f"graft serve ended:\n{_log('graft')}")
        yield _ready(process, started, words[0].rstrip("/."), "/readyz", "graft")


@contextmanager
def serving(
    name: str, command: Sequence[str], port: int, ready: str, environment: Mapping[str, str]
) -> Iterator[Server]:
    """Any other server, ready once `ready` is answered with 200."""
    with _process(command, name, environment, subprocess.DEVNULL) as (process, started):
        yield _ready(process, started, f"http://127.0.0.1:{port}", ready, name)


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


def ask(url: str, method: str = "GET", body: bytes | None = None) -> tuple[int, http.client.HTTPMessage, bytes]:
    """Status, headers and body of one request on a connection of its own."""
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=30)
    try:
        connection.request(method, parts.path, body)
        answer = connection.getresponse()
        return answer.status, answer.headers, answer.read()
    finally:
        connection.close()


@contextmanager
def _process(
    command: Sequence[str], name: str, environment: Mapping[str, str], stdout: int
) -> Iterator[tuple[Any, float]]:
    """A process and all it starts, which end with the block."""
    BUILD.mkdir(parents=True, exist_ok=True)
    with (BUILD / f"{name}.log").open("wb") as log:
        started = time.perf_counter()
        process = subprocess.Popen(
            command, stdout=stdout, stderr=log, text=True, env={**os.environ, **environment}, start_new_session=True
        )
    try:
        yield process, started
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            print(f"{name} does not end after SIGTERM, and is killed", file=sys.stderr)
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)  # Its workers, if it left any.
        process.wait()
        if process.stdout:
            process.stdout.close()


def _ready(process: Any, started: float, url: str, path: str, name: str) -> Server:
    while time.perf_counter() < started + STARTED_WITHIN:
        if process.poll() is not None:
            sys.exit(f"{name} ended:\n{_log(name)}")
        with suppress(OSError):
            if ask(url + path)[0] == 200:
                return Server(url, process.pid, time.perf_counter() - started)
        time.sleep(0.005)
    sys.exit(f"{name} is not ready after {STARTED_WITHIN} s:\n{_log(name)}")


def _log(name: str) -> str:
    return (BUILD / f"{name}.log").read_text(errors="replace")[-2000:]
