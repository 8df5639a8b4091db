"""Pictures that move between splits; how splits come about is tested in tests/test_ingest.py."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import DataError
from pipeline.sources.base import SPLIT_NAMES
from tests.pieces import digest, places, splits

# Two pictures of each class in train, and one each elsewhere, are never moved: no split becomes empty.
FIXED = ["train", "train", "validation", "test"]
PLACES = st.lists(st.sampled_from(SPLIT_NAMES), max_size=12)


@given(PLACES, st.data())
def test_every_picture_goes_where_it_is_told_and_no_other_moves(more, data):
    before = splits([*FIXED, *more])
    movable = [digest(n) for n in range(len(FIXED), len(FIXED) + len(more))]
    chosen = st.sampled_from(movable) if movable else st.nothing()
    moves = data.draw(st.dictionaries(chosen, st.sampled_from(SPLIT_NAMES)))
    held = data.draw(st.dictionaries(chosen, st.sampled_from(["waits", "copy"])))
    after = before.moved(moves, held)

    assert places(after) == places(before) | moves | held
    assert sum(map(len, after.all)) + len(after.held) == len(FIXED) + len(more), "each is there once"
    for split in after.all:
        assert (np.diff(split.positions) > 0).all()
        assert split.names == tuple(f"{n}.png" for n in split.positions)
        assert split.labels.tolist() == [n % 2 for n in split.positions]
        assert split.digests == tuple(digest(n) for n in split.positions)
    for item in after.held:
        number = int(item.name.removesuffix(".png"))
        assert (item.digest, item.label) == (digest(number), ("ant", "bee")[number % 2])
    assert (after.digest == before.digest) == (places(after) == places(before))


def test_byte_identical_copies_move_together():
    before = splits([*FIXED, "train", "train"], digests=[*(digest(n) for n in range(4)), "ab" * 32, "ab" * 32])
    assert len(before.moved({"ab" * 32: "test"}, {}).test) == 3
    assert [item.name for item in before.moved({}, {"ab" * 32: "waits"}).held] == ["4.png", "5.png"]


def test_what_was_held_stays_held_and_unknown_digests_do_not_matter():
    first = splits([*FIXED, "train", "train"]).moved({}, {digest(4): "waits"})
    second = first.moved({"00" * 32: "test", digest(4): "test"}, {digest(5): "copy", "11" * 32: "copy"})
    assert [item.reason for item in second.held] == ["waits", "copy"]


@pytest.mark.parametrize(
    ("moves", "held", "message"),
    [
        ({digest(3): "train"}, {}, r"The test split is empty \(pictures: train 3, validation 1, test 0\)"),
        ({}, {digest(2): "copy"}, "The validation split is empty"),
        ({digest(1): "test"}, {}, "Nothing is left to learn bee from"),
    ],
)
def test_what_cannot_be_trained_on_is_refused(moves, held, message):
    with pytest.raises(DataError, match=message):
        splits(FIXED).moved(moves, held)
