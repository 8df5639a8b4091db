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

import fcntl
import math
import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import optuna
from pydantic import Field, ValidationError

from pipeline import notes, search_space, sweep_page, tracking
from pipeline.artifacts import Epoch, Record, new_folder, write_atomically
from pipeline.backbones import weights
from pipeline.config import BackboneConfig, RunConfig
from pipeline.config_file import assigned, dump, parse, read
from pipeline.console import Console
from pipeline.errors import ConfigError, DataError, GraftError, TrackingError, TrainingError
from pipeline.search_space import Axis, Choices, Point, Range
from pipeline.sweep_result import Outcome, Role, Training
from pipeline.tracking import PARTS, Tracker
from pipeline.trial import Score, Trainer, preparation

Search = Literal["grid", "random", "tpe"]

_TRIALS = 30  # Of a search, where nobody says how many.
_UNPRUNED = 5  # Trials that are trained to their end before any is pruned.
_QUIET = Console(quiet=True)


class Plan(Record):
    """`sweep.json`: what was asked for.

    Attributes:
        command: that began the sweep.
        tree: the base config as it is written, with --set.
        over: the axes, as given to --over.
        search: how points are chosen.
        trials: how many there are.
        seeds: how many further seeds the base and the winner are trained with.
        weights: what each `run:NAME` among the base's and the axes' backbone.weights stood for at the beginning:
            `run:` and the name of the run's folder.
        tracking_uri: the base's own, without its password; None where it has none.
    """

    command: str
    tree: dict[str, Any]
    over: list[str]
    search: Search
    trials: int
    seeds: int
    weights: dict[str, str] = Field(default_factory=dict)
    tracking_uri: str | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep and its folder."""

    folder: Path
    plan: Plan

    @cached_property
    def base(self) -> RunConfig:
        return self._parsed(self.plan.tree, "The base config")

    @cached_property
    def axes(self) -> list[Axis]:
        return search_space.parse(self.plan.over)

    @cached_property
    def grid(self) -> list[Point]:
        """A grid's points. Those that share their pictures and backbone follow one another."""
        points = search_space.grid(self.axes)
        shared = [preparation(self.config(point)) for point in points]
        return [points[place] for place in sorted(range(len(points)), key=lambda place: shared.index(shared[place]))]

    @cached_property
    def base_point(self) -> Point:
        """What the base has for each key, written as in the list of its values where it is one of them."""

        def text(axis: Axis) -> str:
            value = _value(self.base, axis.key)
            for choice in axis.values if isinstance(axis, Choices) else ():
                tree = assigned(self.plan.tree, search_space.overrides({axis.key: choice}))
                try:
                    if _value(self._parsed(tree, axis.key), axis.key) == value:
                        return choice
                except ConfigError:
                    continue  # It needs another key's value beside it.
            return "not set" if value is None else search_space.written(value)

        return {axis.key: text(axis) for axis in self.axes}

    def config(self, point: Mapping[str, str]) -> RunConfig:
        """The base with a point's values. Raises ConfigError."""
        where = f"The base config with {search_space.named(point)}"
        return self._parsed(assigned(self.plan.tree, search_space.overrides(point)), where)

    def _parsed(self, tree: dict[str, Any], where: str) -> RunConfig:
        """With the weights that `run:NAME` stood for when the sweep began. Raises ConfigError."""
        config = parse(tree, where)
        start = self.plan.weights.get(config.backbone.weights)
        if start is None:
            return config
        return config.model_copy(update={"backbone": config.backbone.model_copy(update={"weights": start})})

    @property
    def place(self) -> tuple[str, str]:
        """What a run of the winner needs beside its config to be tracked where the base is, and why, in a sentence;
        two empty texts where the base does not say where."""
        uri = self.plan.tracking_uri
        if uri is None:
            return "", ""
        mask = "with the password in place of ***" if "***" in uri else "as here"
        return (
            f" --set {shlex.quote(f'tracking.uri={uri}')}",
            f"The config does not hold the base's tracking.uri, which may hold a password: give it {mask}, or set "
            "MLFLOW_TRACKING_URI.",
        )

    def differs(self, config: RunConfig, point: Mapping[str, str]) -> str:
        """What of a point, whose config is given, is not the base's, e.g. `head.dropout=0.2`; `base` for nothing."""
        new = {key: text for key, text in point.items() if _value(config, key) != _value(self.base, key)}
        return search_space.named(new) or "base"


