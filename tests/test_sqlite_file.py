"""The store's file: shared, killed, damaged, lost, only looked at; never wrong bytes."""

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path

import pytest

from pipeline import activations
from pipeline.activations import FILE, LAYOUT, TURN, Store, look, opened
from pipeline.config import Cache
from pipeline.console import Console
from pipeline.errors import CacheError
from pipeline.sqlite_file import PAGE
from tests.stores import (
    CHILD,
    DESCRIPTION,
    LARGE,
    ROOT,
    child,
    entries,
    finish,
    key,
    keys,
    refuse,
    sound,
    value,
    values,
)


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path, LARGE, refuse) as store:
        yield store


# Where it cannot be


@pytest.mark.parametrize("below", [".", "deeper"])
def test_a_file_in_place_of_the_folder(tmp_path, below):
    (tmp_path / "file").touch()
    with pytest.raises(CacheError, match=r"file.*not a folder.* cache\.dir.*cache: off"):
        Store(tmp_path / "file" / below, LARGE, refuse)


def test_a_folder_in_place_of_the_file(tmp_path):
    (tmp_path / FILE).mkdir()
    with pytest.raises(CacheError, match=r"cannot be used: unable to open database file, [\d,]+ MB free there\. "):
        Store(tmp_path, LARGE, refuse)


@pytest.mark.parametrize(
    ("change", "received"),
    [("PRAGMA user_version = 2", "format 2"), ("PRAGMA application_id = 1", "another program's file")],
)
def test_a_file_of_another_version_is_left_alone(tmp_path, change, received):
    with Store(tmp_path, LARGE, refuse) as store:
        store.write(store.space({}), entries(range(3)))
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute(change)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(CacheError, match=rf"Expected format 1, received {received}\. Remove the file"):
        Store(tmp_path, LARGE, refuse)
    assert (tmp_path / FILE).read_bytes() == before


# Several at once


def test_many_keys_are_marked_in_turns(store, monkeypatch):
    """Others get to write between them."""
    monkeypatch.setattr(activations, "TURN", 7)
    begun = []
    monkeypatch.setattr(
        activations, "transaction", lambda db, kind, real=activations.transaction: begun.append(kind) or real(db, kind)
    )
    space = store.space({})
    store.write(space, entries(range(0, 50, 2)))
    begun.clear()
    assert store.present(space, keys(range(50))) == [n % 2 == 0 for n in range(50)]
    assert begun == ["IMMEDIATE"] * 8
    assert store.present(space, []) == []
    assert TURN == 10_000


def test_many_threads_read_while_one_writes(store):
    space = store.space({})
    known = [0]
    wrong = []
    done = threading.Event()

    def read(seed: int) -> None:
        chance = random.Random(seed)
        while not done.is_set():
            numbers = [chance.randrange(known[0] + 50) for _ in range(20)]
            surely = known[0]
            for n, got in zip(numbers, store.read(space, keys(numbers)), strict=True):
                if got != value(n) and (got is not None or n < surely):
                    wrong.append((n, got))

    threads = [threading.Thread(target=read, args=(seed,)) for seed in range(12)]
    for thread in threads:
        thread.start()
    for start in range(0, 600, 50):
        store.write(space, entries(range(start, start + 50)))
        known[0] = start + 50
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong
    assert store.read(space, keys(range(600))) == values(range(600))


def test_a_thread_that_ends_leaves_no_file_open(store):
    space, counts = store.space({}), []
    for _ in range(50):
        thread = threading.Thread(target=store.read, args=(space, keys(range(3))))
        thread.start()
        thread.join()
        counts.append(len(list(Path("/proc/self/fd").iterdir())))
    assert counts[-1] <= counts[0]


WRITER = """
me = int(rest[0])
for start in range(0, 400, 20):
    numbers = range(start, start + 20)
    store.write(space, [(key(n), value(n, me)) for n in numbers])
    for n, got in zip(numbers, store.read(space, [key(n) for n in numbers])):
        assert got in (value(n, 1), value(n, 2)), n
store.close()
"""


@pytest.mark.slow
def test_two_processes_write_the_same_keys_at_once(store, tmp_path):
    writers = [child(tmp_path, LARGE, WRITER, me) for me in (1, 2)]
    space = store.space({"test": 1})
    while any(writer.poll() is None for writer in writers):
        for n, got in enumerate(store.read(space, keys(range(400)))):
            assert got in (None, value(n, 1), value(n, 2))
    for writer in writers:
        finish(writer)
    assert all(store.present(space, keys(range(400))))
    assert sound(tmp_path)


