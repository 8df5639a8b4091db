"""`graft run`."""

import json
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import Json, Overrides, Quiet, errors_in_words, graft, shown, stop_in_order
from pipeline.console import Console
from pipeline.errors import ConfigError
from pipeline.quiet import import_tensorflow

if TYPE_CHECKING:
    from pipeline.artifacts import RunRecord
    from pipeline.evaluate import Report


def run(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="A YAML file; graft init writes one.", show_default=False)
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="RUN_DIR", help="Go on with a run that was stopped or killed.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Train, evaluate, export and record a classifier."""
    with errors_in_words():
        from pipeline.config_file import load

        if (config is None) == (resume is None) or (resume is not None and overrides):
            raise ConfigError("Give either a CONFIG, or --resume RUN_DIR, whose config it goes on with.")
        stop_in_order()
        loaded = load(config, overrides) if config is not None else None
        import_tensorflow()
        from pipeline.evaluate import Report
        from pipeline.notes import title
        from pipeline.recording import config_of
        from pipeline.run import run as run_pipeline

        if loaded is None:
            assert resume is not None
            loaded = config_of(resume.resolve())
        called = title(loaded.name, overrides or [], loaded.flat())
        record = run_pipeline(loaded, Console(quiet), resume and resume.resolve(), title=called)
        print_summary(record, Report.read(Path(record.run_dir) / "report.json"))
        if as_json:
            keys = ("run_dir", "mlflow_run_id", "export_dir", "metrics", "seconds")
            print(json.dumps({key: getattr(record, key) for key in keys}))


def print_summary(record: "RunRecord", scores: "Report") -> None:
    from pipeline.mlflow_client import default_uri

    report = shown(Path(record.run_dir) / "report.html")
    model = Path(record.export_dir or Path(record.run_dir) / "model")
    export_dir = shown(model)
    output_dir = Path(record.run_dir).parent.parent
    name = graft()
    figures = ", ".join(f"{name} {value:.4f}" for name, value in scores.telling.items())
    # `graft ui` shows the store in output_dir; any other, such as a server, is where its address says.
    own_store = record.tracking_uri == default_uri(output_dir)
    # A name whose versions are promoted has its gate, or graft promote, between a run and what is served.
    then = f"{name} models {record.name}"
    if record.export_dir is not None:
        then = f"{name} serve {shlex.quote(shown(model.parent.parent))}"
    for what, where, *commands in (
        ("test split", figures),
        ("report", report, f"python3 -m webbrowser {shlex.quote(report)}"),
        ("model", export_dir, f"{name} predict {shlex.quote(export_dir)} IMAGE...", then),
        ("MLflow", record.tracking_uri, *([f"{name} ui {shlex.quote(shown(output_dir))}"] if own_store else [])),
    ):
        print(f"{what:<12}{where}")
        for command in commands:
            print(f"{'':<12}  {command}")
