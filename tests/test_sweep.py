"""Sweeps on digits: what is trained and left behind, and what if it is stopped, trials fail, or MLflow is away."""

import json
import math

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from pipeline import delivery, find_run, finetune, mlflow_client, notes, sweep, sweep_plan
from pipeline.artifacts import Epoch, alone
from pipeline.config_file import load
from pipeline.console import Console
from pipeline.errors import CacheError, DataError, GraftError
from pipeline.mlflow_client import connect
from pipeline.trial import Score
from tests.sweeping import CONFIG, ONE_EPOCH, begin

LEARNING_RATES = "phases.0.learning_rate=[1e-4, 2e-3, 1e-2]"


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A working directory of its own: sweeps and MLflow's store go there."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def folder(here):
    """A folder of 2 times 20 small pictures, and what makes them a sweep's."""
    random = np.random.default_rng(0)
    for label, level in (("dark", 60), ("light", 190)):
        (here / "pictures" / label).mkdir(parents=True)
        for number in range(20):
            pixels = random.integers(level - 50, level + 50, (16, 16, 3), np.uint8)
            Image.fromarray(pixels).save(here / "pictures" / label / f"{number}.png")
    return here / "pictures", ["data.source=folder", f"data.path={here / 'pictures'}", "data.classes=null"]


class Listening(Console):
    """Keeps what is said, and calls `when(line)`."""

    def __init__(self, when=lambda line: None):
        super().__init__(quiet=True)
        self.lines, self.warnings, self._when = [], [], when

    def say(self, text):
        self.lines.append(text)
        self._when(text)

    def warn(self, text):
        self.warnings.append(text)


class Reckoner:
    """In a Trainer's place: losses that follow from the config, without a training."""

    sizes, data_digest = {"train": 1, "validation": 1, "test": 1}, "pictures"

    def __init__(self, console):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def look(self, config):
        return self.data_digest

    def train(self, config, console, on_epoch):
        rate, seed = config.phases[0].learning_rate, config.seed
        at_first = abs(math.log10(rate) + 3.5) + abs(config.data.batch_size - 60) / 10
        for number in range(1, config.phases[0].epochs + 1):
            loss = at_first / number + config.head.dropout + 0.01 * seed
            on_epoch(Epoch(1, number, loss, 0.5, loss, 0.5, rate, 1.0, 1.0), score := Score(number, loss, 0.5))
        return score


def figures(outcome):
    return [(row.name, row.point, row.status, row.loss, row.accuracy) for row in outcome.trainings]


