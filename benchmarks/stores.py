"""Which format suits a store of activations: SQLite, LMDB, ArrayRecord and Arrow IPC files compared.

    pip install lmdb    # the others come with Graft
    python -m benchmarks.stores

writes docs/activation-stores.md. Three minutes on two cores, on Linux, with 250 MB in the temporary folder.
"""

import importlib
import json
import os
import platform
import random
import resource
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from hashlib import sha256
from importlib import metadata
from itertools import count, cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any
from zlib import crc32

SIZES = {512: 20_000, 25_088: 4_000, 200_704: 1_000}  # bytes of an entry: entries
WRITE, READ = 256, 32  # entries in a batch
REPETITIONS = 2
FLIPS, KILLS = 500, 10
PAD = random.Random(0).randbytes(max(SIZES))

Entry = tuple[bytes, bytes]


class Sqlite:
    """Keys and values in tables of their own, so that looking up keys reads no values."""

    module, page = "sqlite3", 4096

    def __init__(self, folder: Path):
        self.path, self.local = folder / "store.db", threading.local()
        self.db.execute("CREATE TABLE IF NOT EXISTS keys (id INTEGER PRIMARY KEY, key BLOB UNIQUE, crc INTEGER)")
        self.db.execute("CREATE TABLE IF NOT EXISTS blobs (id INTEGER PRIMARY KEY, value BLOB)")

    @property
    def db(self) -> sqlite3.Connection:
        """This thread's connection."""
        if not hasattr(self.local, "db"):
            self.local.db = sqlite3.connect(self.path, timeout=60, isolation_level=None)
            settings = f"page_size={self.page}", "auto_vacuum=incremental", "journal_mode=wal", "synchronous=normal"
            for setting in settings:
                self.local.db.execute(f"PRAGMA {setting}")
        return self.local.db

    def write(self, batch: list[Entry]) -> None:
        add_value = "INSERT OR IGNORE INTO blobs SELECT id, ? FROM keys WHERE key = ?"
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("INSERT OR IGNORE INTO keys (key, crc) VALUES (?, ?)", [(k, checksum(k, v)) for k, v in batch])
        self.db.executemany(add_value, [(value, key) for key, value in batch])
        self.db.execute("COMMIT")

    def keys(self) -> set[bytes]:
        return {key for (key,) in self.db.execute("SELECT key FROM keys")}

    def read(self, keys: list[bytes]) -> list[bytes]:
        marks = ",".join("?" * len(keys))
        rows = self.db.execute(f"SELECT key, value, crc FROM keys JOIN blobs USING (id) WHERE key IN ({marks})", keys)
        found = {}
        for key, value, crc in rows:
            if checksum(key, value) != crc:
                raise ValueError("an entry is damaged")
            found[key] = value
        return [found[key] for key in keys]

    def delete(self, keys: list[bytes]) -> None:
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("DELETE FROM blobs WHERE id = (SELECT id FROM keys WHERE key = ?)", [(key,) for key in keys])
        self.db.executemany("DELETE FROM keys WHERE key = ?", [(key,) for key in keys])
        self.db.execute("COMMIT")
        self.db.executescript("PRAGMA incremental_vacuum")  # execute() would give back a single page

    def close(self) -> None:
        self.db.close()


class SqliteLargePages(Sqlite):
    page = 65536


class Lmdb:
    """A value follows its checksum."""

    module = "lmdb"

    def __init__(self, folder: Path):
        import lmdb

        # Without metasync a power cut may cost the last batch but not the store, as with SQLite's synchronous=normal.
        self.env = lmdb.open(str(folder), map_size=1 << 36, metasync=False)

    def write(self, batch: list[Entry]) -> None:
        with self.env.begin(write=True) as transaction:
            for key, value in batch:
                transaction.put(key, sealed(key, value), overwrite=False)

    def keys(self) -> set[bytes]:
        with self.env.begin() as transaction:
            return set(transaction.cursor().iternext(values=False))

    def read(self, keys: list[bytes]) -> list[bytes]:
        with self.env.begin(buffers=True) as transaction:
            return [unsealed(key, transaction.get(key)) for key in keys]

    def delete(self, keys: list[bytes]) -> None:
        with self.env.begin(write=True) as transaction:
            for key in keys:
                transaction.delete(key)

    def close(self) -> None:
        self.env.close()


