"""Which test pictures runs are compared on, what is said of the others, and those that flip."""

import numpy as np
import pytest

from pipeline import compare_changes, compare_pictures, compare_runs, paired
from pipeline.artifacts import OUTPUTS, Outputs
from pipeline.errors import DataError
from tests.comparing import Data, Page, a_run, compared, of, pictures, written


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return pictures(tmp_path_factory.mktemp("data"), 200)


def test_what_a_run_has_learned_from_is_left_out_and_told(tmp_path, data):
    places = ["test"] * 100 + ["train"] * 90 + ["validation"] * 10
    moved = ["train"] * 5 + ["validation"] * 5 + ["test"] * 90 + ["train"] * 100
    a = a_run(tmp_path / "ants" / "a", data, places=places)
    b = a_run(tmp_path / "ants" / "b", data, places=moved, wrong=range(10, 14))
    found = compared(a, b)
    assert found.n == 90
    (leak,) = found.warnings
    assert leak.startswith("Leak: B has learned from, or was tuned on, 10 of A's 100 test pictures")
    assert "ant/0000.png" in leak
    assert of(found, "accuracy").change == pytest.approx(-4 / 90)
    change = found.against[0].data
    assert (change.added, change.removed, change.relabelled, change.moved) == (0, 0, 0, 20)
    assert change.examples["moved"][0] == "ant/0000.png: test → train"


def test_what_a_run_started_from_has_learned_counts(tmp_path, data):
    before = a_run(tmp_path / "ants" / "before", data, places=["train"] * 20 + ["test"] * 180)
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, started_from=str(before))
    found = compared(a, b)
    assert found.n == 180
    assert any("B has learned from, or was tuned on, 20 of A's 200 test pictures" in said for said in found.warnings)
    assert not any("cannot be ruled out" in said for said in found.warnings)


@pytest.mark.parametrize("file", ["run.json", "splits.csv"])
def test_that_a_run_started_from_is_gone_is_told(tmp_path, data, file):
    places = ["train"] * 20 + ["test"] * 180
    first = a_run(tmp_path / "ants" / "first", data, places=places)
    before = a_run(tmp_path / "ants" / "before", data, places=places[::-1], started_from=str(first))
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, started_from=str(before))
    (first / file).unlink()
    found = compared(a, b)
    assert found.n == 180  # What is there still counts.
    (told,) = [said for said in found.warnings if "cannot be ruled out" in said]
    assert told.startswith("Leaks of B cannot be ruled out")
    assert f"the run {first}, which is gone, and with it the list of what that run learned from" in told
    (before / file).unlink()
    found = compared(a, b)
    assert found.n == 200
    (told,) = found.warnings
    assert f"the run {before}, which is gone" in told


def test_of_test_pictures_that_show_the_same_one_counts(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(4), clusters=[(0, 1, 2), (50, 60)])
    b = a_run(tmp_path / "ants" / "b", data, wrong=(1, 60, 70), clusters=[(2, 3)])
    found = compared(a, b)
    assert (found.n, found.repeated, found.warnings) == (196, 4, [])
    versus = found.against[0]
    assert (versus.gained, versus.lost) == (1, 1)  # 0 and 70: of the others another one speaks
    assert of(found, "accuracy").interval == paired.bootstrap_gain(1, 1, 196, 0)
    assert (compared(b, a).n, compared(b, a).repeated) == (196, 4)
    assert found.runs[0].accuracy_interval == paired.accuracy_interval(195, 196)
    assert compared(a_run(tmp_path / "ants" / "c", data), b).repeated == 1
    page = Page(written(tmp_path, a, b).read_text())
    assert "4 more, which show the same as one of these, are left out." in page.said


def test_many_that_show_the_same_are_no_other_test_set(tmp_path, data):
    a, b = (a_run(tmp_path / "ants" / name, data, clusters=[range(100)]) for name in "ab")
    found = compared(a, b)
    assert (found.n, found.repeated, found.warnings) == (101, 99, [])


def test_near_duplicates_of_what_a_run_has_learned_from_are_left_out_and_told(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, clusters=[(0, 100), (1, 2)])
    b = a_run(tmp_path / "ants" / "b", data, places=["train"] + ["test"] * 199)
    found = compared(a, b)
    assert (found.n, found.repeated) == (197, 1)
    (leak,) = found.warnings
    assert leak.startswith("Leak: B has learned from, or was tuned on, 2 of A's 200 test pictures or near duplicates")
    assert data.names[100] in leak


