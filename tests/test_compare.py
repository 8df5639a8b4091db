"""Made-up runs in folders of their own, over real pictures; two real runs at the end."""

import csv
import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import asdict, dataclass
from html.parser import HTMLParser
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline import compare, compare_page, gate, metrics
from pipeline.artifacts import CLUSTERS, OUTPUTS, Epoch, Outputs, RunRecord
from pipeline.config_file import dump, parse
from pipeline.console import Console
from pipeline.errors import ConfigError, DataError, ExportError
from pipeline.evaluate import evaluate
from pipeline.find_run import find_run
from pipeline.metrics import softmax
from pipeline.registry import Registry
from pipeline.tracking import connect
from tests.promoting import MANIFEST
from tests.test_registry import a_run as in_mlflow

ROOT = Path(__file__).parent.parent
CLASSES = ("ant", "bee", "fly")
PLACES = ("train", "validation", "test")


@dataclass(frozen=True)
class Data:
    """Pictures in class folders: their names, labels and digests."""

    folder: Path
    names: list[str]
    labels: list[str]
    digests: list[str]


def pictures(folder, count, classes=CLASSES, side=24):
    """Pictures of noise, labelled in turn."""
    rng = np.random.default_rng(0)
    names, labels, digests = [], [], []
    for number in range(count):
        label = classes[number % len(classes)]
        path = folder / label / f"{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (side, side, 3), np.uint8)).save(path)
        names.append(f"{label}/{path.name}")
        labels.append(label)
        digests.append(hashlib.sha256(path.read_bytes()).hexdigest())
    return Data(folder, names, labels, digests)


@pytest.fixture(scope="session")
def data(tmp_path_factory):
    """200 pictures."""
    return pictures(tmp_path_factory.mktemp("data"), 200)


def a_run(
    folder, data, wrong=(), places=None, labels=None, classes=CLASSES, confidence=2.0, config=None, mlflow_run_id=None,
    clusters=None, **record,
):  # fmt: skip
    """A finished run's folder.

    Args:
        folder: to make, e.g. runs/ants/1.
        data: its pictures.
        wrong: numbers of test pictures that get the class after theirs.
        places: each picture's split; every picture a test picture if not given.
        labels: other ones than the data's, by number.
        classes: in the order of the logits.
        confidence: how far the logit of what it says is above the others.
        config: keys that differ.
        clusters: lists of numbers of pictures that show the same; None for a run that did not look for any.
        record: of run.json.
    """
    folder.mkdir(parents=True)
    places = places or ["test"] * len(data.names)
    labels = [(labels or {}).get(number, label) for number, label in enumerate(data.labels)]
    with (folder / "splits.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "split", "sha256", "reason"])
        writer.writerows(zip(data.names, labels, places, data.digests, [""] * len(places), strict=True))
        writer.writerow(["left-out.png", classes[0], "", "0" * 64, "damaged"])
    if clusters is not None:
        with (folder / CLUSTERS).open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["cluster", "path", "label", "split", "sha256", "conflict"])
            for cluster, numbers in enumerate(clusters, start=1):
                writer.writerows((cluster, data.names[n], labels[n], places[n], data.digests[n], "") for n in numbers)
    test = [number for number, place in enumerate(places) if place == "test"]
    truth = np.array([classes.index(labels[number]) for number in test], np.int32)
    said = np.where(np.isin(test, wrong), (truth + 1) % len(classes), truth)
    logits = np.zeros((len(test), len(classes)), np.float32)
    # No two pictures are as sure.
    logits[np.arange(len(test)), said] = confidence + np.linspace(0, 0.5, len(test))
    outputs = Outputs(
        classes, tuple(data.names[n] for n in test), tuple(data.digests[n] for n in test), truth, logits,
        (), np.zeros(0, np.int32), np.zeros((0, len(classes)), np.float32),
    )  # fmt: skip
    outputs.write(folder / OUTPUTS)
    scores = evaluate(logits, truth, outputs.validation_logits, outputs.validation_labels, list(classes), 0)
    scores.write(folder / "report.json")
    tree = {
        "name": folder.parent.name,
        "data": {"source": "folder", "path": str(data.folder)},
        "backbone": {"name": "lenet5", "weights": "none"},
        "phases": [{"epochs": 3, "learning_rate": 1e-3}],
    }
    (folder / "config.yaml").write_text(dump(parse(tree | (config or {}))))
    history = [Epoch(1, epoch, 1 / epoch, 0.5, 1.1 / epoch, 0.6, 1e-3, 1.0, 100.0) for epoch in (1, 2, 3)]
    (folder / "history.json").write_text(json.dumps([asdict(epoch) for epoch in history]))
    (folder / "model").mkdir()
    (folder / "model" / "saved_model.pb").write_bytes(bytes(1_000_000))
    MANIFEST.model_copy(update={"classes": list(classes)}).write(folder / "model" / "manifest.json")
    RunRecord(
        **{
            "name": folder.parent.name, "status": "finished", "run_dir": str(folder), "mlflow_run_id": mlflow_run_id,
            "started_at": "2026-01-01T00:00:00+00:00", "finished_at": "2026-01-01T00:01:00+00:00",
            "tracking_uri": "sqlite:///mlflow.db", "backbone": {"name": "lenet5", "options": {}},
            "seconds": {"ingest": 1.0, "train": 2.0}, **record,
        }
    ).write(folder / "run.json")  # fmt: skip
    return folder