@pytest.mark.slow
def test_a_grid_leaves_a_table_a_page_the_winner_and_runs_in_mlflow(here):
    begun = begin(LEARNING_RATES)
    outcome = sweep.run(begun, Listening())
    assert [row.name for row in outcome.trainings if row.role != "trial"] == [
        "base", "base-seed-1", "base-seed-2", f"{outcome.winner.name}-seed-1", f"{outcome.winner.name}-seed-2",
    ]  # fmt: skip
    # The base's own learning rate is in the grid, and was not trained twice.
    repeated = next(row for row in outcome.trainings if row.same_as)
    assert (repeated.point, repeated.same_as, repeated.loss) == (
        {"phases.0.learning_rate": "0.002"}, "base", outcome.base.loss,
    )  # fmt: skip
    assert outcome.winner.differs == "phases.0.learning_rate=0.01"
    assert outcome.winner.loss == min(row.loss for row in outcome.trials)
    assert outcome.base.pictures.keys() == {"train", "validation", "test"}

    folder = outcome.folder
    assert folder.parent == here / "runs" / "digits-0-4"
    assert {path.name for path in folder.iterdir()} >= {"sweep.html", "trials.csv", "winner.yaml", "sweep.json"}
    assert load(folder / "winner.yaml") == load(CONFIG, [*ONE_EPOCH, "phases.0.learning_rate=0.01"])
    assert (folder / "winner.yaml").read_text().startswith("# phases.0.learning_rate=0.01: the winner of 3 trials")
    # Whoever looks for runs finds none here.
    assert find_run.recorded(here / "runs") == {}

    client = connect(mlflow_client.default_uri(here / "runs"))
    experiment = client.get_experiment_by_name("digits-0-4")
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = (run for run in runs if "mlflow.parentRunId" not in run.data.tags)
    assert parent.info.status == "FINISHED"
    assert parent.data.tags["graft.winner"] == "phases.0.learning_rate=0.01"
    assert {file.path for file in client.list_artifacts(parent.info.run_id)} == {
        "sweep.html", "trials.csv", "winner.yaml",
    }  # fmt: skip
    assert {name for run in runs for name in run.data.metrics} <= notes.FIGURES.keys()
    children = {run.info.run_name: run for run in runs if run is not parent}
    assert children.keys() == {
        "base", "base, seed 1", "base, seed 2", "phases.0.learning_rate=0.0001", "phases.0.learning_rate=0.01",
        "phases.0.learning_rate=0.01, seed 1", "phases.0.learning_rate=0.01, seed 2",
    }  # fmt: skip
    child = children["phases.0.learning_rate=0.01"]
    assert child.data.tags["mlflow.parentRunId"] == parent.info.run_id
    assert child.data.tags["graft.sweep_role"] == "trial"
    assert "graft.role" not in child.data.tags  # A model's, as champion and challenger.
    assert child.data.params == {"phases.0.learning_rate": "0.01", "seed": "0"}
    assert child.data.metrics["validation/calibrated_loss"] == pytest.approx(outcome.winner.loss)
    epoch = Epoch(1, 1, 1.0, 0.5, 1.0, 0.5, 1e-3, 1.0, 1.0)
    assert child.data.metrics.keys() >= notes.of_epoch(epoch).keys()  # A trial's curve is a run's.
    assert child.info.status == "FINISHED"


@pytest.mark.slow
@pytest.mark.parametrize(("search", "trials", "trained"), [("random", 2, True), ("tpe", 13, False)])
def test_a_sweep_that_was_stopped_goes_on_to_the_same_end(search, trials, trained, folder, here, monkeypatch):
    """The estimator draws at random until ten trials have ended: it is asked for more of them than can be trained."""
    if not trained:
        monkeypatch.setattr(sweep, "Trainer", Reckoner)
    over = ("phases.0.learning_rate=1e-4..1e-2", "head.dropout=[0.0, 0.5]")
    whole = sweep.run(begin(*over, search=search, trials=trials, overrides=folder[1]), Listening())
    last = trials - 1

    def stop(line):
        if line.startswith(f"trial {last}/{trials}"):
            raise KeyboardInterrupt

    begun = begin(*over, search=search, trials=trials, overrides=folder[1])
    with pytest.raises(KeyboardInterrupt):
        sweep.run(begun, Listening(stop))
    halfway = sweep.outcome_of(begun)
    assert (halfway.done, halfway.planned) == (last, trials)
    assert (begun.folder / "winner.yaml").is_file()
    assert f"{last} of {trials} trials have ended" in (begun.folder / "sweep.html").read_text()

    listening = Listening()
    resumed = sweep.run(sweep_plan.reopened(begun.folder), listening)
    assert figures(resumed) == figures(whole)
    assert not [line for line in listening.lines if line.startswith(("base", f"trial {last}/"))]
    client = connect(mlflow_client.default_uri(here / "runs"))
    run_id = json.loads((begun.folder / "tracking.state.json").read_text())["run_id"]
    assert client.get_run(run_id).info.status == "FINISHED"


@pytest.mark.slow
def test_a_search_that_repeats_points_and_prunes_goes_on_to_the_same_end(here, monkeypatch):
    monkeypatch.setattr(sweep, "Trainer", Reckoner)
    over, overrides = ("data.batch_size=56..68", "head.dropout=[0.0, 0.1, 0.2]"), ["phases.0.epochs=6"]
    whole = sweep.run(begin(*over, search="tpe", trials=40, overrides=overrides), Listening())
    rows = [row for row in whole.trainings if row.role == "trial"]
    assert sum(row.same_as is not None for row in rows) > 5
    assert sum(row.status == "pruned" for row in rows) > 5
    pruned = [row for row in rows if row.status == "pruned" and row.same_as is None]
    assert min(len(row.losses) for row in pruned) == 3  # The first third of six epochs is spared.

    def stop(line):
        if line.startswith("trial 20/40"):
            raise KeyboardInterrupt

    begun = begin(*over, search="tpe", trials=40, overrides=overrides)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(begun, Listening(stop))
    assert figures(sweep.run(sweep_plan.reopened(begun.folder), Listening())) == figures(whole)


