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

import fcntl
import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from pipeline.errors import CacheError

if TYPE_CHECKING:
    from pipeline.config import Cache
    from pipeline.console import Console

FILE = "activations.sqlite"
FORMAT = 1  # user_version of the file: another number is another layout
APPLICATION = 0x47724163  # application_id of the file: "GrAc"
PAGE = 8192  # bytes; with larger ones a fifth of the file is lost beside activations of 25 kB
BUSY = 60.0  # seconds to wait for another process's transaction
LARGE_LOG = 16 << 20  # bytes of the write-ahead log from which it is folded into the file and cut
ROOM = 0.95  # of max_bytes: what eviction goes down to, so that it does not run at every write

SCHEMA = (
    "CREATE TABLE space (id INTEGER PRIMARY KEY, description TEXT, created INTEGER, seconds_per_image REAL)",
    # Keys and values are apart so that marking a key as used does not rewrite its value.
    "CREATE TABLE activation (space INTEGER, picture BLOB, view BLOB, value INTEGER, checksum INTEGER, bytes INTEGER,"
    " used INTEGER, PRIMARY KEY (space, picture, view)) WITHOUT ROWID",
    "CREATE TABLE value (id INTEGER PRIMARY KEY, bytes BLOB)",
    "CREATE TABLE decodable (pixels INTEGER, picture BLOB, added INTEGER, PRIMARY KEY (pixels, picture)) WITHOUT ROWID",
)
OF_KEY = "WHERE space = ? AND picture = ? AND view = ?"
DELETE_VALUE = f"DELETE FROM value WHERE id = (SELECT value FROM activation {OF_KEY})"

# What SQLite reports when the file may be sound but cannot be used now; all else is damage.
UNUSABLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
}

# UnicodeDecodeError: SQLite quotes what it cannot read.
BROKEN = (sqlite3.DatabaseError, UnicodeDecodeError)

Key = tuple[bytes, bytes]  # picture's SHA-256 (32 bytes), view
Result = TypeVar("Result")


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


@dataclass(eq=False)
class _Session:
    """A thread's connection, which ends with the thread, and the file that it is to: names pass to other files."""

    db: sqlite3.Connection
    inode: int | None

    def __del__(self) -> None:
        self.db.close()


