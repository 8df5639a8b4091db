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
        from pipeline.delivery import sync as deliver

        delivery = deliver(run_dir, Console(quiet))
        print(f"MLflow run {delivery.run_id}: {delivery.records} entries delivered to {delivery.uri}.")
