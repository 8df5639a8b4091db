"""`graft models`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from pipeline.cli import ConfigOption, OutputDir, errors_in_words, registry_uri
from pipeline.errors import ConfigError, did_you_mean


def models(
    name: Annotated[str | None, typer.Argument(metavar="NAME", help="Of a model; if not given, all names.")] = None,
    output_dir: OutputDir = Path("runs"),
    config: ConfigOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """List a model's versions: what they learned from, how good they are, who is champion and why."""
    with errors_in_words():
        from dataclasses import asdict

        from pipeline import registry

        uri = registry_uri(output_dir, config)
        if name is None:
            known = registry.names(uri)
            print(json.dumps({"names": known}) if as_json else "\n".join(known) or "no model is registered")
            return
        client = registry.Registry(uri, name)
        rows = registry.table(client)
        if as_json:
            found = {"versions": [asdict(row) for row in rows], "history": client.history()}
            print(json.dumps(found, default=str))
            return
        if not rows:
            known = registry.names(uri)
            there = f"Give one of the names in the registry: {', '.join(known)}."
            remedy = did_you_mean(name, known, there) if known else "Train one with: graft run CONFIG"
            raise ConfigError(f"No version of {name!r} is registered. {remedy}")
        print(f"{'version':<9}{'':<22}{'made':<18}{'data':<10}test accuracy")
        for row in rows:
            accuracy = "" if row.accuracy is None else f"{row.accuracy:.3f}"
            if row.accuracy_low is not None and row.accuracy_high is not None:
                accuracy += f" ({row.accuracy_low:.3f} to {row.accuracy_high:.3f})"
            marks = [*row.aliases]
            if row.export_version not in (None, str(row.number)):
                marks.append(f"served as {row.export_version}")
            made = f"{row.created_at:%Y-%m-%d %H:%M}"
            print(f"{row.number:<9}{', '.join(marks):<22}{made:<18}{row.data_digest or '':<10}{accuracy}")
            if row.refused:
                print(f"         refused: {row.refused}")
            if row.promoted_at:
                when = row.promoted_at[:16].replace("T", " ")
                print(f"         promoted {when} by {row.decided_by}: {row.reason}")
            if row.rolled_back:
                print(f"         rolled back {row.rolled_back}")