def test_two_processes_make_the_store_at_once(tmp_path):
    for attempt in range(3):
        folder = tmp_path / str(attempt)
        for process in [child(folder, LARGE, "store.write(space, [(key(n), value(n)) for n in range(9)])")] * 3:
            finish(process)
        assert sound(folder)


# Killed

ENDLESS = """
n = int(rest[0])
while True:
    batch = range(n, n + 1 + n % 13)
    store.present(space, [key(n) for n in range(max(0, n - 40), n)])
    store.write(space, [(key(n), value(n)) for n in batch])
    n = batch.stop
    print(n, flush=True)
"""


@pytest.mark.slow
def test_a_writer_killed_at_any_moment(tmp_path):
    """Fifty times, with a store small enough that it evicts; what was acknowledged is there, all there is is right."""
    chance = random.Random(0)
    limit = 4_000_000
    reached = 0
    for _ in range(50):
        writer = child(tmp_path, limit, ENDLESS, reached)
        time.sleep(chance.uniform(0.02, 0.3))
        os.kill(writer.pid, signal.SIGKILL)
        acknowledged = [int(line) for line in writer.communicate()[0].splitlines() if line.strip().isdigit()]
        reached = acknowledged[-1] if acknowledged else reached
        with Store(tmp_path, limit, refuse) as store:
            space = store.space({"test": 1})
            numbers = range(max(0, reached - 1500), reached + 13)
            there = store.present(space, keys(numbers))
            read = store.read(space, keys(numbers))
            assert read == [value(n) if is_there else None for n, is_there in zip(numbers, there, strict=True)]
            assert all(there[-14:-13])  # what the last write that was acknowledged put in
            assert sum(there) == sum(held.entries for held in store.held())
        assert sound(tmp_path)
        assert (tmp_path / FILE).stat().st_size <= 1.05 * limit  # killed before the file was cut
    assert reached > 1000, "the writer hardly got to write"


# Damaged


def damage(path: Path, sql: str, *arguments: object) -> None:
    with closing(sqlite3.connect(path / FILE)) as db, db:
        db.execute(sql, arguments)


@pytest.mark.parametrize(
    "sql",
    [
        "UPDATE value SET bytes = substr(bytes, 1, 99) || x'00' || substr(bytes, 101) WHERE id IN (2, 3)",
        "UPDATE value SET bytes = substr(bytes, 2) WHERE id IN (2, 3)",
        "UPDATE value SET bytes = 'text' WHERE id IN (2, 3)",
        "UPDATE value SET bytes = NULL WHERE id IN (2, 3)",
        "DELETE FROM value WHERE id IN (2, 3)",
        "UPDATE activation SET value = 5 - value WHERE value IN (2, 3)",
        "UPDATE activation SET value = 77 WHERE value IN (2, 3)",
        "UPDATE activation SET checksum = checksum + 1 WHERE value IN (2, 3)",
        "UPDATE activation SET checksum = NULL WHERE value IN (2, 3)",
    ],
)
def test_a_damaged_entry_is_not_given_but_removed(tmp_path, sql):
    warnings = []
    with Store(tmp_path, LARGE, warnings.append) as store:
        space, numbers = store.space({}), range(0, 50, 5)  # values of one length, as in a space of activations
        store.write(space, entries(numbers))
        damage(tmp_path, sql)
        expected = [None if place in (1, 2) else value(n) for place, n in enumerate(numbers)]
        assert store.read(space, keys(numbers)) == expected
        assert store.present(space, keys(numbers)) == [v is not None for v in expected]
        assert len(warnings) == 1
        assert "has damaged entries: they are removed and computed again" in warnings[0]
        store.write(space, entries(n for n, kept in zip(numbers, expected, strict=True) if kept is None))
        assert store.read(space, keys(numbers)) == values(numbers)
        damage(tmp_path, sql.replace("2, 3", "4, 5").replace("5 - value", "9 - value"))
        assert store.read(space, keys(numbers)).count(None) == 2
        assert len(warnings) == 1


