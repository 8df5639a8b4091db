"""`graft report`."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import OutputDir, Quiet, errors_in_words, registry_uri, shown
from pipeline.console import Console
from pipeline.errors import DataError
from pipeline.quiet import import_tensorflow

if TYPE_CHECKING:
    import numpy as np


def report(
    reference: Annotated[
        str,
        typer.Argument(
            metavar="RUN",
            help="A run's folder, its name below --output-dir (then the latest), MLflow's id of it, NAME@champion, or "
            "NAME@VERSION.",
        ),
    ],
    output_dir: OutputDir = Path("runs"),
    quiet: Quiet = False,
) -> None:
    """Draw a run's report and model card again, from what is in its folder."""
    with errors_in_words():
        from pipeline.find_run import find_run
        from pipeline.registry import Registry

        run_dir = find_run(reference, output_dir, lambda name: Registry(registry_uri(output_dir), name))
        import_tensorflow()
        from pipeline import report as stage
        from pipeline.pictures import read_again
        from pipeline.reopen import network_of

        console = Console(quiet)
        run = stage.read(run_dir.resolve())
        network = network_of(run.run_dir, run.config, len(run.outputs.classes))

        def look(digests: Sequence[str]) -> dict[str, "np.ndarray"]:
            try:
                found = read_again(run.config.data, run.manifest.pixels, run.outputs.names, digests)
            except DataError as error:
                console.warn(f"The report shows no pictures. {error}")
                return {}
            if len(found) < len(digests):
                console.warn(
                    f"{len(digests) - len(found)} of {len(digests)} pictures are gone from the data, or are no longer "
                    "what was tested on; the report leaves them out."
                )
            return found

        *pictures, model_card, page = stage.write(run, network, look)
        print(f"report      {shown(page)}")
        print(f"model card  {shown(model_card)}")
        print(f"charts      {', '.join(path.name for path in pictures)}")
