"""`graft inspect`."""

import json
from dataclasses import asdict
from itertools import accumulate, pairwise
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import filesize
from rich.console import Console as RichConsole
from rich.table import Table

from pipeline.cli import Overrides, errors_in_words, out, shown
from pipeline.errors import ConfigError, DataError, did_you_mean
from pipeline.quiet import import_tensorflow

if TYPE_CHECKING:
    from pipeline.inspection import Inspection, Layer, Sizes, Step

# What a terminal may be too narrow for; the first is left out first.
_LEFT_OUT_FIRST = ("stride", "multiply-adds", "output", "units")


def inspect(
    what: Annotated[
        str, typer.Argument(metavar="BACKBONE_OR_CONFIG", help="A name from graft backbones, or a YAML file.")
    ],
    overrides: Overrides = None,
    batch_size: Annotated[
        int | None, typer.Option(min=1, help="Pictures in a training step. If not given, the config's, or 32.")
    ] = None,
    image_size: Annotated[
        int | None, typer.Option(min=8, max=2048, help="Of a backbone, in pixels. If not given, its own.")
    ] = None,
    layers: Annotated[bool, typer.Option("--layers", help="Show every layer in place of blocks.")] = False,
    picture: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Draw the sizes along the depth: a .png or .svg file.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object, with every layer.")] = False,
) -> None:
    """Show what a network is made of: units, weights, connections, receptive fields, and what each phase trains."""
    with errors_in_words():
        if picture is not None:
            _check_picture(picture)
        path = Path(what)
        is_config = path.is_file() or path.suffix in (".yaml", ".yml")
        if is_config and image_size is not None:
            raise ConfigError("--image-size is for a backbone's name. With a config, use --set data.image_size=SIZE.")
        if not is_config and overrides:
            raise ConfigError(f"--set changes a config, and {what} is none. Give a YAML file, or leave --set out.")
        found = _of_config(path, overrides, batch_size) if is_config else _of_name(what, image_size, batch_size)
        if picture is not None:
            from pipeline import pages
            from pipeline.inspection_chart import chart

            with pages.drawing():
                chart(found).save(picture)
        if as_json:
            print(json.dumps(_as_json(found)))
            return
        _print(found, layers)
        if picture is not None:
            print(f"\npicture  {shown(picture)}")


def _check_picture(path: Path) -> None:
    if path.suffix not in (".png", ".svg"):
        raise ConfigError(f"--picture must end in .png or .svg. Received: {path}. Give such a name.")
    if not path.absolute().parent.is_dir():
        raise ConfigError(f"--picture: there is no folder {path.parent}. Make it, or name another file.")


def _of_name(name: str, image_size: int | None, batch_size: int | None) -> "Inspection":
    from pipeline.backbones import BACKBONES

    row = BACKBONES.get(name)
    if row is None:
        allowed = f"Give one of them; the backbones are {', '.join(BACKBONES)}."
        raise ConfigError(
            f"{name!r} is neither a config, which is a YAML file, nor a backbone. "
            f"{did_you_mean(name, BACKBONES, allowed)}"
        )
    size = row.default_size if image_size is None else image_size
    if row.fixed_size and size != row.default_size:
        raise ConfigError(f"--image-size: {name} is defined for {row.default_size} pixels only. Leave the option out.")
    if size < row.min_size:
        raise ConfigError(f"--image-size: {name} needs at least {row.min_size} pixels. Received: {size}. Give more.")
    import_tensorflow()
    from pipeline.inspection import of_backbone

    return of_backbone(name, size, batch_size or 32)


def _of_config(path: Path, overrides: list[str] | None, batch_size: int | None) -> "Inspection":
    from pipeline.config_file import load

    config = load(path, overrides)
    import_tensorflow()
    from pipeline.inspection import of_config
    from pipeline.sources import open_source

    try:
        classes = config.data.classes or open_source(config.data).classes
    except DataError as error:
        raise DataError(
            f"{error} Of the pictures, graft inspect needs to know the classes only: "
            "--set 'data.classes=[ants, bees]' names them."
        ) from None
    return of_config(config, len(classes), batch_size or config.data.batch_size)


# ---------------------------------------------------------------------------------------------------------------- text


