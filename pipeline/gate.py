"""Whether a challenger may replace the champion: both judged on the same frozen test pictures. NumPy and SciPy alone.

Each check compares what was measured with a rule of the config's `gate`, and says so in words. A challenger is promoted
when every check passes. Where chance could explain a difference, a check asks the statistics of paired samples:

    accuracy      the paired bootstrap's interval of the gain lies above min_gain
    mcnemar       McNemar's test: more pictures were gained than lost, and not by chance. For min_gain of 0 and more
    margin        the gain's test against min_gain, which holds with few pictures too. For min_gain other than 0
    class NAME    the class lost more than max_class_drop beyond chance. "classes" where none did
    calibration   the rise of the expected calibration error is above max_ece_increase beyond chance
    latency       the ratio of the median times is above max_latency_ratio
    floor ...     without a champion: accuracy above min_accuracy, calibration error up to max_ece

A test set that is asked every night is asked many times: each night's false promotions are held to a rate, not the
year's.

Shape letters: N test pictures (at least one), C judged classes (at least two). Accuracies, gains, drops and calibration
errors are shares, 0 to 1; sentences give most of them in points, hundredths.
"""

from typing import Any

import numpy as np

from pipeline import metrics
from pipeline.artifacts import Record
from pipeline.config import Gate
from pipeline.pages import percent
from pipeline.paired import (
    LEVEL,
    Answers,
    Interval,
    bootstrap_ece_increase,
    bootstrap_gain,
    difference_interval,
    difference_p_value,
    holm,
    mcnemar,
    wilson,
)

MOST_NAMED = 3
"""Classes that the reason names, the worst first; the checks have them all."""


class Check(Record):
    """One rule, and what was found.

    Attributes:
        name: as in this module's list.
        passed: whether the challenger keeps the rule.
        finding: what was measured, with its arithmetic.
        rule: what it must be.
    """

    name: str
    passed: bool
    finding: str
    rule: str

    @property
    def sentence(self) -> str:
        return f"{self.finding}: {self.rule}."


class Model(Record):
    """One model's figures.

    Attributes:
        name: as in Answers.
        accuracy: share of pictures that are right.
        accuracy_interval: 95 % Wilson score interval.
        ece: expected calibration error.
        latency_ms: as in Answers.
    """

    name: str
    accuracy: float
    accuracy_interval: Interval
    ece: float
    latency_ms: float | None


class ClassRow(Record):
    """One class.

    Attributes:
        name: the class.
        n: its test pictures.
        champion, challenger: share of them that each model has right; None without pictures, or without a champion.
        drop: champion less challenger; negative where the challenger is better.
        drop_interval: its 95 % interval, of this class alone: of many classes, a few lie outside by chance.
        p_value: of a drop of max_class_drop at most, corrected for the number of classes (Holm).
        failed: this class alone refuses the challenger.
    """

    name: str
    n: int
    champion: float | None = None
    challenger: float | None = None
    drop: float | None = None
    drop_interval: Interval | None = None
    p_value: float | None = None
    failed: bool = False


class Decision(Record):
    """`gate.json`: whether the challenger is promoted, and the arithmetic.

    Attributes:
        promote: every check passed.
        reason: in words, to follow a colon: what failed, naming the classes, or what was gained.
        checks: every rule that was looked at.
        n: test pictures.
        champion, challenger: their figures; no champion before the first promotion.
        gain: the challenger's accuracy less the champion's.
        gain_interval: its 95 % interval by the paired bootstrap.
        only_challenger_right, only_champion_right: pictures gained and lost, McNemar's discordant pairs.
        p_value: McNemar's, mid-p, two-sided.
        ece_increase, ece_increase_interval: the challenger's calibration error less the champion's, likewise.
        per_class: one row a class, in the order of the classes.
        rules: the config's gate.
        seed: of the resampling.
    """

    promote: bool
    reason: str
    checks: list[Check]
    n: int
    champion: Model | None
    challenger: Model
    gain: float | None = None
    gain_interval: Interval | None = None
    only_challenger_right: int | None = None
    only_champion_right: int | None = None
    p_value: float | None = None
    ece_increase: float | None = None
    ece_increase_interval: Interval | None = None
    per_class: list[ClassRow]
    rules: dict[str, Any]
    seed: int

    @property
    def figures(self) -> dict[str, float]:
        """The headline numbers by name, for a store of metrics; what there is without a champion is left out."""
        low, high = self.gain_interval or (None, None)
        champion = self.champion
        every = {
            "promote": float(self.promote),
            "pictures": float(self.n),
            "challenger_accuracy": self.challenger.accuracy,
            "challenger_ece": self.challenger.ece,
            "challenger_latency_ms": self.challenger.latency_ms,
            "champion_accuracy": champion and champion.accuracy,
            "champion_ece": champion and champion.ece,
            "champion_latency_ms": champion and champion.latency_ms,
            "gain": self.gain,
            "gain_low": low,
            "gain_high": high,
            "mcnemar_p": self.p_value,
        }
        return {name: value for name, value in every.items() if isinstance(value, float)}