def test_an_activation_of_another_view_picture_or_space_is_noticed(tmp_path):
    """Only the key tells these apart: the bytes are whole."""
    with Store(tmp_path, LARGE, lambda message: None) as store:
        (picture, view), bytes_ = (b"a" * 32, b"v"), value(0)
        spaces = store.space({"n": 1}), store.space({"n": 2})
        for column, changed in [("view", b"w"), ("picture", b"b" * 32), ("space", spaces[1])]:
            store.write(spaces[0], [((picture, view), bytes_)])
            damage(tmp_path, f"UPDATE activation SET {column} = ?", changed)
            asked = {"space": spaces[0], "picture": picture, "view": view} | {column: changed}
            assert store.read(asked["space"], [(asked["picture"], asked["view"])]) == [None]


@pytest.mark.parametrize("small", [True, False])
def test_a_file_with_a_damaged_entry_is_looked_through_once(tmp_path, monkeypatch, small):
    """At once if it is small, else when the run is done with it: a large file takes minutes."""
    looks = []
    monkeypatch.setattr(activations, "sound", lambda db: looks.append(db) or len(looks) > 1)
    monkeypatch.setattr(activations, "SMALL", LARGE if small else 0)
    warnings = []
    with Store(tmp_path, LARGE, warnings.append) as store:
        space = store.space({})
        store.write(space, entries(range(40)))
        for _ in range(2):
            damage(tmp_path, "UPDATE value SET bytes = x'00' WHERE id = (SELECT max(id) FROM value)")
            assert None in store.read(space, keys(range(40)))
            assert len(looks) == small
            store.write(space, entries(range(40)))
            assert store.read(space, keys(range(40))) == values(range(40))
    assert len(looks) == 1
    assert sum("begun anew" in warning for warning in warnings) == 1
    with Store(tmp_path, LARGE, refuse) as store:
        assert store.present(store.space({}), keys(range(40))) == [small] * 40


def test_a_damaged_schema_is_damage_and_our_own_mistake_is_not(tmp_path):
    warnings = []
    with Store(tmp_path, LARGE, warnings.append) as store:
        space = store.space({})
        store.write(space, entries(range(9)))
        for mistake in ("SELECT * FROM elsewhere", "INSERT INTO value SELECT id, bytes FROM value", "SELECT ?"):
            with pytest.raises(sqlite3.Error, match=r"no such table|UNIQUE constraint|number of bindings"):
                store._do(lambda db, mistake=mistake: db.execute(mistake))
        assert store.read(space, keys(range(9))) == values(range(9))
        assert not warnings
        with closing(sqlite3.connect(tmp_path / FILE)) as db, db:
            db.execute("PRAGMA writable_schema = ON")
            db.execute("UPDATE sqlite_schema SET sql = replace(sql, 'bytes', 'bytez') WHERE name = 'value'")
            db.execute("PRAGMA schema_version = 99")
        assert store.read(space, keys(range(9))) == [None] * 9
        store.write(space, entries(range(9)))
    assert len(warnings) == 1
    assert "begun anew" in warnings[0]
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        assert LAYOUT.schema == tuple(sql for (sql,) in db.execute("SELECT sql FROM sqlite_schema"))


FULL = 600  # entries in the file that is damaged below


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of a store in use, its log and the log's index with them, and of one that was closed."""
    open_, closed = tmp_path_factory.mktemp("open"), tmp_path_factory.mktemp("closed")
    live = tmp_path_factory.mktemp("live")
    with Store(live, LARGE, refuse) as store:
        for start in range(0, FULL, 60):
            store.write(store.space({"test": start % 2}), entries(range(start, start + 60)))
        store.add_decodable("settings", (key(n)[0] for n in range(FULL)))
        store.set_speed(store.space({"test": 0}), 0.5)
        damage(live, "PRAGMA wal_checkpoint")
        store.write(store.space({"test": 0}), entries(range(60), writer=1))
        shutil.copytree(live, open_, dirs_exist_ok=True)
    shutil.copytree(live, closed, dirs_exist_ok=True)
    assert (open_ / f"{FILE}-wal").stat().st_size > 100_000
    assert not (closed / f"{FILE}-wal").exists()
    return {"open": open_, "closed": closed}