def _print(found: "Inspection", every_layer: bool) -> None:
    from pipeline.inspection import total

    sums = total(found.layers)
    print(
        f"{found.title}, for one picture of {_shape(found.input)}: {sums.units:,} units, {sums.weights:,} weights, "
        f"{sums.connections:,} connections"
    )
    if whole := found.published:
        differs = f"; {whole.paper}" if whole.paper else ""
        print(f"with its published head, for {whole.classes} classes: {whole.weights:,} weights{differs}")
    print()
    rows = [_row(found, name, start, end, every_layer) for name, start, end in _ranges(found, every_layer)]
    _print_fitting(rows)
    _print_legend(found)
    print()
    _print_kinds(found)
    for number, step in enumerate(found.steps, start=1):
        print()
        _print_step(found, step, None if found.classes is None else number)


def _ranges(found: "Inspection", every_layer: bool) -> list[tuple[str, int, int]]:
    """What a row of the table is of: a name, and where its layers start and end."""
    if every_layer:
        return [(layer.name, place, place + 1) for place, layer in enumerate(found.layers)]
    ends = list(accumulate(len(layers) for _, layers in found.blocks))
    return [(name, a, b) for (name, _), (a, b) in zip(found.blocks, pairwise([0, *ends]), strict=True)]


def _row(found: "Inspection", name: str, start: int, end: int, every_layer: bool) -> dict[str, str]:
    from pipeline.inspection import total

    last, sizes = found.layers[end - 1], total(found.layers[start:end])
    cells = {"layer": name, "type": last.layer} if every_layer else {"block up to": name}
    cells |= {
        "output": _shape(last.output),
        "field": _field(last),
        "stride": "" if last.stride is None else _sides(last.stride),
        "units": f"{sizes.units:,}",
        "weights": f"{sizes.weights:,}",
        "connections": _short(sizes.connections),
        "multiply-adds": _short(sizes.multiply_adds),
    }
    for column, step in _steps(found).items():
        mine = step.memory_of(step.layers[start:end], found.batch_size)
        cells[column] = "frozen" if end <= step.below else filesize.decimal(mine) if mine else ""
    return cells


def _steps(found: "Inspection") -> "dict[str, Step]":
    """The columns of memory: one for each phase."""
    if found.classes is None:
        return {"memory": found.steps[0]}
    return {f"phase {number}": step for number, step in enumerate(found.steps, start=1)}


def _print_fitting(rows: list[dict[str, str]]) -> None:
    """A table without the columns that the terminal is too narrow for."""
    for count in range(len(_LEFT_OUT_FIRST) + 1):
        left_out = _LEFT_OUT_FIRST[:count]
        table = Table(box=None, header_style="bold")
        for name in rows[0]:
            if name not in left_out:
                justify: Any = "left" if name in ("layer", "block up to", "type", "output") else "right"
                table.add_column(name, justify=justify, no_wrap=True)
        for row in rows:
            table.add_row(*(cell for name, cell in row.items() if name not in left_out))
        if RichConsole(width=10_000).measure(table).maximum <= out().width:
            break
    out().print(table)
    if left_out:
        print(f"The terminal is too narrow for: {', '.join(left_out)}.")


def _print_legend(found: "Inspection") -> None:
    print("field and stride: in pixels of the picture; all: the whole of it")
    if any(layer.sees_all and layer.windows for layer in found.layers):
        print("*: and, by way of averages over all places (squeeze and excitation), the whole picture")
    names = ", ".join(_steps(found))
    print(f"{names}: what the layers take in memory, in a training step on {found.batch_size} pictures")


def _print_kinds(found: "Inspection") -> None:
    """The share of each kind of layer in the sizes."""
    from pipeline.inspection import by_kind, total

    sums, kinds = total(found.layers), by_kind(found.layers)
    table = Table("share of", box=None, header_style="bold")
    shown_sizes = ("units", "weights", "connections")
    for size in shown_sizes:
        table.add_column(size, justify="right")
    for kind, sizes in kinds.items():
        table.add_row(kind, *(f"{getattr(sizes, size) / getattr(sums, size):.1%}" for size in shown_sizes))
    out().print(table)