def compared(*folders):
    runs = compare.read([str(folder) for folder in folders], folders)
    return compare.compare(runs, compare.common(runs))


def of(comparison, metric, other=0):
    (found,) = [each for each in comparison.against[other].differences if each.metric == metric]
    return found


# ------------------------------------------------------------------------------------------------------------- figures


def test_a_gain_beyond_chance_is_shown(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(30))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(28, 32))
    found = compared(a, b)
    versus = found.against[0]
    assert found.n == 200
    assert [side.letter for side in found.runs] == ["A", "B"]
    assert found.runs[0].figures["accuracy"] == 0.85
    assert found.runs[0].accuracy_interval == gate.wilson(170, 200)
    assert (versus.gained, versus.lost, versus.wrong_either_way) == (28, 2, 0)
    accuracy = of(found, "accuracy")
    assert accuracy.change == pytest.approx(0.13)
    assert accuracy.interval == gate.bootstrap_gain(28, 2, 200, 0)
    assert accuracy.p_value == gate.mcnemar(28, 2)
    assert accuracy.verdict == "better"
    low, high = (100 * end for end in accuracy.interval)
    assert accuracy.sentence == f"B is better by 13.0 points, 95 % from {low:.1f} to {high:.1f}: shown."
    # The other way round, the sentence says by how much it is worse.
    back = of(compared(b, a), "accuracy")
    assert back.verdict == "worse"
    assert back.sentence == f"B is worse by 13.0 points, 95 % from {low:.1f} to {high:.1f}: shown."


def test_what_chance_explains_is_not_shown(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(10))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(4, 13))
    accuracy = of(compared(a, b), "accuracy")
    assert accuracy.verdict == "not shown"
    assert re.fullmatch(r"B is better by 0\.5 points, 95 % from −\d\.\d to \d\.\d: not shown\.", accuracy.sentence)


def test_few_pictures_that_differ_show_nothing_although_the_bootstrap_says_so(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(4))
    b = a_run(tmp_path / "ants" / "b", data)
    accuracy = of(compared(a, b), "accuracy")
    assert accuracy.interval[0] > 0
    assert accuracy.p_value == pytest.approx(0.0625)
    assert accuracy.verdict == "not shown"
    assert accuracy.sentence.endswith(": not shown, as chance alone does this with probability 0.062.")


def test_runs_that_say_the_same_are_equal(tmp_path, data):
    a, b = (a_run(tmp_path / "ants" / name, data, wrong=range(5)) for name in "ab")
    found = compared(a, b)
    assert of(found, "accuracy").sentence == "B and A are equal, 95 % from 0.0 to 0.0: not shown."
    assert of(found, "loss").sentence == "B and A are equal in log loss, 95 % from 0.000 to 0.000: not shown."
    assert found.settings == []
    assert not found.against[0].data
    assert found.warnings == []


def test_less_loss_is_better(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(40))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(4))
    found = compared(a, b)
    loss = of(found, "loss")
    assert loss.change == pytest.approx(found.runs[1].figures["loss"] - found.runs[0].figures["loss"])
    assert loss.change < 0
    assert loss.interval[0] < loss.change < loss.interval[1] < 0
    assert loss.verdict == "better"
    assert re.match(r"B is better in log loss by 0\.\d{3} nats, 95 % from 0\.\d{3} to 0\.\d{3}: shown", loss.sentence)
    assert of(found, "macro_f1").verdict == "better"


