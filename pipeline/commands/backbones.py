"""`graft backbones`."""

from typing import Annotated

import typer
from rich.console import Console as RichConsole
from rich.table import Table

from pipeline.cli import errors_in_words, out
from pipeline.errors import ConfigError, did_you_mean
from pipeline.quiet import import_tensorflow


def backbones(
    name: Annotated[
        str | None, typer.Argument(metavar="NAME", help="Show this network's blocks and the layers to cut at.")
    ] = None,
) -> None:
    """List the networks: input size, weights, preprocessing contract and where each can be cut."""
    with errors_in_words():
        from pipeline.backbones import BACKBONES

        if name is not None:
            if name not in BACKBONES:
                allowed = f"Give one of: {', '.join(BACKBONES)}."
                raise ConfigError(f"There is no backbone {name!r}. {did_you_mean(name, BACKBONES, allowed)}")
            import_tensorflow()
            _print_blocks(name)
            return
        whole = _table(cuts=True)
        narrow = RichConsole(width=10_000).measure(whole).maximum > out().width
        out().print(_table(cuts=False) if narrow else whole)
        if narrow:
            print("The terminal is too narrow for where each can be cut: graft backbones NAME.")


def _table(cuts: bool) -> Table:
    from pipeline.backbones import BACKBONES

    columns = ["name", "input", "smallest", "weights", "preprocessing", *(["cut"] if cuts else [])]
    table = Table(*columns, box=None, header_style="bold")
    family = None
    for row in BACKBONES.values():
        if row.family != family:
            family = row.family
            table.add_row(f"[dim]{family}[/dim]")
        smallest = "fixed" if row.fixed_size else str(row.min_size)
        weights = "imagenet" if row.imagenet else "none"
        cells = [row.name, str(row.default_size), smallest, weights, row.contract, row.cuts]
        table.add_row(*cells[: len(columns)])
    return table


def _print_blocks(name: str) -> None:
    from pipeline.backbones import BACKBONES, cuts, weights

    row = BACKBONES[name]
    network = weights.outline(name, row.default_size)
    blocks = cuts.blocks(network, row.block_end)
    print(f"{name} without a head: {network.count_params():,} weights, {len(blocks)} blocks, bottom to top")
    table = Table("unfreeze", "cut below", "layers", "weights", "output", box=None, header_style="bold")
    for number, block in enumerate(blocks):
        layers = [network.get_layer(layer) for layer in block]
        table.add_row(
            f"{{blocks: {len(blocks) - number}}}",
            cuts.cut_below(network, [name for above in blocks[number:] for name in above]) or "(input)",
            str(len(layers)),
            f"{sum(layer.count_params() for layer in layers):,}",
            "x".join(str(size) for size in layers[-1].output.shape[1:]),
        )
    out().print(table)
