"""Many trainings that differ in a few config keys, compared on the validation split. The test split is not looked at.

What is lower is better: the validation log loss of the weights that a run would keep, with the temperature that a run
fits and exports. It tells trainings apart that get the same pictures right, where accuracy moves by whole pictures, and
leaves aside how sure of itself a network is, which learning rates and label smoothing change and the temperature mends
(Berta et al., "Rethinking Early Stopping: Refine, Then Calibrate", 2025). Accuracy decides between equal losses.

A sweep's folder, `<output_dir>/<name>/sweep-<time>-<random>/`:

    sweep.json                what was asked for
    trials/NAME/trial.json    a training each: base, base-seed-1, 0001, 0001-seed-1
    sweep.html, trials.csv    the comparison
    winner.yaml               the best config, for `graft run`

Each training is a function of its config, and each point of a search one of the trials before it: a sweep that was
stopped goes on from these files, to the same end.
"""

import math
import shlex
from pathlib import Path
from typing import Literal

import optuna

from pipeline import search_space, sweep_page
from pipeline.artifacts import alone, write_atomically
from pipeline.cli import graft
from pipeline.config_file import dump
from pipeline.console import Console
from pipeline.errors import GraftError
from pipeline.journal import PARTS, address
from pipeline.search_space import Range
from pipeline.sweep_plan import Sweep
from pipeline.sweep_result import Outcome, Training
from pipeline.sweep_trainings import Courier, Trainings
from pipeline.tracking import Tracker
from pipeline.trial import Trainer

_UNPRUNED = 5  # Trials that are trained to their end before any is pruned.


def run(sweep: Sweep, console: Console) -> Outcome:
    """Trains what has not been trained yet: the base and its further seeds, the trials, the winner's further seeds.

    The page, the table and the winner's config are written however it ends.

    Raises:
        DataError: the sweep goes on, and the data is no longer what it was.
        GraftError: the base cannot be trained, or no trial could; another process is working on this sweep; or
            something of the machine or the data is amiss, after which the sweep can go on.
        KeyboardInterrupt: it was stopped, and can go on.
    """
    with alone(sweep.folder, "sweep"), Courier(sweep.folder, console) as courier, Trainer(console) as trainer:
        console.say(f"sweep {sweep.folder}")
        journal = Tracker(sweep.folder, *address(sweep.folder), sweep.folder.name, Console(quiet=True), at_once=False)
        courier.send(sweep.folder)
        trainings = Trainings(sweep, outcome_of(sweep).trainings, trainer, courier, console)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            _train_all(trainings)
            status = "FINISHED"
        except KeyboardInterrupt:
            status = "KILLED"
            raise
        finally:
            outcome = outcome_of(sweep)
            _write(sweep, outcome, journal)
            journal.finish(status)
    return outcome


def outcome_of(sweep: Sweep) -> Outcome:
    """What has been found so far."""
    trainings = [Training.read(path) for path in sweep.folder.glob(f"{PARTS}/*/trial.json")]
    roles = ("base", "trial", "seed of base", "seed of winner")
    return Outcome(
        sweep.folder,
        sweep.base.name,
        tuple(axis.key for axis in sweep.axes),
        frozenset(axis.key for axis in sweep.axes if isinstance(axis, Range)),
        frozenset(axis.key for axis in sweep.axes if isinstance(axis, Range) and axis.log),
        sweep.plan.trials,
        tuple(sorted(trainings, key=lambda row: (roles.index(row.role), row.number, row.seed))),
    )


# ------------------------------------------------------------------------------------------------------------ trainings


def _train_all(trainings: Trainings) -> None:
    sweep, first = trainings.sweep, trainings.sweep.base.seed
    further = range(first + 1, first + 1 + sweep.plan.seeds)
    base = trainings.train("base", "base", 0, {}, first)
    if base.status == "failed":
        raise GraftError(f"The base cannot be trained, and there is nothing to compare trials with. {base.reason}")
    for seed in further:
        trainings.train(f"base-seed-{seed}", "seed of base", 0, {}, seed)
    if sweep.plan.search == "grid":
        for number, point in enumerate(sweep.grid, start=1):
            trainings.train(f"{number:04d}", "trial", number, point, first)
    else:
        _search(trainings)
    outcome = outcome_of(sweep)
    if reason := outcome.none_trained:
        raise GraftError(
            f"{reason} The page has all reasons: {sweep.folder / 'sweep.html'}. Start a new sweep with other values."
        )
    winner = outcome.winner
    assert winner is not None
    if winner.role == "trial":
        for seed in further:
            trainings.train(f"{winner.name}-seed-{seed}", "seed of winner", winner.number, winner.point, seed)


