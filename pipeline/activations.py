"""The store of activations on disk: what a frozen network gives for a picture is computed once, and kept.

An activation is named by everything that decides its values:

    space       a JSON-able description of all but the picture and its view: the pixels' settings, the network and its
                weights, the layer it is cut at, the dtype, the engine. A change in any of them is another space.
    picture     the SHA-256 of the encoded picture (32 bytes)
    view        b"" for the picture as it is, else a digest of the augmentation's settings, seed and number

One SQLite file in write-ahead mode holds them all. It may be read and written by several threads and processes at once;
a process killed at any moment leaves whole entries or none. Every value carries a checksum over its name and its bytes,
so that a flipped bit is noticed when it is read; where SQLite's own pages are damaged the file is removed and a new one
begun. Nothing is lost by either but the time of computing it again.

The folder belongs on a local disk: SQLite's write-ahead mode does not work across a network.
"""

import hashlib
import json
import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from pipeline import sqlite_file
from pipeline.errors import CacheError
from pipeline.sqlite_file import LARGE_LOG, DamageError, Layout, SqliteFile, live, size_of, sound, transaction

if TYPE_CHECKING:
    from pipeline.config import Cache
    from pipeline.console import Console

FILE = "activations.sqlite"
ROOM = 0.95  # of what the file may take: what eviction goes down to, so that it does not run at every write
RESERVE = 1_000_000_000  # bytes of the disk that stay free for all else that a run writes; see _reserve
TURN = 10_000  # keys that are marked as used in one transaction, so that others get to write in between
SMALL = 256 << 20  # bytes of a file that is looked through within a second

LAYOUT = Layout(
    application=0x47724163,  # "GrAc"
    version=1,  # another number is another layout
    schema=(
        "CREATE TABLE space (id INTEGER PRIMARY KEY, description TEXT, seconds_per_image REAL)",
        # Keys and values are apart so that marking a key as used does not rewrite its value.
        "CREATE TABLE activation (space INTEGER, picture BLOB, view BLOB, value INTEGER, checksum INTEGER,"
        " bytes INTEGER, used INTEGER, PRIMARY KEY (space, picture, view)) WITHOUT ROWID",
        "CREATE TABLE value (id INTEGER PRIMARY KEY, bytes BLOB)",
        "CREATE TABLE decodable (pixels INTEGER, picture BLOB, PRIMARY KEY (pixels, picture)) WITHOUT ROWID",
    ),
)
OF_KEY = "WHERE space = ? AND picture = ? AND view = ?"
DELETE_VALUE = f"DELETE FROM value WHERE id = (SELECT value FROM activation {OF_KEY})"

Key = tuple[bytes, bytes]  # picture's SHA-256 (32 bytes), view


@dataclass(frozen=True)
class Held:
    """What the store holds of one space. `bytes` counts the activations alone; last_used is in UTC."""

    description: dict[str, Any]
    entries: int
    bytes: int
    last_used: datetime


@dataclass(frozen=True)
class Pruned:
    """What was removed: activations, and bytes given back to the file system."""

    entries: int
    bytes: int


@dataclass(frozen=True)
class _Space:
    description: str  # canonical JSON
    digest: bytes


