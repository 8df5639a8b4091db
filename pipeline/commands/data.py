"""`graft data`."""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.cli import ConfigPath, Json, Overrides, Quiet, errors_in_words, graft, out, shown, stop_in_order
from pipeline.console import Console

if TYPE_CHECKING:
    from pipeline.audit import Audit


def data(
    config: ConfigPath,
    overrides: Overrides = None,
    fix: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Apply a reviewed list: its actions quarantine and relabel:CLASS."),
    ] = None,
    as_json: Json = False,
    quiet: Quiet = False,
) -> None:
    """Look at the pictures before training: what is damaged, doubled, leaking, mislabelled or odd."""
    with errors_in_words():
        from pipeline.config_file import load

        stop_in_order()
        loaded = load(config, overrides)
        settings = [part for override in overrides or () for part in ("--set", override)]
        again = f"{graft()} data {shlex.join([shown(config), *settings])}"
        if fix is not None:
            from pipeline.audit_fix import apply

            try:
                done = apply(loaded.data, fix)
            except KeyboardInterrupt:
                print("What was done stays done: give the same command again, and it does the rest.", file=sys.stderr)
                raise
            if as_json:
                print(json.dumps({"quarantined": done.quarantined, "relabelled": done.relabelled,
                                  "done_before": done.done_before, "record": str(done.record)}))  # fmt: skip
                return
            print(f"quarantined {done.quarantined}, relabelled {done.relabelled}, done before {done.done_before}")
            print(f"record      {shown(done.record)}")
            print(f"next        {again}")
            return
        from pipeline.quiet import import_tensorflow

        import_tensorflow()
        from pipeline.audit import LIST, audit, folder_of

        fix_with = f"{again} --fix {shlex.quote(shown(folder_of(loaded) / LIST))}"
        found = audit(loaded, Console(quiet), fix_with)
        _print_findings(found)
        if found.refused is not None:
            Console().warn(f"A run would not start. {found.refused}")
        print(f"page        {shown(found.page)}")
        print(f"list        {shown(found.findings)}")
        if any(found.counts.values()):
            print("next        look at the page, write quarantine or relabel:CLASS into the list's column action, then")
            print(f"            {fix_with}")
        if as_json:
            figures = {"pictures": found.pictures, "classes": found.classes, "findings": found.counts,
                       "not_judged": found.not_judged, "refused": found.refused,
                       "page": str(found.page), "list": str(found.findings)}  # fmt: skip
            print(json.dumps(figures))


def _print_findings(found: "Audit") -> None:
    from rich.table import Table

    from pipeline.audit_findings import CLEAREST, KINDS

    print(f"{found.pictures:,} pictures of {found.classes:,} classes")
    table = Table(box=None, header_style="bold", pad_edge=False)
    table.add_column("finding", no_wrap=True)
    table.add_column("pictures", justify="right")
    table.add_column("what it means", style="dim")
    for kind, count in found.counts.items():
        if count:
            table.add_row(kind, f"{count:,}", KINDS[kind].meaning)
    if table.row_count:
        console = out()
        with console.capture() as printed:
            console.print(table)
        print("\n".join(line.rstrip() for line in printed.get().splitlines()))  # A table pads its lines with blanks.
        if clean := [kind for kind, count in found.counts.items() if not count]:
            print(f"none        {', '.join(clean)}")
    else:
        print("nothing was found that needs a look")
    if found.counts.get("likely mislabel") == 0:
        print(f"            {CLEAREST}")
    if found.not_judged:
        print(f"not judged  {', '.join(found.not_judged)}: the network's weights could not be had")