def begin(
    path: Path,
    overrides: Sequence[str],
    over: Sequence[str],
    search: Search | None,
    trials: int | None,
    seeds: int,
    command: str,
) -> Sweep:
    """Checks what is asked for, and makes the sweep's folder.

    Args:
        path: the base config.
        overrides: as given to --set.
        over: as given to --over.
        search: how points are chosen. None: a grid, or tpe where there is a range.
        trials: how many. None: 30; a grid has as many as it has points.
        seeds: how many further seeds the base and the winner are trained with, at least 2.
        command: as it was typed, for the record.

    Raises:
        ConfigError: a text cannot be read, or a combination is no config; nothing has been made yet.
        WeightsError: `backbone.weights: run:NAME` names no finished run, or one of another backbone; likewise.
    """
    tree = assigned(read(path), list(overrides))
    command = " ".join(tracking.without_password(command).splitlines())
    base = parse(tree, str(path))
    axes = search_space.parse(over)
    search = search or ("tpe" if any(isinstance(axis, Range) for axis in axes) else "grid")
    if search == "grid":
        if trials is not None:
            raise ConfigError("--trials has no effect on a grid, which tries every combination. Leave it out.")
        trials = len(search_space.grid(axes))
    uri = tracking.resolve_uri(base)
    # It may hold a password. A sweep that goes on is tracked where it began.
    if isinstance(tree.get("tracking"), dict):
        tree["tracking"] = {key: value for key, value in tree["tracking"].items() if key != "uri"}
    plan = Plan(
        command=command, tree=tree, over=list(over), search=search, trials=trials or _TRIALS, seeds=seeds,
        tracking_uri=base.tracking.uri and tracking.without_password(base.tracking.uri),
    )  # fmt: skip
    folder = new_folder(Path(base.output_dir).resolve() / base.name)
    sweep = Sweep(folder.with_name(f"sweep-{folder.name}"), plan)
    backbones = [base.backbone, *(sweep.config(corner).backbone for corner in search_space.corners(axes))]
    sweep = replace(sweep, plan=plan.model_copy(update={"weights": _starts(backbones, Path(base.output_dir))}))
    plan, base = sweep.plan, sweep.base
    try:
        sweep.folder.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(
            f"output_dir must be a folder that can be made, or written to: {sweep.folder.parent} is not "
            f"({error.strerror}). Received: {base.output_dir}. Choose another output_dir, or another name."
        ) from error
    plan.write(sweep.folder / "sweep.json")
    journal = Tracker(sweep.folder, uri, base.experiment, sweep.folder.name, _QUIET, at_once=False)
    journal.tags({"graft.run_dir": str(sweep.folder), "graft.sweep": search})
    journal.params(base.flat() | {f"sweep.{axis.key}": values for axis, values in zip(axes, over, strict=True)})
    return sweep


def _starts(backbones: Sequence[BackboneConfig], output_dir: Path) -> dict[str, str]:
    """By `run:NAME`, the run that it stands for now, as `run:FOLDER`. Raises WeightsError."""
    starts: dict[str, str] = {}
    unique = {backbone.model_dump_json(): backbone for backbone in backbones}
    for backbone in unique.values():
        if (start := weights.started_from(backbone, output_dir)) is not None:
            starts[backbone.weights] = f"run:{start.name}"
    return starts


def reopened(folder: Path) -> Sweep:
    """A sweep that goes on.

    Raises:
        ConfigError: the folder is not a sweep's.
    """
    try:
        plan = Plan.read(folder / "sweep.json")
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{folder} is not the folder of a sweep: it must hold a sweep.json. Give a folder "
            "<output_dir>/<name>/sweep-<time>, as graft sweep prints it at its start."
        ) from error
    return Sweep(folder.resolve(), plan)


