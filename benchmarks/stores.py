"""Which format suits a store of activations: SQLite, LMDB, ArrayRecord and Arrow IPC files compared.

    pip install lmdb    # the others come with Graft
    python -m benchmarks.stores

writes docs/activation-stores.md. Two minutes on two idle cores, on Linux, with 250 MB in the temporary folder.
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
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from importlib import metadata
from itertools import cycle
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from textwrap import fill
from typing import Any
from zlib import crc32

SIZES = {512: 20_000, 25_088: 4_000, 200_704: 1_000}  # bytes of an entry: entries
WRITE, READ = 256, 32  # entries in a batch
REPETITIONS = 5
FLIPS = 500
PAD = random.Random(0).randbytes(max(SIZES))

Entry = tuple[bytes, bytes]


class Sqlite:
    """Keys and values in tables of their own, so that looking up keys reads no values."""

    module, page = "sqlite3", 8192

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
        add_key = "INSERT OR IGNORE INTO keys (key, crc) VALUES (?, ?)"
        add_value = "INSERT OR IGNORE INTO blobs SELECT id, ? FROM keys WHERE key = ?"
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany(add_key, [(key, checksum(key, value)) for key, value in batch])
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
        rows = [(key,) for key in keys]
        self.db.execute("BEGIN IMMEDIATE")
        self.db.executemany("DELETE FROM blobs WHERE id = (SELECT id FROM keys WHERE key = ?)", rows)
        self.db.executemany("DELETE FROM keys WHERE key = ?", rows)
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
        # Without metasync a power cut may cost the last batch but not the store, as with SQLite's synchronous=normal.
        lmdb = importlib.import_module(self.module)
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
    """A file per batch, written aside and then renamed. Where each key lies is kept in memory.

    A format has save(), load() (a file and its keys) and take() (the values of some of its rows).
    """

    module, suffix = "", ""

    def __init__(self, folder: Path):
        self.library = importlib.import_module(self.module)
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
        writer = self.library.ArrayRecordWriter(str(path.with_suffix(".values")), "group_size:1,uncompressed")
        for _, value in batch:
            writer.write(value)
        writer.close()
        path.write_bytes(b"".join(key for key, _ in batch))

    def load(self, path: Path) -> tuple[Any, list[bytes]]:
        for_random_access = "readahead_buffer_size:0,max_parallelism:0"
        reader = self.library.ArrayRecordReader(str(path.with_suffix(".values")), for_random_access)
        keys = path.read_bytes()
        return reader, [keys[at : at + 32] for at in range(0, len(keys), 32)]

    def take(self, file: Any, rows: dict[bytes, int]) -> list[bytes]:
        return file.read(list(rows.values()))


class Arrow(Segments):
    """A file is one record batch of keys and of values that follow their checksums. It is mapped into memory."""

    module, suffix = "pyarrow", ".arrow"

    def save(self, path: Path, batch: list[Entry]) -> None:
        pa = self.library
        arrays = [
            pa.Array.from_buffers(pa.binary(len(column[0])), len(column), [None, pa.py_buffer(b"".join(column))])
            for column in ([key for key, _ in batch], [sealed(key, value) for key, value in batch])
        ]
        records = pa.record_batch(arrays, names=["key", "value"])
        with pa.ipc.new_file(str(path), records.schema) as file:
            file.write_batch(records)

    def load(self, path: Path) -> tuple[Any, list[bytes]]:
        records = self.library.ipc.open_file(self.library.memory_map(str(path))).get_batch(0)
        return records, records.column(0).to_pylist()

    def take(self, file: Any, rows: dict[bytes, int]) -> list[bytes]:
        values = file.column(1)
        return [unsealed(key, memoryview(values[row].as_buffer())) for key, row in rows.items()]


STORES = {
    "SQLite, 8 KiB pages": Sqlite,
    "SQLite, 64 KiB pages": SqliteLargePages,
    "LMDB": Lmdb,
    "ArrayRecord": ArrayRecord,
    "Arrow IPC": Arrow,
}
Make = Callable[[Path], Any]


def checksum(key: bytes, value: bytes | memoryview) -> int:
    """Of the key too: a damaged index may lead to another entry, which is sound by itself."""
    return crc32(value, crc32(key))


def sealed(key: bytes, value: bytes) -> bytes:
    return checksum(key, value).to_bytes(4, "little") + value


def unsealed(key: bytes, stored: memoryview) -> bytes:
    if checksum(key, stored[4:]) != int.from_bytes(stored[:4], "little"):
        raise ValueError("an entry is damaged")
    return bytes(stored[4:])


def digests(start: int, stop: int) -> list[bytes]:
    return [sha256(b"%d" % number).digest() for number in range(start, stop)]


def entries(size: int, start: int, stop: int) -> list[Entry]:
    """A value starts with its key, so that none can pass for another."""
    return [(key, key + PAD[: size - 32]) for key in digests(start, stop)]


def on_disk(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


def write(make: Make, folder: Path, size: int, number: int) -> dict[str, float]:
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


def read(make: Make, folder: Path, size: int, number: int) -> dict[str, float]:
    keys = digests(0, number)
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
        choose, done = random.Random(seed), 0
        for batch in cycle([choose.sample(keys, READ) for _ in range(100)]):
            store.read(batch)
            done += READ
            if time.perf_counter() > end:
                break
        return done

    for threads in (1, 2, 4):
        with ThreadPoolExecutor(threads) as pool:
            started = time.perf_counter()
            end = started + 0.2
            result[f"read{threads}"] = sum(pool.map(read_batches, range(threads))) / (time.perf_counter() - started)
    return result


def evict(make: Make, folder: Path, size: int, number: int) -> dict[str, float]:
    """Deletes half of the entries, at random."""
    store = make(folder)
    if not hasattr(store, "delete"):
        return {}
    gone = random.Random(0).sample(digests(0, number), number // 2)
    for start in range(0, len(gone), WRITE):
        store.delete(gone[start : start + WRITE])
    store.close()
    return {"left": on_disk(folder) / (size * (number - len(gone)))}


def damage(make: Make, folder: Path, size: int, number: int) -> dict[str, Any]:
    """Flips one bit at a time, evenly spread over the files; then cuts a file in half. Reads every entry each time."""
    expected, hurt = entries(size, 0, number), folder.with_name("hurt")

    def read_all() -> str:
        lost = 0
        try:
            store = make(hurt)
        except Exception:
            return "noticed"
        for key, value in expected:
            try:
                if store.read([key]) != [value]:
                    return "wrong"
            except Exception:
                lost += 1
        return "noticed" if lost else "harmless"

    def verdict(file: Path, content: bytes) -> str:
        shutil.rmtree(hurt, ignore_errors=True)
        shutil.copytree(folder, hurt)
        (hurt / file.name).write_bytes(content)
        outcomes = ["harmless", "noticed", "wrong", "killed"]
        if pid := os.fork():
            _, status = os.waitpid(pid, 0)
            return outcomes[os.WEXITSTATUS(status) if os.WIFEXITED(status) else -1]
        signal.alarm(60)  # reading for a minute is as bad as crashing
        os._exit(outcomes.index(read_all()))

    flipped: Counter[str] = Counter()
    step = on_disk(folder) * 8 // FLIPS | 1  # odd, so that each bit of a byte has its turn
    for file in folder.iterdir():
        for bit in range(0, file.stat().st_size * 8, step):
            content = bytearray(file.read_bytes())
            content[bit // 8] ^= 1 << bit % 8
            flipped[verdict(file, bytes(content))] += 1
    largest = max(folder.iterdir(), key=lambda file: file.stat().st_size)
    return {**flipped, "halved": verdict(largest, largest.read_bytes()[: largest.stat().st_size // 2])}


TASKS = {task.__name__: task for task in (write, read, evict, damage)}


def measure(task: str, store: str, folder: Path, size: int, number: int) -> dict[str, Any]:
    """Runs a task in a process of its own, so that memory and crashes are its own."""
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "benchmarks.stores", task, store, str(folder), str(size), str(number)]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


COLUMNS = {
    "write": ("writing, MB/s", ",.0f"),
    "lookup": ("opening and looking up all keys, s", ".3f"),
    "read1": ("reading with 1 thread, entries/s", ",.0f"),
    "read2": ("2 threads", ",.0f"),
    "read4": ("4 threads", ",.0f"),
    "disk": ("bytes on disk per byte stored", ".2f"),
    "left": ("after half was deleted", ".2f"),
    "memory": ("memory, MB", ".0f"),
}
DAMAGES = {"noticed": "noticed", "harmless": "harmless", "wrong": "wrong data", "killed": "process killed"}
WORDS = """\
| | append | delete one entry | two processes write | full disk | needs |
|---|---|---|---|---|---|
| SQLite | yes | yes; emptied pages go back to the disk | in turns | error, batch undone | nothing |
| LMDB | up to a set size | yes; room is reused, the file stays as large | in turns | error, batch undone | `lmdb` |
| ArrayRecord | a new file | the file is rewritten | a file each | error, half a file stays | `array_record` |
| Arrow IPC | a new file | the file is rewritten | a file each | error, half a file stays | `pyarrow` |"""


def table(heads: list[str], rows: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(heads), *rows])


def page(figures: dict[tuple[int, str], dict[str, float]], damages: dict[str, dict[str, Any]]) -> str:
    def row(size: int, store: str) -> list[str]:
        figure = figures[size, store]
        return [store, *(format(figure[key], form) if key in figure else "–" for key, (_, form) in COLUMNS.items())]

    heads = ["", *(head for head, _ in COLUMNS.values())]
    tables = "\n\n".join(
        f"### {number:,} entries of {size:,} bytes\n\n" + table(heads, [row(size, store) for store in STORES])
        for size, number in SIZES.items()
    )
    harm = [[store, *(str(found.get(key, 0)) for key in DAMAGES), found["halved"]] for store, found in damages.items()]
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("lmdb", "array_record", "pyarrow"))

    low, middle, top = SIZES
    chosen, large_pages, lmdb = ({size: figures[size, store] for size in SIZES} for store in list(STORES)[:3])
    faster = ", ".join(f"{lmdb[size]['read1'] / chosen[size]['read1']:.1f}" for size in SIZES)
    batch = ", ".join(f"{1000 * READ / chosen[size]['read1']:.1f}" for size in SIZES)
    text = f"""# Formats for stored activations

