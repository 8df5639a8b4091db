"""Runs that are compared, read back from their folders. No TensorFlow."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase

from pipeline import contents
from pipeline.artifacts import (
    CLUSTERS,
    MODEL,
    OUTPUTS,
    Epoch,
    Manifest,
    Outputs,
    RunRecord,
    read_history,
    read_manifest,
)
from pipeline.config import RunConfig
from pipeline.config_file import load
from pipeline.errors import ConfigError
from pipeline.evaluate import Report
from pipeline.sources.base import SPLIT_NAMES

MOST_RUNS = len(ascii_uppercase)


@dataclass(frozen=True)
class Picture:
    """A row of a run's `splits.csv`."""

    name: str
    label: str
    split: str


@dataclass(frozen=True, eq=False)
class Run:
    """A finished run, read back.

    Attributes:
        letter: A is what the others are compared with.
        reference: how it was asked for.
        folder: absolute.
        report, outputs: of its evaluation.
        manifest: of its own copy of the exported model.
        pictures: name, label and split of every picture in a split, by digest.
        learned: digests of what it was trained or tuned on, also by way of the runs that it started from.
        gone: of these runs the one whose list of pictures is no longer there, so that `learned` may lack some; None
            where all have theirs.
        clusters: of its near duplicates, by digest; empty where it did not look for any.
    """

    letter: str
    reference: str
    folder: Path
    record: RunRecord
    config: RunConfig
    report: Report
    history: list[Epoch]
    outputs: Outputs
    manifest: Manifest
    pictures: dict[str, Picture]
    learned: set[str]
    gone: Path | None
    clusters: dict[str, str]


def read(references: Sequence[str], folders: Sequence[Path]) -> list[Run]:
    """Reads runs from their folders.

    Args:
        references: how each was asked for.
        folders: of finished runs, as `find_run` gives them.

    Raises:
        ConfigError: there are fewer than two or too many, one is given twice, or one lacks what is compared.
        ExportError: a run's own copy of its model is gone.
    """
    folders = [folder.resolve() for folder in folders]
    if not 2 <= len(folders) <= MOST_RUNS:
        raise ConfigError(
            f"Two to {MOST_RUNS} runs can be compared. Received: {len(folders)}. Give e.g. two folders of runs, or "
            "NAME@champion NAME@challenger."
        )
    for place, folder in enumerate(folders):
        if folder in folders[:place]:
            twice = references[folders.index(folder)], references[place]
            raise ConfigError(
                f"{' and '.join(dict.fromkeys(twice))} is one run, {folder}, given twice. Each run is compared with "
                "the first, so give different ones."
            )
    return [_read(*each) for each in zip(ascii_uppercase, references, folders, strict=False)]


def _read(letter: str, reference: str, folder: Path) -> Run:
    try:
        outputs = Outputs.read(folder / OUTPUTS)
        clusters = contents.clusters(folder / CLUSTERS) if (folder / CLUSTERS).is_file() else {}
        return Run(
            letter, reference, folder, RunRecord.read(folder / "run.json"), load(folder / "config.yaml"),
            Report.read(folder / "report.json"), read_history(folder), outputs, read_manifest(folder / MODEL),
            _pictures(folder), *contents.learned_by(folder), clusters,
        )  # fmt: skip
    except (OSError, ValueError, KeyError) as error:  # KeyError: a CSV file without its columns.
        what = Path(error.filename).name if isinstance(error, OSError) and error.filename else "one of its files"
        problem = "is missing" if isinstance(error, FileNotFoundError) else "cannot be read"
        raise ConfigError(
            f"The run {folder} cannot be compared: {what} {problem}. It was made by another version of graft, or files "
            f"were removed. Make it again: graft run {folder / 'config.yaml'}"
        ) from error


def _pictures(folder: Path) -> dict[str, Picture]:
    """Raises OSError or KeyError."""
    with (folder / "splits.csv").open(encoding="utf-8", newline="") as file:
        return {
            row["sha256"]: Picture(row["path"], row["label"], row["split"])
            for row in csv.DictReader(file)
            if row["split"] in SPLIT_NAMES
        }
