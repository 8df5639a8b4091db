"""What the store of activations keeps, what it lets go, and what that costs, on real files."""

import shutil
import subprocess
import sys
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline import activations
from pipeline.activations import FILE, Store
from pipeline.errors import CacheError
from tests.stores import DESCRIPTION, LARGE, ROOT, child, entries, finish, key, keys, refuse, sound, value, values


@pytest.fixture
def store(tmp_path):
    with Store(tmp_path, LARGE, refuse) as store:
        yield store


# What it keeps


pictures = st.binary(min_size=32, max_size=32) | st.integers(0, 3).map(lambda n: bytes([n]) * 32)
views = st.just(b"") | st.binary(max_size=40)


@settings(max_examples=60, deadline=None)
@given(
    writes=st.lists(
        st.tuples(
            st.integers(0, 2),
            st.lists(st.tuples(st.tuples(pictures, views), st.binary(max_size=64) | st.integers(0, 9)), max_size=8),
        ),
        max_size=6,
    ),
    reopen=st.booleans(),
)
def test_what_was_written_last_is_read_back(tmp_path_factory, writes, reopen):
    """Against a dictionary. A number stands for a value over several pages."""
    folder = tmp_path_factory.mktemp("store")
    store = Store(folder, LARGE, refuse)
    expected = [{}, {}, {}]
    for which, written in writes:
        written = [(k, value(v) if isinstance(v, int) else v) for k, v in written]
        store.write(store.space({"space": which}), written)
        expected[which].update(written)
        if reopen:
            store.close()
            store = Store(folder, LARGE, refuse)
    wanted = [*sorted({k for kept in expected for k in kept}), (bytes(32), b"not there")]
    for which, kept in enumerate(expected):
        space = store.space({"space": which})
        assert store.read(space, wanted) == [kept.get(k) for k in wanted]
        assert store.present(space, wanted) == [k in kept for k in wanted]
    held = {h.description["space"]: (h.entries, h.bytes) for h in store.held()}
    assert held == {n: (len(kept), sum(map(len, kept.values()))) for n, kept in enumerate(expected) if kept}
    store.close()
    assert sound(folder)
    shutil.rmtree(folder)


def test_every_part_of_the_description_makes_another_space(store):
    space = store.space(DESCRIPTION)
    store.write(space, entries(range(3)))
    parts = [
        {"pixels": {**DESCRIPTION["pixels"], "version": 2}},
        {"pixels": {**DESCRIPTION["pixels"], "crop": 0.8751}},
        {"mean": [103.9, 116.8, 123.8]},
        {"backbone": "mobilenet_v2"},
        {"options": {"alpha": 0.5}},
        {"options": {}},
        {"weights": "5f" * 31 + "5e"},
        {"cut": "conv_pw_10_relu"},
        {"dtype": "float32"},
        {"engine": "openvino"},
        {"more": None},
    ]
    others = [store.space({**DESCRIPTION, **part}) for part in parts]
    assert len({space, *others}) == len(parts) + 1
    for other in others:
        assert store.read(other, keys(range(3))) == [None] * 3
        assert store.present(other, keys(range(3))) == [False] * 3


def test_a_space_keeps_its_number(store, tmp_path):
    turned = dict(reversed(DESCRIPTION.items())) | {"pixels": dict(reversed(DESCRIPTION["pixels"].items()))}
    assert store.space(turned) == store.space(DESCRIPTION)
    with Store(tmp_path / "another", LARGE, refuse) as another:
        assert another.space({"something": "else"}) != another.space(DESCRIPTION) == store.space(DESCRIPTION)
    with pytest.raises(TypeError):
        store.space({"mean": object()})


def test_held_tells_descriptions_and_times(store):
    before = datetime.now(UTC)
    store.write(store.space(DESCRIPTION), entries(range(5)))
    store.write(store.space({"other": "é"}), entries(range(2)))
    recent, older = store.held()
    assert (recent.description, recent.entries) == ({"other": "é"}, 2)
    assert (older.description, older.entries, older.bytes) == (DESCRIPTION, 5, sum(map(len, values(range(5)))))
    assert before <= older.last_used <= recent.last_used <= datetime.now(UTC)
    assert store.size >= older.bytes
    store.present(store.space(DESCRIPTION), keys([1]))
    assert store.held()[0].description == DESCRIPTION


def test_speed_is_remembered(store, tmp_path):
    space = store.space(DESCRIPTION)
    assert store.speed(space) is None
    store.set_speed(space, 0.5)
    store.set_speed(space, 0.25)
    store.write(space, entries(range(2)))
    with Store(tmp_path, LARGE, refuse) as again:
        assert again.speed(again.space(DESCRIPTION)) == 0.25
        assert again.speed(again.space({})) is None


