"""What a sweep varies: config keys, each with a list of values or a range. No TensorFlow."""

import itertools
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.config_file import yaml
from pipeline.errors import ConfigError

SECTIONS = ("data", "backbone", "head", "phases", "cache")
"""The parts of a config that decide what is learned. Others say where things go, and there is nothing to search."""

MOST = 1_000
"""Combinations a grid may have."""

NUMBER = r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?"


@dataclass(frozen=True)
class Choices:
    """A key and the values it may have, as they would be written in YAML."""

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """A key and the ends, both included, of what it may be: whole numbers where both ends are.

    Attributes:
        log: whether each factor of ten is as likely as any other, instead of each number.
    """

    key: str
    low: float
    high: float
    log: bool

    @property
    def whole(self) -> bool:
        return isinstance(self.low, int)


Axis = Choices | Range
Point = dict[str, str]
"""By key, the value as it would be written in YAML."""


def parse(over: Sequence[str]) -> list[Axis]:
    """Axes from `KEY=[A, B, ...]` and `KEY=LOW..HIGH`. A range is logarithmic where both ends are above 0 and the
    higher one is at least ten times the lower.

    Raises:
        ConfigError: a text is none of these, or a key cannot be varied or comes twice.
    """
    axes = [_axis(text) for text in over]
    if not axes:
        raise ConfigError(
            "A sweep needs at least one --over KEY=VALUES, e.g. --over 'phases.0.learning_rate=1e-4..1e-2'."
        )
    keys = [axis.key for axis in axes]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ConfigError(f"--over has the key {twice[0]} twice. Give all its values in one --over.")
    return axes


def _axis(text: str) -> Axis:
    key, equals, values = text.partition("=")
    key, values = key.strip(), values.strip()
    if not equals or not re.fullmatch(r"[\w-]+(\.[\w-]+)*", key):
        raise ConfigError(
            "--over takes KEY=[A, B, ...] or KEY=LOW..HIGH, e.g. 'head.dropout=[0.0, 0.2]' or "
            f"phases.0.learning_rate=1e-4..1e-2. Received: {text}"
        )
    if key.partition(".")[0] not in SECTIONS:
        seeds = " What another seed changes, --seeds measures." if key == "seed" else ""
        raise ConfigError(
            f"--over {key}: a sweep varies what is learned, keys below {', '.join(SECTIONS)}.{seeds} Use --set for "
            "the others."
        )
    if ends := re.fullmatch(rf"({NUMBER})\.\.({NUMBER})", values):
        return _range(key, *(_number(end) for end in ends.groups()))
    listed = yaml(values, f"--over {key}")
    if not isinstance(listed, list) or not listed:
        raise ConfigError(
            f"--over {key}: allowed are a list such as [0.0, 0.2] and a range such as 0.0..0.5. Received: {values}"
        )
    return Choices(key, tuple(dict.fromkeys(map(written, listed))))


def _number(text: str) -> int | float:
    return int(text) if re.fullmatch(r"[-+]?\d+", text) else float(text)


def _range(key: str, low: float, high: float) -> Range:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"--over {key}: the range's first end must be below its second. Received: {low}..{high}")
    if not (isinstance(low, int) and isinstance(high, int)):
        low, high = float(low), float(high)
    return Range(key, low, high, log=low > 0 and high / low >= 10)


def written(value: Any) -> str:
    """A value of YAML as text on one line, as short as it can be read back."""
    quoted = json.dumps(value, ensure_ascii=False)
    try:
        short = _written(value)
        return short if "\n" not in short and yaml(short, "a value") == value else quoted
    except ConfigError:
        return quoted


def _written(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{', '.join(f'{key}: {_written(below)}' for key, below in value.items())}}}"
    return json.dumps(value)


def grid(axes: Sequence[Axis]) -> list[Point]:
    """Every combination of lists.

    Raises:
        ConfigError: there is a range, or there are more than MOST.
    """
    if ranges := [axis.key for axis in axes if isinstance(axis, Range)]:
        raise ConfigError(
            f"A grid needs lists, and {ranges[0]} has a range: list its values, or search with --search tpe or random."
        )
    count = math.prod(len(axis.values) for axis in axes if isinstance(axis, Choices))
    if count > MOST:
        raise ConfigError(
            f"The grid has {count:,} combinations; up to {MOST:,} are allowed. Use --search tpe or random."
        )
    return list(_products(axes))


def corners(axes: Sequence[Axis]) -> Iterator[Point]:
    """Combinations to check before anything is trained: of all lists' values and both ends of the ranges, the first
    MOST."""
    return itertools.islice(_products(axes), MOST)


def _products(axes: Sequence[Axis]) -> Iterator[Point]:
    columns = [axis.values if isinstance(axis, Choices) else (written(axis.low), written(axis.high)) for axis in axes]
    return (dict(zip((axis.key for axis in axes), row, strict=True)) for row in itertools.product(*columns))


def distributions(axes: Sequence[Axis]) -> dict[str, Any]:
    """The axes as Optuna knows them, by key."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    def of(axis: Axis) -> Any:
        if isinstance(axis, Choices):
            return CategoricalDistribution(axis.values)
        return (IntDistribution if axis.whole else FloatDistribution)(axis.low, axis.high, log=axis.log)

    return {axis.key: of(axis) for axis in axes}


def point(axes: Sequence[Axis], drawn: Mapping[str, Any]) -> Point:
    """What Optuna has drawn, as it is trained with: numbers of ranges so short that they can be read and typed.

    On a logarithmic axis they have three digits; on a linear one they lie a power of ten apart, between a hundredth and
    a thousandth of the range's width.
    """

    def text(axis: Axis) -> str:
        value = drawn[axis.key]
        if isinstance(axis, Choices) or axis.whole:
            return str(value)
        digits = 2 - math.floor(math.log10(value if axis.log else axis.high - axis.low))
        return written(min(max(round(value, digits), axis.low), axis.high))

    return {axis.key: text(axis) for axis in axes}


def params(axes: Sequence[Axis], of: Mapping[str, str]) -> dict[str, Any]:
    """A point as Optuna knows it: what was trained with, which is near what was drawn."""
    return {axis.key: of[axis.key] if isinstance(axis, Choices) else _number(of[axis.key]) for axis in axes}


def overrides(of: Mapping[str, str]) -> list[str]:
    """As given to --set."""
    return [f"{key}={value}" for key, value in of.items()]


def named(of: Mapping[str, str]) -> str:
    """A point in words: the keys and values."""
    return ", ".join(overrides(of))