def decide(
    champion: Answers | None, challenger: Answers, labels: np.ndarray, classes: list[str], rules: Gate, seed: int
) -> Decision:
    """Judges the challenger. The same arguments give the same decision.

    Args:
        champion: the model in service; None before the first promotion.
        challenger: the model that was just trained.
        labels: int [N] in 0..C-1.
        classes: C names, the judged classes, in the order of the probabilities' columns. Some may have no picture.
        rules: what is asked of the challenger.
        seed: of the resampling.
    """
    for answers in (champion, challenger):
        if answers is not None:
            assert answers.probabilities.shape == (len(labels), len(classes)), answers.probabilities.shape
            assert answers.latency_ms is None or answers.latency_ms > 0, answers.latency_ms
    assert len(labels) >= 1
    if champion is None:
        return _first(challenger, labels, classes, rules, seed)
    return _compared(champion, challenger, labels, classes, rules, seed)


def _first(challenger: Answers, labels: np.ndarray, classes: list[str], rules: Gate, seed: int) -> Decision:
    """Without a champion."""
    new = _model(challenger, labels)
    checks = [_accuracy_floor(new, labels, classes, rules)]
    if rules.max_ece is not None:
        checks.append(
            Check(
                name="floor calibration",
                passed=new.ece <= rules.max_ece,
                finding=f"the expected calibration error is {new.ece:.3f}",
                rule=f"it must be {rules.max_ece:g} at most",
            )
        )
    right = _right(challenger, labels)
    count = np.bincount(labels, minlength=len(classes))
    right_count = np.bincount(labels[right], minlength=len(classes))
    rows = [
        ClassRow(name=name, n=int(n), challenger=r / n if n else None)
        for name, n, r in zip(classes, count.tolist(), right_count.tolist(), strict=True)
    ]
    passed = f"there is no champion, and {checks[0].finding} ({checks[0].rule})"
    return Decision(
        promote=all(check.passed for check in checks), reason=_reason(new, passed, checks, rows), checks=checks,
        n=len(labels), champion=None, challenger=new, per_class=rows, rules=rules.model_dump(mode="json"), seed=seed,
    )  # fmt: skip


