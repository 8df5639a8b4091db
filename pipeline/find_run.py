"""Which run is meant: by its folder, its name, MLflow's id of it, or a version of a registered model. No TensorFlow."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

from pydantic import ValidationError

from pipeline.artifacts import RunRecord
from pipeline.errors import ConfigError, did_you_mean
from pipeline.registry import CHALLENGER, Registry, Version


def recorded(output_dir: Path) -> dict[Path, RunRecord]:
    """Every run below a folder, by its own folder, however it ended. Those whose `run.json` is damaged, or of another
    version of this project, cannot be referred to."""
    runs = {}
    for file in output_dir.glob("*/*/run.json"):
        try:
            runs[file.parent] = RunRecord.read(file)
        except (OSError, ValidationError):
            continue
    return runs


def finished(output_dir: Path) -> dict[Path, RunRecord]:
    """Those of `recorded` that ended well."""
    return {folder: run for folder, run in recorded(output_dir).items() if run.status == "finished"}


def newest(reference: str, runs: Mapping[Path, RunRecord]) -> Path | None:
    """The folder of the run with this MLflow run id or folder name, else of the last one of this name to end."""
    found = [folder for folder, run in runs.items() if reference in (run.mlflow_run_id, folder.name)]
    found = found or [folder for folder, run in runs.items() if run.name == reference]
    return max(found, key=lambda folder: runs[folder].finished_at or "", default=None)


def names(runs: Iterable[RunRecord]) -> str:
    """Of these runs, sorted, for a sentence."""
    return ", ".join(sorted({run.name for run in runs})) or "none"


def find_run(reference: str, output_dir: Path, registry: Callable[[str], Registry]) -> Path:
    """The folder of a finished run.

    Args:
        reference: a run's folder; a folder's name, an MLflow run id or a NAME (its latest finished run) below
            `output_dir`; or NAME@ALIAS or NAME@VERSION in MLflow's registry. NAME@challenger is, where nobody has set
            such an alias, the newest version that was never promoted: it waits, or was refused.
        output_dir: where runs are.
        registry: gives the versions of a name; it is asked for NAME@... alone.

    Raises:
        ConfigError: there is no such run or version, or the run has not finished.
        TrackingError: MLflow is away.
    """
    folder = Path(reference)
    if (folder / "run.json").is_file():
        return _finished(folder)
    name, at, which = reference.rpartition("@")
    if at:
        return _of_version(_version(registry(name), name, which, output_dir), name, output_dir)
    runs = recorded(output_dir)
    done = {folder: run for folder, run in runs.items() if run.status == "finished"}
    found = newest(reference, done) or newest(reference, runs)
    if found is None:
        allowed = (
            f"A run is its folder, as graft run prints it; or, below {output_dir} (--output-dir), a folder's name, an "
            "MLflow run id or a name; or NAME@ALIAS or NAME@VERSION from graft models. Names of runs there: "
            f"{names(runs.values())}."
        )
        known = (run.name for run in runs.values())
        raise ConfigError(f"{reference} is not a run. {did_you_mean(reference, known, allowed)}")
    return _finished(found)


def _finished(folder: Path) -> Path:
    """The folder, if its run has ended well."""
    try:
        run = RunRecord.read(folder / "run.json")
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"The run.json in {folder} is damaged, or of another version of graft, so the run cannot be read. Give "
            "another run, or run its config.yaml again."
        ) from error
    if run.status != "finished":
        why = f" ({run.error.rstrip('.')})" if run.error else ""
        raise ConfigError(
            f"The run {folder} has not finished: its status is {run.status}{why}. Give a finished run, or go on with "
            f"this one: graft run --resume {folder}"
        )
    return folder


def _version(registry: Registry, name: str, which: str, output_dir: Path) -> Version:
    versions = registry.versions()
    wanted = [version for version in versions if which in (str(version.number), *version.aliases)]
    if which == CHALLENGER:
        wanted += [version for version in versions if "graft.promoted_at" not in version.tags]
    if wanted:
        return wanted[0]
    if not versions:
        known, allowed = (run.name for run in recorded(output_dir).values()), "graft models lists the names there are."
        raise ConfigError(
            f"{name}@{which}: no version of {name} is registered in MLflow. {did_you_mean(name, known, allowed)}"
        )
    aliases = [f"{alias} (version {version.number})" for version in versions for alias in version.aliases]
    raise ConfigError(
        f"{name}@{which}: {name} has no such alias or version in MLflow's registry"
        + (", as each of its versions was promoted" if which == CHALLENGER else "")
        + f". Aliases: {', '.join(sorted(aliases)) or 'none'}; "
        f"versions: {', '.join(str(version.number) for version in versions)}."
    )


def _of_version(version: Version, name: str, output_dir: Path) -> Path:
    tagged = version.tags.get("graft.run_dir")
    if tagged and (Path(tagged) / "run.json").is_file():
        return _finished(Path(tagged))
    # A folder that was moved, with the rest of output_dir, is known by MLflow's id of the run.
    folder = newest(version.run_id, recorded(output_dir))
    if folder is None:
        raise ConfigError(
            f"The folder of the run that made version {version.number} of {name} is gone: it was {tagged}, and "
            f"{output_dir} (--output-dir) does not hold it either. Give a version whose run is still there."
        )
    return _finished(folder)