def test_decodable_pictures_are_remembered(store, tmp_path):
    good, other = key(0)[0], key(1)[0]
    assert not store.decodable("settings", good)
    store.add_decodable("settings", iter([good, good]))
    store.add_decodable("settings", [good])
    with Store(tmp_path, LARGE, refuse) as again:
        assert again.decodable("settings", good)
        assert not again.decodable("settings", other)
        assert not again.decodable("other settings", good)


def test_a_write_that_fails_midway_leaves_nothing(store, tmp_path):
    space = store.space({})
    store.write(space, entries([0], writer=1))
    with pytest.raises(TypeError):
        store.write(space, [*entries(range(9)), (key(9), "no bytes")])
    assert store.read(space, keys(range(10))) == [value(0, writer=1), *[None] * 9]
    assert sound(tmp_path)
    store.write(space, entries(range(9)))
    assert store.read(space, keys(range(9))) == values(range(9))


def test_nothing_heavy_is_imported():
    """What asks the store (the command line, other processes) starts in a moment; nothing read is unpickled."""
    program = "import sys, pipeline.activations; print(*sys.modules)"
    output = subprocess.run([sys.executable, "-S", "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    loaded = {module.split(".")[0] for module in output.stdout.split()}
    assert not loaded & {"tensorflow", "keras", "numpy", "mlflow", "pydantic", "rich", "typer", "pickle"}


# Full


def test_the_least_recently_used_go_first(tmp_path):
    limit = 2_200_000
    batch = [range(start, start + 20) for start in range(0, 1000, 20)]
    with Store(tmp_path, limit, lambda message: None) as store:
        spaces = [store.space({"n": n}) for n in range(2)]
        for n in range(8):
            store.write(spaces[n % 2], entries(batch[n]))
        used = [2, 0, 5]  # the order in which these are used again
        for n in used:
            assert all(store.present(spaces[n % 2], keys(batch[n])))
        order = [1, 3, 4, 6, 7, *used]
        gone_before = 0
        for n in range(8, 16):
            store.write(spaces[n % 2], entries(batch[n]))
            order.append(n)
            there = [value is not None for n in order for value in store.read(spaces[n % 2], keys(batch[n]))]
            gone = there.index(True)
            assert all(there[gone:]), "something else than the oldest went"
            assert gone >= gone_before
            assert (tmp_path / FILE).stat().st_size <= limit
            gone_before = gone
        assert 0 < gone_before < 12 * 20
    assert sound(tmp_path)


def test_room_is_made_for_many_writes_at_once(tmp_path):
    """To look for what is oldest goes through all keys, so that it must not happen at every write."""
    with Store(tmp_path, 2_000_000, lambda message: None) as store:
        space, held, fell = store.space({}), 0, 0
        for n in range(1000):
            store.write(space, [(key(n), bytes(8000))])
            (now,) = store.held()
            fell += now.entries < held
            held = now.entries
    assert 20 < fell < 100


def test_a_store_made_smaller_shrinks_at_the_next_write(tmp_path):
    with Store(tmp_path, LARGE, refuse) as store:
        store.write(store.space({}), entries(range(500)))
        store.write(store.space({}), entries(range(500, 600)))
    before = (tmp_path / FILE).stat().st_size
    with Store(tmp_path, before // 2, refuse) as store:
        store.write(store.space({}), entries(range(600, 605)))
        assert store.read(store.space({}), keys(range(500, 605))) == values(range(500, 605))
        assert (tmp_path / FILE).stat().st_size <= before // 2
    assert sound(tmp_path)


@pytest.mark.parametrize("size", [300, 5_000, 25_088, 401_408])
def test_the_file_stays_within_its_limit(tmp_path, size):
    limit = 6_000_000
    with Store(tmp_path, limit, lambda message: None) as store:
        space = store.space({})
        for start in range(0, 25_000_000 // size, step := 1_000_000 // size):
            store.write(space, [(key(n), bytes([n % 256]) * size) for n in range(start, start + step)])
            assert (tmp_path / FILE).stat().st_size <= limit
            assert all(store.present(space, keys(range(start, start + step))))
        assert store.held()[0].bytes > 0.5 * limit
        for n, got in enumerate(store.read(space, keys(range(start + step)))):
            assert got in (None, bytes([n % 256]) * size)
    assert sound(tmp_path)


def test_too_much_for_the_store_at_once(tmp_path):
    with Store(tmp_path, 1_000_000, refuse) as store:
        space = store.space({})
        store.write(space, entries(range(20)))
        for numbers in (range(100, 300), range(100, 190)):  # by their bytes, and by the pages they take
            with pytest.raises(CacheError, match=r"may hold 1\.0 MB, and .* MB were to be written at once\. Raise"):
                store.write(space, entries(numbers))
            assert not any(store.present(space, keys(numbers)))
            assert store.read(space, keys(range(20))) == values(range(20))
        store.write(space, entries(range(100, 120)))
    assert sound(tmp_path)


def test_a_store_too_small_for_its_run_says_so_once(tmp_path):
    warnings = []
    with Store(tmp_path, 1_000_000, warnings.append) as store:
        for start in range(0, 400, 20):
            store.write(store.space({}), entries(range(start, start + 20)))
    assert len(warnings) == 1
    assert "may hold 1.0 MB, less than is in use" in warnings[0]
    with Store(tmp_path, 1_000_000, refuse) as store:  # what earlier runs left is replaced without a word
        store.write(store.space({}), entries(range(400, 420)))


FILL = """
import resource
limit = int(rest[0])
written, n = [], 0
def fill():
    global n
    while True:
        batch = range(n, n + 10)
        try:
            store.write(space, [(key(n), value(n)) for n in batch])
        except CacheError as error:
            return batch, str(error)
        written.extend(batch)
        n = batch.stop
def right():
    return store.read(space, [key(n) for n in written]) == [value(n) for n in written]

resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
failed, message = fill()
assert "cannot be used: " in message and "Make room" in message and "cache.max_bytes" in message, message
assert len(written) > 100, len(written)
assert not (Path(folder) / "activations.sqlite-wal").stat().st_size, "what was rolled back takes room"
for _ in range(3):
    assert right()
    assert all(store.present(space, [key(n) for n in written]))
    assert not any(store.present(space, [key(n) for n in failed]))
    failed, _ = fill()
reopened = Store(Path(folder), int(max_bytes), print)
assert reopened.read(space := reopened.space({"test": 1}), [key(0)]) == [value(0)]
reopened.close()
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
n, before = failed.start, len(written)
for _ in range(10):
    batch = range(n, n + 10)
    store.write(space, [(key(n), value(n)) for n in batch])
    written.extend(batch)
    n = batch.stop
assert right()
store.prune(max_bytes=0)
assert store.size < 200_000
store.close()
print("done")
"""


SMALL_DISK = """
import shutil
ballast = Path(rest[0])
other = store.space({"test": 2})
def free():
    return shutil.disk_usage(folder).free
def write(space, start):
    numbers = range(start, start + 10)
    store.write(space, [(key(n), value(n)) for n in numbers])
    assert all(store.present(space, [key(n) for n in numbers]))
    assert store.read(space, [key(n) for n in numbers]) == [value(n) for n in numbers]

reserve = shutil.disk_usage(folder).total // 4
assert store.room < 4_000_000, store.room
for start in range(0, 1000, 10):
    write(space, start)
    assert free() > reserve // 2, free()
assert sum(held.bytes for held in store.held()) > 1_500_000, "much of the disk is not used"
for start in range(0, 1000, 10):  # a new space gets in where an old one has filled the disk
    write(other, start)
    assert free() > reserve // 2, free()
assert store.speed(space) is None and [held.description for held in store.held()] == [{"test": 2}]
assert 2_500_000 < store.room < 4_000_000

with ballast.open("ab", 0) as file:  # others write 1 MB, and the store gives way
    file.write(bytes(1_000_000))
for start in range(1000, 1500, 10):
    write(other, start)
assert free() > reserve // 2, free()
with ballast.open("ab", 0) as file:  # others fill the disk
    try:
        while True:
            file.write(bytes(4096))
    except OSError:
        pass
held = store.present(other, [key(n) for n in range(1500)])
try:
    store.write(other, [(key(2000), bytes(1_000_000))])
    raise SystemExit("there is no room for that")
except CacheError as error:
    assert "some of its disk stays free for other files" in str(error), error
read = store.read(other, [key(n) for n in range(1500)])
assert sum(held) > 50 and read == [value(n) if there else None for n, there in enumerate(held)]
ballast.unlink()
for start in range(3000, 3500, 10):
    write(other, start)
store.close()
print("done")
"""


@pytest.mark.slow
def test_a_file_that_may_not_grow(tmp_path):
    """The limit that the system sets on a file's size stands for a disk that fills up in spite of the reserve."""
    assert finish(child(tmp_path / "store", LARGE, FILL, 3_000_000)) == "done\n"


@pytest.mark.slow
def test_a_small_disk_that_others_fill(tmp_path):
    mount = ["unshare", "--map-root-user", "--mount", "sh", "-c"]
    mount.append(f'mount -t tmpfs -o size=8m none {tmp_path} && head -c 3000000 /dev/zero > {tmp_path}/ballast && "$@"')
    mount.append("sh")
    if not shutil.which("unshare") or subprocess.run([*mount, "true"], capture_output=True).returncode:
        print("A small file system cannot be mounted here: this was not tested.")
        return
    output = finish(child(tmp_path / "store", LARGE, SMALL_DISK, tmp_path / "ballast", before=tuple(mount)))
    assert output.splitlines()[-1] == "done"
    warnings = output.splitlines()[:-1]
    assert len(warnings) == 1, warnings
    assert "has no room for all that is in use" in warnings[0]


def test_some_of_the_disk_stays_free(tmp_path, monkeypatch):
    assert [activations._reserve(disk) for disk in (8_000_000, 10**10, 10**12)] == [2_000_000, 10**9, 5 * 10**10]
    disk = shutil.disk_usage(tmp_path)
    with Store(tmp_path, LARGE, refuse) as store:
        store.write(store.space({"n": 1}), entries(range(9)))
        assert store.room == LARGE
        wanted = disk.free + store.size - 4_000_000  # what is to stay free leaves some 4 MB
        monkeypatch.setattr(activations, "_reserve", lambda disk: wanted)
        assert 0 < store.room < 100_000_000
        monkeypatch.setattr(activations, "_reserve", lambda disk: 2 * disk)
        assert store.room == 0
        with pytest.raises(CacheError, match=r"can hold 0\.0 MB, as some of its disk stays free .* Make room"):
            store.write(store.space({"n": 1}), entries(range(9, 18)))
        assert store.read(store.space({"n": 1}), keys(range(9))) == values(range(9))


# Pruned


def test_prune_by_age_and_size(store, tmp_path):
    old, new = store.space({"age": "old"}), store.space({"age": "new"})
    store.write(old, entries(range(100)))
    store.set_speed(old, 0.5)
    store.add_decodable("settings", [key(0)[0]])
    moment = datetime.now(UTC)
    store.write(new, entries(range(100)))
    store.add_decodable("settings", [key(1)[0]])
    store.present(old, keys(range(90, 100)))
    store.set_speed(new, 0.5)

    for nothing in ({}, {"max_bytes": LARGE}, {"unused_since": datetime(2000, 1, 1, tzinfo=UTC)}):
        assert store.prune(**nothing).entries == 0
    before = store.size
    pruned = store.prune(unused_since=moment)
    assert pruned.entries == 90
    assert pruned.bytes == before - store.size > 0.7 * sum(map(len, values(range(90))))
    assert store.present(old, keys(range(100))) == [False] * 90 + [True] * 10
    assert all(store.present(new, keys(range(100))))
    assert [store.decodable("settings", key(n)[0]) for n in (0, 1)] == [True, True]
    assert {held.description["age"]: held.entries for held in store.held()} == {"old": 10, "new": 100}

    store.prune(max_bytes=600_000)
    assert 400_000 < store.size <= 700_000
    assert store.read(old, keys(range(90, 100)))[0] is None, "the older went first"
    assert [held.description for held in store.held()] == [{"age": "new"}]
    assert store.speed(old) is None
    assert store.speed(new) == 0.5

    assert store.prune(max_bytes=0).entries > 0
    assert store.held() == []
    assert not store.decodable("settings", key(0)[0])
    assert store.size < 200_000
    store.write(old, entries(range(100)))
    assert store.read(old, keys(range(100))) == values(range(100))
    assert store.held()[0].description == {"age": "old"}
    assert sound(tmp_path)


# What it costs

LARGE_STORE = """
import re
blob = bytes(1 << 16)
for start in range(0, 1600, 50):
    store.write(space, [(key(n), blob) for n in range(start, start + 50)])
for start in range(0, 1600, 50):
    store.present(space, [key(n) for n in range(start, start + 50)])
    assert all(store.read(space, [key(n) for n in range(start, start + 50)]))
print(re.search(r"VmHWM:\\s+(\\d+) kB", Path("/proc/self/status").read_text())[1])
"""


@pytest.mark.slow
def test_memory_does_not_grow_with_the_store(tmp_path):
    """100 MB written and read in pieces of 3 MB, in a process that takes some 15 MB from the start."""
    assert int(finish(child(tmp_path, LARGE, LARGE_STORE))) < 50_000  # kB