@pytest.mark.slow
def test_a_trial_that_fails_has_its_reason_and_the_others_go_on(folder, here):
    begun = begin("phases.0.learning_rate=[1e38, 1e-7]", overrides=folder[1])
    outcome = sweep.run(begun, Listening())
    failed, finished = outcome.trials
    assert (failed.status, finished.status) == ("failed", "finished")
    assert "Training diverged" in failed.reason
    assert "diverged" in (outcome.folder / "sweep.html").read_text()
    client = connect(mlflow_client.default_uri(here / "runs"))
    run_id = json.loads((outcome.folder / "trials" / "0001" / "tracking.state.json").read_text())["run_id"]
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags[notes.NOTE] == notes.stopped("failed", failed.reason)


@pytest.mark.slow
def test_what_a_trial_changes_in_the_data_fails_that_trial_alone(folder, here):
    pictures, overrides = folder
    over = ("data.test_fraction=[0.001, 0.15]", "head.dropout=[0.1]")
    outcome = sweep.run(begin(*over, overrides=overrides), Listening())
    failed, finished = outcome.trials
    assert (failed.status, finished.status) == ("failed", "finished")
    assert "The test split is empty" in failed.reason
    assert "The test split is empty" in (outcome.folder / "sweep.html").read_text()

    def take_away(line):
        if line.startswith("trial 1/2"):
            pictures.rename(here / "away")

    begun = begin("data.crop=[0.9, 0.8]", overrides=overrides)
    with pytest.raises(DataError, match=r"nothing at data\.path.*goes on.*--resume"):
        sweep.run(begun, Listening(take_away))
    assert [row.status for row in sweep.outcome_of(begun).trials] == ["finished"]
    (here / "away").rename(pictures)
    resumed = sweep.run(sweep_plan.reopened(begun.folder), Listening())
    assert [row.status for row in resumed.trials] == ["finished", "finished"]


@pytest.mark.slow
def test_a_sweep_of_which_all_trials_fail_says_why(folder):
    begun = begin("data.test_fraction=[0.001]", "head.dropout=[0.1, 0.2]", overrides=folder[1])
    for again in (begun, sweep_plan.reopened(begun.folder)):
        with pytest.raises(GraftError, match=r"All 2 trials have failed.*The test split is empty.*sweep\.html"):
            sweep.run(again, Listening())
    assert "The test split is empty" in (begun.folder / "sweep.html").read_text()
    assert not [row for row in sweep.outcome_of(begun).trainings if row.role == "seed of winner"]


@pytest.mark.slow
def test_a_sweep_goes_on_with_the_same_pictures_alone(folder, here):
    pictures, overrides = folder

    def stop(line):
        if line.startswith("base:"):
            raise KeyboardInterrupt

    begun = begin("phases.0.learning_rate=[1e-7]", overrides=overrides)
    with pytest.raises(KeyboardInterrupt):
        sweep.run(begun, Listening(stop))

    def stops(words):
        with pytest.raises(DataError, match=words):
            sweep.run(sweep_plan.reopened(begun.folder), Listening())
        assert [row.name for row in sweep.outcome_of(begun).trainings] == ["base"]  # Nothing is taken for a failure.

    pictures.rename(here / "away")
    stops(r"nothing at data\.path")
    (here / "away").rename(pictures)
    (pictures / "dark" / "0.png").rename(here / "0.png")
    stops("the data has changed since it began")
    (here / "0.png").rename(pictures / "dark" / "0.png")
    assert {row.status for row in sweep.run(sweep_plan.reopened(begun.folder), Listening()).trainings} == {"finished"}


