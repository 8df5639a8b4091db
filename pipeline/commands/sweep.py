"""`graft sweep`."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from pipeline.cli import Json, Overrides, Quiet, errors_in_words, graft, out, shown, stop_in_order
from pipeline.console import Console
from pipeline.errors import ConfigError
from pipeline.quiet import import_tensorflow

if TYPE_CHECKING:
    from pipeline.sweep_result import Outcome

_ROWS = 20  # Of the table on the terminal.


def sweep(
    config: Annotated[
        Path | None, typer.Argument(metavar="CONFIG", help="The base: a YAML file.", show_default=False)
    ] = None,
    over: Annotated[
        list[str] | None,
        typer.Option(
            metavar="KEY=VALUES",
            help="A key and its values: a list, 'head.dropout=[0.0, 0.2]', or a range, "
            "phases.0.learning_rate=1e-4..1e-2. May be repeated.",
        ),
    ] = None,
    trials: Annotated[
        int | None, typer.Option(help="How many, for random and tpe. If not given, 30.", min=1, show_default=False)
    ] = None,
    search: Annotated[
        Literal["grid", "random", "tpe"] | None,
        typer.Option(help="If not given, a grid of lists, and tpe where there is a range.", show_default=False),
    ] = None,
    seeds: Annotated[
        int | None,
        typer.Option(
            metavar="K",
            help="Train the base and the winner with K further seeds. If not given, 4.",
            min=2,
            show_default=False,
        ),
    ] = None,
    overrides: Overrides = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="SWEEP_DIR", help="Go on with a sweep that was stopped or killed.")
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Try values of any config keys, and compare them with the base and with the noise between seeds.

    Better is a lower log loss on the validation split, with the best temperature. The test split is not looked at.
    """
    with errors_in_words():
        asked = over or overrides or trials or search or seeds
        if (config is None) == (resume is None) or (resume is not None and asked):
            raise ConfigError("Give either a CONFIG and --over, or --resume SWEEP_DIR alone.")
        stop_in_order()
        import_tensorflow()
        from pipeline import sweep as sweeping
        from pipeline import sweep_plan

        if resume is not None:
            begun = sweep_plan.reopened(resume)
        else:
            assert config is not None
            command = f"graft {shlex.join(sys.argv[1:])}"
            begun = sweep_plan.begin(config, overrides or [], over or [], search, trials, seeds, command)
        try:
            outcome = sweeping.run(begun, Console(quiet))
        except KeyboardInterrupt:
            _print(sweeping.outcome_of(begun), begun.place)
            print(f"stopped. Go on with: {graft()} sweep --resume {shlex.quote(shown(begun.folder))}", file=sys.stderr)
            raise typer.Exit(130) from None
        except OSError:  # A full disk, for one.
            print(f"stopped. Go on with: {graft()} sweep --resume {shlex.quote(shown(begun.folder))}", file=sys.stderr)
            raise
        _print(outcome, begun.place)
        if as_json:
            print(json.dumps(_figures(outcome)))


def _print(outcome: "Outcome", place: tuple[str, str]) -> None:
    from rich.table import Table
    from rich.text import Text

    if outcome.winner is None:
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("trial", justify="right")
    table.add_column("differs from the base in", overflow="fold")
    for heading in ("loss", "difference", "accuracy", "points"):
        table.add_column(heading, justify="right", no_wrap=True)
    ended = [row for row in outcome.ranked if row.status == "finished"]
    for row in ended[:_ROWS]:
        figures = f"{row.loss:.4f}", f"{row.accuracy:.3f}"
        loss, points = outcome.beside_base(row)
        cells = (str(row.number), row.differs, figures[0], loss, figures[1], points)
        table.add_row(*map(Text, cells), style="bold" if row is outcome.winner else None)
    out().print(table)
    rest = [f"{len(ended) - _ROWS} more"] if len(ended) > _ROWS else []
    if rest := [*rest, *([outcome.left_out] if outcome.left_out else [])]:
        print(f"and {', '.join(rest)}: all are in the page")
    folder = outcome.folder
    page, winner = shown(folder / "sweep.html"), shown(folder / "winner.yaml")
    if not outcome.better:
        print(f"verdict     {outcome.headline}. {outcome.verdict}")
    if outcome.noise is not None:
        of_loss, of_accuracy = outcome.noise.of_difference
        print(
            f"noise       ± {of_loss:.4f}, ± {100 * of_accuracy:.1f} points: what another seed changes, "
            f"from {outcome.noise.seeds} of the base; every ± is a 95 % interval"
        )
    if outcome.better:
        print(f"winner      {outcome.winner.differs}")
        print(f"            {outcome.verdict}")
    else:
        print(f"lowest loss {outcome.winner.differs}")
    print(f"page        {page}")
    print(f"{'':<12}  python3 -m webbrowser {shlex.quote(page)}")
    print(f"config      {winner}")
    if not outcome.better:  # The page has the command, for who wants it all the same.
        return
    to_place, why = place
    print(f"{'':<12}  {graft()} run {shlex.quote(winner)}{to_place}")
    if why:
        print(f"{'':<12}{why}")


def _figures(outcome: "Outcome") -> dict[str, object]:
    from dataclasses import asdict

    winner, noise, comparison = outcome.winner, outcome.noise, outcome.comparison
    assert winner is not None
    return {
        "sweep_dir": str(outcome.folder),
        "winner": winner.name,
        "better": comparison is not None and comparison.better,
        "verdict": outcome.verdict,
        "comparison": comparison and asdict(comparison),
        "noise": noise and asdict(noise),
        "trainings": [training.model_dump() for training in outcome.trainings],
    }