class Store:
    """Activations by space, picture and view; safe to use from several threads, not to carry across a fork.

    Args:
        folder: where `activations.sqlite` lies or is made.
        max_bytes: how large the file may become. It stays below that where the disk would otherwise be left with less
            than a reserve. Writing more removes the least recently used first. The write-ahead log comes on top.
        warn: called with one sentence when something was found damaged.

    Raises:
        CacheError: the folder cannot be made or written, or the file is not a store of this version.
    """

    def __init__(self, folder: Path, max_bytes: int, warn: Callable[[str], None]) -> None:
        self.path = folder / FILE
        self.max_bytes = max_bytes
        self._warn = warn
        self._warnings: set[str] = set()
        self._suspect = False  # a damaged entry was found
        self._examined = False
        self._opened = _now()
        self._spaces: dict[int, _Space] = {}
        self._lock = threading.Lock()
        remedy = (
            "Make room or mend what is wrong, let it hold less with cache.max_bytes (now "
            f"{max_bytes / 1e6:,.0f} MB), put it elsewhere with cache.dir, or do without it with cache: off."
        )
        self._file = SqliteFile(self.path, LAYOUT, remedy, warn)
        self._do = self._file.do
        self._do(lambda db: None)

    def space(self, description: Mapping[str, Any]) -> int:
        """The number of the space so described, the same in every store; the order of keys does not matter."""
        text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
        number, digest = _number(text)
        self._spaces[number] = _Space(text, digest)
        return number

    def present(self, space: int, keys: Sequence[Key]) -> list[bool]:
        """Which of the keys are there; those are marked as used now, unless the disk does not allow it."""

        def look_up(keys: Sequence[Key], mark: bool) -> list[bool]:
            return self._do(lambda db: self._present(db, space, keys, mark))

        # In the order of the table, neighbours share a page that is then read and written once.
        order = sorted(range(len(keys)), key=keys.__getitem__)
        there = [False] * len(keys)
        mark = True
        for start in range(0, len(keys), TURN):
            places = order[start : start + TURN]
            wanted = [keys[place] for place in places]
            try:
                found = look_up(wanted, mark)
            except CacheError:
                mark = False
                found = look_up(wanted, mark)
            for place, is_there in zip(places, found, strict=True):
                there[place] = is_there
        return there

    def _present(self, db: sqlite3.Connection, space: int, keys: Sequence[Key], mark: bool) -> list[bool]:
        there, now = [], _now()
        with transaction(db, "IMMEDIATE" if mark else "DEFERRED"):
            for key in keys:
                if mark:
                    changed = db.execute(f"UPDATE activation SET used = ? {OF_KEY}", (now, space, *key))
                    there.append(changed.rowcount > 0)
                else:
                    row = db.execute(f"SELECT 1 FROM activation {OF_KEY}", (space, *key))
                    there.append(row.fetchone() is not None)
        return there

    def read(self, space: int, keys: Sequence[Key]) -> list[bytes | None]:
        """The keys' bytes, None where there are none.

        What turns out to be damaged is None as well and is removed, so that it is computed and written again.

        Raises:
            CacheError: the file cannot be read.
        """
        values, damaged = self._do(lambda db: self._read(db, space, keys))
        if damaged:
            self._warn_once(
                f"The activation store {self.path} has damaged entries: they are removed and computed again."
            )
            with suppress(CacheError):
                self._do(lambda db: self._remove(db, space, damaged))
        return values

    def _read(self, db: sqlite3.Connection, space: int, keys: Sequence[Key]) -> tuple[list[bytes | None], list[Key]]:
        values: list[bytes | None] = []
        damaged = []
        digest = self._spaces[space].digest
        query = f"SELECT checksum, value.bytes FROM activation LEFT JOIN value ON value.id = activation.value {OF_KEY}"
        with transaction(db, "DEFERRED"):
            for key in keys:
                row = db.execute(query, (space, *key)).fetchone()
                if row is None:
                    values.append(None)
                elif isinstance(row[1], bytes) and row[0] == _checksum(digest, key, row[1]):
                    values.append(row[1])
                else:
                    values.append(None)
                    damaged.append(key)
        return values, damaged

    def _remove(self, db: sqlite3.Connection, space: int, keys: Sequence[Key]) -> None:
        named = [(space, *key) for key in keys]
        with transaction(db, "IMMEDIATE"):
            db.executemany(DELETE_VALUE, named)
            db.executemany(f"DELETE FROM activation {OF_KEY}", named)
        # Pages that two values share would damage entries again and again. To look takes as long as to read the file.
        self._suspect = True
        if self.size <= SMALL:
            self._examine(db)

    def _examine(self, db: sqlite3.Connection) -> None:
        """Looks through the file, once in the store's life."""
        if not self._examined:
            self._examined = True
            if not sound(db):
                raise DamageError("its pages are malformed")

    def write(self, space: int, entries: Sequence[tuple[Key, bytes]]) -> None:
        """Keeps all the entries, or none; those already there are replaced.

        When the file would exceed max_bytes, or take of the disk what is to stay free, the least recently used entries
        are removed, never these.

        Raises:
            CacheError: the entries alone are more than that, the disk is full, or the file cannot be written. The store
                is then as it was before.
        """
        new = dict(entries)
        if new:
            self._do(lambda db: self._write(db, space, new))

    def _write(self, db: sqlite3.Connection, space: int, new: Mapping[Key, bytes]) -> None:
        now = _now()
        digest = self._spaces[space].digest
        needed = sum(map(len, new.values()))
        limit = self._limit()
        if needed > limit:
            raise self._too_large(needed, limit)
        large_log = min(LARGE_LOG, limit // 8)  # Where there is little room, the log may take but little of it.
        evicted = self._give_way(db, limit, large_log)
        with transaction(db, "IMMEDIATE"):
            self._insert_space(db, space)
            # Room is made first, so that what is written takes the pages that become free and the file does not grow.
            if live(db) + needed > limit:
                evicted = max(evicted, self._evict(db, int(ROOM * limit) - needed))
            rows = []
            for key, value in new.items():
                number = db.execute("INSERT INTO value (bytes) VALUES (?)", (value,)).lastrowid
                rows.append((space, *key, number, _checksum(digest, key, value), len(value), now))
            rows.sort()  # in the order of the table, neighbours share a page that is then written once
            db.executemany(DELETE_VALUE, (row[:3] for row in rows))
            db.executemany("INSERT OR REPLACE INTO activation VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            if live(db) > limit:
                evicted = max(evicted, self._evict(db, int(ROOM * limit), spared=now))
                if live(db) > limit:
                    raise self._too_large(needed, limit)
        self._file.settle(db, limit, large_log)
        if evicted >= self._opened:
            self._warn_once(
                f"The activation store {self.path} may hold {self.max_bytes / 1e6:,.1f} MB, less than is in use: what "
                "was removed to make room will be computed again. Raise cache.max_bytes."
                if limit == self.max_bytes
                else f"The disk of the activation store {self.path} has no room for all that is in use: what was "
                "removed will be computed again. Make room, or put the store elsewhere with cache.dir."
            )

    def _give_way(self, db: sqlite3.Connection, limit: int, large_log: int) -> int:
        """Evicts down to a limit that has fallen, as when others take of the disk; returns what _evict does.

        In pieces: what is removed at once goes through the log, for which there may be little room.
        """
        evicted, before = 0, None
        while (now := live(db)) > limit and now != before:
            with transaction(db, "IMMEDIATE"):
                evicted = max(evicted, self._evict(db, max(limit, live(db) - large_log)))
            self._file.settle(db, limit, large_log)
            before = now
        return evicted

    def _insert_space(self, db: sqlite3.Connection, space: int) -> None:
        """A space stands in the file from its first entry on, and again after the file was begun anew."""
        db.execute(
            "INSERT INTO space (id, description) VALUES (?, ?)"
            " ON CONFLICT DO UPDATE SET description = excluded.description WHERE description != excluded.description",
            (space, self._spaces[space].description),
        )

    def speed(self, space: int) -> float | None:
        """Seconds that computing one activation of the space took, None if not known."""
        row = self._do(lambda db: db.execute("SELECT seconds_per_image FROM space WHERE id = ?", (space,)).fetchone())
        return row[0] if row and isinstance(row[0], float) else None

    def set_speed(self, space: int, seconds_per_image: float) -> None:
        """Notes the seconds that computing one activation of the space took."""

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, "IMMEDIATE"):
                self._insert_space(db, space)
                db.execute("UPDATE space SET seconds_per_image = ? WHERE id = ?", (float(seconds_per_image), space))

        self._do(work)

    def decodable(self, pixels: str, picture: bytes) -> bool:
        """Whether the picture (its SHA-256) is known to decode well under these pixel settings (their digest)."""
        key = (_number(pixels)[0], picture)
        query = "SELECT 1 FROM decodable WHERE pixels = ? AND picture = ?"
        try:
            return self._do(lambda db: db.execute(query, key).fetchone() is not None)
        except CacheError:  # It only saves a decoding.
            return False

    def add_decodable(self, pixels: str, pictures: Iterable[bytes]) -> None:
        """Notes that the pictures decode well under these pixel settings."""
        number, _ = _number(pixels)
        rows = [(number, picture) for picture in sorted(set(pictures))]

        def work(db: sqlite3.Connection) -> None:
            with transaction(db, "IMMEDIATE"):
                db.executemany("INSERT OR IGNORE INTO decodable VALUES (?, ?)", rows)

        with suppress(CacheError):  # As above.
            self._do(work)

    def held(self) -> list[Held]:
        """What there is of each space, the most recently used first."""
        return self._do(_held)

    @property
    def size(self) -> int:
        """Bytes of the files on disk."""
        return size_of(self.path)

    @property
    def room(self) -> int:
        """Bytes that the store could hold, with all it holds now removed: max_bytes, or what the disk has to spare.

        Raises:
            CacheError: the folder is gone.
        """
        return max(self._limit(), 0)

    def _limit(self) -> int:
        """Bytes that the file may take now; negative where others have taken what is to stay free of the disk."""
        try:
            disk = os.statvfs(self.path.parent)
        except OSError as error:
            raise self._file.unusable(error) from error
        to_spare = disk.f_frsize * disk.f_bavail - _reserve(disk.f_frsize * disk.f_blocks)
        return min(self.max_bytes, self.size + to_spare)

    def prune(self, max_bytes: int | None = None, unused_since: datetime | None = None) -> Pruned:
        """Removes what was not used since a moment (with its time zone), then the least recently used beyond max_bytes.

        Which pictures decode is forgotten with the whole store alone: it is little, and not noted when it is used.

        The room is given back to the file system. To remove needs a little room in the log, but for max_bytes 0, which
        removes the file as a whole and so works on a full disk.

        Raises:
            CacheError: the file cannot be written.
        """
        before = self.size
        if max_bytes == 0:
            removed = self._do(_count)
            self._file.remove()
        else:
            removed = self._do(lambda db: self._prune(db, max_bytes, unused_since))
        return Pruned(removed, max(before - self.size, 0))

    def _prune(self, db: sqlite3.Connection, max_bytes: int | None, unused_since: datetime | None) -> int:
        with transaction(db, "IMMEDIATE"):
            before = _count(db)
            if unused_since is not None:
                self._delete(db, "used < ?", (int(unused_since.timestamp() * 1e6),))
            if max_bytes is not None:
                self._evict(db, max_bytes)
            db.execute("DELETE FROM space WHERE id NOT IN (SELECT DISTINCT space FROM activation)")
            removed = before - _count(db)
        self._file.settle(db, 0, 0)
        return removed

    def close(self) -> None:
        """Closes the file in all threads; none may be using it. It raises nothing, whatever has become of the file."""
        suspect, self._suspect = self._suspect, False
        if suspect and not self._examined and self.path.exists():
            with suppress(CacheError):
                self._do(self._examine)
        self._file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _delete(self, db: sqlite3.Connection, condition: str, values: Sequence[int]) -> None:
        db.execute(f"DELETE FROM value WHERE id IN (SELECT value FROM activation WHERE {condition})", values)
        db.execute(f"DELETE FROM activation WHERE {condition}", values)

    def _evict(self, db: sqlite3.Connection, goal: int, spared: int = -1) -> int:
        """Removes the least recently used, but what was used at the moment `spared`, until the rest takes `goal` bytes.

        Pages count, not bytes, and a page is free only when all in it is: hence the rounds.

        Returns:
            When the last of what was removed had been used, 0 if there was nothing.
        """
        moment = 0
        while (excess := live(db) - goal) > 0:
            last = None
            rows = db.execute(
                "SELECT used, value, bytes FROM activation WHERE used IS NOT ? ORDER BY used, value", (spared,)
            )
            for used, value, size in rows:
                last = moment, _ = _whole(used), _whole(value)
                excess -= _whole(size)
                if excess <= 0:
                    break
            rows.close()
            if last is None:
                db.execute("DELETE FROM decodable")
                break
            self._delete(db, "used IS NOT ? AND (used, value) <= (?, ?)", (spared, *last))
        return moment

    def _too_large(self, needed: int, limit: int) -> CacheError:
        if limit == self.max_bytes:
            what, remedy = f"may hold {limit / 1e6:,.1f} MB", "Raise cache.max_bytes"
        else:
            what = f"can hold {max(limit, 0) / 1e6:,.1f} MB, as some of its disk stays free for other files"
            remedy = "Make room, put it elsewhere with cache.dir"
        return CacheError(
            f"The activation store {self.path} {what}, and {needed / 1e6:,.1f} MB were to be written at once. "
            f"{remedy}, or do without the store with cache: off."
        )

    def _warn_once(self, message: str) -> None:
        with self._lock:
            new = message not in self._warnings
            self._warnings.add(message)
        if new:
            self._warn(message)


def look(folder: Path) -> list[Held]:
    """What a store holds of each space, the most recently used first, without writing anything.

    Raises:
        CacheError: there is no store that can be read.
    """
    return sqlite_file.look(folder / FILE, LAYOUT, _held)


@contextmanager
def opened(cache: "Cache", folder: Path, console: "Console") -> Iterator[Store | None]:
    """The store as a run uses it: None where it is off, or cannot be opened, which costs time and not the run."""
    store = None
    if cache.use != "off":
        try:
            store = Store(folder, cache.max_bytes, console.warn)
        except CacheError as error:
            console.warn(f"{error} Every activation is computed anew in this run.")
    try:
        yield store
    finally:
        if store is not None:
            store.close()


def _number(text: str) -> tuple[int, bytes]:
    """63 bits of the text's SHA-256, which is what SQLite's integers hold without a sign, and all of it."""
    digest = hashlib.sha256(text.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1, digest


def _checksum(digest: bytes, key: Key, value: bytes) -> int:
    picture, view = key
    return zlib.crc32(value, zlib.crc32(b"".join((digest, picture, len(view).to_bytes(8, "big"), view))))


def _now() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def _reserve(disk: int) -> int:
    """Bytes that stay free of a disk of so many: the weights, the export and MLflow's files need room too.

    A gigabyte or a twentieth of the disk, whichever is more, but of a small disk a quarter.
    """
    return min(max(RESERVE, disk // 20), disk // 4)


def _held(db: sqlite3.Connection) -> list[Held]:
    query = (
        "SELECT id, description, COUNT(*), TOTAL(bytes), MAX(used)"  # TOTAL: damaged numbers cannot overflow it
        " FROM space JOIN activation ON activation.space = space.id GROUP BY id ORDER BY MAX(used) DESC"
    )
    return [
        Held(json.loads(text), entries, _whole(int(total)), datetime.fromtimestamp(_whole(used) / 1e6, UTC))
        for number, text, entries, total, used in db.execute(query)
        # A description that is damaged is left out; the next write to its space mends it.
        if isinstance(text, bytes) and _number(text.decode(errors="replace"))[0] == number
    ]


def _count(db: sqlite3.Connection) -> int:
    count: int = db.execute("SELECT COUNT(*) FROM activation").fetchone()[0]
    return count


def _whole(number: Any) -> int:
    """A count of bytes or microseconds as it was written; damage may have made anything of it."""
    if not isinstance(number, int) or not 0 <= number < 1 << 53:
        raise DamageError("a number is malformed")
    return number