class Segments:
    """A file per batch, written aside and then renamed. Where each key lies is kept in memory."""

    module, suffix = "", ""

    def __init__(self, folder: Path):
        self.folder, self.files, self.places = folder, {}, {}

    def write(self, batch: list[Entry]) -> None:
        path = self.folder / uuid.uuid4().hex
        self.save(path, batch)
        path.rename(path.with_suffix(self.suffix))

    def keys(self) -> set[bytes]:
        for path in self.folder.glob(f"*{self.suffix}"):
            if path not in self.files:
                self.files[path], keys = self.load(path)
                self.places.update({key: (path, row) for row, key in enumerate(keys)})
        return set(self.places)

    def read(self, keys: list[bytes]) -> list[bytes]:
        if any(key not in self.places for key in keys):
            self.keys()
        wanted: dict[Path, dict[bytes, int]] = {}
        for key in keys:
            path, row = self.places[key]
            wanted.setdefault(path, {})[key] = row
        found: dict[bytes, bytes] = {}
        for path, rows in wanted.items():
            found.update(zip(rows, self.take(self.files[path], rows), strict=True))
        return [found[key] for key in keys]

    def close(self) -> None:
        self.files.clear()


class ArrayRecord(Segments):
    """The keys are in a file aside, which comes last. The format has checksums of its own."""

    module, suffix = "array_record.python.array_record_module", ".keys"

    def save(self, path: Path, batch: list[Entry]) -> None:
        from array_record.python.array_record_module import ArrayRecordWriter

        writer = ArrayRecordWriter(str(path.with_suffix(".values")), "group_size:1,uncompressed")
        for _, value in batch:
            writer.write(value)
        writer.close()
        path.write_bytes(b"".join(key for key, _ in batch))

    def load(self, path: Path) -> tuple[Any, list[bytes]]:
        from array_record.python.array_record_module import ArrayRecordReader

        values, keys = str(path.with_suffix(".values")), path.read_bytes()
        reader = ArrayRecordReader(values, "readahead_buffer_size:0,max_parallelism:0")
        return reader, [keys[at : at + 32] for at in range(0, len(keys), 32)]

    def take(self, file: Any, rows: dict[bytes, int]) -> list[bytes]:
        return file.read(list(rows.values()))


class Arrow(Segments):
    """A file is one record batch of keys and of values that follow their checksums. It is mapped into memory."""

    module, suffix = "pyarrow", ".arrow"

    def save(self, path: Path, batch: list[Entry]) -> None:
        import pyarrow as pa

        columns = [[key for key, _ in batch], [sealed(key, value) for key, value in batch]]
        arrays = [
            pa.Array.from_buffers(pa.binary(len(column[0])), len(column), [None, pa.py_buffer(b"".join(column))])
            for column in columns
        ]
        records = pa.record_batch(arrays, names=["key", "value"])
        with pa.ipc.new_file(str(path), records.schema) as file:
            file.write_batch(records)

    def load(self, path: Path) -> tuple[Any, list[bytes]]:
        import pyarrow as pa

        records = pa.ipc.open_file(pa.memory_map(str(path))).get_batch(0)
        records.validate(full=True)
        return records, records.column(0).to_pylist()

    def take(self, file: Any, rows: dict[bytes, int]) -> list[bytes]:
        values = file.column(1)
        return [unsealed(key, memoryview(values[row].as_buffer())) for key, row in rows.items()]