def test_calibration_is_of_the_exported_model(tmp_path, data):
    """After temperature scaling, as in each run's own report."""
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(20), confidence=9.0)
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(20), confidence=2.0)
    report = json.loads((a / "report.json").read_text())
    report["temperature"] = 3.0
    (a / "report.json").write_text(json.dumps(report))
    outputs = Outputs.read(a / OUTPUTS)
    found = compared(a, b)
    expected = metrics.score(softmax(outputs.logits, 3.0), outputs.labels)
    assert found.runs[0].figures == pytest.approx({name: expected[name] for name in compare.METRICS})
    assert found.runs[0].temperature == 3.0


@settings(max_examples=15, deadline=None)
@given(n=st.integers(1, 40), c=st.integers(2, 5), seed=st.integers(0, 1000))
def test_bootstrap_changes_score_both_runs_on_the_same_resamples(n, c, seed):
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, c, n)
    old, new = (softmax(3 * rng.normal(size=(n, c))) for _ in range(2))
    with mock.patch.object(gate, "RESAMPLES", 20):
        found = compare.bootstrap_changes(old, new, labels, seed)
        draws = np.concatenate(list(gate.resampled(n, seed)))
    for name, figure in (("macro_f1", metrics.macro_f1), ("loss", metrics.log_loss)):
        changes = []
        for times in draws.astype(int):
            rows = np.repeat(np.arange(n), times)
            changes.append(figure(new[rows], labels[rows]) - figure(old[rows], labels[rows]))
        assert found[name] == pytest.approx(gate.percentiles(np.array(changes)), abs=1e-12)


def test_classes_say_which_changed_most(tmp_path, data):
    bees = [number for number, label in enumerate(data.labels) if label == "bee"]
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, wrong=bees[:20])
    first, *others = compared(a, b).per_class
    assert (first.name, first.n, first.right) == ("bee", len(bees), [1.0, 1 - 20 / len(bees)])
    ((change, low, high),) = first.changes
    assert change == pytest.approx(-20 / len(bees))
    assert low < change < high < 0
    assert {row.name for row in others} == {"ant", "fly"}
    assert all(row.changes[0][0] == 0 for row in others)


# ------------------------------------------------------------------------------------------------------ what is shared


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
    assert of(found, "accuracy").interval == gate.bootstrap_gain(1, 1, 196, 0)
    assert (compared(b, a).n, compared(b, a).repeated) == (196, 4)
    assert found.runs[0].accuracy_interval == gate.wilson(195, 196)
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
    assert len(change.examples["removed"]) == compare.EXAMPLES


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


# -------------------------------------------------------------------------------------------------------- config, code


def test_configs_differ_in_keys_with_their_defaults(tmp_path, data):
    phases = [{"epochs": 3, "learning_rate": 1e-3}, {"epochs": 2, "learning_rate": 1e-4, "unfreeze": "all"}]
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, config={"head": {"hidden_units": [64]}, "phases": phases})
    rows = {row.key: (row.default, row.values) for row in compared(a, b).settings}
    assert rows["head.hidden_units"] == ("[]", ["[]", "[64]"])
    assert rows["phases.1.epochs"] == ("–", ["–", "2"])
    assert rows["phases.1.unfreeze"] == ("head", ["–", "all"])
    assert "phases.0.epochs" not in rows
    assert "name" not in rows
    assert "data.path" not in rows


def test_runs_say_what_they_cost(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, phases=[])
    b = a_run(tmp_path / "ants" / "b", data)
    (b / "gate.json").write_text(json.dumps({"decision": {"challenger": {"latency_ms": 1.25}}}))
    first, second = compared(a, b).runs
    assert first.seconds == {"ingest": 1.0, "train": 2.0}
    assert 1_000_000 < first.model_bytes < 1_010_000
    assert (first.latency_ms, second.latency_ms) == (None, 1.25)
    assert (first.epochs, first.pictures["test"]) == (3, 200)
    rows = compare_page.facts([first, second])
    assert rows["one picture, ms (gate)"] == ["–", "1.25"]
    assert rows["all stages, seconds"] == ["3.0", "3.0"]


# --------------------------------------------------------------------------------------------------------------- flips


