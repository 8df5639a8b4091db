"""What is kept of versions and runs, and what goes. The champion, its predecessor and what they need never go.

No TensorFlow.
"""

import shutil
from pathlib import Path

from pipeline import publish
from pipeline.artifacts import RunRecord, alone
from pipeline.config import Retention
from pipeline.console import Console
from pipeline.delivery import remove_run
from pipeline.errors import GraftError
from pipeline.journal import is_delivered
from pipeline.registry import Registry


def retain(rules: Retention, registry: Registry, home: Path, runs: Path, console: Console) -> None:
    """Removes the oldest versions, from the registry and from where servers read, and the oldest runs.

    A run whose version is kept is kept, and so is one that is under way or not delivered to MLflow.

    Args:
        rules: how many are kept.
        registry: of the model's name.
        home: `<export.dir>/<name>`.
        runs: `<output_dir>/<name>`.
        console: hears what was removed.

    Raises:
        TrackingError: MLflow is away.
    """
    champion = publish.champion(home)
    line = [] if champion is None else [c for c in (champion, champion.previous) if c is not None]
    spared = {c.registered for c in line}
    versions = registry.versions()
    kept = {version.number for version in versions[: rules.versions]} | spared
    needed = {c.run for c in line}
    removed = 0
    for version in versions:
        if version.number in kept:
            needed.add(Path(version.tags.get("graft.run_dir", "")).name)
            continue
        folder = Path(version.tags.get("graft.export_dir", ""))
        # One that was published elsewhere, before export.dir was changed, is not ours to remove.
        if folder.parent == home and int(folder.name) not in {c.version for c in line}:
            publish.remove(home, int(folder.name))
        registry.delete(version.number)
        removed += 1
    if removed:
        console.say(f"{removed} old versions removed")

    records = sorted((path.parent for path in runs.glob("*/run.json")), reverse=True)
    old = [run for run in records[rules.runs :] if run.name not in needed and _is_idle(run) and is_delivered(run)]
    for run in old:
        remove_run(run)
        shutil.rmtree(run)
    if old:
        console.say(f"{len(old)} old runs removed; mlflow gc frees what MLflow holds of them")


def _is_idle(run: Path) -> bool:
    """Whether a run has ended, or nobody is working on it."""
    try:
        if RunRecord.read(run / "run.json").status == "running":
            return False
        with alone(run, "run"):
            return True
    except (OSError, ValueError, GraftError):
        return False