class Store:
    """Activations by space, picture and view; safe to use from several threads, not to carry across a fork.

    Args:
        folder: where `activations.sqlite` lies or is made.
        max_bytes: how large the file may become. Writing more removes the least recently used first. The write-ahead
            log comes on top while a write lasts.
        warn: called with one sentence when something was found damaged.

    Raises:
        CacheError: the folder cannot be made or written, or the file is not a store of this version.
    """

    def __init__(self, folder: Path, max_bytes: int, warn: Callable[[str], None]) -> None:
        self.path = folder / FILE
        self.max_bytes = max_bytes
        self._warn = warn
        self._warnings: set[str] = set()
        self._examined = False
        self._opened = _now()
        self._spaces: dict[int, _Space] = {}
        self._lock = threading.Lock()
        self._local = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._closed = False
        self._do(lambda db: None)

    def space(self, description: Mapping[str, Any]) -> int:
        """The number of the space so described, the same in every store; the order of keys does not matter."""
        text = json.dumps(description, sort_keys=True, separators=(",", ":"), allow_nan=False)
        number, digest = _number(text)
        self._spaces[number] = _Space(text, digest)
        return number

    def present(self, space: int, keys: Sequence[Key]) -> list[bool]:
        """Which of the keys are there; those are marked as used now, unless the disk does not allow it."""
        try:
            return self._do(lambda db: self._present(db, space, keys, mark=True))
        except CacheError:
            return self._do(lambda db: self._present(db, space, keys, mark=False))

    def _present(self, db: sqlite3.Connection, space: int, keys: Sequence[Key], mark: bool) -> list[bool]:
        there = [False] * len(keys)
        now = _now()
        with _transaction(db, "IMMEDIATE" if mark else "DEFERRED"):
            # In the order of the table, neighbours share a page that is then read and written once.
            for place in sorted(range(len(keys)), key=keys.__getitem__):
                if mark:
                    found = db.execute(f"UPDATE activation SET used = ? {OF_KEY}", (now, space, *keys[place]))
                    there[place] = found.rowcount > 0
                else:
                    found = db.execute(f"SELECT 1 FROM activation {OF_KEY}", (space, *keys[place]))
                    there[place] = found.fetchone() is not None
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
        with _transaction(db, "DEFERRED"):
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
        with _transaction(db, "IMMEDIATE"):
            db.executemany(DELETE_VALUE, named)
            db.executemany(f"DELETE FROM activation {OF_KEY}", named)
        # Pages that two values share would damage entries again and again. To look takes as long as to read the file.
        if not self._examined:
            self._examined = True
            if not _sound(db):
                raise sqlite3.DatabaseError("its pages are malformed")

    def write(self, space: int, entries: Sequence[tuple[Key, bytes]]) -> None:
        """Keeps all the entries, or none; those already there are replaced.

        When the file would exceed max_bytes the least recently used entries are removed, never these.

        Raises:
            CacheError: the entries alone exceed max_bytes, the disk is full, or the file cannot be written. The store
                is then as it was before.
        """
        new = dict(entries)
        if new:
            self._do(lambda db: self._write(db, space, new))

    def _write(self, db: sqlite3.Connection, space: int, new: Mapping[Key, bytes]) -> None:
        now = _now()
        digest = self._spaces[space].digest
        needed = sum(map(len, new.values()))
        if needed > self.max_bytes:
            raise self._too_large(needed)
        evicted = 0
        with _transaction(db, "IMMEDIATE"):
            self._insert_space(db, space)
            # Room is made first, so that what is written takes the pages that become free and the file does not grow.
            if _live(db) + needed > self.max_bytes:
                evicted = self._evict(db, int(ROOM * self.max_bytes) - needed)
            rows = []
            for key, value in new.items():
                number = db.execute("INSERT INTO value (bytes) VALUES (?)", (value,)).lastrowid
                rows.append((space, *key, number, _checksum(digest, key, value), len(value), now))
            rows.sort()  # in the order of the table, neighbours share a page that is then written once
            db.executemany(DELETE_VALUE, (row[:3] for row in rows))
            db.executemany("INSERT OR REPLACE INTO activation VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            if _live(db) > self.max_bytes:
                evicted = self._evict(db, int(ROOM * self.max_bytes), spared=now)
                if _live(db) > self.max_bytes:
                    raise self._too_large(needed)
        self._settle(db, self.max_bytes)
        if evicted >= self._opened:
            self._warn_once(
                f"The activation store {self.path} may hold {self.max_bytes / 1e6:,.1f} MB, less than is in use: what "
                "was removed to make room will be computed again. Raise cache.max_bytes."
            )

    def _insert_space(self, db: sqlite3.Connection, space: int) -> None:
        """A space stands in the file from its first entry on, and again after the file was begun anew."""
        db.execute(
            "INSERT INTO space (id, description, created) VALUES (?, ?, ?)"
            " ON CONFLICT DO UPDATE SET description = excluded.description WHERE description != excluded.description",
            (space, self._spaces[space].description, _now()),
        )

    def speed(self, space: int) -> float | None:
        """Seconds that computing one activation of the space took, None if not known."""
        row = self._do(lambda db: db.execute("SELECT seconds_per_image FROM space WHERE id = ?", (space,)).fetchone())
        return row[0] if row and isinstance(row[0], float) else None

    def set_speed(self, space: int, seconds_per_image: float) -> None:
        """Notes the seconds that computing one activation of the space took."""

        def work(db: sqlite3.Connection) -> None:
            with _transaction(db, "IMMEDIATE"):
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
        number, now = _number(pixels)[0], _now()
        rows = [(number, picture, now) for picture in sorted(set(pictures))]

        def work(db: sqlite3.Connection) -> None:
            with _transaction(db, "IMMEDIATE"):
                db.executemany("INSERT OR REPLACE INTO decodable VALUES (?, ?, ?)", rows)

        with suppress(CacheError):  # As above.
            self._do(work)

    def held(self) -> list[Held]:
        """What there is of each space, the most recently used first."""
        query = (
            "SELECT id, description, COUNT(*), SUM(bytes), MAX(used)"
            " FROM space JOIN activation ON activation.space = space.id GROUP BY id ORDER BY MAX(used) DESC"
        )
        return self._do(
            lambda db: [
                Held(json.loads(text), entries, _whole(total), datetime.fromtimestamp(_whole(used) / 1e6, UTC))
                for number, text, entries, total, used in db.execute(query)
                # A description that is damaged is left out; the next write to its space mends it.
                if isinstance(text, bytes) and _number(text.decode(errors="replace"))[0] == number
            ]
        )

    @property
    def size(self) -> int:
        """Bytes of the files on disk."""
        return sum(_size(path) for path in self._files())

    @property
    def room(self) -> int:
        """Bytes that the store could hold, with all it holds now removed: max_bytes, or what the disk has."""
        return min(self.max_bytes, self.size + shutil.disk_usage(self.path.parent).free)

    def prune(self, max_bytes: int | None = None, unused_since: datetime | None = None) -> Pruned:
        """Removes what was not used since a moment (with its time zone), then the least recently used beyond max_bytes.

        The room is given back to the file system. To remove needs a little room in the log, but for max_bytes 0, which
        removes the file as a whole and so works on a full disk.

        Raises:
            CacheError: the file cannot be written.
        """
        before = self.size
        if max_bytes == 0:
            removed = self._do(_count)
            self._local.session = None
            with self._alone():
                self._unlink()
        else:
            removed = self._do(lambda db: self._prune(db, max_bytes, unused_since))
        return Pruned(removed, max(before - self.size, 0))

    def _prune(self, db: sqlite3.Connection, max_bytes: int | None, unused_since: datetime | None) -> int:
        with _transaction(db, "IMMEDIATE"):
            before = _count(db)
            if unused_since is not None:
                moment = int(unused_since.timestamp() * 1e6)
                self._delete(db, "used < ?", (moment,))
                db.execute("DELETE FROM decodable WHERE added < ?", (moment,))
            if max_bytes is not None:
                self._evict(db, max_bytes)
            db.execute("DELETE FROM space WHERE id NOT IN (SELECT DISTINCT space FROM activation)")
            removed = before - _count(db)
        self._settle(db, 0)
        return removed

    def close(self) -> None:
        """Closes the file in all threads; none may be using it."""
        self._closed = True
        with self._alone():
            for session in list(self._sessions):
                session.db.close()

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
        while (excess := _live(db) - goal) > 0:
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

    def _settle(self, db: sqlite3.Connection, max_bytes: int) -> None:
        """Cuts off what the file holds beyond max_bytes and is free, and folds in a log that has become large."""
        with suppress(sqlite3.OperationalError):  # a full disk: what was committed before stays so
            over = min(_pragma(db, "freelist_count"), _pragma(db, "page_count") - max_bytes // PAGE)
            piece = LARGE_LOG // PAGE  # what is moved passes through the log
            for start in range(0, over, piece):
                # It takes a step a page, of which execute() makes one.
                db.executescript(f"PRAGMA incremental_vacuum({min(piece, over - start)})")
                self._fold(db)
        if max_bytes == 0 or _size(self._files()[1]) > LARGE_LOG:
            self._fold(db)

    def _fold(self, db: sqlite3.Connection) -> None:
        """Moves the log into the file and cuts it. What was committed stays so, whether that succeeds or not."""
        with suppress(sqlite3.OperationalError):
            db.execute("PRAGMA busy_timeout = 2000")  # milliseconds: readers are not worth a long wait here
            db.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        db.execute(f"PRAGMA busy_timeout = {int(BUSY * 1000)}")

    def _do(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Runs work on this thread's connection, and again on a new file when this one is damaged."""
        for _ in range(3):
            session = self._session()
            try:
                return work(session.db)
            except sqlite3.ProgrammingError:
                raise
            except BROKEN as error:
                if not self._damaged(session.db, error):
                    self._fold(session.db)  # what was rolled back still takes room in the log
                    raise self._error(error) from error
                with self._alone():
                    self._remove_file(session.inode, error)
        raise self._hopeless()

    def _session(self) -> _Session:
        """This thread's connection to the file that has the name now."""
        assert not self._closed, "the store is closed"
        session: _Session | None = getattr(self._local, "session", None)
        if session is None or session.inode != _inode(self.path):
            # A connection to a file that was removed or replaced ends here. SQLite notices that the file has moved, and
            # leaves the log of its successor alone.
            self._local.session = session = None
            self._local.session = session = self._open()
            self._sessions.add(session)
        return session

    def _open(self) -> _Session:
        with self._alone():
            for _ in range(3):
                session = None
                try:
                    db = sqlite3.connect(self.path, timeout=BUSY, isolation_level=None, check_same_thread=False)
                    session = _Session(db, _inode(self.path))
                    self._set_up(db)
                    return session
                except BROKEN as error:
                    if session is None or not self._damaged(session.db, error):
                        raise self._error(error) from error
                    self._remove_file(session.inode, error)
        raise self._hopeless()

    def _set_up(self, db: sqlite3.Connection) -> None:
        db.text_factory = bytes  # text that is damaged cannot fail to decode
        # 4 MiB of cache and no mapping: memory must not grow with the store, nor a page that is lost be a SIGBUS.
        for pragma in ("cache_size = -4096", "mmap_size = 0", "cell_size_check = ON"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        if not _pragma(db, "page_count"):
            db.execute(f"PRAGMA page_size = {PAGE}")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        new = not db.execute("SELECT 1 FROM sqlite_schema").fetchone()
        application, version = _pragma(db, "application_id"), _pragma(db, "user_version")
        if not new and (application, version) != (APPLICATION, FORMAT):
            other = f"format {version}" if application == APPLICATION else "another program's file"
            raise CacheError(
                f"{self.path} is not an activation store that this version of Graft can use. Expected format {FORMAT}, "
                f"received {other}. Remove the file, put the store elsewhere with cache.dir, or do without it with "
                "cache: off."
            )
        for pragma in ("journal_mode = WAL", f"journal_size_limit = {LARGE_LOG}", "synchronous = NORMAL"):
            db.execute(f"PRAGMA {pragma}").fetchall()
        if new:
            with _transaction(db, "IMMEDIATE"):
                for statement in SCHEMA:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {APPLICATION}")
                db.execute(f"PRAGMA user_version = {FORMAT}")
        if _pragma(db, "auto_vacuum") != 2 or _pragma(db, "page_size") != PAGE:
            raise sqlite3.DatabaseError("its header is malformed")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread of one process at a time: the file and its log are opened, closed and removed together."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise self._error(error) from error

    def _remove_file(self, inode: int | None, error: Exception) -> None:
        """Removes the damaged file, unless another thread or process has. The name is ours alone meanwhile."""
        if inode == _inode(self.path):
            self._unlink()
            self._warn(
                f"The activation store {self.path} is damaged ({error}): it is begun anew, and what it held is "
                "computed again."
            )

    def _unlink(self) -> None:
        for path in self._files():
            path.unlink(missing_ok=True)

    def _files(self) -> tuple[Path, Path, Path]:
        """The file, its write-ahead log and the log's index."""
        return self.path, self.path.with_name(f"{FILE}-wal"), self.path.with_name(f"{FILE}-shm")

    def _damaged(self, db: sqlite3.Connection, error: Exception) -> bool:
        """Whether the file is damaged, rather than cannot be used now."""
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
        if code == sqlite3.SQLITE_READONLY:  # a header that is damaged can say so
            return os.access(self.path, os.W_OK)
        if code == sqlite3.SQLITE_FULL and shutil.disk_usage(self.path.parent).free > LARGE_LOG:
            # The system limits how large a file may be, or a number of a page is damaged and lies beyond all files.
            return not _sound(db)
        return code not in UNUSABLE

    def _error(self, error: Exception) -> CacheError:
        """One paragraph on a file or folder that cannot be used."""
        try:
            free = f", {shutil.disk_usage(self.path.parent).free / 1e6:,.0f} MB free there"
        except OSError:
            free = ""
        return CacheError(
            f"The activation store {self.path} cannot be used: {error}{free}. Make room or mend what is wrong, let it "
            f"hold less with cache.max_bytes (now {self.max_bytes / 1e6:,.0f} MB), put it elsewhere with cache.dir, or "
            "do without it with cache: off."
        )

    def _hopeless(self) -> CacheError:
        return CacheError(
            f"The activation store {self.path} was damaged, and so is each new one begun in its place. Check its disk, "
            "put it elsewhere with cache.dir, or do without it with cache: off."
        )

    def _too_large(self, needed: int) -> CacheError:
        return CacheError(
            f"The activation store {self.path} may hold {self.max_bytes / 1e6:,.1f} MB, and {needed / 1e6:,.1f} MB "
            "were to be written at once. Raise cache.max_bytes, or do without the store with cache: off."
        )

    def _warn_once(self, message: str) -> None:
        with self._lock:
            new = message not in self._warnings
            self._warnings.add(message)
        if new:
            self._warn(message)


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


@contextmanager
def _transaction(db: sqlite3.Connection, kind: str) -> Iterator[None]:
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.rollback()
        raise


def _pragma(db: sqlite3.Connection, name: str) -> int:
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def _live(db: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    return (_pragma(db, "page_count") - _pragma(db, "freelist_count")) * PAGE


def _sound(db: sqlite3.Connection) -> bool:
    """Whether SQLite's own pages are; it reads the whole file."""
    try:
        return db.execute("PRAGMA quick_check(1)").fetchall() == [(b"ok",)]
    except BROKEN:
        return False


def _count(db: sqlite3.Connection) -> int:
    count: int = db.execute("SELECT COUNT(*) FROM activation").fetchone()[0]
    return count


def _whole(number: Any) -> int:
    """A count of bytes or microseconds as it was written; damage may have made anything of it."""
    if not isinstance(number, int) or not 0 <= number < 1 << 53:
        raise sqlite3.DatabaseError("a number is malformed")
    return number


def _inode(path: Path) -> int | None:
    try:
        return path.stat().st_ino
    except OSError:
        return None


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