STORES = {
    "SQLite, 4 KiB pages": Sqlite,
    "SQLite, 64 KiB pages": SqliteLargePages,
    "LMDB": Lmdb,
    "ArrayRecord": ArrayRecord,
    "Arrow IPC": Arrow,
}


def checksum(key: bytes, value: Any) -> int:
    """Of the key too: damage to an index may lead to another entry, which is sound by itself."""
    return crc32(value, crc32(key))


def sealed(key: bytes, value: bytes) -> bytes:
    return checksum(key, value).to_bytes(4, "little") + value


def unsealed(key: bytes, stored: memoryview) -> bytes:
    if checksum(key, stored[4:]) != int.from_bytes(stored[:4], "little"):
        raise ValueError("an entry is damaged")
    return bytes(stored[4:])


def entries(size: int, start: int, stop: int) -> list[Entry]:
    """Keys are digests. A value starts with its key, so that none can pass for another."""
    keys = [sha256(b"%d" % number).digest() for number in range(start, stop)]
    return [(key, key + PAD[: size - 32]) for key in keys]


def unread(store: Any, expected: list[Entry]) -> tuple[int, int]:
    """Reads entries one by one: how many could not be read, and how many were wrong."""
    lost = wrong = 0
    for key, value in expected:
        try:
            wrong += store.read([key]) != [value]
        except Exception:
            lost += 1
    return lost, wrong


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def write(make: Callable[[Path], Any], folder: Path, size: int, number: int) -> dict[str, float]:
    store, seconds = make(folder), 0.0
    for start in range(0, number, WRITE):
        batch = entries(size, start, min(start + WRITE, number))
        started = time.perf_counter()
        store.write(batch)
        seconds += time.perf_counter() - started
    started = time.perf_counter()
    store.close()
    seconds += time.perf_counter() - started
    return {"write": size * number / seconds / 1e6, "disk": on_disk(folder) / (size * number)}


def read(make: Callable[[Path], Any], folder: Path, size: int, number: int) -> dict[str, float]:
    keys = [key for key, _ in entries(32, 0, number)]
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    store = make(folder)
    for start in range(0, number, READ):
        store.read(keys[start : start + READ])
    result = {"memory": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 / 1e6}
    store.close()

    started = time.perf_counter()
    store = make(folder)
    found = store.keys()
    assert all(key in found for key in keys)
    result["lookup"] = time.perf_counter() - started

    def read_batches(seed: int) -> int:
        """Entries read until the time is up."""
        choose = random.Random(seed)
        for batches, keys_of_batch in enumerate(cycle([choose.sample(keys, READ) for _ in range(100)])):
            if time.perf_counter() > end:
                return batches * READ
            store.read(keys_of_batch)
        raise AssertionError

    for threads in (1, 2, 4):
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            end = started + 0.2
            result[f"read{threads}"] = sum(pool.map(read_batches, range(threads))) / (time.perf_counter() - started)

    return result