def flip(path: Path, chance: random.Random, count: int, within: int | None = None) -> None:
    """Turns bits of the file over, but those that say whose file it is and of which version."""
    size = path.stat().st_size
    with path.open("r+b") as file:
        for _ in range(count):
            place = chance.randrange(min(within or size, size))
            if path.name == FILE and (60 <= place < 64 or 68 <= place < 72):
                continue
            file.seek(place)
            byte = file.read(1)[0]
            file.seek(place)
            file.write(bytes([byte ^ 1 << chance.randrange(8)]))


def use(store: Store) -> None:
    """Every public way to use the store: right or missing, never wrong, never an error; and it can be written again."""
    good = [{value(n, 1), value(n)} if n < 60 else {value(n)} for n in range(FULL)]
    for which in (0, 1):
        space = store.space({"test": which})
        store.present(space, keys(range(FULL)))
        for n, got in enumerate(store.read(space, keys(range(FULL)))):
            assert got is None or got in good[n], f"entry {n} of space {which} is wrong"
        store.speed(space)
    store.held()
    assert not store.decodable("other settings", key(0)[0])
    space = store.space({"test": 0})
    for _ in range(3):  # what is damaged may show in any of these, and the file is then begun anew
        store.write(space, entries(range(FULL)))
        store.add_decodable("settings", [key(n)[0] for n in range(9)])
        store.set_speed(space, 0.5)
        store.prune(max_bytes=LARGE)
        if store.read(space, keys(range(FULL))) == values(range(FULL)):
            break
    else:
        pytest.fail("what was written to the new file is not there")


@pytest.mark.slow
@pytest.mark.parametrize("state", ["closed", "open"])
@pytest.mark.parametrize("running", [False, True], ids=["before", "during"])
def test_bits_that_turned_over(tmp_path, whole, state, running):
    """In the file or its log, before the store is opened or while it is."""
    outcomes = set()
    for seed in range(24):
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(whole[state], folder)
        warnings = []
        store = Store(folder, LARGE, warnings.append) if running else None
        if store:
            store.read(store.space({"test": 0}), keys(range(0, FULL, 7)))
        files = [path for path in (folder / FILE, folder / f"{FILE}-wal") if path.exists() and path.stat().st_size]
        # Few bits anywhere, some in the header, or so many that hardly a page is left whole.
        count, within = [(3, None), (2, 100), (30, 3 * PAGE), (2000, None)][seed % 4]
        for path in files:
            flip(path, chance, count, within)
        with store or Store(folder, LARGE, warnings.append) as store:
            use(store)
        with Store(folder, LARGE, refuse) as store:
            assert store.read(store.space({"test": 0}), keys(range(FULL))) == values(range(FULL))
        outcomes.add("begun anew" if any("begun anew" in w for w in warnings) else bool(warnings))
        shutil.rmtree(folder)
    assert {"begun anew", True} <= outcomes


@pytest.mark.parametrize("running", [False, True], ids=["before", "during"])
def test_a_file_cut_short_or_overwritten(tmp_path, whole, running):
    for seed, size in enumerate(
        (0, 1, 50, 100, 511, PAGE - 1, PAGE, 10 * PAGE, 10 * PAGE + 7, "zeros", "text", "gone")
    ):
        folder = tmp_path / str(seed)
        shutil.copytree(whole["open" if size == "gone" else "closed"], folder)
        warnings = []
        store = Store(folder, LARGE, warnings.append) if running else None
        path = folder / FILE
        if size == "zeros":
            path.write_bytes(bytes(path.stat().st_size))
        elif size == "text":
            path.write_text("Not a database.\n" * 10_000)
        elif size == "gone":
            path.unlink()
        else:
            os.truncate(path, size)
        with store or Store(folder, LARGE, warnings.append) as store:
            use(store)
        assert sound(folder)


@pytest.mark.parametrize(
    ("place", "byte"),
    [(0, 0), (17, 16), (18, 3), (19, 3), (20, 9), (55, 0), (59, 3), (67, 0)],
    ids=["magic", "page size", "read-only", "unreadable", "reserved", "root", "encoding", "vacuum"],
)
def test_a_damaged_header(tmp_path, place, byte):
    """Some of these SQLite does not call damage."""
    warnings = []
    with Store(tmp_path, LARGE, refuse) as store:
        store.write(store.space({"test": 0}), entries(range(FULL)))
    with (tmp_path / FILE).open("r+b") as file:
        file.seek(place)
        file.write(bytes([byte]))
    with Store(tmp_path, LARGE, warnings.append) as store:
        use(store)
        assert store.prune(max_bytes=1_000_000).bytes > 4_000_000
    assert sum("begun anew" in warning for warning in warnings) == 1
    assert sound(tmp_path)


