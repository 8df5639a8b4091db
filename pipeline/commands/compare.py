"""`graft compare`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import ConfigOption, Json, OutputDir, Quiet, errors_in_words, out, registry_uri, shown
from pipeline.console import Console
from pipeline.errors import ConfigError

if TYPE_CHECKING:
    from pipeline.compare import Comparison

_MOST_CLASSES = 5


def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN RUN...",
            help="A run's folder, its name below --output-dir (then the latest), MLflow's id of it, NAME@champion, "
            "NAME@challenger, or NAME@VERSION. The first is what the others are compared with.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="The page. If not given, in --output-dir/compare.")
    ] = None,
    output_dir: OutputDir = Path("runs"),
    config: ConfigOption = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Compare runs: what differs in config and data, which is better beyond chance, and pictures that flip."""
    with errors_in_words():
        from pipeline import compare as comparing
        from pipeline import compare_page, compare_pictures, compare_runs
        from pipeline.find_run import find_run
        from pipeline.registry import Registry

        console = Console(quiet)
        if output is not None and output.is_dir():
            raise ConfigError(f"--output must be a file, e.g. {output / 'compare.html'}. Received a folder: {output}")

        def registry(name: str) -> Registry:
            return Registry(registry_uri(output_dir, config), name)

        folders = [find_run(run, output_dir, registry) for run in runs]
        read = compare_runs.read(runs, folders)
        common = compare_pictures.common(read)
        found = comparing.compare(read, common)
        for warning in found.warnings:
            console.warn(warning)
        page = output
        if page is None:
            page = output_dir / "compare" / compare_page.file_name([run.folder for run in read])
        page.parent.mkdir(parents=True, exist_ok=True)
        flips = compare_pictures.flips(read, common, compare_page.MOST_FLIPS // len(found.against))
        listed = {flip.digest for rows in flips for flip in rows}
        pictures = compare_pictures.thumbnails(read, listed)
        if missing := len(listed - pictures.keys()):
            console.say(f"pictures that are listed by name alone, as the data no longer has them: {missing}")
        compare_page.write(page, found, read, flips, pictures)
        _print(found)
        print(f"\npage  {shown(page.resolve())}")
        if as_json:
            print(found.model_dump_json())


def _print(found: "Comparison") -> None:
    from rich.markup import escape
    from rich.table import Table

    from pipeline import compare_page
    from pipeline.compare import METRICS, NOTE

    def table(*columns: str) -> Table:
        made = Table(box=None, header_style="bold", pad_edge=False)
        for place, column in enumerate(columns):
            made.add_column(column, overflow="fold", no_wrap=place == 0)
        return made

    letters = [side.letter for side in found.runs]
    first = letters[0]
    facts = compare_page.facts(found.runs)
    for side in found.runs:
        print(f"{side.letter}  {compare_page.label(side)}")
    print()
    rows = table("", "default", *letters)
    for setting in found.settings:
        rows.add_row(setting.key, escape(setting.default), *map(escape, setting.values))
    for key, values in facts.items():
        if len(set(values)) > 1 and key not in ("name", "folder", "temperature") and not key.endswith(", seconds"):
            rows.add_row(key, "", *map(escape, values))
    rows.add_row("all stages, seconds", "", *facts["all stages, seconds"])
    out().print(rows)
    for versus in found.against:
        print(f"data of {versus.letter}: {versus.data}")

    more = f"; left out, as they show the same as one of them: {found.repeated:,}" if found.repeated else ""
    print(f"\non {found.n:,} common test {'picture' if found.n == 1 else 'pictures'}{more}")
    rows = table("", *letters)
    for metric in METRICS.values():
        rows.add_row(metric.title, *(metric.shown(side.figures[metric.name]) for side in found.runs))
    out().print(rows)
    for versus in found.against:
        print()
        for difference in versus.differences:
            print(difference.sentence)
        print(
            f"pictures that flip from {first} to {versus.letter}: {versus.lost:,} lost, {versus.gained:,} gained, "
            f"{versus.wrong_either_way:,} wrong either way"
        )
    if len(found.against) > 1:
        print(f"\n{NOTE}")
    changed = [row for row in found.per_class if any(change for change, _, _ in row.changes)][:_MOST_CLASSES]
    if changed:
        print()
        rows = table("class", "pictures", *letters)
        for row in changed:
            rows.add_row(escape(row.name), f"{row.n:,}", *(METRICS["accuracy"].shown(right) for right in row.right))
        out().print(rows)