def evict(make: Callable[[Path], Any], folder: Path, size: int, number: int) -> dict[str, float]:
    """Deletes half of the entries, scattered."""
    store, keys = make(folder), [key for key, _ in entries(32, 0, number)]
    if not hasattr(store, "delete"):
        return {}
    random.Random(0).shuffle(keys)
    for start in range(0, number // 2, WRITE):
        store.delete(keys[start : min(start + WRITE, number // 2)])
    store.close()
    return {"halved": on_disk(folder) / (size * (number - number // 2))}


def forked(work: Callable[[int], None]) -> tuple[int, int]:
    """Starts a process that may crash, or be killed after a minute: its id, and a pipe of what it has to say."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            signal.alarm(60)
            work(into)
            os._exit(0)
        finally:
            os._exit(1)
    os.close(into)
    return pid, out


def flip(make: Callable[[Path], Any], folder: Path, size: int, number: int) -> dict[str, int]:
    """Flips one bit at a time, evenly spread over the store's files, and reads every entry."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    expected, hurt = entries(size, 0, number), folder.with_name("hurt")

    def attempt(say: int) -> None:
        try:
            store = make(hurt)
            outcome = unread(store, expected)
        except Exception:
            outcome = number, 0
        os.write(say, json.dumps(outcome).encode())

    result = {"noticed": 0, "harmless": 0, "wrong": 0, "killed": 0, "worst": 0}
    step = on_disk(folder) * 8 // FLIPS | 1  # odd, so that each bit of a byte has its turn
    bits = [(file.name, bit) for file in folder.iterdir() for bit in range(0, file.stat().st_size * 8, step)]
    for name, bit in bits:
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(folder, hurt)
        content = bytearray((hurt / name).read_bytes())
        content[bit // 8] ^= 1 << bit % 8
        (hurt / name).write_bytes(content)
        pid, pipe = forked(attempt)
        _, status = os.waitpid(pid, 0)
        lost, wrong = json.loads(os.read(pipe, 100) or "[0, 0]")
        os.close(pipe)
        result["killed" if status else "wrong" if wrong else "noticed" if lost else "harmless"] += 1
        result["worst"] = max(result["worst"], lost)
    return result


def kill(make: Callable[[Path], Any], folder: Path, size: int, number: int) -> dict[str, int]:
    """Two processes append at once and are killed amid it, again and again. What they had written must be there."""

    def append(first: int, say: int) -> None:
        store = make(folder)
        for batch in count(first):
            store.write(entries(size, batch * WRITE, (batch + 1) * WRITE))
            os.write(say, b".")

    written = []
    for trial in range(KILLS):
        starts = [trial * 20_000, trial * 20_000 + 10_000]
        writers = [forked(partial(append, start)) for start in starts]
        done = [len(os.read(pipe, 1)) for _, pipe in writers]
        time.sleep(random.Random(trial).uniform(0, 0.1))
        for start, batches, (pid, pipe) in zip(starts, done, writers, strict=True):
            os.kill(pid, signal.SIGKILL)
            assert os.waitpid(pid, 0)[1] == signal.SIGKILL, "a writer had stopped by itself"
            written += entries(size, start * WRITE, (start + batches + len(os.read(pipe, 10_000))) * WRITE)
            os.close(pipe)
    lost, wrong = unread(make(folder), written)
    return {"written": len(written), "lost": lost + wrong}


TASKS = {"write": write, "read": read, "evict": evict, "flip": flip, "kill": kill}


def measure(task: str, store: str, folder: Path, size: int, number: int) -> dict[str, Any]:
    """Runs a task in a process of its own, so that memory and crashes are its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.stores", task, store, str(folder), str(size), str(number)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL).stdout)


def main() -> None:
    t0=time.time()
    figures: dict[tuple[int, str], list[dict[str, float]]] = {}
    for repetition in range(REPETITIONS):
        for size, number in SIZES.items():
            for store in STORES:
                with TemporaryDirectory() as folder:
                    result = {t: measure(t, store, Path(folder) / "store", size, number) for t in ("write", "read", "evict")}
                figures.setdefault((size, store), []).append(result["write"] | result["read"] | result["evict"])
        print(repetition, time.time()-t0)
    for (size, store), runs in figures.items():
        print(size, store, {name: round(median(run[name] for run in runs), 3) for name in runs[0]})
    for store in STORES:
        with TemporaryDirectory() as folder:
            measure("write", store, Path(folder) / "store", 512, 512)
            print(store, measure("flip", store, Path(folder) / "store", 512, 512))
        print(time.time()-t0)
        with TemporaryDirectory() as folder:
            print(store, measure("kill", store, Path(folder) / "store", 512, 0))
        print(time.time()-t0)


if __name__ == "__main__":
    if sys.argv[1:]:
        task, store, folder, size, number = sys.argv[1:]
        importlib.import_module(STORES[store].module)
        print(json.dumps(TASKS[task](STORES[store], Path(folder), int(size), int(number))))
    else:
        main()
