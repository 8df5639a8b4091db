"""The trainings of a sweep, one after another: each with a record in a folder of its own, and in MLflow."""

import shlex
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import optuna

from pipeline import notes, search_space
from pipeline.artifacts import Epoch
from pipeline.config import RunConfig
from pipeline.console import Console
from pipeline.delivery import deliver, sync
from pipeline.errors import ConfigError, DataError, GraftError, TrackingError, TrainingError
from pipeline.journal import PARTS, address, is_delivered
from pipeline.search_space import Point
from pipeline.sweep_plan import Sweep
from pipeline.sweep_result import Role, Training
from pipeline.tracking import Tracker
from pipeline.trial import Score, Trainer

_QUIET = Console(quiet=True)


class Courier:
    """Brings journals to MLflow while the next training runs, one after another.

    Where MLflow is away, it waits until the sweep ends, and tries once more.
    """

    def __init__(self, folder: Path, console: Console) -> None:
        """Of the sweep in a folder; the console hears where MLflow is away."""
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
            sync(self._folder, self._console)
        except TrackingError as failure:
            self._console.warn(str(failure))

    def send(self, folder: Path) -> None:
        """Soon."""
        self._pool.submit(self._deliver, folder)

    def _deliver(self, folder: Path) -> None:
        if self._away or is_delivered(folder):
            return
        try:
            deliver(folder, self._console)
        except TrackingError as error:
            self._away = True
            self._console.warn(f"The sweep goes on without MLflow. {error}")


class Trainings:
    """Trains points of a sweep, and records each training in its folder and in MLflow."""

    def __init__(
        self, sweep: Sweep, ended: Iterable[Training], trainer: Trainer, courier: Courier, console: Console
    ) -> None:
        """
        Args:
            sweep: whose points they are.
            ended: what has been trained before, where the sweep goes on.
            trainer: trains them.
            courier: brings their journals to MLflow.
            console: gets a line for each.
        """
        self.sweep = sweep
        self._trainer, self._courier, self._console = trainer, courier, console
        self._address = address(sweep.folder)
        self._ended: dict[str, Training] = {}
        self._by_config: dict[str, Training] = {}
        for row in ended:
            self._ended[row.name] = row
            if row.same_as is None:
                with suppress(ConfigError):
                    self._by_config[self._config(row).model_dump_json()] = row
        self._goes_on = "base" in self._ended

    def known(self, name: str) -> Training | None:
        """A training that has ended."""
        return self._ended.get(name)

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

        Returns:
            Its record. What fails because of the point's values has failed there, with the reason.

        Raises:
            GraftError: what would fail other trainings, too: it lies with the machine, or with the base's own data. The
                sweep can go on once that is mended.
        """
        if (row := self.known(name)) is not None:
            return row
        row = Training(
            name=name, role=role, number=number, point=self.sweep.base_point | point, differs="base", seed=seed,
            status="failed",
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
                figures = same.model_dump(exclude={"name", "role", "number", "point", "differs", "seed"})
                row = row.model_copy(update=figures | {"seconds": 0.0, "same_as": same.name})
        row.write(folder / "trial.json")
        self._ended[name] = row
        self._courier.send(folder)
        self._console.say(self._line(row))
        return row

    def _config(self, row: Training) -> RunConfig:
        """What a training trains. Raises ConfigError."""
        of_base = row.role in ("base", "seed of base")
        return self.sweep.config({} if of_base else row.point).model_copy(update={"seed": row.seed})

    def _check_data(self) -> None:
        """Raises DataError: the base's pictures cannot be used, or are no longer what they were."""
        if self._trainer.look(self.sweep.base) != self._ended["base"].data_digest:
            raise DataError(
                f"The sweep {self.sweep.folder} cannot go on: the data has changed since it began, and trainings on "
                "different pictures cannot be compared. Put the data back as it was, or start a new sweep."
            )

    def _trained(self, row: Training, config: RunConfig, folder: Path, trial: optuna.Trial | None) -> Training:
        if self._goes_on:
            self._check_data()
            self._goes_on = False
        title = row.differs if row.role in ("base", "trial") else f"{row.differs}, seed {row.seed}"
        journal = Tracker(folder, *self._address, title, _QUIET, parent=self.sweep.folder, at_once=False)
        journal.params(row.point | {"seed": row.seed})
        journal.tags({"graft.sweep": self.sweep.folder.name, "graft.trial": row.name, "graft.sweep_role": row.role})
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
        console = _QUIET if self._ended else self._console
        ended: dict[str, Any]
        try:
            best = self._score(config, console, on_epoch)
            ended = {"status": "finished"}
        except optuna.TrialPruned:
            best = history[-1]
            ended = {"status": "pruned"}
        except (ConfigError, TrainingError) as error:  # These follow from the config; all else may be mended.
            journal.tags({"graft.error": error, notes.NOTE: notes.stopped("failed", str(error))})
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

    def _score(self, config: RunConfig, console: Console, on_epoch: Callable[[Epoch, Score], None]) -> Score:
        """As `Trainer.train`. Also raises ConfigError where the pictures cannot be used with what the config has in
        `data`, and can with what the base has."""
        try:
            return self._trainer.train(config, console, on_epoch)
        except DataError as error:
            if config.data == self.sweep.base.data:
                raise
            self._check_data()
            raise ConfigError(str(error)) from error

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


def _losses(history: Sequence[Score]) -> list[float]:
    return [score.loss for score in history]
