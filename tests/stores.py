"""Stores that count or fail, a console that listens, entries that tell whether they are right, and other processes."""

import hashlib
import inspect
import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

from pipeline.activations import FILE, Store
from pipeline.console import Console
from pipeline.errors import CacheError

LARGE = 1 << 30
DESCRIPTION = {
    "pixels": {"version": 1, "width": 224, "height": 224, "crop": 0.875},
    "mean": [103.9, 116.8, 123.7],
    "backbone": "mobilenet",
    "options": {"alpha": 0.25},
    "weights": "5f" * 32,
    "cut": "conv_pw_11_relu",
    "dtype": "float16",
    "engine": "tensorflow",
}


def refuse(message):
    raise AssertionError(f"nothing was to be warned of: {message}")


class Counting(Store):
    """Remembers what was written.

    Attributes:
        written: spaces and keys, each once.
        writes: how many entries, those that were written again included.
    """

    def __init__(self, folder, warn=refuse):
        super().__init__(folder, LARGE, warn)
        self.written, self.writes = set(), 0

    def write(self, space, entries):
        super().write(space, entries)
        self.written |= {(space, *key) for key, _ in entries}
        self.writes += len(entries)


class Failing(Counting):
    """Works a number of times, and fails ever after, as on a disk that is full or has gone."""

    def __init__(self, folder, writes=1000, reads=1000):
        super().__init__(folder)
        self.writes_left, self.reads_left = writes, reads

    def write(self, space, entries):
        self.writes_left -= 1
        if self.writes_left < 0:
            raise CacheError("The disk is full.")
        super().write(space, entries)

    def read(self, space, keys):
        self.reads_left -= 1
        if self.reads_left < 0:
            raise CacheError("The disk has gone.")
        return super().read(space, keys)


class Heard(Console):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__(quiet=True)
        self.said, self.warned = [], []

    def say(self, text):
        self.said.append(text)

    def warn(self, text):
        self.warned.append(text)


ROOT = Path(__file__).parent.parent


def key(n: int) -> tuple[bytes, bytes]:
    """The n-th key of a test; every other one is of a view."""
    return hashlib.sha256(b"%d" % n).digest(), b"view %d" % (n % 7) if n % 2 else b""


def value(n: int, writer: int = 0) -> bytes:
    """What belongs to the n-th key, 700 bytes to 20 kB, so that who reads it can tell whether it is right."""
    return hashlib.shake_256(b"%d %d" % (n, writer)).digest(700 + n % 5 * 5000)


# The tests' other processes import nothing but the store, and so start in a moment.
CHILD = f"""
import hashlib, sys, time
from pathlib import Path
from pipeline.activations import Store
from pipeline.errors import CacheError

{inspect.getsource(key)}
{inspect.getsource(value)}
folder, max_bytes, *rest = sys.argv[1:]
store = Store(Path(folder), int(max_bytes), print)
space = store.space({{"test": 1}})
"""


def child(folder: Path, max_bytes: int, program: str, *arguments: object, before: tuple[str, ...] = ()):
    """A process with a store of its own; what it prints comes line by line."""
    command = [*before, sys.executable, "-S", "-c", CHILD + program, str(folder), str(max_bytes), *map(str, arguments)]
    return subprocess.Popen(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, text=True
    )


def finish(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=60)
    assert process.returncode == 0, output
    return output


def entries(numbers, writer: int = 0):
    return [(key(n), value(n, writer)) for n in numbers]


def keys(numbers):
    return [key(n) for n in numbers]


def values(numbers, writer: int = 0):
    return [value(n, writer) for n in numbers]


def sound(folder: Path) -> bool:
    """Whether SQLite finds nothing wrong, and every value belongs to one key."""
    with closing(sqlite3.connect(folder / FILE)) as db:
        have, named = (sorted(db.execute(q)) for q in ("SELECT id FROM value", "SELECT value FROM activation"))
        return have == named and db.execute("PRAGMA quick_check").fetchall() == [("ok",)]
