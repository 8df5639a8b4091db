"""`graft watch`."""

from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import Json, errors_in_words


def watch(
    export: Annotated[
        Path, typer.Argument(metavar="EXPORT", help="A model as it is served: EXPORT/NAME, or EXPORT/NAME/VERSION.")
    ],
    samples: Annotated[Path, typer.Option(metavar="DIR", help="As given to graft serve --samples.")],
    as_json: Json = False,
) -> None:
    """Compare what the endpoint is asked with the data a model comes from. Exit code 3 says that it drifted."""
    with errors_in_words():
        from pipeline import drift, publish

        versions = publish.versions(export)
        found = drift.watch(export / str(versions[-1]) if versions else export, samples, seed=0)
        print(found.sentence)
        if as_json:
            print(found.model_dump_json())
        if found.drifted:
            raise typer.Exit(3)
