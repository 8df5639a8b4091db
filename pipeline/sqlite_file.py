"""A SQLite file that several threads and processes use at once, and that is begun anew where it is damaged."""

import fcntl
import os
import sqlite3
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from pipeline.errors import CacheError

PAGE = 8192  # bytes; with larger ones a fifth of the file is lost beside activations of 25 kB
BUSY = 60.0  # seconds to wait for another process's transaction
LARGE_LOG = 16 << 20  # bytes of the write-ahead log from which it is folded into the file and cut

# What SQLite reports when the file may be sound but cannot be used now.
UNUSABLE = {
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_TOOBIG,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_PERM,
    sqlite3.SQLITE_AUTH,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PROTOCOL,
    sqlite3.SQLITE_NOLFS,
}

Result = TypeVar("Result")


class DamageError(Exception):
    """Damage that SQLite does not notice. The message is a clause: what is malformed."""


# UnicodeDecodeError: SQLite quotes what it cannot read.
BROKEN = (sqlite3.Error, DamageError, UnicodeDecodeError)


@dataclass(frozen=True)
class Layout:
    """What tells that a file is ours: its application_id, its user_version, and the statements that made its tables."""

    application: int
    version: int
    schema: tuple[str, ...]

    def check(self, db: sqlite3.Connection, path: Path) -> None:
        """Raises CacheError where the file, which is not empty, is another program's or of another version."""
        application, version = pragma(db, "application_id"), pragma(db, "user_version")
        if (application, version) != (self.application, self.version):
            other = f"format {version}" if application == self.application else "another program's file"
            raise CacheError(
                f"{path} is not an activation store that this version of Graft can use. Expected format "
                f"{self.version}, received {other}. Remove the file, put the store elsewhere with cache.dir, or do "
                "without it with cache: off."
            )

    def holds(self, db: sqlite3.Connection) -> bool:
        """Whether the tables are as they were made."""
        try:
            statements = {sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema")}
        except BROKEN:
            return False
        return statements == {statement.encode() for statement in self.schema}


@dataclass(eq=False)
class _Session:
    """A thread's connection, which ends with the thread, and the file that it is to: names pass to other files."""

    db: sqlite3.Connection
    inode: int | None

    def __del__(self) -> None:
        self.db.close()


class SqliteFile:
    """Connections to one file in write-ahead mode, one a thread; not to carry across a fork.

    A file that is damaged is removed and a new one begun; a file that was removed or replaced by others is opened anew.

    Args:
        path: the file; its folder is made.
        layout: what the file is or becomes.
        remedy: sentences on what to do where the file cannot be used.
        warn: called with one sentence when the file was damaged.
    """

    def __init__(self, path: Path, layout: Layout, remedy: str, warn: Callable[[str], None]) -> None:
        self.path = path
        self._layout = layout
        self._remedy = remedy
        self._warn = warn
        self._local = threading.local()
        self._sessions: weakref.WeakSet[_Session] = weakref.WeakSet()
        self._closed = False

    def do(self, work: Callable[[sqlite3.Connection], Result]) -> Result:
        """Runs work on this thread's connection, and again on a new file when this one is damaged.

        Raises:
            CacheError: the file cannot be used.
            sqlite3.Error: work is wrong, and the file is not.
        """
        for _ in range(3):
            session = self._session()
            try:
                return work(session.db)
            except BROKEN as error:
                if not self._damaged(session.db, error):
                    self.fold(session.db)  # what was rolled back still takes room in the log
                    raise self.unusable(error) from error
                with self._alone():
                    self._remove(session.inode, error)
        raise self._hopeless()

    def remove(self) -> None:
        """Removes the file, and its log with it. The next use begins a new one."""
        self._local.session = None
        with self._alone():
            self._unlink()

    def close(self) -> None:
        """Closes the file in all threads, none of which may be using it, without an error whatever has become of it."""
        self._closed = True
        try:
            with self._alone():
                self._end()
        except CacheError:  # The folder is gone or can no longer be written: there is no log to keep for others.
            self._end()

    def _end(self) -> None:
        for session in list(self._sessions):
            with suppress(sqlite3.Error):
                session.db.close()

    def settle(self, db: sqlite3.Connection, goal: int, large_log: int = LARGE_LOG) -> None:
        """Cuts off what the file holds beyond `goal` bytes and is free, and folds in a log larger than `large_log`."""
        with suppress(sqlite3.OperationalError):  # a full disk: what was committed before stays so
            over = min(pragma(db, "freelist_count"), pragma(db, "page_count") - goal // PAGE)
            piece = LARGE_LOG // PAGE  # what is moved passes through the log
            for start in range(0, over, piece):
                # It takes a step a page, of which execute() makes one.
                db.executescript(f"PRAGMA incremental_vacuum({min(piece, over - start)})")
                self.fold(db)
        if _size(_files(self.path)[1]) > large_log:
            self.fold(db)

    def fold(self, db: sqlite3.Connection) -> None:
        """Moves the log into the file and cuts it. What was committed stays so, whether that succeeds or not."""
        for statement in (
            "busy_timeout = 2000",  # milliseconds: readers are not worth a long wait here
            "wal_checkpoint(TRUNCATE)",
            f"busy_timeout = {int(BUSY * 1000)}",
        ):
            with suppress(sqlite3.Error):
                db.execute(f"PRAGMA {statement}").fetchall()

    def unusable(self, error: object) -> CacheError:
        """One paragraph on a file or folder that cannot be used."""
        if isinstance(error, FileExistsError | NotADirectoryError):
            return CacheError(
                f"The activation store cannot be in {self.path.parent}: it is not a folder, or is below what is none. "
                "Choose another cache.dir, or do without it with cache: off."
            )
        free = free_on(self.path.parent)
        room = "" if free is None else f", {free / 1e6:,.0f} MB free there"
        return CacheError(f"The activation store {self.path} cannot be used: {error}{room}. {self._remedy}")

    def _hopeless(self) -> CacheError:
        return CacheError(
            f"The activation store {self.path} was damaged, and so is each new one begun in its place. Check its disk, "
            "put it elsewhere with cache.dir, or do without it with cache: off."
        )

    def _session(self) -> _Session:
        """This thread's connection to the file that has the name now."""
        assert not self._closed, "the file is closed"
        session: _Session | None = getattr(self._local, "session", None)
        if session is None or session.inode != _inode(self.path):
            # A connection to a file that was removed or replaced ends here. SQLite notices that the file has moved, and
            # leaves the log of its successor alone.
            self._local.session = session = None
            self._local.session = session = self._open()
            self._sessions.add(session)
        return session

    def _open(self) -> _Session:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self.unusable(error) from error
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
                        raise self.unusable(error) from error
                    self._remove(session.inode, error)
        raise self._hopeless()

    def _set_up(self, db: sqlite3.Connection) -> None:
        _tune(db)
        if not pragma(db, "page_count"):
            db.execute(f"PRAGMA page_size = {PAGE}")
            db.execute("PRAGMA auto_vacuum = INCREMENTAL")
        new = not db.execute("SELECT 1 FROM sqlite_schema").fetchone()
        if not new:
            self._layout.check(db, self.path)
        for setting in ("journal_mode = WAL", f"journal_size_limit = {LARGE_LOG}", "synchronous = NORMAL"):
            db.execute(f"PRAGMA {setting}").fetchall()
        if new:
            with transaction(db, "IMMEDIATE"):
                for statement in self._layout.schema:
                    db.execute(statement)
                db.execute(f"PRAGMA application_id = {self._layout.application}")
                db.execute(f"PRAGMA user_version = {self._layout.version}")
        if pragma(db, "auto_vacuum") != 2 or pragma(db, "page_size") != PAGE:
            raise DamageError("its header is malformed")
        if not self._layout.holds(db):
            raise DamageError("its schema is malformed")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """One thread of one process at a time: the file and its log are opened, closed and removed together."""
        try:
            with self.path.with_suffix(".lock").open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
        except OSError as error:
            raise self.unusable(error) from error

    def _remove(self, inode: int | None, error: Exception) -> None:
        """Removes the damaged file, unless another thread or process has. The name is ours alone meanwhile."""
        if inode == _inode(self.path):
            self._unlink()
            self._warn(
                f"The activation store {self.path} is damaged ({error}): it is begun anew, and what it held is "
                "computed again."
            )

    def _unlink(self) -> None:
        for path in _files(self.path):
            path.unlink(missing_ok=True)

    def _damaged(self, db: sqlite3.Connection, error: Exception) -> bool:
        """Whether the file is damaged, rather than cannot be used now. What is neither is our own mistake: raised."""
        if not isinstance(error, sqlite3.Error):
            return True
        code = _code(error)
        if code == sqlite3.SQLITE_READONLY:  # a header that is damaged can say so
            return os.access(self.path, os.W_OK)
        if code == sqlite3.SQLITE_FULL and (free_on(self.path.parent) or 0) > LARGE_LOG:
            # The system limits how large a file may be, or a number of a page is damaged and lies beyond all files.
            return not sound(db)
        if code == sqlite3.SQLITE_ERROR and not self._layout.holds(db):  # "no such column"
            return True
        if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
            return True
        if code in UNUSABLE:
            return False
        raise error


def look(path: Path, layout: Layout, work: Callable[[sqlite3.Connection], Result]) -> Result:
    """Runs work on a connection that only reads, also where neither the file nor its folder may be written.

    Raises:
        CacheError: the file cannot be read, is damaged, or is of another layout.
    """

    def look_with(options: str) -> Result:
        address = f"{path.absolute().as_uri()}?{options}"
        with closing(sqlite3.connect(address, uri=True, timeout=BUSY, isolation_level=None)) as db:
            _tune(db)
            layout.check(db, path)
            return work(db)

    try:
        try:
            return look_with("mode=ro")
        except sqlite3.OperationalError as error:
            if _code(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
                raise
            # The log's index, which all who read must share, cannot be made here: what the file holds without its log.
            return look_with("mode=ro&immutable=1")
    except BROKEN as error:
        raise CacheError(
            f"The activation store {path} cannot be read: {error}. The next run that uses it begins it anew if it is "
            "damaged; graft cache --keep 0 removes it."
        ) from error


@contextmanager
def transaction(db: sqlite3.Connection, kind: str) -> Iterator[None]:
    """All that is done within, or nothing. `kind`: DEFERRED to read, IMMEDIATE to write."""
    db.execute(f"BEGIN {kind}")
    try:
        yield
        db.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):
            db.rollback()
        raise


def pragma(db: sqlite3.Connection, name: str) -> int:
    """The number that a pragma is set to."""
    value: int = db.execute(f"PRAGMA {name}").fetchone()[0]
    return value


def live(db: sqlite3.Connection) -> int:
    """Bytes of the pages in use."""
    return (pragma(db, "page_count") - pragma(db, "freelist_count")) * PAGE


def sound(db: sqlite3.Connection) -> bool:
    """Whether SQLite's own pages are; it reads the whole file."""
    try:
        return db.execute("PRAGMA quick_check(1)").fetchall() == [(b"ok",)]
    except BROKEN:
        return False


def size_of(path: Path) -> int:
    """Bytes of a file, its log and the log's index."""
    return sum(map(_size, _files(path)))


def free_on(folder: Path) -> int | None:
    """Bytes that a user may still write on the folder's disk, None where that cannot be told."""
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_frsize * disk.f_bavail


def _tune(db: sqlite3.Connection) -> None:
    db.text_factory = bytes  # text that is damaged cannot fail to decode
    # 4 MiB of cache and no mapping: memory must not grow with the store, nor a page that is lost be a SIGBUS.
    for setting in ("cache_size = -4096", "mmap_size = 0", "cell_size_check = ON"):
        db.execute(f"PRAGMA {setting}").fetchall()


def _code(error: sqlite3.Error) -> int | None:
    """SQLite's primary result code; None where Python's module raises by itself."""
    code = getattr(error, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF


def _files(path: Path) -> tuple[Path, Path, Path]:
    """The file, its write-ahead log and the log's index."""
    return path, path.with_name(f"{path.name}-wal"), path.with_name(f"{path.name}-shm")


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
