"""`graft screen`."""

import json
from contextlib import closing
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import ConfigPath, Json, Overrides, Quiet, errors_in_words, shown, stop_in_order
from pipeline.console import Console
from pipeline.errors import ConfigError, did_you_mean
from pipeline.quiet import import_tensorflow

if TYPE_CHECKING:
    from pipeline.screen import Screened


_SHORT = 60  # Characters of a problem that a row of the table has room for.


class Weights(StrEnum):
    NONE = "none"
    IMAGENET = "imagenet"
    BOTH = "both"


def screen(
    config: ConfigPath,
    backbones: Annotated[str, typer.Option(metavar="NAME,NAME...", help="Networks, from graft backbones.")],
    weights: Annotated[Weights, typer.Option(help="The frozen kernels: random, ImageNet's, or each in turn.")] = (
        Weights.BOTH
    ),
    seeds: Annotated[int, typer.Option(help="Draws of kernels and head for each network.", min=1)] = 3,
    overrides: Overrides = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Rank network designs quickly: freeze their kernels, train the head alone, compare validation accuracy."""
    with errors_in_words():
        from pipeline.config_file import load

        stop_in_order()
        loaded = load(config, overrides)
        names = networks(backbones)
        import_tensorflow()
        from pipeline import screen as screening

        kernels = [kind for kind in screening.KERNELS if weights in (Weights.BOTH, kind)]
        rows: list[Screened] = []
        console = Console(quiet)
        page = Path(loaded.output_dir).resolve() / loaded.name / "screen" / "screen.html"
        try:
            with closing(screening.screen(loaded, names, kernels, seeds, console)) as screened:
                rows.extend(screened)
        finally:  # What is known when it is stopped is not lost.
            if rows:
                page.parent.mkdir(parents=True, exist_ok=True)
                screening.write_page(page, loaded, rows)
                for kind in kernels:
                    of_kind = screening.ranked([row for row in rows if row.kernels == kind])
                    _print(screening.KERNELS[kind], of_kind, screening.told(of_kind))
                for problem, affected in _problems(rows).items():
                    print(f"{', '.join(affected)}: {problem}")
                print(f"page        {shown(page)}")
                if warning := screening.few(loaded, rows):
                    console.warn(warning)
        if as_json:
            print(json.dumps({"name": loaded.name, "page": str(page), "networks": [row.figures() for row in rows]}))


def networks(text: str) -> list[str]:
    """The networks of a comma-separated list, each once. Raises ConfigError for a name that is not in the table."""
    from pipeline.backbones import BACKBONES

    names = list(dict.fromkeys(name.strip() for name in text.split(",") if name.strip()))
    unknown = [name for name in names if name not in BACKBONES]
    if unknown or not names:
        hints = list(dict.fromkeys(filter(None, (did_you_mean(name, BACKBONES) for name in unknown))))
        allowed = " ".join(hints) or f"Give any of: {', '.join(BACKBONES)}."
        raise ConfigError(
            "--backbones takes names from graft backbones with commas between them. "
            f"Received: {', '.join(unknown) or repr(text)}. {allowed}"
        )
    return names


def _problems(rows: "list[Screened]") -> dict[str, list[str]]:
    """The problems too long for a row of the table, and the networks of each."""
    affected: dict[str, list[str]] = {}
    for row in rows:
        if row.problem is not None and len(row.problem) > _SHORT:
            affected.setdefault(row.problem, [])
            if row.backbone not in affected[row.problem]:
                affected[row.problem].append(row.backbone)
    return affected


def _print(title: str, rows: "list[Screened]", told: str) -> None:
    if not rows:
        return
    print(f"{title:<22}{'accuracy':<10}{'95 % interval':<16}{'pixels':>8}{'weights':>14}{'multiply-adds':>17}{'ms':>8}")
    for place, row in enumerate(rows, start=1):
        if row.cost is None:
            assert row.problem is not None
            print(f"–   {row.backbone:<18}{row.problem if len(row.problem) <= _SHORT else 'no score: see below'}")
            continue
        low, high = row.interval or (row.mean, row.mean)
        interval = f"{low:.3f} to {high:.3f}" if row.interval else ""
        print(
            f"{place:<4}{row.backbone:<18}{row.mean:<10.3f}{interval:<16}{row.image_size:>8}"
            f"{row.cost.weights:>14,}{row.cost.multiply_adds:>17,}{1000 * row.cost.seconds:>8.2f}"
        )
    if scored := [row for row in rows if row.cost is not None]:
        count = scored[0].validation
        print(f"    always the commonest class: {scored[0].commonest:.3f}; one picture of {count}: {1 / count:.3f}")
        if told:
            print(f"    {told}")
