"""What has changed in a data set, by content: properties of made-up contents, and folders that are read."""

import csv
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import contents
from pipeline.config import Data
from pipeline.contents import Contents
from pipeline.sources import open_source
from tests.networks import QUIET

DIGESTS = st.sampled_from([hashlib.sha256(bytes([n])).hexdigest() for n in range(8)])
LABELS = st.sampled_from(["ant", "bee", "ant'", "ant', 'bee", "line\nbreak", ""])
PAIRS = st.lists(st.tuples(DIGESTS, LABELS))


@given(PAIRS, st.randoms())
def test_neither_order_nor_copies_matter(pairs, random):
    shuffled = [*pairs, *pairs[:3]]
    random.shuffle(shuffled)
    assert Contents.of(shuffled) == Contents.of(pairs)
    assert Contents.of(shuffled).digest == Contents.of(pairs).digest
    assert not Contents.of(shuffled).since(Contents.of(pairs))


@given(PAIRS, PAIRS)
def test_the_digest_and_the_change_both_say_whether_anything_changed(old, new):
    before, after = Contents.of(old), Contents.of(new)
    assert (before.digest == after.digest) == (set(old) == set(new)) == (not after.since(before))


@given(PAIRS, PAIRS)
def test_changes_are_counted_by_picture(old, new):
    def labels(pairs, digest):
        return {label for other, label in pairs if other == digest}

    before, after = {digest for digest, _ in old}, {digest for digest, _ in new}
    change = Contents.of(new).since(Contents.of(old))
    assert change.added == len(after - before)
    assert change.removed == len(before - after)
    assert change.relabelled == sum(labels(old, digest) != labels(new, digest) for digest in before & after)
    back = Contents.of(old).since(Contents.of(new))
    assert (back.added, back.removed, back.relabelled) == (change.removed, change.added, change.relabelled)


@pytest.mark.parametrize(
    ("numbers", "text"),
    [
        ((0, 0, 0), "no picture changed"),
        ((1234, 0, 0), "1,234 added"),
        ((1, 2, 3), "1 added, 2 removed, 3 relabelled"),
        ((0, 0, 1), "1 relabelled"),
    ],
)
def test_a_change_in_words(numbers, text):
    change = contents.Change(*numbers)
    assert (str(change), bool(change)) == (text, any(numbers))


def test_a_folder_is_read_by_content_and_what_cannot_be_read_is_passed_over(tmp_path):
    def look():
        return contents.read(open_source(Data(source="folder", path=str(tmp_path))), QUIET)

    for label, content in (("ant", b"a"), ("ant", b"b"), ("bee", b"c")):
        (tmp_path / label).mkdir(exist_ok=True)
        (tmp_path / label / f"{content.decode()}.png").write_bytes(content)
    before = look()
    assert before.labels[hashlib.sha256(b"c").hexdigest()] == {"bee"}

    (tmp_path / "ant" / "b.png").rename(tmp_path / "ant" / "another name.png")
    assert not look().since(before)
    (tmp_path / "ant" / "a.png").rename(tmp_path / "bee" / "a.png")
    (tmp_path / "bee" / "c.png").write_bytes(b"changed")
    (tmp_path / "bee" / "gone.png").symlink_to("nowhere.png")
    assert str(look().since(before)) == "1 added, 1 removed, 1 relabelled"


def test_what_a_run_had_and_what_it_learned_from_is_in_its_list(tmp_path):
    rows = [
        ("ant", "train", "1"), ("ant", "validation", "2"), ("bee", "test", "3"), ("bee", "", "4"), ("bee", "", ""),
        ("bee", "train", "5"), ("ant", "train", "5"),
    ]  # fmt: skip
    with (tmp_path / "splits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "sha256", "reason"])
        writer.writerows(("a.png", label, split, digest, "") for label, split, digest in rows)
    assert contents.learned(tmp_path / "splits.csv") == {"1", "2", "5"}
    found = contents.read_list(tmp_path / "splits.csv")
    assert found.labels.keys() == set("12345")
    assert found.labels["5"] == {"ant", "bee"}
    with pytest.raises(FileNotFoundError):
        contents.read_list(tmp_path / "none.csv")


def test_pictures_that_show_the_same(tmp_path):
    with (tmp_path / "near-duplicates.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["cluster", "path", "label", "split", "sha256", "conflict"])
        writer.writerows((cluster, "a.png", "ant", "test", digest, "") for cluster, digest in ("1a", "1b", "2c", "2d"))
    clusters = contents.clusters(tmp_path / "near-duplicates.csv")
    assert clusters == {"a": "1", "b": "1", "c": "2", "d": "2"}
    assert contents.repeated(["c", "x", "b", "d", "a"], clusters) == [False, False, False, True, True]
    assert contents.with_alike({"a", "x"}, clusters) == {"a", "b", "x"}
    with pytest.raises(FileNotFoundError):
        contents.clusters(tmp_path / "none.csv")
