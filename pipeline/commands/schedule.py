"""`graft schedule`."""

from typing import Annotated

import typer

from pipeline.cli import ConfigPath, Overrides, Quiet, errors_in_words
from pipeline.console import Console


def schedule(
    config: ConfigPath,
    cron: Annotated[str, typer.Option(help='When, as in crontab: "0 3 * * *" is every night at three.')],
    overrides: Overrides = None,
    jitter: Annotated[int, typer.Option(metavar="SECONDS", help="Start up to so much later, at random.", min=0)] = 0,
    timezone: Annotated[
        str | None, typer.Option(metavar="ZONE", help="Of the times, e.g. Europe/Berlin. If not given, the machine's.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Run graft retrain at set times, until stopped: a scheduler for one machine."""
    with errors_in_words():
        from pipeline.schedule import schedule as run_schedule

        run_schedule(config, overrides or [], cron, jitter, timezone, Console(quiet))