@pytest.mark.parametrize("column", ["used", "bytes", "value"])
@pytest.mark.parametrize("number", ["NULL", "'text'", "-1", "1 << 62"])
def test_damaged_numbers(tmp_path, column, number):
    """By which the store would choose what to remove, or tell what it holds."""
    warnings = []
    with Store(tmp_path, 1_000_000, warnings.append) as store:
        space = store.space({})
        store.write(space, entries(range(40)))
        damage(tmp_path, f"UPDATE activation SET {column} = {number} WHERE value > 30")
        store.held()
        for start in range(100, 300, 40):
            store.write(space, entries(range(start, start + 40)))
        assert store.read(space, keys(range(260, 300))) == values(range(260, 300))
        assert store.held()[0].entries < 120
    assert sum("begun anew" in warning for warning in warnings) == 1


def overwrite(path: Path) -> None:
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)


def test_threads_go_on_with_the_new_file(tmp_path):
    """Connections of other threads to the damaged file neither fail nor touch the new one's log."""
    warnings = []
    store = Store(tmp_path, LARGE, warnings.append)
    space, other = store.space({"test": 1}), store.space({"test": 2})
    store.write(space, entries(range(40)))
    opened, damaged, begun = threading.Barrier(5), threading.Event(), threading.Event()
    results = []

    def work(which: int) -> None:
        before = store.read(space, keys(range(40)))
        opened.wait()
        damaged.wait()
        if which % 2:
            begun.wait()
        after = store.read(space, keys(range(40)))
        numbers = range(100 * which, 100 * which + 40)
        store.write(other, entries(numbers))
        results.append((before == values(range(40)), after, store.read(other, keys(numbers)) == values(numbers)))

    threads = [threading.Thread(target=work, args=(which,)) for which in range(1, 5)]
    for thread in threads:
        thread.start()
    opened.wait()
    with closing(sqlite3.connect(tmp_path / FILE)) as db:
        db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    overwrite(tmp_path / FILE)
    damaged.set()
    store.write(space, entries(range(20)))
    begun.set()
    for thread in threads:
        thread.join()
    for before, after, written in results:
        assert before
        assert written
        assert after in ([None] * 40, values(range(20)) + [None] * 20)
    assert len(results) == 4
    assert len(warnings) == 1
    assert store.read(space, keys(range(40))) == values(range(20)) + [None] * 20
    store.close()
    with Store(tmp_path, LARGE, refuse) as store:
        assert {held.entries for held in store.held()} == {20, 160}
    assert sound(tmp_path)


IDLE = """
store.write(space, [(key(n), value(n)) for n in range(40)])
print("ready", flush=True)
sys.stdin.readline()
"""


