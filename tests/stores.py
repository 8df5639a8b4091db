"""Stores that count or fail, and a console that listens, for tests of what reads and writes activations."""

from pipeline.activations import Store
from pipeline.console import Console
from pipeline.errors import CacheError

LARGE = 1 << 30


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