def run(sweep: Sweep, console: Console) -> Outcome:
    """Trains what has not been trained yet: the base and its further seeds, the trials, the winner's further seeds.

    The page, the table and the winner's config are written however it ends.

    Raises:
        DataError: the sweep goes on, and the data is no longer what it was.
        GraftError: the base cannot be trained, another process is working on this sweep, or something of the machine
            or the data is amiss, after which the sweep can go on.
        KeyboardInterrupt: it was stopped, and can go on.
    """
    with _alone(sweep.folder), _Courier(sweep.folder, console) as courier, Trainer(console) as trainer:
        console.say(f"sweep {sweep.folder}")
        journal = Tracker(sweep.folder, *tracking.address(sweep.folder), sweep.folder.name, _QUIET, at_once=False)
        courier.send(sweep.folder)
        work = _Work(sweep, trainer, courier, console)
        status: Literal["FINISHED", "FAILED", "KILLED"] = "FAILED"
        try:
            _train_all(work)
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


def _train_all(work: "_Work") -> None:
    sweep, first = work.sweep, work.sweep.base.seed
    further = range(first + 1, first + 1 + sweep.plan.seeds)
    base = work.train("base", "base", 0, {}, first)
    if base.status == "failed":
        raise GraftError(f"The base cannot be trained, and there is nothing to compare trials with. {base.reason}")
    for seed in further:
        work.train(f"base-seed-{seed}", "seed of base", 0, {}, seed)
    if sweep.plan.search == "grid":
        for number, point in enumerate(sweep.grid, start=1):
            work.train(f"{number:04d}", "trial", number, point, first)
    else:
        _search(work)
    winner = outcome_of(sweep).winner
    assert winner is not None
    if winner.role == "trial":
        for seed in further:
            work.train(f"{winner.name}-seed-{seed}", "seed of winner", winner.number, winner.point, seed)


def _search(work: "_Work") -> None:
    """Random search, or the tree-structured Parzen estimator (Bergstra et al., 2011), with the median rule: a trial
    ends early where its lowest loss so far is above the median of the earlier trials' at the same epoch."""
    sweep = work.sweep
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    epochs = sum(phase.epochs for phase in sweep.base.phases)
    pruner = optuna.pruners.MedianPruner(n_startup_trials=_UNPRUNED, n_warmup_steps=math.ceil(epochs / 3))
    study = optuna.create_study(direction="minimize", pruner=pruner)
    distributions = search_space.distributions(sweep.axes)
    states = optuna.trial.TrialState
    ends = {"finished": states.COMPLETE, "pruned": states.PRUNED, "failed": states.FAIL}
    for number in range(1, sweep.plan.trials + 1):
        name, seed = f"{number:04d}", sweep.base.seed
        if (row := work.known(name)) is not None:
            study.add_trial(
                optuna.trial.create_trial(
                    state=ends[row.status],
                    value=row.loss if row.status == "finished" else None,
                    params=row.drawn,
                    distributions=distributions,
                    intermediate_values=dict(enumerate(row.losses, start=1)),
                )
            )
            continue
        # Seeded for each trial: a sweep that goes on draws what it would have drawn.
        samplers = {"random": optuna.samplers.RandomSampler, "tpe": optuna.samplers.TPESampler}
        study.sampler = samplers[sweep.plan.search](seed=sweep.base.seed + number)
        trial = study.ask(distributions)
        row = work.train(name, "trial", number, search_space.point(sweep.axes, trial.params), seed, trial)
        study.tell(trial, row.loss if row.status == "finished" else None, ends[row.status])


