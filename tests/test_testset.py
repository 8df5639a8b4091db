"""The frozen test set: what is in it, what waits, what its next version is made of; on files, without training."""

import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline import publish, testset
from pipeline.artifacts import LEARNED_FROM
from pipeline.config import RunConfig
from pipeline.errors import ConfigError, DataError
from pipeline.publish import Champion
from pipeline.refreeze import refreeze
from pipeline.sources.base import SPLIT_NAMES
from pipeline.testset import WAITS, FrozenTest, TestPicture
from tests.folders import class_folders, plant
from tests.pieces import digest, places, splits
from tests.promoting import a_model
from tests.stores import Heard

FIXED = ["train", "train", "validation", "test"]


def frozen(*numbers, version=1):
    pictures = [TestPicture(sha256=digest(number), name=f"{number}.png", label="ant") for number in numbers]
    return FrozenTest.of(version, pictures)


# -------------------------------------------------------------------------------------------------- the set and splits


@given(st.lists(st.sampled_from(SPLIT_NAMES), max_size=12), st.data())
def test_the_test_split_is_exactly_the_frozen_set_and_new_test_pictures_wait(more, data):
    before = splits([*FIXED, *more])
    movable = range(len(FIXED), len(FIXED) + len(more))
    chosen = data.draw(st.lists(st.sampled_from(movable), unique=True)) if more else []
    test_set = frozen(3, *chosen, 99)
    after = testset.separated(before, test_set)

    assert set(after.test.digests) == test_set.digests - {digest(99)}
    for number, place in enumerate([*FIXED, *more]):
        expected = "test" if digest(number) in test_set.digests else WAITS if place == "test" else place
        assert places(after)[digest(number)] == expected
    assert places(testset.separated(after, test_set)) == places(after)


def test_a_test_set_of_which_nothing_is_left():
    with pytest.raises(DataError, match=r"None of the 2 pictures of the frozen test set \(version 4\) is in the data"):
        testset.separated(splits(FIXED), frozen(50, 51, version=4))


def test_the_first_set_is_a_run_s_test_split():
    made = testset.of_splits(splits([*FIXED, "test", "test"], digests=[*map(digest, range(5)), digest(4)]), version=1)
    assert [picture.sha256 for picture in made.pictures] == sorted([digest(3), digest(4)]), "copies count once"
    assert {picture.sha256: (picture.name, picture.label) for picture in made.pictures}[digest(3)] == ("3.png", "bee")


def test_its_identity_is_its_version_and_its_pictures():
    assert frozen(1, 2).identity == frozen(2, 1).identity
    assert len({frozen(1, 2).identity, frozen(1, 2, version=2).identity, frozen(1, 3).identity}) == 3
    assert frozen(1, version=12).identity.startswith("12:")


# --------------------------------------------------------------------------------------------------------------- files


def test_the_newest_version_is_in_force(tmp_path):
    folder = testset.folder_of(str(tmp_path / "runs"), "ants")
    assert testset.newest(folder) is None
    for version in (1, 2, 10, 9):
        testset.freeze(folder, frozen(version, version=version))
    (folder / "notes.json").write_text("{}")
    assert testset.newest(folder).identity == frozen(10, version=10).identity


@pytest.mark.parametrize("content", [b"", b'{"version": 2', b"\xff\xfe", b'{"version": 2}'])
def test_a_damaged_file_is_told_and_never_passed_over(tmp_path, content):
    testset.freeze(tmp_path, frozen(1))
    (tmp_path / "2.json").write_bytes(content)
    with pytest.raises(DataError, match=r"2\.json cannot be read .* Put a copy of the file back: .* test-set\.json"):
        testset.newest(tmp_path)


# ------------------------------------------------------------------------------------------------------------ refreeze