def flipped(*folders, most=200):
    runs = compare.read([str(folder) for folder in folders], folders)
    return runs, compare.flips(runs, compare.common(runs), most)


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
    found = compare.thumbnails(runs, wanted)
    assert found.keys() == wanted
    assert found[data.digests[0]].shape == (16, 16, 3)  # as the manifest's PixelSpec says
    (tmp_path / "data" / data.names[0]).write_bytes((tmp_path / "data" / data.names[5]).read_bytes() + b"another")
    (tmp_path / "data" / data.names[1]).unlink()
    assert compare.thumbnails(runs, wanted).keys() == wanted - set(data.digests[:2])
    (tmp_path / "data").rename(tmp_path / "away")
    assert compare.thumbnails(runs, wanted) == {}


# ---------------------------------------------------------------------------------------------------------- which runs


def no_registry(name):
    raise AssertionError(f"MLflow was asked for {name}")


def test_a_run_is_found_by_its_folder_its_name_or_mlflows_id(tmp_path, data):
    runs = tmp_path / "runs"
    old = a_run(runs / "ants" / "1", data, mlflow_run_id="0a1b")
    # The last one to end, though not to begin.
    begun = "2025-12-31T00:00:00+00:00"
    new = a_run(runs / "ants" / "2", data, started_at=begun, finished_at="2026-02-01T00:00:00+00:00")
    a_run(runs / "ants" / "3", data, status="failed", error="The disk is full.", finished_at="2026-03-01")
    for reference, folder in ((str(old), old), ("1", old), ("0a1b", old), ("ants", new)):
        assert find_run(reference, runs, no_registry) == folder
    with pytest.raises(ConfigError, match=r"has not finished: its status is failed \(The disk is full\)\..*--resume"):
        find_run("3", runs, no_registry)
    with pytest.raises(ConfigError, match=r"has not finished"):
        find_run(str(runs / "ants" / "3"), runs, no_registry)
    with pytest.raises(ConfigError, match=r"bees is not a run\..*Names of runs there: ants\."):
        find_run("bees", runs, no_registry)
    (new / "run.json").write_text("{")
    with pytest.raises(ConfigError, match=r"run\.json in .* is damaged"):
        find_run(str(new), runs, no_registry)


@pytest.fixture
def world(tmp_path, data):
    """Three versions: the champion before, the champion, and one that was refused."""
    runs = tmp_path / "runs"
    runs.mkdir()
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    with mock.patch.dict(os.environ):
        connect(uri)
        registry = Registry(uri, "ants")
        folders = []
        for number in (1, 2, 3):
            run_id = in_mlflow(uri)
            folders.append(a_run(runs / "ants" / f"run-{number}", data, mlflow_run_id=run_id))
            registry.register(run_id, {"graft.run_dir": str(folders[-1])})
        for number, alias in ((1, "previous"), (2, "champion")):
            registry.alias(alias, number)
            registry.tag(number, {"graft.promoted_at": "2026-01-01T00:00:00+00:00"})
        registry.tag(3, {"graft.gate": "refused"})
        yield runs, uri, folders


@pytest.mark.slow
def test_a_version_is_found_in_the_registry(world):
    runs, uri, folders = world
    registry = Registry(uri, "ants")

    def find(reference):
        return find_run(reference, runs, lambda name: Registry(uri, name))

    for reference, number in (("champion", 2), ("previous", 1), ("challenger", 3), ("1", 1), ("3", 3)):
        assert find(f"ants@{reference}") == folders[number - 1]
    words = (
        r"ants@best: ants has no such alias .*Aliases: champion \(version 2\), previous \(version 1\); .*: 3, 2, 1\."
    )
    with pytest.raises(ConfigError, match=words):
        find("ants@best")
    registry.tag(3, {"graft.promoted_at": "2026-01-02T00:00:00+00:00"})
    with pytest.raises(ConfigError, match=r"ants@challenger.*as each of its versions was promoted"):
        find("ants@challenger")
    registry.alias("challenger", 1)
    assert find("ants@challenger") == folders[0], "somebody's own alias comes first"
    # Moved with the rest of output_dir, it is known by MLflow's id.
    folders[1].rename(runs / "ants" / "moved")
    assert find("ants@champion") == runs / "ants" / "moved"
    (runs / "ants" / "moved").rename(runs / "gone")
    with pytest.raises(ConfigError, match=r"run that made version 2 of ants is gone: it was .*run-2"):
        find("ants@champion")
    with pytest.raises(ConfigError, match="bees@champion: no version of bees is registered"):
        find("bees@champion")