class _Work:
    """Trains, and records each training in its folder and in MLflow."""

    def __init__(self, sweep: Sweep, trainer: Trainer, courier: "_Courier", console: Console) -> None:
        self.sweep = sweep
        self._trainer, self._courier, self._console = trainer, courier, console
        self._address = tracking.address(sweep.folder)
        self._done: dict[str, Training] = {}
        self._by_config: dict[str, Training] = {}
        self._looked = False
        for row in outcome_of(sweep).trainings:
            self._done[row.name] = row
            if row.same_as is None:
                with suppress(ConfigError):
                    self._by_config[self._config(row).model_dump_json()] = row

    def known(self, name: str) -> Training | None:
        """A training that has ended."""
        return self._done.get(name)

    def train(
        self, name: str, role: Role, number: int, point: Point, seed: int, trial: optuna.Trial | None = None
    ) -> Training:
        """Trains a point, unless that has been done.

        Args:
            name: of its folder.
            role: what it is done for.
            number: of the trial.
            point: empty for the base.
            seed: of the training.
            trial: is asked after each epoch whether to go on.
        """
        if (row := self.known(name)) is not None:
            return row
        row = Training(
            name=name, role=role, number=number, point=self.sweep.base_point | point, differs="base", seed=seed,
            drawn={} if trial is None else trial.params, status="failed",
        )  # fmt: skip
        folder = self.sweep.folder / PARTS / name
        folder.mkdir(parents=True, exist_ok=True)
        try:
            config = self._config(row)
        except ConfigError as error:  # Between the ends of a range, keys may contradict one another.
            row = row.model_copy(update={"differs": search_space.named(point), "reason": str(error)})
        else:
            if point:
                row = row.model_copy(update={"differs": self.sweep.differs(config, point)})
            same = self._by_config.get(config.model_dump_json())
            if same is None:
                row = self._trained(row, config, folder, trial)
                self._by_config[config.model_dump_json()] = row
            else:
                figures = same.model_dump(exclude={"name", "role", "number", "point", "differs", "drawn", "seed"})
                row = row.model_copy(update=figures | {"seconds": 0.0, "same_as": same.name})
        row.write(folder / "trial.json")
        self._done[name] = row
        self._courier.send(folder)
        self._console.say(self._line(row))
        return row

    def _config(self, row: Training) -> RunConfig:
        """What a training trains. Raises ConfigError."""
        of_base = row.role in ("base", "seed of base")
        return self.sweep.config({} if of_base else row.point).model_copy(update={"seed": row.seed})

    def _check_data(self) -> None:
        """Before the first training of a sweep that goes on. Raises DataError: the data is no longer what it was."""
        base = self._done.get("base")
        if self._looked or base is None or base.data_digest is None:
            return
        if self._trainer.look(self.sweep.base) != base.data_digest:
            raise DataError(
                f"The sweep {self.sweep.folder} cannot go on: the data has changed since it began, and trainings on "
                "different pictures cannot be compared. Put the data back as it was, or start a new sweep."
            )
        self._looked = True

    def _trained(self, row: Training, config: RunConfig, folder: Path, trial: optuna.Trial | None) -> Training:
        self._check_data()
        title = row.differs if row.role in ("base", "trial") else f"{row.differs}, seed {row.seed}"
        journal = Tracker(folder, *self._address, title, _QUIET, parent=self.sweep.folder, at_once=False)
        journal.params(row.point | {"seed": row.seed})
        journal.tags({"graft.sweep": self.sweep.folder.name, "graft.trial": row.name, "graft.role": row.role})
        last = sum(phase.epochs for phase in config.phases)
        history: list[Score] = []

        def on_epoch(epoch: Epoch, score: Score) -> None:
            history.append(score)
            journal.metrics(notes.of_epoch(epoch) | {"validation/calibrated_loss": score.loss}, step=epoch.epoch)
            if trial is not None:
                trial.report(score.loss, epoch.epoch)
                if epoch.epoch < last and trial.should_prune():
                    raise optuna.TrialPruned

        started = time.perf_counter()
        # The first training tells what it reads and computes; of the others, one line is enough.
        console = _QUIET if self._done else self._console
        ended: dict[str, Any]
        try:
            best = self._trainer.train(config, console, on_epoch)
            ended = {"status": "finished"}
        except optuna.TrialPruned:
            best = history[-1]
            ended = {"status": "pruned"}
        except (ConfigError, TrainingError) as error:  # These follow from the config; all else may be mended.
            journal.tags({"graft.error": error})
            journal.finish("FAILED")
            return row.model_copy(
                update={"reason": str(error), "losses": _losses(history), "seconds": time.perf_counter() - started}
            )
        except GraftError as error:
            journal.finish("KILLED")
            remedy = f"graft sweep --resume {shlex.quote(str(self.sweep.folder))}"
            raise type(error)(
                f"{error} The sweep has stopped, and goes on, once that is mended, with: {remedy}"
            ) from error
        except BaseException:
            journal.finish("KILLED")
            raise
        ended |= {
            "pictures": self._trainer.sizes,
            "data_digest": self._trainer.data_digest,
            "loss": best.loss,
            "accuracy": best.accuracy,
            "epoch": best.epoch,
        }
        journal.metrics({"kept/calibrated_loss": best.loss, "kept/accuracy": best.accuracy}, step=best.epoch)
        journal.finish("FINISHED" if ended["status"] == "finished" else "KILLED")
        return row.model_copy(
            update=ended | {"losses": _losses(history), "seconds": round(time.perf_counter() - started, 3)}
        )

    def _line(self, row: Training) -> str:
        count = f"trial {row.number}/{self.sweep.plan.trials}  " if row.role == "trial" else ""
        seed = f", seed {row.seed}" if row.role.startswith("seed") else ""
        if row.status == "failed":
            return f"{count}{row.differs}{seed}: failed. {row.reason}"
        if row.same_as is not None:
            return f"{count}{row.differs}: the same as {row.same_as}"
        assert row.accuracy is not None
        pruned = f" after epoch {row.epoch}, pruned" if row.status == "pruned" else ""
        return (
            f"{count}{row.differs}{seed}: loss {row.loss:.4f}, accuracy {row.accuracy:.3f}{pruned} "
            f"({row.seconds:.1f} s)"
        )


