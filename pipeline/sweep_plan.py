"""What a sweep was asked for, and the configs that follow from it.

A sweep's folder, `<output_dir>/<name>/sweep-<time>-<random>/`, begins with this: `sweep.json`.
"""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from pipeline import search_space
from pipeline.artifacts import Record, new_folder
from pipeline.backbones import weights
from pipeline.config import BackboneConfig, RunConfig
from pipeline.config_file import assigned, parse, read
from pipeline.console import Console
from pipeline.errors import ConfigError
from pipeline.mlflow_client import resolve_uri, without_password
from pipeline.search_space import Axis, Choices, Point, Range
from pipeline.tracking import Tracker
from pipeline.trial import preparation

Search = Literal["grid", "random", "tpe"]

# Where nobody says how many.
_TRIALS = 30  # Of a search.
_SEEDS = 4


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
    seeds: int | None,
    command: str,
) -> Sweep:
    """Checks what is asked for, and makes the sweep's folder.

    Args:
        path: the base config.
        overrides: as given to --set.
        over: as given to --over.
        search: how points are chosen. None: a grid, or tpe where there is a range.
        trials: how many. None: 30; a grid has as many as it has points.
        seeds: how many further seeds the base and the winner are trained with, at least 2. None: 4.
        command: as it was typed, for the record.

    Raises:
        ConfigError: a text cannot be read, or a combination is no config; nothing has been made yet.
        WeightsError: `backbone.weights: run:NAME` names no finished run, or one of another backbone; likewise.
    """
    tree = assigned(read(path), list(overrides))
    command = " ".join(without_password(command).splitlines())
    base = parse(tree, str(path))
    axes = search_space.parse(over)
    search = search or ("tpe" if any(isinstance(axis, Range) for axis in axes) else "grid")
    if search == "grid":
        if trials is not None:
            raise ConfigError("--trials has no effect on a grid, which tries every combination. Leave it out.")
        trials = len(search_space.grid(axes))
    uri = resolve_uri(base)
    # It may hold a password. A sweep that goes on is tracked where it began.
    if isinstance(tree.get("tracking"), dict):
        tree["tracking"] = {key: value for key, value in tree["tracking"].items() if key != "uri"}
    plan = Plan(
        command=command, tree=tree, over=list(over), search=search, trials=trials or _TRIALS, seeds=seeds or _SEEDS,
        tracking_uri=base.tracking.uri and without_password(base.tracking.uri),
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
    journal = Tracker(sweep.folder, uri, base.experiment, sweep.folder.name, Console(quiet=True), at_once=False)
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