@pytest.mark.slow
def test_what_lies_with_the_machine_stops_a_sweep_that_can_go_on(folder, monkeypatch):
    train = finetune.finetune

    def broken(network, phases, *args, **kwargs):
        if phases[0].learning_rate == 2e-7:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating")
        if phases[0].learning_rate == 1e-7:
            raise CacheError("The disk is full.")
        return train(network, phases, *args, **kwargs)

    begun = begin("phases.0.learning_rate=[2e-7, 1e-7]", overrides=folder[1])
    with monkeypatch.context() as patch:
        patch.setattr(finetune, "finetune", broken)
        with pytest.raises(CacheError, match=f"The disk is full.*goes on.*--resume .*{begun.folder.name}"):
            sweep.run(begun, Listening())
    (failed,) = sweep.outcome_of(begun).trials  # Of the two, the one whose config asks for too much.
    assert (failed.status, failed.number) == ("failed", 1)
    assert "not enough memory" in failed.reason
    resumed = sweep.run(sweep_plan.reopened(begun.folder), Listening())
    assert [row.status for row in resumed.trials] == ["failed", "finished"]


@pytest.mark.slow
def test_a_base_that_cannot_be_trained_ends_it(folder):
    begun = begin(LEARNING_RATES, overrides=[*folder[1], "phases.0.learning_rate=1e38"])
    with pytest.raises(GraftError, match="The base cannot be trained"):
        sweep.run(begun, Listening())
    assert sweep.outcome_of(begun).winner is None


@pytest.mark.slow
def test_a_base_that_no_trial_betters_is_not_called_their_winner(here, monkeypatch):
    monkeypatch.setattr(sweep, "Trainer", Reckoner)
    outcome = sweep.run(begin("head.dropout=[0.6, 0.7]", seeds=None), Listening())
    assert outcome.winner.role == "base"
    assert [row.seed for row in outcome.trainings if row.role == "seed of base"] == [1, 2, 3, 4]
    first, *_ = (outcome.folder / "winner.yaml").read_text().splitlines()
    assert first == "# The base, after 2 trials, by"


@pytest.mark.slow
def test_bad_trials_are_ended_early(folder):
    over = ["phases.0.learning_rate=1e-7..1e-2"]
    overrides = [*folder[1], "phases.0.epochs=3"]
    outcome = sweep.run(begin(*over, search="random", trials=7, overrides=overrides), Listening())
    pruned = [row for row in outcome.trials if row.status == "pruned"]
    assert pruned
    assert all(len(row.losses) < 3 and row.loss > outcome.winner.loss for row in pruned)
    assert all(row.number > 5 for row in pruned)  # There must be others to be worse than.


@pytest.mark.slow
def test_mlflow_may_be_away_and_gets_everything_later(folder, here, monkeypatch):
    def away(uri):
        raise ConnectionError("nobody is there")

    with monkeypatch.context() as patch:
        patch.setattr(delivery, "connect", away)
        listening = Listening()
        outcome = sweep.run(begin("phases.0.learning_rate=[1e-7]", overrides=folder[1]), listening)
    assert len(listening.warnings) == 2  # when it was noticed, and at the end
    assert f"graft sync {outcome.folder}" in listening.warnings[-1]

    delivered = delivery.sync(outcome.folder, Listening())
    assert delivered.records > 10
    client = connect(mlflow_client.default_uri(here / "runs"))
    runs = client.search_runs([client.get_experiment_by_name("digits-0-4").experiment_id])
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert [run.info.run_id for run in parents] == [delivered.run_id]
    assert {run.data.tags.get("mlflow.parentRunId") for run in runs} == {None, delivered.run_id}
    assert len(runs) == 1 + len(outcome.trainings)
    assert delivery.sync(outcome.folder, Listening()).records == 0


@pytest.mark.slow
def test_a_sweep_that_was_stopped_before_its_first_training_can_be_delivered(here):
    begun = begin(LEARNING_RATES)
    assert delivery.sync(begun.folder, Listening()).records > 0
    assert delivery.sync(begun.folder, Listening()).records == 0


@pytest.mark.slow
def test_one_process_works_on_a_sweep(here):
    begun = begin(LEARNING_RATES)
    with alone(begun.folder, "sweep"), pytest.raises(GraftError, match="worked on by another process"):
        sweep.run(begun, Listening())
