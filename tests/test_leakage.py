"""Pictures that show the same, and the frozen test set: what may be learned from. Made-up pictures."""

import csv

import numpy as np
import pytest
from PIL import Image

from pipeline import duplicates, leakage
from pipeline.config import RunConfig
from pipeline.frozen import Frozen
from pipeline.leakage import LIKE_TEST, Seen
from pipeline.pixels import PixelSpec
from pipeline.testset import WAITS, FrozenTest, TestPicture
from tests.networks import QUIET
from tests.pieces import digest, places, splits
from tests.stores import Counting, Heard

SIZE = 64
SPEC = PixelSpec(SIZE, SIZE, crop=1.0)
# Of each of the first 8 pictures, its split; all show something else, labels alternate.
BASE = ["train", "train", "train", "train", "validation", "validation", "test", "test"]


def scene(seed):
    """uint8 [S, S, 3]: blobs of colour."""
    blobs = np.random.default_rng(seed).integers(0, 256, (7, 7, 3)).astype(np.uint8)
    return np.asarray(Image.fromarray(blobs).resize((SIZE, SIZE), Image.Resampling.BICUBIC))


def again(pixels):
    """The same, cropped a little and darker."""
    cropped = Image.fromarray(pixels).crop((2, 2, SIZE - 1, SIZE - 2)).resize((SIZE, SIZE))
    return (np.asarray(cropped) * 0.95).astype(np.uint8)


class Case:
    """The eight pictures, and copies of some of them in given splits: pairs of number and split."""

    def __init__(self, *copies, classes=("ant", "bee")):
        pixels = [scene(n) for n in range(8)] + [again(scene(of)) for of, _ in copies]
        self.pixels = np.stack(pixels)
        self.splits = splits(BASE + [place for _, place in copies], classes, self.pixels)
        digests = [digest for split in self.splits.all for digest in split.digests]
        images = np.concatenate([split.images(np.arange(len(split))) for split in self.splits.all])
        self.seen = Seen(digests, None, duplicates.thumbnail(images))

    def guarded(self, run_dir, frozen=None, console=QUIET):
        return leakage.guarded(self.splits, frozen, self.seen, run_dir, console)


def frozen(*numbers):
    return FrozenTest.of(3, [TestPicture(sha256=digest(n), name="", label="ant") for n in numbers])