def _print_step(found: "Inspection", step: "Step", phase: int | None) -> None:
    """What trains, where the cut is, and what a training step costs, with the arithmetic."""
    from pipeline.inspection import FLOAT, total

    sums, memory = total(step.layers), step.memory(found.batch_size)
    if phase is not None:
        print(f"phase {phase}, unfreeze {step.unfreeze}")
        share = sums.trainable / sums.weights
        print(f"  trains    {sums.trainable:,} weights of {sums.weights:,} ({share:.1%})")
        print(f"  cut       {'none: the first layers train' if step.cut is None else f'above {step.cut}'}")
        below, above = step.frozen.multiply_adds, step.trained
        print(
            f"  picture   {_short(below)} multiply-adds below the cut, {_short(above.multiply_adds)} above it, "
            f"{_short(above.step_multiply_adds)} with the gradient"
        )
        if step.stored_bytes is not None:
            print(f"  stored    {_shape(step.fed)}, {filesize.decimal(step.stored_bytes)} for one picture")
    else:
        forward, in_a_step = _short(sums.multiply_adds), _short(sums.step_multiply_adds)
        print(f"a training step on all of it, with {step.optimizer}")
        print(f"  picture   {forward} multiply-adds, {in_a_step} with the gradient")
    print(f"  memory    {filesize.decimal(memory.total)} for a step on {found.batch_size} pictures:")
    fed = prod(step.fed)
    for size, arithmetic in (
        (memory.activations, f"activations, {found.batch_size} x ({fed:,} fed + {sums.kept:,} kept) x {FLOAT} bytes"),
        (memory.weights, f"weights, {sums.weights:,} x {FLOAT} bytes"),
        (memory.gradients, f"gradients, {sums.trainable:,} x {FLOAT} bytes"),
        (memory.optimizer, f"{step.optimizer}, {step.slots} x {sums.trainable:,} x {FLOAT} bytes"),
    ):
        print(f"            {filesize.decimal(size):>9}  {arithmetic}")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _field(layer: "Layer") -> str:
    """A receptive field in pixels: a number where height and width agree."""
    if layer.receptive_field is None:
        return "all"
    return _sides(layer.receptive_field) + "*" * layer.sees_all


def _sides(sides: tuple[float, float]) -> str:
    """Height and width, or one number where they agree."""
    return "x".join(f"{side:g}" for side in dict.fromkeys(sides))


def _short(count: int) -> str:
    """Three digits: 567,716,352 is 568 M."""
    for letter, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= 0.9995 * factor:
            value = count / factor
            return f"{value:.{2 if value < 9.995 else 1 if value < 99.95 else 0}f} {letter}"
    return str(count)


# ---------------------------------------------------------------------------------------------------------------- JSON


def _as_json(found: "Inspection") -> dict[str, Any]:
    from pipeline.inspection import by_kind, total

    def of_layer(layer: "Layer", place: int) -> dict[str, Any]:
        return {
            "name": layer.name, "operation": layer.operation, "type": layer.layer, "kind": layer.kind,
            "output": layer.output, "receptive_field": layer.receptive_field, "stride": layer.stride,
            "sees_all": layer.sees_all, **_sizes(layer.sizes),
            "memory_bytes": [
                step.memory_of(step.layers[place : place + 1], found.batch_size) for step in found.steps
            ],
        }  # fmt: skip

    return {
        "backbone": found.name,
        "options": found.options,
        "input": found.input,
        "classes": found.classes,
        "published": found.published and {"classes": found.published.classes, "weights": found.published.weights},
        "batch_size": found.batch_size,
        "total": _sizes(total(found.layers)),
        "kinds": {kind: _sizes(sizes) for kind, sizes in by_kind(found.layers).items()},
        "blocks": [{"name": name, **_sizes(total(layers))} for name, layers in found.blocks],
        "layers": [of_layer(layer, place) for place, layer in enumerate(found.layers)],
        "training": [_step_as_json(step, found.batch_size) for step in found.steps],
    }


def _sizes(sizes: "Sizes") -> dict[str, int]:
    """Those that are the same in every phase."""
    return {name: getattr(sizes, name) for name in ("units", "weights", "connections", "multiply_adds")}


def _step_as_json(step: "Step", batch_size: int) -> dict[str, Any]:
    from pipeline.inspection import total

    sums = total(step.layers)
    memory = step.memory(batch_size)
    return {
        "unfreeze": step.unfreeze,
        "optimizer": step.optimizer,
        "trainable_weights": sums.trainable,
        "frozen_weights": sums.weights - sums.trainable,
        "cut": step.cut,
        "fed": step.fed,
        "stored_bytes": step.stored_bytes,
        "multiply_adds": {
            "below_the_cut": step.frozen.multiply_adds,
            "above_the_cut": step.trained.multiply_adds,
            "above_the_cut_with_the_gradient": step.trained.step_multiply_adds,
        },
        "memory_bytes": {**asdict(memory), "total": memory.total},
    }
