"""What a sweep found: its trainings, the noise between seeds, and whether the winner stands out. No TensorFlow."""

import csv
import math
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from pydantic import Field

from pipeline.artifacts import Record

_ASTRAY = 1.5
"""A further seed whose loss is above so many times the median of its training's is named."""

Role = Literal["base", "trial", "seed of base", "seed of winner"]


class Training(Record):
    """`trial.json`: one training of a sweep.

    Attributes:
        name: its folder's, below `trials`.
        role: what it was done for.
        number: trials count from 1; the base is 0. Of a further seed, that of the training it repeats.
        point: by key, the value as it would be written in YAML.
        differs: what of that is not the base's; `base` where nothing is.
        seed: of the training.
        status: pruned is one that was ended early, as others had a lower loss at the same epoch.
        loss: validation log loss, in nats, of the weights that a run would keep, with the temperature that fits best;
            of a pruned training, after its last epoch.
        accuracy: share of validation pictures that the same weights get right, 0 to 1.
        losses: likewise, after each epoch.
        epoch: the one whose weights these figures are of, counted from 1.
        pictures: in each split; empty where none were read.
        data_digest: SHA-256, in hex, over all of them with labels and splits; None where none were read.
        seconds: it took.
        reason: why it failed.
        same_as: the earlier training with the same config, whose figures these are; nothing was trained again.
    """

    name: str
    role: Role
    number: int
    point: dict[str, str]
    differs: str
    seed: int
    status: Literal["finished", "pruned", "failed"]
    loss: float | None = None
    accuracy: float | None = None
    losses: list[float] = Field(default_factory=list)
    epoch: int | None = None
    pictures: dict[str, int] = Field(default_factory=dict)
    data_digest: str | None = None
    seconds: float = 0.0
    reason: str | None = None
    same_as: str | None = None


@dataclass(frozen=True)
class Noise:
    """How far trainings that differ in nothing but the seed lie apart: standard deviations of one training.

    Attributes:
        loss: in nats.
        accuracy: 0 to 1.
        seeds: how many trainings that was found from.
        mean_loss: of these.
    """

    loss: float
    accuracy: float
    seeds: int
    mean_loss: float

    @property
    def of_difference(self) -> tuple[float, float]:
        """Halves of the 95 % intervals, by Student's t, of the difference of two trainings: of loss and accuracy."""
        width = math.sqrt(2) * _students_t(self.seeds)
        return width * self.loss, width * self.accuracy

    @property
    def of_another(self) -> float:
        """Half of the 95 % interval about `mean_loss` that the loss of one more seed lies in."""
        return math.sqrt(1 + 1 / self.seeds) * _students_t(self.seeds) * self.loss


@dataclass(frozen=True)
class Comparison:
    """The winner less the base, over seeds that the winner was not chosen by: means, and halves of the 95 % intervals
    by Student's t over the seeds' differences.

    Attributes:
        loss, loss_within: nats.
        accuracy, accuracy_within: shares, -1 to 1.
        seeds: how many.
    """

    loss: float
    loss_within: float
    accuracy: float
    accuracy_within: float
    seeds: int

    @property
    def better(self) -> bool:
        """Whether the interval of the loss lies below 0."""
        return self.loss + self.loss_within < 0

    @property
    def worse(self) -> bool:
        """Whether it lies above 0."""
        return self.loss - self.loss_within > 0