def listed(run_dir):
    """The clusters that were written down: the numbers of their pictures, and the conflict that is told."""
    clusters = {}
    with (run_dir / "near-duplicates.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            numbers, _ = clusters.setdefault(row["cluster"], ([], row["conflict"]))
            numbers.append(int(row["path"].removesuffix(".png")))
    return sorted((sorted(numbers), conflict) for numbers, conflict in clusters.values())


def test_without_copies_nothing_moves_and_the_test_split_is_frozen(tmp_path):
    case = Case()
    after, test_set = case.guarded(tmp_path)
    assert places(after) == places(case.splits)
    assert (test_set.version, test_set.digests) == (1, {digest(6), digest(7)})
    assert listed(tmp_path) == []


@pytest.mark.parametrize(
    ("of", "place", "home"),
    [
        (0, "validation", "validation"), (0, "test", "test"), (4, "train", "validation"), (4, "test", "test"),
        (6, "train", "test"), (6, "validation", "test"), (0, "train", "train"),
    ],
)  # fmt: skip
def test_with_no_frozen_set_a_cluster_goes_to_its_most_held_out_split(tmp_path, of, place, home):
    case = Case((of, place))
    after, test_set = case.guarded(tmp_path)
    assert places(after) == places(case.splits) | {digest(of): home, digest(8): home}
    assert test_set.digests == set(after.test.digests)
    assert [numbers for numbers, _ in listed(tmp_path)] == [[of, 8]]


def test_copies_of_a_frozen_test_picture_are_left_out(tmp_path):
    console = Heard()
    case = Case((6, "train"), (6, "validation"), (0, "validation"))
    after, test_set = case.guarded(tmp_path, frozen(6, 7), console)
    assert test_set.version == 3
    moved = {digest(8): LIKE_TEST, digest(9): LIKE_TEST, digest(0): "validation"}
    assert places(after) == places(case.splits) | moved
    assert set(after.test.digests) == {digest(6), digest(7)}
    assert [numbers for numbers, _ in listed(tmp_path)] == [[0, 10], [6, 8, 9]]
    said = next(line for line in console.said if line.startswith("groups of pictures that show the same: 2; "))
    assert "more held-out split: 1; " in said
    assert "picture shows: 2; " in said


def test_a_picture_that_waits_takes_no_other_with_it(tmp_path):
    console = Heard()
    case = Case((0, "test"), (1, "test"))
    after, _ = case.guarded(tmp_path, frozen(6, 7, 8), console)
    assert places(after) == places(case.splits) | {digest(9): WAITS, digest(0): LIKE_TEST}
    assert [numbers for numbers, _ in listed(tmp_path)] == [[0, 8]]
    assert "new test pictures that wait for the next test set (graft freeze-test CONFIG): 1" in console.said


def test_a_frozen_picture_that_belongs_elsewhere_by_now_is_tested_on(tmp_path):
    after, _ = Case((0, "train")).guarded(tmp_path, frozen(6, 0))
    assert set(after.test.digests) == {digest(6), digest(0)}
    assert {item.digest: item.reason for item in after.held} == {digest(7): WAITS, digest(8): LIKE_TEST}


def test_conflicting_labels_are_listed(tmp_path):
    console = Heard()
    Case((0, "train"), (1, "train")).guarded(tmp_path, console=console)
    assert listed(tmp_path) == [([0, 8], ""), ([1, 9], "")]
    assert console.warned == []
    Case((1, "train"), (2, "train")).guarded(tmp_path, console=console)
    assert listed(tmp_path) == [([1, 8], "labelled ant and bee"), ([2, 9], "labelled ant and bee")]
    (said,) = console.warned
    assert said.startswith("groups of pictures that show the same and have different labels: 2; see ")


def test_where_near_duplicates_are_ignored_only_the_frozen_set_counts(tmp_path):
    case = Case((6, "train"))
    after, _ = leakage.guarded(case.splits, frozen(6, 7), None, tmp_path, QUIET)
    assert places(after) == places(case.splits)
    assert listed(tmp_path) == []


# ------------------------------------------------------------------------------------------------------------- looking


def config(weights="none", **retrain):
    return RunConfig.model_validate(
        {
            "name": "ants", "data": {"source": "digits"}, "retrain": retrain,
            "backbone": {"name": "mobilenet", "weights": weights, "options": {"alpha": 0.25}},
        }
    )  # fmt: skip


def test_nothing_is_looked_at_where_near_duplicates_are_ignored():
    assert leakage.look(config(near_duplicates="ignore"), Case().splits, None, SPEC, None, QUIET) is None


def test_a_picture_is_looked_at_once(tmp_path):
    case, store = Case((0, "test")), Counting(tmp_path)
    first = leakage.look(config(), case.splits, None, SPEC, store, QUIET)
    assert first.embeddings is None, "random layers tell nothing"
    assert first.digests == case.seen.digests
    np.testing.assert_array_equal(first.thumbnails, case.seen.thumbnails)
    assert store.writes == 9
    case.pixels[:] = 0
    second = leakage.look(config(), case.splits, None, SPEC, store, QUIET)
    np.testing.assert_array_equal(second.thumbnails, first.thumbnails)
    assert store.writes == 9


@pytest.mark.slow
def test_pictures_are_embedded_once(tmp_path, monkeypatch):
    from pipeline.backbones import weights
    from pipeline.config import BackboneConfig

    case, store = Case((0, "test")), Counting(tmp_path)
    backbone = weights.load(BackboneConfig(name="mobilenet", weights="none", options={"alpha": 0.25}), SIZE, None)
    heard = Heard()
    monkeypatch.setattr(Frozen, "_try_out", lambda *_: (2.0, 1.0))
    first = leakage.look(config("imagenet"), case.splits, backbone, SPEC, store, heard)
    assert any("Computing 9 and reading 9 " in line for line in heard.said)
    assert (first.embeddings.shape, first.embeddings.dtype) == ((9, 256), np.float32)
    writes = store.writes
    case.pixels[:] = 0
    second = leakage.look(config("imagenet"), case.splits, backbone, SPEC, store, QUIET)
    np.testing.assert_array_equal(second.embeddings, first.embeddings)
    assert store.writes == writes
    case = Case((0, "test"))
    without = leakage.look(config("imagenet"), case.splits, backbone, SPEC, None, QUIET)
    np.testing.assert_allclose(without.embeddings, first.embeddings, atol=1e-2)