def test_different_test_sets_are_compared_where_they_agree(tmp_path, data):
    half = Data(data.folder, data.names[:100], data.labels[:100], data.digests[:100])
    a = a_run(tmp_path / "ants" / "a", data, labels={3: "fly"})
    b = a_run(tmp_path / "ants" / "b", half, wrong=range(7))
    found = compared(a, b)
    assert found.n == 99
    (warning,) = found.warnings
    assert "only 99 test pictures are common to all, of 200 of A." in warning
    change = found.against[0].data
    assert (change.added, change.removed, change.relabelled, change.moved) == (0, 100, 1, 0)
    assert change.examples["relabelled"] == ["ant/0003.png: fly → ant"]
    assert len(change.examples["removed"]) == compare_changes.EXAMPLES


def test_a_run_may_know_more_classes(tmp_path, data):
    two = [number for number, label in enumerate(data.labels) if label != "fly"]
    few = Data(data.folder, *([column[n] for n in two] for column in (data.names, data.labels, data.digests)))
    a = a_run(tmp_path / "ants" / "a", few, classes=("bee", "ant"), wrong=range(9))
    b = a_run(tmp_path / "ants" / "b", data)
    found = compared(a, b)
    assert found.n == len(two)
    assert found.runs[0].figures["accuracy"] == pytest.approx(1 - 9 / len(two))
    assert found.runs[1].figures["accuracy"] == 1
    assert [row.name for row in found.per_class if row.n] == ["ant", "bee"]
    assert any("B also knows 1 class that A does not (fly)" in warning for warning in found.warnings)


def test_without_a_common_test_picture_there_is_nothing_to_compare(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, places=["test"] * 100 + ["train"] * 100)
    b = a_run(tmp_path / "ants" / "b", data, places=["train"] * 100 + ["test"] * 100)
    with pytest.raises(DataError, match=r"no test picture that all of them have.*A: 100.*B: 100"):
        compared(a, b)


# --------------------------------------------------------------------------------------------------------------- flips


def flipped(*folders, most=200):
    runs = compare_runs.read([str(folder) for folder in folders], folders)
    return runs, compare_pictures.flips(runs, compare_pictures.common(runs), most)


def test_flips_are_of_three_kinds_the_surest_first(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(10))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(8, 20))
    outputs = Outputs.read(b / OUTPUTS)
    outputs.logits[9] = np.roll(outputs.logits[9], 1)  # Wrong still, with the third class.
    outputs.write(b / OUTPUTS)
    _, (flips,) = flipped(a, b)
    kinds = {kind: [flip for flip in flips if flip.kind == kind] for kind in ("lost", "gained", "wrong either way")}
    assert sorted(flip.name[-8:-4] for flip in kinds["gained"]) == [f"{n:04}" for n in range(8)]
    assert sorted(flip.name[-8:-4] for flip in kinds["lost"]) == [f"{n:04}" for n in range(10, 20)]
    (either,) = kinds["wrong either way"]
    assert len({either.label, either.old, either.new}) == 3
    wrong = [flip.old_score if flip.kind == "gained" else flip.new_score for flip in flips]
    assert wrong == sorted(wrong, reverse=True)
    _, (few,) = flipped(a, b, most=6)
    assert len(few) == 6
    assert {flip.kind for flip in few} == set(kinds)


def test_thumbnails_are_of_pictures_that_have_not_changed(tmp_path):
    data = pictures(tmp_path / "data", 12)
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(4))
    runs, (flips,) = flipped(a, b)
    wanted = {flip.digest for flip in flips}
    found = compare_pictures.thumbnails(runs, wanted)
    assert found.keys() == wanted
    assert found[data.digests[0]].shape == (16, 16, 3)  # as the manifest's PixelSpec says
    (tmp_path / "data" / data.names[0]).write_bytes((tmp_path / "data" / data.names[5]).read_bytes() + b"another")
    (tmp_path / "data" / data.names[1]).unlink()
    assert compare_pictures.thumbnails(runs, wanted).keys() == wanted - set(data.digests[:2])
    (tmp_path / "data").rename(tmp_path / "away")
    assert compare_pictures.thumbnails(runs, wanted) == {}