Written by `python -m benchmarks.stores`. What frozen layers make of a picture is the same in every epoch, so it can be
computed once and kept. An entry is a key of 32 bytes (a digest of network, picture and augmented view) and a blob:
{low} bytes are 256 pooled float16 features, {middle:,} are 7×7×256 of them, {top:,} are 14×14×512. The store has to
take batches, find ten thousand keys, give 32 random entries at once to many threads, survive SIGKILL, serve several
processes, notice flipped bits, unpickle nothing, evict single entries and give their room back, and need no more
memory as it grows.

{os.cpu_count()} cores ({platform.machine()}), Python {platform.python_version()}, SQLite {sqlite3.sqlite_version},
{versions}.

## Speed and size

Medians of {REPETITIONS} alternating repetitions; each writes and reads in new processes, with the files in the page
cache. Batches of {WRITE} are written, each safe from SIGKILL once it is done. SQLite and LMDB also stay sound through
a power cut, and the flushing for it is in their figures; of the others the last files could be lost. Batches of {READ}
random entries are read, as `bytes`, and checked against a CRC-32 of key and value; ArrayRecord has checksums of its
own. Memory is how much the resident set, mapped pages included, grew while everything was read once.

{tables}

## Damage

One bit at a time is flipped, at {FLIPS} places spread over the files of a store of 512 entries of {low} bytes, and
every entry is read. The damage is noticed if an entry is refused or missing, and harmless where it hits unused room.
Then the largest file is cut in half.