def test_what_cannot_be_compared_is_told(tmp_path, data):
    a, b = (a_run(tmp_path / "ants" / name, data) for name in "ab")
    with pytest.raises(ConfigError, match=r"Two to 26 runs can be compared\. Received: 1\."):
        compared(a)
    with pytest.raises(ConfigError, match=r"is one run, .*, given twice"):
        compared(a, b, a)
    (b / OUTPUTS).unlink()
    with pytest.raises(ConfigError, match=r"outputs\.npz is missing.*another version.*Make it again: graft run"):
        compared(a, b)
    (b / OUTPUTS).write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="one of its files cannot be read"):
        compared(a, b)
    (a / "model" / "manifest.json").unlink()
    with pytest.raises(ExportError, match="is not a model exported by graft"):
        compared(a, b)


# ---------------------------------------------------------------------------------------------------------------- page


def written(tmp_path, *folders):
    """The comparison of runs as a page."""
    runs = compare.read([str(folder) for folder in folders], folders)
    shared = compare.common(runs)
    flips = compare.flips(runs, shared, compare_page.MOST_FLIPS // (len(runs) - 1))
    pictures = compare.thumbnails(runs, {flip.digest for rows in flips for flip in rows})
    path = tmp_path / "compare.html"
    compare_page.write(path, compare.compare(runs, shared), runs, flips, pictures)
    return path


class Page(HTMLParser):
    """The page's pictures and drawings, and that it closes what it opens and fetches nothing."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text):
        super().__init__()
        self.images, self.drawings, self.open, self.said = [], [], [], ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        assert tag != "iframe"
        assert attrs.get("src", "data:").startswith("data:")
        assert attrs.get("href", "#").startswith(("data:", "#"))
        if tag == "img":
            self.images.append(attrs["alt"])
        if tag == "svg":
            self.drawings.append(attrs["aria-label"])
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not {"style", "script"} & set(self.open):
            self.said += data + "\n"


def test_the_page_tells_all_of_it(tmp_path, data):
    a = a_run(tmp_path / "ants" / "a", data, wrong=range(30))
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(28, 40), config={"seed": 7})
    text = written(tmp_path, a, b).read_text()
    page = Page(text)
    found = compared(a, b)
    assert "2 runs on 200 common test pictures" in page.said
    assert found.against[0].differences[0].sentence in page.said
    assert "B against A: 10 lost, 28 gained, 0 wrong either way" in page.said
    assert "seed" in page.said
    assert len(page.images) == 38
    assert "ant/0000.png: ant; A says bee, B says ant" in page.images
    curves, changes = page.drawings
    assert "A: loss from 1.100 to 0.367, accuracy at best 60.0% in epoch 1 of 3" in curves
    assert changes == found.against[0].differences[0].sentence
    assert not re.search(r"\bnan\b|\binf\b|None", page.said)


def test_a_page_is_called_by_its_runs():
    folders = [Path(f"/runs/ants/20261121-15541{n}-cf78") for n in range(5)]
    name = compare_page.file_name
    assert name(folders[:2]) == "20261121-155410-cf78_20261121-155411-cf78.html"
    assert name(folders[:3]) == "20261121-155410-cf78_20261121-155411-cf78_20261121-155412-cf78.html"
    sets = [folders, folders[:4], [*folders[:3], folders[4]], [*folders[:3], folders[4], folders[3]]]
    assert len({name(each) for each in sets}) == len(sets)
    assert name(folders) == name(list(folders))
    assert all(each.startswith("20261121-155410-cf78_") and len(each) < 80 for each in map(name, sets))
    assert len(name([Path("/runs/" + "ant" * 80), *folders])) < 80


def test_more_runs_than_colours(tmp_path, data):
    folders = [a_run(tmp_path / "ants" / f"{n}", data, wrong=range(n)) for n in range(7)]
    page = Page(written(tmp_path, *folders).read_text())
    assert "7 runs on 200" in page.said
    assert compare.NOTE in page.said.replace("\n", " ")
    assert "G against A: 6 lost" in page.said


@pytest.mark.slow
def test_a_page_of_1000_test_pictures_stays_small(tmp_path):
    data = pictures(tmp_path / "data", 1000, side=120)  # of noise, which makes the largest files
    a = a_run(tmp_path / "ants" / "a", data)
    b = a_run(tmp_path / "ants" / "b", data, wrong=range(400))
    for run in (a, b):
        spec = MANIFEST.pixels
        large = MANIFEST.model_copy(update={"classes": list(CLASSES), "pixels": type(spec)(120, 120, 1.0)})
        large.write(run / "model" / "manifest.json")
    path = written(tmp_path, a, b)
    page = Page(path.read_text())
    assert len(page.images) == 200
    assert "200 more are not listed." in page.said
    assert path.stat().st_size < 15_000_000


def test_strange_names_break_nothing(tmp_path):
    classes = ("<script>alert(1)</script>".replace("/", "⁄"), "蟻 $x$", "{{ x }} & é")
    data = pictures(tmp_path / "da<b>ta", 30, classes)
    a = a_run(tmp_path / "ants" / "a", data, classes=classes)
    b = a_run(tmp_path / "ants" / "b", data, classes=classes, wrong=range(9))
    text = written(tmp_path, a, b).read_text()
    page = Page(text)
    assert "<script>alert" not in text
    assert "蟻 $x$" in page.said
    assert "{{ x }} & é" in page.said
    assert len(page.images) == 9


# ------------------------------------------------------------------------------------------------------------- command


def graft(*arguments, cwd):
    return subprocess.run(
        [sys.executable, "-m", "pipeline", "compare", *map(str, arguments)],
        cwd=cwd, capture_output=True, text=True, check=False,
        env=os.environ | {"NO_COLOR": "1", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip


@pytest.mark.slow
def test_the_command_prints_what_it_found_and_where_the_page_is(tmp_path, data):
    a_run(tmp_path / "runs" / "ants" / "a", data, wrong=range(30), places=["test"] * 190 + ["train"] * 10)
    a_run(tmp_path / "runs" / "ants" / "b", data, wrong=range(3), config={"seed": 7})
    result = graft("a", "b", "--json", cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    *lines, last = result.stdout.splitlines()
    assert lines[:2] == ["A  ants a", "B  ants b"]
    assert any(re.fullmatch(r"seed +0 +0 +7 *", line) for line in lines)
    assert "on 190 common test pictures" in lines
    assert "pictures that flip from A to B: 0 lost, 27 gained, 0 wrong either way" in lines
    found = compare.Comparison.model_validate_json(last)
    assert found.against[0].differences[0].sentence in lines
    assert lines[-1] == "page  runs/compare/a_b.html"
    assert "Leak: A has learned from, or was tuned on, 10 of B's 200 test pictures" in result.stderr
    assert (tmp_path / "runs" / "compare" / "a_b.html").is_file()
    assert graft("a", "b", "--output", "here/x.html", cwd=tmp_path).returncode == 0
    assert (tmp_path / "here" / "x.html").is_file()

    result = graft("a", "ants@champion", cwd=tmp_path)
    assert result.returncode == 1
    assert "There is no model registry" in result.stderr
    result = graft("a", "nowhere", cwd=tmp_path)
    assert result.returncode == 2
    assert "nowhere is not a run" in result.stderr


@pytest.mark.slow
def test_real_runs_of_digits(tmp_path):
    from pipeline.run import run

    tree = {
        "name": "digits", "output_dir": str(tmp_path / "runs"), "export": {"dir": str(tmp_path / "export")},
        "data": {"source": "digits", "classes": ["3", "8"], "crop": 1.0, "batch_size": 64},
        "backbone": {"name": "lenet5", "weights": "none"},
        "phases": [{"epochs": 1, "learning_rate": 5e-4, "unfreeze": "all"}],
    }  # fmt: skip
    quiet = Console(quiet=True)
    with mock.patch.dict(os.environ):
        records = [run(parse(tree | {"seed": seed}), quiet) for seed in (0, 1)]
    folders = [Path(record.run_dir) for record in records]
    found = compared(*folders)
    assert [row.key for row in found.settings] == ["seed"]
    assert not found.against[0].data
    for side, record in zip(found.runs, records, strict=True):
        assert side.figures["accuracy"] == pytest.approx(record.metrics["test_accuracy"])
        assert side.figures["loss"] == pytest.approx(record.metrics["test_loss"], rel=1e-5)
    versus = found.against[0]
    assert len(Page(written(tmp_path, *folders).read_text()).images) == (
        versus.gained + versus.lost + versus.wrong_either_way
    )
