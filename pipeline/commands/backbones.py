"""`graft backbones`."""

from typing import Annotated

import typer
from rich.table import Table

from pipeline.cli import errors_in_words, out
from pipeline.errors import ConfigError
from pipeline.quiet import import_tensorflow


def backbones(
    name: Annotated[str | None, typer.Argument(help="Show this network's blocks and the layers to cut at.")] = None,
) -> None:
    """List the networks: input size, weights, preprocessing contract and where each can be cut."""
    with errors_in_words():
        from pipeline.backbones import BACKBONES

        if name is not None:
            if name not in BACKBONES:
                raise ConfigError(f"There is no backbone {name!r}. Give one of: {', '.join(BACKBONES)}.")
            import_tensorflow()
            _print_blocks(name)
            return
        table = Table("name", "input", "smallest", "weights", "preprocessing", "cut", box=None, header_style="bold")
        family = None
        for row in BACKBONES.values():
            if row.family != family:
                family = row.family
                table.add_row(f"[dim]{family}[/dim]")
            smallest = "fixed" if row.fixed_size else str(row.min_size)
            weights = "imagenet" if row.imagenet else "none"
            table.add_row(row.name, str(row.default_size), smallest, weights, row.contract, row.cuts)
        out().print(table)


def _print_blocks(name: str) -> None:
    from pipeline.backbones import BACKBONES, cuts, weights

    row = BACKBONES[name]
    network = weights.outline(name, row.default_size)
    blocks = cuts.blocks(network, row.block_end)
    print(f"{name}: {network.count_params():,} weights, {len(blocks)} blocks, bottom to top")
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