{table(["", *DAMAGES.values(), "a file cut in half"], harm)}

The checksum has to cover the key. With the value's alone, a bit flipped in SQLite's index gave a key the value of
another entry, sound by itself.

## What else tells them apart

{WORDS}

Deleting, two processes (killed amid it, too) and the full disk were tried; the rest is from documentation. SQLite with
a write-ahead log wants all its processes on one machine, and no network drive. Zarr was left out: it addresses arrays
by position, not entries by key.

## The choice

SQLite, with pages of 8 KiB. It alone both evicts single entries with their room given back and stays small:
{max(figure["memory"] for figure in chosen.values()):.0f} MB at most, of which a batch of the largest entries is
{READ * top / 1e6:.0f}. LMDB came to {lmdb[top]["memory"]:.0f} MB and Arrow IPC to
{figures[top, "Arrow IPC"]["memory"]:.0f} for {top * SIZES[top] / 1e6:.0f} MB of entries, and they grow with the store.
SQLite comes with Python, and a damaged file is an error; under LMDB a file cut in half ends the process. The price is
speed: from LMDB one thread reads {faster} times as many entries of the three sizes. From SQLite a
batch of {READ} takes {batch} ms. More threads hardly help with small entries: Python runs one at a time.

Pages of 64 KiB give {large_pages[top]["read1"]:,.0f} of the largest entries a second, those of 8 KiB
{chosen[top]["read1"]:,.0f}. But only two entries of {middle:,} bytes fit into 64 KiB, and the rest is lost:
{large_pages[middle]["disk"]:.2f} bytes on disk per byte, against {chosen[middle]["disk"]:.2f}. Small entries share
pages, and a page goes back to the disk only when all its entries are gone: with half of them deleted at random, those
of {low} bytes took {chosen[low]["left"]:.1f} bytes on disk per byte. What was written together should be evicted
together.
"""
    blocks = text.strip().split("\n\n")
    return (
        "\n\n".join(block if block[0] in "#|" else fill(block, 120, break_on_hyphens=False) for block in blocks) + "\n"
    )


def main() -> None:
    runs: dict[tuple[int, str], list[dict[str, float]]] = {}
    damages = {}
    for repetition in range(REPETITIONS):
        for size, number in SIZES.items():
            for store in STORES:
                with TemporaryDirectory() as folder:
                    run = measure("write", store, Path(folder, "store"), size, number)
                    run |= measure("read", store, Path(folder, "store"), size, number)
                    if repetition == 0:  # the same each time
                        run |= measure("evict", store, Path(folder, "store"), size, number)
                runs.setdefault((size, store), []).append(run)
        print(f"{repetition + 1} of {REPETITIONS} repetitions", flush=True)
    for store in STORES:
        with TemporaryDirectory() as folder:
            measure("write", store, Path(folder, "store"), min(SIZES), 512)
            damages[store] = measure("damage", store, Path(folder, "store"), min(SIZES), 512)
        print(store, damages[store], flush=True)
    figures = {
        case: {name: median(run[name] for run in several if name in run) for name in several[0]}
        for case, several in runs.items()
    }
    Path("docs/activation-stores.md").write_text(page(figures, damages), encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        task, store, folder, size, number = sys.argv[1:]
        importlib.import_module(STORES[store].module)
        print(json.dumps(TASKS[task](STORES[store], Path(folder), int(size), int(number))))
    else:
        main()