def _compared(
    champion: Answers, challenger: Answers, labels: np.ndarray, classes: list[str], rules: Gate, seed: int
) -> Decision:
    """With a champion."""
    n = len(labels)
    old, new = _model(champion, labels), _model(challenger, labels)
    old_right, new_right = _right(champion, labels), _right(challenger, labels)
    gained, lost = new_right & ~old_right, old_right & ~new_right
    only_new, only_old = int(gained.sum()), int(lost.sum())
    gain = (only_new - only_old) / n
    gain_interval = bootstrap_gain(only_new, only_old, n, seed)
    p_value = mcnemar(only_new, only_old)
    ece_interval = bootstrap_ece_increase(champion.probabilities, challenger.probabilities, labels, seed)
    rows = _class_rows(old_right, new_right, labels, classes, rules)

    checks = [
        Check(
            name="accuracy",
            passed=gain_interval[0] > rules.min_gain,
            finding=f"the gain over {old.name} is {_points(gain, n, sign=True)} points, 95 % from "
            f"{_points(gain_interval[0], n)} to {_points(gain_interval[1], n)}",
            rule=f"the interval's lower end must be above {100 * rules.min_gain:g}",
        )
    ]
    if rules.min_gain >= 0:
        checks.append(
            Check(
                name="mcnemar",
                passed=only_new > only_old and p_value < LEVEL,
                finding=f"{_pictures(only_new)} gained and {only_old:,} lost; chance alone does this or more with "
                f"probability {p_value:.2g}",
                rule=f"more must be gained than lost, with a probability below {LEVEL:g}",
            )
        )
    if rules.min_gain != 0:
        chance = difference_p_value(only_new, only_old, n, rules.min_gain)
        checks.append(
            Check(
                name="margin",
                passed=chance < LEVEL / 2,
                finding=f"if the true gain were {100 * rules.min_gain:g} points, chance would show this one or more "
                f"with probability {chance:.2g}",
                rule=f"the probability must be below {LEVEL / 2:g}",
            )
        )
    checks += [
        *_class_checks(rows, rules),
        Check(
            name="calibration",
            passed=ece_interval[0] <= rules.max_ece_increase,
            finding=f"the expected calibration error went from {old.ece:.3f} to {new.ece:.3f}, by "
            f"{new.ece - old.ece:+.3f}, 95 % from {ece_interval[0]:.3f} to {ece_interval[1]:.3f}",
            rule=f"the interval's lower end must be {rules.max_ece_increase:g} at most",
        ),
    ]
    if rules.max_latency_ratio is not None:
        checks.append(_latency(old, new, rules.max_latency_ratio))
    passed = f"{checks[0].finding}, and no class lost more than {100 * rules.max_class_drop:g} points beyond chance"
    return Decision(
        promote=all(check.passed for check in checks), reason=_reason(new, passed, checks, rows), checks=checks, n=n,
        champion=old, challenger=new, gain=gain, gain_interval=gain_interval, only_challenger_right=only_new,
        only_champion_right=only_old, p_value=p_value, ece_increase=new.ece - old.ece,
        ece_increase_interval=ece_interval, per_class=rows, rules=rules.model_dump(mode="json"), seed=seed,
    )  # fmt: skip


# -------------------------------------------------------------------------------------------------------------- checks


def _accuracy_floor(new: Model, labels: np.ndarray, classes: list[str], rules: Gate) -> Check:
    n = len(labels)
    found = f"{percent(new.accuracy)} of {_pictures(n)} are right"
    if rules.min_accuracy is not None:
        return Check(
            name="floor accuracy",
            passed=new.accuracy >= rules.min_accuracy,
            finding=found,
            rule=f"it must be {percent(rules.min_accuracy)} at least",
        )
    count = np.bincount(labels, minlength=len(classes))
    commonest = int(count.argmax())
    share = float(count[commonest] / n)
    low, high = new.accuracy_interval
    return Check(
        name="floor accuracy",
        passed=low > share,
        finding=f"{found}, 95 % from {_points(low, n)} to {_points(high, n)}",
        rule=f"the interval's lower end must be above {percent(share)}, which always answering {classes[commonest]} "
        "would reach",
    )


def _class_rows(
    old_right: np.ndarray, new_right: np.ndarray, labels: np.ndarray, classes: list[str], rules: Gate
) -> list[ClassRow]:
    c = len(classes)
    n = np.bincount(labels, minlength=c)
    old, new = (np.bincount(labels[right], minlength=c) for right in (old_right, new_right))
    lost = np.bincount(labels[old_right & ~new_right], minlength=c)
    gained = np.bincount(labels[new_right & ~old_right], minlength=c)
    seen = np.flatnonzero(n)
    p_values = np.ones(c)
    p_values[seen] = holm(
        np.array(
            [
                difference_p_value(int(lost[k]), int(gained[k]), int(n[k]), rules.max_class_drop, int(old[k] + new[k]))
                for k in seen
            ]
        )
    )
    low, high = difference_interval(lost, gained, np.maximum(n, 1))
    return [
        ClassRow(
            name=name, n=int(n[k]), champion=float(old[k] / n[k]), challenger=float(new[k] / n[k]),
            drop=float((old[k] - new[k]) / n[k]), drop_interval=(float(low[k]), float(high[k])),
            p_value=float(p_values[k]), failed=bool(p_values[k] < LEVEL),
        )
        if n[k]
        else ClassRow(name=name, n=0)
        for k, name in enumerate(classes)
    ]  # fmt: skip


