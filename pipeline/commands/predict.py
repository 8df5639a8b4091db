"""`graft predict`."""

import io
import sys
from collections.abc import Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from pipeline.cli import errors_in_words, out
from pipeline.errors import DataError
from pipeline.quiet import import_tensorflow


class Format(StrEnum):
    TABLE = "table"
    CSV = "csv"
    JSONL = "jsonl"


ExportDir = Annotated[Path, typer.Argument(metavar="EXPORT_DIR", help="An exported model: export/NAME/VERSION.")]


def predict(
    export_dir: ExportDir,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE_OR_DIR...", help="Pictures, or folders of pictures.")],
    output: Annotated[Format, typer.Option("--format", help="How to print the result.")] = Format.TABLE,
) -> None:
    """Label pictures with an exported model."""
    with errors_in_words():
        from pipeline import predict as prediction
        from pipeline.artifacts import read_manifest

        classes = read_manifest(export_dir).classes
        import_tensorflow()
        if isinstance(sys.stdout, io.TextIOWrapper):  # Who reads a pipe sees each picture in its turn.
            sys.stdout.reconfigure(line_buffering=True)
        found = prediction.pictures(images)
        unusable = []

        def labelled() -> Iterator[prediction.Prediction]:
            for result in prediction.predict(export_dir, found):
                unusable.append(result.error is not None)
                yield result

        results = labelled()
        match output:
            case Format.CSV:
                prediction.write_csv(results, classes, sys.stdout)
            case Format.JSONL:
                prediction.write_jsonl(results, sys.stdout)
            case Format.TABLE:
                table = Table("picture", "label", "probability", box=None, header_style="bold")
                for result in results:
                    what = (
                        escape(result.label) if result.label is not None else f"[red]{escape(result.error or '')}[/red]"
                    )
                    table.add_row(escape(result.path), what, "" if result.score is None else f"{result.score:.3f}")
                out().print(table)
        if all(unusable):
            raise DataError("None of the pictures could be used, each for the reason given. Give other pictures.")
