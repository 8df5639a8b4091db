"""Champion and challenger on the same pictures: real exports, pictures in memory."""

import base64
import shutil

import keras
import numpy as np
import pytest

from pipeline.artifacts import LEARNED_FROM
from pipeline.config import Gate
from pipeline.errors import DataError, ExportError
from pipeline.judge import judge
from tests.exporting import exported
from tests.networks import QUIET, split
from tests.pieces import source, write_splits
from tests.stores import Heard

pytestmark = pytest.mark.slow

CLASSES = ("red", "green", "blue")
RULES = Gate(max_latency_ratio=None)
SIZE = 16


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """Exports by name. Each says which channel is the brightest, in its own way."""
    made = {}
    for name, classes, kernel in (
        ("right", CLASSES, np.eye(3)),
        ("swaps red and green", CLASSES, np.eye(3)[[1, 0, 2]]),
        ("no blue", ("red", "green"), np.eye(3)[:, :2]),
        ("other order", ("blue", "red", "green"), np.eye(3)[:, [2, 0, 1]]),
    ):
        pixels = keras.Input((SIZE, SIZE, 3))
        means = keras.layers.GlobalAveragePooling2D()(keras.layers.Rescaling(1 / 20)(pixels))
        model = keras.Model(pixels, keras.layers.Dense(len(classes))(means))
        model.layers[-1].set_weights([kernel.astype(np.float32), np.zeros(len(classes), np.float32)])
        folder = tmp_path_factory.mktemp("export")
        made[name], _ = exported(model, split(12, size=SIZE), folder, classes)
    return made


class Case:
    """A challenger's run over test pictures of which a third each is red, green and blue, and other pictures."""

    def __init__(self, folder, models, challenger, champion=None, count=30, clusters=(), learned=()):
        self.folder, self.count = folder, count
        self.run_dir = folder / "run"
        self.run_dir.mkdir()
        shutil.copytree(models[challenger], self.run_dir / "model")
        pixels = split(count + 6, size=SIZE).images(np.arange(count + 6))
        self.pictures = [(p, CLASSES[n % 3], None) for n, p in enumerate(pixels)]
        self.places = ["test"] * count + ["train"] * 6
        write_splits(self.run_dir, source(self.pictures, CLASSES), self.places, clusters)
        self.champion = None
        if champion is not None:
            model = folder / "champion"
            shutil.copytree(models[champion], model)
            (model / LEARNED_FROM).parent.mkdir(exist_ok=True)
            places = ["train" if n in learned else "" for n in range(count + 6)]
            write_splits(folder, source(self.pictures, CLASSES), places)
            (folder / "splits.csv").rename(model / LEARNED_FROM)
            self.champion = "version 7", model

    def judge(self, pictures=None, frozen=None, console=QUIET):
        of = source(pictures or self.pictures, CLASSES)
        return judge(self.run_dir, self.champion, of, frozen or self.count, RULES, 0, console)


@pytest.fixture
def case(tmp_path, models):
    return lambda *names, **options: Case(tmp_path, models, *names, **options)


def test_a_first_challenger_is_judged_alone(case):
    judged = case("right").judge(frozen=32)
    decision = judged.verdict.decision
    assert (decision.promote, decision.champion, decision.n) == (True, None, 30)
    assert decision.challenger.accuracy == 1.0
    assert decision.challenger.latency_ms > 0
    assert (judged.verdict.leak, judged.verdict.missing, judged.flips) == (None, 2, [])


def test_a_better_challenger_and_what_it_answers_otherwise(case):
    this = case("right", "swaps red and green")
    judged = this.judge()
    decision = judged.verdict.decision
    assert decision.promote
    assert (decision.challenger.accuracy, decision.champion.accuracy) == (1.0, pytest.approx(1 / 3))
    assert (decision.only_challenger_right, decision.only_champion_right, decision.champion.name) == (
        20,
        0,
        "version 7",
    )
    flips = {flip.name: flip for flip in judged.flips}
    assert flips.keys() == {f"{n}.png" for n in range(30) if n % 3 < 2}
    first = flips["0.png"]
    assert (first.label, first.old, first.new) == ("red", "green", "red")
    np.testing.assert_array_equal(judged.pictures[first.digest], this.pictures[0][0])
    assert judged.pictures.keys() == {flip.digest for flip in judged.flips}
    assert 1 / 3 < first.new_score <= 1