@pytest.mark.parametrize("last", ["store.close()", "store.write(space, [(key(n), value(n)) for n in range(50, 60)])"])
def test_another_process_goes_on_with_the_new_file(tmp_path, last):
    """It holds the removed file open, and closes it or writes: neither may harm the new one."""
    command = [sys.executable, "-S", "-c", CHILD + IDLE + last, str(tmp_path), str(LARGE)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "ready\n"
        warnings = []
        with Store(tmp_path, LARGE, warnings.append) as store:
            space = store.space({"test": 1})
            with closing(sqlite3.connect(tmp_path / FILE)) as db:
                db.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            overwrite(tmp_path / FILE)
            store.write(space, entries(range(20)))
            assert len(warnings) == 1
            other.communicate("\n", timeout=30)
            assert other.returncode == 0
            assert store.read(space, keys(range(20))) == values(range(20))
            assert store.present(space, keys(range(50, 60))) == ["write" in last] * 10
    assert sound(tmp_path)


# The folder is lost


# Takes from a process of root the right to write what is read-only.
UNPRIVILEGED = () if os.geteuid() else ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--")

READ_ONLY = """
folder = Path(folder)
def use():
    try:
        return store.present(space, [key(0)]), store.read(space, [key(0)])
    except CacheError:
        pass
use()
store.write(space, [(key(0), value(0))])
for path in (*folder.iterdir(), folder):
    path.chmod(0o555 if path == folder else 0o444)
assert use() == ([True], [value(0)])
try:
    store.write(space, [(key(1), value(1))])
except CacheError:
    pass
store.room
store.close()
try:
    Store(folder, 10**9, print)
    raise SystemExit("it can be written")
except CacheError:
    print("done")
"""


@pytest.mark.parametrize("after", ["gone", "empty", "a file", "another"])
def test_a_folder_that_is_lost_does_not_fail_a_run(tmp_path, after, capsys):
    folder, another = tmp_path / "store", tmp_path / "another"
    with Store(another, LARGE, refuse) as store:
        store.write(store.space({}), entries(range(10, 20)))
    with opened(Cache(), folder, Console()) as store:
        space = store.space({})
        store.write(space, entries(range(10)))
        shutil.rmtree(folder)
        if after == "empty":
            folder.mkdir()
        elif after == "a file":
            folder.touch()
        elif after == "another":
            another.rename(folder)
        uses = [
            lambda: store.room,
            lambda: store.present(space, keys(range(10))),
            lambda: store.read(space, keys(range(10))),
            lambda: store.held(),
            lambda: store.write(space, entries(range(10))),
            lambda: store.read(space, keys(range(10))) == values(range(10)) or pytest.fail("not written"),
            lambda: store.set_speed(space, 0.5),
            lambda: store.prune(unused_since=datetime.now(UTC)),
        ]
        for use in uses:
            try:
                use()
            except CacheError:
                assert after == "a file" or (after, use) == ("gone", uses[0])
        assert store.size >= 0
    with opened(Cache(), tmp_path / "closed", Console()) as store:
        store.write(store.space({}), entries(range(3)))
        shutil.rmtree(tmp_path / "closed")
    assert not (tmp_path / "closed").exists(), "closing made the folder again"
    assert capsys.readouterr().err == ""


def test_a_folder_that_becomes_read_only(tmp_path):
    folder = tmp_path / "store"
    process = child(folder, LARGE, READ_ONLY, before=UNPRIVILEGED)
    output = finish(process)
    folder.chmod(0o755)
    assert output == "done\n"


# Looked at


def test_a_look_reads_what_is_being_written(store, tmp_path):
    store.write(store.space(DESCRIPTION), entries(range(5)))
    assert look(tmp_path) == store.held()
    assert look(tmp_path)[0].entries == 5
    with pytest.raises(CacheError, match="cannot be read: unable to open database file"):
        look(tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


def test_a_look_mends_nothing(tmp_path):
    with Store(tmp_path, LARGE, refuse) as store:
        store.write(store.space({}), entries(range(50)))
    damage(tmp_path, "PRAGMA user_version = 2")
    with pytest.raises(CacheError, match="received format 2"):
        look(tmp_path)
    overwrite(tmp_path / FILE)
    before = (tmp_path / FILE).read_bytes()
    with pytest.raises(CacheError, match=r"cannot be read: file is not a database\. .* --keep 0"):
        look(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize("running", [False, True], ids=["closed", "in use"])
def test_the_command_lists_what_it_cannot_write(tmp_path, running):
    """And what another version of Graft has described in other words."""
    folder = tmp_path / "activations"
    store = Store(folder, LARGE, refuse)
    store.write(store.space({"other": "words"}), entries(range(5)))
    if not running:
        store.close()
    paths = [*folder.iterdir(), folder]
    for path in paths:
        path.chmod(0o555 if path == folder else 0o444)
    command = [*UNPRIVILEGED, sys.executable, "-m", "pipeline", "cache", str(tmp_path)]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert listed.returncode == 0, listed.stderr
    assert [line.split() for line in listed.stdout.splitlines()[1:3]] == [
        ["?", "?"],
        ["?", "5", "53.5", "kB", "?", "?", "?", "just", "now"],
    ]
    pruned = subprocess.run([*command, "--keep", "1MB"], cwd=ROOT, capture_output=True, text=True)
    assert pruned.returncode == 1
    assert "cannot be used: " in pruned.stderr
    folder.chmod(0o755)
    for path in folder.iterdir():
        path.chmod(0o644)
    store.close()
    with Store(folder, LARGE, refuse) as store:
        assert store.read(store.space({"other": "words"}), keys(range(5))) == values(range(5))