def _class_checks(rows: list[ClassRow], rules: Gate) -> list[Check]:
    """A check for each class that failed, the largest drop first; else one for all of them together."""
    points = f"{100 * rules.max_class_drop:g}"
    rule = f"no class may lose more than {points} points beyond chance"
    ranked = sorted((row for row in rows if row.n), key=lambda row: -(row.drop or 0))
    if failed := [row for row in ranked if row.failed]:
        return [
            Check(
                name=f"class {row.name}",
                passed=False,
                finding=f"{_loss(row)}, more than {points} beyond chance (p = {row.p_value:.2g}, corrected for "
                f"{len(ranked)} classes)",
                rule=rule,
            )
            for row in failed
        ]
    worst = ranked[0]
    finding = f"the largest drop: {_loss(worst)}" if (worst.drop or 0) > 0 else "no class lost any accuracy"
    return [Check(name="classes", passed=True, finding=finding, rule=rule)]


def _loss(row: ClassRow) -> str:
    """What a class lost, e.g. "class bees lost 38.0 points (45 to 26 of 50 pictures right)"."""
    old, new, drop = (share or 0 for share in (row.champion, row.challenger, row.drop))
    right = f"{round(old * row.n):,} to {round(new * row.n):,} of {_pictures(row.n)} right"
    return f"class {row.name} lost {_points(drop, row.n)} points ({right})"


def _latency(old: Model, new: Model, at_most: float) -> Check:
    rule = f"it may be {at_most:g} times as long at most"
    if old.latency_ms is None or new.latency_ms is None:
        return Check(name="latency", passed=True, finding="the time for one picture was not measured", rule=rule)
    ratio = new.latency_ms / old.latency_ms
    return Check(
        name="latency",
        passed=ratio <= at_most,
        finding=f"one picture takes {new.latency_ms:.3g} ms where {old.latency_ms:.3g} were taken, {ratio:.2f} times "
        "as long",
        rule=rule,
    )


def _reason(new: Model, passed: str, checks: list[Check], rows: list[ClassRow]) -> str:
    """In words: `passed`, or what failed, the classes first and no more than MOST_NAMED of them."""
    failed = {check.name: check for check in checks if not check.passed}
    lost = sorted((row for row in rows if row.failed), key=lambda row: -(row.drop or 0))
    told = [_loss(row) for row in lost[:MOST_NAMED]]
    if len(lost) > MOST_NAMED:
        told.append(f"{len(lost) - MOST_NAMED} more classes lost too much")
    for name, check in failed.items():
        # That a gain is no gain is said once.
        if not name.startswith("class ") and not (name in ("mcnemar", "margin") and "accuracy" in failed):
            told.append(f"{check.finding} ({check.rule})")
    return "; ".join(told) or passed


def _points(share: float, n: int, sign: bool = False) -> str:
    """A share in hundredths, with as many decimals as n pictures can tell."""
    decimals = 1 if n <= 1000 else 2
    value = round(100 * share, decimals) + 0.0  # no -0.0
    return f"{value:{'+' if sign else ''}.{decimals}f}"


def _pictures(n: int) -> str:
    return f"{n:,} picture" if n == 1 else f"{n:,} pictures"


# ------------------------------------------------------------------------------------------------------------- figures


def _model(answers: Answers, labels: np.ndarray) -> Model:
    right = int(_right(answers, labels).sum())
    return Model(
        name=answers.name,
        accuracy=right / len(labels),
        accuracy_interval=wilson(right, len(labels)),
        ece=metrics.expected_calibration_error(answers.probabilities, labels),
        latency_ms=answers.latency_ms,
    )


def _right(answers: Answers, labels: np.ndarray) -> np.ndarray:
    """bool [N]: the most probable class is the right one."""
    return np.asarray(answers.probabilities.argmax(axis=1) == labels)