@dataclass(frozen=True)
class Outcome:
    """A sweep as it stands.

    Attributes:
        folder: of the sweep.
        name: of the config.
        keys: what was varied.
        ranged: those of them that have a range.
        logarithmic: those of them whose range is.
        planned: how many trials there are to be.
        trainings: all that have ended, the base first, then trials by number, then further seeds.
    """

    folder: Path
    name: str
    keys: tuple[str, ...]
    ranged: frozenset[str]
    logarithmic: frozenset[str]
    planned: int
    trainings: tuple[Training, ...]

    @property
    def base(self) -> Training | None:
        return next((training for training in self.trainings if training.role == "base"), None)

    @property
    def trials(self) -> list[Training]:
        """In the order they were trained; those that repeat an earlier config are not among them."""
        return [training for training in self.trainings if training.role == "trial" and training.same_as is None]

    @property
    def done(self) -> int:
        """How many of the planned trials have ended."""
        return sum(training.role == "trial" for training in self.trainings)

    @property
    def left_out(self) -> str:
        """How many trials did not end well, in words; empty where all did."""
        count = {status: sum(row.status == status for row in self.trials) for status in ("pruned", "failed")}
        return ", ".join(f"{number} {status}" for status, number in count.items() if number)

    @property
    def none_trained(self) -> str:
        """That all trials have failed, and the commonest reason why, in words; empty where that is not so."""
        reasons = [row.reason for row in self.trainings if row.role == "trial" and row.status == "failed"]
        if len(reasons) < self.planned:
            return ""
        (reason, count), *others = Counter(reasons).most_common()
        which = f"{count} of them: " if others else ""
        return f"All {self.planned} trials have failed, and there is nothing to compare the base with. {which}{reason}"

    @property
    def ranked(self) -> list[Training]:
        """The base and the trials, the best first; then those pruned, then those that failed."""
        rows = [*([self.base] if self.base else []), *self.trials]
        order = ("finished", "pruned", "failed")
        return sorted(rows, key=lambda row: (order.index(row.status), _merit(row)))

    @property
    def winner(self) -> Training | None:
        """Of the base and the trials that ended well."""
        return next((row for row in self.ranked if row.status == "finished"), None)

    @property
    def noise(self) -> Noise | None:
        """Of the base's seeds; None for fewer than two."""
        rows = [row for row in self.trainings if row.role in ("base", "seed of base") and row.status == "finished"]
        if len(rows) < 2:
            return None
        loss, accuracy = (float(np.std(values, ddof=1)) for values in zip(*map(_figures, rows), strict=True))
        # Seeds that happen to agree: what counting whole pictures rounds away stays.
        counted = min((row.pictures.get("validation", 0) for row in rows), default=0)
        if counted:
            accuracy = max(accuracy, 1 / (math.sqrt(12) * counted))
        return Noise(loss, accuracy, len(rows), float(np.mean([row.loss for row in rows])))

    @property
    def comparison(self) -> Comparison | None:
        """None where the base wins, or two seeds of both have not ended well."""
        seeds = [
            {row.seed: _figures(row) for row in self.trainings if row.role == role and row.status == "finished"}
            for role in ("seed of base", "seed of winner")
        ]
        base, winner = seeds
        both = sorted(base.keys() & winner.keys())
        if len(both) < 2:
            return None
        differences = np.array([winner[seed] for seed in both]) - np.array([base[seed] for seed in both])
        (loss, accuracy), within = differences.mean(axis=0), _within(differences)
        return Comparison(float(loss), within[0], float(accuracy), within[1], len(both))

    @property
    def better(self) -> bool:
        """Whether the winner is known to be better than the base."""
        return self.comparison is not None and self.comparison.better

    @property
    def headline(self) -> str:
        """The verdict in three words or four, also for a sweep that was stopped."""
        winner, comparison = self.winner, self.comparison
        base_wins = winner is not None and winner.role == "base" and self.done >= self.planned
        if comparison is None and not base_wins:
            return "Not known yet"
        return "Better than the base" if self.better else "Keep the base"

    @property
    def astray(self) -> str:
        """The further seeds that failed, or whose loss is far above that of their like, in words; empty for none."""
        found = []
        for role, name in (("seed of base", "the base"), ("seed of winner", "the winner")):
            rows = [row for row in self.trainings if row.role == role]
            losses = [row.loss for row in rows if row.loss is not None]
            middle = float(np.median(losses)) if losses else 0.0
            for row in rows:
                if row.loss is None:
                    found.append(f"Seed {row.seed} of {name} failed.")
                elif row.loss > _ASTRAY * middle:
                    found.append(
                        f"Seed {row.seed} of {name} went astray: its loss is {row.loss:.4f}, their median {middle:.4f}."
                    )
        return " ".join(found)

    @property
    def verdict(self) -> str:
        """One sentence or two on the winner."""
        winner, comparison = self.winner, self.comparison
        if winner is None:
            return "No training has ended well yet."
        if winner.role == "base":
            return "No trial has a lower loss than the base."
        astray = f" {self.astray}" if self.astray else ""
        if comparison is None:
            return (
                "Whether the lowest loss is further below the base's than another seed would bring it takes two "
                f"further seeds of both to tell.{astray}"
            )
        found = (
            f"Over {comparison.seeds} further seeds its loss on these validation pictures differs from the base's by "
            f"{comparison.loss:+.4f} ± {comparison.loss_within:.4f}, its accuracy by "
            f"{points(comparison.accuracy)} ± {100 * comparison.accuracy_within:.1f} points (95 % intervals).{astray}"
        )
        if comparison.better:
            return f"Better than the base. {found}"
        if comparison.worse:
            return f"Worse than the base. {found}"
        says = f"Not distinguishable from the base. {found} An interval of the loss that reaches 0 may be chance."
        if abs(comparison.accuracy) > comparison.accuracy_within:
            says += " The loss decides, as it says more of each picture than right or wrong."
        return says

    def beside_base(self, row: Training) -> tuple[str, str]:
        """A row's loss and accuracy less the base's, ± `Noise.of_difference`, as text; empty for what cannot be
        compared."""
        base, noise = self.base, self.noise
        if row.role == "base" or row.status != "finished" or base is None or base.status != "finished":
            return "", ""
        loss, accuracy = (mine - theirs for mine, theirs in zip(_figures(row), _figures(base), strict=True))
        spread = ("", "")
        if noise is not None:
            of_loss, of_accuracy = noise.of_difference
            spread = (f" ± {of_loss:.4f}", f" ± {100 * of_accuracy:.1f}")
        return f"{loss:+.4f}{spread[0]}", f"{points(accuracy)}{spread[1]}"

    def write_table(self, path: Path) -> None:
        """`trials.csv`: the base and the trials, the best first, and the further seeds."""
        figures = ("seed", "status", "loss", "accuracy", "epoch", "seconds", "reason")
        seeds = [row for row in self.trainings if row.role.startswith("seed")]
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["trial", "role", *self.keys, *figures])
            for row in [*self.ranked, *seeds]:
                values = (getattr(row, name) for name in figures)
                writer.writerow([row.name, row.role, *(row.point[key] for key in self.keys), *values])


def points(share: float) -> str:
    """A difference of two shares in percentage points, with its sign."""
    return f"{round(100 * share, 1) + 0.0:+.1f}"


def _figures(row: Training) -> tuple[float, float]:
    assert row.loss is not None
    assert row.accuracy is not None
    return row.loss, row.accuracy


def _merit(row: Training) -> tuple[float, float, int]:
    """Lower is better: the loss, then the accuracy, then who came first."""
    loss = math.inf if row.loss is None else row.loss
    return loss, -(row.accuracy or 0.0), row.number


def _within(differences: np.ndarray) -> list[float]:
    """Halves of 95 % intervals of the columns' means, by Student's t: float [n, k] to k numbers."""
    n = len(differences)
    scale = _students_t(n) / math.sqrt(n)
    return [float(width) for width in scale * differences.std(axis=0, ddof=1)]


def _students_t(n: int) -> float:
    """How many estimated standard deviations a 95 % interval reaches to each side, where n values estimate them."""
    from scipy.stats import t

    return float(t.ppf(0.975, n - 1))