def test_a_worse_challenger_is_refused_and_its_losses_are_shown(case):
    judged = case("swaps red and green", "right").judge()
    assert not judged.verdict.decision.promote
    assert "red" in judged.verdict.decision.reason
    assert {flip.new for flip in judged.flips} == {"red", "green"}


def test_classes_are_matched_by_name(case):
    decision = case("other order", "right").judge().verdict.decision
    assert decision.challenger.accuracy == decision.champion.accuracy == 1.0
    assert decision.gain == 0


def test_a_class_that_the_champion_does_not_know(case):
    judged = case("right", "no blue").judge()
    decision = judged.verdict.decision
    assert decision.promote
    assert decision.champion.accuracy == pytest.approx(2 / 3)
    assert {row.name: row.champion for row in decision.per_class} == {"red": 1.0, "green": 1.0, "blue": 0.0}
    assert {flip.label for flip in judged.flips} == {"blue"}


# ---------------------------------------------------------------------------------------------------------------- leaks


def test_pictures_that_the_champion_has_learned_from_are_left_out_and_reported(case):
    console = Heard()
    judged = case("right", "swaps red and green", learned=(0, 1, 3, 35)).judge(console=console)
    leak, decision = judged.verdict.leak, judged.verdict.decision
    assert leak.names == ["0.png", "1.png", "3.png"]
    assert (leak.accuracy_with, leak.accuracy_without) == (pytest.approx(10 / 30), pytest.approx(10 / 27))
    assert (decision.n, decision.challenger.accuracy) == (27, 1.0)
    assert not {flip.name for flip in judged.flips} & {"0.png", "1.png", "3.png"}
    assert console.warned == [leak.sentence]
    assert "learned from 3 of the test pictures" in leak.sentence
    assert "is 33.3% with them, 37.0% without" in leak.sentence


def test_near_duplicates_of_what_the_champion_has_learned_from_are_left_out_too(case):
    leak = case("right", "right", learned=(35,), clusters=[[2, 35, 5], [6, 34]]).judge().verdict.leak
    assert leak.names == ["2.png", "5.png"]


def test_a_champion_that_has_learned_from_all_of_them(case):
    with pytest.raises(DataError, match=r"no other is left\. .* Freeze another test set: graft freeze-test CONFIG"):
        case("right", "right", learned=range(30)).judge()


def test_a_champion_without_a_list_of_what_it_learned_from(case):
    this = case("right", "right", learned=(0,))
    (this.champion[1] / LEARNED_FROM).unlink()
    assert this.judge().verdict.leak is None


# ------------------------------------------------------------------------------------------------------------- mistakes


def test_a_test_picture_that_is_not_what_it_was(case):
    this = case("right")
    black = np.zeros((SIZE, SIZE, 3), np.uint8)
    changed = [(black if n == 29 else p, *rest) for n, (p, *rest) in enumerate(this.pictures)]
    with pytest.raises(DataError, match=r"The picture 29\.png has changed since the run began"):
        this.judge(changed)
    with pytest.raises(DataError, match=r"The test picture 20\.png has gone since the run began"):
        this.judge(this.pictures[:20])


def test_new_pictures_beside_the_test_pictures_do_not_matter(case):
    this = case("right")
    assert this.judge([*this.pictures, *this.pictures[:3]]).verdict.decision.n == 30


def test_a_model_that_cannot_be_read(case):
    this = case("right", "right")
    (this.champion[1] / "manifest.json").write_text("{")
    with pytest.raises(ExportError, match=r"manifest\.json is damaged"):
        this.judge()


def test_known_pictures_for_the_endpoint(case):
    this = case("right")
    known = this.judge().verdict.known
    assert len(known) == 8
    assert [max(each.probabilities, key=each.probabilities.get) for each in known[:4]] == [
        "red",
        "green",
        "blue",
        "red",
    ]
    assert all(sum(each.probabilities.values()) == pytest.approx(1) for each in known)
    first, *_ = source(this.pictures, CLASSES).examples()
    assert base64.b64decode(known[0].picture) == first.read()


def test_of_test_pictures_that_show_the_same_one_counts(case):
    this = case("right", "swaps red and green", clusters=[(0, 3, 6), (1, 30)])
    verdict = this.judge().verdict
    assert (verdict.repeated, verdict.decision.n) == (2, 28)