class Life:
    """A folder of pictures, a config, and a first test set of what belongs to the test split then."""

    def __init__(self, folder):
        self.folder = folder
        self.data = plant(folder / "data", class_folders(30))
        self.config = RunConfig.model_validate(
            {
                "name": "ants", "output_dir": str(folder / "runs"), "export": {"dir": str(folder / "export")},
                "data": {"source": "folder", "path": str(self.data), "image_size": 32}, "cache": "off",
                "backbone": {"name": "mobilenet", "weights": "none", "options": {"alpha": 0.25}},
            }
        )  # fmt: skip
        self.sets = testset.folder_of(self.config.output_dir, "ants")
        self.console = Heard()

    def of_test_split(self):
        """The digests that belong to the test split now: the lowest by their first 64 bits."""
        digests = {hashlib.sha256(path.read_bytes()).hexdigest() for path in self.data.rglob("*.png")}
        return {d for d in digests if int(d[:16], 16) / 2**64 < self.config.data.test_fraction}

    def freeze_first(self):
        pictures = [TestPicture(sha256=d, name="", label="ants") for d in self.of_test_split()]
        testset.freeze(self.sets, FrozenTest.of(1, pictures))

    def champion(self, *learned):
        """A champion that was trained on these digests."""
        model = a_model(self.folder / "runs" / "ants" / "first")
        rows = "".join(f"a.png,ants,train,{d},\n" for d in learned)
        (model / LEARNED_FROM).parent.mkdir()
        (model / LEARNED_FROM).write_text(f"path,label,split,sha256,reason\n{rows}")
        home = self.folder / "export" / "ants"
        publish.publish(model, home)
        Champion(version=1, registered=1, run_dir="", since="", reason="").write(home / publish.CHAMPION)

    def refreeze(self):
        return refreeze(self.config, self.console)


@pytest.fixture
def life(tmp_path):
    return Life(tmp_path)


def test_nothing_is_frozen_before_the_first_retraining(life):
    with pytest.raises(ConfigError, match="ants has no frozen test set yet: the first graft retrain makes it"):
        life.refreeze()


def test_what_waited_comes_in_and_what_has_gone_leaves(life):
    life.freeze_first()
    before, after = life.refreeze()
    assert before == after, "nothing has changed"
    assert [path.name for path in life.sets.glob("*.json")] == ["1.json"]

    gone = next(iter(before.digests))
    for path in life.data.rglob("*.png"):
        if hashlib.sha256(path.read_bytes()).hexdigest() == gone:
            path.unlink()
    plant(life.data, class_folders(40, start=30))
    before, after = life.refreeze()
    assert (before.version, after.version) == (1, 2)
    assert after.digests == life.of_test_split()
    assert after.digests > before.digests - {gone}
    assert gone not in after.digests
    assert testset.newest(life.sets) == after
    assert {path.name for path in life.sets.glob("*.json")} == {"1.json", "2.json"}
    assert {p.label for p in after.pictures} == {"ants", "bees"}


def test_what_the_champion_has_learned_from_stays_out(life):
    life.freeze_first()
    plant(life.data, class_folders(40, start=30))
    new = sorted(life.of_test_split() - testset.newest(life.sets).digests)
    assert len(new) > 2
    life.champion(*new[:2])
    _, after = life.refreeze()
    assert after.digests == life.of_test_split() - set(new[:2])
    assert "2 pictures stay out: the champion has learned from them" in life.console.said


def test_a_champion_that_has_learned_from_all_of_it(life):
    life.freeze_first()
    life.champion(*life.of_test_split())
    with pytest.raises(DataError, match="The champion has learned from every picture of the test split"):
        life.refreeze()
    assert testset.newest(life.sets).version == 1


def test_too_many_bad_pictures_are_listed_in_words(life):
    life.freeze_first()
    plant(life.data, {f"ants/bad-{n}.png": b"no picture %d" % n for n in range(60)})
    with pytest.raises(DataError, match="60 of 120 pictures cannot be used"):
        life.refreeze()
    assert [path.name for path in life.sets.glob("*.json")] == ["1.json"]