def _search(trainings: Trainings) -> None:
    """Random search, or the tree-structured Parzen estimator (Bergstra et al., 2011), with the median rule: a trial
    ends early where its lowest loss so far is above the median of the earlier trials' at the same epoch."""
    sweep = trainings.sweep
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    epochs = sum(phase.epochs for phase in sweep.base.phases)
    # Optuna counts steps from 0, and the epochs that are reported count from 1.
    first = math.ceil(epochs / 3) + 1
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED, n_warmup_steps=first)
    study = optuna.create_study(direction="minimize", pruner=pruner)
    distributions = search_space.distributions(sweep.axes)
    states = optuna.trial.TrialState
    ends = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
    samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
    for number in range(1, sweep.plan.trials + 1):
        name, seed = f"{number:04d}", sweep.base.seed
        row = trainings.known(name)
        if row is None:
            # Seeded for each trial: a sweep that goes on draws what it would have drawn.
            study.sampler = samplers[sweep.plan.search](seed=seed + number)
            trial = study.ask(distributions)
            row = trainings.train(name, "trial", number, search_space.point(sweep.axes, trial.params), seed, trial)
            study.tell(trial, state=states.FAIL)  # Samplers pass it over: they learn from the record alone.
        study.add_trial(
            optuna.trial.create_trial(
                state=ends[row.status],
                value=row.loss if row.status == "finished" else None,
                params=search_space.params(sweep.axes, row.point),
                distributions=distributions,
                intermediate_values=dict(enumerate(row.losses, start=1)),
            )
        )


# -------------------------------------------------------------------------------------------------------------- results


def _write(sweep: Sweep, outcome: Outcome, journal: Tracker) -> None:
    """The table, the page and the winner's config, here and in MLflow."""
    folder, winner, noise = sweep.folder, outcome.winner, outcome.noise
    outcome.write_table(folder / "trials.csv")
    if winner is not None:
        config = sweep.config({} if winner.role == "base" else winner.point)
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": None})})
        count = f"{outcome.done} trial{'' if outcome.done == 1 else 's'}"
        won = f"The base, after {count}" if winner.role == "base" else f"{winner.differs}: the winner of {count}"
        says = f"# {won}, by\n#   {sweep.plan.command}\n"
        assert winner.loss is not None
        assert winner.accuracy is not None
        says += f"# Calibrated validation loss {winner.loss:.4f}, accuracy {winner.accuracy:.3f}. {outcome.verdict}\n"
        to_place, why = sweep.place
        says += f"# {why} Here: {to_place.strip()}\n" if why else ""
        write_atomically(folder / "winner.yaml", says + dump(config))
        journal.tags({"graft.winner": winner.differs, "graft.verdict": outcome.verdict})
        figures = {"winner/calibrated_loss": winner.loss, "winner/accuracy": winner.accuracy}
        if noise is not None:
            figures |= {"noise/calibrated_loss": noise.loss, "noise/accuracy": noise.accuracy}
        journal.metrics(figures, step=outcome.done)
        base = outcome.base
        assert base is not None
        pictures = ", ".join(f"{count:,} {split}" for split, count in base.pictures.items())
        facts = {
            "command": sweep.plan.command,
            "search": f"{sweep.plan.search}, {sweep.plan.trials} trials, {sweep.plan.seeds} further seeds",
            **{key: values for key, _, values in (text.partition("=") for text in sweep.plan.over)},
            "pictures": f"{pictures}; the test split was not looked at",
            "folder": str(folder),
        }
        here = Path.cwd()  # where the config's relative paths start
        file = folder / "winner.yaml"
        file = file.relative_to(here) if file.is_relative_to(here) else file
        then = f"cd {shlex.quote(str(here))} && {shlex.quote(graft())} run {shlex.quote(str(file))}{to_place}"
        sweep_page.write(folder / "sweep.html", outcome, then, facts, why)
    for name in ("sweep.html", "trials.csv", "winner.yaml"):
        if (folder / name).is_file():
            journal.artifact(folder / name)