class _Courier:
    """Brings journals to MLflow while the next training runs, one after another.

    Where MLflow is away, it waits until the sweep ends, and tries once more.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder, self._console = folder, console
        self._pool = ThreadPoolExecutor(1)
        self._away = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown()
        try:
            tracking.sync(self._folder, self._console)
        except TrackingError as failure:
            self._console.warn(str(failure))

    def send(self, folder: Path) -> None:
        """Soon."""
        self._pool.submit(self._deliver, folder)

    def _deliver(self, folder: Path) -> None:
        if self._away or tracking.is_delivered(folder):
            return
        try:
            tracking.deliver(folder, self._console)
        except TrackingError as error:
            self._away = True
            self._console.warn(f"The sweep goes on without MLflow. {error}")


# -------------------------------------------------------------------------------------------------------------- results


def _write(sweep: Sweep, outcome: Outcome, journal: Tracker) -> None:
    """The table, the page and the winner's config, here and in MLflow."""
    folder, winner, noise = sweep.folder, outcome.winner, outcome.noise
    outcome.write_table(folder / "trials.csv")
    if winner is not None:
        config = sweep.config({} if winner.role == "base" else winner.point)
        config = config.model_copy(update={"tracking": config.tracking.model_copy(update={"uri": None})})
        says = f"# {winner.differs}: the winner of {outcome.done} trials, by\n#   {sweep.plan.command}\n"
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
        then = f"graft run {shlex.quote(str(folder / 'winner.yaml'))}{to_place}"
        sweep_page.write(folder / "sweep.html", outcome, then, facts, why)
    for name in ("sweep.html", "trials.csv", "winner.yaml"):
        if (folder / name).is_file():
            journal.artifact(folder / name)


def _losses(history: Sequence[Score]) -> list[float]:
    return [score.loss for score in history]


def _value(config: RunConfig, key: str) -> Any:
    """What a config has at a dotted key; None where there is nothing."""
    value: Any = config.model_dump(mode="json", by_alias=True)
    for part in key.split("."):
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    with (folder / "run.lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise GraftError(f"The sweep {folder} is being worked on by another process. Wait for it to end.") from None
        yield
