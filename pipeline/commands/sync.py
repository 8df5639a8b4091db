"""`graft sync`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import Quiet, errors_in_words
from pipeline.console import Console


def sync(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="A run's folder, e.g. runs/NAME/TIME.")],
    quiet: Quiet = False,
) -> None:
    """Deliver what a run recorded while MLflow was away."""
    with errors_in_words():
        from pipeline import delivery

        done = delivery.sync(run_dir, Console(quiet))
        print(f"MLflow run {done.run_id}: {done.records} entries delivered to {done.uri}.")
