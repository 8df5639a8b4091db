"""`graft cache`."""

import json
import re
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import filesize
from rich.markup import escape
from rich.table import Table

from pipeline.cli import byte_size, errors_in_words, out
from pipeline.console import Console
from pipeline.errors import CacheError, ConfigError

if TYPE_CHECKING:
    from pipeline.activations import Held


def cache(
    folder: Annotated[
        Path, typer.Argument(metavar="DIR", help="A store's folder, or the output_dir of the runs that fill it.")
    ] = Path("runs/activations"),
    keep: Annotated[
        str | None,
        typer.Option(metavar="SIZE", help="Keep this much, e.g. 2GB: the least recently used goes first. 0: nothing."),
    ] = None,
    unused_for: Annotated[
        str | None, typer.Option(metavar="AGE", help="Remove what was not used for so long, e.g. 30d or 12h.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List what is kept of frozen layers, and remove what is no longer needed."""
    with errors_in_words():
        from pipeline.activations import FILE, Store, look
        from pipeline.sqlite_file import size_of

        limit = None if keep is None else byte_size(keep, "--keep")
        moment = None if unused_for is None else datetime.now(UTC) - _age(unused_for)
        found = next((place for place in (folder, folder / "activations") if (place / FILE).is_file()), None)
        if found is None:
            raise CacheError(
                f"There is no activation store to look at: neither {folder} nor its folder activations holds an "
                f"{FILE}. Give the output_dir of a run, or its cache.dir. With cache: off a run keeps nothing."
            )
        path, removed = found / FILE, None
        if limit is not None or moment is not None:
            # Nothing is added here, so nothing is removed to make room, whatever the store's own limit is.
            with Store(found, shutil.disk_usage(found).total, Console().warn) as store:
                removed = store.prune(limit, moment)
        held = look(found) if path.exists() else []  # An emptied store has no file.
        on_disk = size_of(path)
        if as_json:
            print(
                json.dumps(
                    {
                        "file": str(path),
                        "bytes": on_disk,
                        "removed": removed and {"activations": removed.entries, "bytes": removed.bytes},
                        "held": [
                            {
                                "activations": part.entries,
                                "bytes": part.bytes,
                                "last_used": part.last_used.isoformat(timespec="seconds"),
                                "of": part.description,
                            }
                            for part in held
                        ],
                    }
                )
            )
            return
        if removed is not None:
            print(f"removed {removed.entries:,} activations, {filesize.decimal(removed.bytes)} given back")
        if held:
            _print_held(held)
        print(f"{path}: " + (f"{filesize.decimal(on_disk)} on disk" if held else "nothing is kept"))


def _print_held(held: "list[Held]") -> None:
    table = Table("frozen up to", box=None, header_style="bold")
    for name in ("count", "size"):
        table.add_column(name, justify="right", no_wrap=True)
    for name in ("shape", "dtype", "engine", "last used"):
        table.add_column(name, no_wrap=True)
    networks: dict[str, list[Held]] = {}
    for part in held:
        networks.setdefault(_network(part.description), []).append(part)
    for network, parts in networks.items():
        table.add_row(f"[dim]{escape(network)}[/dim]")
        for part in parts:
            of, size = part.description, filesize.decimal(part.bytes)
            if "of" in of:
                table.add_row(escape(str(of["of"])), f"{part.entries:,}", size, *"---", _ago(part.last_used))
                continue
            shape = "x".join(map(str, of["shape"])) if isinstance(of.get("shape"), list) else "?"
            cut, dtype, engine = (escape(str(of.get(name, "?"))) for name in ("cut", "dtype", "engine"))
            engine = engine.split()[0]  # Without its version.
            table.add_row(cut, f"{part.entries:,}", size, shape, dtype, engine, _ago(part.last_used))
    count, total = sum(part.entries for part in held), sum(part.bytes for part in held)
    table.add_row("[dim]in all[/dim]", f"{count:,}", filesize.decimal(total))
    out().print(table)


def _network(description: dict[str, Any]) -> str:
    """A network's name and options; another version of Graft may have described it in other words."""
    if "of" in description:
        return f"no network: pixels {str(description.get('pixels', '?'))[:8]}"
    options = description.get("options")
    shown = "".join(f" {key}={value}" for key, value in options.items()) if isinstance(options, dict) else " ?"
    return f"{description.get('backbone', '?')}{shown}"


def _ago(moment: datetime) -> str:
    hours = int((datetime.now(UTC) - moment) / timedelta(hours=1))
    if hours < 1:
        return "just now"
    return f"{hours} h ago" if hours < 48 else f"{hours // 24} d ago"


def _age(text: str) -> timedelta:
    match = re.fullmatch(r"(\d{1,5})([dh])", text.strip())
    if match is None:
        raise ConfigError(f"--unused-for must be days or hours such as 30d or 12h. Received: {text!r}.")
    return int(match[1]) * (timedelta(days=1) if match[2] == "d" else timedelta(hours=1))
