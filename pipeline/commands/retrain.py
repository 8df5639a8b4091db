"""`graft retrain`."""

from enum import IntEnum
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import ConfigPath, Json, Overrides, Quiet, errors_in_words, shown, stop_in_order
from pipeline.console import Console


class ExitCode(IntEnum):
    """Of `graft retrain --exit-code`. A mistake in the config is 2, as everywhere."""

    PROMOTED = 0
    FAILED = 1
    NOTHING_TO_DO = 3
    REFUSED = 4


def retrain(
    config: ConfigPath,
    overrides: Overrides = None,
    as_json: Json = False,
    exit_code: Annotated[
        bool,
        typer.Option("--exit-code", help="End with 0 promoted, 3 nothing to do, 4 refused, 1 failed."),
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Train a challenger if there is reason to, and promote it if it is better: one job for a scheduler.

    It ends as one of four: nothing to do, refused, promoted (exit code 0), or failed (1).
    """
    with errors_in_words():
        from pipeline.config_file import load

        stop_in_order()
        loaded = load(config, overrides)
        from pipeline.retrain import retrain as job

        outcome = job(loaded, Console(quiet))
        print(f"{loaded.name}: {outcome.outcome}")
        print(f"why         {outcome.reason}")
        if outcome.served is not None:
            print(f"champion    version {outcome.champion}, {shown(Path(outcome.served))}")
        if outcome.gate is not None:
            print(f"gate        {shown(Path(outcome.gate))}")
        if as_json:
            print(outcome.model_dump_json())
        code = ExitCode[outcome.outcome.upper().replace(" ", "_")]
        if exit_code or code == ExitCode.FAILED:
            raise typer.Exit(code)
