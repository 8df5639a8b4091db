"""A real `graft serve` for tests: a tiny model for it, the process, and clients that know no manners."""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from PIL import Image

ROOT = Path(__file__).parent.parent
CLASSES = ("ant", "bee", "Käfer")
CLASSIFY = "/v1/models/m:classify-image"
PREDICT = "/v1/models/m:predict"
SECONDS = 60  # after which a test gives up: far more than anything here takes


def tiny(folder, name="m", seed=1, classes=CLASSES):
    """Exports a model of 16 × 16 pixels as the next version of `folder`/`name`."""
    # Here, because a server that is given a Gate imports this module, and has no TensorFlow.
    import keras

    from tests import exporting
    from tests.networks import split

    keras.utils.set_random_seed(seed)
    pixels = keras.Input((16, 16, 3))
    x = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 50)(pixels))
    model = keras.Model(pixels, keras.layers.Dense(len(classes))(x))
    exporting.exported(model, split(12, classes=len(classes), size=16), folder, classes, name=name)


def encoded(kind="PNG", size=(16, 16), mode="RGB", seed=0, **options):
    """A picture of noise, as bytes."""
    bands = {"L": (), "RGB": (3,), "RGBA": (4,), "CMYK": (4,)}[mode]
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], *bands)).astype(np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels, mode=None if mode != "CMYK" else "CMYK").save(stream, kind, **options)
    return stream.getvalue()


def form(*files, boundary="limit", end=True):
    """A multipart body of (name, content), and the headers that go with it."""
    parts = [
        f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n\r\n'.encode()
        + content
        + b"\r\n"
        for name, content in files
    ]
    body = b"".join(parts) + (f"--{boundary}--\r\n".encode() if end else b"")
    return body, {"Content-Type": f"multipart/form-data; boundary={boundary}"}


class Gate:
    """An engine for tests: its models do not answer while a file `shut` lies in its folder.

    What they are asked for is written down in the file `seen`: one line with the number of pictures for each batch.
    """

    name = "gate"
    at_once = 1
    tolerance = 1.0
    lost = embeds = False

    def __init__(self, folder):
        self._folder = Path(folder)

    def load(self, export):
        self._classes = len(export.manifest.classes)
        return self

    def probabilities(self, pixels, seconds):
        with (self._folder / "seen").open("a") as file:
            print(len(pixels), file=file)
        end = time.monotonic() + SECONDS
        while (self._folder / "shut").exists() and time.monotonic() < end:
            time.sleep(0.01)
        return np.full((len(pixels), self._classes), 1 / self._classes, np.float32)

    def close(self):
        pass


def gated(folder):
    """Python that puts a Gate in the place of the default engine, for `serving(first=…)`."""
    return (
        "from serving.engines import ENGINES\nfrom tests.serving import Gate\n"
        f"ENGINES['openvino'] = lambda settings: Gate({str(folder)!r})\n"
    )


class Serving:
    """A running `graft serve`."""

    def __init__(self, arguments, first="", environment=None):
        program = f"{first}\nfrom pipeline.__main__ import main\nmain()"
        clean = {name: value for name, value in os.environ.items() if not name.startswith("GRAFT_")}
        self.process = subprocess.Popen(
            [sys.executable, "-c", program, "serve", *map(str, arguments), "--port", "0"],
            cwd=ROOT, env=clean | (environment or {}), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.lines = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        said = self.process.stdout.readline()
        if " is served at " not in said:
            self.process.wait(SECONDS)
            self._reader.join(SECONDS)
            raise RuntimeError(f"graft serve ended: {self.lines}")
        self.url = said.split(" is served at ")[1].split()[0]
        self.address = urlsplit(self.url).hostname, urlsplit(self.url).port

    def _read(self):
        for line in self.process.stderr:
            self.lines.append(line.rstrip("\n"))

    def ready(self):
        """Waits until models are loaded."""
        wait(lambda: self.get("/readyz").status == 200)
        return self

    def client(self, **options):
        return Client(self.address, **options)

    def ask(self, method, path, body=b"", headers=None):
        """One request on a connection of its own."""
        with self.client() as client:
            client.request(method, path, body, headers)
            return client.answer(method)

    def get(self, path, headers=None):
        return self.ask("GET", path, headers=headers)

    def post(self, path, body=b"", headers=None):
        return self.ask("POST", path, body, headers)

    def resident(self):
        """Bytes of memory."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1])

    def log(self):
        """What was logged so far: one JSON object a line, or this fails."""
        return [json.loads(line) for line in list(self.lines)]

    def stop(self):
        """SIGTERM; its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(SECONDS)
        self._reader.join(SECONDS)
        self.process.stdout.close()
        self.process.stderr.close()
        return code


@contextmanager
def serving(*arguments, **options):
    """`graft serve` with these arguments. Afterwards it must end by itself, and have logged no defect of its own."""
    running = Serving(arguments, **options)
    try:
        yield running
    except BaseException:
        running.process.kill()
        running.stop()
        raise
    try:
        code = running.stop()
    except subprocess.TimeoutExpired:
        running.process.kill()
        raise
    assert code == 0, running.lines
    assert [line for line in running.log() if "traceback" in line or line["level"] == "error"] == [], running.lines


class Answer:
    """Attributes: status; headers, names in lower case; body."""

    def __init__(self, status, headers, body):
        self.status, self.headers, self.body = status, headers, body

    def json(self):
        return json.loads(self.body)

    def __repr__(self):
        return f"{self.status} {self.headers} {self.body[:500]!r}"


class Client:
    """One connection, written and read as bytes."""

    def __init__(self, address):
        self.socket = socket.create_connection(address, timeout=SECONDS)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._file = self.socket.makefile("rb")

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()

    def close(self):
        self._file.close()
        self.socket.close()

    def send(self, data):
        self.socket.sendall(data)

    def request(self, method, path, body=b"", headers=None):
        self.send(request(method, path, body, headers))

    def answer(self, method="GET"):
        """The next answer; None where the connection was closed instead."""
        try:
            line = self._file.readline()
        except ConnectionResetError:
            return None
        if not line:
            return None
        status = int(line.split()[1])
        headers = {}
        while line := self._file.readline().strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        if method == "HEAD" or status < 200 or status in (204, 304):
            return Answer(status, headers, b"")
        if headers.get("transfer-encoding") == "chunked":
            chunks = []
            while size := int(self._file.readline(), 16):
                chunks.append(self._file.read(size))
                self._file.readline()
            self._file.readline()
            return Answer(status, headers, b"".join(chunks))
        return Answer(status, headers, self._file.read(int(headers["content-length"])))

    def closed(self):
        """Whether the server closes the connection; what else it says first is left."""
        try:
            while self._file.read(65536):
                pass
        except ConnectionResetError:
            pass
        except TimeoutError:
            return False
        return True


def request(method, path, body=b"", headers=None):
    """A request as bytes; Content-Length is added where the headers do not say how the body ends."""
    named = {"Host": "localhost", **(headers or {})}
    if body and not {"content-length", "transfer-encoding"} & {name.lower() for name in named}:
        named["Content-Length"] = len(body)
    lines = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in named.items()), "", ""]
    return "\r\n".join(lines).encode("latin-1") + body


def chunked(body, size=1000):
    """A body in the chunked transfer coding."""
    parts = [body[at : at + size] for at in range(0, len(body), size)]
    return b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n\r\n"


def wait(condition, what="it"):
    """Until `condition()` is true."""
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen"
        time.sleep(0.02)
