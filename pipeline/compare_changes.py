"""What changed between runs: keys of their configs, and pictures. No TensorFlow."""

import json
from collections.abc import Sequence
from typing import Any

from pipeline.artifacts import Record
from pipeline.compare_runs import Run
from pipeline.config import BackboneConfig, Data, Phase, RunConfig

ABSENT = "–"
"""In place of a value that there is not."""
EXAMPLES = 5
"""Of each kind of change, at most."""


class Setting(Record):
    """A key of the config in which runs differ: its default and each run's value, as in YAML; ABSENT where the config
    has no such key."""

    key: str
    default: str
    values: list[str]


class DataChange(Record):
    """What became of the first run's pictures, by content.

    Attributes:
        added, removed: pictures in a split of one run and in none of the other.
        relabelled: with another label.
        moved: to another split.
        examples: a few names of each, with what changed.
    """

    added: int
    removed: int
    relabelled: int
    moved: int
    examples: dict[str, list[str]]

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.relabelled or self.moved)

    def __str__(self) -> str:
        counts = {"added": self.added, "removed": self.removed, "relabelled": self.relabelled, "moved": self.moved}
        return ", ".join(f"{count:,} {what}" for what, count in counts.items() if count) or "no picture differs"


def settings(runs: Sequence[Run]) -> list[Setting]:
    """The keys of which not all runs have the same value, in the order of the config."""
    flat = [run.config.flat() for run in runs]
    defaults = _defaults(max(len(run.config.phases) for run in runs))
    rows = []
    for key in dict.fromkeys(key for config in flat for key in config):
        values = [_text(config[key]) if key in config else ABSENT for config in flat]
        if len(set(values)) > 1:
            rows.append(Setting(key=key, default=_text(defaults[key]) if key in defaults else ABSENT, values=values))
    return rows


def data_change(first: Run, other: Run) -> DataChange:
    """How the other run's pictures differ from the first's."""
    old, new = first.pictures, other.pictures
    both = [digest for digest in old if digest in new]
    relabelled = [digest for digest in both if old[digest].label != new[digest].label]
    moved = [digest for digest in both if old[digest].split != new[digest].split]
    added, removed = [new[d] for d in new if d not in old], [old[d] for d in old if d not in new]
    examples = {
        "added": [f"{picture.name} ({picture.label}, {picture.split})" for picture in added],
        "removed": [f"{picture.name} ({picture.label}, {picture.split})" for picture in removed],
        "relabelled": [f"{new[d].name}: {old[d].label} → {new[d].label}" for d in relabelled],
        "moved": [f"{new[d].name}: {old[d].split} → {new[d].split}" for d in moved],
    }
    return DataChange(
        added=len(added), removed=len(removed), relabelled=len(relabelled), moved=len(moved),
        examples={what: names[:EXAMPLES] for what, names in examples.items() if names},
    )  # fmt: skip


def _defaults(phases: int) -> dict[str, Any]:
    """The defaults of the config's keys that have one, flat."""
    required = {"name", "data.source", "backbone.name"}
    required |= {f"phases.{place}.{key}" for place in range(phases) for key in ("epochs", "learning_rate")}
    bare = RunConfig(
        name="any", data=Data(source="digits"), backbone=BackboneConfig(name="mobilenet"),
        phases=[Phase(epochs=1, learning_rate=1.0)] * phases,
    )  # fmt: skip
    return {key: value for key, value in bare.flat().items() if key not in required}


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
